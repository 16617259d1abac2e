package manifest_test

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/object/manifest"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write golden files anew")
	flag.Parse()
	os.Exit(m.Run())
}

const golden = "testdata/manifests.txtar"

var at = time.Unix(1, 0)

// Every file of testdata is read; its objects, or what is wrong, are in the file
// of the same name with .want.
func TestGolden(t *testing.T) {
	archive, err := txtar.ParseFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var out []txtar.File
	for _, f := range archive.Files {
		if !strings.HasSuffix(f.Name, ".want") {
			out = append(out, f, txtar.File{Name: f.Name + ".want", Data: []byte(read(f))})
		}
	}
	got := txtar.Format(&txtar.Archive{Comment: archive.Comment, Files: out})
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(txtar.Format(archive)), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", golden, diff)
	}
}

func read(f txtar.File) string {
	documents, err := manifest.Parse(f.Name, strings.NewReader(string(f.Data)))
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, d := range documents {
		b.WriteString(object.Describe(d.Message))
		b.WriteString(strings.TrimRight(strings.Join([]string{"", "document", itoa(d.Number), "line", itoa(d.Line), "name in line", itoa(d.LineOf("metadata.name"))}, " "), " ") + "\n")
	}
	return b.String()
}

func itoa(n int) string {
	if n >= 10 {
		return itoa(n/10) + itoa(n%10)
	}
	return string(rune('0' + n))
}

func TestReadError(t *testing.T) {
	broken := errors.New("broken")
	if _, err := manifest.Parse("a.yaml", iotest.ErrReader(broken)); !errors.Is(err, broken) || !strings.Contains(err.Error(), "a.yaml") {
		t.Errorf("got %v", err)
	}
}

func TestTooLong(t *testing.T) {
	_, err := manifest.Parse("a.yaml", strings.NewReader("#"+strings.Repeat("x", manifest.MaxBytes)))
	var e *manifest.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}

func TestTooManyObjects(t *testing.T) {
	const one = "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}}"
	list := func(n int) string {
		return `{"apiVersion":"v1","kind":"List","items":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]}"
	}
	if got, err := manifest.Parse("-", strings.NewReader(list(manifest.MaxObjects))); err != nil || len(got) != manifest.MaxObjects {
		t.Errorf("%d objects, %v", len(got), err)
	}
	if _, err := manifest.Parse("-", strings.NewReader(list(manifest.MaxObjects+1))); err == nil || !strings.Contains(err.Error(), "more than 5000 objects") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	archive, err := txtar.ParseFile(golden)
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range archive.Files {
		if !strings.HasSuffix(file.Name, ".want") {
			f.Add(file.Name, string(file.Data))
		}
	}
	f.Fuzz(func(t *testing.T, name, text string) {
		if len(text) > 1<<14 {
			return
		}
		documents, err := manifest.Parse(name, strings.NewReader(text))
		if err != nil {
			return
		}
		for _, d := range documents {
			object.Default(d.Message)
			problem := d.Invalid(object.Validate(d.Message, object.User))
			if text := object.Describe(d.Message); problem != nil && !strings.Contains(problem.Error(), text) {
				t.Fatalf("%v does not name %s", problem, text)
			}
			merged, _, err := object.Merge(nil, d.Message, "fuzz", at)
			if err != nil {
				continue
			}
			if _, changed, err := object.Merge(merged, d.Message, "fuzz", at); err != nil || changed {
				t.Fatalf("the second apply: %v, %v", changed, err)
			}
		}
	})
}
