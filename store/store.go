package store

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// Store is the machine: its state is a function of the entries that were
// applied and of nothing else. One goroutine at a time writes (Apply, Restore,
// Maintain take turns); any number read.
type Store struct {
	opts   Options
	spaces []*Space // in the order of Options.Spaces, which is that of snapshots

	applied atomic.Uint64 // last index
	level   atomic.Uint32 // the cluster's feature level

	mu     sync.Mutex
	term   uint64 // guarded by mu; of the last entry
	timeNS int64  // guarded by mu; the last commit time
}

// New makes an empty store. It panics at options that cannot work: a space
// without name or size or named twice, limits beyond what a snapshot can hold.
func New(opts Options) *Store {
	opts.Limits = opts.Limits.withDefaults()
	if opts.Spaces == nil {
		opts.Spaces = DefaultSpaces()
	}
	if opts.Limits.KeyBytes > maxKeyBytes || opts.Limits.ValueBytes > maxValueBytes {
		panic(fmt.Sprintf("store: keys of %d and values of %d bytes are allowed at most", maxKeyBytes, maxValueBytes))
	}
	s := &Store{opts: opts}
	for _, o := range opts.Spaces {
		if o.Name == "" || len(o.Name) > maxNameBytes || s.Space(o.Name) != nil || o.Bytes <= 0 {
			panic(fmt.Sprintf("store: space %q has no size, no name, too long a name, or is there twice", o.Name))
		}
		s.spaces = append(s.spaces, newSpace(o, opts))
	}
	return s
}

// Space is the space with this name, nil when there is none.
func (s *Store) Space(name string) *Space {
	i := slices.IndexFunc(s.spaces, func(sp *Space) bool { return sp.name == name })
	if i < 0 {
		return nil
	}
	return s.spaces[i]
}

// Spaces are all spaces, in the order in which the store was given them.
func (s *Store) Spaces() []*Space { return slices.Clone(s.spaces) }

// AppliedIndex is the index of the last entry that was applied or restored.
func (s *Store) AppliedIndex() uint64 { return s.applied.Load() }

// FeatureLevel is the level that the cluster has agreed on.
func (s *Store) FeatureLevel() uint32 { return s.level.Load() }

// Hash is Space.Hash of the space with this name; zeros when there is none.
func (s *Store) Hash(space string) (rev Revision, hash uint64) {
	sp := s.Space(space)
	if sp == nil {
		return 0, 0
	}
	return sp.Hash()
}

// Apply carries out the commands of one log entry, in order, each as a whole,
// and returns what they came to. A command that is refused has an outcome that
// says so; it is not an error. Readers and watches see the entry when all of it
// is done.
//
// Apply keeps the values of cmds: they must not be changed afterwards.
// It panics with a *FatalError when this member must stop; see there.
func (s *Store) Apply(index, term uint64, cmds []*internalv1.Command) []*internalv1.CommandResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	if applied := s.applied.Load(); index <= applied {
		panic(&FatalError{Index: index, Command: -1, Reason: fmt.Sprintf("entry %d is applied already", applied)})
	}
	for i, cmd := range cmds {
		if reason := s.unsupported(cmd); reason != "" {
			panic(&FatalError{Index: index, Command: i, Reason: reason})
		}
	}
	s.term = term
	e := &entry{store: s, index: index, term: term, writers: make([]*writer, len(s.spaces))}
	results := make([]*internalv1.CommandResult, len(cmds))
	for i, cmd := range cmds {
		results[i] = e.apply(i, cmd)
	}
	for _, w := range e.writers {
		if w != nil {
			// Twice what came in, so that purging keeps up with any writer.
			w.purge(s.opts.Limits.PurgeRecords + 2*int(w.st.log.end-w.begun))
			w.publish()
		}
	}
	s.applied.Store(index)
	return results
}

// Maintain clears away a piece of compacted history in every space: short work
// that Apply also does in passing, so a store that is written to needs it only
// after a large compaction. It says whether there is more to do. It changes
// nothing that can be observed, except for the memory in use.
func (s *Store) Maintain() (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.spaces {
		w := newWriter(sp)
		more = w.purge(s.opts.Limits.PurgeRecords) || more
		w.publish()
	}
	return more
}

// publish makes the writer's state the one that readers see, then tells those
// who wait. The order is the promise: a reader sees at least what any watch saw.
func (w *writer) publish() {
	if !w.changed {
		return
	}
	st := w.st
	w.space.state.Store(&st)
	w.space.notes.published(&st, w.begun, w.leasesChanged)
	w.space.hub.poke()
}
