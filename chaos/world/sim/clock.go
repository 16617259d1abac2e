package sim

import (
	"time"

	"github.com/tetratelabs/wazero/sys"
)

const (
	// epoch is when every run begins: 2026-01-01 00:00:00 UTC.
	epoch = 1_767_225_600 * int64(time.Second)
	// readCost is how long it takes to read the clock. It is more than nothing,
	// so that a program that waits for the clock without sleeping gets on.
	readCost = int64(100 * time.Nanosecond)
	// yieldCost is how long it takes to offer the processor to nobody.
	yieldCost = int64(time.Microsecond)

	// exitStopped is the code with which a run is unwound; nobody sees it.
	exitStopped = 1
)

// clock is the program's time. It moves on when it is read, a little, and when
// the program has nothing to do, by as much as it waits: computing costs nothing.
type clock struct {
	now, limit  int64
	over        bool
	interrupted <-chan struct{} // closed when the run must end for a reason of ours
}

func (c *clock) elapsed() time.Duration { return time.Duration(c.now - epoch) }

func (c *clock) walltime() (seconds int64, nanoseconds int32) {
	c.advance(readCost)
	return c.now / int64(time.Second), int32(c.now % int64(time.Second))
}

func (c *clock) nanotime() int64 {
	c.advance(readCost)
	return c.now - epoch + 1 // the runtime takes 0 for a clock that does not work
}

func (c *clock) sleep(ns int64) { c.advance(max(ns, 0)) }
func (c *clock) yield()         { c.advance(yieldCost) }

// advance ends the run from inside when its time is up: the panic unwinds the
// program and comes out of the call that runs it.
func (c *clock) advance(ns int64) {
	if ns >= c.limit-c.now {
		c.now, c.over = c.limit, true
		panic(sys.NewExitError(exitStopped))
	}
	c.now += ns
	select {
	case <-c.interrupted:
		panic(sys.NewExitError(exitStopped))
	default:
	}
}
