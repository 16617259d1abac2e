package runc

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime"
)

// maxPseudoFile bounds files that say they are empty and are not, as in /proc.
const maxPseudoFile = 1 << 20

// paxXattr is the prefix of an extended attribute in an archive's header.
const paxXattr = "SCHILY.xattr."

// outgoing is one archive on its way out.
type outgoing struct {
	ctx   context.Context
	t     *tree
	tar   *tar.Writer
	links map[inode]string // names of files that have several
}

type inode struct{ dev, ino uint64 }

// copyOut names the entries by the last element of the path, "." for the root.
func (t *tree) copyOut(ctx context.Context, name string, w io.Writer) error {
	top, err := t.inRoot(name)
	if err != nil {
		return err
	}
	defer func() { _ = top.Close() }()
	as := strings.TrimPrefix(path.Clean(name), "/")
	if as = path.Base(as); as == "/" {
		as = "."
	}
	o := &outgoing{ctx: ctx, t: t, tar: tar.NewWriter(w), links: map[inode]string{}}
	if err := o.entry(top, as, "", 0); err != nil {
		return err
	}
	return o.tar.Close()
}

// entry writes what f stands for, and what is below it.
func (o *outgoing) entry(f *os.File, as, target string, depth int) error {
	if err := context.Cause(o.ctx); err != nil {
		return err
	}
	st, err := statOf(f)
	if err != nil {
		return fmt.Errorf("%s: %w", as, err)
	}
	h := o.header(&st, as, target)
	switch {
	case h.Typeflag == tar.TypeReg && st.Nlink > 1 && o.again(&st, h):
		err = o.tar.WriteHeader(h)
	case h.Typeflag == tar.TypeReg:
		err = o.file(f, h)
	case h.Typeflag == tar.TypeDir:
		err = o.dir(f, h, depth)
	case h.Typeflag != 0:
		err = o.tar.WriteHeader(h)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", as, err)
	}
	return nil
}

// header has no type for what an archive cannot hold: sockets.
func (o *outgoing) header(st *unix.Stat_t, as, target string) *tar.Header {
	h := &tar.Header{
		Name: as, Linkname: target, Mode: int64(st.Mode & 0o7777), Uid: o.t.inside(st.Uid), Gid: o.t.inside(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, as+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return h
}

// again makes a link of a file that is in the archive already.
func (o *outgoing) again(st *unix.Stat_t, h *tar.Header) bool {
	key := inode{st.Dev, st.Ino}
	if first, ok := o.links[key]; ok {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return true
	}
	if len(o.links) < maxHardLinks {
		o.links[key] = h.Name
	}
	return false
}

func (o *outgoing) file(known *os.File, h *tar.Header) error {
	f, err := reopen(known, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var from io.Reader = f
	if h.Size == 0 {
		content, err := io.ReadAll(io.LimitReader(f, maxPseudoFile))
		if err != nil {
			return err
		}
		from, h.Size = bytes.NewReader(content), int64(len(content))
	}
	addXattrs(f, h)
	if err := o.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(o.tar, io.LimitReader(contextReader{o.ctx, from}, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("it became shorter while it was read (%d bytes of %d): copy it again", n, h.Size)
	}
	return err
}

// contextReader ends a long file with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func (o *outgoing) dir(known *os.File, h *tar.Header, depth int) error {
	if depth >= maxCopyDepth {
		return fmt.Errorf("at most %d folders may be inside one another", maxCopyDepth)
	}
	f, err := reopen(known, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	addXattrs(f, h)
	if err := o.tar.WriteHeader(h); err != nil {
		return err
	}
	if depth > 0 && isPseudo(f) {
		return nil // what the kernel makes up as it is asked is no file of the container
	}
	for {
		names, err := f.Readdirnames(readNames)
		for _, name := range names {
			if err := o.child(f, name, strings.TrimSuffix(h.Name, "/"), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// child passes over what has gone since its folder was read.
func (o *outgoing) child(dir *os.File, name, below string, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s/%s: %w", below, name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	return o.entry(f, path.Join(below, name), readLink(f), depth+1)
}

// readLink is where a symbolic link points to, "" for what is none.
func readLink(f *os.File) string {
	buf := make([]byte, maxCopyPath)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// isPseudo tells the file systems that hold no files.
func isPseudo(f *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC:
		return true
	}
	return false
}

// addXattrs keeps the attributes that users set; those of the system have no
// meaning elsewhere.
func addXattrs(f *os.File, h *tar.Header) {
	list := make([]byte, maxXattrBytes)
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if err != nil || n <= 0 {
		return
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, maxXattrBytes)
		if n, err := unix.Fgetxattr(int(f.Fd()), name, value); err == nil {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[paxXattr+name] = string(value[:n])
		}
	}
}

var _ runtime.Streams = (*Runtime)(nil)
