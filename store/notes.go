package store

import (
	"context"
	"slices"
	"sync"
)

// notes wake those who wait for a level instead of reading a feed. Each note is
// a channel that is closed once; those who ask for the same note share it.
type notes struct {
	mu sync.Mutex
	// changes are by the span of the prefix; guarded by mu.
	changes intervals[chan struct{}]
	// revisions are who waits for a revision, lowest first; guarded by mu.
	revisions []revisionNote
	// leases is nil when nobody waits; guarded by mu.
	leases chan struct{}
}

type revisionNote struct {
	rev Revision
	ch  chan struct{}
}

// published closes the notes that a new state has made due. The log positions
// from begun on are new.
func (n *notes) published(st *state, begun int64, leases bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if leases {
		n.leasesLocked()
	}
	due := 0
	for due < len(n.revisions) && n.revisions[due].rev <= st.rev {
		close(n.revisions[due].ch)
		due++
	}
	n.revisions = slices.Delete(n.revisions, 0, due)
	for pos := max(begun, st.log.start); pos < st.log.end && n.changes.n > 0; pos++ {
		n.changedLocked(st.log.at(pos).key)
	}
}

func (n *notes) leasesLocked() {
	if n.leases != nil {
		close(n.leases)
		n.leases = nil
	}
}

func (n *notes) changedLocked(key string) {
	var due []span
	n.changes.stab(key, func(s span, ch chan struct{}) {
		close(ch)
		due = append(due, s)
	})
	for _, s := range due {
		n.changes.delete(s)
	}
}

// restored closes every note but those for a revision that is still to come.
func (n *notes) restored(st *state) {
	n.published(st, st.log.end, true)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changes.root.each(func(i *interval[chan struct{}]) { close(i.v) })
	n.changes = intervals[chan struct{}]{}
}

// Changed is closed at the next change of a key that begins with prefix, or when
// the store is restored. For a level-triggered loop: take the channel, then a
// View, act on the view, wait. Nothing is missed.
func (sp *Space) Changed(prefix string) <-chan struct{} {
	n := &sp.notes
	n.mu.Lock()
	defer n.mu.Unlock()
	s := prefixSpan(prefix)
	ch, ok := n.changes.get(s)
	if !ok {
		ch = make(chan struct{})
		n.changes.set(s, ch)
	}
	return ch
}

// LeasesChanged is closed when a lease is next granted or revoked, or when the
// store is restored.
func (sp *Space) LeasesChanged() <-chan struct{} {
	n := &sp.notes
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leases == nil {
		n.leases = make(chan struct{})
	}
	return n.leases
}

// WaitRevision returns when the space has reached rev: a View taken afterwards
// is at least as new. It fails with the context's error.
func (sp *Space) WaitRevision(ctx context.Context, rev Revision) error {
	note := sp.notes.await(sp, rev)
	if note == nil {
		return nil
	}
	select {
	case <-note:
		return nil
	case <-ctx.Done():
		sp.notes.forget(note)
		return ctx.Err()
	}
}

// await is the note for rev, nil when the space is there already.
func (n *notes) await(sp *Space, rev Revision) chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	// A state that is published after this look is announced after mu is free.
	if sp.state.Load().rev >= rev {
		return nil
	}
	ch := make(chan struct{})
	i, _ := slices.BinarySearchFunc(n.revisions, rev, func(r revisionNote, rev Revision) int {
		if r.rev <= rev {
			return -1
		}
		return 1
	})
	n.revisions = slices.Insert(n.revisions, i, revisionNote{rev, ch})
	return ch
}

func (n *notes) forget(note chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.revisions = slices.DeleteFunc(n.revisions, func(r revisionNote) bool { return r.ch == note })
}
