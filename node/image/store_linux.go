// Package image is a node's image store: blobs by their digest, layers unpacked
// once into a directory each, and the names under which the node knows images.
// It turns a name into what a runtime needs: ordered layer directories and the
// image's defaults. What is missing comes from sources: other nodes, the
// servers, registries.
//
// It trusts none of them: digests are checked to the last byte before anything
// gets its final name, every path is confined by os.Root, and everything has a
// limit. It refuses to decide which images to keep: that is planned from what it
// tells, and what is in use, being fetched or just resolved never goes.
package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/runtime"
)

// What callers branch on.
var (
	// ErrNotFound: the node, or whoever was asked, does not know the image.
	ErrNotFound = errors.New("image not found")
	// ErrDigest: content does not have the digest by which it was asked for.
	ErrDigest = errors.New("digest mismatch")
	// ErrNoSpace: the disk is too full for the image.
	ErrNoSpace = errors.New("not enough disk space")
	// ErrUnreachable: nobody could be asked what a name means.
	ErrUnreachable = errors.New("nobody can be asked for the image")
	// ErrName: the name can be no image's.
	ErrName = errors.New("invalid image name")
	// ErrDenied: the node has the image, but the pod has not shown that it may run
	// it, and nobody may be asked.
	ErrDenied = errors.New("no access to the image")
)

// Limits bound what one image may cost, and all transfers together.
type Limits struct {
	// MaxLayerBytes of file content of one layer, MaxLayerFiles of its entries.
	MaxLayerBytes int64
	MaxLayerFiles int
	// MaxBlobBytes of a single blob, MaxImageBytes of all blobs of an image.
	MaxBlobBytes  int64
	MaxImageBytes int64
	// MinFreeBytes of the disk are left to others by every transfer and unpacking.
	MinFreeBytes int64
	// Transfers are layers that are fetched and unpacked at once.
	Transfers int
	// Resumes bounds how often a transfer that breaks goes on at one source, as
	// long as each time some of it comes.
	Resumes int
	// PartialAge is how long what came of a blob waits to be gone on with.
	PartialAge time.Duration
	// Linger is how long what was just pulled or resolved is kept, so that whoever
	// asked has the time to say that it is in use. Negative: not at all.
	Linger time.Duration
}

// DefaultLimits are generous: the largest public images stay below them.
func DefaultLimits() Limits {
	return Limits{
		MaxLayerBytes: 32 << 30, MaxLayerFiles: 1 << 20, MaxBlobBytes: ociarchive.MaxArchiveBytes, MaxImageBytes: 32 << 30,
		MinFreeBytes: 256 << 20, Transfers: 4, Resumes: 20, PartialAge: 24 * time.Hour, Linger: time.Minute,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.MaxLayerBytes = cmp.Or(l.MaxLayerBytes, d.MaxLayerBytes)
	l.MaxLayerFiles = cmp.Or(l.MaxLayerFiles, d.MaxLayerFiles)
	l.MaxBlobBytes = cmp.Or(l.MaxBlobBytes, d.MaxBlobBytes)
	l.MaxImageBytes = cmp.Or(l.MaxImageBytes, d.MaxImageBytes)
	l.MinFreeBytes = cmp.Or(l.MinFreeBytes, d.MinFreeBytes)
	l.Transfers = cmp.Or(l.Transfers, d.Transfers)
	l.Resumes = cmp.Or(l.Resumes, d.Resumes)
	l.PartialAge = cmp.Or(l.PartialAge, d.PartialAge)
	l.Linger = cmp.Or(l.Linger, d.Linger)
	return l
}

// Options of a store.
type Options struct {
	// Dir must be on a file system that can be a layer of an overlay.
	Dir string
	// Architecture chooses from images for several; "amd64" if empty.
	Architecture string
	// Limits; zero values take the defaults.
	Limits Limits
	// ResumePause is how long a transfer that broke waits; half a second if zero.
	ResumePause time.Duration
	Log         *slog.Logger
}

// Store is a directory:
//
//	blobs/HEX      manifests, configurations, compressed layers
//	layers/HEX/    by diff id
//	images/HEX     what a complete image is made of; its time is that of its last use
//	names/NAME     a manifest's digest
//	targets/NAME   what the name stood for where it was asked: perhaps an index
//	partial/HEX    what has come of a blob
//	meta/KIND-HEX  the size of a blob or layer, and whether it is safe on disk
//	tmp/           what is being written; emptied by Open
//	boot           the boot of the machine in which the store was used last
type Store struct {
	opt   Options
	slots chan struct{} // Limits.Transfers

	mu     sync.Mutex
	busy   map[string]chan struct{} // guarded by mu; blobs and layers being made
	leases map[string]*lease        // guarded by mu; by KIND/HEX

	flush flusher

	salt     []byte     // of the hashes of credentials
	accessMu sync.Mutex // held while who may run an image is written
}

const (
	blobsDir   = "blobs"
	layersDir  = "layers"
	imagesDir  = "images"
	namesDir   = "names"
	targetsDir = "targets"
	partialDir = "partial"
	metaDir    = "meta"
	tmpDir     = "tmp"
)

const defaultResumePause = 500 * time.Millisecond

// Open opens a store, making its directories. After the machine was booted anew,
// what was not safe on disk before is removed; what came of blobs is kept.
func Open(opt Options) (*Store, error) {
	opt.Limits = opt.Limits.withDefaults()
	opt.ResumePause = cmp.Or(opt.ResumePause, defaultResumePause)
	opt.Architecture = cmp.Or(opt.Architecture, "amd64")
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.RemoveAll(filepath.Join(opt.Dir, tmpDir)); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	for _, dir := range []string{blobsDir, layersDir, imagesDir, namesDir, targetsDir, partialDir, metaDir, accessDir, tmpDir} {
		if err := os.MkdirAll(filepath.Join(opt.Dir, dir), 0o711); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	// Layers have programs with set-uid bits and devices, which users of this
	// machine must not reach.
	if err := os.Chmod(opt.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{opt: opt, busy: map[string]chan struct{}{}, leases: map[string]*lease{}, slots: make(chan struct{}, opt.Limits.Transfers)}
	s.flush.store = s
	if err := s.openAccess(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return s, nil
}

// Close waits until what was fetched is safe on disk.
func (s *Store) Close() { s.flush.wait() }

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func (s *Store) path(kind, digest string) string {
	return filepath.Join(s.opt.Dir, kind, hexOf(digest))
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

// Put implements ociarchive.Blobs. The blob is kept for a while, until an image
// refers to it.
func (s *Store) Put(_ context.Context, r io.Reader) (ociarchive.Blob, error) {
	blob, err := s.put(r, s.opt.Limits.MaxBlobBytes, "")
	if err == nil {
		h := s.hold()
		h.add(blobsDir, blob.Digest)
		h.end()
	}
	return blob, err
}

// Import reads an archive, tar or tar.gz, and unpacks its images. A name
// replaces that of the archive's only image.
func (s *Store) Import(ctx context.Context, archive io.Reader, name string) ([]ociarchive.Image, error) {
	images, err := ociarchive.Import(ctx, archive, s, ociarchive.Options{Name: name, Architecture: s.opt.Architecture})
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	for _, image := range images {
		for _, name := range image.Names {
			if _, err := s.Transfer(ctx, Transfer{Name: name, Digest: image.Manifest.Digest}); err != nil {
				return nil, fmt.Errorf("import: %w", err)
			}
		}
	}
	return images, nil
}

// putDocument keeps a manifest or a configuration that is at hand.
func (s *Store) putDocument(content []byte, digest string) error {
	_, err := s.put(bytes.NewReader(content), ociarchive.MaxDocumentBytes, digest)
	return err
}

// put stores content under its digest; a digest that is given must be it.
func (s *Store) put(r io.Reader, maxBytes int64, want string) (ociarchive.Blob, error) {
	f, err := os.CreateTemp(s.temp(), "blob-")
	if err != nil {
		return ociarchive.Blob{}, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	w := newHashWriter(f)
	size, err := io.Copy(w, io.LimitReader(r, maxBytes+1))
	if err == nil && size > maxBytes {
		err = fmt.Errorf("blob has more than %d bytes: %w", maxBytes, ociarchive.ErrInvalid)
	}
	digest := w.digest()
	if err == nil && want != "" && digest != want {
		err = fmt.Errorf("blob %s: its %d bytes have digest %s: %w", want, size, digest, ErrDigest)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return ociarchive.Blob{}, noSpace(err)
	}
	return ociarchive.Blob{Digest: digest, Size: size}, s.keep(f.Name(), blobsDir, digest, size)
}

// Open implements ociarchive.Blobs.
func (s *Store) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	return s.openBlob(digest)
}

func (s *Store) openBlob(digest string) (*os.File, error) {
	if err := ociarchive.CheckDigest(digest); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(blobsDir, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", digest, ErrNotFound)
	}
	return f, err
}

// OpenBlob reads a blob from an offset on, for other nodes.
func (s *Store) OpenBlob(digest string, offset int64) (io.ReadCloser, error) {
	f, err := s.openBlob(digest)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("blob %s: offset %d: %w", digest, offset, err), f.Close())
	}
	return f, nil
}

// setName makes a name stand for a complete image, and remembers what the name
// stood for where it was asked.
func (s *Store) setName(name, digest, target string) error {
	if err := s.writeSmall(s.targetPath(name), []byte(cmp.Or(target, digest))); err != nil {
		return err
	}
	return s.writeSmall(s.namePath(name), []byte(digest))
}

// writeSmall replaces a file as a whole. After a crash of the machine it may be
// empty, which whoever reads it takes for not there.
func (s *Store) writeSmall(path string, content []byte) error {
	f, err := os.CreateTemp(s.temp(), "small-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return noSpace(err)
	}
	return os.Rename(f.Name(), path)
}

// namePath: a name holds slashes; escaped it may pass 255 bytes only where the
// repository alone nearly does, and the file system then says so.
func (s *Store) namePath(name string) string {
	return filepath.Join(s.opt.Dir, namesDir, url.PathEscape(name))
}

func (s *Store) targetPath(name string) string {
	return filepath.Join(s.opt.Dir, targetsDir, url.PathEscape(name))
}

// nameOf undoes namePath for people; a name that cannot be undone is shown as
// it is on disk.
func nameOf(file string) string {
	if name, err := url.PathUnescape(file); err == nil {
		return name
	}
	return file
}

func (s *Store) digestOfName(name string) (string, error) {
	content, err := os.ReadFile(s.namePath(name))
	if err == nil && ociarchive.CheckDigest(string(content)) == nil {
		return string(content), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("image %s: %w", name, err)
	}
	if _, digest, ok := strings.Cut(name, "@"); ok {
		return digest, nil
	}
	return "", fmt.Errorf("image %s: %w", name, ErrNotFound)
}

// targetOfName is what the name stood for when it was asked about last.
func (s *Store) targetOfName(name string) string {
	content, err := os.ReadFile(s.targetPath(name))
	if err != nil || ociarchive.CheckDigest(string(content)) != nil {
		return ""
	}
	return string(content)
}

// Resolve finds an image that the node has complete, by name or
// "repo@sha256:...". It asks nobody.
func (s *Store) Resolve(_ context.Context, name string) (runtime.Image, error) {
	normal, err := ociarchive.NormalizeName(name)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("%w: %w", ErrName, err)
	}
	digest, err := s.digestOfName(normal)
	if err != nil {
		return runtime.Image{}, err
	}
	image, _, err := s.local(digest)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("image %s: %w", normal, err)
	}
	return image, nil
}
