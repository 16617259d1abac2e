package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A tree of files is published as Kubernetes' AtomicWriter does, because programs
// rely on it: they watch ..data.
//
//	<volume>/app.conf -> ..data/app.conf
//	        /..data   -> ..2026_11_22_10_30_00.000000001
//	        /..2026_11_22_10_30_00.000000001/app.conf
//
// A new tree is written beside the old one, ..data is replaced by rename, and
// then the names that have gone and the old tree are removed. A crash in between
// leaves one whole tree in place; the next call removes the rest.
const (
	dataLink    = "..data"
	dataLinkNew = "..data_tmp"
	stampLayout = "..2006_01_02_15_04_05.000000000"
	// maxTreeBytes bounds what one volume of files may hold: a ConfigMap has 1 MiB
	// at most, and a projected volume joins a few.
	maxTreeBytes = 32 << 20
)

// files brings a volume of files up to date.
func (s *Store) files(pod Pod, name string, want Files) (string, error) {
	if err := want.check(); err != nil {
		return "", err
	}
	base := s.podDir(pod.UID)
	if want.Secret {
		base = s.podRunDir(pod.UID)
	}
	dir := filepath.Join(base, folderFiles, name)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return "", err
	}
	if err := own(dir, pod, 0o755); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	t := tree{root: root, pod: pod, want: want.Files}
	return dir, t.publish()
}

func (f Files) check() error {
	total := 0
	for p, file := range f.Files {
		if !filepath.IsLocal(p) || path.Clean(p) != p || strings.HasPrefix(p, "..") || p == "." {
			return fmt.Errorf("%q is no path within a volume", p)
		}
		total += len(file.Data)
	}
	if total > maxTreeBytes {
		return fmt.Errorf("its files have %d bytes, the limit is %d", total, maxTreeBytes)
	}
	return nil
}

// tree is one volume of files.
type tree struct {
	root *os.Root
	pod  Pod
	want map[string]File
}

func (t tree) publish() error {
	current, err := t.root.Readlink(dataLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if current != "" && t.holds(current) {
		return t.finish(current)
	}
	// What an earlier try left takes room that this one may need.
	if err := t.tidy(func(name string) bool { return !strings.HasPrefix(name, "..") || name == dataLink || name == current }); err != nil {
		return err
	}
	if current, err = t.write(); err != nil {
		return err
	}
	return t.finish(current)
}

// finish makes the names lead to the current tree, and removes all others.
func (t tree) finish(current string) error {
	if err := t.link(); err != nil {
		return err
	}
	keep := map[string]bool{dataLink: true, current: true}
	for _, top := range t.tops() {
		keep[top] = true
	}
	return t.tidy(func(name string) bool { return keep[name] })
}

// holds tells whether a tree is what is wanted, to the last byte.
func (t tree) holds(current string) bool {
	found := 0
	err := fs.WalkDir(t.root.FS(), current, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		want, ok := t.want[strings.TrimPrefix(p, current+"/")]
		if !ok {
			return fs.ErrNotExist
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		have, err := t.root.ReadFile(p)
		if err != nil {
			return err
		}
		if info.Mode().Perm() != t.mode(want) || !bytes.Equal(have, want.Data) {
			return fs.ErrInvalid
		}
		found++
		return nil
	})
	return err == nil && found == len(t.want)
}

// mode is a file's, readable for the pod's group where it has one.
func (t tree) mode(f File) fs.FileMode {
	if t.pod.FSGroup != nil {
		return f.Mode.Perm() | 0o440
	}
	return f.Mode.Perm()
}

// write makes a new tree and points ..data to it.
func (t tree) write() (string, error) {
	name := time.Now().UTC().Format(stampLayout)
	uid, gid := owner(t.pod)
	for _, p := range slices.Sorted(maps.Keys(t.want)) {
		if err := t.writeFile(path.Join(name, p), t.want[p], uid, gid); err != nil {
			return "", err
		}
	}
	if err := t.mkdirs(name, uid, gid); err != nil { // there may be no file
		return "", err
	}
	if err := t.root.Symlink(name, dataLinkNew); err != nil {
		return "", err
	}
	return name, t.root.Rename(dataLinkNew, dataLink)
}

func (t tree) writeFile(name string, f File, uid, gid int) error {
	if err := t.mkdirs(path.Dir(name), uid, gid); err != nil {
		return err
	}
	if err := t.root.WriteFile(name, f.Data, 0o600); err != nil {
		return err
	}
	if err := t.root.Chown(name, uid, gid); err != nil {
		return err
	}
	return t.root.Chmod(name, t.mode(f)) // whatever the umask
}

// mkdirs makes a folder and those above it, readable for everybody in the pod:
// the files' modes say who may read them.
func (t tree) mkdirs(dir string, uid, gid int) error {
	at := ""
	for part := range strings.SplitSeq(dir, "/") {
		at = path.Join(at, part)
		if err := t.root.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := t.root.Chown(at, uid, gid); err != nil {
			return err
		}
		if err := t.root.Chmod(at, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// link makes the names that programs open.
func (t tree) link() error {
	for _, top := range t.tops() {
		target := path.Join(dataLink, top)
		if have, err := t.root.Readlink(top); err == nil && have == target {
			continue
		}
		if err := t.root.RemoveAll(top); err != nil {
			return err
		}
		if err := t.root.Symlink(target, top); err != nil {
			return err
		}
	}
	return nil
}

func (t tree) tops() []string {
	found := map[string]bool{}
	for p := range t.want {
		top, _, _ := strings.Cut(p, "/")
		found[top] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// tidy removes everything but what is to be kept.
func (t tree) tidy(keep func(name string) bool) error {
	entries, err := fs.ReadDir(t.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if keep(e.Name()) {
			continue
		}
		if err := t.root.RemoveAll(e.Name()); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}
