package helpers

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestExtractKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	first, err := extract(dir, "balsa-shim", "one")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	again, err := extract(dir, "balsa-shim", "one")
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(again)
	if err != nil {
		t.Fatal(err)
	}
	if first != again || !os.SameFile(before, after) {
		t.Errorf("the same program was written twice: %s and %s", first, again)
	}
}

func TestExtractNeverOverwritesAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	old, err := extract(dir, "balsa-shim", "one")
	if err != nil {
		t.Fatal(err)
	}
	upgraded, err := extract(dir, "balsa-shim", "two")
	if err != nil {
		t.Fatal(err)
	}
	if old == upgraded {
		t.Fatalf("both versions are %s", old)
	}
	if content, err := os.ReadFile(old); err != nil || string(content) != "one" {
		t.Errorf("the old version reads %q, %v", content, err)
	}
}

func TestExtractReplacesADamagedFile(t *testing.T) {
	dir := t.TempDir()
	path, err := extract(dir, "balsa-runc", "program")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("prog"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := extract(dir, "balsa-runc", "program"); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	info, statErr := os.Stat(path)
	if err != nil || statErr != nil || string(content) != "program" || info.Mode().Perm() != 0o755 {
		t.Errorf("found %q with mode %v, %v, %v", content, info.Mode(), err, statErr)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".extract-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind %v, %v", left, err)
	}
}

func TestWithoutTheTagExtractSaysHowToBuild(t *testing.T) {
	if _, err := embedded(); err == nil {
		paths, err := Extract(t.TempDir())
		if err != nil || paths.Shim == "" || paths.Runc == "" {
			t.Fatalf("with embedded programs: %+v, %v", paths, err)
		}
		return
	}
	if _, err := Extract(t.TempDir()); !errors.Is(err, ErrNotEmbedded) {
		t.Errorf("got %v, want ErrNotEmbedded", err)
	}
}
