// Package hostmount wraps the mounts that a pod needs on its node: pinned
// namespaces, overlays, a tmpfs, and taking everything below a directory away
// again. It mounts nothing inside containers; libcontainer does.
package hostmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Overlay describes one overlay file system.
type Overlay struct {
	// Layers, lowest first, as images list them.
	Layers []string
	// Upper takes the changes, Work is the file system's own; both on the same
	// file system and not used by another overlay.
	Upper, Work string
	Target      string
	// Stage is a directory of the caller's, made and emptied again: kernels
	// before 6.5 need it, and layers whose ids are mapped.
	Stage string
	// UserNS, if set, is the file of a user namespace: the layers' ids are
	// shown as that namespace's. Upper belongs to its root then.
	UserNS string
}

// Mount mounts the overlay with the new mount API, one option a layer: the
// options of mount(2) are cut at 4096 bytes, which some thirty layers fill.
// Kernels before 6.5 get them by shorter names.
// The overlay is volatile: it never syncs, since nobody mounts its upper
// directory again.
func (o Overlay) Mount() error {
	if err := o.mount(); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", o.Target, err)
	}
	return nil
}

func (o Overlay) mount() error {
	layers, unstage, err := o.mapped()
	if err != nil {
		return err
	}
	defer unstage()
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if !takesLayersSingly(release) {
		return o.mountOld(layers)
	}
	return o.mountNew(layers)
}

func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

// takesLayersSingly goes by the version, 6.5: an older kernel takes the option
// "lowerdir+" without a word, and refuses the mount afterwards, with a line in
// its log. A release that cannot be read counts as an old one, since mountOld
// works with new ones as well.
func takesLayersSingly(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > 6 || major == 6 && minor >= 5
}

func (o Overlay) mountNew(layers []string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, layer := range slices.Backward(layers) {
		if err := unix.FsconfigSetString(fd, "lowerdir+", layer); err != nil {
			return fmt.Errorf("layer %s: %w", layer, err)
		}
	}
	for key, value := range map[string]string{"upperdir": o.Upper, "workdir": o.Work} {
		if err := unix.FsconfigSetString(fd, key, value); err != nil {
			return fmt.Errorf("%s %s: %w", key, value, err)
		}
	}
	if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
		return fmt.Errorf("volatile: %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("create: %w%s", err, kernelMessage(fd))
	}
	return attach(fd, o.Target)
}

// mapped stages the layers as mounts of their own with mapped ids. The overlay
// keeps clones of them, so they go once it is mounted.
func (o Overlay) mapped() (layers []string, unstage func(), err error) {
	if o.UserNS == "" {
		return o.Layers, func() {}, nil
	}
	unstage = func() {
		_ = UnmountUnder(o.Stage)
		_ = os.RemoveAll(o.Stage)
	}
	for i, layer := range o.Layers {
		to := filepath.Join(o.Stage, strconv.Itoa(i))
		if err := os.MkdirAll(to, 0o700); err != nil {
			return nil, unstage, errors.Join(err, os.RemoveAll(o.Stage))
		}
		if err := (Clone{Source: layer, Target: to, UserNS: o.UserNS}).Mount(); err != nil {
			unstage()
			return nil, unstage, err
		}
		layers = append(layers, to)
	}
	return layers, unstage, nil
}

// mountOld is for kernels before 6.5, which want all layers in one string of
// at most 4096 bytes: short names, seen from a thread's own working directory.
func (o Overlay) mountOld(layers []string) error {
	names := filepath.Join(o.Stage, "names")
	if err := os.MkdirAll(names, 0o700); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(names) }()
	var short []string
	for i, layer := range slices.Backward(layers) {
		name := strconv.Itoa(i)
		if err := os.Symlink(layer, filepath.Join(names, name)); err != nil {
			return err
		}
		short = append(short, name)
	}
	for name, dir := range map[string]string{"u": o.Upper, "w": o.Work} {
		if err := os.Symlink(dir, filepath.Join(names, name)); err != nil {
			return err
		}
	}
	return OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the working directory: %w", err)
		}
		if err := unix.Chdir(names); err != nil {
			return err
		}
		return unix.Mount("overlay", o.Target, "overlay", 0, "volatile,upperdir=u,workdir=w,lowerdir="+strings.Join(short, ":"))
	})
}

// kernelMessage is what the kernel says about a failed mount.
func kernelMessage(fd int) string {
	const maxMessage = 1024
	b := make([]byte, maxMessage)
	n, err := unix.Read(fd, b)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[:n])) + ")"
}

func attach(fd int, target string) error {
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer func() { _ = unix.Close(mount) }()
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount: %w", err)
	}
	return nil
}

// Tmpfs mounts a tmpfs of an owner that everybody may write to, for /dev/shm.
func Tmpfs(target string, size int64, owner uint32) error {
	id := strconv.FormatUint(uint64(owner), 10)
	data := "mode=1777,size=" + strconv.FormatInt(size, 10) + ",uid=" + id + ",gid=" + id
	if err := unix.Mount("shm", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", target, err)
	}
	return nil
}

// InMemory makes sure that a folder, which exists, lies on a tmpfs, and mounts
// one over it if it does not: what is secret must not reach a disk.
func InMemory(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		return nil
	}
	if err := unix.Mount("balsa", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s, so that secrets stay off the disk: %w", dir, err)
	}
	return nil
}

// Namespaces are new ones to pin; empty paths are left out.
type Namespaces struct {
	Net, UTS, IPC string // files that must exist
	Hostname      string
	// Sysctls are files below /proc/sys and their values, of these namespaces.
	Sysctls map[string]string
}

// Pin makes the namespaces and binds them to their files, where they live
// without any process. The loopback of a new network namespace is up.
func (n Namespaces) Pin() error {
	if err := OnThread(n.pin); err != nil {
		return fmt.Errorf("pin namespaces: %w", err)
	}
	return nil
}

// OnThread runs f on a thread of its own, which dies afterwards, whatever f
// has done to it.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go onThreadOfItsOwn(f, done)
	return <-done
}

// onThreadOfItsOwn runs f on a thread that dies with it. The main thread cannot
// die: it would stay in the new namespaces, keep them alive, and show them in
// /proc/self. When this goroutine finds itself there, it holds the thread back
// until f has run on another one.
func onThreadOfItsOwn(f func() error, done chan<- error) {
	runtime.LockOSThread() // never unlocked, except on the main thread
	if unix.Gettid() != unix.Getpid() {
		done <- f()
		return
	}
	defer runtime.UnlockOSThread()
	other := make(chan error, 1)
	go onThreadOfItsOwn(f, other)
	done <- <-other
}

func (n Namespaces) pin() error {
	flags := 0
	targets := map[string]string{}
	for _, ns := range []struct {
		path, name string
		flag       int
	}{{n.Net, "net", unix.CLONE_NEWNET}, {n.UTS, "uts", unix.CLONE_NEWUTS}, {n.IPC, "ipc", unix.CLONE_NEWIPC}} {
		if ns.path != "" {
			flags |= ns.flag
			targets[ns.name] = ns.path
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := n.prepare(); err != nil {
		return err
	}
	for name, target := range targets {
		if err := unix.Mount("/proc/thread-self/ns/"+name, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s at %s: %w", name, target, err)
		}
	}
	return nil
}

func (n Namespaces) prepare() error {
	if n.UTS != "" {
		if err := unix.Sethostname([]byte(n.Hostname)); err != nil {
			return fmt.Errorf("host name %q: %w", n.Hostname, err)
		}
	}
	if n.Net != "" {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	for file, value := range n.Sysctls {
		// The file shows the namespaces of the thread that opens it.
		if err := os.WriteFile(filepath.Join("/proc/sys", file), []byte(value), 0); err != nil {
			return fmt.Errorf("%w: set %s to %q: %w", ErrSysctl, file, value, err)
		}
	}
	return nil
}

// ErrSysctl: a kernel parameter does not exist or does not take the value.
var ErrSysctl = errors.New("sysctl")

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// IsMounted tells whether something is mounted exactly at path.
func IsMounted(path string) (bool, error) {
	mounts, err := Under(path)
	return slices.Contains(mounts, path), err
}

// Under lists the mount points at dir and below it, in the order of mounting.
func Under(dir string) ([]string, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return under(string(content), filepath.Clean(dir)), nil
}

func under(content, dir string) []string {
	var mounts []string
	for line := range strings.Lines(content) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if path := unescape(fields[4]); path == dir || strings.HasPrefix(path, dir+"/") {
			mounts = append(mounts, path)
		}
	}
	return mounts
}

// unescape undoes mountinfo's \ooo for blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// UnmountUnder takes away every mount at dir and below it, the last one first,
// and makes sure that none is left: only then may dir be removed.
func UnmountUnder(dir string) error {
	mounts, err := Under(dir)
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(mounts) {
		// A mount with peers would take what is mounted below them along.
		_ = unix.Mount("", path, "", unix.MS_PRIVATE, "")
	}
	for _, path := range slices.Backward(mounts) {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	left, err := Under(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("unmount %s: %s is still mounted", dir, strings.Join(left, ", "))
	}
	return nil
}

// Room is that of a file system.
type Room struct{ Bytes, Free uint64 }

// OnTmpfs tells whether a folder lies on a file system in memory; one that is not
// there yet would be made where its nearest parent is.
func OnTmpfs(dir string) (Room, bool, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.ENOENT) && filepath.Dir(dir) != dir {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return Room{}, false, fmt.Errorf("file system of %s: %w", dir, err)
		}
		block := uint64(st.Bsize)
		return Room{Bytes: st.Blocks * block, Free: st.Bavail * block}, st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
	}
}
