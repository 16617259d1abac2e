package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/ociarchive"
)

// maxZstdWindow bounds the memory that a zstd layer may ask for.
const maxZstdWindow = 128 << 20

// nameOf undoes namePath for people; a name that cannot be undone is shown as
// it is on disk.
func nameOf(file string) string {
	if name, err := url.PathUnescape(file); err == nil {
		return name
	}
	return file
}

// unpack writes a layer to a directory of its own and renames it into place
// once its diff id is right.
func (s *Store) unpack(ctx context.Context, blob, diffID, dir string) error {
	temp, err := os.MkdirTemp(s.temp(), "layer-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }()
	if err := s.unpackTo(ctx, blob, diffID, temp); err != nil {
		return fmt.Errorf("unpack blob %s: %w", blob, err)
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	if err := syncFileSystem(temp); err != nil {
		return err
	}
	return os.Rename(temp, dir)
}

// syncFileSystem makes all the layer's files durable before its name is: after
// a crash there is a whole layer or none.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

func (s *Store) unpackTo(ctx context.Context, blob, diffID, dir string) error {
	f, err := s.Open(ctx, blob)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	plain, closePlain, err := decompress(f)
	if err != nil {
		return err
	}
	defer closePlain()
	sum := sha256.New()
	limited := &boundedReader{ctx: ctx, r: io.TeeReader(plain, sum), left: s.opt.Limits.MaxLayerBytes}
	if err := extract(limited, dir, s.opt.Limits.MaxLayerFiles); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return err
	}
	if got := digestOf(sum); got != diffID {
		return fmt.Errorf("the unpacked layer has digest %s, its configuration says %s: %w", got, diffID, ErrDigest)
	}
	return nil
}

// decompress goes by the first bytes, not by a media type that may be wrong.
func decompress(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w: %w", err, ociarchive.ErrInvalid)
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w: %w", err, ociarchive.ErrInvalid)
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// boundedReader fails beyond its limit, and when the context ends.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the layer unpacks to more bytes than are allowed: %w", ociarchive.ErrInvalid)
	}
	return n, err
}

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	metaPrefix     = ".wh..wh."
)

// extraction writes one layer. Every path goes through root, which no symbolic
// link and no ".." leaves.
type extraction struct {
	root  *os.Root
	times []tar.Header // of what was written, in order
}

// extract unpacks a tar stream; whiteouts take overlayfs's own form.
func extract(r io.Reader, dir string, maxFiles int) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	x := &extraction{root: root}
	archive := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return x.setTimes()
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w: %w", n, err, ociarchive.ErrInvalid)
		}
		if n >= maxFiles {
			return fmt.Errorf("the layer has more than %d files: %w", maxFiles, ociarchive.ErrInvalid)
		}
		if err := x.entry(h, archive); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

func (x *extraction) entry(h *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return nil
	}
	if parent := path.Dir(name); parent != "." {
		if err := x.root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	base := path.Base(name)
	switch {
	case base == opaqueMarker:
		return x.opaque(path.Dir(name))
	case strings.HasPrefix(base, metaPrefix):
		return nil // another union file system's bookkeeping
	case strings.HasPrefix(base, whiteoutPrefix):
		return x.whiteout(path.Join(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix)))
	}
	if err := x.clear(name, h); err != nil {
		return err
	}
	if err := x.create(name, h, content); err != nil {
		return err
	}
	return x.attributes(name, h)
}

// clear removes what an earlier entry of the layer put there.
func (x *extraction) clear(name string, h *tar.Header) error {
	have, err := x.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if have.IsDir() && h.Typeflag == tar.TypeDir {
		return nil
	}
	return x.root.RemoveAll(name)
}

func (x *extraction) create(name string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		err := x.root.Mkdir(name, 0o755)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	case tar.TypeReg:
		return x.file(name, content)
	case tar.TypeSymlink:
		return x.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return x.root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.node(name, h)
	}
	return fmt.Errorf("type %q of the entry is unknown: %w", h.Typeflag, ociarchive.ErrInvalid)
}

func (x *extraction) file(name string, content io.Reader) error {
	f, err := x.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

func (x *extraction) node(name string, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	device := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	return x.inParent(name, func(dir int, base string) error {
		return unix.Mknodat(dir, base, kind|0o600, int(device))
	})
}

// inParent calls f with the directory that a name is in, for system calls that
// os.Root does not have.
func (x *extraction) inParent(name string, f func(dir int, base string) error) error {
	d, err := x.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(f(int(d.Fd()), path.Base(name)), d.Close())
}

// opaque hides what lower layers have in the directory.
func (x *extraction) opaque(dir string) error {
	d, err := x.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsetxattr(int(d.Fd()), "trusted.overlay.opaque", []byte("y"), 0), d.Close())
}

// whiteout hides one name of the lower layers: a device 0/0.
func (x *extraction) whiteout(name string) error {
	if err := x.root.RemoveAll(name); err != nil {
		return err
	}
	return x.inParent(name, func(dir int, base string) error {
		return unix.Mknodat(dir, base, unix.S_IFCHR, 0)
	})
}

// attributes sets owner, mode and extended attributes; a hard link has those
// of its file already.
func (x *extraction) attributes(name string, h *tar.Header) error {
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	if err := x.root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	if err := x.root.Chmod(name, fileMode(h.Mode)); err != nil {
		return err
	}
	if err := x.extended(name, h); err != nil {
		return err
	}
	x.times = append(x.times, tar.Header{Name: name, ModTime: h.ModTime})
	return nil
}

// fileMode: os keeps set-uid, set-gid and sticky apart from the permissions.
func fileMode(mode int64) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

// extended keeps file capabilities and user attributes of files. All others
// are dropped, "trusted.overlay." before all: with it a layer could lead the
// overlay to other directories of the node.
func (x *extraction) extended(name string, h *tar.Header) error {
	const prefix = "SCHILY.xattr."
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, prefix)
		if !ok || attr != "security.capability" && !strings.HasPrefix(attr, "user.") {
			continue
		}
		f, err := x.root.Open(name)
		if err != nil {
			return err
		}
		err = unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) {
			err = nil // a file system without them: the file works otherwise
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	return nil
}

// setTimes goes backwards, so that a directory's time is set after its files'.
func (x *extraction) setTimes() error {
	for _, h := range slices.Backward(x.times) {
		err := x.root.Chtimes(h.Name, h.ModTime, h.ModTime)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("time of %q: %w", filepath.Clean(h.Name), err)
		}
	}
	return nil
}
