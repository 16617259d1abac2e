// Package helpers carries the two helper programs, balsa-shim and balsa-runc,
// inside the balsa binary and writes them out where they can be executed. It
// runs nothing.
//
// The programs are built first, into bin/, and embedded with the build tag
// "helpers". Without the tag everything compiles and Extract says how to build
// the whole.
package helpers

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Paths are the helper programs on disk.
type Paths struct {
	Shim string
	Runc string
}

// ErrNotEmbedded: this binary was built without the tag "helpers".
var ErrNotEmbedded = errors.New("this balsa was built without its helper programs, so it cannot run containers: " +
	"build it with make, or build cmd/balsa-shim and cmd/balsa-runc into internal/helpers/bin and add -tags helpers")

// hashBytes of a program's SHA-256 are part of its file's name.
const hashBytes = 8

// Extract writes the programs to dir and returns where they are. A file's name
// holds the hash of its content: an upgrade writes new files beside those that
// running shims were started from, and never overwrites one.
func Extract(dir string) (Paths, error) {
	programs, err := embedded()
	if err != nil {
		return Paths{}, err
	}
	defer release()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Paths{}, fmt.Errorf("extract helper programs: %w", err)
	}
	var p Paths
	for _, each := range []struct {
		name string
		to   *string
	}{{"balsa-shim", &p.Shim}, {"balsa-runc", &p.Runc}} {
		path, err := extract(dir, each.name, programs[each.name])
		if err != nil {
			return Paths{}, fmt.Errorf("extract helper program %s: %w", each.name, err)
		}
		*each.to = path
	}
	return p, nil
}

// extract leaves a file alone that is there with the right content.
func extract(dir, name, content string) (string, error) {
	sum, err := hashOf(reader(content))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name+"-"+hex.EncodeToString(sum[:hashBytes]))
	have, err := hashOfFile(path)
	if err == nil && have == sum {
		return path, os.Chmod(path, 0o755)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return path, writeProgram(dir, path, content)
}

// reader hands a program out piece by piece: nothing may copy all of it to the
// heap, which would stay as large.
func reader(content string) io.Reader {
	return io.NewSectionReader(strings.NewReader(content), 0, int64(len(content)))
}

func hashOf(r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = io.Copy(h, r)
	return [sha256.Size]byte(h.Sum(nil)), err
}

func hashOfFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return hashOf(f)
}

// writeProgram is atomic: nobody ever executes half a program.
func writeProgram(dir, path, content string) error {
	f, err := os.CreateTemp(dir, ".extract-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
