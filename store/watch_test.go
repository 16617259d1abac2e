package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func watching(t *testing.T, sp *Space, o WatchOptions) *Watcher {
	t.Helper()
	w, err := sp.Watch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

func TestWatchOptionsAreChecked(t *testing.T) {
	sp := New(Options{Limits: Limits{Watchers: 1}}).Space(SpaceEtcd)
	for _, o := range []WatchOptions{
		{Key: "a", Prefix: "b"}, {Key: "a", End: "b"}, {Prefix: "a", Start: "b"},
		{Start: "b", End: "a"}, {From: -1}, {Buffer: -1}, {Buffer: MaxWatchBuffer + 1},
	} {
		if _, err := sp.Watch(t.Context(), o); !errors.Is(err, ErrWatchOptions) {
			t.Errorf("watch with %+v: %v", o, err)
		}
	}
	w := watching(t, sp, WatchOptions{})
	if _, err := sp.Watch(t.Context(), WatchOptions{}); !errors.Is(err, ErrTooManyWatchers) {
		t.Errorf("one watch too many: %v", err)
	}
	w.Stop()
	for range w.Events() {
	}
	watching(t, sp, WatchOptions{})
}

func TestWatchFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(t, Options{})
		sp := d.Space(SpaceEtcd)
		cases := map[string]WatchOptions{
			"a":           {Key: "a"},
			"a a/1 a/2":   {Prefix: "a"},
			"a/2 b":       {Start: "a/2"},
			"a/1 a/2":     {Start: "a/", End: "b"},
			"a a/1 a/2 b": {},
		}
		watches := map[string]*Watcher{}
		for want, o := range cases {
			watches[want] = watching(t, sp, o)
		}
		synctest.Wait()
		for _, key := range []string{"a", "a/1", "a/2", "b"} {
			d.put(SpaceEtcd, key, "")
		}
		synctest.Wait()
		for want, w := range watches {
			w.Stop()
			got := ""
			for b := range w.Events() {
				got += " " + b.Events[0].KV.Key
			}
			if got != " "+want {
				t.Errorf("a watch for %q delivers%q", want, got)
			}
		}
	})
}

func TestWatchFromTheFuture(t *testing.T) {
	d := newDriver(t, Options{})
	w := watching(t, d.Space(SpaceEtcd), WatchOptions{From: 4})
	expectMark(t, w)
	for range 3 {
		d.put(SpaceEtcd, "a", "")
	}
	if b := <-w.Events(); b.Revision != 4 {
		t.Fatalf("a watch from revision 4 begins with %d", b.Revision)
	}
}

// TestSlowWatchLosesNothing: with a buffer of one and nobody reading, the watch
// leaves the live feed, and still delivers everything in order.
func TestSlowWatchLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(t, Options{})
		sp := d.Space(SpaceEtcd)
		w := watching(t, sp, WatchOptions{Prefix: "k", Buffer: 1})
		synctest.Wait()
		for i := range 3 * catchUpRecords {
			d.put(SpaceEtcd, fmt.Sprint("k", i%10), fmt.Sprint(i))
		}
		synctest.Wait()
		if n := sp.Stats().SlowWatchers; n != 1 {
			t.Fatalf("the watch has fallen off %d times", n)
		}
		for i := range 3 * catchUpRecords {
			if b := <-w.Events(); b.Revision != Revision(i+2) || string(b.Events[0].KV.Value) != fmt.Sprint(i) {
				t.Fatalf("batch %d is %v", i, b)
			}
		}
		synctest.Wait()
		d.put(SpaceEtcd, "k", "live again")
		if b := <-w.Events(); string(b.Events[0].KV.Value) != "live again" {
			t.Fatalf("then %v", b)
		}
	})
}

func TestSlowWatchFallsOutOfHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(t, Options{})
		sp := d.Space(SpaceEtcd)
		w := watching(t, sp, WatchOptions{Buffer: 1})
		synctest.Wait()
		for range 2 * catchUpRecords {
			d.put(SpaceEtcd, "a", "")
		}
		synctest.Wait()
		d.compact(SpaceEtcd, 2*catchUpRecords)
		var last Revision
		for b := range w.Events() {
			if last != 0 && b.Revision != last+1 {
				t.Fatalf("revision %d after %d", b.Revision, last)
			}
			last = b.Revision
		}
		var at *CompactedError
		if !errors.As(w.Err(), &at) || at.Revision != last+1 || at.Compact != 2*catchUpRecords {
			t.Fatalf("after revision %d the watch ended with %v", last, w.Err())
		}
		if n := sp.Stats().CompactedWatchers; n != 1 {
			t.Fatalf("%d watches lost their place", n)
		}
	})
}

// TestWatchKeepsWhatItWasOpenedFor: what is compacted right after Watch has
// returned is still delivered.
func TestWatchKeepsWhatItWasOpenedFor(t *testing.T) {
	d := newDriver(t, Options{})
	d.put(SpaceEtcd, "a", "1")
	d.put(SpaceEtcd, "a", "2")
	w := watching(t, d.Space(SpaceEtcd), WatchOptions{From: 2})
	d.compact(SpaceEtcd, 3)
	for rev := Revision(2); rev <= 3; rev++ {
		if b := <-w.Events(); b.Revision != rev {
			t.Fatalf("revision %d, want %d", b.Revision, rev)
		}
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sp := New(Options{}).Space(SpaceEtcd)
		ctx, cancel := context.WithCancel(t.Context())
		w, err := sp.Watch(ctx, WatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		stopped := watching(t, sp, WatchOptions{})
		synctest.Wait()
		cancel()
		stopped.Stop()
		stopped.Stop()
		for range w.Events() {
		}
		for range stopped.Events() {
		}
		if !errors.Is(w.Err(), context.Canceled) || stopped.Err() != nil {
			t.Fatalf("errors %v and %v", w.Err(), stopped.Err())
		}
		synctest.Wait()
		if n := sp.Stats().Watchers; n != 0 || sp.hub.running {
			t.Fatalf("%d watches are open, the hub runs: %v", n, sp.hub.running)
		}
	})
}

func TestProgressComesBehindWhatItCovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(t, Options{})
		w := watching(t, d.Space(SpaceEtcd), WatchOptions{Buffer: 1})
		synctest.Wait()
		d.put(SpaceEtcd, "a", "")
		synctest.Wait()
		w.RequestProgress() // finds the buffer full
		synctest.Wait()
		d.put(SpaceEtcd, "a", "")
		var got []Revision
		for b := range w.Events() {
			if len(b.Events) == 0 {
				if len(got) != int(b.Revision)-1 {
					t.Fatalf("mark %d after %v", b.Revision, got)
				}
				break
			}
			got = append(got, b.Revision)
		}
	})
}

func TestNotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(t, Options{})
		sp := d.Space(SpaceEtcd)
		closed := func(ch <-chan struct{}) bool {
			select {
			case <-ch:
				return true
			default:
				return false
			}
		}
		a, b, leases := sp.Changed("a/"), sp.Changed("b/"), sp.LeasesChanged()
		if sp.Changed("a/") != a {
			t.Error("those who wait for the same prefix do not share")
		}
		d.put(SpaceEtcd, "a/1", "")
		if !closed(a) || closed(b) || closed(leases) || closed(sp.Changed("a/")) {
			t.Error("a put closes the wrong notes")
		}
		d.do(chosenLease())
		if !closed(leases) || closed(sp.LeasesChanged()) {
			t.Error("a grant closes the wrong notes")
		}

		var order []Revision
		var mu sync.Mutex
		for _, rev := range []Revision{5, 4, 5} {
			go func() {
				if err := sp.WaitRevision(t.Context(), rev); err != nil || sp.View().Revision() < rev {
					t.Errorf("revision %d at %d: %v", rev, sp.View().Revision(), err)
				}
				mu.Lock()
				order = append(order, rev)
				mu.Unlock()
			}()
		}
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if err := sp.WaitRevision(ctx, 100); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled wait: %v", err)
		}
		if err := sp.WaitRevision(t.Context(), 2); err != nil {
			t.Error(err)
		}
		for range 3 {
			synctest.Wait()
			d.put(SpaceEtcd, "b", "")
		}
		synctest.Wait()
		if diff := cmp.Diff([]Revision{4, 5, 5}, order); diff != "" {
			t.Error(diff)
		}
		if n := len(sp.notes.revisions); n != 0 {
			t.Errorf("%d notes are left", n)
		}
	})
}
