package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// check makes sure that the path is what its type says, and makes it where the
// type allows that. Links are followed: the administrator's paths are trusted.
func (h HostPath) check() error {
	if !filepath.IsAbs(h.Path) {
		return fmt.Errorf("%w: %q is not absolute", ErrHostPath, h.Path)
	}
	if err := h.make(); err != nil {
		return fmt.Errorf("%w: %w", ErrHostPath, err)
	}
	info, err := os.Stat(h.Path)
	if err != nil {
		return fmt.Errorf("%w: type %s: %w", ErrHostPath, h.Type, err)
	}
	if h.Type == HostPathAny {
		return nil
	}
	if found := describe(info.Mode()); found != h.Type.wants() {
		return fmt.Errorf("%w: %s is a %s, and type %s asks for a %s", ErrHostPath, h.Path, found, h.Type, h.Type.wants())
	}
	return nil
}

func (h HostPath) make() error {
	switch h.Type {
	case HostPathAny: // as containerd does for Kubernetes
		if _, err := os.Stat(h.Path); err == nil {
			return nil
		}
		return os.MkdirAll(h.Path, 0o755) //nolint:gosec // the path is the administrator's
	case HostPathDirectoryOrCreate:
		return os.MkdirAll(h.Path, 0o755) //nolint:gosec // as in Kubernetes: the path is the administrator's
	case HostPathFileOrCreate:
		file, err := os.OpenFile(h.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // as above
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return file.Close()
	}
	return nil
}

func (t HostPathType) wants() string {
	switch t {
	case HostPathDirectory, HostPathDirectoryOrCreate:
		return "folder"
	case HostPathFile, HostPathFileOrCreate:
		return "file"
	case HostPathSocket:
		return "socket"
	case HostPathCharDevice:
		return "character device"
	case HostPathBlockDevice:
		return "block device"
	}
	return string(t)
}

func describe(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "folder"
	case mode.IsRegular():
		return "file"
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeCharDevice != 0:
		return "character device"
	case mode&fs.ModeDevice != 0:
		return "block device"
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	}
	return "special file"
}
