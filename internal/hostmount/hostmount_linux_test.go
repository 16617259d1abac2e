package hostmount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUnderReadsEscapes(t *testing.T) {
	const content = `1 0 8:1 / / rw - ext4 d rw
2 1 8:1 / /a rw - ext4 d rw
3 1 8:1 / /a/b\040c rw - ext4 d rw
4 1 8:1 / /ab rw - ext4 d rw
5 1 8:1 / /a/d\134e rw - ext4 d rw
`
	if got, want := under(content, "/a"), []string{"/a", "/a/b c", `/a/d\e`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// mountDir is a directory under which nothing is mounted any more at the end.
func mountDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := UnmountUnder(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func makeDirs(t *testing.T, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOverlayOfManyLayers has more than the options of mount(2) can name, in the
// way of this kernel and in the old one.
func TestOverlayOfManyLayers(t *testing.T) {
	const layers = 120
	dir := mountDir(t)
	o := Overlay{Stage: filepath.Join(dir, "stage")}
	for i := range layers {
		layer := filepath.Join(dir, fmt.Sprintf("a-layer-with-a-long-name-%040d", i))
		makeDirs(t, layer, "d")
		for _, name := range []string{fmt.Sprint(i), "all"} {
			if err := os.WriteFile(filepath.Join(layer, "d", name), []byte(fmt.Sprint(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		o.Layers = append(o.Layers, layer)
	}
	for name, mount := range map[string]func(Overlay) error{"this": Overlay.Mount, "old": func(o Overlay) error { return o.mountOld(o.Layers) }} {
		room := filepath.Join(dir, name)
		makeDirs(t, room, "upper", "work", "target")
		o.Upper, o.Work, o.Target = filepath.Join(room, "upper"), filepath.Join(room, "work"), filepath.Join(room, "target")
		if err := mount(o); err != nil {
			t.Fatalf("%s way: %v", name, err)
		}
		entries, err := os.ReadDir(filepath.Join(o.Target, "d"))
		if err != nil || len(entries) != layers+1 {
			t.Errorf("%s way: %d entries, %v, want %d", name, len(entries), err, layers+1)
		}
		if content, err := os.ReadFile(filepath.Join(o.Target, "d", "all")); err != nil || string(content) != fmt.Sprint(layers-1) {
			t.Errorf("%s way: the last layer must win: %q, %v", name, content, err)
		}
	}
}

func TestTakesLayersSingly(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-56-cloud-amd64": false, "5.10.0": false, "6.4.16": false, "6.5.0-rc1": true, "6.5": true, "6.18.44": true, "7.0.1": true, "10.2": true, "": false, "next": false,
	} {
		if got := takesLayersSingly(release); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}

// TestPinLeavesThisProcessAlone: a hundred times, since the goroutine may find
// itself on the main thread only now and then.
func TestPinLeavesThisProcessAlone(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		dir := mountDir(t)
		pin := filepath.Join(dir, "net")
		if err := os.WriteFile(pin, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := (Namespaces{Net: pin}).Pin(); err != nil {
			t.Fatal(err)
		}
		after, err := os.Readlink("/proc/self/ns/net")
		if err != nil || after != before {
			t.Fatalf("after %d pins this process is in %s, was in %s, %v", i+1, after, before, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(pin, &st); err != nil || fmt.Sprintf("net:[%d]", st.Ino) == before {
			t.Errorf("the pin is this process's own namespace: %+v, %v", st, err)
		}
		if err := UnmountUnder(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnmountUnderTakesNestedMounts(t *testing.T) {
	dir := mountDir(t)
	makeDirs(t, dir, "a")
	outer := filepath.Join(dir, "a")
	if err := Tmpfs(outer, 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	makeDirs(t, outer, "b")
	if err := Tmpfs(filepath.Join(outer, "b"), 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	if err := UnmountUnder(dir); err != nil {
		t.Fatal(err)
	}
	if mounts, err := Under(dir); err != nil || len(mounts) > 0 {
		t.Errorf("left %v, %v", mounts, err)
	}
}
