package store

import (
	"context"
	"fmt"
	"sync"

	"github.com/balsa-run/balsa/internal/mutate"
)

// WatchOptions say what to watch: one Key, or a Prefix, or Start and End, or
// everything when all four are empty.
type WatchOptions struct {
	Key    string
	Prefix string
	// Start <= key < End; an empty End is no upper end.
	Start, End string
	// From is the first revision to deliver. 0: what comes after the current
	// one. It may lie in the future; then nothing is delivered before it.
	From Revision
	// PrevKV asks for Event.Prev.
	PrevKV bool
	// Buffer is how many batches may wait in the channel; 0: Limits.WatchBuffer.
	Buffer int
}

// MaxWatchBuffer bounds WatchOptions.Buffer.
const MaxWatchBuffer = 1 << 16

func (o WatchOptions) span() (span, error) {
	forms := 0
	for _, used := range []bool{o.Key != "", o.Prefix != "", o.Start != "" || o.End != ""} {
		if used {
			forms++
		}
	}
	s := span{o.Start, o.End}
	switch {
	case forms > 1:
		return span{}, fmt.Errorf("%w: key %q, prefix %q and range [%q, %q) exclude each other", ErrWatchOptions, o.Key, o.Prefix, o.Start, o.End)
	case o.Key != "":
		s = oneKey(o.Key)
	case o.Prefix != "":
		s = prefixSpan(o.Prefix)
	case s.empty():
		return span{}, fmt.Errorf("%w: the range [%q, %q) has no keys", ErrWatchOptions, o.Start, o.End)
	}
	if o.From < 0 {
		return span{}, fmt.Errorf("%w: revision %d is negative", ErrWatchOptions, o.From)
	}
	if o.Buffer < 0 || o.Buffer > MaxWatchBuffer {
		return span{}, fmt.Errorf("%w: a buffer of %d batches, allowed are 0 to %d", ErrWatchOptions, o.Buffer, MaxWatchBuffer)
	}
	return s, nil
}

// Watcher delivers the changes of a range: every revision that touches it, once,
// in order, whole. A consumer that is too slow for its buffer does not hold up
// anyone: the watch leaves the live feed and goes on from history.
//
//	       caught up, under hub.mu
//	behind ----------------------> live
//	   ^   <----------------------   |
//	   |        buffer is full       |
//	   +--> ended: Stop, context, compacted, restored
//
// While the watch is live only the hub sends to ch; while it is behind only its
// own goroutine does.
type Watcher struct {
	space  *Space
	span   span
	prevKV bool
	ch     chan Batch
	cancel context.CancelFunc
	// woken tells the goroutine that the hub has taken it off the live feed.
	woken chan struct{}
	// asked has a request for a progress mark.
	asked chan struct{}

	// next is the first revision that was not delivered. Guarded by hub.mu
	// while live; else it belongs to the goroutine.
	next Revision
	// generation is the state.generation that the watch began in.
	generation uint64

	mu      sync.Mutex
	stopped bool  // guarded by mu
	err     error // guarded by mu; why it ended
}

// Watch opens a watch. It ends with ctx or Stop, with a *CompactedError when it
// has fallen out of the history, or with ErrResync after Restore; then Events is
// closed and Err says why. It fails at once with a *CompactedError when From is
// compacted already, with ErrWatchOptions and with ErrTooManyWatchers.
func (sp *Space) Watch(ctx context.Context, o WatchOptions) (*Watcher, error) {
	s, err := o.span()
	if err != nil {
		return nil, fmt.Errorf("watch space %q: %w", sp.name, err)
	}
	if o.Buffer == 0 {
		o.Buffer = sp.limits.WatchBuffer
	}
	st := sp.state.Load()
	if o.From == 0 {
		o.From = st.rev + 1
	}
	if o.From <= st.rev && mutate.On(mutate.WatchOneLate) {
		o.From++
	}
	if o.From < st.oldest() && !mutate.On(mutate.CompactionLosesEvents) {
		return nil, sp.compactedError(st, o.From)
	}
	if !sp.hub.enter(sp.limits.Watchers) {
		return nil, fmt.Errorf("watch space %q: %w: at most %d", sp.name, ErrTooManyWatchers, sp.limits.Watchers)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &Watcher{
		space: sp, span: s, prevKV: o.PrevKV, cancel: cancel,
		ch:    make(chan Batch, o.Buffer),
		woken: make(chan struct{}, 1),
		asked: make(chan struct{}, 1),
		next:  o.From, generation: st.generation,
	}
	go w.run(ctx, st)
	return w, nil
}

// Events delivers one batch a revision, and progress marks that were asked for.
// It is closed when the watch has ended; what was buffered comes first.
func (w *Watcher) Events() <-chan Batch { return w.ch }

// Err is why the watch ended: an error that matches ErrCompacted or ErrResync,
// or the context's error. It is nil while the watch is open and after Stop.
func (w *Watcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Stop ends the watch. It may be called more than once.
func (w *Watcher) Stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	w.cancel()
}

// RequestProgress asks for a batch without events as soon as everything up to
// some current revision has been delivered. Requests that wait for the same
// mark are one request.
func (w *Watcher) RequestProgress() {
	select {
	case w.asked <- struct{}{}:
	default:
	}
}

func (w *Watcher) run(ctx context.Context, opened *state) {
	err := w.follow(ctx, opened)
	w.space.hub.leave(w, err)
	w.mu.Lock()
	if !w.stopped {
		w.err = err
	}
	w.mu.Unlock()
	w.cancel()
	close(w.ch)
}

// follow is behind, live, behind, ... until the watch ends.
// It begins with the state in which it was opened: what is compacted between
// Watch and the first step of the goroutine is not lost.
func (w *Watcher) follow(ctx context.Context, opened *state) error {
	mark := false
	for st := opened; ; st = w.space.state.Load() {
		if err := w.catchUp(ctx, st, mark); err != nil {
			return err
		}
		var err error
		if mark, err = w.live(ctx); err != nil {
			return err
		}
	}
}

// live waits until the watch is behind. mark says that a progress mark is to
// follow what it has missed.
func (w *Watcher) live(ctx context.Context) (mark bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-w.woken:
			return false, nil
		case <-w.asked:
			if !w.space.hub.mark(w) {
				return true, nil
			}
		}
	}
}

// catchUpRecords bounds how much of the log one step of catching up looks at,
// so that a stuck consumer does not keep an old state of the space alive.
const catchUpRecords = 4096

// catchUp delivers from history until the watch is live, first from st.
func (w *Watcher) catchUp(ctx context.Context, st *state, mark bool) error {
	for ; ; st = w.space.state.Load() {
		if st.generation != w.generation {
			return fmt.Errorf("watch space %q: %w: watch again from revision %d or list", w.space.name, ErrResync, w.next)
		}
		if w.next < st.oldest() && !mutate.On(mutate.CompactionLosesEvents) {
			return w.space.compactedError(st, w.next)
		}
		batches, next := w.space.replay(st, w.span, w.prevKV, w.next)
		for _, b := range batches {
			if err := w.send(ctx, b); err != nil {
				return err
			}
			w.next = b.Revision + 1
		}
		w.next = max(w.next, next)
		if next <= st.rev {
			continue
		}
		if mark {
			if err := w.send(ctx, Batch{Revision: st.rev}); err != nil {
				return err
			}
			mark = false
		}
		if w.space.hub.join(w) {
			return nil
		}
	}
}

func (w *Watcher) send(ctx context.Context, b Batch) error {
	select {
	case w.ch <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// replay reads the batches of s from the log, from revision from on. next is
// where to go on; it is beyond st.rev when the log has been read to its end.
func (sp *Space) replay(st *state, s span, prevKV bool, from Revision) (batches []Batch, next Revision) {
	pos := st.log.from(from)
	stop := pos + catchUpRecords
	for pos < st.log.end && pos < stop {
		var b Batch
		b, pos = sp.batch(st, s, prevKV, pos)
		if len(b.Events) > 0 {
			batches = append(batches, b)
		}
		next = b.Revision + 1
	}
	if pos == st.log.end {
		next = max(st.rev+1, from)
	}
	return batches, next
}

// batch is the revision that begins at pos, and the position behind it.
func (sp *Space) batch(st *state, s span, prevKV bool, pos int64) (Batch, int64) {
	first := st.log.at(pos)
	b := Batch{Revision: first.v.mod, TimeNS: first.timeNS}
	for ; pos < st.log.end && st.log.at(pos).v.mod == b.Revision; pos++ {
		if s.contains(st.log.at(pos).key) {
			b.Events = append(b.Events, sp.event(st, pos, prevKV))
		}
	}
	return b, pos
}

// event is the record at pos as watches get it.
func (sp *Space) event(st *state, pos int64, prevKV bool) Event {
	r := st.log.at(pos)
	e := Event{Type: EventPut, KV: sp.kv(r.key, r.v)}
	if r.v.tombstone() {
		e.Type = EventDelete
	}
	if prevKV && !e.IsCreate() && r.v.mod > st.oldest() {
		if v := st.log.visible(pos); v != nil {
			prev := sp.kv(r.key, v)
			e.Prev = &prev
		}
	}
	return e
}
