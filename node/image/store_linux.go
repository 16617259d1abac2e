// Package image is a node's image store: blobs by their digest, layers unpacked
// once into a directory each, and the names under which the node knows images.
// It turns a name into what a runtime needs: ordered layer directories and the
// image's defaults. Blobs that are missing come through a Fetcher.
//
// It trusts no archive: digests are checked to the last byte before anything
// is renamed into place, every path is confined by os.Root, and everything has
// a limit. It refuses to decide which images to keep: Prune is told.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/runtime"
)

// ErrNotFound: the node does not know the image, or lacks a blob of it.
var ErrNotFound = errors.New("image not found")

// ErrDigest: content does not have the digest by which it was asked for.
var ErrDigest = errors.New("digest mismatch")

// Limits bound what one layer may unpack to.
type Limits struct {
	// MaxLayerBytes of file content and MaxLayerFiles of entries.
	MaxLayerBytes int64
	MaxLayerFiles int
	// MaxBlobBytes of a single blob.
	MaxBlobBytes int64
}

// DefaultLimits are generous: the largest public images stay below them.
func DefaultLimits() Limits {
	return Limits{MaxLayerBytes: 32 << 30, MaxLayerFiles: 1 << 20, MaxBlobBytes: ociarchive.MaxArchiveBytes}
}

// Options of a store.
type Options struct {
	// Dir must be on a file system that can be a layer of an overlay.
	Dir string
	// Architecture chooses from images for several; "amd64" if empty.
	Architecture string
	// Limits; zero values take the defaults.
	Limits Limits
	Log    *slog.Logger
}

// Store is a directory:
//
//	blobs/HEX     manifests and configurations; layers until they are unpacked
//	layers/HEX/   by diff id
//	names/NAME    a manifest's digest
//	tmp/          what is being written; emptied by Open
type Store struct {
	opt Options

	// use is held for reading by whoever adds or resolves, for writing by
	// Prune: what was just fetched is not pruned before it is referred to.
	use sync.RWMutex

	mu   sync.Mutex
	busy map[string]chan struct{} // guarded by mu; blobs and layers being made
}

const (
	blobsDir  = "blobs"
	layersDir = "layers"
	namesDir  = "names"
	tmpDir    = "tmp"
)

// Open opens a store, making its directories.
func Open(opt Options) (*Store, error) {
	defaults := DefaultLimits()
	if opt.Limits.MaxLayerBytes == 0 {
		opt.Limits.MaxLayerBytes = defaults.MaxLayerBytes
	}
	if opt.Limits.MaxLayerFiles == 0 {
		opt.Limits.MaxLayerFiles = defaults.MaxLayerFiles
	}
	if opt.Limits.MaxBlobBytes == 0 {
		opt.Limits.MaxBlobBytes = defaults.MaxBlobBytes
	}
	if err := os.RemoveAll(filepath.Join(opt.Dir, tmpDir)); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	for _, dir := range []string{blobsDir, layersDir, namesDir, tmpDir} {
		if err := os.MkdirAll(filepath.Join(opt.Dir, dir), 0o711); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	return &Store{opt: opt, busy: map[string]chan struct{}{}}, nil
}

func (s *Store) path(kind, digest string) string {
	return filepath.Join(s.opt.Dir, kind, strings.TrimPrefix(digest, "sha256:"))
}

func (s *Store) temp() string { return filepath.Join(s.opt.Dir, tmpDir) }

// once runs build for a key, unless somebody else just does: then it waits and
// looks whether the result is there.
func (s *Store) once(ctx context.Context, key string, there func() bool, build func() error) error {
	for !there() {
		turn, mine := s.claim(key)
		if mine {
			defer s.release(key, turn)
			if there() {
				return nil
			}
			return build()
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", key, context.Cause(ctx))
		}
	}
	return nil
}

func (s *Store) claim(key string) (chan struct{}, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if turn, ok := s.busy[key]; ok {
		return turn, false
	}
	turn := make(chan struct{})
	s.busy[key] = turn
	return turn, true
}

func (s *Store) release(key string, turn chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, key)
	close(turn)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Put implements ociarchive.Blobs.
func (s *Store) Put(_ context.Context, r io.Reader) (ociarchive.Blob, error) {
	return s.put(r, s.opt.Limits.MaxBlobBytes, "")
}

// put stores content under its digest; a digest that is given must be it.
func (s *Store) put(r io.Reader, maxBytes int64, want string) (ociarchive.Blob, error) {
	f, err := os.CreateTemp(s.temp(), "blob-")
	if err != nil {
		return ociarchive.Blob{}, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, maxBytes+1))
	if err == nil && size > maxBytes {
		err = fmt.Errorf("blob has more than %d bytes: %w", maxBytes, ociarchive.ErrInvalid)
	}
	digest := digestOf(sum)
	if err == nil && want != "" && digest != want {
		err = fmt.Errorf("blob %s: its %d bytes have digest %s: %w", want, size, digest, ErrDigest)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return ociarchive.Blob{}, err
	}
	if err := os.Rename(f.Name(), s.path(blobsDir, digest)); err != nil {
		return ociarchive.Blob{}, err
	}
	return ociarchive.Blob{Digest: digest, Size: size}, nil
}

func digestOf(sum hash.Hash) string { return "sha256:" + hex.EncodeToString(sum.Sum(nil)) }

// Open implements ociarchive.Blobs.
func (s *Store) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	if err := ociarchive.CheckDigest(digest); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(blobsDir, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", digest, ErrNotFound)
	}
	return f, err
}

// Import reads an archive, tar or tar.gz, and unpacks its images. A name
// replaces that of the archive's only image.
func (s *Store) Import(ctx context.Context, archive io.Reader, name string) ([]ociarchive.Image, error) {
	s.use.RLock()
	defer s.use.RUnlock()
	images, err := ociarchive.Import(ctx, archive, s, ociarchive.Options{Name: name, Architecture: s.opt.Architecture})
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	for _, image := range images {
		if _, err := s.assemble(ctx, image.Manifest.Digest, nothing{}); err != nil {
			return nil, fmt.Errorf("import image %s: %w", image.Names[0], err)
		}
		for _, name := range image.Names {
			if err := s.setName(name, image.Manifest.Digest); err != nil {
				return nil, fmt.Errorf("import image %s: %w", name, err)
			}
		}
	}
	return images, nil
}

// setName is atomic and durable: a name never points at half an image, since
// the image is complete before.
func (s *Store) setName(name, digest string) error {
	f, err := os.CreateTemp(s.temp(), "name-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(digest)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.namePath(name))
}

// namePath: a name holds slashes; escaped it may pass 255 bytes only where the
// repository alone nearly does, and the file system then says so.
func (s *Store) namePath(name string) string {
	return filepath.Join(s.opt.Dir, namesDir, url.PathEscape(name))
}

func (s *Store) digestOfName(name string) (string, error) {
	if _, digest, ok := strings.Cut(name, "@"); ok {
		return digest, nil
	}
	content, err := os.ReadFile(s.namePath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("image %s: %w", name, err)
	}
	return string(content), ociarchive.CheckDigest(string(content))
}

// Resolve finds an image that the node has, by name or "repo@sha256:...".
func (s *Store) Resolve(ctx context.Context, name string) (runtime.Image, error) {
	return s.ensure(ctx, name, nothing{})
}

// nothing fetches nothing.
type nothing struct{}

func (nothing) Manifest(_ context.Context, name string) (string, []byte, error) {
	return "", nil, fmt.Errorf("image %s: %w", name, ErrNotFound)
}

func (nothing) Blob(_ context.Context, digest string) (io.ReadCloser, error) {
	return nil, fmt.Errorf("blob %s: %w", digest, ErrNotFound)
}
