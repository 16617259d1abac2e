package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/ociarchive"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	metaPrefix     = ".wh..wh."
	opaqueXattr    = "trusted.overlay.opaque"

	// maxPathBytes and maxPathDepth of a name or a link in a layer. The kernel
	// takes no longer paths; deeper ones serve only to be hard to remove.
	maxPathBytes = 4096
	maxPathDepth = 256
	// maxOpenDirs is how many directories are kept open while unpacking.
	maxOpenDirs = 64
	// maxLinkHops bounds how many symbolic links lead to a directory.
	maxLinkHops = 40
)

// extraction writes one layer. Every path goes through an os.Root, which no
// symbolic link and no ".." leaves.
type extraction struct {
	limits    Limits
	checkFree func() error
	log       *slog.Logger

	root    *os.Root
	parents map[string]*layerDir // open directories, by the name they are in the layer by
	dirs    []dirTime            // in order
	buffer  []byte
	// files and bytes count against the limits: what is made, not what is said.
	files     int
	bytes     int64
	unchecked int64
}

// layerDir is an open directory of the layer, and its name without symbolic links.
type layerDir struct {
	root *os.Root
	name string
}

type dirTime struct {
	name string
	time time.Time
}

// extract unpacks a tar stream; whiteouts take overlayfs's own form.
func (x *extraction) extract(r io.Reader, into string) (err error) {
	if x.root, err = os.OpenRoot(into); err != nil {
		return err
	}
	defer func() {
		x.closeParents()
		err = errors.Join(err, x.root.Close())
	}()
	x.parents = map[string]*layerDir{}
	x.buffer = make([]byte, copyBytes)
	archive := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return x.setTimes()
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w: %w", n, err, ociarchive.ErrInvalid)
		}
		if err := x.entry(h, archive); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
}

// room counts entries that are made.
func (x *extraction) room(files int) error {
	if x.files += files; x.files > x.limits.MaxLayerFiles {
		return fmt.Errorf("the layer has more than %d files: %w", x.limits.MaxLayerFiles, ociarchive.ErrInvalid)
	}
	return nil
}

func (x *extraction) entry(h *tar.Header, content io.Reader) error {
	if err := x.room(1); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // says something of the entries that follow, nothing we use
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return nil
	}
	if len(name) > maxPathBytes || strings.Count(name, "/") >= maxPathDepth || len(h.Linkname) > maxPathBytes {
		return fmt.Errorf("its name has %d bytes and its link %d, at most %d and %d directories are allowed: %w",
			len(name), len(h.Linkname), maxPathBytes, maxPathDepth, ociarchive.ErrInvalid)
	}
	in, err := x.parent(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch {
	case base == opaqueMarker:
		return opaque(in.root, ".")
	case strings.HasPrefix(base, metaPrefix):
		return nil // another union file system's bookkeeping
	case strings.HasPrefix(base, whiteoutPrefix):
		return x.whiteout(in, strings.TrimPrefix(base, whiteoutPrefix))
	}
	hidden, err := x.clear(in, base, h)
	if err != nil {
		return err
	}
	if err := x.create(in, base, h, content); err != nil {
		return err
	}
	if hidden && h.Typeflag == tar.TypeDir {
		return opaque(in.root, base)
	}
	return nil
}

// parent opens the directory of a name, and makes it where the layer did not
// list it.
func (x *extraction) parent(name string) (*layerDir, error) {
	if d, ok := x.parents[name]; ok {
		return d, nil
	}
	resolved, root, err := x.open(name)
	if err != nil {
		return nil, err
	}
	if len(x.parents) >= maxOpenDirs {
		x.closeParents()
	}
	d := &layerDir{root: root, name: resolved}
	x.parents[name] = d
	return d, nil
}

// closeParents forgets the open directories: before one of them could be
// removed, or when there are too many.
func (x *extraction) closeParents() {
	for _, d := range x.parents {
		_ = d.root.Close()
	}
	clear(x.parents)
}

// open opens a directory by the plain way first. Where the layer has symbolic
// links on it, also absolute ones, they are followed inside the layer.
func (x *extraction) open(name string) (string, *os.Root, error) {
	root, err := x.root.OpenRoot(name)
	if err == nil && x.isPlain(name) {
		return name, root, nil
	}
	if err == nil {
		_ = root.Close()
	}
	resolved, err := x.resolve(name)
	if err != nil {
		return "", nil, err
	}
	root, err = x.root.OpenRoot(resolved)
	if !errors.Is(err, fs.ErrNotExist) {
		return resolved, root, err
	}
	if err := x.room(strings.Count(resolved, "/") + 1); err != nil {
		return "", nil, err
	}
	if err := x.root.MkdirAll(resolved, 0o755); err != nil {
		return "", nil, err
	}
	root, err = x.root.OpenRoot(resolved)
	return resolved, root, err
}

// isPlain tells that no part of a name is a symbolic link. A parent that is open
// already needs no second look.
func (x *extraction) isPlain(name string) bool {
	for name != "." {
		up := path.Dir(name)
		if d, ok := x.parents[name]; ok {
			return d.name == name
		}
		info, err := x.root.Lstat(name)
		if err != nil || !info.IsDir() {
			return false
		}
		name = up
	}
	return true
}

// resolve follows the symbolic links of a directory's name as a process inside
// would, where the layer is its root: none leads out.
func (x *extraction) resolve(name string) (string, error) {
	done, rest := "", strings.Split(name, "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		info, err := x.root.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() != fs.ModeSymlink {
			done = next
			continue
		}
		if err != nil {
			return "", err
		}
		if hops++; hops > maxLinkHops {
			return "", fmt.Errorf("more than %d symbolic links lead there: %w", maxLinkHops, ociarchive.ErrInvalid)
		}
		target, err := x.root.Readlink(next)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join("/", done, target)
		}
		done = ""
		rest = append(strings.Split(strings.TrimPrefix(path.Clean(target), "/"), "/"), rest...)
		rest = slices.DeleteFunc(rest, func(part string) bool { return part == "" })
	}
	return path.Join(".", done), nil
}

// clear removes what an earlier entry of the layer put there. hidden: it was a
// whiteout, so that what comes must hide what lower layers have.
func (x *extraction) clear(in *layerDir, base string, h *tar.Header) (hidden bool, err error) {
	have, err := in.root.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if have.IsDir() && h.Typeflag == tar.TypeDir {
		return false, nil
	}
	if have.IsDir() || have.Mode().Type() == fs.ModeSymlink {
		x.closeOthers(in)
	}
	return have.Mode()&fs.ModeCharDevice != 0, in.root.RemoveAll(base)
}

// closeOthers forgets all open directories but one: others could be below what
// is about to go, or were reached through it.
func (x *extraction) closeOthers(in *layerDir) {
	for name, d := range x.parents {
		if d != in {
			_ = d.root.Close()
			delete(x.parents, name)
		}
	}
}

func (x *extraction) create(in *layerDir, base string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directory(in, base, h)
	case tar.TypeReg:
		return x.file(in, base, h, content)
	case tar.TypeSymlink:
		if err := in.root.Symlink(h.Linkname, base); err != nil {
			return err
		}
		return in.root.Lchown(base, h.Uid, h.Gid)
	case tar.TypeLink:
		return x.link(in, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.node(in, base, h)
	}
	return fmt.Errorf("type %q of the entry is unknown: %w", h.Typeflag, ociarchive.ErrInvalid)
}

func (x *extraction) directory(in *layerDir, base string, h *tar.Header) error {
	if err := in.root.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := attributes(in.root, base, h); err != nil {
		return err
	}
	x.dirs = append(x.dirs, dirTime{path.Join(in.name, base), h.ModTime})
	return nil
}

// file is written through one descriptor. The header's size is that of the file:
// what a sparse file takes in the archive may be far less.
func (x *extraction) file(in *layerDir, base string, h *tar.Header, content io.Reader) error {
	if h.Size < 0 || h.Size > x.limits.MaxLayerBytes-x.bytes {
		return fmt.Errorf("the layer's files have more than %d bytes: %w", x.limits.MaxLayerBytes, ociarchive.ErrInvalid)
	}
	x.bytes += h.Size
	if x.unchecked += h.Size; x.unchecked >= spaceEvery {
		if err := x.checkFree(); err != nil {
			return err
		}
		x.unchecked = h.Size % spaceEvery
	}
	f, err := in.root.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = x.fill(f, h, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return in.root.Chtimes(base, h.ModTime, h.ModTime)
}

func (x *extraction) fill(f *os.File, h *tar.Header, content io.Reader) error {
	if _, err := io.CopyBuffer(&pacedWriter{f: f, x: x}, onlyReader{content}, x.buffer); err != nil {
		return err
	}
	if err := f.Chown(h.Uid, h.Gid); err != nil {
		return err
	}
	if err := f.Chmod(fileMode(h.Mode)); err != nil {
		return err
	}
	return extended(f, h)
}

// pacedWriter looks at the free space of the disk now and then.
type pacedWriter struct {
	f       *os.File
	x       *extraction
	written int64
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if w.written += int64(n); w.written >= spaceEvery && err == nil {
		w.written = 0
		err = w.x.checkFree()
	}
	return n, err
}

// link makes a hard link to a file of the same layer.
func (x *extraction) link(in *layerDir, base string, h *tar.Header) error {
	target := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
	if target == "" {
		return fmt.Errorf("a hard link to the root: %w", ociarchive.ErrInvalid)
	}
	from, err := x.resolve(path.Dir(target))
	if err != nil {
		return err
	}
	if err := x.root.Link(path.Join(from, path.Base(target)), path.Join(in.name, base)); err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
	}
	return nil
}

// node makes a pipe, or one of the devices that every container has. Others are
// left out: a container may not open them, and others of this machine must not.
func (x *extraction) node(in *layerDir, base string, h *tar.Header) error {
	if h.Typeflag != tar.TypeFifo && !harmlessDevice(h) {
		x.log.Debug("left a device out of a layer", "name", h.Name, "major", h.Devmajor, "minor", h.Devminor)
		return nil
	}
	kind, device := uint32(unix.S_IFIFO), 0
	if h.Typeflag == tar.TypeChar {
		kind, device = unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	err := inside(in.root, func(fd int) error { return unix.Mknodat(fd, base, kind|0o600, device) })
	if err != nil {
		return err
	}
	if err := attributes(in.root, base, h); err != nil {
		return err
	}
	return in.root.Chtimes(base, h.ModTime, h.ModTime)
}

// harmlessDevice: null, zero, full, random, urandom, tty, console, ptmx. 0/0 is
// a whiteout of a lower layer, as overlayfs writes it.
func harmlessDevice(h *tar.Header) bool {
	if h.Typeflag != tar.TypeChar {
		return false
	}
	return slices.Contains([][2]int64{{0, 0}, {1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}}, [2]int64{h.Devmajor, h.Devminor})
}

// inside calls f with the directory's descriptor, for system calls that os.Root
// does not have.
func inside(root *os.Root, f func(fd int) error) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f(int(d.Fd())), d.Close())
}

// opaque hides what lower layers have in the directory.
func opaque(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsetxattr(int(d.Fd()), opaqueXattr, []byte("y"), 0), d.Close())
}

// whiteout hides one name of the lower layers: a device 0/0. What this layer
// itself has there stays; a directory of its own hides the lower one's content.
func (x *extraction) whiteout(in *layerDir, base string) error {
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("a whiteout of %q: %w", base, ociarchive.ErrInvalid)
	}
	have, err := in.root.Lstat(base)
	switch {
	case err == nil && have.IsDir():
		return opaque(in.root, base)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return inside(in.root, func(fd int) error { return unix.Mknodat(fd, base, unix.S_IFCHR, 0) })
}

func attributes(root *os.Root, base string, h *tar.Header) error {
	if err := root.Lchown(base, h.Uid, h.Gid); err != nil {
		return err
	}
	return root.Chmod(base, fileMode(h.Mode))
}

// fileMode: os keeps set-uid, set-gid and sticky apart from the permissions.
func fileMode(mode int64) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// extended keeps file capabilities and user attributes of files. All others are
// dropped, "trusted.overlay." before all: with it a layer could lead the overlay
// to other directories of the node.
func extended(f *os.File, h *tar.Header) error {
	const prefix = "SCHILY.xattr."
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, prefix)
		if !ok || attr != "security.capability" && !strings.HasPrefix(attr, "user.") {
			continue
		}
		err := unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) { // without them the file works otherwise
			return fmt.Errorf("attribute %.200q: %w", attr, err)
		}
	}
	return nil
}

// setTimes sets the times of directories when nothing is written to them any
// more, the inner ones first.
func (x *extraction) setTimes() error {
	for _, d := range slices.Backward(x.dirs) {
		info, err := x.root.Lstat(d.name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			continue // a later entry took its place
		}
		if err == nil {
			err = x.root.Chtimes(d.name, d.time, d.time)
		}
		if err != nil {
			return fmt.Errorf("time of %.200q: %w", d.name, err)
		}
	}
	return nil
}
