package runc

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxDevices bounds what a privileged container is shown of /dev.
const maxDevices = 4096

// hostDevices lists the node's devices, for privileged containers. Terminals
// and shared memory are the container's own, as are the links.
func hostDevices() ([]specs.LinuxDevice, error) {
	var devices []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			if slices.Contains([]string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/hugepages"}, path) {
				return filepath.SkipDir
			}
			return nil
		}
		d, ok := device(path)
		if ok && len(devices) < maxDevices {
			devices = append(devices, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	slices.SortFunc(devices, func(a, b specs.LinuxDevice) int { return cmp.Compare(a.Path, b.Path) })
	return devices, nil
}

func device(path string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if path == "/dev/console" || path == "/dev/ptmx" || unix.Lstat(path, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	d := specs.LinuxDevice{Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false
	}
	mode := os.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	return d, true
}
