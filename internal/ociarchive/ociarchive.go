// Package ociarchive reads image archives: what "docker save", "podman save"
// and "skopeo copy oci-archive:" write, as a tar stream, gzipped or not. It
// streams: blobs go to a store as they come, and nothing but small JSON files
// is held in memory. It checks that every image is complete and what it says
// it is, and unpacks nothing. It builds for wasip1 and touches no file itself.
package ociarchive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Limits on what an archive may hold.
const (
	// MaxArchiveBytes of tar stream, after decompression.
	MaxArchiveBytes = 16 << 30
	// MaxEntries of the archive itself, not of the layers in it.
	MaxEntries = 20_000
	// MaxImages in one archive.
	MaxImages = 64
	// MaxLayers of one image; the kernel stacks no more.
	MaxLayers = 500
	// MaxDocumentBytes of a manifest, an index or a configuration.
	MaxDocumentBytes = 4 << 20
	// MaxIndexDepth is how deep indexes may nest.
	MaxIndexDepth = 4
	// MaxConfigStrings are variables and arguments of a configuration.
	MaxConfigStrings = 10_000
	// MaxIndexEntries of one index.
	MaxIndexEntries = 256
)

// ErrInvalid: the archive can never be imported as it is.
var ErrInvalid = errors.New("invalid image archive")

// Blob is one piece of an image by its content.
type Blob struct {
	// Digest is "sha256:" and 64 hexadecimal digits.
	Digest    string
	Size      int64
	MediaType string
}

// Blobs is where an import puts blobs and finds them again.
type Blobs interface {
	// Put stores what r holds up to its end and returns its digest and size.
	// It stores nothing when r fails.
	Put(ctx context.Context, r io.Reader) (Blob, error)
	// Open reads a blob that was put before.
	Open(ctx context.Context, digest string) (io.ReadCloser, error)
}

// Image is one image of an archive.
type Image struct {
	// Names as NormalizeName writes them, sorted. There is at least one.
	Names    []string
	Manifest Blob
	Config   Blob
	// Layers, lowest first.
	Layers []Blob
}

// Blobs lists the image's distinct blobs, manifest first.
func (i Image) Blobs() []Blob {
	var out []Blob
	for _, b := range append([]Blob{i.Manifest, i.Config}, i.Layers...) {
		if !slices.ContainsFunc(out, func(have Blob) bool { return have.Digest == b.Digest }) {
			out = append(out, b)
		}
	}
	return out
}

// Size is that of the image's blobs as they are stored.
func (i Image) Size() int64 {
	size := int64(0)
	for _, b := range i.Blobs() {
		size += b.Size
	}
	return size
}

// Options of an import.
type Options struct {
	// Name replaces the names that the archive gives to its only image; it is
	// needed when the archive gives none.
	Name string
	// Architecture chooses from images for several; "amd64" if empty.
	Architecture string
}

// Import reads an archive to its end. On an error blobs may have been put that
// no image refers to.
func Import(ctx context.Context, r io.Reader, blobs Blobs, opt Options) ([]Image, error) {
	if opt.Architecture == "" {
		opt.Architecture = "amd64"
	}
	stream, err := decompress(r)
	if err != nil {
		return nil, err
	}
	in := &importer{ctx: ctx, blobs: blobs, opt: opt, entries: map[string]entry{}}
	if err := in.readAll(stream); err != nil {
		return nil, err
	}
	images, err := in.images()
	if err != nil {
		return nil, err
	}
	return in.named(images)
}

// decompress looks at the first bytes; anything but gzip is taken for tar.
func decompress(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(2)
	if err != nil {
		return nil, fmt.Errorf("read the archive: it is empty or cut: %w: %w", err, ErrInvalid)
	}
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("read the archive: %w: %w", err, ErrInvalid)
	}
	return z, nil
}

// importer holds what one import has read.
type importer struct {
	ctx     context.Context
	blobs   Blobs
	opt     Options
	entries map[string]entry // by clean path in the archive
}

// entry is one file of the archive: its blob, or the path that a link leads to.
type entry struct {
	blob Blob
	link string
}

// limitedReader fails, where io.LimitedReader would end.
type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("the archive has more than %d bytes: %w", int64(MaxArchiveBytes), ErrInvalid)
	}
	return n, err
}

func (in *importer) readAll(stream io.Reader) error {
	limited := &limitedReader{r: stream, left: MaxArchiveBytes}
	archive := tar.NewReader(limited)
	for n := 0; ; n++ {
		if err := in.ctx.Err(); err != nil {
			return fmt.Errorf("read the archive: %w", context.Cause(in.ctx))
		}
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: entry %d: %w: %w", n, err, ErrInvalid)
		}
		if n >= MaxEntries {
			return fmt.Errorf("read the archive: more than %d entries: %w", MaxEntries, ErrInvalid)
		}
		if err := in.readEntry(header, archive); err != nil {
			return fmt.Errorf("read the archive: entry %q: %w", header.Name, err)
		}
	}
	// What follows the last entry is read too: a cut gzip stream shows there.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return fmt.Errorf("read the archive: %w: %w", err, ErrInvalid)
	}
	return nil
}

func (in *importer) readEntry(h *tar.Header, content io.Reader) error {
	name := cleanPath(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink:
		in.entries[name] = entry{link: cleanPath(path.Join(path.Dir(name), h.Linkname))}
		return nil
	case tar.TypeLink:
		in.entries[name] = entry{link: cleanPath(h.Linkname)}
		return nil
	default:
		return nil
	}
	source := &failingReader{r: content}
	blob, err := in.blobs.Put(in.ctx, source)
	if source.err != nil {
		return fmt.Errorf("%w: %w", source.err, ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if want, ok := blobPath(name); ok && want != blob.Digest {
		return fmt.Errorf("its content has digest %s: %w", blob.Digest, ErrInvalid)
	}
	in.entries[name] = entry{blob: blob}
	return nil
}

// failingReader remembers whether the archive or the store was at fault.
type failingReader struct {
	r   io.Reader
	err error
}

func (f *failingReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// cleanPath makes a name relative to the archive's root; it is only a key.
func cleanPath(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// blobPath reads "blobs/sha256/HEX".
func blobPath(name string) (string, bool) {
	hex, ok := strings.CutPrefix(name, "blobs/sha256/")
	if !ok {
		return "", false
	}
	digest := "sha256:" + hex
	return digest, CheckDigest(digest) == nil
}

// CheckDigest accepts "sha256:" and 64 lower-case hexadecimal digits.
func CheckDigest(digest string) error {
	h, err := v1.NewHash(digest)
	if err != nil || h.Algorithm != "sha256" || strings.ToLower(h.Hex) != h.Hex {
		return fmt.Errorf("digest %q: want sha256: and 64 lower-case hexadecimal digits: %w", digest, ErrInvalid)
	}
	return nil
}

// find follows links, a bounded number of them.
func (in *importer) find(name string) (Blob, bool) {
	const maxLinks = 8
	for range maxLinks {
		e, ok := in.entries[cleanPath(name)]
		if !ok {
			return Blob{}, false
		}
		if e.link == "" {
			return e.blob, true
		}
		name = e.link
	}
	return Blob{}, false
}

// document reads a small file of the archive.
func (in *importer) document(b Blob) ([]byte, error) {
	if b.Size > MaxDocumentBytes {
		return nil, fmt.Errorf("document %s has %d bytes, at most %d are allowed: %w", b.Digest, b.Size, MaxDocumentBytes, ErrInvalid)
	}
	r, err := in.blobs.Open(in.ctx, b.Digest)
	if err != nil {
		return nil, fmt.Errorf("read document %s: %w", b.Digest, err)
	}
	content, err := io.ReadAll(io.LimitReader(r, MaxDocumentBytes+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read document %s: %w", b.Digest, err)
	}
	return content, nil
}
