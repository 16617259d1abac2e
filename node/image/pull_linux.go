package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/ociarchive"
	"github.com/balsa-run/balsa/node/runtime"
)

// Source is one place that may have an image: a registry, a server, another
// node. What it delivers is checked; one that delivers something wrong is not
// asked again for that image.
type Source interface {
	// String is for messages.
	String() string
	// Manifest reads a manifest or an index.
	Manifest(ctx context.Context, digest string) ([]byte, error)
	// Blob reads a blob from an offset on.
	Blob(ctx context.Context, digest string, offset int64) (io.ReadCloser, error)
}

// Progress is how far a transfer is. BytesTotal is 0 until it is known.
type Progress struct {
	LayersDone, Layers    int
	BytesDone, BytesTotal int64
}

// Transfer is an image to bring to the node.
type Transfer struct {
	// Name is what the node shall know it by, as NormalizeName writes it.
	Name string
	// Digest of its manifest, or of an index that has one for this platform.
	Digest string
	// Sources are asked in order.
	Sources []Source
	// Progress may be nil. It is called from any goroutine, a few times a second.
	Progress func(Progress)
	// Before is called once the digest of the manifest for this platform is known,
	// and before the image can be used; it may be nil.
	Before func(manifest string) error
}

// Pulled is an image that is ready to run.
type Pulled struct {
	Image runtime.Image
	// SizeBytes on this node's disk.
	SizeBytes int64
	// Transferred is false if all of it was there already.
	Transferred bool
}

// transfer is one Transfer on its way.
type transfer struct {
	Transfer
	store *Store
	held  *held

	mu       sync.Mutex
	bad      map[Source]bool // guarded by mu
	progress Progress        // guarded by mu
	told     time.Time       // guarded by mu; when Progress was called last
	moved    bool            // guarded by mu; something was fetched
}

// progressEvery is the time between two calls of Progress.
const progressEvery = 300 * time.Millisecond

// Transfer makes an image complete on this node under its name. Until then
// nothing stands under the name that did not before; what came of blobs stays,
// and the next transfer goes on with it.
func (s *Store) Transfer(ctx context.Context, want Transfer) (Pulled, error) {
	if err := ociarchive.CheckDigest(want.Digest); err != nil {
		return Pulled{}, fmt.Errorf("image %s: %w", want.Name, err)
	}
	t := &transfer{Transfer: want, store: s, held: s.hold(), bad: map[Source]bool{}}
	defer t.held.end()
	defer s.flush.start()
	image, r, err := t.run(ctx)
	if err != nil {
		return Pulled{}, fmt.Errorf("image %s: %w", want.Name, noSpace(err))
	}
	if err := s.setName(want.Name, r.Manifest, want.Digest); err != nil {
		return Pulled{}, fmt.Errorf("image %s: %w", want.Name, err)
	}
	return Pulled{Image: image, SizeBytes: s.sizeOf(r), Transferred: t.moved}, nil
}

func (t *transfer) run(ctx context.Context) (runtime.Image, *record, error) {
	digest, manifest, err := t.manifest(ctx, t.Digest, 1)
	if err != nil {
		return runtime.Image{}, nil, fmt.Errorf("manifest: %w", err)
	}
	if err := t.checkSizes(manifest); err != nil {
		return runtime.Image{}, nil, err
	}
	config, err := t.config(ctx, manifest)
	if err != nil {
		return runtime.Image{}, nil, fmt.Errorf("configuration: %w", err)
	}
	if have := config.Architecture; have != "" && have != t.store.opt.Architecture {
		return runtime.Image{}, nil, fmt.Errorf("it is for linux/%s, this node is linux/%s: %w", have, t.store.opt.Architecture, ociarchive.ErrInvalid)
	}
	r := newRecord(digest, manifest, config)
	t.held.image(r)
	if t.Before != nil {
		if err := t.Before(digest); err != nil {
			return runtime.Image{}, nil, err
		}
	}
	if err := t.layers(ctx, r); err != nil {
		return runtime.Image{}, nil, err
	}
	return t.store.describe(r, config), r, t.store.writeRecord(r)
}

// manifest finds the manifest for this platform, through indexes.
func (t *transfer) manifest(ctx context.Context, digest string, depth int) (string, *v1.Manifest, error) {
	content, err := t.manifestContent(ctx, digest)
	if err != nil {
		return "", nil, err
	}
	next, err := ociarchive.ChooseManifest(content, t.store.opt.Architecture)
	if err != nil {
		return "", nil, err
	}
	if next == "" {
		manifest, err := ociarchive.ParseManifest(content)
		return digest, manifest, err
	}
	if depth >= ociarchive.MaxIndexDepth {
		return "", nil, fmt.Errorf("indexes are nested more than %d deep: %w", ociarchive.MaxIndexDepth, ociarchive.ErrInvalid)
	}
	return t.manifest(ctx, next, depth+1)
}

func (t *transfer) manifestContent(ctx context.Context, digest string) (content []byte, err error) {
	t.held.add(blobsDir, digest)
	there := func() bool { return exists(t.store.path(blobsDir, digest)) }
	err = t.store.once(ctx, digest, there, func() error {
		t.begin()
		return t.fromAny(ctx, func(from Source) error {
			content, err := from.Manifest(ctx, digest)
			if err != nil {
				return err
			}
			return t.store.putDocument(content, digest)
		})
	})
	if err != nil {
		return nil, err
	}
	return t.store.document(digest)
}

func (t *transfer) config(ctx context.Context, manifest *v1.Manifest) (*v1.ConfigFile, error) {
	d := manifest.Config
	if d.Size > ociarchive.MaxDocumentBytes {
		return nil, fmt.Errorf("it has %d bytes, at most %d are allowed: %w", d.Size, ociarchive.MaxDocumentBytes, ociarchive.ErrInvalid)
	}
	t.held.add(blobsDir, d.Digest.String())
	if err := t.blob(ctx, d.Digest.String(), d.Size, nil); err != nil {
		return nil, err
	}
	content, err := t.store.document(d.Digest.String())
	if err != nil {
		return nil, err
	}
	return ociarchive.ParseConfig(content, manifest)
}

// checkSizes refuses an image before any of its layers is fetched.
func (t *transfer) checkSizes(manifest *v1.Manifest) error {
	limits, total := t.store.opt.Limits, int64(0)
	for _, l := range manifest.Layers {
		if l.Size > limits.MaxBlobBytes {
			return fmt.Errorf("layer %s has %d bytes, at most %d are allowed: %w", l.Digest, l.Size, limits.MaxBlobBytes, ociarchive.ErrInvalid)
		}
		if total += l.Size; total > limits.MaxImageBytes {
			return fmt.Errorf("its layers have more than %d bytes: %w", limits.MaxImageBytes, ociarchive.ErrInvalid)
		}
	}
	free, err := t.store.free()
	if err != nil {
		return err
	}
	if free-total < limits.MinFreeBytes && !t.allThere(manifest) {
		return fmt.Errorf("%w: its layers have %d bytes compressed, %d are free, and %d of them are left to others", ErrNoSpace, total, free, limits.MinFreeBytes)
	}
	return nil
}

func (t *transfer) allThere(manifest *v1.Manifest) bool {
	for _, l := range manifest.Layers {
		if !exists(t.store.path(blobsDir, l.Digest.String())) {
			return false
		}
	}
	return true
}

// free is what others may use of the store's disk.
func (s *Store) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opt.Dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.opt.Dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// layers brings the layers, several at once; the first failure ends the others.
func (t *transfer) layers(ctx context.Context, r *record) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t.expect(r)
	var wg sync.WaitGroup
	for i, l := range r.Layers {
		wg.Go(func() {
			if err := t.layer(ctx, l); err != nil {
				cancel(fmt.Errorf("layer %d of %d: %w", i+1, len(r.Layers), err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// expect sets what progress is measured against: the layers that are missing.
func (t *transfer) expect(r *record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress.Layers = len(r.Layers)
	seen := map[string]bool{}
	for _, l := range r.Layers {
		if exists(t.store.path(layersDir, l.DiffID)) {
			t.progress.LayersDone++
		} else if !seen[l.Blob] && !exists(t.store.path(blobsDir, l.Blob)) {
			seen[l.Blob] = true
			t.progress.BytesTotal += l.Size
		}
	}
}

// layer fetches and unpacks a layer that is not there, both at once.
func (t *transfer) layer(ctx context.Context, l recordLayer) error {
	s := t.store
	dir := s.path(layersDir, l.DiffID)
	if exists(dir) {
		return nil
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.once(ctx, "layer "+l.DiffID, func() bool { return exists(dir) }, func() error {
		t.begin()
		if err := t.unpackWhileFetching(ctx, l); err != nil {
			return err
		}
		t.mu.Lock()
		t.progress.LayersDone++
		t.mu.Unlock()
		t.tell(true)
		return nil
	})
}

func (t *transfer) unpackWhileFetching(ctx context.Context, l recordLayer) error {
	if exists(t.store.path(blobsDir, l.Blob)) {
		return t.unpackBlob(ctx, l)
	}
	fetching, stopFetch := context.WithCancelCause(ctx)
	defer stopFetch(nil)
	grow := newGrowing()
	fetched := make(chan error, 1)
	go func() {
		err := t.blob(fetching, l.Blob, l.Size, grow)
		grow.finish(err)
		fetched <- err
	}()
	compressed := grow.reader(ctx)
	unpackErr := t.store.unpack(ctx, compressed, l.DiffID)
	_ = compressed.Close()
	if unpackErr != nil && !errors.Is(unpackErr, errFetch) && !grow.wasResumed() {
		stopFetch(unpackErr) // no use in fetching the rest
	}
	err := <-fetched
	switch {
	case unpackErr == nil:
		return err
	case err == nil && (errors.Is(unpackErr, errFetch) || grow.wasRestarted()):
		// It was fetched anew in between, or by somebody else: read it from the start.
		return t.unpackBlob(ctx, l)
	case errors.Is(unpackErr, errFetch):
		return err
	case ctx.Err() == nil:
		// Nothing of what cannot be unpacked is kept.
		dropErr := t.store.dropBlob(l.Blob)
		return errors.Join(fmt.Errorf("unpack blob %s: %w", l.Blob, unpackErr), dropErr)
	}
	return context.Cause(ctx)
}

func (t *transfer) unpackBlob(ctx context.Context, l recordLayer) error {
	f, err := t.store.openBlob(l.Blob)
	if err != nil {
		return err
	}
	err = t.store.unpack(ctx, f, l.DiffID)
	if err := errors.Join(err, f.Close()); err != nil {
		if ctx.Err() == nil {
			dropErr := t.store.dropBlob(l.Blob)
			err = errors.Join(err, dropErr)
		}
		return fmt.Errorf("unpack blob %s: %w", l.Blob, err)
	}
	return nil
}

// dropBlob removes a blob, or what came of it, that is known to be of no use. It
// goes although it is leased: whoever holds it finds out and fetches it anew.
func (s *Store) dropBlob(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(ignoreGone(os.Remove(s.metaPath(blobsDir, hexOf(digest)))),
		ignoreGone(os.Remove(s.path(blobsDir, digest))), ignoreGone(os.Remove(s.path(partialDir, digest))))
}

// fromAny asks the sources in order until one delivers what it should.
func (t *transfer) fromAny(ctx context.Context, ask func(Source) error) error {
	failures := []error{}
	for _, from := range t.Sources {
		if t.isBad(from) {
			continue
		}
		err := ask(from)
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrDigest) {
			t.setBad(from)
			t.store.opt.Log.Warn("what was sent does not have its digest; not asking there again for this image", "from", from.String(), "image", t.Name, "error", err)
		}
		failures = append(failures, fmt.Errorf("from %s: %w", from, err))
		if ctx.Err() != nil || errors.Is(err, ErrNoSpace) {
			break
		}
	}
	if len(failures) == 0 {
		return fmt.Errorf("nobody is left to be asked: %w", ErrNotFound)
	}
	return errors.Join(failures...)
}

func (t *transfer) isBad(from Source) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bad[from]
}

func (t *transfer) setBad(from Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bad[from] = true
}

// begin tells, once, that something has to be fetched or unpacked.
func (t *transfer) begin() {
	t.mu.Lock()
	first := !t.moved
	t.moved = true
	t.mu.Unlock()
	if first {
		t.tell(true)
	}
}

// count adds what came; less is what came and was thrown away.
func (t *transfer) count(bytes int64) {
	t.mu.Lock()
	t.progress.BytesDone += bytes
	t.mu.Unlock()
	t.tell(false)
}

// tell calls Progress, not too often.
func (t *transfer) tell(now bool) {
	if t.Progress == nil {
		return
	}
	t.mu.Lock()
	due := now || time.Since(t.told) >= progressEvery
	if due {
		t.told = time.Now()
	}
	p := t.progress
	t.mu.Unlock()
	if due {
		t.Progress(p)
	}
}
