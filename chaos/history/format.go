package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A history on disk:
//
//	magic   "balsahist1\n"
//	block   { length of payload, uvarint, never 0 | CRC-32C of payload, 4 bytes, big endian | payload }*
//	end     { 0 | number of records, uvarint }
//
// A payload is whole records, so that a block can be read without those before it
// but for the running index and time. A record:
//
//	type<<5 | f    one byte
//	fields         uvarint, a bit for each field that is there; see the constants
//	time           varint, since the record before
//	process        varint
//	the fields     in the order of their bits
//
// Strings that repeat (keys, servers, errors) are interned for each block:
//
//	0              the empty string
//	1 len bytes    a new string, which gets the next number while there are any
//	n >= 2         string n-2 of this block
//
// Values do not repeat and are { len | bytes }. Lists are { number of items + 1 },
// 0 being nil, since "nothing was told" and "it was told that there is nothing"
// are different.
const (
	magic     = "balsahist1\n"
	checkSize = 4

	// blockTarget is when a block is written. A writer that dies loses one at most.
	blockTarget = 64 << 10
	// MaxRecord bounds a record on disk, and so what a reader must hold.
	MaxRecord = 16 << 20
	maxBlock  = blockTarget + MaxRecord
	// maxInterned bounds the strings of a block that get a number.
	maxInterned = 1 << 12
)

// The bits of the fields.
const (
	hasIndex = 1 << iota
	hasServer
	hasKey
	hasEnd
	hasValue
	hasBase
	hasRevision
	hasAt
	hasLimit
	hasCount
	hasMore
	hasLease
	hasTTL
	hasKVs
	hasMops
	hasError

	allFields = hasError<<1 - 1
)

// The bits of a KV.
const (
	kvDeleted = 1 << iota
	kvPrev
	kvLease

	allKVBits = kvLease<<1 - 1
)

// Errors of the format.
var (
	// ErrTruncated: the history has no end; its writer died, or still writes. All
	// records before the error are whole.
	ErrTruncated = errors.New("the history has no end")
	// ErrCorrupt: the bytes are no history, or were damaged.
	ErrCorrupt = errors.New("the history is damaged")
	// ErrRecord: a record that the format cannot hold.
	ErrRecord = errors.New("not a record")
)

func checksum(payload []byte) uint32 {
	return crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli))
}

// encoder makes the payload of a block.
type encoder struct {
	buf      []byte
	interned map[string]uint64
}

func (e *encoder) reset() {
	e.buf = e.buf[:0]
	clear(e.interned)
}

func (e *encoder) uvarint(n uint64) { e.buf = binary.AppendUvarint(e.buf, n) }
func (e *encoder) varint(n int64)   { e.buf = binary.AppendVarint(e.buf, n) }

func (e *encoder) value(s string) {
	e.uvarint(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *encoder) name(s string) {
	if s == "" {
		e.uvarint(0)
		return
	}
	if n, ok := e.interned[s]; ok {
		e.uvarint(n)
		return
	}
	if len(e.interned) < maxInterned {
		e.interned[s] = uint64(len(e.interned)) + 2
	}
	e.uvarint(1)
	e.value(s)
}

// record appends r; index and time are those that r would have if it followed the
// record before as closely as it can.
func (e *encoder) record(r *Record, index, time int64) error {
	if r.Type < Invoke || r.Type > Unknown || r.F < Read || int(r.F) >= len(fNames) {
		return fmt.Errorf("%w: %s %s: a record has a type and an operation; set Type and F", ErrRecord, r.Type, r.F)
	}
	fields := fieldsOf(r, index)
	e.buf = append(e.buf, byte(r.Type)<<5|byte(r.F))
	e.uvarint(fields)
	e.varint(int64(r.Time) - time)
	e.varint(int64(r.Process))
	if fields&hasIndex != 0 {
		e.varint(r.Index - index)
	}
	e.texts(r, fields)
	e.numbers(r, fields)
	if fields&hasKVs != 0 {
		if err := e.kvs(r.KVs); err != nil {
			return err
		}
	}
	if fields&hasMops != 0 {
		if err := e.mops(r.Mops); err != nil {
			return err
		}
	}
	if fields&hasError != 0 {
		e.name(r.Error)
	}
	return nil
}

func fieldsOf(r *Record, index int64) uint64 {
	bit := func(there bool, b uint64) uint64 {
		if there {
			return b
		}
		return 0
	}
	return bit(r.Index != index, hasIndex) | bit(r.Server != "", hasServer) | bit(r.Key != "", hasKey) |
		bit(r.End != "", hasEnd) | bit(r.Value != "", hasValue) | bit(r.Base != 0, hasBase) |
		bit(r.Revision != 0, hasRevision) | bit(r.At != 0, hasAt) | bit(r.Limit != 0, hasLimit) |
		bit(r.Count != 0, hasCount) | bit(r.More, hasMore) | bit(r.Lease != 0, hasLease) | bit(r.TTL != 0, hasTTL) |
		bit(r.KVs != nil, hasKVs) | bit(r.Mops != nil, hasMops) | bit(r.Error != "", hasError)
}

func (e *encoder) texts(r *Record, fields uint64) {
	if fields&hasServer != 0 {
		e.name(r.Server)
	}
	if fields&hasKey != 0 {
		e.name(r.Key)
	}
	if fields&hasEnd != 0 {
		e.name(r.End)
	}
	if fields&hasValue != 0 {
		e.value(r.Value)
	}
}

func (e *encoder) numbers(r *Record, fields uint64) {
	if fields&(hasBase|hasRevision|hasAt|hasLimit|hasCount|hasLease|hasTTL) == 0 {
		return
	}
	for _, n := range numbersOf(r) {
		if fields&n.bit != 0 {
			e.varint(*n.value)
		}
	}
}

func (e *encoder) kvs(kvs []KV) error {
	e.uvarint(uint64(len(kvs)) + 1)
	for i := range kvs {
		kv := &kvs[i]
		e.kv(kv, kv.Prev != nil)
		if kv.Prev == nil {
			continue
		}
		if kv.Prev.Prev != nil {
			return fmt.Errorf("%w: the previous %q has a previous one itself; a key is recorded with one change", ErrRecord, kv.Key)
		}
		e.kv(kv.Prev, false)
	}
	return nil
}

func (e *encoder) kv(kv *KV, prev bool) {
	var bits byte
	if kv.Deleted {
		bits |= kvDeleted
	}
	if prev {
		bits |= kvPrev
	}
	if kv.Lease != 0 {
		bits |= kvLease
	}
	e.buf = append(e.buf, bits)
	e.name(kv.Key)
	e.value(kv.Value)
	e.varint(kv.ModRevision)
	e.varint(kv.ModRevision - kv.CreateRevision)
	e.varint(kv.Version)
	if kv.Lease != 0 {
		e.varint(kv.Lease)
	}
}

func (e *encoder) mops(mops []Mop) error {
	e.uvarint(uint64(len(mops)) + 1)
	for i := range mops {
		m := &mops[i]
		if m.F < MopRead || m.F > MopWrite {
			return fmt.Errorf("%w: step %d is %s; a step is a read, an append or a write", ErrRecord, i, m.F)
		}
		e.buf = append(e.buf, byte(m.F))
		e.name(m.Key)
		e.value(m.Value)
		if m.Values == nil {
			e.uvarint(0)
			continue
		}
		e.uvarint(uint64(len(m.Values)) + 1)
		for _, v := range m.Values {
			e.value(v)
		}
	}
	return nil
}
