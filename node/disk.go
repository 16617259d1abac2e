package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/balsa-run/balsa/internal/atomicfile"
)

const (
	fileMode fs.FileMode = 0o600
	dirMode  fs.FileMode = 0o700
)

// Dir is the Disk of a folder, which is made when it is needed.
func Dir(path string) Disk { return dir(path) }

type dir string

func (d dir) Read(name string) ([]byte, error) { return os.ReadFile(d.Path(name)) }

func (d dir) Write(name string, data []byte) error {
	path := d.Path(name)
	err := atomicfile.Write(path, data, fileMode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		err = atomicfile.Write(path, data, fileMode)
	}
	return err
}

func (d dir) Show(name string, data []byte, mode fs.FileMode) (err error) {
	path := d.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// The file may be mounted into a container, so it is not replaced but written.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Chmod(mode)
}

func (d dir) Tail(name string, most int) (data []byte, err error) {
	f, err := os.Open(d.Path(name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if extra := info.Size() - int64(most); extra > 0 {
		if _, err := f.Seek(extra, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, int64(most)))
}

func (d dir) Remove(name string) error {
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d dir) List(folder string) ([]string, error) {
	if _, err := atomicfile.RemoveTemps(d.Path(folder)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(d.Path(folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d dir) Path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }
