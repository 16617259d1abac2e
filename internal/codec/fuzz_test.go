package codec_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/codec"
)

func addSeeds(f *testing.F, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range archive.Files {
		if !strings.HasSuffix(c.Name, ".want") {
			f.Add(c.Data)
		}
	}
}

// What the JSON parser takes is JSON, and what it refuses although it is JSON has
// one of the reasons for which it is stricter. What decodes comes back the same.
func FuzzJSON(f *testing.F) {
	addSeeds(f, "testdata/json.txtar")
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := codec.ParseJSON(data, 1<<16)
		if err != nil {
			var e *codec.Error
			if !errors.As(err, &e) || len(e.Issues) != 1 {
				t.Fatalf("not one issue: %v", err)
			}
			stricter := len(data) > 1<<16
			for _, reason := range []string{"twice", "not UTF-8", "deeper", "surrogate"} {
				stricter = stricter || strings.Contains(err.Error(), reason)
			}
			if json.Valid(data) && !stricter {
				t.Fatalf("refused JSON: %v", err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatalf("took what is not JSON: %q", data)
		}
		roundTrip(t, tree)
	})
}

// YAML must not panic, hang or give positions outside of the text; what decodes
// comes back the same.
func FuzzYAML(f *testing.F) {
	addSeeds(f, "testdata/yaml.txtar")
	f.Fuzz(func(t *testing.T, data []byte) {
		trees, err := codec.ParseYAML(data, 1<<14)
		var e *codec.Error
		if err != nil && (!errors.As(err, &e) || len(e.Issues) != 1) {
			t.Fatalf("not one issue: %v", err)
		}
		for _, tree := range trees {
			if line, column := tree.Position(tree.Root.Pos); line < 1 || column < 1 || line > len(data)+1 {
				t.Fatalf("root at %d:%d", line, column)
			}
			roundTrip(t, tree)
		}
	})
}

func roundTrip(t *testing.T, tree *codec.Tree) {
	for _, empty := range []proto.Message{&balsav1.Object{}, &balsav1.Deployment{}, &balsav1.ObjectMeta{}, &balsav1.Secret{}} {
		m := empty.ProtoReflect().New().Interface()
		if (codec.Options{}).Decode(tree, m) != nil {
			continue
		}
		text, err := codec.AppendJSON(nil, m)
		if err != nil {
			t.Fatalf("decoded what cannot be encoded: %v", err)
		}
		again := empty.ProtoReflect().New().Interface()
		if err := (codec.Options{}).ReadJSON(text, 1<<20, again); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		if diff := cmp.Diff(m, again, protocmp.Transform()); diff != "" {
			t.Fatalf("changed (-first +again):\n%s", diff)
		}
	}
}

// A strict codec takes no field that it does not know: what it took is, written
// again, as long as what its fields say.
func FuzzBinary(f *testing.F) {
	data, err := proto.Marshal(&balsav1.CreateRequest{Object: &balsav1.Object{Object: &balsav1.Object_Pod{Pod: &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "a", Labels: map[string]string{"a": "b"}}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(append(data, 0xf8, 0x07, 0x01))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, c := range codec.Strict(nil) {
			var m balsav1.CreateRequest
			if !c.IsBinary() || c.Unmarshal(data, &m) != nil {
				continue
			}
			if _, err := codec.AppendJSON(nil, &m); err != nil && !strings.Contains(err.Error(), "time") {
				t.Fatal(err)
			}
			clean := proto.CloneOf(&m)
			if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, clean); err != nil || !proto.Equal(&m, clean) {
				t.Fatalf("took an unknown field: %v", err)
			}
		}
	})
}

func BenchmarkJSON(b *testing.B) {
	manifest, err := os.ReadFile("testdata/pod.json")
	if err != nil {
		b.Fatal(err)
	}
	var pod balsav1.Pod
	if err := (codec.Options{}).ReadJSON(manifest, 1<<20, &pod); err != nil {
		b.Fatal(err)
	}
	list := &balsav1.ListResponse{}
	for range 500 {
		list.Items = append(list.Items, &balsav1.Object{Object: &balsav1.Object_Pod{Pod: &pod}})
	}
	text, err := codec.AppendJSON(nil, list)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("decode pod", func(b *testing.B) {
		b.SetBytes(int64(len(manifest)))
		b.ReportAllocs()
		for b.Loop() {
			if err := (codec.Options{}).ReadJSON(manifest, 1<<20, &balsav1.Pod{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode list of 500", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			if err := (codec.Options{Lenient: true}).ReadJSON(text, codec.MaxResponseBytes, &balsav1.ListResponse{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encode list of 500", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			if buf, err = codec.AppendJSON(buf[:0], list); err != nil {
				b.Fatal(err)
			}
		}
	})
}
