package clock

import (
	"sync"
	"time"
)

// Fake is a clock that a test moves by hand. Its methods may be called from
// any goroutine.
type Fake struct {
	mu     sync.Mutex
	now    time.Time    // guarded by mu
	timers []*fakeTimer // guarded by mu; those that are running
}

// NewFake returns a clock that stands at now.
func NewFake(now time.Time) *Fake { return &Fake{now: now} }

// Now is the time the test has set.
func (f *Fake) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// NewTimer returns a timer that fires once Advance has moved the clock by d.
func (f *Fake) NewTimer(d time.Duration) Timer {
	t := &fakeTimer{clock: f, c: make(chan time.Time, 1)}
	t.Reset(d)
	return t
}

// Advance moves the clock forward and fires the timers that fall due.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
	f.fireLocked()
}

// Set moves the clock to now, also backwards: timers that are not yet due stay.
func (f *Fake) Set(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = now
	f.fireLocked()
}

func (f *Fake) fireLocked() {
	waiting := f.timers[:0]
	for _, t := range f.timers {
		if t.due.After(f.now) {
			waiting = append(waiting, t)
			continue
		}
		t.c <- f.now
	}
	clear(f.timers[len(waiting):])
	f.timers = waiting
}

func (f *Fake) removeLocked(t *fakeTimer) bool {
	for i, other := range f.timers {
		if other == t {
			f.timers = append(f.timers[:i], f.timers[i+1:]...)
			return true
		}
	}
	return false
}

type fakeTimer struct {
	clock *Fake
	c     chan time.Time
	due   time.Time // guarded by clock.mu
}

func (t *fakeTimer) C() <-chan time.Time { return t.c }

func (t *fakeTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	t.drain()
	return t.clock.removeLocked(t)
}

func (t *fakeTimer) Reset(d time.Duration) bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	t.drain()
	active := t.clock.removeLocked(t)
	t.due = t.clock.now.Add(d)
	t.clock.timers = append(t.clock.timers, t)
	t.clock.fireLocked()
	return active
}

// drain keeps the promise of Timer: no stale value after Stop or Reset.
func (t *fakeTimer) drain() {
	select {
	case <-t.c:
	default:
	}
}
