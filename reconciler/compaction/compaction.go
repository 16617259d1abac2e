// Package compaction lets the leader forget old revisions: each space keeps its
// history up to a number of records and up to a part of its quota, so that no
// space fills up with what was. On a quiet cluster history costs nothing and may be
// kept for ever.
//
// The etcd space belongs to programs that compact it themselves, and that read in the
// past or watch from it meanwhile, Kubernetes for five minutes. So the number of records
// is no reason there to forget what is younger than KeepFor; the quota is.
package compaction

import (
	"context"
	"fmt"
	"time"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
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
	// KeepFor is how long the etcd space keeps its history, whatever MaxRecords says. A
	// new leader does not know how old anything is, and takes it to be new.
	KeepFor = 10 * time.Minute
)

// Plan is the revision to compact to, or 0 for none. Up to settled the history is old
// enough to be forgotten for its number. The revisions that are kept are taken to be of
// equal size.
func Plan(s store.Stats, settled store.Revision) store.Revision {
	byNumber := forget(s, float64(s.HistoryRecords)/MaxRecords)
	if byNumber > settled {
		byNumber = settled
		if settled-s.CompactRevision < (s.Revision-s.CompactRevision)/keepParts {
			byNumber = 0 // not yet enough to be worth a write
		}
	}
	byBytes := store.Revision(0)
	if allowed := s.QuotaBytes / quotaParts; allowed > 0 {
		byBytes = forget(s, float64(s.HistoryBytes)/float64(allowed))
	}
	return max(byNumber, byBytes)
}

// forget is where to compact to, of a history that has over times what is allowed.
func forget(s store.Stats, over float64) store.Revision {
	kept := s.Revision - s.CompactRevision
	if over <= 1 || kept <= 1 {
		return 0
	}
	keep := store.Revision(float64(kept) / over / keepParts)
	return s.Revision - max(keep, 1)
}

// ages is what a leader knows of how old the revisions of a space are: one mark for each
// interval, back to KeepFor.
type ages struct{ marks []mark }

type mark struct {
	at       time.Time
	revision store.Revision
}

// settled notes the newest revision, and returns the newest one that is known to be
// KeepFor old; 0 when none is.
func (a *ages) settled(now time.Time, newest store.Revision) store.Revision {
	if n := len(a.marks); n == 0 || now.Sub(a.marks[n-1].at) >= interval {
		a.marks = append(a.marks, mark{now, newest})
	}
	old := store.Revision(0)
	for len(a.marks) > 0 && now.Sub(a.marks[0].at) >= KeepFor {
		old = a.marks[0].revision
		if len(a.marks) == 1 || now.Sub(a.marks[1].at) < KeepFor {
			break // it stays the newest one that is old enough
		}
		a.marks = a.marks[1:]
	}
	return old
}

type concern struct {
	clock   clock.Clock
	spaces  []*store.Space
	writers map[string]*control.Writer
	etcd    ages
}

// New makes the concern of one term. Its keys are the names of spaces; writers has one
// for each.
func New(now clock.Clock, writers map[string]*control.Writer, spaces []*store.Space) control.Concern {
	c := &concern{clock: now, spaces: spaces, writers: writers}
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
	stats := s.Stats()
	settled := stats.Revision
	if s.Name() == store.SpaceEtcd {
		settled = c.etcd.settled(c.clock.Now(), stats.Revision)
	}
	revision := Plan(stats, settled)
	if revision == 0 {
		return nil
	}
	about := fmt.Sprintf("compact space %q to revision %d", s.Name(), revision)
	return c.writers[s.Name()].Do(ctx, about, &internalv1.Command{Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: int64(revision)}}})
}
