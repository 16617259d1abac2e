package node

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// signal is level-triggered: raised once or many times, it is taken once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// lockedRand is a source of chance for many goroutines.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand // guarded by mu
}

// spread is d, less up to half of it.
func (l *lockedRand) spread(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return d - time.Duration(l.r.Int64N(int64(d)/2+1))
}

// retry waits ever longer between failures.
type retry struct {
	clock  clock.Clock
	random *lockedRand
	next   time.Duration
}

func (a *Agent) newRetry() *retry { return &retry{clock: a.cfg.Clock, random: a.random} }

func (r *retry) reset() { r.next = 0 }

func (r *retry) pause(ctx context.Context) error {
	return sleep(ctx, r.clock, r.delay())
}

func (r *retry) delay() time.Duration {
	r.next = min(max(2*r.next, retryMin), retryMax)
	return r.random.spread(r.next)
}

// wait waits for the signal or a time; zero time: for the signal alone.
func (s signal) wait(ctx context.Context, c clock.Clock, d time.Duration) error {
	if d <= 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s:
			return nil
		}
	}
	timer := c.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s:
	case <-timer.C():
	}
	return nil
}
