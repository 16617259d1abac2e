package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
)

// disk is what a write needs of a file system; the tests make each call fail.
type disk interface {
	Create(path string) (file, error)
	Rename(from, to string) error
	Remove(path string) error
	SyncDir(path string) error
}

type file interface {
	io.Writer
	Chmod(mode fs.FileMode) error
	Sync() error
	Close() error
}

// createMode keeps the content private until the final mode is set.
const createMode fs.FileMode = 0o600

// simulated is true where the file system is the simulator's: WASI knows no
// permissions and cannot sync a folder.
const simulated = runtime.GOOS == "wasip1"

type osDisk struct{}

func (osDisk) Create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, createMode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) Remove(path string) error     { return os.Remove(path) }

func (osDisk) SyncDir(path string) error {
	if simulated {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

// Chmod sets the mode itself, since the mode given to open passes the umask.
func (f osFile) Chmod(mode fs.FileMode) error {
	if simulated {
		return nil
	}
	return f.File.Chmod(mode)
}
