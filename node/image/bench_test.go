package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	registryserver "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/balsa-run/balsa/node/image/registry"
)

// benchLayer is a layer of files of mixed sizes that compress to about a third,
// as programs do.
func benchLayer(b *testing.B, seed uint64, bytesWanted int) []byte {
	b.Helper()
	random := rand.New(rand.NewPCG(seed, seed))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x", random.Uint64()>>random.IntN(40))
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for n := 0; out.Len() < bytesWanted; n++ {
		size := 1 << (8 + random.IntN(12))
		var content strings.Builder
		for content.Len() < size {
			content.WriteString(words[random.IntN(len(words))])
		}
		h := &tar.Header{Name: fmt.Sprintf("usr/share/d%d/e%d/f%d", seed, n/40, n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(content.Len())}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := io.WriteString(w, content.String()); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkPull pulls an image of 200 MB in four layers from a registry in this
// process, and unpacks it.
func BenchmarkPull(b *testing.B) {
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
	b.SetBytes(200_000_000)
	for b.Loop() {
		p := limitedPuller(b, plainHTTP(host), registry.DefaultLimits())
		_, err := p.Pull(b.Context(), Request{Name: ref.Name()}, nil)
		check(b, err)
	}
}
