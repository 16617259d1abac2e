package runc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime"
)

// Copying reaches a container's files through /proc/PID/root, which shows its
// mounts, and needs no program inside. Whatever the container does meanwhile:
// every path is resolved by the kernel within that root (RESOLVE_IN_ROOT) or
// below the folder that was asked for (RESOLVE_BENEATH), every name of a folder
// by the folder's descriptor and without following links, and no file is opened
// before it is known, by a descriptor that opens nothing, to be a plain one.

const (
	// resolveAttempts bounds the kernel's "try again": a rename got in between.
	resolveAttempts = 64
	maxCopyPath     = 4096
	// maxCopyDepth bounds the folders that are open at once.
	maxCopyDepth = 256
	// maxHardLinks bounds the files that are remembered as having several names;
	// beyond it each name is a file of its own.
	maxHardLinks = 100_000
	// maxXattrBytes bounds one extended attribute and the list of their names.
	maxXattrBytes = 64 << 10
	// nobody is who files belong to whose owner the pod's ids do not reach.
	nobody = 65534
)

// tree is a running container's file system.
type tree struct {
	root  *os.File // O_PATH
	users *runtime.IDMapping
}

func (t *tree) close() { _ = t.root.Close() }

// openTree finds the container's root. The descriptor of /proc/PID stays that of
// one process, so what is read through it is not a stranger's.
func (r *Runtime) openTree(uid runtime.PodUID, name string) (*tree, error) {
	c, p, err := r.newest(uid, name)
	if err != nil {
		return nil, err
	}
	root, err := openProcessRoot(c.PID, filepath.Join(p.cgroup, containerID(c.Name, c.Attempt)))
	if err != nil {
		return nil, fmt.Errorf("pod %s: container %s: its files: %w", uid, name, err)
	}
	p.mu.Lock()
	users := p.record.Config.Users
	p.mu.Unlock()
	return &tree{root: root, users: users}, nil
}

func openProcessRoot(pid int, cgroup string) (*os.File, error) {
	proc, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, runtime.ErrNotRunning)
	}
	defer func() { _ = unix.Close(proc) }()
	groups, err := readAt(proc, "cgroup")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, runtime.ErrNotRunning)
	}
	if !strings.Contains(groups, ":"+cgroup+"\n") && !strings.Contains(groups, ":"+cgroup+"/") {
		return nil, fmt.Errorf("process %d is not its any more: %w", pid, runtime.ErrNotRunning)
	}
	fd, err := unix.Openat(proc, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/"), nil
}

func readAt(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, maxCgroupFile))
	return string(content), err
}

// resolve opens a path without opening what it names.
func resolve(dir *os.File, name string, how uint64) (*os.File, error) {
	if len(name) >= maxCopyPath {
		return nil, unix.ENAMETOOLONG
	}
	open := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: how | unix.RESOLVE_NO_MAGICLINKS}
	var err error
	for range resolveAttempts {
		var fd int
		if fd, err = unix.Openat2(int(dir.Fd()), name, &open); err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return nil, err
}

// inRoot resolves an absolute path of the container.
func (t *tree) inRoot(name string) (*os.File, error) {
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("path %q: want an absolute path: %w", name, runtime.ErrInvalid)
	}
	f, err := resolve(t.root, name, unix.RESOLVE_IN_ROOT)
	if err != nil {
		return nil, fmt.Errorf("path %s: %w", name, err)
	}
	return f, nil
}

// reopen opens for real what a descriptor stands for: the same file, whatever
// has its name by now.
func reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func statOf(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st, err
}

// inside turns an id of the node into the pod's, outside the other way round.
func (t *tree) inside(id uint32) int {
	if t.users == nil {
		return int(id)
	}
	if id < t.users.HostID || id-t.users.HostID >= t.users.Size {
		return nobody
	}
	return int(id - t.users.HostID)
}

func (t *tree) outside(id int) (int, error) {
	if id < 0 || id > 1<<31-1 {
		return 0, fmt.Errorf("owner %d: want 0 to %d", id, 1<<31-1)
	}
	if t.users == nil {
		return id, nil
	}
	if uint32(id) >= t.users.Size {
		return 0, fmt.Errorf("owner %d: the pod has the ids 0 to %d", id, t.users.Size-1)
	}
	return int(t.users.HostID) + id, nil
}

// CopyOut implements runtime.Streams.
func (r *Runtime) CopyOut(ctx context.Context, uid runtime.PodUID, container, name string, w io.Writer) error {
	t, err := r.openTree(uid, container)
	if err != nil {
		return err
	}
	defer t.close()
	if err := t.copyOut(ctx, name, w); err != nil {
		return fmt.Errorf("pod %s: copy from container %s: %w", uid, container, err)
	}
	return nil
}

// CopyIn implements runtime.Streams.
func (r *Runtime) CopyIn(ctx context.Context, uid runtime.PodUID, container, name string, from io.Reader) (runtime.CopyResult, error) {
	t, err := r.openTree(uid, container)
	if err != nil {
		return runtime.CopyResult{}, err
	}
	defer t.close()
	var result runtime.CopyResult
	work := func() (err error) {
		result, err = t.copyIn(ctx, name, from)
		return err
	}
	if t.users == nil {
		err = work()
	} else {
		err = t.asPodsRoot(work)
	}
	if err != nil {
		return result, fmt.Errorf("pod %s: copy into container %s: %w", uid, container, err)
	}
	return result, nil
}

// asPodsRoot runs work on a thread whose files belong to the pod's root: on
// mounts that map ids nobody else can make any. The thread keeps its
// capabilities, and dies with the work.
func (t *tree) asPodsRoot(work func() error) error {
	done := make(chan error, 1)
	go onOtherThread(func() error {
		if err := takeFileIDs(int(t.users.HostID)); err != nil {
			return fmt.Errorf("act as the pod's root: %w", err)
		}
		return work()
	}, done)
	return <-done
}

func onOtherThread(f func() error, done chan<- error) {
	goruntime.LockOSThread() // never unlocked, except on the main thread
	if unix.Gettid() == unix.Getpid() {
		defer goruntime.UnlockOSThread()
		other := make(chan error, 1)
		go onOtherThread(f, other)
		done <- <-other
		return
	}
	done <- f()
}

// takeFileIDs changes this thread's ids for files, and takes back the
// capabilities that the kernel drops with them.
func takeFileIDs(id int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	if err := unix.Setfsgid(id); err != nil {
		return err
	}
	if err := unix.Setfsuid(id); err != nil {
		return err
	}
	return unix.Capset(&header, &data[0])
}
