package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// tally counts what is measured.
type tally struct {
	unmeasured
	mu     sync.Mutex
	counts map[string]float64 // guarded by mu
}

func (c *tally) Add(name string, delta float64, _ ...cluster.Label) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[name] += delta
}

func (c *tally) now() map[string]float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// stocked is a store with so many ConfigMaps.
func stocked(t *testing.T, objects int) *store.Store {
	t.Helper()
	s := store.New(store.Options{Decode: object.Decode, Index: indexes})
	for i := range objects {
		m := &balsav1.ConfigMap{ApiVersion: "v1", Kind: "ConfigMap", Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("c%05d", i)}}
		value, err := object.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		put := &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.KeyOf(m)), Value: value}}}
		command := &internalv1.Command{Space: store.SpaceObjects, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: []*internalv1.Op{put}}}}
		if r := s.Apply(uint64(i+1), 1, []*internalv1.Command{command})[0]; r.GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
			t.Fatal(r)
		}
	}
	return s
}

// TestScrubRunsAndStops lets the scrub run for some rounds, then has a reader
// change an object that all share: the server is told to stop, once.
func TestScrubRunsAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted, s := &tally{counts: map[string]float64{}}, stocked(t, 3*scrubKeys)
		fatal := make(chan error, 2)
		run := func(ctx context.Context) {
			scrubbing := &scrubber{
				store: s, every: time.Minute, clock: clock.Real{}, metrics: counted, logger: slog.New(slog.DiscardHandler),
				fatal: func(err error) { fatal <- err },
			}
			scrubbing.run(ctx)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+30*time.Second)
		defer cancel()
		run(ctx)
		if got := counted.now(); got["store_scrubs"] != 5 || got["store_scrub_damage"] != 0 || len(fatal) != 0 {
			t.Fatalf("after five minutes: %v, %d fatal", got, len(fatal))
		}
		shared, _ := s.Space(store.SpaceObjects).View().Get("configmaps/default/c00700")
		shared.Object.(*balsav1.ConfigMap).Data = map[string]string{"not": "mine"}
		run(t.Context())
		err := <-fatal
		if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), "configmaps/default/c00700") {
			t.Errorf("stopped with %v", err)
		}
		if got := counted.now(); got["store_scrubs"] != 5 || got["store_scrub_damage"] != 1 || len(fatal) != 0 {
			t.Errorf("in the end: %v, %d more fatal", got, len(fatal))
		}
	})
}

// TestScrubEnds with its context, in the middle of a space too.
func TestScrubEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute+scrubRest/2)
		defer cancel()
		counted := &tally{counts: map[string]float64{}}
		scrubbing := &scrubber{
			store: stocked(t, 3*scrubKeys), every: time.Minute, clock: clock.Real{}, metrics: counted, logger: slog.New(slog.DiscardHandler),
			fatal: func(err error) { t.Error(err) },
		}
		scrubbing.run(ctx)
		if got := counted.now(); len(got) != 0 {
			t.Errorf("a scrub that did not come to its end counts: %v", got)
		}
	})
}
