package history

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Records returns the records of the history in r, once. An error is the last thing
// that it yields: ErrTruncated when the history has no end, and then everything
// before is whole; ErrCorrupt when it is damaged. It holds one block, and what the
// records hold is theirs.
func Records(r io.Reader) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		in := reader{from: bufio.NewReaderSize(r, blockTarget), index: -1}
		err := in.magic()
		for more := true; err == nil && more; {
			if more, err = in.block(); err == nil && more {
				err = in.records(yield)
			}
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Record{}, err)
		}
	}
}

// errStopped says that nobody wants more records.
var errStopped = errors.New("stopped")

// reader reads a history block by block.
type reader struct {
	from *bufio.Reader
	// blocks and count are how many blocks and records were read.
	blocks int
	count  uint64
	// index and time are those of the record before.
	index, time int64
	payload     []byte
	d           decoder
}

func (in *reader) magic() error {
	got := make([]byte, len(magic))
	n, err := io.ReadFull(in.from, got)
	switch {
	case string(got[:n]) != magic[:n]:
		return fmt.Errorf("%w: it begins with %q, a history begins with %q", ErrCorrupt, got[:n], magic)
	case err != nil:
		return in.cut(err)
	}
	return nil
}

// cut is the error of the file below: its end is what a dead writer leaves.
func (in *reader) cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it stops after %d blocks with %d records", ErrTruncated, in.blocks, in.count)
	}
	return fmt.Errorf("read the history: %w", err)
}

// block reads the next block, or the end.
func (in *reader) block() (more bool, err error) {
	size, err := in.number()
	switch {
	case err != nil:
		return false, err
	case size == 0:
		return false, in.end()
	case size > maxBlock:
		return false, fmt.Errorf("%w: block %d has %d bytes, at most %d are allowed", ErrCorrupt, in.blocks, size, maxBlock)
	}
	var want [checkSize]byte
	if _, err := io.ReadFull(in.from, want[:]); err != nil {
		return false, in.cut(err)
	}
	if uint64(cap(in.payload)) < size {
		in.payload = make([]byte, size)
	}
	in.payload = in.payload[:size]
	if _, err := io.ReadFull(in.from, in.payload); err != nil {
		return false, in.cut(err)
	}
	if got := checksum(in.payload); got != binary.BigEndian.Uint32(want[:]) {
		return false, fmt.Errorf("%w: block %d has the checksum %08x, it was written with %x", ErrCorrupt, in.blocks, got, want)
	}
	return true, nil
}

func (in *reader) number() (uint64, error) {
	n, err := binary.ReadUvarint(in.from)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return 0, in.cut(err)
	}
	return 0, fmt.Errorf("%w: the length of block %d: %w", ErrCorrupt, in.blocks, err)
}

// end checks that the end is the end, and of this history.
func (in *reader) end() error {
	count, err := in.number()
	if err != nil {
		return err
	}
	if count != in.count {
		return fmt.Errorf("%w: it ends with %d records, it was written with %d", ErrCorrupt, in.count, count)
	}
	if _, err := in.from.ReadByte(); err == nil {
		return fmt.Errorf("%w: there is more after its end", ErrCorrupt)
	} else if !errors.Is(err, io.EOF) {
		return in.cut(err)
	}
	return nil
}

// records yields those of the block that was read.
func (in *reader) records(yield func(Record, error) bool) error {
	in.d.reset(in.payload)
	for len(in.d.rest) > 0 {
		r := in.d.record(in.index+1, in.time)
		if in.d.err != nil {
			return fmt.Errorf("%w: block %d, record %d: %w", ErrCorrupt, in.blocks, in.count, in.d.err)
		}
		in.index, in.time = r.Index, int64(r.Time)
		in.count++
		if !yield(r, nil) {
			return errStopped
		}
	}
	in.blocks++
	return nil
}

// decoder reads the payload of a block. After its first error it reads zeros.
type decoder struct {
	rest     []byte
	interned []string
	err      error
}

func (d *decoder) reset(payload []byte) {
	clear(d.interned)
	d.rest, d.interned, d.err = payload, d.interned[:0], nil
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.rest = nil
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.fail("it stops inside a record")
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) uvarint() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.fail("a number does not end")
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) varint() int64 {
	n := d.uvarint()
	return int64(n>>1) ^ -int64(n&1) // zigzag
}

func (d *decoder) value() string {
	size := d.uvarint()
	if size > uint64(len(d.rest)) {
		d.fail("a string of %d bytes, %d are left", size, len(d.rest))
		return ""
	}
	s := string(d.rest[:size])
	d.rest = d.rest[size:]
	return s
}

func (d *decoder) name() string {
	switch n := d.uvarint(); {
	case n == 0:
		return ""
	case n == 1:
		s := d.value()
		if len(d.interned) < maxInterned {
			d.interned = append(d.interned, s)
		}
		return s
	case n-2 < uint64(len(d.interned)):
		return d.interned[n-2]
	default:
		d.fail("string %d of %d", n-2, len(d.interned))
		return ""
	}
}

// list is the length of a list. Every item has one byte at least, so a length that
// is a lie costs no memory.
func (d *decoder) list() (n int, isNil bool) {
	size := d.uvarint()
	if size == 0 {
		return 0, true
	}
	if size-1 > uint64(len(d.rest)) {
		d.fail("a list of %d items in %d bytes", size-1, len(d.rest))
		return 0, true
	}
	return int(size - 1), false
}

func (d *decoder) record(index, before int64) Record {
	head := d.byte()
	r := Record{Type: Type(head >> 5), F: F(head & 31)}
	if r.Type < Invoke || r.Type > Unknown || r.F < Read || int(r.F) >= len(fNames) {
		d.fail("%s %s", r.Type, r.F)
		return r
	}
	fields := d.uvarint()
	if fields&^allFields != 0 {
		d.fail("fields %x, %x are known", fields, uint64(allFields))
	}
	r.Time = time.Duration(before + d.varint())
	process := d.varint()
	if r.Process = int32(process); int64(r.Process) != process {
		d.fail("process %d", process)
	}
	if r.Index = index; fields&hasIndex != 0 {
		r.Index += d.varint()
	}
	d.fields(&r, fields)
	return r
}

func (d *decoder) fields(r *Record, fields uint64) {
	if fields&hasServer != 0 {
		r.Server = d.name()
	}
	if fields&hasKey != 0 {
		r.Key = d.name()
	}
	if fields&hasEnd != 0 {
		r.End = d.name()
	}
	if fields&hasValue != 0 {
		r.Value = d.value()
	}
	for _, n := range numbersOf(r) {
		if fields&n.bit != 0 {
			*n.value = d.varint()
		}
	}
	r.More = fields&hasMore != 0
	if fields&hasKVs != 0 {
		r.KVs = d.kvs()
	}
	if fields&hasMops != 0 {
		r.Mops = d.mops()
	}
	if fields&hasError != 0 {
		r.Error = d.name()
	}
}

func (d *decoder) kvs() []KV {
	n, isNil := d.list()
	if isNil {
		return nil
	}
	// The room grows with what is there, not with what is promised.
	kvs := make([]KV, 0, min(n, maxInterned))
	for range n {
		kv, prev := d.kv()
		if prev {
			before, more := d.kv()
			if more {
				d.fail("the previous %q has a previous one", kv.Key)
			}
			kv.Prev = &before
		}
		if d.err != nil {
			return nil
		}
		kvs = append(kvs, kv)
	}
	return kvs
}

func (d *decoder) kv() (kv KV, prev bool) {
	bits := d.byte()
	if bits&^allKVBits != 0 {
		d.fail("a key with the bits %x, %x are known", bits, allKVBits)
	}
	kv.Key, kv.Value = d.name(), d.value()
	kv.ModRevision = d.varint()
	kv.CreateRevision = kv.ModRevision - d.varint()
	kv.Version = d.varint()
	if bits&kvLease != 0 {
		kv.Lease = d.varint()
	}
	kv.Deleted = bits&kvDeleted != 0
	return kv, bits&kvPrev != 0
}

func (d *decoder) mops() []Mop {
	n, isNil := d.list()
	if isNil {
		return nil
	}
	mops := make([]Mop, 0, min(n, maxInterned))
	for range n {
		m := Mop{F: MopF(d.byte()), Key: d.name(), Value: d.value()}
		if m.F < MopRead || m.F > MopWrite {
			d.fail("a step %s", m.F)
		}
		m.Values = d.values()
		if d.err != nil {
			return nil
		}
		mops = append(mops, m)
	}
	return mops
}

func (d *decoder) values() []string {
	n, isNil := d.list()
	if isNil {
		return nil
	}
	values := make([]string, 0, min(n, maxInterned))
	for range n {
		if d.err != nil {
			return nil
		}
		values = append(values, d.value())
	}
	return values
}
