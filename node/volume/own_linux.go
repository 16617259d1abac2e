package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// unixStat is what fs.FileInfo.Sys holds.
type unixStat = syscall.Stat_t

// owner is who a pod's scratch space and files belong to on the node: the pod's
// root and its fsGroup, both as its user namespace maps them.
func owner(pod Pod) (uid, gid int) {
	base := 0
	if pod.Users != nil {
		base = int(pod.Users.HostID)
	}
	group := 0
	if pod.FSGroup != nil {
		group = int(*pod.FSGroup)
	}
	return base, base + group
}

// own gives a folder that nobody uses yet to a pod.
func own(path string, pod Pod, mode fs.FileMode) error {
	uid, gid := owner(pod)
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	if pod.FSGroup != nil {
		mode |= fs.ModeSetgid
	}
	return os.Chmod(path, mode)
}

// shareWithGroup gives a whole tree, whose files are other pods' work, to
// fsGroup: the group, its right to read and write, and folders that hand the
// group on. Every path is resolved within the tree, whatever runs in it.
func shareWithGroup(dir string, pod Pod) error {
	if pod.FSGroup == nil {
		return nil
	}
	gid := int(*pod.FSGroup) // persistent volumes are mapped when they are mounted
	if done, err := sharedAlready(dir, pod, gid); done || err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// The root of the tree last: it is what sharedAlready looks at.
	err = fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || path == "." {
			return nil
		}
		if err != nil {
			return err
		}
		return shareOne(root, path, e, gid)
	})
	if err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, gid, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Chown(dir, -1, gid); err != nil {
		return err
	}
	return os.Chmod(dir, info.Mode()|0o770|fs.ModeSetgid)
}

func sharedAlready(dir string, pod Pod, gid int) (bool, error) {
	if !pod.OnRootMismatch {
		return false, nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	st, ok := info.Sys().(*unixStat)
	return ok && int(st.Gid) == gid && info.Mode()&fs.ModeSetgid != 0 && info.Mode().Perm()&0o070 == 0o070, nil
}

func shareOne(root *os.Root, path string, e fs.DirEntry, gid int) error {
	gone := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := root.Lchown(path, -1, gid); err != nil {
		return gone(err)
	}
	if e.Type()&fs.ModeSymlink != 0 {
		return nil
	}
	info, err := e.Info()
	if err != nil {
		return gone(err)
	}
	mode := info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) | 0o060
	if e.IsDir() {
		mode |= 0o070 | fs.ModeSetgid
	}
	return gone(root.Chmod(path, mode))
}

// isMountPoint tells whether another file system begins at a folder.
func isMountPoint(path string) (bool, error) {
	var own, parent unix.Stat_t
	if err := unix.Stat(path, &own); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if err := unix.Stat(filepath.Dir(path), &parent); err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	return own.Dev != parent.Dev, nil
}

// unmountBelow takes away what is mounted at or below a folder.
func unmountBelow(dir string) error {
	points, err := mountPoints(dir)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// mountPoints lists them in the order in which they were mounted.
func mountPoints(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line) // proc(5): id parent dev root point …
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points, nil
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
