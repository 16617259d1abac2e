package faults

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const specImage = "balsa/spec:1"

// imageForSpecs makes an archive of an image with a shell, users and groups, and
// a set-uid program.
func imageForSpecs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "specprog")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/specprog")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build specprog: %v\n%s", err, out)
	}
	files := specFiles(t, program)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil })
	must(t, err)
	image, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	file, err := image.ConfigFile()
	must(t, err)
	file = file.DeepCopy()
	file.Architecture, file.OS = runtime.GOARCH, "linux"
	file.Config = v1.Config{
		Entrypoint: []string{"sh", "-ec"}, Cmd: []string{"echo the image\\'s own"},
		Env: []string{"PATH=/bin", "IMAGE=yes"}, WorkingDir: "/work",
	}
	image, err = mutate.ConfigFile(image, file)
	must(t, err)
	tag, err := name.NewTag(specImage)
	must(t, err)
	archive := filepath.Join(dir, "spec.tar")
	must(t, tarball.WriteToFile(archive, tag, image))
	return archive
}

// specFiles is the image's only layer.
func specFiles(t *testing.T, program string) []byte {
	t.Helper()
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, dir := range []string{"bin", "etc", "mnt", "work"} {
		must(t, archive.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	must(t, archive.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}))
	write := func(path string, mode int64, text []byte) {
		t.Helper()
		err := archive.WriteHeader(&tar.Header{Name: path, Mode: mode, Size: int64(len(text))})
		_, writing := archive.Write(text)
		must(t, errors.Join(err, writing))
	}
	read := func(path string) []byte {
		t.Helper()
		text, err := os.ReadFile(path)
		must(t, err)
		return text
	}
	write("bin/busybox", 0o755, read("/bin/busybox"))
	write("bin/specprog", 0o755, read(program))
	write("bin/set-uid", 0o4755, read(program))
	write("etc/passwd", 0o644, []byte("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"))
	write("etc/group", 0o644, []byte("root:x:0:\napp:x:1000:\nmore:x:4444:app\n"))
	list, err := exec.CommandContext(t.Context(), "/bin/busybox", "--list").Output()
	must(t, err)
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			must(t, archive.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}))
		}
	}
	must(t, archive.Close())
	return out.Bytes()
}
