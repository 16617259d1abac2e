package hostmount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSharedIn(t *testing.T) {
	const content = `1 0 8:1 / / rw shared:1 - ext4 d rw
2 1 8:1 / /a rw - ext4 d rw
3 1 8:1 / /a/b rw master:4 - ext4 d rw
4 1 8:1 / /c rw shared:2 - ext4 d rw
5 4 8:1 / /c rw - ext4 d rw
6 1 8:1 / /d rw,relatime shared:7 master:8 - ext4 d rw
`
	for path, want := range map[string]struct {
		at            string
		shared, slave bool
	}{
		"/x/y": {"/", true, false}, "/a/c": {"/a", false, false}, "/a/b/c": {"/a/b", false, true}, "/ab": {"/", true, false},
		"/c": {"/c", false, false}, "/d/e": {"/d", true, true},
	} {
		at, shared, slave := sharedIn(content, path)
		if at != want.at || shared != want.shared || slave != want.slave {
			t.Errorf("%s: %s %v %v, want %+v", path, at, shared, slave, want)
		}
	}
}

func clone(t *testing.T, c Clone) {
	t.Helper()
	if err := c.Mount(); err != nil {
		t.Fatal(err)
	}
}

// TestCloneGoesAlone: taking a clone away leaves what is mounted below its
// source, also when the source has peers.
func TestCloneGoesAlone(t *testing.T) {
	for _, propagation := range []uint64{0, unix.MS_SLAVE, unix.MS_SHARED} {
		dir := mountDir(t)
		makeDirs(t, dir, "source", "clones")
		source, at := filepath.Join(dir, "source"), filepath.Join(dir, "clones", "0")
		inner := filepath.Join(source, "inner")
		if err := errors.Join(Tmpfs(source, 1<<20, 0), unix.Mount("", source, "", unix.MS_SHARED, ""), os.Mkdir(inner, 0o755), Tmpfs(inner, 1<<20, 7)); err != nil {
			t.Fatal(err)
		}
		clone(t, Clone{Source: source, Target: at, Propagation: propagation})
		if here, err := IsMounted(filepath.Join(at, "inner")); err != nil || !here {
			t.Errorf("the clone lacks what is mounted below: %v, %v", here, err)
		}
		if err := UnmountUnder(filepath.Join(dir, "clones")); err != nil {
			t.Fatal(err)
		}
		if left, err := IsMounted(inner); err != nil || !left {
			t.Errorf("propagation %#x: the source lost the mount below it, %v", propagation, err)
		}
	}
}

// TestOldKernelsOverlay is the way of kernels before 6.5.
func TestOldKernelsOverlay(t *testing.T) {
	dir := mountDir(t)
	makeDirs(t, dir, "upper", "work", "target", "a:low,er", "b")
	for name, content := range map[string]string{"a:low,er/f": "a", "b/f": "b", "a:low,er/only": "a"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := Overlay{
		Layers: []string{filepath.Join(dir, "a:low,er"), filepath.Join(dir, "b")}, Upper: filepath.Join(dir, "upper"),
		Work: filepath.Join(dir, "work"), Target: filepath.Join(dir, "target"), Stage: filepath.Join(dir, "stage"),
	}
	if err := o.mountOld(o.Layers); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"f": "b", "only": "a"} {
		if content, err := os.ReadFile(filepath.Join(o.Target, name)); err != nil || string(content) != want {
			t.Errorf("%s: %q, %v, want %q", name, content, err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(o.Target, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(o.Upper, "new")); err != nil {
		t.Errorf("what was written is not in the upper directory: %v", err)
	}
}

func TestSubPathIsMadeLikeItsVolume(t *testing.T) {
	dir := mountDir(t)
	makeDirs(t, dir, "source")
	source := filepath.Join(dir, "source")
	if err := errors.Join(os.Chown(source, 3, 4), os.Chmod(source, 0o770|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	clone(t, Clone{Source: source, SubPath: "x/y", Target: filepath.Join(dir, "at")})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(source, "x/y"), &st); err != nil || st.Uid != 3 || st.Gid != 4 || st.Mode&0o7777 != 0o2770 {
		t.Errorf("made %+v, %v", st, err)
	}
	if err := (Clone{Source: source, SubPath: "../../etc", Target: filepath.Join(dir, "out")}).Mount(); err != nil {
		return
	}
	// Inside the source as its root, ".." leads nowhere.
	if _, err := os.Stat(filepath.Join(source, "etc")); err != nil {
		t.Errorf("a path of dots led out: %v", err)
	}
}
