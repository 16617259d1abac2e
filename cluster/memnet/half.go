package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// windowBytes is how much may be under way before Write waits.
const windowBytes = 1 << 20

// half is one direction of a connection. A simulation spends much of its time
// here, so that a message costs one wake of its reader and nothing that has to be
// allocated: arrival is a token, timers are used again, and only what is rare
// (an end, a deadline that somebody waits under) is a channel that is closed.
type half struct {
	wire    *wire
	arrived chan struct{} // a token when the first segment comes

	mu            sync.Mutex
	segments      []segment     // guarded by mu; in order
	bytes         int           // guarded by mu; under way
	eof           bool          // guarded by mu; the writer closed
	broken        error         // guarded by mu; the reader closed, or Reset
	readDeadline  time.Time     // guarded by mu
	writeDeadline time.Time     // guarded by mu
	waiting       int           // guarded by mu; who waits for changed
	blocked       int           // guarded by mu; of them, writers for room
	changed       chan struct{} // guarded by mu; closed at the next change
	timer         *time.Timer   // guarded by mu; nil while somebody uses it
}

type segment struct {
	data []byte
	due  time.Time
}

func newHalf(w *wire) *half {
	return &half{wire: w, arrived: make(chan struct{}, 1), changed: make(chan struct{})}
}

// touchLocked wakes all who wait.
func (h *half) touchLocked() {
	if h.waiting > 0 {
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

func (h *half) write(p []byte) (int, error) {
	takes := h.wire.takes()
	for {
		h.mu.Lock()
		if h.broken != nil || h.eof {
			err := h.broken
			h.mu.Unlock()
			return 0, &net.OpError{Op: "write", Net: "mem", Err: brokenPipe(err)}
		}
		if h.bytes == 0 || h.bytes+len(p) <= windowBytes {
			h.sendLocked(p, takes)
			h.mu.Unlock()
			return len(p), nil
		}
		w := waiter{deadline: h.writeDeadline, changed: h.changed}
		h.waiting++
		h.blocked++
		h.mu.Unlock()
		err := h.wait(w)
		h.mu.Lock()
		h.blocked--
		h.mu.Unlock()
		if err != nil {
			return 0, err
		}
	}
}

// brokenPipe is what a writer is told.
func brokenPipe(why error) error {
	if why == syscall.ECONNRESET { //nolint:errorlint // set by reset, never wrapped
		return why
	}
	return io.ErrClosedPipe
}

func (h *half) sendLocked(p []byte, takes time.Duration) {
	h.segments = append(h.segments, segment{data: append([]byte(nil), p...), due: time.Now().Add(takes)})
	h.bytes += len(p)
	if len(h.segments) == 1 {
		select {
		case h.arrived <- struct{}{}:
		default:
		}
	}
}

func (h *half) read(p []byte) (int, error) {
	for {
		cut, netChanged := h.wire.isCut()
		n, w, err := h.take(p, cut)
		if n > 0 || err != nil {
			return n, err
		}
		w.netChanged = netChanged
		if err := h.wait(w); err != nil {
			return 0, err
		}
	}
}

// take returns what is there, or what to wait for.
func (h *half) take(p []byte, cut bool) (n int, w waiter, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.broken != nil:
		return 0, w, h.broken
	case !h.readDeadline.IsZero() && !time.Now().Before(h.readDeadline):
		return 0, w, os.ErrDeadlineExceeded
	case !cut && len(h.segments) == 0 && h.eof:
		return 0, w, io.EOF
	}
	w = waiter{deadline: h.readDeadline, changed: h.changed}
	switch {
	case cut:
	case len(h.segments) == 0:
		w.arrived = h.arrived
	case time.Now().Before(h.segments[0].due):
		w.due = h.segments[0].due
	default:
		return h.takeLocked(p), w, nil
	}
	h.waiting++
	return 0, w, nil
}

func (h *half) takeLocked(p []byte) int {
	first := &h.segments[0]
	n := copy(p, first.data)
	first.data = first.data[n:]
	if len(first.data) == 0 {
		first.data = nil
		h.segments = h.segments[1:]
	}
	h.bytes -= n
	if h.blocked > 0 {
		h.touchLocked()
	}
	// Who reads next finds the rest by itself; one that waits already is told.
	select {
	case <-h.arrived:
	default:
	}
	if len(h.segments) > 0 && h.waiting > 0 {
		h.arrived <- struct{}{}
	}
	return n
}

// waiter is what somebody waits for; whoever makes one has counted itself in
// half.waiting.
type waiter struct {
	deadline, due       time.Time // zero: none
	arrived             <-chan struct{}
	changed, netChanged <-chan struct{}
}

// wait returns when something changed or the due time came, with an error when
// the deadline came first.
func (h *half) wait(w waiter) error {
	until := w.due
	if until.IsZero() || !w.deadline.IsZero() && w.deadline.Before(until) {
		until = w.deadline
	}
	var fire <-chan time.Time
	if !until.IsZero() {
		timer := h.borrow(time.Until(until))
		defer h.giveBack(timer)
		fire = timer.C
	}
	select {
	case <-w.arrived:
	case <-fire:
	case <-w.changed:
	case <-w.netChanged:
	}
	h.mu.Lock()
	h.waiting--
	h.mu.Unlock()
	if !w.deadline.IsZero() && !time.Now().Before(w.deadline) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// borrow gives the half's timer, or a new one while another uses it.
func (h *half) borrow(d time.Duration) *time.Timer {
	h.mu.Lock()
	timer := h.timer
	h.timer = nil
	h.mu.Unlock()
	if timer == nil {
		return time.NewTimer(d)
	}
	timer.Reset(d)
	return timer
}

func (h *half) giveBack(timer *time.Timer) {
	timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = timer
}

func (h *half) setDeadline(t time.Time, read bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if read {
		h.readDeadline = t
	} else {
		h.writeDeadline = t
	}
	h.touchLocked()
}

func (h *half) closeReader() { h.end(net.ErrClosed) }

func (h *half) reset() { h.end(syscall.ECONNRESET) }

func (h *half) end(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken == nil {
		h.broken = why
	}
	h.segments, h.bytes = nil, 0
	h.touchLocked()
}

func (h *half) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eof = true
	h.touchLocked()
}
