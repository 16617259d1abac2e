package software

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// sources are all that the images are made by: another byte, other images.
//
//go:embed debian_test.go images_test.go testdata/*.py
var sources embed.FS

// user ids of the images; Debian's packages choose theirs when they are
// installed.
const (
	userWeb      = 33
	userPostgres = 999
	userRedis    = 998
	userPython   = 65534
)

// recipe is how an image is made: Debian packages on those that every image has,
// and a few files.
type recipe struct {
	name     string
	packages []string
	files    []tar.Header // links and folders
	texts    map[string]string
	config   v1.Config
}

func basePackages() []string {
	return []string{"base-files", "base-passwd", "libc6", "libc-bin", "dash", "coreutils", "grep", "sed"}
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"

func recipes() []recipe {
	return []recipe{
		{
			name: "software/nginx:1", packages: []string{"nginx"},
			config: v1.Config{Entrypoint: []string{"nginx"}, Cmd: []string{"-g", "daemon off;"}, Env: []string{searchPath}, StopSignal: "SIGQUIT"},
		},
		{
			name: "software/postgres:1", packages: []string{"postgresql"},
			// The version is Debian's to choose; the links do not name it.
			config: v1.Config{
				Entrypoint: []string{"postgres"}, Env: []string{searchPath + ":/opt/postgresql/bin", "PGDATA=/var/lib/postgresql/data/main", "LANG=C.UTF-8"},
				User: "postgres", StopSignal: "SIGINT",
			},
		},
		{
			name: "software/redis:1", packages: []string{"redis-server"},
			config: v1.Config{Entrypoint: []string{"redis-server"}, Env: []string{searchPath}, User: "redis", WorkingDir: "/data"},
			files:  []tar.Header{{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: userRedis, Gid: userRedis}},
		},
		{
			name: "software/python:1", packages: []string{"python3-minimal", "libpython3-stdlib", "python3-grpcio"},
			config: v1.Config{
				Entrypoint: []string{"python3", "-u", "/srv/app.py"}, Env: []string{searchPath, "PYTHONDONTWRITEBYTECODE=1"},
				User: fmt.Sprint(userPython), WorkingDir: "/srv",
			},
			texts: map[string]string{"srv/app.py": "testdata/app.py"},
		},
		{
			name:   "software/shell:1",
			config: v1.Config{Entrypoint: []string{"sh"}, Env: []string{searchPath}},
		},
	}
}

// images returns an archive of all images, which it makes unless an earlier run
// did.
func images(t *testing.T) string {
	t.Helper()
	key, err := sourceKey()
	must(t, err)
	dir, err := cacheDir(key)
	must(t, err)
	archive := filepath.Join(dir, "images.tar")
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	started := time.Now()
	must(t, makeArchive(t.Context(), t.TempDir(), archive))
	t.Logf("images made in %v", time.Since(started).Round(time.Millisecond))
	return archive
}

func sourceKey() (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(sources, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := sources.ReadFile(path)
		sum.Write(text)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)[:8]), err
}

// maker makes images of packages in dir.
type maker struct {
	dir  string
	base []string // names of packages
	root v1.Layer
}

func makeArchive(ctx context.Context, dir, archive string) error {
	m, closures, err := newMaker(ctx, dir)
	if err != nil {
		return err
	}
	all := map[name.Tag]v1.Image{}
	for _, r := range recipes() {
		tag, err := name.NewTag(r.name)
		if err != nil {
			return err
		}
		if all[tag], err = m.image(ctx, r, closures[r.name]); err != nil {
			return fmt.Errorf("image %s: %w", r.name, err)
		}
	}
	// Another run may make the same at the same time.
	half := fmt.Sprintf("%s.%d", archive, os.Getpid())
	if err := errors.Join(tarball.MultiWriteToFile(half, all), ctx.Err()); err != nil {
		return errors.Join(err, os.Remove(half))
	}
	return os.Rename(half, archive)
}

// newMaker downloads the packages of all recipes.
func newMaker(ctx context.Context, dir string) (*maker, map[string][]string, error) {
	m := &maker{dir: dir}
	var err error
	if m.base, err = closure(ctx, basePackages(), nil); err != nil {
		return nil, nil, err
	}
	wanted, closures := slices.Clone(m.base), map[string][]string{}
	for _, r := range recipes() {
		if len(r.packages) == 0 {
			continue
		}
		if closures[r.name], err = closure(ctx, r.packages, m.base); err != nil {
			return nil, nil, err
		}
		wanted = append(wanted, closures[r.name]...)
	}
	slices.Sort(wanted)
	if err := download(ctx, dir, slices.Compact(wanted)); err != nil {
		return nil, nil, err
	}
	m.root, err = m.baseLayer(ctx)
	return m, closures, err
}

// layer makes a layer of what write puts into it.
func (m *maker) layer(write func(*tar.Writer) error) (v1.Layer, error) {
	file, err := os.CreateTemp(m.dir, "layer-*.tar")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	archive := tar.NewWriter(file)
	if err := errors.Join(write(archive), archive.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(file.Name(), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
}

// baseLayer is a small Debian: a C library, a shell, and the users that packages
// would have made.
func (m *maker) baseLayer(ctx context.Context) (v1.Layer, error) {
	passwd, err := readFromPackage(ctx, m.dir, "base-passwd", "usr/share/base-passwd/passwd.master")
	if err != nil {
		return nil, err
	}
	group, err := readFromPackage(ctx, m.dir, "base-passwd", "usr/share/base-passwd/group.master")
	if err != nil {
		return nil, err
	}
	for _, user := range []struct {
		name string
		id   int
	}{{"postgres", userPostgres}, {"redis", userRedis}} {
		passwd = fmt.Appendf(passwd, "%s:x:%d:%d::/nonexistent:/bin/sh\n", user.name, user.id, user.id)
		group = fmt.Appendf(group, "%s:x:%d:\n", user.name, user.id)
	}
	return m.layer(func(out *tar.Writer) error {
		if err := layerOfPackages(ctx, m.dir, m.base, out); err != nil {
			return err
		}
		for _, top := range mergedTops() {
			if err := writeLink(out, top, "usr/"+top); err != nil {
				return err
			}
		}
		return errors.Join(writeLink(out, "usr/bin/sh", "dash"), writeText(out, "etc/passwd", passwd), writeText(out, "etc/group", group))
	})
}

func (m *maker) image(ctx context.Context, r recipe, packages []string) (v1.Image, error) {
	layers := []v1.Layer{m.root}
	if len(packages) > 0 {
		layer, err := m.layer(func(out *tar.Writer) error { return layerOfPackages(ctx, m.dir, packages, out) })
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	own, err := m.layer(func(out *tar.Writer) error { return r.writeFiles(out, packages) })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, append(layers, own)...)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = runtime.GOARCH, "linux", r.config
	return mutate.ConfigFile(image, file)
}

// writeFiles writes what an image has beside packages.
func (r recipe) writeFiles(out *tar.Writer, packages []string) error {
	for _, header := range r.files {
		header.ModTime = time.Unix(0, 0)
		if err := out.WriteHeader(&header); err != nil {
			return err
		}
	}
	for path, source := range r.texts {
		text, err := sources.ReadFile(source)
		if err != nil {
			return err
		}
		if err := writeText(out, path, text); err != nil {
			return err
		}
	}
	for _, name := range packages {
		if version, ok := strings.CutPrefix(name, "postgresql-"); ok && !strings.HasPrefix(version, "client") {
			return writeLink(out, "opt/postgresql", "/usr/lib/postgresql/"+version)
		}
	}
	return nil
}

func writeLink(out *tar.Writer, path, target string) error {
	return out.WriteHeader(&tar.Header{Name: path, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777, ModTime: time.Unix(0, 0)})
}

func writeText(out *tar.Writer, path string, text []byte) error {
	err := out.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(0, 0)})
	if err != nil {
		return err
	}
	_, err = bytes.NewReader(text).WriteTo(out)
	return err
}
