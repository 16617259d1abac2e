package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	modulePath = "github.com/balsa-run/balsa"
	moduleRoot = "../.."
)

type sourceFile struct {
	path    string // from the module's root
	dir     string
	test    bool
	imports []string
	text    string
	syntax  *ast.File
	set     *token.FileSet
}

// source reads every Go file of this module, but not of modules nested in it.
func source(t *testing.T) []sourceFile {
	t.Helper()
	var files []sourceFile
	err := filepath.WalkDir(moduleRoot, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return enter(path, entry)
		}
		if strings.HasSuffix(path, ".go") {
			files = append(files, parse(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files: the walk is broken", len(files))
	}
	return files
}

func enter(path string, entry fs.DirEntry) error {
	if path == moduleRoot {
		return nil
	}
	if strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || entry.Name() == "bin" {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func parse(t *testing.T, path string) sourceFile {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	syntax, err := parser.ParseFile(set, path, text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(moduleRoot, path)
	if err != nil {
		t.Fatal(err)
	}
	file := sourceFile{path: rel, dir: filepath.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), text: string(text), syntax: syntax, set: set}
	for _, spec := range syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		file.imports = append(file.imports, imported)
	}
	return file
}
