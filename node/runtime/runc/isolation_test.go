package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
)

// newPod is a sandbox of a given kind without containers.
func newPod(t *testing.T, change func(*runtime.PodConfig)) *sandbox {
	t.Helper()
	m := newMachine(t)
	cfg := runtime.PodConfig{UID: "a", Hostname: "box", Hosts: []byte("10.0.0.9 box\n"), ResolvConf: []byte("nameserver 10.0.0.1\n")}
	change(&cfg)
	if _, err := m.open().RunPod(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return &sandbox{machine: m, uid: "a"}
}

// usersBase is far from the ids that this machine uses.
const usersBase = 1 << 20

func withUsers(cfg *runtime.PodConfig) {
	cfg.Users = &runtime.IDMapping{HostID: usersBase, Size: 65536}
}

// pidOf is a container's first process on the node.
func (s *sandbox) pidOf(name string) int {
	s.t.Helper()
	return s.attempt(name).PID
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

func TestUserNamespace(t *testing.T) {
	s := newPod(t, func(c *runtime.PodConfig) {
		withUsers(c)
		c.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "11"}
	})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("node's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(volume, "f"), []byte("x"), 0o600), os.Chown(filepath.Join(volume, "f"), 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	s.add("c", func(c *runtime.ContainerConfig) {
		c.Security = runtime.Security{AllowPrivilegeEscalation: true, SeccompUnconfined: true, AddCapabilities: []string{"ALL"}}
		c.Mounts = []runtime.Mount{{HostPath: secret, ContainerPath: "/secret"}, {HostPath: volume, ContainerPath: "/plain"}, {HostPath: volume, ContainerPath: "/mapped", Mapped: true}}
	})
	s.want("c", bb+"id -u; "+bb+"cat /proc/self/uid_map | "+bb+"tr -s ' '", "0\n 0 1048576 65536")
	if uid := owner(t, fmt.Sprintf("/proc/%d", s.pidOf("c"))); uid != usersBase {
		t.Errorf("on the node root of the container is uid %d, want %d", uid, usersBase)
	}
	s.want("c", bb+"stat -c %u:%g /bin/busybox /data /etc/hosts /dev/shm", "0:0\n0:0\n0:0\n0:0")
	s.want("c", "echo 10.1.1.1 x >> /etc/hosts && "+bb+"touch /new && "+bb+"chown 5:6 /new /data/which && "+bb+"stat -c %u:%g /new /data/which", "5:6\n5:6")
	upper := filepath.Join(s.podDir("a"), containersDir, "c-0", upperDir)
	if uid := owner(t, filepath.Join(upper, "new")); uid != usersBase+5 {
		t.Errorf("on the node a file of the container's uid 5 belongs to %d", uid)
	}
	s.want("c", bb+"stat -c %u /plain/f /mapped/f", "65534\n1000")
	s.want("c", bb+"touch /mapped/made && "+bb+"chown 7 /mapped/made && echo done", "done")
	if uid := owner(t, filepath.Join(volume, "made")); uid != 7 {
		t.Errorf("through a mapped mount, uid 7 writes files of uid %d", uid)
	}
	for _, command := range []string{
		bb + "cat /secret", "echo x > /plain/f", bb + "chown 0 /plain/f", "echo 1 > /proc/sys/vm/swappiness", "echo 1 > /proc/sys/kernel/panic", bb + "mknod /dev/d b 254 0",
	} {
		s.refused("c", command)
	}
	if got := s.sh("c", bb+"date -s 2000-01-01 2>&1"); !strings.Contains(got, "not permitted") {
		t.Errorf("setting the clock: %q", got)
	}
	s.want("c", bb+"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max", "81\n1\n11")
	s.want("c", bb+"mount -t tmpfs none /tmp && "+bb+"hostname other && "+bb+"hostname", "other")
	s.want("c", bb+"ip -o link show lo | "+bb+"grep -c LOWER_UP", "1")
	s.add("d", func(c *runtime.ContainerConfig) { c.Security.UnmaskedProc = true })
	s.want("d", bb+"mount | "+bb+"grep -c ' /proc/'", "0")
	s.want("d", bb+"hostname", "other")
	s.refused("d", bb+"mount -t tmpfs none /tmp")
	s.add("p", func(c *runtime.ContainerConfig) { c.Security.Privileged = true })
	s.want("p", bb+"mount -t tmpfs none /tmp && echo done", "done")
	s.refused("p", "echo 1 > /proc/sys/kernel/panic")
	c := runtime.ContainerConfig{Name: "e", Image: s.image, Command: []string{"/bin/sim"}}
	c.Security.SupplementalGroups = []int64{70000}
	if err := s.rt.RunContainer(t.Context(), "a", c); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("a group that the namespace lacks: %v, want ErrInvalid", err)
	}
}

// TestUserNamespaceSurvives: a new shim takes over the same namespaces.
func TestUserNamespaceSurvives(t *testing.T) {
	s := newPod(t, func(c *runtime.PodConfig) { withUsers(c); c.ShareProcessNamespace = true })
	s.add("c", nil)
	net, pid := s.sh("c", bb+"readlink /proc/self/ns/net"), s.sh("c", bb+"readlink /proc/self/ns/pid")
	s.killShim("a")
	poll(t, "the pod to be lost", func() bool {
		pod, err := s.rt.Pod(t.Context(), "a")
		return err == nil && pod.Sandbox == runtime.SandboxLost
	})
	if _, err := s.rt.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
		t.Fatal(err)
	}
	s.add("d", nil)
	s.want("d", bb+"readlink /proc/self/ns/net; "+bb+"readlink /proc/self/ns/pid", net+"\n"+pid)
}

func TestSharedProcessNamespace(t *testing.T) {
	s := newPod(t, func(c *runtime.PodConfig) { c.ShareProcessNamespace = true })
	s.add("c", nil)
	s.add("d", func(c *runtime.ContainerConfig) { c.Security.AddCapabilities = []string{"SYS_PTRACE"} })
	s.want("d", bb+"ps -o args | "+bb+"grep -c '[s]im forever'", "2")
	s.want("d", bb+"tr '\\0' ' ' < /proc/1/cmdline", "balsa-shim pause root=1")
	s.want("d", bb+"ls -a /proc/1/root/", ".\n..")
	s.want("d", bb+"grep -E 'Cap(Eff|Prm|Bnd)' /proc/1/status | "+bb+"tr -d '\\t' | "+bb+"head -2", "CapPrm:0000000000000000\nCapEff:0000000000000000")
	// Orphans are reaped, and signals to the first process do nothing.
	s.want("d", "(("+bb+"true &) &); "+bb+"kill -TERM 1; i=0; while "+bb+"ps -o stat | "+bb+"grep -q '^Z' && [ $i -lt 100 ]; do "+bb+"usleep 10000; i=$((i+1)); done; echo $i | "+bb+"grep -vc 100", "1")
	if err := s.rt.Signal(t.Context(), "a", "c", 0, runtime.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll(t, "the end of c", func() bool { return s.attempt("c").Status == runtime.ContainerExited })
	s.want("d", "echo alive", "alive")
	// Another agent finds it alive; without it the pod is lost, then remade.
	s.close()
	s.open()
	s.add("e", nil)
	pause := s.pausePID()
	t.Logf("the pause process: PSS %d kB", memoryOf(t, pause, "Pss:")>>10)
	if pss := memoryOf(t, pause, "Pss:"); pss > 2<<20 {
		t.Errorf("the pause process takes %d bytes", pss)
	}
	if err := unix.Kill(pause, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll(t, "the end of d", func() bool { return s.attempt("d").Status == runtime.ContainerExited && !s.pauseLives() })
	c := runtime.ContainerConfig{Name: "f", Image: s.image, Command: []string{"/bin/sim", "forever"}}
	if err := s.rt.RunContainer(t.Context(), "a", c); !errors.Is(err, runtime.ErrPodLost) {
		t.Fatalf("a container without the pod's process namespace: %v, want ErrPodLost", err)
	}
	if _, err := s.rt.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
		t.Fatal(err)
	}
	s.add("f", nil)
	s.want("f", bb+"ps -o args | "+bb+"grep -c '[s]im forever'", "1")
}

func (s *sandbox) pauseLives() bool {
	p, ok := s.rt.find("a")
	return ok && p.pauseLives()
}

func (s *sandbox) pausePID() int {
	s.t.Helper()
	pids, err := s.rt.cgroups.PIDs(filepath.Join(s.opt.CgroupPrefix, podsCgroup, "a", pauseCgroup))
	if err != nil || len(pids) != 1 {
		s.t.Fatalf("processes of the pause cgroup: %v, %v", pids, err)
	}
	return pids[0]
}

func memoryOf(t *testing.T, pid int, field string) int64 {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), field)
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// TestHostNamespaces: what a pod shares with its node.
func TestHostNamespaces(t *testing.T) {
	s := newPod(t, func(c *runtime.PodConfig) { c.HostPID, c.HostIPC = true, true })
	s.add("c", nil)
	for _, name := range []string{"pid", "ipc"} {
		mine, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		s.want("c", bb+"readlink /proc/self/ns/"+name, mine)
	}
	s.want("c", bb+"tr '\\0' '\\n' < /proc/"+strconv.Itoa(os.Getpid())+"/cmdline | "+bb+"head -1", os.Args[0])
	marker := filepath.Join("/dev/shm", "balsa-test-"+strconv.Itoa(os.Getpid()))
	if err := os.WriteFile(marker, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(marker) })
	s.want("c", "test -e "+marker+" && echo there", "there")
}

func TestTargetContainer(t *testing.T) {
	s := newSandbox(t, nil)
	s.add("debug", func(c *runtime.ContainerConfig) { c.TargetContainer = "c" })
	s.want("debug", bb+"ps -o args | "+bb+"grep -c '[s]im forever'", "2")
	s.want("debug", bb+"readlink /proc/self/ns/pid", s.sh("c", bb+"readlink /proc/self/ns/pid"))
	s.add("other", nil)
	s.want("other", bb+"ps -o args | "+bb+"grep -c '[s]im forever'", "1")
}

func TestSysctls(t *testing.T) {
	s := newPod(t, func(c *runtime.PodConfig) {
		c.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "82", "net/ipv4/tcp_syncookies": "0", "kernel.msgmax": "7777", "kernel.domainname": "example"}
	})
	before, err := os.ReadFile("/proc/sys/kernel/msgmax")
	if err != nil {
		t.Fatal(err)
	}
	s.add("c", nil)
	s.want("c", bb+"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/tcp_syncookies /proc/sys/kernel/msgmax /proc/sys/kernel/domainname", "82\n0\n7777\nexample")
	if after, err := os.ReadFile("/proc/sys/kernel/msgmax"); err != nil || string(after) != string(before) {
		t.Errorf("the node's own msgmax is %s now, was %s, %v", after, before, err)
	}
	for _, users := range []bool{false, true} {
		bad := runtime.PodConfig{UID: "b", Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "many"}}
		if users {
			withUsers(&bad)
		}
		if _, err := s.rt.RunPod(t.Context(), bad); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "ip_unprivileged_port_start") {
			t.Errorf("a value that is none, user namespace %v: %v, want ErrInvalid that names it", users, err)
		}
	}
}

func TestSeccompProfile(t *testing.T) {
	s := newSandbox(t, func(c *runtime.ContainerConfig) {
		c.Security.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`)
	})
	if got := s.sh("c", bb+"mkdir /x 2>&1"); !strings.Contains(got, "not supported") {
		t.Errorf("mkdir under a filter that answers EOPNOTSUPP: %q", got)
	}
	s.want("c", bb+"grep Seccomp: /proc/self/status | "+bb+"tr -d '\\t'; "+bb+"touch /y && echo made", "Seccomp:2\nmade")
	s.add("d", func(c *runtime.ContainerConfig) { c.Security.SeccompUnconfined = true })
	s.want("d", bb+"grep Seccomp: /proc/self/status | "+bb+"tr -d '\\t'", "Seccomp:0")
}

func TestSubPathStaysInside(t *testing.T) {
	volume, outside := t.TempDir(), t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(volume, "a/b"), 0o755), os.WriteFile(filepath.Join(volume, "a/file"), []byte("inner\n"), 0o644),
		os.WriteFile(filepath.Join(outside, "secret"), []byte("outer\n"), 0o644), os.Symlink(outside, filepath.Join(volume, "absolute")),
		os.Symlink("../../../../../../../.."+outside, filepath.Join(volume, "a/relative")), os.Symlink("a", filepath.Join(volume, "good")), os.Chmod(volume, 0o750), os.Chown(volume, 12, 34)); err != nil {
		t.Fatal(err)
	}
	s := newSandbox(t, func(c *runtime.ContainerConfig) {
		c.Mounts = []runtime.Mount{
			{HostPath: volume, ContainerPath: "/dir", SubPath: "good/b"}, {HostPath: volume, ContainerPath: "/file", SubPath: "a/file", ReadOnly: true},
			{HostPath: volume, ContainerPath: "/made", SubPath: "new/er"},
		}
	})
	s.want("c", bb+"cat /file; "+bb+"stat -c %u:%g:%a /made; echo x > /dir/x && "+bb+"ls /dir", "inner\n12:34:750\nx")
	s.refused("c", "echo y > /file")
	for _, sub := range []string{"absolute", "a/relative", "absolute/secret", "a/file/x"} {
		c := runtime.ContainerConfig{Name: "d", Image: s.image, Command: []string{"/bin/sim", "forever"}}
		c.Mounts = []runtime.Mount{{HostPath: volume, ContainerPath: "/v", SubPath: sub}}
		if err := s.rt.RunContainer(t.Context(), "a", c); err == nil {
			t.Errorf("sub path %s was mounted: %q", sub, s.sh("d", bb+"ls /v"))
		}
	}
}

// TestSubPathRace: a link that another changes all the time never leads out.
func TestSubPathRace(t *testing.T) {
	dir := t.TempDir()
	volume, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "outside")
	if err := errors.Join(os.MkdirAll(filepath.Join(volume, "in"), 0o755), os.MkdirAll(outside, 0o755), os.WriteFile(filepath.Join(outside, "secret"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			temp := filepath.Join(volume, "temp")
			_ = os.Symlink([]string{"in", outside, "../outside"}[i%3], temp)
			_ = os.Rename(temp, filepath.Join(volume, "sub"))
		}
	}()
	mounted := 0
	for i := range 2000 {
		at := filepath.Join(dir, "at"+strconv.Itoa(i))
		if (hostmount.Clone{Source: volume, SubPath: "sub", Target: at}).Mount() != nil {
			continue
		}
		mounted++
		if _, err := os.Stat(filepath.Join(at, "secret")); err == nil {
			t.Error("the sub path led out of the volume")
		}
		if err := hostmount.UnmountUnder(at); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	if mounted == 0 {
		t.Error("nothing was ever mounted")
	}
}

// sharedMount is a folder whose mounts travel.
func sharedMount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hostmount.UnmountUnder(dir); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"late", "from"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMountPropagation(t *testing.T) {
	dir := sharedMount(t)
	m := newMachine(t) // after dir: the pod goes before the mounts do
	if _, err := m.open().RunPod(t.Context(), runtime.PodConfig{UID: "a"}); err != nil {
		t.Fatal(err)
	}
	s := &sandbox{machine: m, uid: "a"}
	at := func(p runtime.Propagation) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) {
			c.Security.Privileged = true
			c.Mounts = []runtime.Mount{{HostPath: dir, ContainerPath: "/v", Propagation: p}}
		}
	}
	s.add("private", at(""))
	s.add("slave", at(runtime.PropagationHostToContainer))
	s.add("shared", at(runtime.PropagationBidirectional))
	late := filepath.Join(dir, "late")
	if err := errors.Join(unix.Mount("tmpfs", late, "tmpfs", 0, "size=1m"), os.WriteFile(filepath.Join(late, "f"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"private": "", "slave": "f", "shared": "f"} {
		s.want(name, bb+"ls /v/late", want)
	}
	s.want("slave", bb+"mount -t tmpfs none /v/from && "+bb+"touch /v/from/slave && echo done", "done")
	s.want("shared", bb+"ls /v/from", "")
	s.want("shared", bb+"mount -t tmpfs none /v/from && "+bb+"touch /v/from/shared && echo done", "done")
	if entries, err := os.ReadDir(filepath.Join(dir, "from")); err != nil || len(entries) != 1 {
		t.Errorf("the node sees %v of a mount of the container, %v", entries, err)
	}
	// A volume on a private mount cannot do what was asked for, and says so.
	private := t.TempDir()
	if err := errors.Join(unix.Mount("tmpfs", private, "tmpfs", 0, "size=1m"), unix.Mount("", private, "", unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hostmount.UnmountUnder(private) })
	c := runtime.ContainerConfig{Name: "d", Image: s.image, Command: []string{"/bin/sim"}, Mounts: []runtime.Mount{{HostPath: private, ContainerPath: "/v", Propagation: runtime.PropagationBidirectional}}}
	if err := s.rt.RunContainer(t.Context(), "a", c); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "make-rshared") {
		t.Errorf("got %v, want ErrInvalid that says what to do", err)
	}
}

// TestReadOnlyIsRecursive: what is mounted below a read-only volume is, too.
func TestReadOnlyIsRecursive(t *testing.T) {
	volume := t.TempDir()
	inner := filepath.Join(volume, "inner")
	if err := errors.Join(os.Mkdir(inner, 0o755), unix.Mount("tmpfs", inner, "tmpfs", 0, "size=1m"), os.WriteFile(filepath.Join(inner, "f"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hostmount.UnmountUnder(volume) })
	s := newSandbox(t, func(c *runtime.ContainerConfig) {
		c.Security.AddCapabilities = []string{"ALL"}
		c.Mounts = []runtime.Mount{{HostPath: volume, ContainerPath: "/v", ReadOnly: true}}
	})
	s.want("c", bb+"cat /v/inner/f", "x")
	for _, command := range []string{"echo y > /v/f", "echo y > /v/inner/f"} {
		s.refused("c", command)
	}
}

func TestPrivilegedHasDevices(t *testing.T) {
	s := newSandbox(t, func(c *runtime.ContainerConfig) { c.Security.Privileged = true })
	s.add("plain", nil)
	const devices = "cd /dev && for f in *; do test ! -L $f && test -b $f -o -c $f && echo $f; done | " + bb + "wc -l"
	all, err := strconv.Atoi(s.sh("c", devices))
	few, err2 := strconv.Atoi(s.sh("plain", devices))
	if err != nil || err2 != nil || few != 6 || all <= few {
		t.Errorf("a privileged container has %d devices, another %d: want all, and 6; %v %v", all, few, err, err2)
	}
	s.want("c", "test -w /proc/sys/vm && cd /sys/fs/cgroup && (! test -d memory || cd memory) && "+bb+"mkdir x && "+bb+"rmdir x && "+bb+"dd if=/dev/kmsg of=/dev/null bs=1 count=0 2>/dev/null && echo done", "done")
}

func TestPodLimits(t *testing.T) {
	s := newPod(t, func(c *runtime.PodConfig) {
		c.Resources = runtime.Resources{CPUShares: 700, CPUQuotaMicros: 20_000, MemoryLimitBytes: 48 << 20, PidsLimit: 50}
	})
	// The quota of the container is more than the pod has.
	s.add("c", func(c *runtime.ContainerConfig) { c.Resources.CPUQuotaMicros = 50_000 })
	dir := filepath.Join(s.opt.CgroupPrefix, podsCgroup, "a")
	for path, want := range podValues(t, dir) {
		if content, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(content)) != want {
			t.Errorf("%s: %q, %v, want %s", path, content, err, want)
		}
	}
	// No limit of its own: the pod's kills it, and it is said as such.
	if err := s.rt.RunContainer(t.Context(), "a", runtime.ContainerConfig{Name: "big", Image: s.image, Command: []string{"/bin/sim", "oom"}}); err != nil {
		t.Fatal(err)
	}
	poll(t, "the kernel to kill it", func() bool { return s.attempt("big").Status == runtime.ContainerExited })
	if state := s.attempt("big"); state.Reason != runtime.ReasonOOMKilled {
		t.Errorf("a container that took its pod's memory reads %+v", state)
	}
	if state := s.attempt("c"); state.Status != runtime.ContainerRunning {
		t.Errorf("the other container reads %+v", state)
	}
}

// TestSmallQuotaStartsFast: with one per cent of a processor, for the container
// and for the pod, what starts the container is not throttled.
func TestSmallQuotaStartsFast(t *testing.T) {
	one := runtime.Resources{CPUQuotaMicros: runtime.MinCPUQuotaMicros}
	took := map[string]time.Duration{}
	for _, c := range []struct {
		name           string
		pod, container runtime.Resources
	}{{"none", runtime.Resources{}, runtime.Resources{}}, {"container", runtime.Resources{}, one}, {"pod", one, runtime.Resources{}}, {"both", one, one}} {
		s := newPod(t, func(p *runtime.PodConfig) { p.Resources = c.pod })
		for i := range 5 {
			begin := time.Now()
			s.add("c"+strconv.Itoa(i), func(config *runtime.ContainerConfig) { config.Resources = c.container })
			if d := time.Since(begin); i == 0 || d < took[c.name] {
				took[c.name] = d
			}
		}
	}
	t.Logf("fastest starts: %v", took)
	for name, d := range took {
		// What starts a container uses most of that time of a processor, which
		// would take a hundred times as long at one per cent.
		if d > 3*took["none"]+500*time.Millisecond {
			t.Errorf("with a quota for %s the fastest start took %v, without one %v", name, d, took["none"])
		}
	}
}

func podValues(t *testing.T, dir string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for path := range cgroupValues(t, dir) {
		switch filepath.Base(path) {
		case "cpu.shares":
			if filepath.Base(filepath.Dir(path)) == "a" {
				values[path] = "700"
			}
		case "cpu.max":
			values[path] = "20000 100000"
		case "cpu.cfs_quota_us":
			values[path] = "20000"
		case "memory.max", "memory.limit_in_bytes":
			values[path] = strconv.Itoa(48 << 20)
		case "pids.max":
			values[path] = "50"
		}
	}
	return values
}
