package doctest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/object/manifest"
)

// TestManifestsInDocuments parses and validates what readers will copy.
func TestManifestsInDocuments(t *testing.T) {
	count := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language() != "yaml" {
				continue
			}
			count++
			if err := check(d.path, strings.NewReader(b.text)); err != nil {
				t.Errorf("block at line %d: %v", b.line, err)
			}
		}
	}
	if count == 0 {
		t.Error("no document shows a manifest: the search is broken")
	}
}

func TestManifestsInExamples(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(root, "examples", "*.yaml"))
	must(t, err)
	if len(paths) == 0 {
		t.Fatal("no examples")
	}
	for _, path := range paths {
		file, err := os.Open(path)
		must(t, err)
		if err := check(path, file); err != nil {
			t.Error(err)
		}
		must(t, file.Close())
	}
}

func check(name string, text interface{ Read([]byte) (int, error) }) error {
	found, err := manifest.Parse(name, text)
	wrong := []error{err}
	for _, d := range found {
		meta := object.EnsureMetadata(d.Message)
		if meta.Namespace == "" && object.KindOf(d.Message).Namespaced {
			meta.Namespace = object.DefaultNamespace
		}
		wrong = append(wrong, d.Invalid(object.ValidateInput(d.Message)))
	}
	if err == nil && len(found) == 0 {
		wrong = append(wrong, errors.New(name+": no manifest"))
	}
	return errors.Join(wrong...)
}
