package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tarOf makes an archive; a name with content is a file unless it says otherwise.
func tarOf(t *testing.T, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		content := "content of " + e.Name
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(content))
		}
		if e.Mode == 0 {
			e.Mode = 0o644
		}
		must(t, w.WriteHeader(&e))
		if e.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, content)
			must(t, err)
		}
	}
	must(t, w.Close())
	return &b
}

// A container's archive writes nothing outside of the folder, whatever it holds.
func TestHostileArchiveStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dots":        {{Name: "../evil", Typeflag: tar.TypeReg}},
		"inner dots":  {{Name: "x/../../evil", Typeflag: tar.TypeReg}},
		"absolute":    {{Name: "/evil", Typeflag: tar.TypeReg}},
		"link out":    {{Name: "x/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "x/l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, {Name: "x/l/evil", Typeflag: tar.TypeReg}},
		"link abs":    {{Name: "x/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "x/l", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "x/l/evil", Typeflag: tar.TypeReg}},
		"top is link": {{Name: "x", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "x/evil", Typeflag: tar.TypeReg}},
		"hard link":   {{Name: "x/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "x/h", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"by old link": {{Name: "x/old/evil", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			inner := filepath.Join(outer, "in")
			must(t, os.MkdirAll(filepath.Join(inner, "x"), 0o755))
			must(t, os.WriteFile(filepath.Join(outer, "secret"), []byte("secret"), 0o600))
			must(t, os.Symlink(outer, filepath.Join(inner, "x", "old"))) // something that was there
			var warned bytes.Buffer
			err := (&extraction{warn: &warned, top: "x"}).into(inner, tarOf(t, entries...))
			must(t, filepath.WalkDir(outer, func(path string, e os.DirEntry, err error) error {
				if filepath.Base(path) == "evil" && !strings.HasPrefix(path, inner+"/") {
					t.Errorf("%s was written (%v)", path, err)
				}
				return err
			}))
			if text, readErr := os.ReadFile(filepath.Join(outer, "secret")); readErr != nil || string(text) != "secret" {
				t.Errorf("the file outside reads %q, %v", text, readErr)
			}
			if info, statErr := os.Stat(filepath.Join(inner, "x", "h")); statErr == nil {
				t.Errorf("a link to a file outside was made: %v", info)
			}
			t.Logf("ends with %v, warned %q", err, warned.String())
		})
	}
}

func TestArchiveIsUnpacked(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	archive := tarOf(t,
		tar.Header{Name: "src/", Typeflag: tar.TypeDir, Mode: 0o750, ModTime: at},
		tar.Header{Name: "src/f", Typeflag: tar.TypeReg, Mode: 0o4755, ModTime: at},
		tar.Header{Name: "src/l", Typeflag: tar.TypeSymlink, Linkname: "f"},
		tar.Header{Name: "src/h", Typeflag: tar.TypeLink, Linkname: "src/f"},
		tar.Header{Name: "src/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
	)
	var warned bytes.Buffer
	must(t, (&extraction{warn: &warned, top: "new"}).into(dir, archive))
	info, err := os.Stat(filepath.Join(dir, "new", "f"))
	must(t, err)
	if info.Mode() != 0o755 || !info.ModTime().Equal(at) {
		t.Errorf("the file has mode %v (set-uid must be gone) and time %v", info.Mode(), info.ModTime())
	}
	if folder, err := os.Stat(filepath.Join(dir, "new")); err != nil || !folder.ModTime().Equal(at) {
		t.Errorf("the folder has time %v, %v", folder.ModTime(), err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "new", "l")); err != nil || string(text) != "content of src/f" {
		t.Errorf("by its link the file reads %q, %v", text, err)
	}
	if same, err := os.Stat(filepath.Join(dir, "new", "h")); err != nil || !os.SameFile(same, info) {
		t.Errorf("the hard link is another file: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new", "null")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(warned.String(), "null") {
		t.Errorf("a device: %v, warned %q", err, warned.String())
	}
}

func TestPackedIsUnpacked(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(from, "a", "b"), 0o755))
	must(t, os.WriteFile(filepath.Join(from, "a", "b", "f"), []byte("text"), 0o640))
	must(t, os.Symlink("b/f", filepath.Join(from, "a", "l")))
	info, err := os.Stat(filepath.Join(from, "a"))
	must(t, err)
	var archive, warned bytes.Buffer
	must(t, (&packing{warn: &warned}).pack(&archive, filepath.Join(from, "a"), "a", info))
	must(t, (&extraction{warn: &warned, top: "c"}).into(to, &archive))
	if text, err := os.ReadFile(filepath.Join(to, "c", "l")); err != nil || string(text) != "text" || warned.Len() > 0 {
		t.Errorf("comes back as %q, %v, warned %q", text, err, &warned)
	}
}
