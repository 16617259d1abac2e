package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The cache keeps the newest programs, whichever folder of it they are in, and is no
// error where there is none.
func TestTrimCache(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	var paths []string
	for i := range cachedPrograms + 3 {
		path := filepath.Join(dir, fmt.Sprintf("version-%d", i%2), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wrote := began.Add(time.Duration(i) * time.Second)
		if err := os.Chtimes(path, wrote, wrote); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	for range 2 { // the second finds nothing to do
		if err := trimCache(dir); err != nil {
			t.Fatal(err)
		}
		for i, path := range paths {
			if _, err := os.Stat(path); (err == nil) != (i >= 3) {
				t.Errorf("program %d of %d: %v", i, len(paths), err)
			}
		}
	}
	if err := trimCache(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
}
