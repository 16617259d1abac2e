package sim

import (
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// A program that computes without end, and never asks the host for anything, cannot
// be stopped: its code has no place where Go's scheduler could take it off its
// processor (Config.Interruptible adds such places, for half the speed). Nothing is
// lost by leaving it alone until the process ends, provided that somebody notices.

// hostMemory is from where on the host collects its garbage after KeepWatch. A run
// leaves a few hundred KiB.
const hostMemory = 2 << 30

// KeepWatch prepares the process of a campaign to notice a run that computes without
// end. There is one processor more than runs at once by default, so that somebody can
// look; and the host's garbage stays, up to 2 GiB: to collect it Go waits for every
// processor, hence for ever. Call it once, when the programs have been compiled.
func KeepWatch() {
	runtime.GC()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(hostMemory)
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
}

// guarded waits for work to end, and after over for grace at most. It tells whether
// the work has ended; if not, it goes on.
func guarded(over <-chan struct{}, grace time.Duration, work func()) (ended bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	select {
	case <-done:
		return true
	case <-over:
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
		return false
	}
}

// held counts the runs that were left alone: their machine cannot be closed.
type held struct {
	mu sync.Mutex
	n  int // guarded by mu
}

func (h *held) add() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
}

func (h *held) any() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n > 0
}
