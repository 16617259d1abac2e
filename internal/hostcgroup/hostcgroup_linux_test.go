package hostcgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestMountInfoIsRead(t *testing.T) {
	const content = `25 1 254:0 / / rw - ext4 /dev/vda rw
36 35 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 35 0:31 / /elsewhere rw,relatime - cgroup cgroup rw,memory
38 35 0:32 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
39 35 0:33 /inner /bind rw - cgroup cgroup rw,pids
40 35 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
cut
`
	want := []hierarchy{
		{mount: "/sys/fs/cgroup/memory", controllers: []string{"rw", "memory"}},
		{mount: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"rw", "cpu", "cpuacct"}},
		{mount: "/sys/fs/cgroup/unified", unified: true},
	}
	if diff := cmp.Diff(want, parseMountInfo(content), cmp.AllowUnexported(hierarchy{})); diff != "" {
		t.Error(diff)
	}
}

func TestMembership(t *testing.T) {
	const content = "9:name=systemd:/n1/pods/a/c-0\n4:memory:/other\n0::/\n"
	for path, want := range map[string]bool{"/n1/pods/a": true, "/n1/pods/a/c-0": true, "/n1/pods/a/c": false, "/n1/pods/b": false, "/other/": true} {
		if got := isMember(content, path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

// testPath is a cgroup of this test alone; it and its parents are removed.
func testPath(t *testing.T, tree *Tree) string {
	t.Helper()
	path := "/balsa-hostcgroup-test/" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(tree.Kill(ctx, path), tree.Remove(ctx, path)); err != nil {
			t.Error(err)
		}
		tree.RemoveIfEmpty(path)
		for _, file := range tree.ProcsFiles("/balsa-hostcgroup-test") {
			if _, err := os.Stat(filepath.Dir(file)); err == nil {
				t.Errorf("%s is left", filepath.Dir(file))
			}
		}
	})
	return path
}

func TestKillEmptiesTheWholeTree(t *testing.T) {
	tree, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	path := testPath(t, tree)
	inner := filepath.Join(path, "a", "b")
	if err := tree.Make(inner); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("/bin/sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	for _, file := range tree.ProcsFiles(inner) {
		if err := os.WriteFile(file, []byte(strconv.Itoa(sleeper.Process.Pid)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pids, err := tree.PIDs(path)
	if err != nil || len(pids) != 1 || pids[0] != sleeper.Process.Pid {
		t.Errorf("processes %v, %v, want %d", pids, err, sleeper.Process.Pid)
	}
	if children, err := tree.Children(path); err != nil || len(children) != 1 || children[0] != "a" {
		t.Errorf("children %v, %v", children, err)
	}
	go func() { _ = sleeper.Wait() }()
	if err := tree.Kill(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if children, err := tree.Children(path); err != nil || len(children) > 0 {
		t.Errorf("after the removal: children %v, %v", children, err)
	}
}

func TestKillSparesStrangers(t *testing.T) {
	tree, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.killMember("/balsa-no-such-cgroup", os.Getpid()); err != nil {
		t.Error(err) // and we are still here
	}
}

func TestLockIsExclusive(t *testing.T) {
	tree, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	path := testPath(t, tree)
	first, err := tree.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Lock(path); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := tree.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
