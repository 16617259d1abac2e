package runtime

import (
	"encoding/json"
	"path"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSysctlFiles(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward", "kernel.sem": "kernel/sem",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
	} {
		if got, err := SysctlFile(name); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %s", name, got, err, want)
		}
	}
	for file, want := range map[string]string{
		"net/core/somaxconn": "net", "kernel/shmmax": "ipc", "kernel/msgmnb": "ipc", "kernel/sem": "ipc", "fs/mqueue/msg_max": "ipc",
		"kernel/domainname": "uts", "kernel/semaphore": "", "kernel/hostname": "", "vm/swappiness": "", "network/x": "", "user/max_user_namespaces": "",
	} {
		if got := SysctlNamespace(file); got != want {
			t.Errorf("%s belongs to %q, want %q", file, got, want)
		}
	}
}

// TestSysctlsNeverLeaveProcSys: whatever the name, the file is below /proc/sys.
func TestSysctlsNeverLeaveProcSys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"net", "..", ".", "/", "kernel", "shm", "", "a"}), 0, 7).Draw(t, "parts"), rapid.SampledFrom([]string{".", "/", ""}).Draw(t, "separator"))
		file, err := SysctlFile(name)
		if err == nil && (!strings.HasPrefix(path.Join("/proc/sys", file), "/proc/sys/") || path.Clean(file) != file) {
			t.Fatalf("%q is the file %q", name, file)
		}
	})
}

func FuzzParseSeccomp(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],` +
		`"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW"} {}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, profile []byte) {
		parsed, err := ParseSeccomp(profile)
		if err != nil {
			return
		}
		text, err := json.Marshal(parsed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseSeccomp(text); err != nil {
			t.Errorf("%q was taken, but not when written as %q: %v", profile, text, err)
		}
	})
}
