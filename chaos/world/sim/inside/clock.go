package inside

import (
	"math"

	"sync"
	"time"
	"unsafe"

	"github.com/balsa-run/balsa/internal/clock"
)

// machineClock is the clock of a machine, which can be wrong. Its wall time may be
// anywhere; its monotonic reading drifts at most driftMax away from the runtime's,
// because the raft library takes its readings from the runtime and some of ours
// are compared with those.
type machineClock struct {
	mu     sync.Mutex
	skew   time.Duration // guarded by mu; of the wall time alone
	gained time.Duration // guarded by mu; of both, until since
	rate   time.Duration // guarded by mu; what is gained in a second
	since  time.Time     // guarded by mu
}

const driftMax = time.Second

func newMachineClock() *machineClock { return &machineClock{since: time.Now()} }

// Now is the machine's time: what it has gained moves both readings, what it was
// set by only that of the wall.
func (c *machineClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	return unmoved(now.Add(c.gainedLocked(now)), c.skew)
}

func (c *machineClock) gainedLocked(now time.Time) time.Duration {
	gained := c.gained + time.Duration(now.Sub(c.since).Seconds()*float64(c.rate))
	return min(max(gained, -driftMax), driftMax)
}

// unmoved moves a time's wall reading by d and leaves its monotonic one. The
// package time has no way to say that, though it is what a machine shows whose
// clock is set; so this reaches into it, and TestUnmoved holds that it does what
// it says.
func unmoved(t time.Time, d time.Duration) time.Time {
	moved := t.Add(d)
	if moved.Round(0) == moved { // == tells whether there is a monotonic reading
		return moved
	}
	inner := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&moved))
	inner.ext -= int64(d)
	return moved
}

// NewTimer is a timer that goes as the clock does.
func (c *machineClock) NewTimer(d time.Duration) clock.Timer {
	return &machineTimer{clock: c, timer: time.NewTimer(c.lasts(d))}
}

// lasts is how long it takes until this clock has moved on by d: never nothing, or
// whoever waits for the last nanosecond waits for ever, since time does not pass
// while somebody is busy.
func (c *machineClock) lasts(d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gained := c.gainedLocked(time.Now()); c.rate == 0 || gained == driftMax || gained == -driftMax {
		return d
	}
	return time.Duration(math.Ceil(float64(d) / (1 + c.rate.Seconds())))
}

// jump sets the wall time by d, on top of what it is wrong by already.
func (c *machineClock) jump(d time.Duration) (undo func()) {
	c.move(func() { c.skew += d })
	return func() { c.move(func() { c.skew -= d }) }
}

// drift lets the clock gain rate in each second.
func (c *machineClock) drift(rate time.Duration) (undo func()) {
	c.move(func() { c.rate += rate })
	return func() { c.move(func() { c.rate -= rate }) }
}

func (c *machineClock) move(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.gained, c.since = c.gainedLocked(now), now
	change()
}

type machineTimer struct {
	clock *machineClock
	timer *time.Timer
}

func (t *machineTimer) C() <-chan time.Time        { return t.timer.C }
func (t *machineTimer) Stop() bool                 { return t.timer.Stop() }
func (t *machineTimer) Reset(d time.Duration) bool { return t.timer.Reset(t.clock.lasts(d)) }
