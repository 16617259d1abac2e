package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestEverybodyAtOnce runs readers, watches, a snapshotter, a scrubber and a
// purger against a writer that puts, deletes and compacts. Each transaction
// moves one unit between two accounts, so every view has the same total.
func TestEverybodyAtOnce(t *testing.T) {
	const accounts, entries = 8, 3000
	opts := Options{
		Limits: Limits{PurgeRecords: 3},
		Decode: func(_ string, value []byte, mod int64) (proto.Message, error) {
			return wrapperspb.Bytes(append(value[:1:1], byte(mod))), nil
		},
		Index: func(string, proto.Message) []IndexEntry { return []IndexEntry{{"all", ""}} },
	}
	d := newDriver(t, opts)
	for i := range accounts {
		d.put(SpaceObjects, fmt.Sprint("acc/", i), string([]byte{100}))
	}
	sp := d.Space(SpaceObjects)
	ctx, done := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { readTotals(ctx, t, sp, accounts) })
		wg.Go(func() { watchOrder(ctx, t, sp) })
	}
	wg.Go(func() { followLevel(ctx, sp) })
	wg.Go(func() { snapshotAgain(ctx, t, d.Store, opts) })
	wg.Go(func() {
		for ctx.Err() == nil {
			d.Maintain()
			if err := scrub(sp); err != nil {
				t.Error(err)
				return
			}
		}
	})
	balance := [accounts]byte{}
	for i := range balance {
		balance[i] = 100
	}
	for i := range entries {
		from, to := i%accounts, (i*3+1)%accounts
		if from == to || balance[from] == 0 || balance[to] == 255 {
			continue
		}
		balance[from]--
		balance[to]++
		rev := d.do(command(SpaceObjects,
			putOp(fmt.Sprint("acc/", from), string(balance[from:from+1])),
			putOp(fmt.Sprint("acc/", to), string(balance[to:to+1])),
			putOp(fmt.Sprint("noise/", i%50), "x"), deleteOp(fmt.Sprint("noise/", (i+25)%50), ""))).Revision
		if i%100 == 99 {
			d.compact(SpaceObjects, Revision(rev-50))
		}
	}
	done()
	wg.Wait()
}

func readTotals(ctx context.Context, t *testing.T, sp *Space, accounts int) {
	for ctx.Err() == nil {
		v := sp.View()
		if old, err := sp.ViewAt(v.Revision() - 3); err == nil && old.Revision() > Revision(accounts) {
			v = old
		}
		sum, n := 0, 0
		for kv := range v.Prefix("acc/") {
			sum, n = sum+int(kv.Value[0]), n+1
			if kv.Object.(*wrapperspb.BytesValue).GetValue()[1] != byte(kv.ModRevision) {
				t.Error("the object is not that of the value")
			}
		}
		for range v.ByIndex("all", "") {
			n++
		}
		if sum != 100*accounts || n < 2*accounts {
			t.Errorf("total %d of %d keys at revision %d", sum, n, v.Revision())
			return
		}
	}
}

// watchOrder opens watches that start in the past and reads some of each. What
// a watch has delivered a reader must see.
func watchOrder(ctx context.Context, t *testing.T, sp *Space) {
	for round := 0; ctx.Err() == nil; round++ {
		from := sp.View().Revision() - 5
		w, err := sp.Watch(ctx, WatchOptions{Prefix: "acc/", From: max(from, 1), PrevKV: true, Buffer: 1 + round%3})
		if err != nil {
			continue // compacted meanwhile
		}
		last := from - 1
		for b := range w.Events() {
			mark := len(b.Events) == 0
			if sp.View().Revision() < b.Revision || !mark && b.Revision <= last || mark && last >= from && b.Revision < last {
				t.Errorf("revision %d after %d, mark: %v, a reader is at %d", b.Revision, last, mark, sp.View().Revision())
			}
			if last = max(last, b.Revision); last > from+40 {
				break
			}
			if !mark && round%2 == 0 {
				w.RequestProgress()
			}
		}
		w.Stop()
		for range w.Events() {
		}
	}
}

func followLevel(ctx context.Context, sp *Space) {
	for ctx.Err() == nil {
		changed := sp.Changed("noise/")
		rev := sp.View().Revision()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		if sp.WaitRevision(ctx, rev+1) != nil {
			return
		}
	}
}

func snapshotAgain(ctx context.Context, t *testing.T, s *Store, opts Options) {
	for ctx.Err() == nil {
		var b bytes.Buffer
		snap := s.Snapshot()
		if _, err := snap.WriteTo(io.Writer(&b)); err != nil {
			t.Error(err)
			return
		}
		again := New(opts)
		if err := again.Restore(&b); err != nil || again.AppliedIndex() != snap.Index() {
			t.Errorf("restore of a snapshot at index %d: %v", snap.Index(), err)
			return
		}
	}
}
