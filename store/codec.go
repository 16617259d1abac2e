package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
)

// The outer layer of a snapshot: a stream of bytes cut into chunks, each with
// its checksum, so that damage is found before anything is believed. All fixed
// numbers are little endian.
//
//	+-----------------+------------+
//	| magic, 8 bytes  | version u32|
//	+-----------------+------------+
//	+-----------+------------------------+---------+
//	| length u32| payload, length bytes  | sum u64 |   one or more chunks
//	+-----------+------------------------+---------+
//	+-----------+-----------+
//	| 0 u32     | total u64 |                            the end
//	+-----------+-----------+
//
// sum is xxh3 of the payload with the number of the chunk as seed, so chunks
// cannot change places. total is all the sums folded together, so none can be
// missing. The payloads joined are the inner layer, see snapshot.go.
const (
	snapshotMagic   = "balsa\x00sn"
	snapshotVersion = 1
	// chunkBytes is the payload of a written chunk, maxChunkBytes what a reader
	// accepts.
	chunkBytes    = 64 << 10
	maxChunkBytes = 1 << 20
)

// encoder writes both layers. The first error sticks.
type encoder struct {
	w       io.Writer
	err     error
	written int64
	number  uint64 // of the current chunk
	total   uint64
	buf     []byte // payload of the current chunk
	scratch [binary.MaxVarintLen64]byte
}

func newEncoder(w io.Writer) *encoder {
	e := &encoder{w: w, buf: make([]byte, 0, chunkBytes)}
	e.raw(binary.LittleEndian.AppendUint32([]byte(snapshotMagic), snapshotVersion))
	return e
}

func (e *encoder) raw(b []byte) {
	if e.err != nil {
		return
	}
	n, err := e.w.Write(b)
	e.written += int64(n)
	e.err = err
}

func (e *encoder) flush() {
	if len(e.buf) == 0 {
		return
	}
	sum := xxh3.HashSeed(e.buf, e.number)
	e.total = fold(e.total, sum)
	e.number++
	e.raw(binary.LittleEndian.AppendUint32(nil, uint32(len(e.buf))))
	e.raw(e.buf)
	e.raw(binary.LittleEndian.AppendUint64(nil, sum))
	e.buf = e.buf[:0]
}

func (e *encoder) close() error {
	e.flush()
	e.raw(binary.LittleEndian.AppendUint64(make([]byte, 4), e.total))
	return e.err
}

func (e *encoder) bytes(b []byte) {
	for len(b) > 0 {
		n := min(len(b), chunkBytes-len(e.buf))
		e.buf = append(e.buf, b[:n]...)
		b = b[n:]
		if len(e.buf) == chunkBytes {
			e.flush()
		}
	}
}

func (e *encoder) uint(v uint64)  { e.bytes(binary.AppendUvarint(e.scratch[:0], v)) }
func (e *encoder) int(v int64)    { e.bytes(binary.AppendVarint(e.scratch[:0], v)) }
func (e *encoder) hash(v uint64)  { e.bytes(binary.LittleEndian.AppendUint64(e.scratch[:0], v)) }
func (e *encoder) rev(v Revision) { e.int(int64(v)) }

func (e *encoder) blob(b []byte) {
	e.uint(uint64(len(b)))
	e.bytes(b)
}

func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	for len(s) > 0 {
		n := min(len(s), len(e.scratch))
		e.bytes(append(e.scratch[:0], s[:n]...))
		s = s[n:]
	}
}

// decoder reads both layers. The first error sticks, and everything read after
// it is zero; it is looked at before what was read is used.
type decoder struct {
	r      *bufio.Reader
	err    error
	number uint64
	total  uint64
	chunk  []byte // payload of the current chunk
	off    int    // what of it has been read
	ended  bool
}

func newDecoder(r io.Reader) (*decoder, error) {
	d := &decoder{r: bufio.NewReader(r)}
	head := make([]byte, len(snapshotMagic)+4)
	if _, err := io.ReadFull(d.r, head); err != nil {
		return nil, d.outside(err)
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, corrupt("it does not begin like a snapshot of a store")
	}
	if v := binary.LittleEndian.Uint32(head[len(snapshotMagic):]); v != snapshotVersion {
		return nil, fmt.Errorf("%w: snapshot format %d, this version reads %d", ErrUnsupported, v, snapshotVersion)
	}
	return d, nil
}

func corrupt(format string, args ...any) error {
	return &CorruptError{Reason: fmt.Sprintf(format, args...)}
}

// outside is an error of the reader below, which at the end means: cut off.
func (d *decoder) outside(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("it is cut off in chunk %d", d.number)
	}
	return err
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// fill reads the next chunk, or the end.
func (d *decoder) fill() {
	var head [4]byte
	if _, err := io.ReadFull(d.r, head[:]); err != nil {
		d.fail(d.outside(err))
		return
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxChunkBytes {
		d.fail(corrupt("chunk %d has %d bytes, more than %d", d.number, n, maxChunkBytes))
		return
	}
	body := make([]byte, n+8)
	if _, err := io.ReadFull(d.r, body); err != nil {
		d.fail(d.outside(err))
		return
	}
	d.verify(body[:n], binary.LittleEndian.Uint64(body[n:]))
}

func (d *decoder) verify(payload []byte, sum uint64) {
	if len(payload) == 0 {
		d.ended = true
		if sum != d.total {
			d.fail(corrupt("a chunk is missing: the total is %016x, written was %016x", d.total, sum))
		}
		return
	}
	if got := xxh3.HashSeed(payload, d.number); got != sum {
		d.fail(corrupt("chunk %d has the checksum %016x, written was %016x", d.number, got, sum))
		return
	}
	d.total = fold(d.total, sum)
	d.number++
	d.chunk, d.off = payload, 0
}

// next is at most n bytes of the payload, at least one unless there is an error.
func (d *decoder) next(n int) []byte {
	for d.err == nil && d.off == len(d.chunk) {
		if d.ended {
			d.fail(corrupt("it ends too early"))
			return nil
		}
		d.fill()
	}
	if d.err != nil {
		return nil
	}
	b := d.chunk[d.off:min(d.off+n, len(d.chunk))]
	d.off += len(b)
	return b
}

// close checks that everything was read, and the total.
func (d *decoder) close() error {
	for d.err == nil && !d.ended && d.off == len(d.chunk) {
		d.fill()
	}
	if d.err == nil && !d.ended {
		d.fail(corrupt("there is more in it than it says"))
	}
	return d.err
}

// ReadByte makes a decoder what encoding/binary reads varints from.
func (d *decoder) ReadByte() (byte, error) {
	if b := d.next(1); len(b) == 1 {
		return b[0], nil
	}
	return 0, d.err
}

func (d *decoder) uint() uint64 {
	v, err := binary.ReadUvarint(d)
	if err != nil {
		d.fail(corrupt("a number is too long"))
		return 0
	}
	return v
}

func (d *decoder) int() int64 {
	v, err := binary.ReadVarint(d)
	if err != nil {
		d.fail(corrupt("a number is too long"))
		return 0
	}
	return v
}

func (d *decoder) rev() Revision { return Revision(d.int()) }

func (d *decoder) hash() uint64 {
	b := d.exactly(8)
	if len(b) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// blob is a byte string of at most limit bytes, nil when it is empty.
func (d *decoder) blob(what string, limit int) []byte {
	n := d.uint()
	if n > uint64(limit) {
		d.fail(corrupt("a %s has %d bytes, more than %d", what, n, limit))
	}
	if n == 0 || d.err != nil {
		return nil
	}
	return d.exactly(int(n))
}

func (d *decoder) string(what string, limit int) string { return string(d.blob(what, limit)) }

// exactly is the next n bytes. It never allocates much more than has been read:
// a length that lies costs no memory.
func (d *decoder) exactly(n int) []byte {
	out := make([]byte, 0, min(n, maxChunkBytes))
	for len(out) < n && d.err == nil {
		out = append(out, d.next(n-len(out))...)
	}
	if d.err != nil {
		return nil
	}
	return out
}
