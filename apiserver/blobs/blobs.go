// Package blobs keeps image blobs in a directory, by their digest:
//
//	<dir>/sha256/<64 hex digits>
//
// A blob is there whole and durable, or not at all: it is written aside, its
// digest checked, synced, renamed. Nothing is ever changed.
//
// It refuses other digests than SHA-256, and to know what a blob means, who
// refers to it, or when it may go: Remove is for whoever knows that.
package blobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/balsa-run/balsa/internal/atomicfile"
)

// ErrDigest marks a digest that is malformed, or that a blob's content does not
// have.
var ErrDigest = errors.New("bad digest")

// ErrTooLarge marks a blob beyond the limit that Put was given.
var ErrTooLarge = errors.New("blob too large")

const (
	algorithm = "sha256"
	hexLen    = 2 * sha256.Size
	blobMode  = 0o600
)

// Dir is a directory of blobs. Its methods may be called at the same time.
type Dir struct{ root string }

// Open makes the directory if need be and removes what interrupted writes left.
func Open(root string) (*Dir, error) {
	d := &Dir{root: filepath.Join(root, algorithm)}
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	if _, err := atomicfile.RemoveTemps(d.root); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	return d, nil
}

// path checks the digest, so that no name leads out of the directory.
func (d *Dir) path(digest string) (string, error) {
	name, ok := strings.CutPrefix(digest, algorithm+":")
	if !ok || len(name) != hexLen || strings.Trim(name, "0123456789abcdef") != "" {
		if len(digest) > 80 {
			digest = digest[:80] + "…"
		}
		return "", fmt.Errorf("%w: found %q, allowed: sha256: and %d lower-case hex digits", ErrDigest, digest, hexLen)
	}
	return filepath.Join(d.root, name), nil
}

// Stat tells the size of a blob, and whether it is here.
func (d *Dir) Stat(digest string) (size int64, ok bool, err error) {
	path, err := d.path(digest)
	if err != nil {
		return 0, false, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("stat blob: %w", err)
	}
	return info.Size(), true, nil
}

// Open reads a blob from an offset.
func (d *Dir) Open(digest string, offset int64) (io.ReadCloser, error) {
	path, err := d.path(digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("open blob %s at %d: %w", digest, offset, err), f.Close())
	}
	return f, nil
}

// Put keeps what r gives, if it has the digest and at most limit bytes. A blob
// that is there already is left as it is, and r is not read.
func (d *Dir) Put(ctx context.Context, digest string, r io.Reader, limit int64) (int64, error) {
	path, err := d.path(digest)
	if err != nil {
		return 0, err
	}
	if size, ok, err := d.Stat(digest); err != nil || ok {
		return size, err
	}
	check := &checked{ctx: ctx, r: r, hash: sha256.New(), digest: digest, limit: limit}
	if err := atomicfile.WriteFrom(path, check, blobMode); err != nil {
		return 0, fmt.Errorf("put blob %s: %w", digest, err)
	}
	return check.size, nil
}

// Info is what List tells of a blob.
type Info struct {
	Digest string
	Size   int64
	// Modified is when it came.
	Modified time.Time
}

// List tells of all blobs; one that comes or goes meanwhile may be left out.
func (d *Dir) List() ([]Info, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	var all []Info
	for _, e := range entries {
		digest := algorithm + ":" + e.Name()
		if _, err := d.path(digest); err != nil {
			continue // being written
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		all = append(all, Info{Digest: digest, Size: info.Size(), Modified: info.ModTime()})
	}
	return all, nil
}

// Remove forgets a blob; one that is not there is fine.
func (d *Dir) Remove(digest string) error {
	path, err := d.path(digest)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob: %w", err)
	}
	return nil
}

// checked passes content on and fails, in place of its end, when that is not
// what the digest says: so the file is never renamed into place.
type checked struct {
	ctx    context.Context //nolint:containedctx // a reader has no other way to be told to stop
	r      io.Reader
	hash   hash.Hash
	digest string
	size   int64
	limit  int64
}

func (c *checked) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.hash.Write(p[:n])
	if c.size += int64(n); c.size > c.limit {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, c.limit)
	}
	if errors.Is(err, io.EOF) {
		if got := algorithm + ":" + hex.EncodeToString(c.hash.Sum(nil)); got != c.digest {
			return 0, fmt.Errorf("%w: the content has %s", ErrDigest, got)
		}
	}
	return n, err
}
