package object_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/object/manifest"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write golden files anew")
	flag.Parse()
	os.Exit(m.Run())
}

// Every <case>.yaml of testdata is created, by a user or, in system.txtar, by the
// system. A file of two documents in update.txtar is an object and what is to
// take its place. The refusal's exact text, or "valid", is in <case>.yaml.want.
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
	writer := object.User
	if strings.HasPrefix(filepath.Base(file), "system") {
		writer = object.System
	}
	var out []txtar.File
	for _, f := range archive.Files {
		if strings.HasSuffix(f.Name, ".want") {
			continue
		}
		out = append(out, f, txtar.File{Name: f.Name + ".want", Data: []byte(judge(t, f, writer, strings.HasSuffix(file, "update.txtar")))})
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

func judge(t *testing.T, f txtar.File, writer object.Writer, update bool) string {
	documents, err := manifest.Parse(f.Name, bytes.NewReader(f.Data))
	if err != nil {
		return err.Error() + "\n"
	}
	if update {
		return judgeUpdate(t, f.Name, documents, writer)
	}
	var b strings.Builder
	for _, d := range documents {
		violations := object.ValidateInput(d.Message)
		object.Default(d.Message)
		violations = append(violations, object.Validate(d.Message, writer)...)
		if err := d.Invalid(violations); err != nil {
			b.WriteString(err.Error() + "\n")
		} else {
			b.WriteString("valid\n")
		}
	}
	return b.String()
}

func judgeUpdate(t *testing.T, name string, documents []manifest.Document, writer object.Writer) string {
	if len(documents) != 2 {
		t.Fatalf("%s: %d documents, want 2", name, len(documents))
	}
	old, next := documents[0].Message, documents[1].Message
	object.Default(old)
	object.Stamp(old, "uid", at(1))
	object.CarryOver(old, next)
	object.Default(next)
	if err := documents[1].Invalid(object.ValidateUpdate(old, next, writer)); err != nil {
		return err.Error() + "\n"
	}
	return "valid\n"
}

// No violation repeats a Secret's value, wherever it is wrong.
func TestSecretsStaySecret(t *testing.T) {
	const value = "hunter2"
	s := &balsav1.Secret{
		Metadata: &balsav1.ObjectMeta{Name: "Bad Name"}, Type: "!", Immutable: proto.Bool(true),
		Data:       map[string][]byte{"bad key": []byte(value), "..": bytes.Repeat([]byte(value), 200_000)},
		StringData: map[string]string{"": value, "x/y": value},
	}
	next := object.Clone(s)
	next.Data["new"], next.Immutable = []byte(value), nil
	for _, violations := range []object.Violations{object.Validate(s, object.User), object.ValidateUpdate(s, next, object.User)} {
		text := violations.Err(s).Error()
		for _, v := range violations.Proto() {
			text += v.String()
		}
		if len(violations) < 6 || strings.Contains(text, value) {
			t.Errorf("%d violations:\n%s", len(violations), text)
		}
	}
}

func TestViolationsAreBounded(t *testing.T) {
	pod := examplePod()
	pod.Spec.Containers = nil
	for range 30 {
		pod.Spec.Containers = append(pod.Spec.Containers, &balsav1.Container{Name: "!", Image: " ", WorkingDir: "\x00"})
	}
	if got := len(object.Validate(pod, object.User)); got != 50 {
		t.Errorf("%d violations, want 50", got)
	}
}

func TestUndelete(t *testing.T) {
	old, next := examplePod(), examplePod()
	old.Metadata.DeletionTimestamp = old.Metadata.CreationTimestamp
	violations := object.ValidateUpdate(old, next, object.System)
	if len(violations) != 1 || violations[0].Field != "metadata.deletionTimestamp" {
		t.Errorf("got %v", violations)
	}
}

func TestBinding(t *testing.T) {
	pod := examplePod()
	bound := object.Clone(pod)
	bound.Spec.NodeName = "n1"
	moved := object.Clone(bound)
	moved.Spec.NodeName = "n2"
	changed := object.Clone(bound)
	changed.Spec.Hostname = "other"
	for name, c := range map[string]struct {
		old, next *balsav1.Pod
		writer    object.Writer
		want      int
	}{
		"by the system": {pod, bound, object.System, 0}, "by a user": {pod, bound, object.User, 1}, "twice": {bound, moved, object.System, 1},
		"with more": {pod, changed, object.System, 1}, "nothing": {bound, bound, object.User, 0},
	} {
		if got := object.ValidateUpdate(c.old, c.next, c.writer); len(got) != c.want {
			t.Errorf("%s: %v, want %d violations", name, got, c.want)
		}
	}
}
