package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/image/registry"
)

type file struct {
	tar.Header
	content string
}

func dir(name string) file {
	return file{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}
func reg(name, content string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
}
func sym(name, to string) file {
	return file{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}}
}
func hard(name, to string) file {
	return file{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}}
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.Size = int64(len(f.content))
		if f.Typeflag != tar.TypeXGlobalHeader {
			f.ModTime = time.Unix(1_000_000_000, 0)
		}
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	image := empty.Image
	for _, content := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
		if err == nil {
			image, err = mutate.AppendLayers(image, layer)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"A=1"}, User: "app", WorkingDir: "/srv", StopSignal: "SIGQUIT"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// threeLayers exercise whiteouts, opaque directories, links and modes.
func threeLayers(t testing.TB) v1.Image {
	suid := reg("bin/su", "x")
	suid.Mode = 0o4755
	sticky := dir("tmp")
	sticky.Mode = 0o1777
	return imageOf(t,
		tarOf(t, dir("bin"), suid, hard("bin/su2", "bin/su"), sym("bin/sh", "su"), dir("etc"), reg("etc/a", "a"), reg("etc/b", "b"), dir("opt"), reg("opt/old", "1"), sticky),
		tarOf(t, dir("etc"), reg("etc/.wh.a", ""), reg("etc/b", "b2")),
		tarOf(t, dir("opt"), reg("opt/.wh..wh..opq", ""), reg("opt/new", "n")))
}

func dockerArchive(t testing.TB, ref string, image v1.Image) []byte {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, image, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ociArchive is a layout directory as a tar stream.
func ociArchive(t testing.TB, ref string, image v1.Image) []byte {
	t.Helper()
	root := t.TempDir()
	p, err := layout.Write(root, empty.Index)
	if err == nil {
		err = p.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref}))
	}
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(root)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func extractTo(t testing.TB, layer []byte, into string) error {
	t.Helper()
	limits := Limits{MaxLayerFiles: 1000, MaxLayerBytes: 1 << 20}
	x := &extraction{limits: limits, checkFree: func() error { return nil }, log: slog.New(slog.DiscardHandler)}
	return x.extract(bytes.NewReader(layer), into)
}

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(Options{
		Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), ResumePause: time.Millisecond,
		Limits: Limits{Linger: -1, MinFreeBytes: 1 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestImportReadsEveryKindOfArchive(t *testing.T) {
	image := threeLayers(t)
	for kind, archive := range map[string][]byte{
		"docker": dockerArchive(t, "example.com/app:v1", image), "docker.gz": gz(t, dockerArchive(t, "example.com/app:v1", image)),
		"oci": ociArchive(t, "example.com/app:v1", image), "oci.gz": gz(t, ociArchive(t, "example.com/app:v1", image)),
	} {
		t.Run(kind, func(t *testing.T) {
			s := openStore(t)
			images, err := s.Import(t.Context(), bytes.NewReader(archive), "")
			if err != nil {
				t.Fatal(err)
			}
			if len(images) != 1 || strings.Join(images[0].Names, ",") != "example.com/app:v1" {
				t.Fatalf("imported %+v", images)
			}
			got, err := s.Resolve(t.Context(), "example.com/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest != images[0].Manifest.Digest || len(got.Layers) != 3 || got.Entrypoint[0] != "/bin/app" || got.Cmd[0] != "serve" ||
				got.Env[0] != "A=1" || got.User != "app" || got.WorkingDir != "/srv" || got.StopSignal != "SIGQUIT" {
				t.Errorf("resolved %+v", got)
			}
			checkLayers(t, got.Layers)
		})
	}
}

func checkLayers(t *testing.T, layers []string) {
	t.Helper()
	for path, mode := range map[string]fs.FileMode{"bin/su": 0o755 | fs.ModeSetuid, "tmp": fs.ModeDir | 0o777 | fs.ModeSticky, "etc/b": 0o644} {
		info, err := os.Lstat(filepath.Join(layers[0], path))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want mode %v", path, info, err, mode)
		}
		if err == nil && info.ModTime().Unix() != 1_000_000_000 {
			t.Errorf("%s has time %v", path, info.ModTime())
		}
	}
	a, err1 := os.Stat(filepath.Join(layers[0], "bin/su"))
	b, err2 := os.Stat(filepath.Join(layers[0], "bin/su2"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(a, b) {
		t.Errorf("the hard link is another file: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(layers[1], "etc/a"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: %+v, %v, want a device 0/0", st, err)
	}
	value := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(layers[2], "opt"), "trusted.overlay.opaque", value); err != nil || string(value[:n]) != "y" {
		t.Errorf("opaque directory: %q, %v", value[:max(n, 0)], err)
	}
}

func TestImportTakesAGivenName(t *testing.T) {
	s := openStore(t)
	if _, err := s.Import(t.Context(), bytes.NewReader(dockerArchive(t, "old:v1", threeLayers(t))), "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), "docker.io/library/new:latest"); err != nil {
		t.Errorf("by its new name: %v", err)
	}
	if _, err := s.Resolve(t.Context(), "old:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("by the name in the archive: %v, want ErrNotFound", err)
	}
}

// cluster is servers that keep images, over another store.
type cluster struct {
	*Store
	names   map[string]string
	fetched atomic.Int64
	down    bool
	damage  string // digest whose content is wrong
}

func (c *cluster) String() string { return "the servers" }

func (c *cluster) Lookup(_ context.Context, name string) (Kept, error) {
	if c.down {
		return Kept{}, errors.New("no server answers")
	}
	digest, ok := c.names[name]
	if !ok {
		return Kept{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	return Kept{Digest: digest, Sources: []Source{c}}, nil
}

func (c *cluster) Manifest(_ context.Context, digest string) ([]byte, error) {
	r, err := c.Blob(context.Background(), digest, 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func (c *cluster) Blob(_ context.Context, digest string, offset int64) (io.ReadCloser, error) {
	if c.down {
		return nil, errors.New("no server answers")
	}
	c.fetched.Add(1)
	if digest == c.damage {
		return io.NopCloser(strings.NewReader("damaged")), nil
	}
	return c.OpenBlob(digest, offset)
}

func newCluster(t testing.TB, ref string, image v1.Image) (*cluster, ociarchive.Image) {
	t.Helper()
	c := &cluster{Store: openStore(t), names: map[string]string{}}
	return c, c.add(t, ref, image)
}

func (c *cluster) add(t testing.TB, ref string, image v1.Image) ociarchive.Image {
	t.Helper()
	images, err := ociarchive.Import(t.Context(), bytes.NewReader(dockerArchive(t, ref, image)), c.Store, ociarchive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.names[images[0].Names[0]] = images[0].Manifest.Digest
	return images[0]
}

func newPuller(t testing.TB, c Cluster) *Puller {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	config, err := registry.ParseConfig([]byte(`registries: {"*": {blocked: true}}`))
	if err != nil {
		t.Fatal(err)
	}
	return &Puller{Store: openStore(t), Cluster: c, Registries: registry.New(registry.Options{Config: config, Log: log}), Log: log}
}

func (p *Puller) get(t testing.TB, name string) (Pulled, error) {
	return p.Pull(t.Context(), Request{Name: name}, nil)
}

func TestPullFetchesEachBlobOnce(t *testing.T) {
	c, image := newCluster(t, "app:v1", threeLayers(t))
	p := newPuller(t, c)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := p.get(t, "app:v1")
			if err != nil || len(got.Image.Layers) != 3 {
				t.Errorf("Pull: %+v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if got, want := c.fetched.Load(), int64(len(image.Blobs())); got != want {
		t.Errorf("fetched %d blobs, want %d", got, want)
	}
	if again, err := p.get(t, "app:v1"); err != nil || again.Transferred || again.SizeBytes == 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestPullWithoutServers(t *testing.T) {
	c, _ := newCluster(t, "app:v1", threeLayers(t))
	p := newPuller(t, c)
	if _, err := p.get(t, "app:v1"); err != nil {
		t.Fatal(err)
	}
	c.down = true
	if _, err := p.get(t, "app:v1"); err != nil {
		t.Errorf("an image that the node has: %v", err)
	}
	if _, err := p.get(t, "other:v1"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("an image that it has not: %v, want ErrUnreachable", err)
	}
	if _, err := p.Pull(t.Context(), Request{Name: "app:v1", Always: true}, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("always: %v, want ErrUnreachable", err)
	}
}

func TestPullTellsWhatIsWrongWithAName(t *testing.T) {
	c, _ := newCluster(t, "app:v1", threeLayers(t))
	p := newPuller(t, c)
	if _, err := p.get(t, "App:v1"); !errors.Is(err, ErrName) {
		t.Errorf("a name in capitals: %v, want ErrName", err)
	}
	if _, err := p.get(t, "other:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that nobody has: %v, want ErrNotFound", err)
	}
}

func TestPullFollowsANameThatMoved(t *testing.T) {
	c, _ := newCluster(t, "app:v1", threeLayers(t))
	p := newPuller(t, c)
	before, err := p.get(t, "app:v1")
	if err != nil {
		t.Fatal(err)
	}
	moved := c.add(t, "app:v1", imageOf(t, tarOf(t, reg("x", "x"))))
	after, err := p.get(t, "app:v1")
	if err != nil || after.Image.Digest == before.Image.Digest || after.Image.Digest != moved.Manifest.Digest {
		t.Errorf("got %s, %v after the name moved", after.Image.Digest, err)
	}
}

func TestPullRefusesDamagedBlobs(t *testing.T) {
	c, image := newCluster(t, "app:v1", threeLayers(t))
	for _, b := range image.Blobs() {
		p := newPuller(t, c)
		c.damage = b.Digest
		if _, err := p.get(t, "app:v1"); err == nil {
			t.Errorf("damaged %s: no error", b.MediaType)
		}
		nothingLeft(t, p.Store)
		c.damage = ""
		if _, err := p.get(t, "app:v1"); err != nil {
			t.Errorf("after the damage to %s was repaired: %v", b.MediaType, err)
		}
	}
}

// nothingLeft checks that a store has nothing half done: no temporary file, no
// layer without its meta file, no name.
func nothingLeft(t testing.TB, s *Store) {
	t.Helper()
	s.flush.wait() // it writes in the background, through tmp as well
	for _, dir := range []string{tmpDir, namesDir, targetsDir, imagesDir} {
		if entries, err := os.ReadDir(filepath.Join(s.opt.Dir, dir)); err != nil || len(entries) > 0 {
			t.Errorf("%s has %v, %v", dir, entries, err)
		}
	}
}

func TestDiffIDIsChecked(t *testing.T) {
	image := imageOf(t, tarOf(t, reg("x", "x")))
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	if _, err := s.Import(t.Context(), bytes.NewReader(ociArchive(t, "app:v1", image)), ""); !errors.Is(err, ErrDigest) {
		t.Errorf("got %v, want ErrDigest", err)
	}
	if entries, err := os.ReadDir(filepath.Join(s.opt.Dir, layersDir)); err != nil || len(entries) > 0 {
		t.Errorf("layers %v were kept, %v", entries, err)
	}
}

func TestHostileLayersStayInside(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Dir(secret)
	for title, layer := range map[string][]byte{
		"file through a symlink":     tarOf(t, sym("d", outside), reg("d/pwned", "x")),
		"file through a relative":    tarOf(t, sym("d", "../../../../../.."+outside), reg("d/pwned", "x")),
		"dots":                       tarOf(t, reg("../../../../../../.."+outside+"/pwned", "x")),
		"hard link":                  tarOf(t, hard("l", "../../../../../../.."+secret)),
		"hard link through a link":   tarOf(t, sym("d", outside), hard("l", "d/secret")),
		"whiteout through a symlink": tarOf(t, sym("d", outside), reg("d/.wh.secret", "")),
		"opaque through a symlink":   tarOf(t, sym("d", outside), reg("d/.wh..wh..opq", "")),
		"whiteout of dot dot":        tarOf(t, reg(".wh...", "")),
		"directory over a symlink":   tarOf(t, sym("d", outside), dir("d"), reg("d/pwned", "x")),
	} {
		t.Run(title, func(t *testing.T) {
			t.Log(extractTo(t, layer, t.TempDir()))
			entries, readErr := os.ReadDir(outside)
			content, err := os.ReadFile(secret)
			if readErr != nil || len(entries) != 1 || err != nil || string(content) != "secret" {
				t.Errorf("outside there is now %v, %v; the secret reads %q, %v", entries, readErr, content, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(secret, &st); err != nil || st.Nlink != 1 {
				t.Errorf("the secret has %d links, %v", st.Nlink, err)
			}
		})
	}
}

func TestOverlayAttributesAreDropped(t *testing.T) {
	f := reg("f", "x")
	f.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.note": "kept"}
	root := t.TempDir()
	if err := extractTo(t, tarOf(t, f), root); err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 16)
	if _, err := unix.Getxattr(filepath.Join(root, "f"), "trusted.overlay.redirect", value); !errors.Is(err, unix.ENODATA) {
		t.Errorf("trusted.overlay.redirect: %v, want none", err)
	}
	if n, err := unix.Getxattr(filepath.Join(root, "f"), "user.note", value); err != nil || string(value[:n]) != "kept" {
		t.Errorf("user.note: %v", err)
	}
}

func TestLimitsHold(t *testing.T) {
	archive := dockerArchive(t, "app:v1", imageOf(t, tarOf(t, reg("a", strings.Repeat("x", 4096)), reg("b", ""), reg("c", ""))))
	for name, limits := range map[string]Limits{
		"files": {MaxLayerFiles: 2}, "bytes": {MaxLayerBytes: 4096}, "blob": {MaxBlobBytes: 100},
	} {
		s := openStore(t)
		s.opt.Limits = Limits{MaxLayerFiles: 1000, MaxLayerBytes: 1 << 20, MaxBlobBytes: 1 << 20}.withDefaults()
		switch name {
		case "files":
			s.opt.Limits.MaxLayerFiles = limits.MaxLayerFiles
		case "bytes":
			s.opt.Limits.MaxLayerBytes = limits.MaxLayerBytes
		case "blob":
			s.opt.Limits.MaxBlobBytes = limits.MaxBlobBytes
		}
		if _, err := s.Import(t.Context(), bytes.NewReader(archive), ""); !errors.Is(err, ociarchive.ErrInvalid) {
			t.Errorf("limit of %s: %v, want ErrInvalid", name, err)
		}
		if entries, err := os.ReadDir(s.temp()); err != nil || len(entries) > 0 {
			t.Errorf("limit of %s: left %v, %v", name, entries, err)
		}
	}
}

func TestPruneKeepsWhatIsUsed(t *testing.T) {
	s := openStore(t)
	shared := tarOf(t, reg("shared", "s"))
	for ref, own := range map[string]string{"one:v1": "1", "two:v1": "2"} {
		archive := dockerArchive(t, ref, imageOf(t, shared, tarOf(t, reg("own", own))))
		if _, err := s.Import(t.Context(), bytes.NewReader(archive), ""); err != nil {
			t.Fatal(err)
		}
	}
	one, err := s.Resolve(t.Context(), "one:v1")
	if err != nil {
		t.Fatal(err)
	}
	removed, err := s.Prune(t.Context(), func(digest string) bool { return digest == one.Digest })
	if err != nil || len(removed) != 1 || removed[0] != "two:v1" {
		t.Errorf("removed %v, %v", removed, err)
	}
	again, err := s.Resolve(t.Context(), "one:v1")
	if err != nil || len(again.Layers) != 2 {
		t.Errorf("the image that was kept: %+v, %v", again, err)
	}
	if _, err := s.Resolve(t.Context(), "two:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the image that was not: %v", err)
	}
	layers, err := os.ReadDir(filepath.Join(s.opt.Dir, layersDir))
	if err != nil || len(layers) != 2 {
		t.Errorf("%d layers are left, %v, want 2", len(layers), err)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(tarOf(f, dir("d"), reg("d/f", "x"), sym("s", "d"), hard("h", "d/f"), reg("d/.wh.f", ""), reg("s/.wh..wh..opq", "")))
	f.Add(tarOf(f, sym("d", "/"), reg("d/tmp/pwned", "x")))
	f.Fuzz(func(t *testing.T, layer []byte) {
		parent := t.TempDir()
		root := filepath.Join(parent, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = extractTo(t, layer, root)
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Errorf("outside there is now %v, %v", entries, err)
		}
	})
}

func readAll(t testing.TB, r io.ReadCloser) []byte {
	t.Helper()
	content, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return content
}
