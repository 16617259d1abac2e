package codec_test

import (
	"flag"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/codec"
)

// known stands for the table of Kubernetes' fields, which is not this package's.
func known(message protoreflect.FullName, name string) bool {
	return message == "balsa.v1.Container" && name == "resizePolicy"
}

// Every <kind>/<case>.<format> of testdata is read; what comes out, or why it was
// refused, is in the file of the same name with .want.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { checkGolden(t, file) })
	}
}

func checkGolden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []txtar.File
	for _, f := range archive.Files {
		if strings.HasSuffix(f.Name, ".want") {
			continue
		}
		out = append(out, f, txtar.File{Name: f.Name + ".want", Data: []byte(read(t, f))})
	}
	got := txtar.Format(&txtar.Archive{Comment: archive.Comment, Files: out})
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(txtar.Format(archive)), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", file, diff)
	}
}

func read(t *testing.T, f txtar.File) string {
	messages := map[string]func() proto.Message{
		"deployment": func() proto.Message { return &balsav1.Deployment{} },
		"secret":     func() proto.Message { return &balsav1.Secret{} },
		"pod":        func() proto.Message { return &balsav1.Pod{} },
		"meta":       func() proto.Message { return &balsav1.ObjectMeta{} },
		"object":     func() proto.Message { return &balsav1.Object{} },
		"error":      func() proto.Message { return &balsav1.ErrorDetail{} },
	}
	empty, ok := messages[path.Dir(f.Name)]
	if !ok {
		t.Fatalf("%s: no such kind", f.Name)
	}
	trees, err := parse(f)
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, tree := range trees {
		m := empty()
		if err := (codec.Options{Known: known}).Decode(tree, m); err != nil {
			b.WriteString(err.Error() + "\n")
			continue
		}
		text, err := codec.AppendJSON(nil, m)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		b.WriteString(string(text) + "\n")
	}
	return b.String()
}

func parse(f txtar.File) ([]*codec.Tree, error) {
	if path.Ext(f.Name) == ".yaml" {
		return codec.ParseYAML(f.Data, 1<<20)
	}
	tree, err := codec.ParseJSON(f.Data, 1<<20)
	return []*codec.Tree{tree}, err
}
