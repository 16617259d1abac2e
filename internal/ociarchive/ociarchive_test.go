package ociarchive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// memory keeps blobs in a map.
type memory map[string][]byte

func (m memory) Put(_ context.Context, r io.Reader) (Blob, error) {
	content, err := io.ReadAll(r)
	if err != nil {
		return Blob{}, err
	}
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	m[digest] = content
	return Blob{Digest: digest, Size: int64(len(content))}, nil
}

func (m memory) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	content, ok := m[digest]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

func testImage(t testing.TB, arch string, layers ...string) v1.Image {
	t.Helper()
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	var err error
	for _, content := range layers {
		if image, err = mutate.AppendLayers(image, static.NewLayer([]byte(content), types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

type member struct{ name, content, link string }

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.content)), Typeflag: tar.TypeReg}
		if m.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, m.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func blobMember(content []byte) member {
	sum := sha256.Sum256(content)
	return member{name: "blobs/sha256/" + hex.EncodeToString(sum[:]), content: string(content)}
}

// parts are an image's blobs, and a descriptor of its manifest.
func parts(t testing.TB, image v1.Image) (string, []member) {
	t.Helper()
	manifest, err1 := image.RawManifest()
	config, err2 := image.RawConfigFile()
	layers, err3 := image.Layers()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	members := []member{blobMember(manifest), blobMember(config)}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, blobMember(content))
	}
	return describe(types.OCIManifestSchema1, manifest, ""), members
}

func describe(kind types.MediaType, content []byte, more string) string {
	sum := sha256.Sum256(content)
	return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%x","size":%d%s}`, kind, sum, len(content), more)
}

func index(manifests ...string) string {
	return `{"schemaVersion":2,"mediaType":"` + string(types.OCIImageIndex) + `","manifests":[` + strings.Join(manifests, ",") + `]}`
}

func named(descriptor, name string) string {
	return strings.TrimSuffix(descriptor, "}") + fmt.Sprintf(`,"annotations":{"io.containerd.image.name":%q}}`, name)
}

func TestIndexComesLastOrFirst(t *testing.T) {
	descriptor, members := parts(t, testImage(t, "amd64", "layer"))
	document := member{name: "index.json", content: index(named(descriptor, "docker.io/library/app:v1"))}
	for position, all := range map[string][]member{"last": append(members, document), "first": append([]member{document}, members...)} {
		images, err := Import(t.Context(), bytes.NewReader(archive(t, all...)), memory{}, Options{})
		if err != nil || len(images) != 1 || images[0].Names[0] != "app:v1" || len(images[0].Layers) != 1 {
			t.Errorf("index %s: %+v, %v", position, images, err)
		}
	}
}

func TestArchitectureIsChosen(t *testing.T) {
	var members []member
	var platforms []string
	digests := map[string]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		d, m := parts(t, testImage(t, arch, "layer for "+arch))
		members = append(members, m...)
		platforms = append(platforms, strings.TrimSuffix(d, "}")+`,"platform":{"os":"linux","architecture":"`+arch+`"}}`)
		digests[arch] = "sha256:" + strings.TrimPrefix(m[0].name, "blobs/sha256/")
	}
	nested := []byte(index(platforms...))
	members = append(members, blobMember(nested), member{name: "index.json", content: index(named(describe(types.OCIImageIndex, nested, ""), "app:v1"))})
	content := archive(t, members...)
	for arch, digest := range digests {
		images, err := Import(t.Context(), bytes.NewReader(content), memory{}, Options{Architecture: arch})
		if err != nil || images[0].Manifest.Digest != digest {
			t.Errorf("%s: %+v, %v, want manifest %s", arch, images, err, digest)
		}
	}
	_, err := Import(t.Context(), bytes.NewReader(content), memory{}, Options{Architecture: "s390x"})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "linux/amd64 linux/arm64") {
		t.Errorf("s390x: %v, want a refusal that lists what there is", err)
	}
}

// TestDockerArchive covers what docker save wrote before it wrote OCI layouts:
// shared layers are symbolic links.
func TestDockerArchive(t *testing.T) {
	image := testImage(t, "amd64", "one", "two")
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	content := archive(t,
		member{name: "c.json", content: string(config)}, member{name: "a/layer.tar", content: "one"}, member{name: "b/layer.tar", content: "two"},
		member{name: "x/layer.tar", link: "../a/layer.tar"},
		member{name: "manifest.json", content: `[{"Config":"c.json","RepoTags":["app:v1","app:latest"],"Layers":["x/layer.tar","b/layer.tar"]}]`})
	var digests []string
	for range 2 {
		blobs := memory{}
		images, err := Import(t.Context(), bytes.NewReader(content), blobs, Options{})
		if err != nil || len(images) != 1 || strings.Join(images[0].Names, " ") != "app:latest app:v1" || len(images[0].Layers) != 2 {
			t.Fatalf("imported %+v, %v", images, err)
		}
		if string(blobs[images[0].Layers[0].Digest]) != "one" {
			t.Errorf("lowest layer reads %q", blobs[images[0].Layers[0].Digest])
		}
		digests = append(digests, images[0].Manifest.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("the same archive gave manifests %v", digests)
	}
}

func TestRefusals(t *testing.T) {
	descriptor, members := parts(t, testImage(t, "amd64", "layer"))
	ok := member{name: "index.json", content: index(named(descriptor, "app:v1"))}
	loop := member{name: "c.json", link: "c.json"}
	windows, windowsMembers := parts(t, windowsImage(t))
	for title, content := range map[string][]byte{
		"nothing":               {},
		"no archive":            []byte("hello, this is no archive of any kind, but long enough for one block" + strings.Repeat(".", 600)),
		"an empty archive":      archive(t),
		"no documents":          archive(t, members...),
		"no name":               archive(t, append(members, member{name: "index.json", content: index(descriptor)})...),
		"a bad name":            archive(t, append(members, member{name: "index.json", content: index(named(descriptor, "UPPER/x"))})...),
		"a missing layer":       archive(t, append(members[:2:2], ok)...),
		"a missing manifest":    archive(t, append(members[1:len(members):len(members)], ok)...),
		"a damaged blob":        archive(t, append(members[:2:2], member{name: members[2].name, content: "other"}, ok)...),
		"an index of no image":  archive(t, member{name: "index.json", content: index()}),
		"an index that is none": archive(t, member{name: "index.json", content: "[]"}),
		"a link to itself":      archive(t, loop, member{name: "manifest.json", content: `[{"Config":"c.json","RepoTags":["a"],"Layers":["l"]}]`}),
		"another system":        archive(t, append(windowsMembers, member{name: "index.json", content: index(named(windows, "app:v1"))})...),
		"a cut archive":         archive(t, append(members, ok)...)[:1500],
		"a wrong size":          archive(t, append(members, member{name: "index.json", content: strings.Replace(index(named(descriptor, "app:v1")), `"size":`, `"size":1`, 1)})...),
	} {
		if images, err := Import(t.Context(), bytes.NewReader(content), memory{}, Options{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v, want ErrInvalid", title, images, err)
		}
	}
}

func windowsImage(t testing.TB) v1.Image {
	t.Helper()
	image := testImage(t, "amd64", "layer")
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS = "windows"
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestStoreErrorsAreNotTheArchivesFault(t *testing.T) {
	descriptor, members := parts(t, testImage(t, "amd64", "layer"))
	content := archive(t, append(members, member{name: "index.json", content: index(named(descriptor, "app:v1"))})...)
	_, err := Import(t.Context(), bytes.NewReader(content), fullDisk{}, Options{})
	if !errors.Is(err, errFull) || errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want the store's error and not ErrInvalid", err)
	}
}

var errFull = errors.New("no space left on device")

type fullDisk struct{ memory }

func (fullDisk) Put(context.Context, io.Reader) (Blob, error) { return Blob{}, errFull }

func TestTooManyEntries(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		for i := range MaxEntries + 1 {
			if archive.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg}) != nil {
				return
			}
		}
		_ = w.CloseWithError(archive.Close())
	}()
	_, err := Import(t.Context(), r, memory{}, Options{})
	if closeErr := r.Close(); !errors.Is(err, ErrInvalid) || closeErr != nil {
		t.Errorf("got %v, %v, want ErrInvalid", err, closeErr)
	}
}

func TestNormalizeName(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"hello": "hello:latest", "hello:v1": "hello:v1", "docker.io/library/hello": "hello:latest", "docker.io/me/hello:1": "me/hello:1",
		"index.docker.io/library/x": "x:latest", "localhost:5000/a/b": "localhost:5000/a/b:latest", "localhost:5000/a:V1_x": "localhost:5000/a:V1_x",
		"a@" + digest: "a@" + digest, "a:v1@" + digest: "a@" + digest, "library/a": "library/a:latest",
		"": "", "A": "", "a:": "a:latest", "a/": "", "/a": "", "a//b": "", "a:v 1": "", "a@sha256:12": "", "../a": "", "a:.x": "", "a/b:c/d": "", "a/..": "",
	} {
		got, err := NormalizeName(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
		if want != "" {
			if again, err := NormalizeName(got); err != nil || again != got {
				t.Errorf("%q normalised twice: %q, %v", in, again, err)
			}
		}
	}
}

// FuzzImport: whatever the bytes, every image that comes out is complete.
func FuzzImport(f *testing.F) {
	descriptor, members := parts(f, testImage(f, "amd64", "layer"))
	f.Add(archive(f, append(members, member{name: "index.json", content: index(named(descriptor, "app:v1"))})...))
	tag, err := name.NewTag("app:v1")
	if err != nil {
		f.Fatal(err)
	}
	var docker bytes.Buffer
	if err := tarball.Write(tag, testImage(f, "amd64", "one", "two"), &docker); err != nil {
		f.Fatal(err)
	}
	f.Add(docker.Bytes())
	f.Fuzz(func(t *testing.T, content []byte) {
		blobs := memory{}
		images, err := Import(t.Context(), io.LimitReader(bytes.NewReader(content), 1<<20), blobs, Options{})
		if err != nil {
			return
		}
		for _, image := range images {
			for _, b := range image.Blobs() {
				if have, ok := blobs[b.Digest]; !ok || int64(len(have)) != b.Size {
					t.Errorf("blob %+v of %v is not there", b, image.Names)
				}
			}
		}
	})
}
