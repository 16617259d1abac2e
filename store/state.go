package store

import "iter"

// state is one space between two commands. A published state is never changed;
// a writer works on a copy and publishes that.
type state struct {
	rev Revision
	// compacted is the revision of the last compaction: what came before it is
	// forgotten. -1 in a space that was never compacted, as in etcd, where the
	// first compaction may be at 0.
	compacted Revision
	// timeNS is the commit time of rev.
	timeNS int64
	// live has the keys that exist now, graves those that were deleted and can
	// still be read at an older revision. No key is in both.
	live, graves tree[slot]
	log          history
	// liveBytes is the sum of version.bytes over live.
	liveBytes int64
	// freed is history.freed of the last compaction.
	freed int64
	// sum is the sum of version.sum over live: the state hash.
	sum uint64
	// hash is the rolling hash at rev; pending is what happened since and made
	// no revision.
	hash, pending uint64
	ring          *ring
	// leases are by leaseKey.
	leases tree[leaseState]
	// index is by indexKey, and has the keys of the objects with that name.
	index tree[tree[struct{}]]
	// ages has the live keys of a shedding space by ageKey, oldest first.
	ages tree[string]
	// generation counts restores. Watches of another generation end.
	generation uint64
}

func emptyState() state {
	return state{rev: 1, compacted: -1, ring: &ring{}}
}

func (s *state) historyBytes() int64 { return s.log.bytes(s.freed) }

func (s *state) bytes() int64 { return s.liveBytes + s.historyBytes() }

// oldest is the first revision that can be read and watched from.
func (s *state) oldest() Revision { return max(s.compacted, 1) }

// at walks the versions of the keys of sp that a reader at rev sees.
func (s *state) at(rev Revision, sp span) iter.Seq2[string, *version] {
	if rev == s.rev {
		return s.now(sp)
	}
	return s.then(rev, sp)
}

// then is at for a revision before what a writer has changed last.
func (s *state) then(rev Revision, sp span) iter.Seq2[string, *version] {
	return func(yield func(string, *version) bool) {
		live, graves := s.live.seek(sp), s.graves.seek(sp)
		lk, ls, lok := live.next()
		gk, gs, gok := graves.next()
		for lok || gok {
			key, sl := lk, ls
			if !lok || (gok && gk < lk) {
				key, sl = gk, gs
				gk, gs, gok = graves.next()
			} else {
				lk, ls, lok = live.next()
			}
			if v := sl.at(rev); v != nil && !yield(key, v) {
				return
			}
		}
	}
}

// now is at for the newest revision.
func (s *state) now(sp span) iter.Seq2[string, *version] {
	return func(yield func(string, *version) bool) {
		c := s.live.seek(sp)
		for key, sl, ok := c.next(); ok; key, sl, ok = c.next() {
			if !yield(key, sl.cur) {
				return
			}
		}
	}
}

// get is the version of a key that a reader at rev sees; nil when it did not exist.
func (s *state) get(rev Revision, key string) *version {
	if sl, ok := s.live.get(key); ok {
		return sl.at(rev)
	}
	if rev == s.rev {
		return nil
	}
	if sl, ok := s.graves.get(key); ok {
		return sl.at(rev)
	}
	return nil
}
