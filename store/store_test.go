package store

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// fatal is the FatalError that Apply panics with; nil when it does not.
func fatal(s *Store, index uint64, cmds ...*internalv1.Command) (err *FatalError) {
	defer func() {
		if r := recover(); r != nil {
			err = r.(*FatalError)
		}
	}()
	s.Apply(index, 1, cmds)
	return nil
}

// withUnknown is m with a field that no version has yet.
func withUnknown[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 2000, protowire.VarintType), 1))
	return m
}

func TestApplyStopsAtWhatItDoesNotKnow(t *testing.T) {
	txn := func(op *internalv1.Op) *internalv1.Command { return command(SpaceObjects, op) }
	compare := func(c *internalv1.Compare) *internalv1.Command {
		return &internalv1.Command{Space: SpaceObjects, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Compares: []*internalv1.Compare{c}}}}
	}
	put := func() *internalv1.Put { return &internalv1.Put{Key: []byte("a")} }
	for name, cmd := range map[string]*internalv1.Command{
		"level of a command":   {Space: SpaceObjects, FeatureLevel: 1},
		"level of the cluster": {Op: &internalv1.Command_SetFeatureLevel{SetFeatureLevel: &internalv1.SetFeatureLevel{Level: 1}}},
		"operation":            withUnknown(&internalv1.Command{Space: SpaceObjects}),
		"op":                   txn(withUnknown(&internalv1.Op{})),
		"field of a put":       txn(&internalv1.Op{Op: &internalv1.Op_Put{Put: withUnknown(put())}}),
		"field of a range":     txn(&internalv1.Op{Op: &internalv1.Op_Range{Range: withUnknown(&internalv1.Range{Key: []byte("a")})}}),
		"order of a range":     txn(&internalv1.Op{Op: &internalv1.Op_Range{Range: &internalv1.Range{Key: []byte("a"), SortOrder: 77}}}),
		"sorting of a range":   txn(&internalv1.Op{Op: &internalv1.Op_Range{Range: &internalv1.Range{Key: []byte("a"), SortTarget: 77}}}),
		"field of a delete":    txn(&internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: withUnknown(&internalv1.DeleteRange{Key: []byte("a")})}}),
		"field of a txn":       txn(&internalv1.Op{Op: &internalv1.Op_Txn{Txn: withUnknown(&internalv1.Txn{})}}),
		"field of a compare":   compare(withUnknown(&internalv1.Compare{Key: []byte("a")})),
		"target":               compare(&internalv1.Compare{Key: []byte("a"), Target: 77}),
		"result":               compare(&internalv1.Compare{Key: []byte("a"), Result: 77}),
		"field of a grant":     {Space: SpaceObjects, Op: &internalv1.Command_LeaseGrant{LeaseGrant: withUnknown(&internalv1.LeaseGrant{})}},
		"field of a revoke":    {Space: SpaceObjects, Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: withUnknown(&internalv1.LeaseRevoke{})}},
		"field of a compact":   {Space: SpaceObjects, Op: &internalv1.Command_Compact{Compact: withUnknown(&internalv1.Compact{})}},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Options{})
			err := fatal(s, 5, txn(putOp("before", "")), cmd)
			if err == nil || err.Index != 5 || err.Command != 1 {
				t.Fatalf("apply panics with %v, want the second command of entry 5", err)
			}
			if rev, _ := s.Hash(SpaceObjects); rev != 1 || s.AppliedIndex() != 0 {
				t.Fatalf("revision %d at index %d: a part of the entry was applied", rev, s.AppliedIndex())
			}
			if err := fatal(s, 5, txn(putOp("after", ""))); err != nil {
				t.Fatalf("the store is stuck: %v", err)
			}
		})
	}
}

func TestApplyRefusesAnEntryTwice(t *testing.T) {
	s := New(Options{})
	s.Apply(3, 1, nil)
	for _, index := range []uint64{3, 2} {
		if err := fatal(s, index); err == nil || err.Command != -1 {
			t.Fatalf("entry %d after 3: %v", index, err)
		}
	}
}

func TestFeatureLevelRisesAndStays(t *testing.T) {
	d := newDriver(t, Options{FeatureLevel: 2})
	level := func(n uint32) *internalv1.Command {
		return &internalv1.Command{Op: &internalv1.Command_SetFeatureLevel{SetFeatureLevel: &internalv1.SetFeatureLevel{Level: n}}}
	}
	early := command(SpaceObjects, putOp("a", ""))
	early.FeatureLevel = 2
	refuse := func(cmd *internalv1.Command) {
		t.Helper()
		r := d.Apply(d.AppliedIndex()+1, 1, []*internalv1.Command{cmd})[0]
		if r.Outcome != internalv1.CommandResult_OUTCOME_INVALID {
			t.Fatalf("%v came to %v", cmd, r.Outcome)
		}
	}
	refuse(early)
	d.do(level(2))
	refuse(level(1))
	d.do(early)
	snapshot := snapshotBytes(t, d.Store)
	again := New(Options{FeatureLevel: 2})
	if err := again.Restore(bytes.NewReader(snapshot)); err != nil || again.FeatureLevel() != 2 {
		t.Fatalf("restored level %d: %v", again.FeatureLevel(), err)
	}
	if err := New(Options{}).Restore(bytes.NewReader(snapshot)); !errors.Is(err, ErrUnsupported) {
		t.Fatalf("an old version restores level 2: %v", err)
	}
}

func TestChosenLeaseIDs(t *testing.T) {
	grant := &internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{TtlSeconds: 5}}}
	a, b := newDriver(t, Options{}), newDriver(t, Options{})
	seen := map[int64]bool{}
	for range 100 {
		x, y := a.do(grant).LeaseId, b.do(grant).LeaseId
		if x != y || x <= 0 || seen[x] {
			t.Fatalf("lease ids %d and %d", x, y)
		}
		seen[x] = true
	}
	if n := a.Space(SpaceEtcd).Stats().Leases; n != 100 {
		t.Fatalf("%d leases", n)
	}
}

// TestRevokeInTheSameEntry: the keys were bound by the edit that now unbinds them.
func TestRevokeInTheSameEntry(t *testing.T) {
	d := newDriver(t, Options{})
	cmds := []*internalv1.Command{{Space: SpaceEtcd, Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: 3}}}}
	for i := range 50 {
		bound := &internalv1.Put{Key: []byte(fmt.Sprintf("k%02d", i)), Lease: 3}
		cmds = append(cmds, command(SpaceEtcd, &internalv1.Op{Op: &internalv1.Op_Put{Put: bound}}))
	}
	cmds = append(cmds, &internalv1.Command{Space: SpaceEtcd, Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: 3}}})
	d.Apply(1, 1, cmds)
	v := d.Space(SpaceEtcd).View()
	if n := v.Count("", ""); n != 0 || v.Revision() != 52 {
		t.Fatalf("%d keys are left at revision %d", n, v.Revision())
	}
}

// TestObjectsAreDecodedOnce: the message that readers get is one and the same,
// and what cannot be decoded is still served as bytes.
func TestObjectsAreDecodedOnce(t *testing.T) {
	decoded := 0
	d := newDriver(t, Options{Index: indexWords, Decode: func(key string, value []byte, mod int64) (proto.Message, error) {
		decoded++
		return decodeString(key, value, mod)
	}})
	d.put(SpaceObjects, "a", "red blue")
	d.put(SpaceEtcd, "a", "red blue")
	d.put(SpaceObjects, "b", "bad")
	view := d.Space(SpaceObjects).View()
	x, _ := view.Get("a")
	y, _ := view.Get("a")
	if x.Object == nil || x.Object != y.Object || decoded != 2 {
		t.Fatalf("objects %v and %v, decoded %d times", x.Object, y.Object, decoded)
	}
	if bad, ok := view.Get("b"); !ok || bad.Object != nil || string(bad.Value) != "bad" {
		t.Fatalf("what cannot be decoded is %v", bad)
	}
	if raw, _ := d.Space(SpaceEtcd).View().Get("a"); raw.Object != nil {
		t.Fatalf("a raw space decodes")
	}
	if n := d.Space(SpaceObjects).Stats().DecodeErrors; n != 1 {
		t.Fatalf("%d decode errors", n)
	}
}

func TestIndexFollowsObjects(t *testing.T) {
	d := newDriver(t, Options{Decode: decodeString, Index: indexWords})
	expect := func(v View, word, want string) {
		t.Helper()
		if got := keysOf(v.ByIndex("word", word)); got != want {
			t.Fatalf("objects by %q at %d: %q, want %q", word, v.Revision(), got, want)
		}
	}
	d.put(SpaceObjects, "b", "red blue")
	d.put(SpaceObjects, "a", "red")
	old := d.Space(SpaceObjects).View()
	d.put(SpaceObjects, "b", "blue green")
	d.do(command(SpaceObjects, deleteOp("a", "")))
	check := func(s *Store) {
		t.Helper()
		now := s.Space(SpaceObjects).View()
		expect(now, "red", "")
		expect(now, "blue", "b ")
		expect(now, "green", "b ")
		then, err := s.Space(SpaceObjects).ViewAt(3)
		if err != nil {
			t.Fatal(err)
		}
		expect(then, "red", "a b ")
		expect(then, "green", "")
	}
	check(d.Store)
	expect(old, "red", "a b ")
	again := New(Options{Decode: decodeString, Index: indexWords})
	if err := again.Restore(bytes.NewReader(snapshotBytes(t, d.Store))); err != nil {
		t.Fatal(err)
	}
	check(again)
}

// TestViewsOutliveCompaction: a view that was taken stays what it is.
func TestViewsOutliveCompaction(t *testing.T) {
	d := newDriver(t, Options{Limits: Limits{PurgeRecords: 1}})
	for i := range 100 {
		d.put(SpaceEtcd, fmt.Sprint("k", i%10), fmt.Sprint(i))
	}
	sp := d.Space(SpaceEtcd)
	view, err := sp.ViewAt(51)
	if err != nil {
		t.Fatal(err)
	}
	d.do(command(SpaceEtcd, deleteOp("k", "l")))
	d.compact(SpaceEtcd, 102)
	for d.Maintain() {
	}
	if s := sp.Stats(); s.PurgeRecords != 0 || s.Keys != 0 || s.LiveBytes != 0 {
		t.Fatalf("after compaction: %+v", s)
	}
	if st := sp.state.Load(); st.graves.len() != 0 || st.log.start != st.log.from(102) {
		t.Fatalf("%d graves are left, the log begins at %d of %d", st.graves.len(), st.log.start, st.log.end)
	}
	n := 0
	for kv := range view.Prefix("k") {
		if want := fmt.Sprint(40 + n); string(kv.Value) != want {
			t.Fatalf("key %q is %q, want %q", kv.Key, kv.Value, want)
		}
		n++
	}
	if n != 10 {
		t.Fatalf("%d keys", n)
	}
}

// TestPurgeGivesMemoryBack: after compaction and maintenance no slot keeps a
// version that cannot be read, whatever order things came in.
func TestPurgeGivesMemoryBack(t *testing.T) {
	d := newDriver(t, Options{Limits: Limits{PurgeRecords: 7}})
	for i := range 2000 {
		d.put(SpaceEtcd, fmt.Sprint("k", i%13), strings.Repeat("x", i%5))
		if i%17 == 0 {
			d.do(command(SpaceEtcd, deleteOp(fmt.Sprint("k", i%13), "")))
		}
	}
	rev := d.Space(SpaceEtcd).View().Revision()
	d.compact(SpaceEtcd, rev)
	for d.Maintain() {
	}
	st := d.Space(SpaceEtcd).state.Load()
	st.live.each(span{}, func(key string, sl slot) bool {
		if sl.past != nil {
			t.Errorf("key %q keeps %d versions", key, len(sl.past.versions))
		}
		return true
	})
	if st.historyBytes() != 0 || len(st.log.chunks) > 1 {
		t.Fatalf("%d bytes of history in %d chunks", st.historyBytes(), len(st.log.chunks))
	}
}

func TestHashesMeet(t *testing.T) {
	ahead, behind := newDriver(t, Options{}), newDriver(t, Options{})
	for i := range 10_000 {
		ahead.put(SpaceEtcd, fmt.Sprint("k", i%100), fmt.Sprint(i))
		if i < 9_000 {
			behind.put(SpaceEtcd, fmt.Sprint("k", i%100), fmt.Sprint(i))
		}
	}
	common := 0
	for _, a := range ahead.Space(SpaceEtcd).Hashes() {
		for _, b := range behind.Space(SpaceEtcd).Hashes() {
			if a.Revision == b.Revision {
				common++
				if a.Hash != b.Hash {
					t.Fatalf("revision %d has two hashes", a.Revision)
				}
			}
		}
	}
	if common == 0 {
		t.Fatal("two members that are 1000 revisions apart have none in common")
	}
	other := newDriver(t, Options{})
	other.put(SpaceEtcd, "k0", "not 0")
	for i := 1; i < 9_000; i++ {
		other.put(SpaceEtcd, fmt.Sprint("k", i%100), fmt.Sprint(i))
	}
	revA, a := behind.Hash(SpaceEtcd)
	revB, b := other.Hash(SpaceEtcd)
	if revA != revB || a == b {
		t.Fatalf("hash %x at %d, %x at %d: one different write must show for ever", a, revA, b, revB)
	}
}

func TestScrubFindsAFlippedBit(t *testing.T) {
	flips := map[string]func(st *state){
		"value":        func(st *state) { sl, _ := st.live.get("k50"); sl.cur.value[0] ^= 4 },
		"old value":    func(st *state) { sl, _ := st.live.get("k50"); sl.past.versions[0].value[0] ^= 4 },
		"mod revision": func(st *state) { sl, _ := st.live.get("k50"); sl.cur.mod ^= 1 << 40 },
		"lease":        func(st *state) { sl, _ := st.live.get("k50"); sl.cur.lease ^= 1 },
		"tombstone":    func(st *state) { sl, _ := st.graves.get("dead"); sl.cur.mod ^= 1 },
		"key":          func(st *state) { st.live.root.kids[0].keys[0] += "x" },
		"lost key":     func(st *state) { st.live.delete(&edit{}, "k50") },
		"state hash":   func(st *state) { st.sum ^= 1 },
	}
	for name, flip := range flips {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t, Options{})
			for i := range 200 {
				d.put(SpaceEtcd, fmt.Sprint("k", i%100), fmt.Sprint("value", i))
			}
			d.put(SpaceEtcd, "dead", "x")
			d.do(command(SpaceEtcd, deleteOp("dead", "")))
			sp := d.Space(SpaceEtcd)
			if err := scrub(sp); err != nil {
				t.Fatal(err)
			}
			flip(sp.state.Load())
			err := scrub(sp)
			var at *CorruptError
			if !errors.As(err, &at) || !errors.Is(err, ErrCorrupt) || at.Space != SpaceEtcd {
				t.Fatalf("scrub says %v", err)
			}
		})
	}
}

func TestScrubFindsAChangedObject(t *testing.T) {
	d := newDriver(t, Options{Decode: decodeString})
	d.put(SpaceObjects, "a", "red")
	kv, _ := d.Space(SpaceObjects).View().Get("a")
	if err := scrub(d.Space(SpaceObjects)); err != nil {
		t.Fatal(err)
	}
	kv.Object.(*wrapperspb.StringValue).Value = "blue"
	if err := scrub(d.Space(SpaceObjects)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("scrub says %v", err)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	for name, o := range map[string]Options{
		"no name":   {Spaces: []SpaceOptions{{Bytes: 1}}},
		"no size":   {Spaces: []SpaceOptions{{Name: "a"}}},
		"twice":     {Spaces: []SpaceOptions{{Name: "a", Bytes: 1}, {Name: "a", Bytes: 1}}},
		"key size":  {Limits: Limits{KeyBytes: maxKeyBytes + 1}},
		"val size":  {Limits: Limits{ValueBytes: maxValueBytes + 1}},
		"long name": {Spaces: []SpaceOptions{{Name: strings.Repeat("a", 256), Bytes: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			New(o)
		})
	}
}

func scrub(sp *Space) error {
	for s := sp.Scrub(); ; {
		if done, err := s.Step(7); done || err != nil {
			return err
		}
	}
}
