package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/balsa-run/balsa/internal/ociarchive"
)

const (
	// maxZstdWindow bounds the memory that a zstd layer may ask for.
	maxZstdWindow = 32 << 20
	// Layers are decompressed that far ahead of what is written.
	aheadChunks     = 8
	aheadChunkBytes = 256 << 10
)

// unpack writes a layer to a directory of its own, which gets its name once the
// diff id is right.
func (s *Store) unpack(ctx context.Context, compressed io.Reader, diffID string) error {
	temp, err := os.MkdirTemp(s.temp(), "layer-")
	if err != nil {
		return noSpace(err)
	}
	defer func() { _ = os.RemoveAll(temp) }()
	size, err := s.unpackTo(ctx, compressed, diffID, temp)
	if err != nil {
		return noSpace(err)
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	return s.keep(temp, layersDir, diffID, size)
}

func (s *Store) unpackTo(ctx context.Context, compressed io.Reader, diffID, dir string) (int64, error) {
	plain, closePlain, err := decompress(compressed)
	if err != nil {
		return 0, err
	}
	defer closePlain()
	ahead := readAhead(ctx, plain, s.opt.Limits.MaxLayerBytes)
	defer ahead.stop()
	x := &extraction{limits: s.opt.Limits, checkFree: s.checkFree, log: s.opt.Log}
	if err := x.extract(ahead, dir); err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, onlyReader{ahead}); err != nil {
		return 0, err
	}
	if got := digestOf(ahead.sum); got != diffID {
		return 0, fmt.Errorf("the unpacked layer has digest %s, its configuration says %s: %w: %w", got, diffID, ErrDigest, ociarchive.ErrInvalid)
	}
	return x.bytes, nil
}

// decompress goes by the first bytes, not by a media type that may be wrong.
func decompress(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, copyBytes)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w: %w", err, ociarchive.ErrInvalid)
		}
		return invalidReader{z, "gzip"}, func() { _ = z.Close() }, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w: %w", err, ociarchive.ErrInvalid)
		}
		return invalidReader{z, "zstd"}, z.Close, nil
	}
	return b, func() {}, nil
}

// invalidReader says of what cannot be decompressed that it is invalid; errors
// of the transfer below come through as well.
type invalidReader struct {
	io.Reader
	kind string
}

func (r invalidReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: %w: %w", r.kind, err, ociarchive.ErrInvalid)
	}
	return n, err
}

type onlyReader struct{ io.Reader }

// ahead decompresses and hashes on another core than the one that writes. It
// holds a bounded number of chunks.
type ahead struct {
	full, empty chan []byte
	quit        chan struct{}
	done        chan struct{}
	current     []byte // rest of the chunk that is being read
	chunk       []byte
	err         error     // set before full is closed
	sum         hash.Hash // complete once Read has said io.EOF
}

func readAhead(ctx context.Context, r io.Reader, limit int64) *ahead {
	a := &ahead{
		full: make(chan []byte, aheadChunks), empty: make(chan []byte, aheadChunks),
		quit: make(chan struct{}), done: make(chan struct{}), sum: sha256.New(),
	}
	for range aheadChunks {
		a.empty <- make([]byte, aheadChunkBytes)
	}
	go a.run(ctx, r, limit)
	return a
}

func (a *ahead) run(ctx context.Context, r io.Reader, limit int64) {
	defer close(a.done)
	defer close(a.full)
	left := limit
	for {
		var chunk []byte
		select {
		case chunk = <-a.empty:
		case <-a.quit:
			return
		case <-ctx.Done():
			a.err = context.Cause(ctx)
			return
		}
		n, err := io.ReadFull(r, chunk[:cap(chunk)])
		if left -= int64(n); left < 0 {
			a.err = fmt.Errorf("the layer unpacks to more than %d bytes: %w", limit, ociarchive.ErrInvalid)
			return
		}
		a.sum.Write(chunk[:n])
		a.full <- chunk[:n] // never blocks: there are no more chunks than places
		if err != nil {
			if a.err = err; errors.Is(err, io.ErrUnexpectedEOF) && n > 0 && isPlainEOF(err) {
				a.err = io.EOF
			}
			return
		}
	}
}

// isPlainEOF: io.ReadFull says ErrUnexpectedEOF itself, unwrapped, at the end of
// the stream; a stream that was cut says so through invalidReader, wrapped.
func isPlainEOF(err error) bool { return err == io.ErrUnexpectedEOF } //nolint:errorlint // wrapped means something else

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.current) == 0 {
		if a.chunk != nil {
			a.empty <- a.chunk
			a.chunk = nil
		}
		chunk, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.chunk, a.current = chunk, chunk
	}
	n := copy(p, a.current)
	a.current = a.current[n:]
	return n, nil
}

// stop waits until the source is not read any more.
func (a *ahead) stop() {
	close(a.quit)
	<-a.done
}
