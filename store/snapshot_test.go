package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// storied is a store with a bit of everything in it.
func storied(t testing.TB) *driver {
	d := newDriver(t, Options{})
	grant := &internalv1.LeaseGrant{Id: 7, TtlSeconds: 60}
	d.do(&internalv1.Command{Space: SpaceEtcd, TimeNs: 99, Op: &internalv1.Command_LeaseGrant{LeaseGrant: grant}})
	for i := range 40 {
		d.put(SpaceEtcd, fmt.Sprint("k", i%7), strings.Repeat("v", i))
		d.put(SpaceEvents, fmt.Sprint("e", i), "it happened")
	}
	bound := &internalv1.Put{Key: []byte("bound"), Lease: 7}
	d.do(command(SpaceEtcd, &internalv1.Op{Op: &internalv1.Op_Put{Put: bound}}))
	d.do(command(SpaceEtcd, deleteOp("k1", "k4")))
	d.compact(SpaceEtcd, 20)
	d.put(SpaceObjects, "big", strings.Repeat("0123456789", 20_000))
	return d
}

func TestRestoredStoreGoesOnTheSame(t *testing.T) {
	d := storied(t)
	snapshot := snapshotBytes(t, d.Store)
	again := newDriver(t, Options{})
	if err := again.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	if again.AppliedIndex() != d.AppliedIndex() {
		t.Fatalf("index %d, want %d", again.AppliedIndex(), d.AppliedIndex())
	}
	for range 3 {
		if !bytes.Equal(snapshotBytes(t, d.Store), snapshotBytes(t, again.Store)) {
			t.Fatal("the snapshots differ")
		}
		for _, s := range []*driver{d, again} {
			s.put(SpaceEtcd, "k2", "new")
			s.compact(SpaceEtcd, s.Space(SpaceEtcd).View().Revision()-1)
		}
	}
}

func TestSnapshotStaysWhatItIs(t *testing.T) {
	d := storied(t)
	snap, want := d.Snapshot(), snapshotBytes(t, d.Store)
	for i := range 3000 {
		d.put(SpaceEtcd, fmt.Sprint("k", i%7), "x")
	}
	d.compact(SpaceEtcd, 3000)
	for d.Maintain() {
	}
	var got bytes.Buffer
	if _, err := snap.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got.Bytes()) || snap.Index() >= d.AppliedIndex() {
		t.Fatal("a snapshot has changed under later writes")
	}
}

// TestEveryFlippedBitIsFound flips each bit of a small snapshot and a sample of
// those of a large one, and cuts it off everywhere.
func TestEveryFlippedBitIsFound(t *testing.T) {
	d := newDriver(t, Options{})
	d.put(SpaceEtcd, "a", "1")
	d.put(SpaceEtcd, "a", "2")
	for name, c := range map[string]struct {
		snapshot []byte
		stride   int
	}{"small": {snapshotBytes(t, d.Store), 1}, "large": {snapshotBytes(t, storied(t).Store), 50_021}} {
		t.Run(name, func(t *testing.T) {
			victim := storied(t)
			before := snapshotBytes(t, victim.Store)
			for bit := 0; bit < len(c.snapshot)*8; bit += c.stride {
				bad := bytes.Clone(c.snapshot)
				bad[bit/8] ^= 1 << (bit % 8)
				if err := victim.Restore(bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
					t.Fatalf("bit %d flipped: %v", bit, err)
				}
			}
			for n := 0; n < len(c.snapshot); n += c.stride {
				if err := victim.Restore(bytes.NewReader(c.snapshot[:n])); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("cut off at %d: %v", n, err)
				}
			}
			if !bytes.Equal(before, snapshotBytes(t, victim.Store)) {
				t.Fatal("a refused snapshot has changed the store")
			}
		})
	}
}

func TestRestoreRefusesOtherVersionsAndSpaces(t *testing.T) {
	snapshot := snapshotBytes(t, New(Options{}))
	newer := bytes.Clone(snapshot)
	binary.LittleEndian.PutUint32(newer[len(snapshotMagic):], snapshotVersion+1)
	if err := New(Options{}).Restore(bytes.NewReader(newer)); !errors.Is(err, ErrUnsupported) {
		t.Fatalf("a later format: %v", err)
	}
	few := New(Options{Spaces: DefaultSpaces()[:1]})
	if err := few.Restore(bytes.NewReader(snapshot)); !errors.Is(err, ErrUnsupported) {
		t.Fatalf("an unknown space: %v", err)
	}
	more := New(Options{})
	if err := more.Restore(bytes.NewReader(snapshotBytes(t, few))); err != nil {
		t.Fatalf("a space that is new: %v", err)
	}
}

type failing struct{ left int }

var errFull = errors.New("disk is full")

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestSnapshotReportsWriteErrors(t *testing.T) {
	snap := storied(t).Snapshot()
	for _, room := range []int{0, 20, 70_000} {
		if _, err := snap.WriteTo(&failing{left: room}); !errors.Is(err, errFull) {
			t.Fatalf("with room for %d bytes: %v", room, err)
		}
	}
}

// sealed puts content into the outer layer, so that the fuzzer gets past the
// checksums.
func sealed(content []byte) []byte {
	var b bytes.Buffer
	e := newEncoder(&b)
	e.bytes(content)
	if err := e.close(); err != nil {
		panic(err) // a bytes.Buffer does not fail
	}
	return b.Bytes()
}

// unsealed is the inner layer of a snapshot.
func unsealed(t testing.TB, snapshot []byte) []byte {
	d, err := newDecoder(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	var content []byte
	for d.fill(); d.err == nil && !d.ended; d.fill() {
		content = append(content, d.chunk...)
	}
	if d.err != nil {
		t.Fatal(d.err)
	}
	return content
}

// FuzzRestore: whatever the bytes, Restore refuses them, or makes a store that
// is whole: it scrubs clean, and its own snapshot restores to the same.
func FuzzRestore(f *testing.F) {
	f.Add(unsealed(f, snapshotBytes(f, New(Options{}))), true)
	small := newDriver(f, Options{})
	small.put(SpaceEtcd, "a", "1")
	small.put(SpaceEvents, "a", "1")
	small.compact(SpaceEtcd, 2)
	f.Add(unsealed(f, snapshotBytes(f, small.Store)), true)
	f.Add(snapshotBytes(f, small.Store), false)
	f.Fuzz(func(t *testing.T, content []byte, seal bool) {
		if seal {
			content = sealed(content)
		}
		s := New(Options{})
		if err := s.Restore(bytes.NewReader(content)); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("restore: %v", err)
			}
			return
		}
		for _, sp := range s.Spaces() {
			if err := scrub(sp); err != nil {
				t.Fatal(err)
			}
			for range sp.View().Range("", "", 0) {
			}
		}
		snapshot := snapshotBytes(t, s)
		again := New(Options{})
		if err := again.Restore(bytes.NewReader(snapshot)); err != nil {
			t.Fatalf("restore of the snapshot of a restored store: %v", err)
		}
		if !bytes.Equal(snapshot, snapshotBytes(t, again)) {
			t.Fatal("the second snapshot differs from the first")
		}
		if err := fatal(s, s.AppliedIndex()+1, command(SpaceEtcd, putOp("a", ""), deleteOp("b", "\x00"))); err != nil && s.AppliedIndex()+1 != 0 {
			t.Fatal(err)
		}
	})
}

// FuzzApply: whatever a log entry holds, Apply carries it out, refuses it or
// panics with a *FatalError, and two stores do the same.
func FuzzApply(f *testing.F) {
	seed := func(cmds ...*internalv1.Command) {
		b, err := proto.Marshal(&internalv1.Batch{Version: 1, Commands: cmds})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	grant := &internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: 3}}}
	revoke := &internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: 3}}}
	seed(grant, command(SpaceEtcd, putOp("a", "1"), deleteOp("b", "\x00")), revoke)
	seed(&internalv1.Command{Space: SpaceEvents, Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: 1}}}, command(SpaceObjects, putOp("x", "")))
	compare := &internalv1.Compare{Key: []byte("a"), Target: 1, Result: 1, Number: 1}
	nested := &internalv1.Op{Op: &internalv1.Op_Txn{Txn: &internalv1.Txn{Compares: []*internalv1.Compare{compare}, Failure: []*internalv1.Op{putOp("n", "")}}}}
	seed(command(SpaceEtcd, nested, &internalv1.Op{Op: &internalv1.Op_Range{Range: &internalv1.Range{Key: []byte("a"), RangeEnd: []byte("\x00")}}}))
	past := &internalv1.Range{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Revision: 1, SortOrder: 2, SortTarget: 3, MinModRevision: 1, MaxCreateRevision: 9}
	seed(command(SpaceEtcd, putOp("\xff\x00\xc3\x28", "1"), putOp("\x00", ""), &internalv1.Op{Op: &internalv1.Op_Range{Range: past}}, deleteOp("\xff", "\x00")))
	f.Fuzz(func(t *testing.T, entry []byte) {
		batch := &internalv1.Batch{}
		if err := proto.Unmarshal(entry, batch); err != nil {
			return
		}
		a, b := New(Options{}), New(Options{})
		for index := uint64(1); index <= 2; index++ {
			x, y := fatal(a, index, batch.Commands...), fatal(b, index, batch.Commands...)
			if (x == nil) != (y == nil) {
				t.Fatalf("one store stops with %v, the other with %v", x, y)
			}
		}
		if !bytes.Equal(snapshotBytes(t, a), snapshotBytes(t, b)) {
			t.Fatal("two stores with the same log differ")
		}
		for _, sp := range a.Spaces() {
			if err := scrub(sp); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestRestoreEndsWatches(t *testing.T) {
	d := storied(t)
	sp := d.Space(SpaceEtcd)
	live, err := sp.Watch(context.Background(), WatchOptions{Key: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	expectMark(t, live)
	changed, leases := sp.Changed("zzz"), sp.LeasesChanged()
	if err := d.Restore(bytes.NewReader(snapshotBytes(t, d.Store))); err != nil {
		t.Fatal(err)
	}
	<-changed
	<-leases
	for range live.Events() {
	}
	if err := live.Err(); !errors.Is(err, ErrResync) {
		t.Fatalf("the watch ended with %v", err)
	}
	next, err := sp.Watch(context.Background(), WatchOptions{Key: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	expectMark(t, next)
	rev := d.put(SpaceEtcd, "k1", "after")
	if b := <-next.Events(); b.Revision != rev || len(b.Events) != 1 {
		t.Fatalf("the next watch delivers %v", b)
	}
	next.Stop()
}

// expectMark waits until a watch has caught up.
func expectMark(t *testing.T, w *Watcher) {
	t.Helper()
	w.RequestProgress()
	if b := <-w.Events(); len(b.Events) != 0 || b.Revision == 0 {
		t.Fatalf("batch %v, want a mark", b)
	}
}
