package hostcgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// files makes a folder that looks like a cgroup.
func files(t *testing.T, dir string, contents map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestLimitsOfBothVersions(t *testing.T) {
	limits := Limits{CPUQuotaMicros: 2000, CPUPeriodMicros: 100_000, MemoryBytes: 1 << 20, Pids: 9}
	dir := t.TempDir()
	two := &Tree{hierarchies: []hierarchy{{mount: filepath.Join(dir, "two"), unified: true, delegates: true}}}
	files(t, filepath.Join(dir, "two/pod"), map[string]string{"cpu.max": "max 100000", "memory.max": "max", "pids.max": "max"})
	if err := two.SetLimits("/pod", limits); err != nil { // memory.swap.max is absent without swap accounting
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu.max": "2000 100000", "memory.max": "1048576", "pids.max": "9"} {
		if got := read(t, filepath.Join(dir, "two/pod", file)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if diff := cmp.Diff([]limitFile{{file: "cpu.max", value: "max"}}, unifiedFiles(Limits{CPUQuotaMicros: NoQuota}), cmp.AllowUnexported(limitFile{})); diff != "" {
		t.Error(diff)
	}
	both := &Tree{hierarchies: []hierarchy{{mount: filepath.Join(dir, "cpu"), controllers: []string{"rw", "cpu"}}, {mount: filepath.Join(dir, "memory"), controllers: []string{"memory"}}, {mount: filepath.Join(dir, "none"), unified: true}}}
	files(t, filepath.Join(dir, "cpu/pod"), map[string]string{"cpu.cfs_quota_us": "", "cpu.cfs_period_us": ""})
	files(t, filepath.Join(dir, "memory/pod"), map[string]string{"memory.limit_in_bytes": "", "memory.memsw.limit_in_bytes": ""})
	if err := both.SetLimits("/pod", limits); err != nil || both.Unified() || !two.Unified() {
		t.Fatalf("%v, %v, %v", err, both.Unified(), two.Unified())
	}
	for file, want := range map[string]string{"cpu/pod/cpu.cfs_quota_us": "2000", "memory/pod/memory.memsw.limit_in_bytes": "1048576"} {
		if got := read(t, filepath.Join(dir, file)); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if err := two.SetLimits("/absent", limits); err == nil {
		t.Error("limits of a cgroup that does not exist were set")
	}
}

// TestControllersAreHandedDown: only what is there and not enabled yet.
func TestControllersAreHandedDown(t *testing.T) {
	dir := t.TempDir()
	files(t, dir, map[string]string{"cgroup.controllers": "cpuset cpu io memory pids misc\n", "cgroup.subtree_control": "cpuset io cpu memory\n"})
	if err := delegate(dir); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "cgroup.subtree_control")); !strings.HasPrefix(got, "+pids") {
		t.Errorf("wrote %q, want +pids alone", got)
	}
	// A hierarchy of version 2 whose parents are plain folders refuses.
	h := hierarchy{mount: filepath.Join(dir, "nothing"), unified: true, delegates: true}
	if err := h.make("/a/b"); err == nil {
		t.Error("a cgroup was made where no controller can be handed down")
	}
}

// TestStartIsBornInTheCgroup: in every hierarchy, and this process stays.
func TestStartIsBornInTheCgroup(t *testing.T) {
	tree, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	path := testPath(t, tree)
	if err := tree.Make(path); err != nil {
		t.Fatal(err)
	}
	before := read(t, "/proc/self/cgroup")
	for range 20 {
		cmd := exec.Command("/bin/cat", "/proc/self/cgroup")
		var out strings.Builder
		cmd.Stdout = &out
		if err := tree.Start(path, cmd); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		held := tree.Holds(path, pid)
		if err := cmd.Wait(); err != nil || !held {
			t.Fatalf("%v, held %v", err, held)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if slices.ContainsFunc(lines, func(line string) bool { return !strings.HasSuffix(line, ":"+path) }) {
			t.Fatalf("born in %q, want %s everywhere", lines, path)
		}
	}
	if after := read(t, "/proc/self/cgroup"); after != before {
		t.Errorf("this process was moved: %q, before %q", after, before)
	}
	// A thread is gone a moment after its goroutine.
	deadline := time.Now().Add(10 * time.Second)
	for pids, err := tree.PIDs(path); err != nil || len(pids) > 0; pids, err = tree.PIDs(path) {
		if time.Now().After(deadline) {
			t.Fatalf("threads of this process are left in the cgroup: %v, %v", pids, err)
		}
		<-time.NewTimer(time.Millisecond).C
	}
	if err := tree.Warm(); err != nil || read(t, "/proc/self/cgroup") != before {
		t.Errorf("warming: %v, or it moved this process", err)
	}
}

func TestMemberPath(t *testing.T) {
	content := []byte("12:cpu,cpuacct:/a\n4:memory:/process/b\n3:name=systemd:/c\n0::/d\n")
	for want, h := range map[string]hierarchy{
		"/process/b": {controllers: []string{"rw", "memory"}}, "/a": {controllers: []string{"cpu", "cpuacct"}},
		"/c": {controllers: []string{"name=systemd"}}, "/d": {unified: true},
	} {
		if got, ok := h.memberPath(content); !ok || got != want {
			t.Errorf("%+v: %q, %v, want %s", h, got, ok, want)
		}
	}
	if got, ok := (hierarchy{controllers: []string{"pids"}}).memberPath(content); ok {
		t.Errorf("a hierarchy that is not listed: %q", got)
	}
}
