package image

import (
	"io"
	"log"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func BenchmarkBoth(b *testing.B) {
	server := httptest.NewServer(registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0))))
	b.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	var layers [][]byte
	for seed := range uint64(4) {
		layers = append(layers, benchLayer(b, seed+1, 50_000_000))
	}
	ref, err := name.ParseReference(host+"/bench:v1", name.Insecure)
	check(b, err)
	check(b, remote.Write(ref, imageOf(b, layers...)))
	b.Run("crane", func(b *testing.B) {
		for b.Loop() {
			dir := b.TempDir()
			out, err := exec.Command("sh", "-c", "/tmp/cranebuild/crane export "+ref.Name()+" - | tar -x -C "+dir).CombinedOutput()
			if err != nil {
				b.Fatal(string(out))
			}
		}
	})
	b.Run("balsa", func(b *testing.B) {
		for b.Loop() {
			p := registryPuller(b, plainHTTP(host))
			_, err := p.Pull(b.Context(), Request{Name: ref.Name()}, nil)
			check(b, err)
		}
	})
	b.Run("crane again", func(b *testing.B) {
		for b.Loop() {
			dir := b.TempDir()
			out, err := exec.Command("sh", "-c", "/tmp/cranebuild/crane export "+ref.Name()+" - | tar -x -C "+dir).CombinedOutput()
			if err != nil {
				b.Fatal(string(out))
			}
		}
	})
}
