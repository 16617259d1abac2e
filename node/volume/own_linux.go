package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
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
