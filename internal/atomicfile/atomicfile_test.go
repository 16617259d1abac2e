package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// only fails the test if dir holds anything but the named files.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("folder holds %v, want %v", got, want)
	}
}

func TestWriteReplacesWithExactMode(t *testing.T) {
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, mode := range []fs.FileMode{0o600, 0o644, 0o400, 0o755} {
		want := fmt.Sprintf("content of %v", mode)
		if err := Write(path, []byte(want), mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != mode {
			t.Errorf("mode is %v, want %v", info.Mode().Perm(), mode)
		}
		if got := read(t, path); got != want {
			t.Errorf("content is %q, want %q", got, want)
		}
	}
	only(t, dir, "f")
}

func TestWriteRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := Write("f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	only(t, ".", "f")
}

func TestWriteFromKeepsOldContentWhenSourceFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := WriteFrom(path, io.MultiReader(strings.NewReader("half of the new"), failing{boom}), 0o600)
	if !errors.Is(err, boom) {
		t.Fatalf("error is %v, want boom", err)
	}
	if got := read(t, path); got != "old" {
		t.Errorf("content is %q, want old", got)
	}
	only(t, dir, "f")
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestWriteRefusals(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		path string
		mode fs.FileMode
	}{
		"setuid":           {filepath.Join(dir, "f"), fs.ModeSetuid | 0o700},
		"no name":          {dir + "/", 0o600},
		"dot dot":          {dir + "/..", 0o600},
		"folder in place":  {filepath.Join(dir, "folder"), 0o600},
		"folder not there": {filepath.Join(dir, "none", "f"), 0o600},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := Write(tt.path, []byte("x"), tt.mode); err == nil {
				t.Fatal("no error")
			}
			only(t, dir, "folder")
		})
	}
}

func TestRemoveTemps(t *testing.T) {
	dir := t.TempDir()
	keep := []string{".hidden", "a.tmp-b", "f"}
	for _, name := range append([]string{".f.tmp-ABC", ".g.tmp-DEF"}, keep...) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n, err := RemoveTemps(dir)
	if n != 2 || err != nil {
		t.Fatalf("RemoveTemps = %d, %v, want 2, nil", n, err)
	}
	only(t, dir, keep...)
	if _, err := RemoveTemps(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v, want not exist", err)
	}
}

// TestWritersDoNotMix: whoever wins, the file is one writer's content whole.
func TestWritersDoNotMix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var wg sync.WaitGroup
	for i := range 8 {
		content := []byte(strings.Repeat(string(rune('a'+i)), 10_000))
		wg.Go(func() {
			if err := Write(path, content, 0o600); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := read(t, path)
	if got != strings.Repeat(got[:1], 10_000) {
		t.Error("content of several writers is mixed")
	}
	only(t, dir, "f")
}

// TestEveryFault makes each step fail in turn: the old content stays until the
// rename, the new is whole after it, and no temporary file is left.
func TestEveryFault(t *testing.T) {
	steps := []string{"create", "write", "chmod", "sync", "close", "rename", "syncdir"}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			if err := Write(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			d := &faultyDisk{fail: step}
			err := write(d, path, 0o600, strings.NewReader("new"))
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("error is %v, want EIO", err)
			}
			want := "old"
			if step == "syncdir" {
				want = "new"
			}
			if got := read(t, path); got != want {
				t.Errorf("content is %q, want %q", got, want)
			}
			if got := errors.Is(err, ErrNotDurable); got != (step == "syncdir") {
				t.Errorf("is ErrNotDurable: %v", got)
			}
			only(t, dir, "f")
		})
	}
}

func TestOrderOfSteps(t *testing.T) {
	d := &faultyDisk{}
	if err := write(d, filepath.Join(t.TempDir(), "f"), 0o600, strings.NewReader("new")); err != nil {
		t.Fatal(err)
	}
	want := "[create write chmod sync close rename syncdir]"
	if got := fmt.Sprint(d.did); got != want {
		t.Errorf("steps are %s, want %s", got, want)
	}
}

// faultyDisk is the real disk until the step named fail.
type faultyDisk struct {
	osDisk
	fail string
	did  []string
}

func (d *faultyDisk) step(name string) error {
	d.did = append(d.did, name)
	if name == d.fail {
		return syscall.EIO
	}
	return nil
}

func (d *faultyDisk) Create(path string) (file, error) {
	if err := d.step("create"); err != nil {
		return nil, err
	}
	f, err := d.osDisk.Create(path)
	return &faultyFile{f, d}, err
}

func (d *faultyDisk) Rename(from, to string) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	return d.osDisk.Rename(from, to)
}

func (d *faultyDisk) SyncDir(path string) error {
	if err := d.step("syncdir"); err != nil {
		return err
	}
	return d.osDisk.SyncDir(path)
}

type faultyFile struct {
	file
	d *faultyDisk
}

func (f *faultyFile) Write(p []byte) (int, error) {
	if err := f.d.step("write"); err != nil {
		return 0, err
	}
	return f.file.Write(p)
}

func (f *faultyFile) Chmod(mode fs.FileMode) error {
	if err := f.d.step("chmod"); err != nil {
		return err
	}
	return f.file.Chmod(mode)
}

func (f *faultyFile) Sync() error {
	if err := f.d.step("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Close() error {
	err := f.file.Close()
	return errors.Join(f.d.step("close"), err)
}
