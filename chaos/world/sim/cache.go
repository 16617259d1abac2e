package sim

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// cachedPrograms is how many compiled programs CacheDir keeps: those of this checkout
// and of a few before it. A guest is 190 MB.
const cachedPrograms = 6

// trimCache removes all but the newest compiled programs from a folder. What another
// process would still have wanted, it compiles again.
func trimCache(dir string) error {
	type file struct {
		path  string
		wrote time.Time
	}
	var files []file
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err == nil {
			files = append(files, file{path, info.ModTime()})
		}
		return ignoreGone(err)
	})
	slices.SortFunc(files, func(a, b file) int { return cmp.Or(b.wrote.Compare(a.wrote), cmp.Compare(a.path, b.path)) })
	for _, f := range files[min(len(files), cachedPrograms):] {
		err = errors.Join(err, ignoreGone(os.Remove(f.path)))
	}
	if err != nil {
		return fmt.Errorf("sim: trim the cache of compiled programs in %s: %w", dir, err)
	}
	return nil
}

// ignoreGone: somebody else trims the same folder.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
