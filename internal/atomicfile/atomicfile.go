// Package atomicfile replaces files so that a reader, also one after a power
// cut, finds either the old content or the whole new one, never a part.
//
// The way of a write:
//
//	create .<name>.tmp-<random>   0600, in the same folder, must not exist
//	write, chmod to the mode, fsync
//	rename over <name>
//	fsync the folder
//
// It refuses to be clever: no locks (two writers are both whole, the later
// rename wins), no append, no retry after a failed fsync, which would succeed
// without having written (see "Can Applications Recover from fsync Failures?",
// USENIX ATC 2020). A symbolic link at <name> is replaced, not followed.
package atomicfile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tempMark stands in the name of every temporary file, so that RemoveTemps
// knows what a crash has left.
const tempMark = ".tmp-"

// ErrNotDurable marks a write whose new content is in place but may be lost,
// together with the rename, in a power cut: the folder could not be synced.
var ErrNotDurable = errors.New("written, but not known to be durable")

// Write replaces the file at path by data with exactly the given permission
// bits, whatever the umask is.
func Write(path string, data []byte, mode fs.FileMode) error {
	return write(osDisk{}, path, mode, bytes.NewReader(data))
}

// WriteFrom is Write for content that is read from src. When src fails the old
// file stays as it was.
func WriteFrom(path string, src io.Reader, mode fs.FileMode) error {
	return write(osDisk{}, path, mode, src)
}

// RemoveTemps deletes what interrupted writes have left in the folder dir. Call
// it at start, while nobody writes there. It returns how many it deleted.
func RemoveTemps(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("remove temporary files in %s: %w", dir, err)
	}
	removed := 0
	for _, e := range entries {
		if !isTemp(e) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return removed, fmt.Errorf("remove temporary file: %w", err)
		}
		removed++
	}
	return removed, nil
}

func isTemp(e fs.DirEntry) bool {
	return e.Type().IsRegular() && strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), tempMark)
}

func write(d disk, path string, mode fs.FileMode, src io.Reader) error {
	if mode != mode.Perm() {
		return fmt.Errorf("write %s: mode %v has bits other than permissions", path, mode)
	}
	dir, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("write %q: not the name of a file", path)
	}
	if dir == "" {
		dir = "."
	}
	temp := filepath.Join(dir, "."+name+tempMark+rand.Text()[:12])
	if err := fill(d, temp, mode, src); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, ignoreMissing(d.Remove(temp))))
	}
	if err := d.Rename(temp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, ignoreMissing(d.Remove(temp))))
	}
	if err := d.SyncDir(dir); err != nil {
		return fmt.Errorf("write %s: %w: sync folder: %w", path, ErrNotDurable, err)
	}
	return nil
}

// fill makes the temporary file whole and durable.
func fill(d disk, temp string, mode fs.FileMode, src io.Reader) (err error) {
	f, err := d.Create(temp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, src); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
