package leases

import (
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// maxStep is how much of the time between two looks at the clock counts at most.
// The loop looks much more often, so only a jump or a pause is ever cut.
const maxStep = time.Second

// stopwatch is the time that has passed in a term, as far as somebody looked. It
// uses the differences of the clock's monotonic reading where there is one, never
// runs backwards, and does not believe in jumps. Not for several goroutines.
type stopwatch struct {
	clock  clock.Clock
	last   time.Time
	passed time.Duration
}

func newStopwatch(c clock.Clock) stopwatch { return stopwatch{clock: c, last: c.Now()} }

func (s *stopwatch) now() time.Duration {
	t := s.clock.Now()
	s.passed += min(max(t.Sub(s.last), 0), maxStep)
	s.last = t
	return s.passed
}

// allowance is how many leases may be revoked now: a bucket that fills up by the
// second.
type allowance struct {
	perSecond, most int
	filled          time.Duration // when it was last filled
	tokens          int
}

func (a *allowance) at(now time.Duration) int {
	each := time.Second / time.Duration(a.perSecond)
	if more := int((now - a.filled) / each); more > 0 {
		a.tokens = min(a.tokens+more, a.most)
		a.filled += time.Duration(more) * each
	}
	return a.tokens
}

func (a *allowance) take(n int) { a.tokens -= n }
