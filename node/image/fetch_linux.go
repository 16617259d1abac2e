package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/ociarchive"
)

// hashWriter hashes what it writes.
type hashWriter struct {
	w   io.Writer
	sum hash.Hash
}

func newHashWriter(w io.Writer) *hashWriter { return &hashWriter{w: w, sum: sha256.New()} }

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.sum.Write(p[:n])
	return n, err
}

func (h *hashWriter) digest() string { return digestOf(h.sum) }

func digestOf(sum hash.Hash) string { return "sha256:" + hex.EncodeToString(sum.Sum(nil)) }

const (
	copyBytes = 256 << 10
	// barrenAttempts at one source without a byte coming end the asking there.
	barrenAttempts = 3
	// spaceEvery is how much is written between two looks at the free space.
	spaceEvery = 64 << 20
)

// blob fetches a blob that is not there. grow, if there is one, follows.
func (t *transfer) blob(ctx context.Context, digest string, size int64, grow *growing) error {
	s := t.store
	there := func() bool { return exists(s.path(blobsDir, digest)) }
	return s.once(ctx, digest, there, func() error {
		t.begin()
		d, err := t.openDownload(digest, size, grow)
		if err != nil {
			return err
		}
		err = t.fromAny(ctx, func(from Source) error { return d.from(ctx, from) })
		return d.finish(err)
	})
}

// download is one blob on its way, in a file that the next try goes on with.
type download struct {
	t      *transfer
	digest string
	size   int64
	grow   *growing
	file   *os.File
	sum    hash.Hash
	have   int64
	// old is what was there when the source that is asked now began: from another
	// source, or an earlier download.
	old int64
	// unchecked is what was written since the free space was looked at.
	unchecked int64
}

func (t *transfer) openDownload(digest string, size int64, grow *growing) (*download, error) {
	file, err := os.OpenFile(t.store.path(partialDir, digest), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, noSpace(err)
	}
	d := &download{t: t, digest: digest, size: size, grow: grow, file: file, sum: sha256.New()}
	if d.have, err = io.Copy(d.sum, io.LimitReader(file, size+1)); err == nil && d.have > size {
		err = d.restart()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	d.count(d.have)
	if grow != nil {
		grow.opened(file, d.have)
	}
	return d, nil
}

// count tells of layers alone: they are what progress is measured by.
func (d *download) count(bytes int64) {
	if d.grow != nil {
		d.t.count(bytes)
	}
}

// restart forgets what came.
func (d *download) restart() error {
	d.count(-d.have)
	d.have, d.old = 0, 0
	d.sum.Reset()
	if d.grow != nil {
		d.grow.restarted()
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return errors.Join(err, d.file.Truncate(0))
}

// from fetches the rest from one source, going on where a stream breaks.
func (d *download) from(ctx context.Context, source Source) error {
	limits, barren := d.t.store.opt.Limits, 0
	d.old = d.have
	for attempt := 0; ; attempt++ {
		before := d.have
		err := d.stream(ctx, source)
		if err == nil {
			err = d.check()
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrDigest) && d.old > 0:
			// What was there before may be at fault.
			if err := d.restart(); err != nil {
				return err
			}
			continue
		case errors.Is(err, ErrDigest):
			return errors.Join(err, d.restart())
		case ctx.Err() != nil, errors.Is(err, ErrNoSpace), errors.Is(err, errOpen):
			return err
		}
		if barren++; d.have > before {
			barren = 0
		}
		if barren >= barrenAttempts || attempt >= limits.Resumes {
			return fmt.Errorf("after %d of %d bytes: %w", d.have, d.size, err)
		}
		if err := sleep(ctx, d.t.store.opt.ResumePause); err != nil {
			return err
		}
	}
}

// errOpen marks a source that did not even begin: it has tried as often as it
// deems right.
var errOpen = errors.New("cannot be fetched")

func (d *download) stream(ctx context.Context, source Source) error {
	if d.have == d.size {
		return nil
	}
	body, err := source.Blob(ctx, d.digest, d.have)
	if err != nil {
		return fmt.Errorf("blob %s %w: %w", d.digest, errOpen, err)
	}
	err = d.copy(ctx, body)
	return errors.Join(err, body.Close())
}

func (d *download) copy(ctx context.Context, body io.Reader) error {
	buffer := make([]byte, copyBytes)
	for {
		n, err := body.Read(buffer)
		if int64(n) > d.size-d.have {
			return fmt.Errorf("blob %s has more than the %d bytes that its manifest says: %w", d.digest, d.size, ErrDigest)
		}
		if n > 0 {
			if err := d.write(buffer[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) && d.have < d.size:
			return fmt.Errorf("blob %s: %w after %d of %d bytes", d.digest, io.ErrUnexpectedEOF, d.have, d.size)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("blob %s: %w", d.digest, err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

func (d *download) write(data []byte) error {
	if d.unchecked += int64(len(data)); d.unchecked >= spaceEvery {
		d.unchecked = 0
		if err := d.t.store.checkFree(); err != nil {
			return err
		}
	}
	n, err := d.file.Write(data)
	d.sum.Write(data[:n])
	d.have += int64(n)
	d.count(int64(n))
	if d.grow != nil {
		d.grow.grown(d.have)
	}
	return noSpace(err)
}

// checkFree fails while the disk is nearly full: others need the rest.
func (s *Store) checkFree() error {
	free, err := s.free()
	if err == nil && free < s.opt.Limits.MinFreeBytes {
		err = fmt.Errorf("%w: %d bytes are free, %d are left to others", ErrNoSpace, free, s.opt.Limits.MinFreeBytes)
	}
	return err
}

func (d *download) check() error {
	if got := digestOf(d.sum); got != d.digest {
		return fmt.Errorf("blob %s: its %d bytes have digest %s: %w", d.digest, d.have, got, ErrDigest)
	}
	return nil
}

// finish names the blob, or leaves what came for the next time.
func (d *download) finish(err error) error {
	path := d.t.store.path(partialDir, d.digest)
	if err := errors.Join(err, noSpace(d.file.Close())); err != nil {
		if d.have == 0 || errors.Is(err, ErrNoSpace) || errors.Is(err, ociarchive.ErrInvalid) {
			err = errors.Join(err, ignoreGone(os.Remove(path)))
		}
		return err
	}
	return d.t.store.keep(path, blobsDir, d.digest, d.size)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errFetch tells a reader of a growing file that it cannot go on: the transfer
// has failed, or begun anew.
var errFetch = errors.New("the transfer was interrupted")

// growing lets one goroutine read a file while another one writes it.
type growing struct {
	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced at every change
	file    *os.File      // guarded by mu; the reader's own
	size    int64         // guarded by mu
	done    bool          // guarded by mu
	err     error         // guarded by mu
	closed  bool          // guarded by mu
	// resumed: the beginning is from an earlier transfer; anew: it was thrown away.
	resumed, anew bool // guarded by mu
}

func newGrowing() *growing { return &growing{changed: make(chan struct{})} }

func (g *growing) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.changed)
	g.changed = make(chan struct{})
}

// opened gives the reader a descriptor of its own, which outlives the writer's.
func (g *growing) opened(file *os.File, size int64) {
	own, err := os.Open(file.Name())
	g.change(func() {
		switch {
		case err != nil:
			g.err = fmt.Errorf("%w: %w", errFetch, err)
		case g.closed:
			_ = own.Close()
		default:
			g.file, g.size, g.resumed = own, size, size > 0
		}
	})
}

func (g *growing) grown(size int64) { g.change(func() { g.size = size }) }
func (g *growing) restarted()       { g.change(func() { g.err, g.anew = errFetch, true }) }

func (g *growing) wasResumed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resumed
}

func (g *growing) wasRestarted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.anew
}

func (g *growing) finish(err error) {
	g.change(func() {
		g.done = true
		if err != nil || g.file == nil {
			g.err = errFetch
		}
	})
}

// reader reads from the start to the end. Close it.
func (g *growing) reader(ctx context.Context) io.ReadCloser { return &growingReader{g: g, ctx: ctx} }

type growingReader struct {
	g   *growing
	ctx context.Context //nolint:containedctx // a reader has no other way to be told to stop
	at  int64
}

func (r *growingReader) Read(p []byte) (int, error) {
	for {
		r.g.mu.Lock()
		changed, file, size, done, err := r.g.changed, r.g.file, r.g.size, r.g.done, r.g.err
		r.g.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case file != nil && r.at < size:
			n, err := file.ReadAt(p[:min(int64(len(p)), size-r.at)], r.at)
			r.at += int64(n)
			if errors.Is(err, io.EOF) && n == 0 {
				err = errFetch // it was cut off behind our back: begun anew
			} else if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		case done:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

func (r *growingReader) Close() error {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	r.g.closed = true
	if r.g.file == nil {
		return nil
	}
	return r.g.file.Close()
}
