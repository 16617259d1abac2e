package runc

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime"
)

const (
	// maxDirTimes bounds the new folders whose time is set once they are full.
	maxDirTimes  = 100_000
	tempAttempts = 16
	// temporary is the name that a file has until it is whole.
	temporary = ".balsa-copy-"
)

// incoming is one archive on its way in.
type incoming struct {
	t      *tree
	to     *os.File // the folder, O_PATH
	result runtime.CopyResult
	times  []dirTime
	temps  int
}

type dirTime struct {
	name string
	at   time.Time
}

func (t *tree) copyIn(ctx context.Context, name string, from io.Reader) (runtime.CopyResult, error) {
	to, err := t.inRoot(name)
	if err != nil {
		return runtime.CopyResult{}, err
	}
	defer func() { _ = to.Close() }()
	st, err := statOf(to)
	if err != nil {
		return runtime.CopyResult{}, fmt.Errorf("path %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return runtime.CopyResult{}, fmt.Errorf("path %s: want a folder that exists: %w", name, unix.ENOTDIR)
	}
	in := &incoming{t: t, to: to}
	archive := tar.NewReader(contextReader{ctx, from})
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			in.setTimes()
			return in.result, nil
		}
		if err != nil {
			return in.result, fmt.Errorf("read the archive after %d entries: %w", in.result.Entries, err)
		}
		if err := in.entry(h, archive); err != nil {
			return in.result, fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

// local is an entry's name below the target, "." for the target itself.
func local(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) || len(name) >= maxCopyPath {
		return "", fmt.Errorf("the name leads out of the folder, or is too long: %w", runtime.ErrInvalid)
	}
	return clean, nil
}

func (in *incoming) entry(h *tar.Header, content io.Reader) error {
	name, err := local(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return nil // the folder is there, and stays as it is
	}
	parent, err := in.parent(path.Dir(name))
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	if err := in.put(parent, path.Base(name), name, h, content); err != nil {
		return err
	}
	in.result.Entries++
	return nil
}

func (in *incoming) put(parent *os.File, base, name string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg:
		return in.file(parent, base, h, content)
	case tar.TypeDir:
		return in.dir(parent, base, name, h)
	case tar.TypeSymlink:
		return in.replace(parent, base, func(temp string) error {
			if err := unix.Symlinkat(h.Linkname, int(parent.Fd()), temp); err != nil {
				return err
			}
			return in.own(parent, temp, h)
		})
	case tar.TypeLink:
		return in.link(parent, base, h)
	default:
		return fmt.Errorf("it is neither a file, a folder nor a link (type %q): leave devices and pipes out: %w", h.Typeflag, runtime.ErrInvalid)
	}
}

// parent opens the folder of an entry, and makes what is missing of the way.
func (in *incoming) parent(name string) (*os.File, error) {
	dir, err := in.beneath(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	above, err := in.parent(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = above.Close() }()
	if err := unix.Mkdirat(int(above.Fd()), path.Base(name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return in.beneath(name)
}

// beneath opens a folder below the target. Links are followed as long as they
// stay there.
func (in *incoming) beneath(name string) (*os.File, error) {
	f, err := resolve(in.to, name, unix.RESOLVE_BENEATH)
	if errors.Is(err, unix.EXDEV) {
		return nil, fmt.Errorf("%s: a symbolic link leads out of the target folder: copy to where it leads instead: %w", name, runtime.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	st, err := statOf(f)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, nil
}

// file writes beside the place and renames, so that a name never stands for half
// a file.
func (in *incoming) file(parent *os.File, base string, h *tar.Header, content io.Reader) error {
	var n int64
	err := in.replace(parent, base, func(temp string) error {
		fd, err := unix.Openat(int(parent.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), temp)
		n, err = io.Copy(f, content)
		if err == nil {
			err = in.finish(f, h)
		}
		return errors.Join(err, f.Close())
	})
	in.result.Bytes += n
	return err
}

// finish gives a file what its header says: the owner first, since a change of
// owner takes set-uid bits away.
func (in *incoming) finish(f *os.File, h *tar.Header) error {
	uid, gid, err := in.owner(h)
	if err != nil {
		return err
	}
	if err := unix.Fchown(int(f.Fd()), uid, gid); err != nil {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !strings.HasPrefix(name, "user.") || len(value) > maxXattrBytes {
			continue
		}
		err := unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return unix.Futimes(int(f.Fd()), timevals(h.ModTime))
}

func timevals(at time.Time) []unix.Timeval {
	if at.IsZero() {
		at = time.Now()
	}
	tv := unix.NsecToTimeval(at.UnixNano())
	return []unix.Timeval{tv, tv}
}

func (in *incoming) owner(h *tar.Header) (uid, gid int, err error) {
	uid, err1 := in.t.outside(h.Uid)
	gid, err2 := in.t.outside(h.Gid)
	return uid, gid, errors.Join(err1, err2)
}

func (in *incoming) own(parent *os.File, name string, h *tar.Header) error {
	uid, gid, err := in.owner(h)
	if err != nil {
		return err
	}
	return unix.Fchownat(int(parent.Fd()), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// replace makes something under a name of its own and gives it its place.
func (in *incoming) replace(parent *os.File, base string, create func(temp string) error) error {
	var temp string
	err := fs.ErrExist
	for range tempAttempts {
		in.temps++
		temp = temporary + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36) + strconv.Itoa(in.temps)
		if err = create(temp); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err == nil {
		err = unix.Renameat(int(parent.Fd()), temp, int(parent.Fd()), base)
	}
	if err != nil {
		_ = unix.Unlinkat(int(parent.Fd()), temp, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("something is mounted there, which cannot be replaced: %w", err)
	}
	return err
}

// dir leaves a folder that is there as it is.
func (in *incoming) dir(parent *os.File, base, name string, h *tar.Header) error {
	err := unix.Mkdirat(int(parent.Fd()), base, 0o700)
	if errors.Is(err, fs.ErrExist) {
		f, err := in.beneath(name)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	if len(in.times) < maxDirTimes {
		in.times = append(in.times, dirTime{name, h.ModTime})
	}
	return errors.Join(in.finish(f, h), f.Close())
}

// link gives a file below the target another name.
func (in *incoming) link(parent *os.File, base string, h *tar.Header) error {
	name, err := local(h.Linkname)
	if err != nil {
		return err
	}
	from, err := in.beneath(path.Dir(name))
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	return in.replace(parent, base, func(temp string) error {
		// Without AT_SYMLINK_FOLLOW a link is linked itself, not followed.
		return unix.Linkat(int(from.Fd()), path.Base(name), int(parent.Fd()), temp, 0)
	})
}

// setTimes sets the times of new folders, inner ones first: filling them has
// changed them. What is gone by now is nobody's loss.
func (in *incoming) setTimes() {
	for _, d := range slices.Backward(in.times) {
		known, err := in.beneath(d.name)
		if err != nil {
			continue
		}
		if f, err := reopen(known, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			_ = unix.Futimes(int(f.Fd()), timevals(d.at))
			_ = f.Close()
		}
		_ = known.Close()
	}
}
