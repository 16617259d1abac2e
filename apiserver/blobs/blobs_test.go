package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func digestOf(data string) string {
	sum := sha256.Sum256([]byte(data))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPutAndRead(t *testing.T) {
	d := open(t)
	for _, data := range []string{"", "hello", strings.Repeat("x", 1<<20)} {
		digest := digestOf(data)
		if _, ok, err := d.Stat(digest); ok || err != nil {
			t.Fatalf("before: %v %v", ok, err)
		}
		n, err := d.Put(t.Context(), digest, iotest.HalfReader(strings.NewReader(data)), 1<<20)
		if err != nil || n != int64(len(data)) {
			t.Fatalf("put: %d %v", n, err)
		}
		size, ok, err := d.Stat(digest)
		if !ok || err != nil || size != int64(len(data)) {
			t.Fatalf("stat: %d %v %v", size, ok, err)
		}
		r, err := d.Open(digest, size/2)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != data[size/2:] {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPutRefusesAndLeavesNothing(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("broken pipe")
	cases := []struct {
		name   string
		ctx    context.Context
		digest string
		r      io.Reader
		want   error
	}{
		{"other content", t.Context(), digestOf("a"), strings.NewReader("b"), ErrDigest},
		{"too large", t.Context(), digestOf("12345"), strings.NewReader("12345"), ErrTooLarge},
		{"broken", t.Context(), digestOf("a"), iotest.ErrReader(broken), broken},
		{"canceled", canceled, digestOf("a"), strings.NewReader("a"), context.Canceled},
		{"other algorithm", t.Context(), "md5:00", strings.NewReader("a"), ErrDigest},
		{"a way out", t.Context(), "sha256:../../../../etc/passwd", strings.NewReader("a"), ErrDigest},
		{"upper case", t.Context(), "sha256:" + strings.ToUpper(digestOf("a")[7:]), strings.NewReader("a"), ErrDigest},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := open(t)
			if _, err := d.Put(c.ctx, c.digest, c.r, 4); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			entries, err := os.ReadDir(d.root)
			if err != nil || len(entries) != 0 {
				t.Fatalf("left %v, %v", entries, err)
			}
		})
	}
}

func TestPutTwiceDoesNotRead(t *testing.T) {
	d := open(t)
	if _, err := d.Put(t.Context(), digestOf("a"), strings.NewReader("a"), 9); err != nil {
		t.Fatal(err)
	}
	n, err := d.Put(t.Context(), digestOf("a"), iotest.ErrReader(errors.New("was read")), 9)
	if err != nil || n != 1 {
		t.Fatalf("got %d, %v", n, err)
	}
}

func TestOpenRemovesTemps(t *testing.T) {
	root := t.TempDir()
	d, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(d.root, ".x.tmp-123456789012")
	if err := os.WriteFile(left, bytes.Repeat([]byte("x"), 9), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("still there: %v", err)
	}
}

func TestRemove(t *testing.T) {
	d := open(t)
	if _, err := d.Put(t.Context(), digestOf("a"), strings.NewReader("a"), 9); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Remove(digestOf("a")); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, _ := d.Stat(digestOf("a")); ok {
		t.Fatal("still there")
	}
}
