// Image makes an OCI archive with one static program in it: the image that
// the demo, the tests and the benchmarks run. Equal input gives equal bytes.
//
//	go run ./examples/image -name balsa/echo:1 -out echo.tar PROGRAM
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	log.SetFlags(0)
	image := flag.String("name", "balsa/echo:1", "the image's name")
	out := flag.String("out", "echo.tar", "the archive to write")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: image [-name NAME] [-out FILE] PROGRAM")
	}
	if err := write(*image, *out, flag.Arg(0)); err != nil {
		log.Fatalf("image: %v", err)
	}
}

func write(image, out, program string) error {
	tag, err := name.NewTag(image)
	if err != nil {
		return fmt.Errorf("name %q: %w", image, err)
	}
	built, err := build(program)
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(out, tag, built); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return nil
}

func build(program string) (v1.Image, error) {
	base, err := layerOf(program)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(base)), nil })
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("append the layer: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = runtime.GOARCH, "linux"
	file.Config = v1.Config{Entrypoint: []string{"/" + filepath.Base(program)}, Env: []string{"PATH=/"}, User: "65534:65534"}
	return mutate.ConfigFile(image, file)
}

func layerOf(program string) ([]byte, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	epoch := time.Unix(0, 0)
	entries := []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: epoch},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: epoch},
		{Name: filepath.Base(program), Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text)), ModTime: epoch},
	}
	for i := range entries {
		if err := archive.WriteHeader(&entries[i]); err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
	}
	if _, err := archive.Write(text); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return out.Bytes(), archive.Close()
}
