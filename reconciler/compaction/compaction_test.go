package compaction

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

func TestPlan(t *testing.T) {
	const all = store.Revision(1 << 40) // everything is old
	churn := func(revision, compacted store.Revision) store.Stats {
		return store.Stats{Revision: revision, CompactRevision: compacted, HistoryRecords: int(revision - compacted), QuotaBytes: 1000}
	}
	for name, test := range map[string]struct {
		stats         store.Stats
		settled, want store.Revision
	}{
		"small":          {store.Stats{Revision: 1000, CompactRevision: 1, HistoryRecords: 999, HistoryBytes: 10, QuotaBytes: 1000}, all, 0},
		"just allowed":   {store.Stats{Revision: MaxRecords, CompactRevision: 1, HistoryRecords: MaxRecords, HistoryBytes: 250, QuotaBytes: 1000}, all, 0},
		"too many":       {store.Stats{Revision: 500_001, CompactRevision: 100_001, HistoryRecords: 2 * MaxRecords, QuotaBytes: 1000}, all, 400_001},
		"too large":      {store.Stats{Revision: 1001, CompactRevision: 1, HistoryRecords: 1000, HistoryBytes: 500, QuotaBytes: 1000}, all, 751},
		"one revision":   {store.Stats{Revision: 2, CompactRevision: 1, HistoryRecords: 1, HistoryBytes: 900, QuotaBytes: 1000}, all, 0},
		"huge revisions": {store.Stats{Revision: 4, CompactRevision: 1, HistoryRecords: 3, HistoryBytes: 100_000, QuotaBytes: 1000}, all, 3},

		"too many, all of them young":     {churn(500_001, 100_001), 0, 0},
		"too many, a few of them old":     {churn(500_001, 100_001), 300_000, 0},
		"too many, half of them old":      {churn(500_001, 100_001), 300_001, 300_001},
		"too many, more are old than go":  {churn(500_001, 100_001), 450_000, 400_001},
		"old ones went by another's hand": {churn(500_001, 100_001), 50, 0},
		"too large, all of them young":    {store.Stats{Revision: 1001, CompactRevision: 1, HistoryRecords: 1000, HistoryBytes: 500, QuotaBytes: 1000}, 0, 751},
	} {
		if got := Plan(test.stats, test.settled); got != test.want {
			t.Errorf("%s: compacts to %d, want %d", name, got, test.want)
		}
	}
}

// TestAges: what is called settled was there KeepFor ago; what was there half a minute
// longer is settled; and the marks are bounded.
func TestAges(t *testing.T) {
	const pause = 30 * time.Second // at most between two looks
	rapid.Check(t, func(t *rapid.T) {
		var a ages
		now, newest := time.Unix(0, 0), store.Revision(1)
		var seen []mark
		for range 200 {
			now = now.Add(time.Duration(1 + rapid.Int64Range(0, int64(pause)-1).Draw(t, "pause")))
			newest += store.Revision(rapid.IntRange(0, 3).Draw(t, "more"))
			seen = append(seen, mark{now, newest})
			got := a.settled(now, newest)
			there, long := store.Revision(0), store.Revision(0)
			for _, m := range seen {
				if now.Sub(m.at) >= KeepFor {
					there = m.revision
				}
				if now.Sub(m.at) >= KeepFor+pause {
					long = m.revision
				}
			}
			if got > there || got < long || len(a.marks) > int(KeepFor/interval)+2 {
				t.Fatalf("after %v, with %d marks: %d is settled, want %d to %d", now.Sub(time.Unix(0, 0)), len(a.marks), got, long, there)
			}
		}
	})
}

// TestEtcdsHistoryIsKeptForAWhile: what its programs have just written is forgotten for
// its number only when it is old; that of the objects at once.
func TestEtcdsHistoryIsKeptForAWhile(t *testing.T) {
	const ops = 10_000
	w := rt.New(t)
	w.Store = store.New(store.Options{Limits: store.Limits{TxnOps: ops}})
	writers := map[string]*control.Writer{}
	for _, s := range w.Store.Spaces() {
		writers[s.Name()] = control.NewWriter(w, s, w.Clock, w.Term)
	}
	c := New(w.Clock, writers, w.Store.Spaces())
	for range MaxRecords/ops + 1 {
		for _, space := range []string{store.SpaceEtcd, store.SpaceObjects} {
			txn := &internalv1.Txn{}
			for i := range ops {
				txn.Success = append(txn.Success, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: fmt.Appendf(nil, "configmaps/default/%d", i)}}})
			}
			if err := writers[space].Do(t.Context(), "fill", &internalv1.Command{Op: &internalv1.Command_Txn{Txn: txn}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	compacted := func(space string) bool { return w.Store.Space(space).Stats().CompactRevision > 1 }
	w.Settle(c)
	if compacted(store.SpaceEtcd) || !compacted(store.SpaceObjects) {
		t.Errorf("at once: etcd's history is cut: %v, that of the objects: %v", compacted(store.SpaceEtcd), compacted(store.SpaceObjects))
	}
	w.Clock.Advance(KeepFor - time.Second)
	w.Settle(c)
	if compacted(store.SpaceEtcd) {
		t.Error("etcd's history is cut before its time")
	}
	w.Clock.Advance(time.Second)
	if w.Settle(c); !compacted(store.SpaceEtcd) {
		t.Errorf("etcd's history is not cut: %+v", w.Store.Space(store.SpaceEtcd).Stats())
	}
}

func TestTheConcernCompactsUntilItIsWithinItsLimits(t *testing.T) {
	w := rt.New(t)
	// A quota that a hundred revisions of one key fill by more than a quarter.
	w.Store = store.New(store.Options{Spaces: []store.SpaceOptions{{Name: store.SpaceObjects, Bytes: 40_000}, {Name: store.SpaceEvents, Bytes: 40_000}}})
	writers := map[string]*control.Writer{}
	for _, s := range w.Store.Spaces() {
		writers[s.Name()] = control.NewWriter(w, s, w.Clock, w.Term)
	}
	c := New(w.Clock, writers, w.Store.Spaces())
	for range 100 {
		put := &internalv1.Put{Key: []byte("configmaps/default/m"), Value: make([]byte, 100)}
		command := &internalv1.Command{Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: put}}}}}}
		if err := writers[store.SpaceObjects].Do(t.Context(), "fill", command); err != nil {
			t.Fatal(err)
		}
	}
	objects := w.Store.Space(store.SpaceObjects)
	before := objects.Stats()
	if Plan(before, before.Revision) == 0 {
		t.Fatalf("the test fills too little: %+v", before)
	}
	w.Settle(c)
	after := objects.Stats()
	if Plan(after, after.Revision) != 0 || after.CompactRevision <= before.CompactRevision || after.Revision != before.Revision {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
}
