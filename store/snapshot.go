package store

import (
	"fmt"
	"io"
	"slices"
)

// The inner layer of a snapshot, format 1. Numbers are varints (int is zigzag),
// hash is 8 bytes, a string is its length and its bytes.
//
//	snapshot: index uint, term uint, time int, feature level uint,
//	          spaces uint, space...
//	space:    name string, revision int, compacted int, time int,
//	          hash, pending hash, sum hash,
//	          ring:   entries uint, (revision int, hash)...
//	          leases: leases uint, (id int, ttl int)...
//	          base:   (1, key string, version)... 0
//	          log:    (1, key string, time int, version)... 0
//	          end hash: all version sums of base and log, folded
//	version:  number uint (0: a tombstone), mod int, and unless a tombstone
//	          create int, lease int, value string
//
// base is the keys as they were at the compacted revision, in order of keys,
// without those that changed in it; log is every change since and including it,
// in order. So the bytes are a function of what can be observed of a store:
// members that applied the same entries write the same snapshot.
const (
	maxNameBytes  = 255
	maxKeyBytes   = 1 << 20
	maxValueBytes = 64 << 20
)

// Snapshot is a store at one applied index. It shares everything with the
// store, and stays what it is whatever happens there.
type Snapshot struct {
	index, term uint64
	timeNS      int64
	level       uint32
	names       []string
	states      []*state
}

// Snapshot takes a snapshot, in O(1).
func (s *Store) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := &Snapshot{index: s.applied.Load(), term: s.term, timeNS: s.timeNS, level: s.level.Load()}
	for _, sp := range s.spaces {
		snap.names = append(snap.names, sp.name)
		snap.states = append(snap.states, sp.state.Load())
	}
	return snap
}

// Index is the last log entry that the snapshot contains.
func (s *Snapshot) Index() uint64 { return s.index }

// Term is the term of that entry.
func (s *Snapshot) Term() uint64 { return s.term }

// WriteTo writes the snapshot for Store.Restore. It may be called from any
// goroutine and more than once, and writes the same bytes each time.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	e := newEncoder(w)
	e.uint(s.index)
	e.uint(s.term)
	e.int(s.timeNS)
	e.uint(uint64(s.level))
	e.uint(uint64(len(s.states)))
	for i, st := range s.states {
		e.string(s.names[i])
		e.state(st)
	}
	if err := e.close(); err != nil {
		return e.written, fmt.Errorf("write snapshot of index %d: %w", s.index, err)
	}
	return e.written, nil
}

func (e *encoder) state(st *state) {
	e.rev(st.rev)
	e.rev(st.compacted)
	e.int(st.timeNS)
	e.hash(st.hash)
	e.hash(st.pending)
	e.hash(st.sum)
	e.ring(st.ring)
	e.uint(uint64(st.leases.len()))
	st.leases.each(span{}, func(key string, l leaseState) bool {
		e.int(leaseID(key))
		e.int(l.ttlSeconds)
		return e.err == nil
	})
	e.hash(e.log(st, e.base(st)))
}

func (e *encoder) ring(r *ring) {
	var all []RevisionHash
	for _, row := range r.at {
		for _, h := range row {
			if h.Revision != 0 && !slices.Contains(all, h) {
				all = append(all, h)
			}
		}
	}
	e.uint(uint64(len(all)))
	for _, h := range all {
		e.rev(h.Revision)
		e.hash(h.Hash)
	}
}

func (e *encoder) base(st *state) (sums uint64) {
	if st.compacted > 0 {
		for key, v := range st.at(st.compacted, span{}) {
			if v.mod == st.compacted {
				continue
			}
			e.uint(1)
			e.string(key)
			e.version(v)
			sums = fold(sums, v.sum)
			if e.err != nil {
				break
			}
		}
	}
	e.uint(0)
	return sums
}

func (e *encoder) log(st *state, sums uint64) uint64 {
	for pos := st.log.from(st.compacted); pos < st.log.end && e.err == nil; pos++ {
		r := st.log.at(pos)
		e.uint(1)
		e.string(r.key)
		e.int(r.timeNS)
		e.version(r.v)
		sums = fold(sums, r.v.sum)
	}
	e.uint(0)
	return sums
}

func (e *encoder) version(v *version) {
	e.uint(uint64(v.number))
	e.rev(v.mod)
	if !v.tombstone() {
		e.rev(v.create)
		e.int(v.lease)
		e.blob(v.value)
	}
}
