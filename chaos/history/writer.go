package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrClosed says that the writer was closed.
var ErrClosed = errors.New("the history is closed")

// Writer writes a history. It holds one block; what was written is safe from the
// death of this process after Flush. It is not safe for concurrent use: a Recorder
// calls it under its lock.
type Writer struct {
	to      io.Writer
	block   encoder
	records uint64
	// index and time are those of the record before.
	index, time int64
	begun       bool
	err         error
}

// NewWriter returns a writer to w, which the caller closes after Close.
func NewWriter(w io.Writer) *Writer {
	return &Writer{to: w, index: -1, block: encoder{interned: map[string]uint64{}}}
}

// Write appends a record. ErrRecord refuses the record alone, and the history goes
// on without it; any other error is of the file below, and stays.
func (w *Writer) Write(r Record) error {
	if w.err != nil {
		return w.err
	}
	before := len(w.block.buf)
	err := w.block.record(&r, w.index+1, w.time)
	if size := len(w.block.buf) - before; err == nil && size > MaxRecord {
		err = fmt.Errorf("%w: %s %s has %d bytes, at most %d can be recorded", ErrRecord, r.Type, r.F, size, MaxRecord)
	}
	if err != nil {
		return w.takeBack(before, err)
	}
	w.index, w.time = r.Index, int64(r.Time)
	w.records++
	if len(w.block.buf) >= blockTarget {
		return w.Flush()
	}
	return nil
}

// takeBack removes a half-written record. Strings that it interned are in nobody's
// block now, so the block ends here.
func (w *Writer) takeBack(before int, err error) error {
	w.block.buf = w.block.buf[:before]
	return errors.Join(err, w.Flush())
}

// Flush hands what was written to the file below.
func (w *Writer) Flush() error {
	if w.err != nil {
		return w.err
	}
	if len(w.block.buf) == 0 {
		clear(w.block.interned)
		return nil
	}
	head := binary.AppendUvarint(w.head(), uint64(len(w.block.buf)))
	head = binary.BigEndian.AppendUint32(head, checksum(w.block.buf))
	if w.put(head); w.err == nil {
		w.put(w.block.buf)
	}
	w.block.reset()
	return w.err
}

// head is the magic, once.
func (w *Writer) head() []byte {
	if w.begun {
		return nil
	}
	w.begun = true
	return []byte(magic)
}

func (w *Writer) put(b []byte) {
	if _, err := w.to.Write(b); err != nil {
		w.err = fmt.Errorf("write the history: %w", err)
	}
}

// Close flushes, and writes that the history is whole. It does not close the file
// below. After it Write returns ErrClosed.
func (w *Writer) Close() error {
	if err := w.Flush(); err != nil {
		return err
	}
	w.put(binary.AppendUvarint(append(w.head(), 0), w.records))
	if w.err != nil {
		return w.err
	}
	w.err = ErrClosed
	return nil
}

// number is a numeric field, and its bit.
type number struct {
	bit   uint64
	value *int64
}

// numbersOf are the numeric fields after the strings, in the order of their bits.
func numbersOf(r *Record) [7]number {
	return [...]number{
		{hasBase, &r.Base}, {hasRevision, &r.Revision}, {hasAt, &r.At}, {hasLimit, &r.Limit}, {hasCount, &r.Count},
		{hasLease, &r.Lease}, {hasTTL, (*int64)(&r.TTL)},
	}
}
