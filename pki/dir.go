package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/balsa-run/balsa/internal/atomicfile"
)

// Dir is the folder that identity files live in. Write is atomic and durable.
type Dir interface {
	Read(name string) (data []byte, mode fs.FileMode, err error) // fs.ErrNotExist if there is none
	Write(name string, data []byte, mode fs.FileMode) error
	Path(name string) string // for messages
}

// OSDir is a folder of the machine.
type OSDir string

// Path is the whole path of a file.
func (d OSDir) Path(name string) string { return filepath.Join(string(d), name) }

// Read returns content and permissions of one and the same file.
func (d OSDir) Read(name string) (data []byte, mode fs.FileMode, err error) {
	f, err := os.Open(d.Path(name))
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	data, err = io.ReadAll(io.LimitReader(f, MaxBundleBytes+1))
	if err == nil && len(data) > MaxBundleBytes {
		err = fmt.Errorf("%s has more than %d bytes", d.Path(name), MaxBundleBytes)
	}
	return data, info.Mode().Perm(), err
}

// Write creates the folder, 0700, if it is not there.
func (d OSDir) Write(name string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(d.Path(name), data, mode)
}

// MemDir is a folder in memory, for the simulator and for tests.
type MemDir struct {
	mu    sync.Mutex
	files map[string]memFile // guarded by mu
}

type memFile struct {
	data []byte
	mode fs.FileMode
}

// NewMemDir is empty.
func NewMemDir() *MemDir { return &MemDir{files: map[string]memFile{}} }

// Path is the name, marked as no real path.
func (d *MemDir) Path(name string) string { return "mem:" + name }

// Read returns a copy.
func (d *MemDir) Read(name string) ([]byte, fs.FileMode, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, ok := d.files[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: d.Path(name), Err: fs.ErrNotExist}
	}
	return slices.Clone(f.data), f.mode, nil
}

// Write keeps a copy.
func (d *MemDir) Write(name string, data []byte, mode fs.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[name] = memFile{slices.Clone(data), mode}
	return nil
}

// Remove deletes a file, if it is there.
func (d *MemDir) Remove(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
}
