package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/runtime"
)

// record is what a complete image is made of: images/HEX, by its manifest.
type record struct {
	Manifest string        `json:"manifest"`
	Config   string        `json:"config"`
	Layers   []recordLayer `json:"layers"`
}

type recordLayer struct {
	Blob   string `json:"blob"`
	Size   int64  `json:"size"`
	DiffID string `json:"diffID"`
}

// part names one blob, layer or image of the store.
type part struct{ kind, hex string }

func (r *record) parts() []part {
	out := []part{{imagesDir, hexOf(r.Manifest)}, {blobsDir, hexOf(r.Manifest)}, {blobsDir, hexOf(r.Config)}}
	for _, l := range r.Layers {
		out = append(out, part{layersDir, hexOf(l.DiffID)}, part{blobsDir, hexOf(l.Blob)})
	}
	return out
}

func newRecord(digest string, manifest *v1.Manifest, config *v1.ConfigFile) *record {
	r := &record{Manifest: digest, Config: manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		r.Layers = append(r.Layers, recordLayer{Blob: l.Digest.String(), Size: l.Size, DiffID: config.RootFS.DiffIDs[i].String()})
	}
	return r
}

// recordOf reads a record; images of an earlier version have none, it is made of
// their documents then.
func (s *Store) recordOf(digest string) (*record, error) {
	content, err := os.ReadFile(s.path(imagesDir, digest))
	r := &record{}
	if err == nil && json.Unmarshal(content, r) == nil && r.Manifest == digest && len(r.Layers) > 0 {
		return r, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	manifest, config, err := s.documents(digest)
	if err != nil {
		return nil, err
	}
	return newRecord(digest, manifest, config), nil
}

func (s *Store) writeRecord(r *record) error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.writeSmall(s.path(imagesDir, r.Manifest), content)
}

// documents reads the manifest and the configuration that the node has.
func (s *Store) documents(digest string) (*v1.Manifest, *v1.ConfigFile, error) {
	content, err := s.document(digest)
	if err != nil {
		return nil, nil, err
	}
	manifest, err := ociarchive.ParseManifest(content)
	if err != nil {
		return nil, nil, err
	}
	if content, err = s.document(manifest.Config.Digest.String()); err != nil {
		return nil, nil, err
	}
	config, err := ociarchive.ParseConfig(content, manifest)
	return manifest, config, err
}

// document reads a small blob that the node has.
func (s *Store) document(digest string) ([]byte, error) {
	r, err := s.openBlob(digest)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, ociarchive.MaxDocumentBytes+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	if len(content) > ociarchive.MaxDocumentBytes {
		return nil, fmt.Errorf("blob %s is too big for a document, at most %d bytes are allowed: %w", digest, ociarchive.MaxDocumentBytes, ociarchive.ErrInvalid)
	}
	return content, nil
}

// local describes an image that the node has complete, and notes its use.
func (s *Store) local(digest string) (runtime.Image, *record, error) {
	h := s.hold()
	defer h.end()
	if err := ociarchive.CheckDigest(digest); err != nil {
		return runtime.Image{}, nil, err
	}
	h.add(imagesDir, digest)
	h.add(blobsDir, digest)
	r, err := s.recordOf(digest)
	if err != nil {
		return runtime.Image{}, nil, err
	}
	h.image(r)
	for _, l := range r.Layers {
		if !exists(s.path(layersDir, l.DiffID)) {
			return runtime.Image{}, nil, fmt.Errorf("layer %s of image %s: %w", l.DiffID, digest, ErrNotFound)
		}
	}
	_, config, err := s.documents(digest)
	if err != nil {
		return runtime.Image{}, nil, err
	}
	if err := s.used(r); err != nil {
		return runtime.Image{}, nil, err
	}
	return s.describe(r, config), r, nil
}

// used notes that an image is used now.
func (s *Store) used(r *record) error {
	path, now := s.path(imagesDir, r.Manifest), time.Now()
	err := os.Chtimes(path, now, now)
	if errors.Is(err, fs.ErrNotExist) {
		return s.writeRecord(r)
	}
	return err
}

func (s *Store) describe(r *record, config *v1.ConfigFile) runtime.Image {
	image := runtime.Image{
		Digest: r.Manifest, Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env,
		WorkingDir: config.Config.WorkingDir, User: config.Config.User, StopSignal: config.Config.StopSignal,
	}
	for _, l := range r.Layers {
		image.Layers = append(image.Layers, s.path(layersDir, l.DiffID))
	}
	image.Layers = dropRepeated(image.Layers)
	return image
}

// dropRepeated keeps the topmost of equal layers: an overlay refuses the same
// directory twice, and a layer applied again changes nothing below it.
func dropRepeated(layers []string) []string {
	seen := map[string]bool{}
	var kept []string
	for i := len(layers) - 1; i >= 0; i-- {
		if !seen[layers[i]] {
			seen[layers[i]] = true
			kept = append([]string{layers[i]}, kept...)
		}
	}
	return kept
}

// sizeOf is what an image takes on this node's disk: its layers unpacked, and
// what is kept of its blobs.
func (s *Store) sizeOf(r *record) int64 {
	total, seen := int64(0), map[part]bool{}
	for _, p := range r.parts() {
		if !seen[p] {
			seen[p] = true
			total += s.partSize(p)
		}
	}
	return total
}

// partSize is 0 for what is not there.
func (s *Store) partSize(p part) int64 {
	path := filepath.Join(s.opt.Dir, p.kind, p.hex)
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return 0
	case !info.IsDir():
		return info.Size()
	}
	size, _ := s.meta(p.kind, p.hex)
	return size
}

// isDigestName tells names whose meaning cannot change.
func isDigestName(name string) bool { return strings.Contains(name, "@") }
