package store

import (
	"errors"
	"slices"
	"sync"
)

// hub is the live feed of a space. Its goroutine reads the revisions that Apply
// has published from the log, finds the watches that each touches, and hands
// them the same batch. So Apply pays one poke, whatever is watched; the log is
// the queue between the two. The goroutine runs while a watch is live.
type hub struct {
	// poked says that there may be a new revision.
	poked chan struct{}

	mu sync.Mutex
	// groups are the live watches by what they watch; guarded by mu.
	groups intervals[*group]
	// next is the first revision that was not dispatched; guarded by mu.
	next    Revision
	live    int  // guarded by mu; watches in groups
	open    int  // guarded by mu; watches that have not ended
	running bool // guarded by mu; the goroutine
	// generation is the state.generation of next; guarded by mu.
	generation uint64
	slow       uint64 // guarded by mu; see Stats
	compacted  uint64 // guarded by mu; see Stats
}

// group is the live watches of one span. plain get events without, previous
// with Event.Prev.
type group struct {
	plain, previous []*Watcher
	// records are the positions of its changes in the revision at hand.
	records []int64
}

func (h *hub) init() { h.poked = make(chan struct{}, 1) }

func (h *hub) poke() {
	select {
	case h.poked <- struct{}{}:
	default:
	}
}

// enter counts a new watch, if the limit allows.
func (h *hub) enter(limit int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open >= limit {
		return false
	}
	h.open++
	return true
}

// leave ends a watch. After it the hub does not send to it any more.
func (h *hub) leave(w *Watcher, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	if errors.Is(err, ErrCompacted) {
		h.compacted++
	}
	h.dropLocked(w)
	h.poke() // the goroutine ends with its last watch
}

// join makes a watch live when it has everything that was dispatched.
func (h *hub) join(w *Watcher) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := w.space.state.Load()
	if st.generation != w.generation {
		return false
	}
	if !h.running || h.generation != st.generation {
		h.next, h.generation = st.rev+1, st.generation
	}
	if w.next < h.next {
		return false
	}
	if !h.running {
		h.running = true
		go h.run(w.space)
	}
	g, ok := h.groups.get(w.span)
	if !ok {
		g = &group{}
		h.groups.set(w.span, g)
	}
	g.add(w)
	h.live++
	return true
}

// mark sends a progress mark to a live watch. When there is no room for it the
// watch falls off, and it is false.
func (h *hub) mark(w *Watcher) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.groups.get(w.span)
	if !ok || !g.has(w) {
		<-w.woken // it has been taken off meanwhile
		return false
	}
	// A watch that has caught up by itself may be ahead of the hub, and one that
	// begins in the future ahead of the space.
	rev := min(max(h.next, w.next)-1, w.space.state.Load().rev)
	select {
	case w.ch <- Batch{Revision: rev}:
		return true
	default:
		w.next = max(w.next, h.next)
		h.slow++
		h.dropLocked(w)
		return false
	}
}

func (h *hub) dropLocked(w *Watcher) {
	g, ok := h.groups.get(w.span)
	if !ok || !g.remove(w) {
		return
	}
	h.live--
	if len(g.plain)+len(g.previous) == 0 {
		h.groups.delete(w.span)
	}
}

func (h *hub) run(sp *Space) {
	for range h.poked {
		if !h.catchUp(sp) {
			return
		}
	}
}

// catchUp dispatches what was published. It is false when no watch is left.
func (h *hub) catchUp(sp *Space) bool {
	for {
		h.mu.Lock()
		if h.live == 0 {
			h.running = false
			h.mu.Unlock()
			return false
		}
		st := sp.state.Load()
		done := st.generation != h.generation || h.stepLocked(sp, st)
		h.mu.Unlock()
		if done {
			return true
		}
	}
}

// stepLocked dispatches one revision and says whether it was the last. If the
// log has been compacted past it, every watch finds that out for itself.
func (h *hub) stepLocked(sp *Space, st *state) bool {
	if h.next > st.rev {
		return true
	}
	if h.next < st.oldest() {
		h.evictLocked(h.next)
		h.next = st.rev + 1
		return true
	}
	h.dispatchLocked(sp, st, st.log.from(h.next))
	h.next++
	return h.next > st.rev
}

// dispatchLocked hands the revision that begins at pos to those who watch it.
func (h *hub) dispatchLocked(sp *Space, st *state, pos int64) {
	rev := h.next
	var touched []*group
	for ; pos < st.log.end && st.log.at(pos).v.mod == rev; pos++ {
		h.groups.stab(st.log.at(pos).key, func(_ span, g *group) {
			if len(g.records) == 0 {
				touched = append(touched, g)
			}
			g.records = append(g.records, pos)
		})
	}
	for _, g := range touched {
		h.deliverLocked(sp, st, rev, g)
		g.records = g.records[:0]
	}
}

func (h *hub) deliverLocked(sp *Space, st *state, rev Revision, g *group) {
	for _, prevKV := range []bool{false, true} {
		members := g.members(prevKV)
		if len(*members) == 0 {
			continue
		}
		b := Batch{Revision: rev, TimeNS: st.log.at(g.records[0]).timeNS}
		for _, pos := range g.records {
			b.Events = append(b.Events, sp.event(st, pos, prevKV))
		}
		for _, w := range slices.Clone(*members) {
			h.sendLocked(w, b)
		}
	}
}

func (h *hub) sendLocked(w *Watcher, b Batch) {
	if b.Revision < w.next {
		return
	}
	select {
	case w.ch <- b:
		w.next = b.Revision + 1
	default:
		w.next = b.Revision
		h.slow++
		h.dropLocked(w)
		w.woken <- struct{}{}
	}
}

// evictLocked takes every watch off the live feed; they go on from rev, or from
// where they wanted to begin.
func (h *hub) evictLocked(rev Revision) {
	var all []*Watcher
	h.groups.root.each(func(n *interval[*group]) {
		all = append(append(all, n.v.plain...), n.v.previous...)
	})
	for _, w := range all {
		w.next = max(w.next, rev)
		h.dropLocked(w)
		w.woken <- struct{}{}
	}
}

// restore swaps the state of the space and ends every watch of the old one: each
// finds another generation. The lock keeps the two from being seen apart.
func (h *hub) restore(sp *Space, st *state) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sp.state.Store(st)
	h.evictLocked(0)
	h.poke()
}

func (h *hub) stats(s *Stats) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Watchers, s.SlowWatchers, s.CompactedWatchers = h.open, h.slow, h.compacted
}

func (g *group) members(prevKV bool) *[]*Watcher {
	if prevKV {
		return &g.previous
	}
	return &g.plain
}

func (g *group) add(w *Watcher) {
	m := g.members(w.prevKV)
	*m = append(*m, w)
}

func (g *group) has(w *Watcher) bool { return slices.Contains(*g.members(w.prevKV), w) }

func (g *group) remove(w *Watcher) bool {
	m := g.members(w.prevKV)
	i := slices.Index(*m, w)
	if i < 0 {
		return false
	}
	*m = slices.Delete(*m, i, i+1)
	return true
}
