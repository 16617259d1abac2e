package core

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/store"
)

const (
	// DefaultScrubEvery is the pause between two scrubs. A million keys take some
	// seconds of one core, spread over a minute.
	DefaultScrubEvery = time.Hour
	// scrubKeys are looked at in one go, and after each a scrub rests, so that it
	// takes little of the processor from anybody.
	scrubKeys = 256
	scrubRest = 10 * time.Millisecond
)

// scrubber looks through all that the store holds, again and again, for what is
// not as it was written: memory that has flipped a bit, a reader that has changed
// what all share. Members compare what they have applied all the time; this is
// about what one of them has kept of it.
type scrubber struct {
	store   *store.Store
	every   time.Duration
	clock   clock.Clock
	metrics cluster.Metrics
	logger  *slog.Logger
	fatal   func(error)
}

// run scrubs until ctx ends or something is found. Then the server must not go
// on: nobody may read that, and no snapshot of it may be taken. What is on its
// disk and on the others' is as it was, so it may start again.
func (s *scrubber) run(ctx context.Context) {
	for s.pause(ctx, s.every) {
		began := s.clock.Now()
		for _, space := range s.store.Spaces() {
			if err := s.scrub(ctx, space); err != nil {
				s.metrics.Add("store_scrub_damage", 1)
				s.logger.Error("the scrub has found damage", "error", err)
				s.fatal(fmt.Errorf("this server's memory does not hold what was written; its disk is not affected: check the machine's memory, then start it again: %w", err))
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.metrics.Add("store_scrubs", 1)
		s.metrics.Observe("store_scrub_seconds", s.clock.Now().Sub(began).Seconds())
	}
}

// scrub looks through one space; nil also when ctx has ended before.
func (s *scrubber) scrub(ctx context.Context, space *store.Space) error {
	scrub := space.Scrub()
	for {
		done, err := scrub.Step(scrubKeys)
		if err != nil {
			return fmt.Errorf("scrub of space %q at revision %d: %w", space.Name(), scrub.Revision(), err)
		}
		if done || !s.pause(ctx, scrubRest) {
			return nil
		}
	}
}

func (s *scrubber) pause(ctx context.Context, d time.Duration) bool {
	timer := s.clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-ctx.Done():
		return false
	}
}
