//go:build linux

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
)

const uid = runtime.PodUID("4f1c2c9e-0000-4000-8000-000000000001")

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := hostmount.UnmountUnder(dir); err != nil {
			t.Error(err)
		}
	})
	return reopen(t, dir), dir
}

func reopen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: filepath.Join(dir, "disk"), RunDir: filepath.Join(dir, "run"), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prepare(t *testing.T, s *Store, pod Pod) map[string]string {
	t.Helper()
	paths, err := s.Prepare(context.Background(), pod)
	must(t, err)
	return paths
}

func podOf(volumes ...Volume) Pod { return Pod{UID: uid, Volumes: volumes} }

func stat(t *testing.T, path string) (fs.FileInfo, *unixStat) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info, info.Sys().(*unixStat)
}

func TestEmptyDirIsOpenToEverybodyAndKeepsItsFiles(t *testing.T) {
	s, dir := open(t)
	pod := podOf(Volume{Name: "work", Scratch: &Scratch{}}, Volume{Name: "cache", Scratch: &Scratch{Memory: true, SizeBytes: 1 << 20}})
	paths := prepare(t, s, pod)
	for name, path := range paths {
		if info, _ := stat(t, path); info.Mode().Perm() != 0o777 {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
		must(t, os.WriteFile(filepath.Join(path, "f"), []byte("x"), 0o600))
	}
	again := prepare(t, reopen(t, dir), pod) // another agent
	for name, path := range again {
		if path != paths[name] {
			t.Errorf("%s moved from %s to %s", name, paths[name], path)
		}
		if _, err := os.Stat(filepath.Join(path, "f")); err != nil {
			t.Errorf("%s lost its file: %v", name, err)
		}
	}
	must(t, s.Remove(context.Background(), uid))
	must(t, s.Remove(context.Background(), uid))
	left, err := s.Pods(context.Background())
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	points, err := hostmount.Under(filepath.Join(dir, "run", folderPods))
	must(t, err)
	if len(points) != 0 {
		t.Errorf("still mounted: %v", points)
	}
}

func TestEmptyDirInMemoryEndsAtItsSizeLimit(t *testing.T) {
	s, _ := open(t)
	path := prepare(t, s, podOf(Volume{Name: "m", Scratch: &Scratch{Memory: true, SizeBytes: 1 << 20}}))["m"]
	err := os.WriteFile(filepath.Join(path, "big"), make([]byte, 2<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing 2 MiB into 1 MiB: %v", err)
	}
	got, err := s.Usage(context.Background(), uid)
	must(t, err)
	if u := got["m"]; !u.Memory || u.LimitBytes != 1<<20 || u.UsedBytes != 1<<20 {
		t.Errorf("usage: %+v", u)
	}
}

func TestUsageCountsLinkedFilesOnceAndStaysInside(t *testing.T) {
	s, _ := open(t)
	path := prepare(t, s, podOf(Volume{Name: "w", Scratch: &Scratch{}}))["w"]
	must(t, os.WriteFile(filepath.Join(path, "a"), make([]byte, 1<<20), 0o600))
	must(t, os.Link(filepath.Join(path, "a"), filepath.Join(path, "b")))
	must(t, os.Symlink("/usr", filepath.Join(path, "away")))
	got, err := s.Usage(context.Background(), uid)
	must(t, err)
	if used := got["w"].UsedBytes; used < 1<<20 || used > 1<<20+64<<10 {
		t.Errorf("used: %d", used)
	}
}

func TestFilesHaveTheirModesAndOwners(t *testing.T) {
	s, _ := open(t)
	group := int64(2000)
	pod := podOf(Volume{Name: "c", Files: &Files{Files: map[string]File{
		"app.conf": {Data: []byte("a"), Mode: 0o644}, "keys/id": {Data: []byte("b"), Mode: 0o400},
	}}})
	pod.FSGroup, pod.Users = &group, &runtime.IDMapping{HostID: 100000, Size: 65536}
	path := prepare(t, s, pod)["c"]
	for name, want := range map[string]fs.FileMode{"app.conf": 0o644, "keys/id": 0o440} {
		info, st := stat(t, filepath.Join(path, name))
		if info.Mode().Perm() != want || st.Uid != 100000 || st.Gid != 102000 {
			t.Errorf("%s: mode %s, owner %d:%d", name, info.Mode(), st.Uid, st.Gid)
		}
	}
}

func TestSecretFilesLieInMemoryOnly(t *testing.T) {
	s, dir := open(t)
	path := prepare(t, s, podOf(Volume{Name: "s", Files: &Files{Secret: true, Files: map[string]File{"password": {Data: []byte("sesame"), Mode: 0o400}}}}))["s"]
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	if st.Type != unix.TMPFS_MAGIC {
		t.Errorf("a secret lies on file system %x", st.Type)
	}
	must(t, filepath.WalkDir(filepath.Join(dir, "disk"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			data, err := os.ReadFile(p)
			must(t, err)
			if bytes.Contains(data, []byte("sesame")) {
				t.Errorf("%s holds the secret", p)
			}
		}
		return err
	}))
}

// A reader that opens ..data once sees one version in all files, whenever it
// looks.
func TestFilesChangeAllAtOnce(t *testing.T) {
	s, _ := open(t)
	version := func(n int) Pod {
		text := []byte(fmt.Sprint(n))
		return podOf(Volume{Name: "c", Files: &Files{Files: map[string]File{"a": {text, 0o644}, "d/b": {text, 0o644}}}})
	}
	path := prepare(t, s, version(0))["c"]
	stop, mixed := make(chan struct{}), make(chan string, 1)
	var reads atomic.Int64
	go func() {
		defer close(mixed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			tree, err := os.Readlink(filepath.Join(path, dataLink))
			if err != nil {
				mixed <- err.Error()
				return
			}
			a, errA := os.ReadFile(filepath.Join(path, tree, "a"))
			b, errB := os.ReadFile(filepath.Join(path, tree, "d", "b"))
			if errA == nil && errB == nil && !bytes.Equal(a, b) {
				mixed <- fmt.Sprintf("%s and %s", a, b)
				return
			}
			reads.Add(1)
		}
	}()
	for n := 1; n < 200 || reads.Load() < 10; n++ {
		prepare(t, s, version(n))
	}
	close(stop)
	if text, bad := <-mixed; bad {
		t.Errorf("read %s", text)
	}
}

func TestFilesThatAreGoneGo(t *testing.T) {
	s, _ := open(t)
	with := func(names ...string) Pod {
		files := map[string]File{}
		for _, name := range names {
			files[name] = File{Data: []byte(name), Mode: 0o644}
		}
		return podOf(Volume{Name: "c", Files: &Files{Files: files}})
	}
	path := prepare(t, s, with("a", "b/c"))["c"]
	first, err := os.Readlink(filepath.Join(path, dataLink))
	must(t, err)
	prepare(t, s, with("a", "b/c"))
	if same, err := os.Readlink(filepath.Join(path, dataLink)); err != nil || same != first {
		t.Errorf("the same files were written again: %s, %v", same, err)
	}
	must(t, os.Mkdir(filepath.Join(path, "..2020_left_by_a_crash"), 0o755))
	must(t, os.Symlink("nowhere", filepath.Join(path, dataLinkNew)))
	prepare(t, s, with("b/d"))
	var found []string
	entries, err := os.ReadDir(path)
	must(t, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") {
			found = append(found, e.Name())
		}
	}
	if len(entries) != 3 || !slices.Equal(found, []string{"b"}) {
		t.Errorf("found %v", entries)
	}
	if text, err := os.ReadFile(filepath.Join(path, "b", "d")); err != nil || string(text) != "b/d" {
		t.Errorf("b/d: %q, %v", text, err)
	}
	prepare(t, s, with())
	if entries, err = os.ReadDir(path); err != nil || len(entries) != 2 {
		t.Errorf("an empty volume has %v, %v", entries, err)
	}
}

func TestPathsThatLeaveTheVolumeAreRefused(t *testing.T) {
	s, dir := open(t)
	for _, p := range []string{"../x", "/x", "a/../../x", "..data", "", ".", "a//b"} {
		_, err := s.Prepare(context.Background(), podOf(Volume{Name: "c", Files: &Files{Files: map[string]File{p: {}}}}))
		if err == nil {
			t.Errorf("path %q was taken", p)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", strings.Repeat("x", 300)} {
		if _, err := s.Prepare(context.Background(), podOf(Volume{Name: name, Scratch: &Scratch{}})); err == nil {
			t.Errorf("volume %q was taken", name)
		}
		if _, err := s.Prepare(context.Background(), Pod{UID: runtime.PodUID(name)}); err == nil {
			t.Errorf("pod %q was taken", name)
		}
		if err := s.Remove(context.Background(), runtime.PodUID(name)); err == nil {
			t.Errorf("pod %q was removed", name)
		}
		if err := s.Delete(context.Background(), name); err == nil {
			t.Errorf("persistent volume %q was deleted", name)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("found %v, %v", entries, err)
	}
}

func TestHostPathIsWhatItsTypeSays(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	for _, c := range []struct {
		path string
		kind HostPathType
		want string
	}{
		{"", HostPathDirectory, ""}, {"file", HostPathFile, ""}, {"file", HostPathAny, ""}, {"pipe", HostPathAny, ""},
		{"made/by/us", HostPathDirectoryOrCreate, ""}, {"made/by/us", HostPathDirectory, ""}, {"made/file", HostPathFileOrCreate, ""},
		{"file", HostPathFileOrCreate, ""}, {"made/any", HostPathAny, ""}, {"made/any", HostPathDirectory, ""},
		{"file", HostPathDirectory, "is a file, and type Directory asks for a folder"},
		{"", HostPathFile, "is a folder, and type File asks for a file"},
		{"pipe", HostPathSocket, "is a named pipe, and type Socket asks for a socket"},
		{"file", HostPathCharDevice, "asks for a character device"}, {"file", HostPathBlockDevice, "asks for a block device"},
		{"absent", HostPathDirectory, "no such file"}, {"absent/file", HostPathFileOrCreate, "no such file"},
	} {
		err := HostPath{Path: filepath.Join(dir, c.path), Type: c.kind}.check()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrHostPath) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s as %q: %v, want %q", c.path, c.kind, err, c.want)
		}
	}
	if err := (HostPath{Path: "relative"}).check(); !errors.Is(err, ErrHostPath) {
		t.Errorf("a relative path: %v", err)
	}
}

func TestPersistentVolumeOutlivesItsPods(t *testing.T) {
	for _, fsType := range []string{"", "ext4"} {
		t.Run("type "+fsType, func(t *testing.T) {
			s, dir := open(t)
			v := Volume{Name: "data", Persistent: &Persistent{Name: "pv-1", FSType: fsType, SizeBytes: 16 << 20}}
			path := prepare(t, s, podOf(v))["data"]
			if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
				t.Errorf("it begins with %v, %v", entries, err)
			}
			must(t, os.WriteFile(filepath.Join(path, "f"), []byte("kept"), 0o600))
			if err := s.Delete(context.Background(), "pv-1"); !errors.Is(err, ErrInUse) {
				t.Errorf("deleting it under a pod: %v", err)
			}
			second := podOf(v)
			second.UID = "second"
			prepare(t, s, second)
			must(t, s.Remove(context.Background(), uid))
			if _, err := os.ReadFile(filepath.Join(path, "f")); err != nil {
				t.Errorf("the second pod lost it: %v", err)
			}
			must(t, s.Remove(context.Background(), "second"))
			points, err := hostmount.Under(filepath.Join(dir, "disk"))
			must(t, err)
			if len(points) != 0 {
				t.Errorf("still mounted: %v", points)
			}
			s = reopen(t, dir) // as after a reboot: nothing is mounted
			path = prepare(t, s, podOf(v))["data"]
			if text, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(text) != "kept" {
				t.Errorf("the next pod reads %q, %v", text, err)
			}
			stored, err := s.Persistent(context.Background())
			must(t, err)
			if len(stored) != 1 || stored[0].Name != "pv-1" || !slices.Equal(stored[0].UsedBy, []runtime.PodUID{uid}) {
				t.Errorf("stored: %+v", stored)
			}
			must(t, s.Remove(context.Background(), uid))
			must(t, s.Delete(context.Background(), "pv-1"))
			must(t, s.Delete(context.Background(), "pv-1"))
			if stored, err = s.Persistent(context.Background()); err != nil || len(stored) != 0 {
				t.Errorf("stored: %+v, %v", stored, err)
			}
		})
	}
}

func TestExt4VolumeEndsAtItsCapacity(t *testing.T) {
	s, _ := open(t)
	path := prepare(t, s, podOf(Volume{Name: "d", Persistent: &Persistent{Name: "pv", FSType: "ext4", SizeBytes: 16 << 20}}))["d"]
	err := os.WriteFile(filepath.Join(path, "big"), make([]byte, 17<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing 17 MiB into 16 MiB: %v", err)
	}
	if err := os.WriteFile(filepath.Join(path, "big"), make([]byte, 8<<20), 0o600); err != nil {
		t.Errorf("writing 8 MiB into 16 MiB: %v", err)
	}
	_, err = s.Prepare(context.Background(), podOf(Volume{Name: "d", Persistent: &Persistent{Name: "huge", FSType: "ext4", SizeBytes: 1 << 60}}))
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("an exbibyte: %v", err)
	}
	_, err = s.Prepare(context.Background(), podOf(Volume{Name: "d", Persistent: &Persistent{Name: "odd", FSType: "ntfs"}}))
	if err == nil || !strings.Contains(err.Error(), "ext4") {
		t.Errorf("an unknown file system: %v", err)
	}
}

func TestHalfMadeImageIsMadeAgain(t *testing.T) {
	s, dir := open(t)
	must(t, os.MkdirAll(filepath.Join(dir, "disk", folderPersistent, "pv"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "disk", folderPersistent, "pv", fileImage+".new"), []byte("half"), 0o600))
	path := prepare(t, s, podOf(Volume{Name: "d", Persistent: &Persistent{Name: "pv", FSType: "ext4", SizeBytes: 16 << 20}}))["d"]
	must(t, os.WriteFile(filepath.Join(path, "f"), nil, 0o600))
}

func TestInterruptedDeletionIsFinished(t *testing.T) {
	s, dir := open(t)
	prepare(t, s, podOf(Volume{Name: "d", Persistent: &Persistent{Name: "pv"}}))
	must(t, os.Rename(filepath.Join(dir, "disk", folderPersistent, "pv"), filepath.Join(dir, "disk", prefixRemoving+"pv")))
	s = reopen(t, dir)
	if entries, err := os.ReadDir(filepath.Join(dir, "disk")); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	stored, err := s.Persistent(context.Background())
	if err != nil || len(stored) != 0 {
		t.Errorf("stored: %v, %v", stored, err)
	}
}

func TestFSGroupOwnsAPersistentVolumeAndNothingOutside(t *testing.T) {
	s, dir := open(t)
	outside := filepath.Join(dir, "outside")
	must(t, os.WriteFile(outside, nil, 0o600))
	v := Volume{Name: "d", Persistent: &Persistent{Name: "pv"}}
	path := prepare(t, s, podOf(v))["d"]
	must(t, os.MkdirAll(filepath.Join(path, "sub"), 0o700))
	must(t, os.WriteFile(filepath.Join(path, "sub", "f"), nil, 0o600))
	must(t, os.Symlink(outside, filepath.Join(path, "link")))
	must(t, s.Remove(context.Background(), uid))

	group := int64(3000)
	pod := podOf(v)
	pod.FSGroup = &group
	prepare(t, s, pod)
	for name, want := range map[string]fs.FileMode{
		".": fs.ModeDir | fs.ModeSetgid | 0o777, "sub": fs.ModeDir | fs.ModeSetgid | 0o770, "sub/f": 0o660,
	} {
		if info, st := stat(t, filepath.Join(path, name)); st.Gid != 3000 || info.Mode() != want {
			t.Errorf("%s: group %d, mode %s, want %s", name, st.Gid, info.Mode(), want)
		}
	}
	if info, st := stat(t, outside); st.Gid == 3000 || info.Mode().Perm() != 0o600 {
		t.Errorf("a file outside: group %d, mode %s", st.Gid, info.Mode())
	}
	must(t, s.Remove(context.Background(), uid))
	must(t, os.WriteFile(filepath.Join(path, "new"), nil, 0o600))
	must(t, os.Chown(filepath.Join(path, "new"), 0, 0))
	pod.OnRootMismatch = true
	prepare(t, s, pod)
	if _, st := stat(t, filepath.Join(path, "new")); st.Gid != 0 {
		t.Errorf("OnRootMismatch changed a file although the root matches")
	}
}

func TestAdministratorsFolderIsUsedAndNeverRemoved(t *testing.T) {
	s, dir := open(t)
	theirs := filepath.Join(dir, "theirs")
	_, err := s.Prepare(context.Background(), podOf(Volume{Name: "d", Persistent: &Persistent{Name: "pv", Path: theirs}}))
	if !errors.Is(err, ErrHostPath) {
		t.Errorf("an absent folder: %v", err)
	}
	must(t, os.Mkdir(theirs, 0o755))
	if got := prepare(t, s, podOf(Volume{Name: "d", Persistent: &Persistent{Name: "pv", Path: theirs}}))["d"]; got != theirs {
		t.Errorf("prepared %s", got)
	}
	must(t, s.Remove(context.Background(), uid))
	must(t, s.Delete(context.Background(), "pv"))
	if _, err := os.Stat(theirs); err != nil {
		t.Error(err)
	}
}

func TestFullDiskIsSaidAsSuch(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "disk"), 0o755))
	must(t, unix.Mount("small", filepath.Join(dir, "disk"), "tmpfs", 0, "size=64k"))
	t.Cleanup(func() {
		if err := hostmount.UnmountUnder(dir); err != nil {
			t.Error(err)
		}
	})
	s := reopen(t, dir)
	files := map[string]File{"big": {Data: make([]byte, 128<<10), Mode: 0o644}}
	_, err := s.Prepare(context.Background(), podOf(Volume{Name: "c", Files: &Files{Files: files}}))
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("a full disk: %v", err)
	}
	files["big"] = File{Data: []byte("small"), Mode: 0o644}
	path := prepare(t, s, podOf(Volume{Name: "c", Files: &Files{Files: files}}))["c"]
	if text, err := os.ReadFile(filepath.Join(path, "big")); err != nil || string(text) != "small" {
		t.Errorf("after there was room: %q, %v", text, err)
	}
}
