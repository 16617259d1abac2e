package store_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
	"github.com/balsa-run/balsa/store/storetest"
)

// TestEtcd15220ProgressBeforeItsEvents: a progress notification overtook events of
// earlier revisions that were still on their way to the same watch, so a client
// that trusted it missed them. Every revision of this test touches each watch: a
// mark is of the revision delivered last, be the watch live or behind.
func TestEtcd15220ProgressBeforeItsEvents(t *testing.T) {
	const revisions = 3000
	m := newMember(t)
	var watches sync.WaitGroup
	for _, buffer := range []int{1, 2, 16, 4096} {
		w := m.watch(store.WatchOptions{Buffer: buffer})
		watches.Go(func() {
			last, marks := store.Revision(1), 0
			for b := next(t, w); b.Revision != 0; b = next(t, w) {
				w.RequestProgress()
				if len(b.Events) == 0 {
					marks++
					if b.Revision != last {
						t.Errorf("buffer %d: a mark of revision %d behind revision %d", buffer, b.Revision, last)
					}
				} else if last++; b.Revision != last {
					t.Errorf("buffer %d: revision %d, want %d", buffer, b.Revision, last)
				}
				if last == revisions && marks > 0 {
					return
				}
			}
			t.Errorf("buffer %d: ended after revision %d: %v", buffer, last, w.Err())
		})
	}
	for i := range revisions - 1 {
		m.put(fmt.Sprint("k", i%7), "")
	}
	watches.Wait()
}

// TestEtcd15271WatchTravelsBackInTime: a follower that had been cut off caught up
// by a snapshot, put all its watches back to where they had begun, and showed them
// what they had seen before. Here a snapshot ends the watches; one that goes on
// from the next revision sees the rest, each once.
func TestEtcd15271WatchTravelsBackInTime(t *testing.T) {
	leader, follower := newMember(t), newMember(t)
	for i := range 49 {
		leader.put(fmt.Sprint("k", i%5), fmt.Sprint(i))
		follower.put(fmt.Sprint("k", i%5), fmt.Sprint(i))
	}
	w := follower.watch(store.WatchOptions{From: 2})
	for rev := store.Revision(2); rev <= 50; rev++ {
		if b := next(t, w); b.Revision != rev {
			t.Fatalf("revision %d, want %d", b.Revision, rev)
		}
	}
	for i := range 50 {
		leader.put(fmt.Sprint("k", i%5), fmt.Sprint("more", i))
	}
	leader.do(storetest.Compact(store.SpaceEtcd, 40))
	follower.restore(leader.Snapshot())
	for _, b := range rest(t, w) {
		t.Errorf("after the snapshot the old watch delivers revision %d", b.Revision)
	}
	if !errors.Is(w.Err(), store.ErrResync) {
		t.Fatalf("the watch ended with %v", w.Err())
	}
	again := follower.watch(store.WatchOptions{From: 51})
	follower.put("k0", "behind the snapshot")
	for rev := store.Revision(51); rev <= 101; rev++ {
		if b := next(t, again); b.Revision != rev || len(b.Events) != 1 {
			t.Fatalf("%d events of revision %d, want one of %d", len(b.Events), b.Revision, rev)
		}
	}
}

// TestEtcd17247DuplicatedEvent: a cache of transactions showed a watch the same
// event twice. Watches that begin anywhere, at any time, beside transactions of
// every kind (refused ones and ones that only read among them) and beside readers,
// see each revision once, in order, with its own number of events.
func TestEtcd17247DuplicatedEvent(t *testing.T) {
	const revisions, watches = 2000, 60
	m := newMember(t)
	space := m.Space(store.SpaceEtcd)
	var all sync.WaitGroup
	for i := range watches {
		all.Go(func() {
			if err := space.WaitRevision(t.Context(), store.Revision(1+i*revisions/watches)); err != nil {
				t.Error(err)
				return
			}
			from := max(2, space.View().Revision()-5)
			w, err := space.Watch(t.Context(), store.WatchOptions{From: from, Buffer: 1 + i%5, PrevKV: i%2 == 0})
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Stop()
			for rev := from; rev <= revisions; rev++ {
				if b := next(t, w); b.Revision != rev || len(b.Events) != eventsOf(rev) {
					t.Errorf("watch %d: %d events of revision %d, want %d of %d", i, len(b.Events), b.Revision, eventsOf(rev), rev)
					return
				}
			}
		})
	}
	for rev := store.Revision(2); rev <= revisions; rev++ {
		ops := []*internalv1.Op{storetest.Get(&internalv1.Range{Key: []byte("k"), RangeEnd: []byte{0}})}
		m.do(storetest.Do(store.SpaceEtcd, ops...))
		m.entry([]*internalv1.Command{storetest.Do(store.SpaceEtcd, storetest.Put("k", "1"), storetest.Put("k", "2"))})
		for i := range eventsOf(rev) {
			ops = append(ops, storetest.Put(fmt.Sprint("k", i), fmt.Sprint(rev)), ops[0])
		}
		m.do(storetest.Do(store.SpaceEtcd, ops...))
	}
	all.Wait()
}

func eventsOf(rev store.Revision) int { return int(rev%3) + 1 }

// TestEtcd17529EventsLostWhenAStreamStarves: a watch whose stream had no room was
// set aside, and when the room came its events were gone. Many watches starve here
// for hundreds of revisions at a time, and one among them never does.
func TestEtcd17529EventsLostWhenAStreamStarves(t *testing.T) {
	const watches, rounds, each = 40, 10, 200
	m := newMember(t)
	var starved []*store.Watcher
	for range watches {
		starved = append(starved, m.watch(store.WatchOptions{Prefix: "k", Buffer: 1}))
	}
	fed := m.watch(store.WatchOptions{Prefix: "k", Buffer: 2 * each})
	rev := store.Revision(1)
	for range rounds {
		first := rev + 1
		for range each {
			rev = m.put(fmt.Sprint("k", rev%9), fmt.Sprint(rev))
		}
		for i, w := range append(slices.Clone(starved), fed) {
			for want := first; want <= rev; want++ {
				if b := next(t, w); b.Revision != want || len(b.Events) != 1 {
					t.Fatalf("watch %d: %d events of revision %d, want one of %d", i, len(b.Events), b.Revision, want)
				}
			}
		}
	}
	if n := m.Space(store.SpaceEtcd).Stats().SlowWatchers; n < watches*rounds/2 {
		t.Fatalf("watches fell behind %d times: this has not starved them", n)
	}
}

// TestEtcd18089WatchDropsADeletionAtTheCompactedRevision: compaction at the
// revision of a deletion removed the deletion itself, although that revision can
// still be watched from.
func TestEtcd18089WatchDropsADeletionAtTheCompactedRevision(t *testing.T) {
	m := newMember(t)
	m.put("k", "1")
	m.put("other", "")
	m.do(storetest.Do(store.SpaceEtcd, storetest.Delete("k", "")))
	m.put("other", "2")
	m.do(storetest.Compact(store.SpaceEtcd, 4))
	check := func(m *member, when string) {
		b := next(t, m.watch(store.WatchOptions{Key: "k", From: 4, PrevKV: true}))
		want := store.Batch{Revision: 4, Events: []store.Event{{Type: store.EventDelete, KV: store.KV{Key: "k", ModRevision: 4}}}}
		if diff := cmp.Diff(want, b, cmpopts.IgnoreFields(store.Batch{}, "TimeNS")); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", when, diff)
		}
	}
	check(m, "compacted")
	for m.Maintain() {
	}
	check(m, "cleared away")
	back := newMember(t)
	back.restore(m.Snapshot())
	check(back, "restored")
	for back.Maintain() {
	}
	check(back, "restored and cleared away")
}

// TestEtcd19179MissingDeletionWhenWatchAndCompactionMeet: as 18089, for a watch
// that is opened at the very revision while the compaction runs.
func TestEtcd19179MissingDeletionWhenWatchAndCompactionMeet(t *testing.T) {
	for range 300 {
		m := newMember(t)
		m.put("k", "1")
		m.do(storetest.Do(store.SpaceEtcd, storetest.Delete("k", "")))
		var compaction sync.WaitGroup
		compaction.Go(func() {
			m.do(storetest.Compact(store.SpaceEtcd, 3))
			for m.Maintain() {
			}
		})
		w := m.watch(store.WatchOptions{Key: "k", From: 3})
		if b := next(t, w); b.Revision != 3 || len(b.Events) != 1 || b.Events[0].Type != store.EventDelete {
			t.Fatalf("the watch begins with %+v: %v", b, w.Err())
		}
		w.Stop()
		compaction.Wait()
	}
}

// TestEtcd20221WatchOnAFutureRevisionIsToldOfOlderOnes: a watch that was to begin
// in the future got a progress notification of the present, and a client that
// went on behind that was shown older events. The store's mark says where the
// space is, which a follower of a level needs; it never claims what is still to
// come. Who resumes from marks, etcdapi, leaves out those before the beginning;
// etcdapi/etcdtest tries that beside etcd.
func TestEtcd20221WatchOnAFutureRevisionIsToldOfOlderOnes(t *testing.T) {
	const from = 40
	m := newMember(t)
	w := m.watch(store.WatchOptions{From: from})
	for rev := store.Revision(1); rev < from; rev = m.put("k", "") {
		w.RequestProgress()
		if b := next(t, w); len(b.Events) != 0 || b.Revision != rev {
			t.Fatalf("at revision %d a watch from %d is sent %+v", rev, from, b)
		}
	}
	if b := next(t, w); b.Revision != from || len(b.Events) != 1 {
		t.Fatalf("a watch from %d begins with %+v", from, b)
	}
	w.RequestProgress()
	if b := next(t, w); len(b.Events) != 0 || b.Revision != from {
		t.Fatalf("then %+v, want a mark of %d", b, from)
	}
}

// TestEtcd20221WatchOnAFutureRevisionReturnsOlderEvents: the same watch, on a
// member that then caught up by a snapshot, was put back to the member's own
// revision and was sent what lay between. Here it ends, and its successor begins
// where it was to begin, be that still in the future or not.
func TestEtcd20221WatchOnAFutureRevisionReturnsOlderEvents(t *testing.T) {
	for _, from := range []store.Revision{60, 101, 120} {
		leader, follower := newMember(t), newMember(t)
		for range 10 {
			follower.put("k", "")
		}
		for range 100 {
			leader.put("k", "")
		}
		w := follower.watch(store.WatchOptions{From: from})
		follower.restore(leader.Snapshot())
		for _, b := range rest(t, w) {
			t.Errorf("a watch from %d is sent revision %d by a snapshot", from, b.Revision)
		}
		again := follower.watch(store.WatchOptions{From: from})
		for follower.revision() < 125 {
			follower.put("k", "")
		}
		for rev := from; rev <= 125; rev++ {
			if b := next(t, again); b.Revision != rev || len(b.Events) != 1 {
				t.Fatalf("a watch from %d is sent %d events of revision %d, want one of %d", from, len(b.Events), b.Revision, rev)
			}
		}
	}
}
