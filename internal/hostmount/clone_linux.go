package hostmount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Clone is a second mount of a file or directory.
type Clone struct {
	Source string
	// SubPath is resolved below Source and never leaves it, whatever links
	// lie there and however they change meanwhile. Absent folders are made.
	SubPath string
	// Target is a path that does not exist yet, but for a directory.
	Target string
	// UserNS, if set, is the file of a user namespace whose ids apply.
	UserNS string
	// Propagation of the clone: unix.MS_SLAVE, unix.MS_SHARED, or zero for
	// private.
	Propagation uint64
}

// Mount attaches the clone at Target, with what is mounted below Source.
func (c Clone) Mount() error {
	if err := c.mount(); err != nil {
		return fmt.Errorf("mount %s at %s: %w", filepath.Join(c.Source, c.SubPath), c.Target, err)
	}
	return nil
}

func (c Clone) mount() error {
	from, err := c.open()
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	if err := makeTarget(from, c.Target); err != nil {
		return err
	}
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH | unix.AT_RECURSIVE
	tree, err := unix.OpenTree(int(from.Fd()), "", flags)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	attr := &unix.MountAttr{Propagation: c.Propagation}
	if c.Propagation == 0 {
		attr.Propagation = unix.MS_PRIVATE
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("propagation: %w", err)
	}
	if c.UserNS != "" {
		if err := mapIDs(tree, c.UserNS); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, c.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

func (c Clone) open() (*os.File, error) {
	fd, err := unix.Open(c.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	source := os.NewFile(uintptr(fd), c.Source)
	if c.SubPath == "" {
		return source, nil
	}
	defer func() { _ = source.Close() }()
	sub, err := openInside(source, c.SubPath)
	if !errors.Is(err, fs.ErrNotExist) {
		return sub, err
	}
	if err := c.makeSubPath(); err != nil {
		return nil, fmt.Errorf("make %s: %w", c.SubPath, err)
	}
	return openInside(source, c.SubPath)
}

// makeSubPath makes the folders that are missing, with Source's owner and
// mode. os.Root refuses every way out, so that nothing is made elsewhere.
func (c Clone) makeSubPath() error {
	root, err := os.OpenRoot(c.Source)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("the owner is unknown")
	}
	const modeBits = fs.ModePerm | fs.ModeSetgid
	made := ""
	for part := range strings.SplitSeq(filepath.Clean(c.SubPath), "/") {
		made = filepath.Join(made, part)
		err := root.Mkdir(made, info.Mode().Perm())
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err := errors.Join(err, root.Lchown(made, int(owner.Uid), int(owner.Gid)), root.Chmod(made, info.Mode()&modeBits)); err != nil {
			return err
		}
	}
	return nil
}

// openInsideAttempts bounds the races with renames above the path (EAGAIN,
// openat2(2)).
const openInsideAttempts = 64

// openInside resolves a path with dir as the root: "/" and ".." stay inside.
func openInside(dir *os.File, path string) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range openInsideAttempts {
		fd, err := unix.Openat2(int(dir.Fd()), path, how)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	return nil, fmt.Errorf("open %s: somebody keeps renaming it: %w", path, unix.EAGAIN)
}

// makeTarget makes a mount point of the kind of the source.
func makeTarget(from *os.File, target string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	return f.Close()
}

func mapIDs(tree int, userNS string) error {
	ns, err := os.Open(userNS)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("map ids (its file system must support idmapped mounts): %w", err)
	}
	return nil
}

// Bind binds one file at another that exists: a namespace of a process, say.
func Bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	return nil
}

// Shared tells how mounts below path travel: whether the mount that path lies
// on has peers (shared) and whether it receives from a master.
func Shared(path string) (mountPoint string, shared, slave bool, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", false, false, err
	}
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, false, fmt.Errorf("list mounts: %w", err)
	}
	mountPoint, shared, slave = sharedIn(string(content), path)
	return mountPoint, shared, slave, nil
}

// sharedIn: of the mounts that hold the path, the longest counts, and of those
// at one place the last.
func sharedIn(content, path string) (mountPoint string, shared, slave bool) {
	for line := range strings.Lines(content) {
		before, _, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 6 {
			continue
		}
		at := unescape(fields[4])
		holds := at == "/" || path == at || strings.HasPrefix(path, at+"/")
		if !holds || len(at) < len(mountPoint) {
			continue
		}
		mountPoint, shared, slave = at, false, false
		for _, tag := range fields[6:] {
			shared = shared || strings.HasPrefix(tag, "shared:")
			slave = slave || strings.HasPrefix(tag, "master:")
		}
	}
	return mountPoint, shared, slave
}

// ProcNamespace is the file of a process's namespace: "net", "pid", ...
func ProcNamespace(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), "ns", name)
}
