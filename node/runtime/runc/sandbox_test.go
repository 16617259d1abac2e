package runc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostcgroup"
	"github.com/balsa-run/balsa/node/runtime"
)

// sandbox is a pod with a container in which a shell can look round.
type sandbox struct {
	*machine
	uid runtime.PodUID
}

func newSandbox(t *testing.T, change func(*runtime.ContainerConfig)) *sandbox {
	t.Helper()
	m := newMachine(t)
	rt := m.open()
	pod := runtime.PodConfig{UID: "a", Hostname: "box", Hosts: []byte("10.0.0.9 box\n"), ResolvConf: []byte("nameserver 10.0.0.1\n")}
	if _, err := rt.RunPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	s := &sandbox{machine: m, uid: "a"}
	s.add("c", change)
	return s
}

func (s *sandbox) add(name string, change func(*runtime.ContainerConfig)) {
	s.t.Helper()
	c := runtime.ContainerConfig{Name: name, Image: s.image, Command: []string{"/bin/sim", "forever"}}
	if change != nil {
		change(&c)
	}
	if err := s.rt.RunContainer(s.t.Context(), s.uid, c); err != nil {
		s.t.Fatal(err)
	}
}

// sh runs a script of busybox's shell in a container.
func (s *sandbox) sh(container, script string) string {
	s.t.Helper()
	var out bytes.Buffer
	cfg := runtime.ExecConfig{Args: []string{"/bin/busybox", "sh", "-c", script}, Env: []runtime.EnvVar{{Name: "PATH", Value: "/bin"}}, Stdout: &out, Stderr: &out}
	if _, err := s.rt.Exec(s.t.Context(), s.uid, container, cfg); err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func (s *sandbox) want(container, script, want string) {
	s.t.Helper()
	if got := s.sh(container, script); got != want {
		s.t.Errorf("%s\n got %q\nwant %q", script, got, want)
	}
}

// refused wants a command to fail; its output is returned for the message.
func (s *sandbox) refused(container, command string) {
	s.t.Helper()
	if got := s.sh(container, command+" && echo done"); strings.HasSuffix(got, "done") {
		s.t.Errorf("%s: it was allowed: %q", command, got)
	}
}

const bb = "busybox "

func TestSandboxIsThePods(t *testing.T) {
	s := newSandbox(t, nil)
	s.add("d", nil)
	s.want("c", bb+"hostname", "box")
	s.want("c", bb+"cat /etc/hostname /etc/hosts /etc/resolv.conf", "box\n10.0.0.9 box\nnameserver 10.0.0.1")
	s.want("c", bb+"cat /data/which", "upper")
	for _, ns := range []string{"net", "uts", "ipc"} {
		if a, b := s.sh("c", bb+"readlink /proc/self/ns/"+ns), s.sh("d", bb+"readlink /proc/self/ns/"+ns); a != b {
			t.Errorf("%s namespaces differ: %s and %s", ns, a, b)
		}
	}
	for _, ns := range []string{"pid", "mnt"} {
		if a, b := s.sh("c", bb+"readlink /proc/self/ns/"+ns), s.sh("d", bb+"readlink /proc/self/ns/"+ns); a == b {
			t.Errorf("%s namespaces are the same: %s", ns, a)
		}
	}
	s.sh("c", "echo shared > /dev/shm/x; echo own > /own")
	s.want("d", bb+"cat /dev/shm/x", "shared")
	s.refused("d", bb+"test -e /own")
	s.want("c", bb+"ip -o link | "+bb+"wc -l", "1")
	s.want("c", bb+"ip -o link show lo | "+bb+"grep -c LOWER_UP", "1")
	if entries, err := os.ReadDir(s.image.Layers[1]); err != nil || len(entries) != 1 {
		t.Errorf("the upper layer holds %v now, %v: containers wrote to the image", entries, err)
	}
}

func TestSandboxConfines(t *testing.T) {
	s := newSandbox(t, nil)
	s.want("c", bb+"grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | "+bb+"tr -d '\\t'", "NoNewPrivs:1\nSeccomp:2")
	// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP
	// NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP
	s.want("c", bb+"grep -E 'CapBnd|CapEff' /proc/self/status | "+bb+"tr -d '\\t'", "CapEff:00000000a80425fb\nCapBnd:00000000a80425fb")
	for _, command := range []string{
		bb + "mount -t tmpfs none /tmp", bb + "unshare -U true", "echo 1 > /proc/sys/vm/swappiness", "echo b > /proc/sysrq-trigger",
		bb + "mkdir /sys/fs/cgroup/memory/x", bb + "mkdir /sys/x",
		bb + "mknod /tmp/d b 254 0 && " + bb + "dd if=/tmp/d of=/dev/null bs=1 count=1", bb + "hostname other",
	} {
		s.refused("c", command)
	}
	// Not every kernel has it; where it is, something empty covers it.
	s.want("c", "if test -e /proc/kcore; then "+bb+"head -c 1 /proc/kcore | "+bb+"wc -c; else echo 0; fi", "0")
	if got := s.sh("c", bb+"date -s 2000-01-01 2>&1"); !strings.Contains(got, "not permitted") {
		t.Errorf("setting the clock: %q", got)
	}
	s.want("c", bb+"cat /proc/self/cgroup | "+bb+"cut -d: -f3 | "+bb+"sort -u", "/")
}

func TestSandboxUsers(t *testing.T) {
	s := newSandbox(t, func(c *runtime.ContainerConfig) { c.Image.User, c.Security.ImageGroups = "app", true })
	s.want("c", bb+"id -u; "+bb+"id -g; "+bb+"id -G", "1000\n1000\n1000 2000")
	s.want("c", bb+"grep CapEff /proc/self/status | "+bb+"tr -d '\\t'", "CapEff:0000000000000000")
	uid, gid := int64(4000), int64(5000)
	s.add("d", func(c *runtime.ContainerConfig) {
		c.Security = runtime.Security{RunAsUser: &uid, RunAsGroup: &gid, SupplementalGroups: []int64{6000}, RunAsNonRoot: true, ReadOnlyRootFS: true}
	})
	s.want("d", bb+"id -u; "+bb+"id -g; "+bb+"id -G", "4000\n5000\n5000 6000")
	s.refused("d", "echo x > /tmp/x")
	s.add("e", func(c *runtime.ContainerConfig) {
		c.Security = runtime.Security{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"net_bind_service"}}
	})
	s.want("e", bb+"grep CapEff /proc/self/status | "+bb+"tr -d '\\t'", "CapEff:0000000000000400")
}

func TestPrivilegedIsNotConfined(t *testing.T) {
	s := newSandbox(t, func(c *runtime.ContainerConfig) { c.Security.Privileged = true })
	s.want("c", bb+"grep -E 'Seccomp:' /proc/self/status | "+bb+"tr -d '\\t'", "Seccomp:0")
	s.want("c", bb+"mount -t tmpfs none /tmp && echo done", "done")
}

func TestMounts(t *testing.T) {
	writable, readOnly := t.TempDir(), t.TempDir()
	hosts := filepath.Join(readOnly, "hosts")
	if err := os.WriteFile(hosts, []byte("replaced\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSandbox(t, func(c *runtime.ContainerConfig) {
		c.Mounts = []runtime.Mount{
			{HostPath: readOnly, ContainerPath: "/vol/inner", ReadOnly: true}, {HostPath: writable, ContainerPath: "/vol"},
			{HostPath: hosts, ContainerPath: "/etc/hosts", ReadOnly: true},
		}
	})
	s.sh("c", "echo data > /vol/f")
	if content, err := os.ReadFile(filepath.Join(writable, "f")); err != nil || string(content) != "data\n" {
		t.Errorf("the volume holds %q, %v", content, err)
	}
	s.refused("c", "echo x > /vol/inner/f")
	s.want("c", bb+"cat /vol/inner/hosts /etc/hosts", "replaced\nreplaced")
	if err := s.rt.RemovePod(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(writable, "f")); err != nil || string(content) != "data\n" {
		t.Errorf("after the pod's removal the volume holds %q, %v", content, err)
	}
}

func TestLimits(t *testing.T) {
	s := newSandbox(t, func(c *runtime.ContainerConfig) {
		c.Resources = runtime.Resources{
			CPUShares: 512, CPUQuotaMicros: 20_000, MemoryLimitBytes: 64 << 20, PidsLimit: 33, OOMScoreAdj: 500, NoFileLimit: 1 << 30,
		}
	})
	dir := filepath.Join(s.opt.CgroupPrefix, podsCgroup, "a", "c-0")
	for path, want := range cgroupValues(t, dir) {
		if content, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(content)) != want {
			t.Errorf("%s: %q, %v, want %s", path, content, err, want)
		}
	}
	s.want("c", bb+"cat /proc/1/oom_score_adj", "500")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if got, err := strconv.ParseUint(s.sh("c", "ulimit -n"), 10, 64); err != nil || got > max(limit.Max, 1<<30) || got < 1024 {
		t.Errorf("open files: %d, %v", got, err)
	}
	// Below the agent's own: the kernel refuses it, so it is raised, not failed.
	s.add("d", func(c *runtime.ContainerConfig) { c.Resources.OOMScoreAdj = -997 })
}

// cgroupValues are the files and values of TestLimits, in either version.
func cgroupValues(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree, err := hostcgroup.Discover()
	if err != nil {
		t.Fatal(err)
	}
	oom := tree.OOMFile(dir)
	if filepath.Base(oom) == "memory.events" {
		base := filepath.Dir(oom)
		return map[string]string{
			base + "/cpu.max": "20000 100000", base + "/memory.max": "67108864", base + "/pids.max": "33",
		}
	}
	at := func(controller, file string) string {
		for _, procs := range tree.ProcsFiles(dir) {
			if path := filepath.Join(filepath.Dir(procs), file); slices.Contains(strings.FieldsFunc(procs, func(r rune) bool { return r == '/' || r == ',' }), controller) {
				return path
			}
		}
		t.Fatalf("no hierarchy has %s", controller)
		return ""
	}
	return map[string]string{
		at("cpu", "cpu.shares"): "512", filepath.Dir(filepath.Dir(at("cpu", "cpu.shares"))) + "/cpu.shares": "512", at("cpu", "cpu.cfs_quota_us"): "20000", at("cpu", "cpu.cfs_period_us"): "100000",
		at("memory", "memory.limit_in_bytes"): "67108864", at("pids", "pids.max"): "33",
	}
}

func TestHostNetwork(t *testing.T) {
	m := newMachine(t)
	rt := m.open()
	state, err := rt.RunPod(t.Context(), runtime.PodConfig{UID: "a", HostNetwork: true})
	if err != nil || state.NetNS != "" {
		t.Fatalf("RunPod: %+v, %v", state, err)
	}
	s := &sandbox{machine: m, uid: "a"}
	s.add("c", nil)
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	s.want("c", bb+"readlink /proc/self/ns/net", mine)
}

func TestTwoNodesOnOneMachine(t *testing.T) {
	one, two := newSandbox(t, nil), newSandbox(t, nil)
	if a, b := one.sh("c", bb+"readlink /proc/self/ns/net"), two.sh("c", bb+"readlink /proc/self/ns/net"); a == b {
		t.Errorf("pods of the same uid on two nodes share %s", a)
	}
	if err := one.rt.RemovePod(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	two.want("c", "echo alive", "alive")
}

func TestExecOnTerminal(t *testing.T) {
	s := newSandbox(t, nil)
	var out bytes.Buffer
	resize := make(chan runtime.TerminalSize, 1)
	resize <- runtime.TerminalSize{Width: 132, Height: 43}
	exit, err := s.rt.Exec(t.Context(), "a", "c", runtime.ExecConfig{
		Args: []string{"/bin/busybox", "sh", "-c", "read x; " + bb + "stty size; echo got $x; exit 5"}, Env: []runtime.EnvVar{{Name: "PATH", Value: "/bin"}},
		TTY: true, Resize: resize, Stdin: &delayed{text: "hello\n", until: func() bool { return len(resize) == 0 }}, Stdout: &out,
	})
	if err != nil || exit.Code != 5 || !strings.Contains(out.String(), "43 132") || !strings.Contains(out.String(), "got hello") {
		t.Errorf("exit %+v, %v, output %q", exit, err, out.String())
	}
}

// delayed gives its text once a condition holds, a moment for the other side
// to act on it included.
type delayed struct {
	text  string
	until func() bool
}

func (d *delayed) Read(p []byte) (int, error) {
	for !d.until() {
		tick()
	}
	if d.text == "" {
		<-time.NewTimer(patience).C
	}
	<-time.NewTimer(200 * time.Millisecond).C
	n := copy(p, d.text)
	d.text = d.text[n:]
	return n, nil
}

func TestExecEndsWithContext(t *testing.T) {
	s := newSandbox(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		_, err := s.rt.Exec(ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sim", "out=up", "term=ignore", "forever"}, Stdout: signalWriter(started)})
		result <- err
	}()
	<-started
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	poll(t, "the process to be gone", func() bool { return s.sh("c", bb+"ps | "+bb+"grep -c '[t]erm=ignore'") == "0" })
}

type signalWriter chan struct{}

func (s signalWriter) Write(p []byte) (int, error) {
	close(s)
	return len(p), nil
}

// TestShimIsSmall holds the promise of 2.5 MB a pod.
func TestShimIsSmall(t *testing.T) {
	const maxPSS = 2500 << 10
	s := newSandbox(t, nil)
	pss := s.shimMemory("Pss:")
	t.Logf("one shim: PSS %d kB, RSS %d kB, anonymous %d kB", pss>>10, s.shimMemory("Rss:")>>10, s.shimMemory("Anonymous:")>>10)
	if pss > maxPSS {
		t.Errorf("a shim's PSS is %d bytes, at most %d are promised", pss, maxPSS)
	}
}

func (s *sandbox) shimMemory(field string) int64 {
	s.t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.shimPID(s.uid)))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), field)
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return kb << 10
}

// BenchmarkStart asks: how long from nothing to a running container, and how
// long until nothing is left of it?
func BenchmarkStart(b *testing.B) {
	m := newMachine(b)
	rt := m.open()
	ctx := context.Background()
	var pod, container, remove []time.Duration
	for i := range b.N {
		uid := runtime.PodUID(fmt.Sprintf("p%d", i))
		begin := time.Now()
		if _, err := rt.RunPod(ctx, runtime.PodConfig{UID: uid}); err != nil {
			b.Fatal(err)
		}
		made := time.Now()
		c := runtime.ContainerConfig{Name: "c", Image: m.image, Command: []string{"/bin/sim", "forever"}}
		c.Resources.MemoryLimitBytes = 64 << 20
		if err := rt.RunContainer(ctx, uid, c); err != nil {
			b.Fatal(err)
		}
		runs := time.Now()
		if err := rt.RemovePod(ctx, uid); err != nil {
			b.Fatal(err)
		}
		pod, container, remove = append(pod, made.Sub(begin)), append(container, runs.Sub(made)), append(remove, time.Since(runs))
	}
	for name, times := range map[string][]time.Duration{"pod": pod, "container": container, "remove": remove} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, name+"-p50-ms")
	}
}
