package store

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// bench drives one store through entries.
type driver struct {
	t testing.TB
	*Store
	index uint64
}

func newDriver(t testing.TB, o Options) *driver { return &driver{t: t, Store: New(o)} }

// do applies one command, which must succeed.
func (d *driver) do(cmd *internalv1.Command) *internalv1.CommandResult {
	d.t.Helper()
	d.index = d.AppliedIndex() + 1
	r := d.Apply(d.index, 1, []*internalv1.Command{cmd})[0]
	if r.Outcome != internalv1.CommandResult_OUTCOME_OK {
		d.t.Fatalf("%v came to %v: %s", cmd, r.Outcome, r.Message)
	}
	return r
}

func (d *driver) put(space, key, value string) Revision {
	d.t.Helper()
	return Revision(d.do(command(space, putOp(key, value))).Revision)
}

func (d *driver) compact(space string, rev Revision) {
	d.t.Helper()
	d.do(&internalv1.Command{Space: space, Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: int64(rev)}}})
}

func command(space string, ops ...*internalv1.Op) *internalv1.Command {
	return &internalv1.Command{Space: space, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: ops}}}
}

func putOp(key, value string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: []byte(value)}}}
}

func deleteOp(key, end string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func snapshotBytes(t testing.TB, s *Store) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := s.Snapshot().WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("snapshot of %d bytes, %d were written: %v", b.Len(), n, err)
	}
	return b.Bytes()
}

// decodeString is a decoder for tests: a value is a string, unless it is "bad".
func decodeString(_ string, value []byte, _ int64) (proto.Message, error) {
	if string(value) == "bad" {
		return nil, errors.New("bad value")
	}
	return wrapperspb.String(string(value)), nil
}

// indexWords names an object by each word of its value.
func indexWords(_ string, msg proto.Message) []IndexEntry {
	var entries []IndexEntry
	for _, word := range bytes.Fields([]byte(msg.(*wrapperspb.StringValue).GetValue())) {
		entries = append(entries, IndexEntry{Index: "word", Value: string(word)})
	}
	return entries
}

func keysOf(seq func(yield func(KV) bool)) string {
	var b bytes.Buffer
	for kv := range seq {
		fmt.Fprintf(&b, "%s ", kv.Key)
	}
	return b.String()
}

func chosenLease() *internalv1.Command {
	return &internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{TtlSeconds: 5}}}
}
