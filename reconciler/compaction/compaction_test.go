package compaction

import (
	"testing"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

func TestPlan(t *testing.T) {
	for name, test := range map[string]struct {
		stats store.Stats
		want  store.Revision
	}{
		"small":          {store.Stats{Revision: 1000, CompactRevision: 1, HistoryRecords: 999, HistoryBytes: 10, QuotaBytes: 1000}, 0},
		"just allowed":   {store.Stats{Revision: MaxRecords, CompactRevision: 1, HistoryRecords: MaxRecords, HistoryBytes: 250, QuotaBytes: 1000}, 0},
		"too many":       {store.Stats{Revision: 500_001, CompactRevision: 100_001, HistoryRecords: 2 * MaxRecords, QuotaBytes: 1000}, 400_001},
		"too large":      {store.Stats{Revision: 1001, CompactRevision: 1, HistoryRecords: 1000, HistoryBytes: 500, QuotaBytes: 1000}, 751},
		"one revision":   {store.Stats{Revision: 2, CompactRevision: 1, HistoryRecords: 1, HistoryBytes: 900, QuotaBytes: 1000}, 0},
		"huge revisions": {store.Stats{Revision: 4, CompactRevision: 1, HistoryRecords: 3, HistoryBytes: 100_000, QuotaBytes: 1000}, 3},
	} {
		if got := Plan(test.stats); got != test.want {
			t.Errorf("%s: compacts to %d, want %d", name, got, test.want)
		}
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
	c := New(writers, w.Store.Spaces())
	for range 100 {
		put := &internalv1.Put{Key: []byte("configmaps/default/m"), Value: make([]byte, 100)}
		command := &internalv1.Command{Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: put}}}}}}
		if err := writers[store.SpaceObjects].Do(t.Context(), "fill", command); err != nil {
			t.Fatal(err)
		}
	}
	objects := w.Store.Space(store.SpaceObjects)
	before := objects.Stats()
	if Plan(before) == 0 {
		t.Fatalf("the test fills too little: %+v", before)
	}
	w.Settle(c)
	after := objects.Stats()
	if Plan(after) != 0 || after.CompactRevision <= before.CompactRevision || after.Revision != before.Revision {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
}
