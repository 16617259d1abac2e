package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// Defaults of Options.
const (
	DefaultBatch      = 256
	DefaultBackoffMin = 10 * time.Millisecond
	DefaultBackoffMax = 30 * time.Second
	// DefaultResync is how often a loop looks at everything, should an event have
	// been missed. A plan that finds all in order writes nothing.
	DefaultResync = 5 * time.Minute
)

// ErrStop, in what a step reports, ends the loop: nothing more that it plans can
// be written.
var ErrStop = errors.New("loop: stop")

// Options describe one loop. Queue, Clock, Rand, Logger and Step are required.
type Options struct {
	// Name is for the log.
	Name   string
	Queue  *Queue
	Clock  clock.Clock
	Rand   *rand.Rand
	Logger *slog.Logger
	// List gives every key there is: looked at when the loop starts, when the
	// queue overflowed and every Resync. nil: a loop of the one key "".
	List func() []string
	// Step looks at keys, which are sorted and differ. It reports what is to be
	// looked at again; a key it does not mention is done.
	Step func(ctx context.Context, keys []string) []Again
	// Settle is how long a loop waits after the first change for others.
	Settle time.Duration
	// Batch bounds the keys of a step.
	Batch                  int
	BackoffMin, BackoffMax time.Duration
	Resync                 time.Duration
}

// Again asks for another look at a key.
type Again struct {
	Key string
	// After is when, for a key that is only not due yet.
	After time.Duration
	// Err is what failed: the key comes back after its back-off.
	Err error
}

// Run loops until ctx ends or a step reports ErrStop, and returns which. It
// looks at everything first.
func Run(ctx context.Context, o Options) error {
	l := &looper{Options: withDefaults(o), failures: map[string]int{}}
	l.Queue.AddAll()
	l.resync = l.Clock.Now().Add(l.Resync)
	for {
		if err := l.pause(ctx); err != nil {
			return err
		}
		keys := l.batch()
		if err := l.report(keys, l.Step(ctx, keys)); err != nil {
			return err
		}
	}
}

type looper struct {
	Options
	// sweep holds the keys of a look at everything that are not yet done, sorted.
	sweep    []string
	failures map[string]int
	resync   time.Time
}

func withDefaults(o Options) Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	set(&o.BackoffMin, DefaultBackoffMin)
	set(&o.BackoffMax, DefaultBackoffMax)
	set(&o.Resync, DefaultResync)
	if o.Batch <= 0 {
		o.Batch = DefaultBatch
	}
	if o.List == nil {
		o.List = func() []string { return []string{""} }
	}
	return o
}

// pause waits until there is work, and then Settle for more of it.
func (l *looper) pause(ctx context.Context) error {
	if len(l.sweep) > 0 {
		return context.Cause(ctx)
	}
	if err := l.awaitWork(ctx); err != nil {
		return err
	}
	if l.Settle <= 0 {
		return context.Cause(ctx)
	}
	timer := l.Clock.NewTimer(l.Settle)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
		return nil
	}
}

// awaitWork waits for the queue, or for the next look at everything.
func (l *looper) awaitWork(ctx context.Context) error {
	if err := l.Queue.wait(ctx, l.resync); err != nil {
		return err
	}
	if now := l.Clock.Now(); !now.Before(l.resync) {
		l.resync = now.Add(l.Resync)
		l.Queue.AddAll()
	}
	return nil
}

// batch takes the keys of the next step: first those that something happened to.
func (l *looper) batch() []string {
	keys, all := l.Queue.take(l.Batch)
	if all {
		l.sweep = l.List()
		slices.Sort(l.sweep)
		l.sweep = slices.Compact(l.sweep)
		l.forget()
	}
	room := min(l.Batch-len(keys), len(l.sweep))
	keys = append(keys, l.sweep[:room]...)
	l.sweep = l.sweep[room:]
	slices.Sort(keys)
	return slices.Compact(keys)
}

// forget drops the failures of keys that are no more, at a look at everything.
func (l *looper) forget() {
	for key := range l.failures {
		if _, known := slices.BinarySearch(l.sweep, key); !known {
			delete(l.failures, key)
		}
	}
}

// report puts back what a step could not finish, and forgets the failures of
// the keys that it could.
func (l *looper) report(keys []string, again []Again) error {
	failed := map[string]int{}
	for _, a := range again {
		switch {
		case errors.Is(a.Err, ErrStop):
			return fmt.Errorf("%s: %w", l.Name, a.Err)
		case a.Err != nil:
			failed[a.Key] = l.failures[a.Key] + 1
			l.retry(a, failed[a.Key])
		default:
			l.Queue.AddAfter(a.Key, a.After)
		}
	}
	for _, key := range keys {
		delete(l.failures, key)
	}
	for key, n := range failed {
		l.failures[key] = n
	}
	return nil
}

// quietFailures is how often a key may fail before it is worth a warning: a
// conflict with another writer is normal.
const quietFailures = 3

func (l *looper) retry(a Again, failures int) {
	delay := l.backoff(failures)
	level := slog.LevelDebug
	if failures > quietFailures {
		level = slog.LevelWarn
	}
	l.Logger.Log(context.Background(), level, "look again", "loop", l.Name, "key", a.Key, "error", a.Err, "failures", failures, "delay", delay)
	l.Queue.AddAfter(a.Key, delay)
}

// backoff doubles with each failure; chance takes up to half of it away, so that
// keys that failed together do not come back together.
func (l *looper) backoff(failures int) time.Duration {
	delay := l.BackoffMax
	if shift := failures - 1; shift < 32 && l.BackoffMin<<shift < l.BackoffMax && l.BackoffMin<<shift > 0 {
		delay = l.BackoffMin << shift
	}
	return delay - time.Duration(l.Rand.Int64N(int64(delay)/2+1))
}

// Failed reports that every key failed with err.
func Failed(keys []string, err error) []Again {
	again := make([]Again, len(keys))
	for i, key := range keys {
		again[i] = Again{Key: key, Err: err}
	}
	return again
}
