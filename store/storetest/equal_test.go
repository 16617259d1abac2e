package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
	"github.com/balsa-run/balsa/store/storetest"
)

var spaceNames = []string{"roomy", "tight", "shed"}

func spaces() []store.SpaceOptions {
	return []store.SpaceOptions{
		{Name: "roomy", Bytes: 1 << 30, ReserveBytes: 1 << 20},
		{Name: "tight", Bytes: 2400, ReserveBytes: 300},
		{Name: "shed", Bytes: 2000, Shed: true},
	}
}

func limits() store.Limits {
	return store.Limits{
		TxnOps: 4, KeyBytes: 64, ValueBytes: 200, TxnBytes: 400, RangeKeys: 6, Leases: 3,
		Watchers: 100, WatchBuffer: 1, PurgeRecords: 2,
	}
}

// world is a model, a store that is restored from snapshots all the time, and
// one that never is.
type world struct {
	t           *rapid.T
	model       *storetest.Model
	store, twin storetest.Real
	index       uint64
	watches     []*watch
	restored    int
}

func newWorld(t *rapid.T) *world {
	twin := limits()
	twin.PurgeRecords = 1 << 20
	return &world{
		t:     t,
		model: storetest.NewModel(spaces(), limits()),
		store: storetest.Real{Store: store.New(store.Options{Spaces: spaces(), Limits: limits()})},
		twin:  storetest.Real{Store: store.New(store.Options{Spaces: spaces(), Limits: twin})},
	}
}

func (w *world) apply(cmds []*internalv1.Command) {
	w.index++
	got := w.store.Apply(w.index, 2, cmds)
	twin := w.twin.Apply(w.index, 2, cmds)
	if diff := cmp.Diff(twin, got, protocmp.Transform()); diff != "" {
		w.t.Fatalf("two stores differ (-twin +store):\n%s", diff)
	}
	for _, r := range got {
		if (r.Outcome == internalv1.CommandResult_OUTCOME_OK) != (r.Message == "") {
			w.t.Fatalf("outcome %v with the message %q", r.Outcome, r.Message)
		}
	}
	want := w.model.Apply(w.index, 2, cmds)
	ignore := protocmp.IgnoreFields(&internalv1.CommandResult{}, "message")
	if diff := cmp.Diff(want, got, protocmp.Transform(), ignore, cmpopts.EquateEmpty()); diff != "" {
		w.t.Fatalf("results of %v (-model +store):\n%s", cmds, diff)
	}
}

func (w *world) snapshot() []byte {
	a, err := w.store.SnapshotBytes()
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := w.twin.SnapshotBytes()
	if err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		w.t.Fatalf("the snapshots of two stores with the same log differ")
	}
	return a
}

func (w *world) restore() {
	w.restored++
	if err := w.store.Restore(bytes.NewReader(w.snapshot())); err != nil {
		w.t.Fatal(err)
	}
}

// check compares everything that can be asked.
func (w *world) check() {
	for _, space := range spaceNames {
		facts := w.model.Facts(space)
		if diff := cmp.Diff(facts, w.store.Facts(space), cmpopts.EquateEmpty()); diff != "" {
			w.t.Fatalf("facts of %q (-model +store):\n%s", space, diff)
		}
		start, end := storetest.DrawRange(w.t)
		rev := store.Revision(rapid.Int64Range(0, int64(facts.Revision)+1).Draw(w.t, "at"))
		wantKVs, wantErr := w.model.Range(space, rev, start, end)
		kvs, err := w.store.Range(space, rev, start, end)
		w.same("range", space, rev, wantKVs, kvs, wantErr, err)
		if rev == 0 || rev > facts.Revision {
			continue
		}
		want, wantErr := w.model.History(space, rev, start, end)
		got, err := w.store.History(space, rev, start, end)
		w.same("history", space, rev, want, got, wantErr, err)
	}
	for _, space := range spaceNames {
		a, b := w.store.Space(space).Hashes(), w.twin.Space(space).Hashes()
		if diff := cmp.Diff(a, b); diff != "" {
			w.t.Fatalf("hashes of %q (-store +twin):\n%s", space, diff)
		}
	}
	if err := w.store.ScrubAll(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) same(what, space string, rev store.Revision, want, got any, wantErr, err error) {
	for _, sentinel := range []error{store.ErrCompacted, store.ErrFutureRevision, nil} {
		if errors.Is(wantErr, sentinel) != errors.Is(err, sentinel) {
			w.t.Fatalf("%s of %q at %d: %v, the model says %v", what, space, rev, err, wantErr)
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		w.t.Fatalf("%s of %q at %d (-model +store):\n%s", what, space, rev, diff)
	}
}

// watch is an open watch and what it has delivered.
type watch struct {
	space      string
	start, end string
	from       store.Revision
	prevKV     bool
	w          *store.Watcher
	got        []store.Batch
	marks      []store.Revision
	restored   int
}

func (w *world) open() {
	x := &watch{space: rapid.SampledFrom(spaceNames).Draw(w.t, "space"), prevKV: rapid.Bool().Draw(w.t, "prevKV"), restored: w.restored}
	x.start, x.end = storetest.DrawRange(w.t)
	facts := w.model.Facts(x.space)
	x.from = store.Revision(rapid.Int64Range(1, int64(facts.Revision)+3).Draw(w.t, "from"))
	var err error
	x.w, err = w.store.Space(x.space).Watch(context.Background(), store.WatchOptions{
		Start: x.start, End: x.end, From: x.from, PrevKV: x.prevKV, Buffer: rapid.IntRange(1, 3).Draw(w.t, "buffer"),
	})
	if x.from < facts.CompactRevision {
		if !errors.Is(err, store.ErrCompacted) {
			w.t.Fatalf("watch from %d, compacted at %d: %v", x.from, facts.CompactRevision, err)
		}
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.watches = append(w.watches, x)
}

func (x *watch) take(b store.Batch) {
	if len(b.Events) == 0 {
		x.marks = append(x.marks, b.Revision)
		return
	}
	x.got = append(x.got, b)
}

// sip takes what is there, at most n batches.
func (x *watch) sip(n int) {
	for range n {
		select {
		case b, ok := <-x.w.Events():
			if !ok {
				return
			}
			x.take(b)
		default:
			return
		}
	}
}

// drain reads a watch to the end of the space, or to its own.
func (w *world) drain(x *watch) {
	now := w.model.Facts(x.space).Revision
	x.w.RequestProgress()
	for b := range x.w.Events() {
		x.take(b)
		if len(b.Events) == 0 && b.Revision >= now {
			break
		}
		if len(b.Events) == 0 {
			x.w.RequestProgress()
		}
	}
	w.verify(x, now)
	x.w.Stop()
	for range x.w.Events() {
	}
	if err := x.w.Err(); err != nil && x.restored == w.restored && !errors.Is(err, store.ErrCompacted) {
		w.t.Fatalf("a stopped watch ended with %v", err)
	}
}

// verify compares what a watch has delivered with the journal: all of it if the
// watch lives, a beginning of it if it ended, and then for a reason that is true.
func (w *world) verify(x *watch, now store.Revision) {
	want := w.model.Journal(x.space, x.from, x.start, x.end)
	facts := w.model.Facts(x.space)
	if len(x.got) > len(want) {
		w.t.Fatalf("watch of %q from %d delivered %d batches of %d", x.space, x.from, len(x.got), len(want))
	}
	for i := range x.got {
		w.verifyBatch(x, want[i], x.got[i], facts.CompactRevision)
	}
	err := x.w.Err()
	switch {
	case err == nil:
		if len(x.got) != len(want) {
			w.t.Fatalf("watch of %q from %d delivered %d batches of %d, then the mark of %d", x.space, x.from, len(x.got), len(want), now)
		}
	case errors.Is(err, store.ErrCompacted):
		w.verifyCompacted(x, want, err)
	case errors.Is(err, store.ErrResync):
		if x.restored == w.restored {
			w.t.Fatalf("watch of %q ended with %v without a restore", x.space, err)
		}
	default:
		w.t.Fatalf("watch of %q ended with %v", x.space, err)
	}
}

// verifyCompacted: the watch says where it stood. That must be compacted, and
// everything before it delivered.
func (w *world) verifyCompacted(x *watch, want []store.Batch, err error) {
	var at *store.CompactedError
	if !errors.As(err, &at) || at.Revision >= w.model.Facts(x.space).CompactRevision {
		w.t.Fatalf("watch of %q ended with %v, which is not compacted", x.space, err)
	}
	if n := len(x.got); n < len(want) && want[n].Revision < at.Revision || n > 0 && want[n-1].Revision >= at.Revision {
		w.t.Fatalf("watch of %q delivered %d batches of %d and ended with %v", x.space, n, len(want), err)
	}
}

func (w *world) verifyBatch(x *watch, want, got store.Batch, compacted store.Revision) {
	for i := range want.Events {
		prev := want.Events[i].Prev
		if i >= len(got.Events) || !x.prevKV {
			prev = nil
		} else if got.Events[i].Prev == nil && want.Revision <= compacted {
			prev = nil
		}
		want.Events[i].Prev = prev
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Fatalf("watch of %q from %d (-journal +watch):\n%s", x.space, x.from, diff)
	}
}

// TestStoreEqualsModel is the one test that holds everything together: random
// commands, with snapshots, restores and slow watches in between.
func TestStoreEqualsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		g := storetest.Generator{Spaces: spaceNames, Revision: func(space string) int64 { return int64(w.model.Facts(space).Revision) }}
		for range rapid.IntRange(20, 60).Draw(t, "steps") {
			switch k := rapid.IntRange(0, 19).Draw(t, "step"); {
			case k <= 5:
				var cmds []*internalv1.Command
				for range rapid.IntRange(0, 3).Draw(t, "commands") + 1 {
					cmds = append(cmds, g.Command(t))
				}
				w.apply(cmds)
			case k <= 10:
				w.open()
			case k <= 14 && len(w.watches) > 0:
				rapid.SampledFrom(w.watches).Draw(t, "watch").sip(rapid.IntRange(1, 4).Draw(t, "sip"))
			case k <= 17:
				w.restore()
			case k == 18:
				w.store.Maintain()
			default:
				w.apply(nil)
			}
			w.check()
		}
		w.snapshot()
		for _, x := range w.watches {
			w.drain(x)
		}
	})
}

// TestWireKeepsCommands: what is applied from the wire comes to the same as what
// is applied from memory, wherever the wire can carry it.
func TestWireKeepsCommands(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := store.New(store.Options{Spaces: spaces(), Limits: limits()})
		b := store.New(store.Options{Spaces: spaces(), Limits: limits()})
		g := storetest.Generator{Spaces: spaceNames, Revision: func(space string) int64 {
			rev, _ := a.Hash(space)
			return int64(rev)
		}}
		for i := range uint64(20) {
			cmd := g.Command(t)
			wire, err := proto.Marshal(cmd)
			if err != nil {
				continue // a key that is not UTF-8
			}
			again := &internalv1.Command{}
			if err := proto.Unmarshal(wire, again); err != nil {
				t.Fatal(err)
			}
			x, y := a.Apply(i+1, 2, []*internalv1.Command{cmd}), b.Apply(i+1, 2, []*internalv1.Command{again})
			if diff := cmp.Diff(x, y, protocmp.Transform()); diff != "" {
				t.Fatal(diff)
			}
		}
		for _, space := range spaceNames {
			if x, y := fmt.Sprint(a.Hash(space)), fmt.Sprint(b.Hash(space)); x != y {
				t.Fatalf("hash of %q is %s from memory, %s from the wire", space, x, y)
			}
		}
	})
}
