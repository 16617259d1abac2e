// Package compaction lets the leader forget old revisions: each space keeps its
// history up to a number of records and up to a part of its quota, so that no
// space fills up with what was. It refuses to measure time: on a quiet cluster
// history costs nothing and may be kept for ever.
package compaction

import (
	"context"
	"fmt"
	"time"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

const (
	// MaxRecords bounds the records of history that a space keeps. A watch that
	// fell behind by more lists again.
	MaxRecords = 200_000
	// quotaParts: history may take one part in so many of a space's quota.
	quotaParts = 4
	// keepParts: a compaction forgets so much that one part in two of what is
	// allowed stays. Compacting a little all the time would cost a write each.
	keepParts = 2
	// interval is how often the sizes are looked at.
	interval = 10 * time.Second
)

// Plan is the revision to compact to, or 0 for none. The revisions that are kept
// are taken to be of equal size.
func Plan(s store.Stats) store.Revision {
	over := 0.0 // how many times what is allowed is there
	if s.HistoryRecords > MaxRecords {
		over = float64(s.HistoryRecords) / MaxRecords
	}
	if allowed := s.QuotaBytes / quotaParts; allowed > 0 && s.HistoryBytes > allowed {
		over = max(over, float64(s.HistoryBytes)/float64(allowed))
	}
	kept := s.Revision - s.CompactRevision
	if over == 0 || kept <= 1 {
		return 0
	}
	keep := store.Revision(float64(kept) / over / keepParts)
	return s.Revision - max(keep, 1)
}

type concern struct {
	spaces  []*store.Space
	writers map[string]*control.Writer
}

// New makes the concern. Its keys are the names of spaces; writers has one for
// each.
func New(writers map[string]*control.Writer, spaces []*store.Space) control.Concern {
	c := &concern{spaces, writers}
	return control.Concern{Name: "compaction", List: c.list, Step: c.step}
}

func (c *concern) list(store.View) (names []string) {
	for _, s := range c.spaces {
		names = append(names, s.Name())
	}
	return names
}

func (c *concern) step(ctx context.Context, keys []string) (again []loop.Again) {
	for _, s := range c.spaces {
		for _, key := range keys {
			if key == s.Name() {
				again = append(again, loop.Again{Key: key, After: interval, Err: c.compact(ctx, s)})
			}
		}
	}
	return again
}

func (c *concern) compact(ctx context.Context, s *store.Space) error {
	revision := Plan(s.Stats())
	if revision == 0 {
		return nil
	}
	about := fmt.Sprintf("compact space %q to revision %d", s.Name(), revision)
	return c.writers[s.Name()].Do(ctx, about, &internalv1.Command{Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: int64(revision)}}})
}
