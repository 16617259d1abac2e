// Package clock is how the rooms of Balsa that must run on virtual time tell
// the time. Nothing that runs below a store's Apply may use it: time enters a
// command at the edge, never later.
package clock

import "time"

// Clock tells the time and wakes its caller. Now carries a monotonic reading
// where the implementation has one; durations are real durations, so tests use
// either testing/synctest with Real or a Fake.
type Clock interface {
	Now() time.Time
	NewTimer(d time.Duration) Timer
}

// Timer is the part of *time.Timer that a loop needs. C never blocks its
// sender; after Stop or Reset no stale value is received (Go 1.23 semantics).
type Timer interface {
	C() <-chan time.Time
	Stop() bool
	Reset(d time.Duration) bool
}

// Real is the machine's clock. The zero value is ready for use.
type Real struct{}

// Now is time.Now.
func (Real) Now() time.Time { return time.Now() }

// NewTimer is time.NewTimer.
func (Real) NewTimer(d time.Duration) Timer { return realTimer{time.NewTimer(d)} }

type realTimer struct{ t *time.Timer }

func (r realTimer) C() <-chan time.Time        { return r.t.C }
func (r realTimer) Stop() bool                 { return r.t.Stop() }
func (r realTimer) Reset(d time.Duration) bool { return r.t.Reset(d) }
