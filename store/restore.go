package store

import (
	"fmt"
	"io"
)

// Restore makes the store what it was when the snapshot was taken: revisions,
// the history that was kept, leases, hashes and applied index; indexes are made
// anew. It builds aside and then swaps, so readers and writers are not held up,
// and a snapshot that cannot be used leaves the store as it was: an error that
// matches ErrCorrupt or ErrUnsupported, or one of r. Open watches end with
// ErrResync.
func (s *Store) Restore(r io.Reader) error {
	snap, err := s.decode(r)
	if err != nil {
		return fmt.Errorf("restore store from snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied.Store(snap.index)
	s.level.Store(snap.level)
	s.term, s.timeNS = snap.term, snap.timeNS
	for i, sp := range s.spaces {
		st := snap.states[i]
		st.generation = sp.state.Load().generation + 1
		sp.hub.restore(sp, st)
		sp.notes.restored(st)
	}
	return nil
}

// decode reads a snapshot; its states are in the order of s.spaces.
func (s *Store) decode(r io.Reader) (*Snapshot, error) {
	d, err := newDecoder(r)
	if err != nil {
		return nil, err
	}
	snap := &Snapshot{index: d.uint(), term: d.uint(), timeNS: d.int(), states: make([]*state, len(s.spaces))}
	level := d.uint()
	if level > uint64(s.opts.FeatureLevel) {
		d.fail(fmt.Errorf("%w: the snapshot has feature level %d, this version has %d", ErrUnsupported, level, s.opts.FeatureLevel))
	}
	snap.level = uint32(level)
	spaces := d.uint()
	for i := uint64(0); i < spaces && d.err == nil; i++ {
		s.decodeSpace(d, snap)
	}
	if err := d.close(); err != nil {
		return nil, err
	}
	for i := range snap.states {
		if snap.states[i] == nil { // a space that is newer than the snapshot
			st := emptyState()
			snap.states[i] = &st
		}
	}
	return snap, nil
}

func (s *Store) decodeSpace(d *decoder, snap *Snapshot) {
	name := d.string("name of a space", maxNameBytes)
	if d.err != nil {
		return
	}
	for i, sp := range s.spaces {
		if sp.name != name {
			continue
		}
		if snap.states[i] != nil {
			d.fail(&CorruptError{Space: name, Reason: "it is there twice"})
			return
		}
		snap.states[i] = newLoader(sp, d).load()
		return
	}
	d.fail(fmt.Errorf("%w: the snapshot has a space %q", ErrUnsupported, name))
}

// loader builds one space from a snapshot.
type loader struct {
	writer
	d    *decoder
	sums uint64
	last string // key of the last element of base
}

func newLoader(sp *Space, d *decoder) *loader {
	return &loader{writer: writer{space: sp, st: emptyState(), edit: &edit{}}, d: d}
}

func (l *loader) fail(key, format string, args ...any) {
	l.d.fail(&CorruptError{Space: l.space.name, Key: key, Reason: fmt.Sprintf(format, args...)})
}

func (l *loader) load() *state {
	st, d := &l.st, l.d
	st.rev, st.compacted, st.timeNS = d.rev(), d.rev(), d.int()
	st.hash, st.pending = d.hash(), d.hash()
	sum := d.hash()
	if st.rev < 1 || st.compacted < -1 || st.compacted > st.rev {
		l.fail("", "revision %d, compacted at %d", st.rev, st.compacted)
	}
	l.ring()
	l.leases()
	for d.err == nil && d.uint() == 1 {
		l.base()
	}
	for d.err == nil && d.uint() == 1 {
		l.record()
	}
	if written := d.hash(); d.err == nil && written != l.sums {
		l.fail("", "its versions have the checksum %016x, written was %016x", l.sums, written)
	}
	if d.err == nil && sum != st.sum {
		l.fail("", "its keys have the checksum %016x, written was %016x", st.sum, sum)
	}
	if d.err == nil {
		l.finish()
	}
	return st
}

func (l *loader) ring() {
	r := *l.st.ring
	n := l.d.uint()
	if n > uint64(len(ringStrides)*ringSize) {
		l.fail("", "%d hashes, more than %d", n, len(ringStrides)*ringSize)
	}
	for i := uint64(0); i < n && l.d.err == nil; i++ {
		h := RevisionHash{l.d.rev(), l.d.hash()}
		if h.Revision < 1 || h.Revision > l.st.rev {
			l.fail("", "a hash of revision %d", h.Revision)
			return
		}
		for k, stride := range ringStrides {
			at := &r.at[k][h.Revision/stride%ringSize]
			if h.Revision%stride == 0 && h.Revision > at.Revision {
				*at = h
			}
		}
	}
	l.st.ring = &r
}

func (l *loader) leases() {
	n := l.d.uint()
	for i := uint64(0); i < n && l.d.err == nil; i++ {
		id, ttl := l.d.int(), l.d.int()
		l.st.leases.set(l.edit, leaseKey(id), leaseState{ttlSeconds: ttl})
	}
	if l.d.err == nil && uint64(l.st.leases.len()) != n {
		l.fail("", "a lease is there twice")
	}
}

// version reads a version of key; nil after an error.
func (l *loader) version(key string) *version {
	d := l.d
	v := &version{number: int64(d.uint()), mod: d.rev()}
	if !v.tombstone() {
		v.create, v.lease, v.value = d.rev(), d.int(), d.blob("value", maxValueBytes)
		if v.number < 0 || v.create < 1 || v.create > v.mod {
			l.fail(key, "version %d, created at %d, changed at %d", v.number, v.create, v.mod)
		}
	}
	if key == "" {
		l.fail("", "a key is empty")
	}
	if d.err != nil {
		return nil
	}
	v.sum = v.checksum(key)
	l.sums = fold(l.sums, v.sum)
	return v
}

func (l *loader) base() {
	key := l.d.string("key", maxKeyBytes)
	v := l.version(key)
	if v == nil {
		return
	}
	if key <= l.last || v.tombstone() || v.mod >= l.st.compacted {
		l.fail(key, "it is not in order: behind key %q, changed at %d, compacted at %d", l.last, v.mod, l.st.compacted)
		return
	}
	l.last = key
	l.count(key, nil, v)
	l.st.live.set(l.edit, key, slot{cur: v})
}

func (l *loader) record() {
	key, timeNS := l.d.string("key", maxKeyBytes), l.d.int()
	v := l.version(key)
	if v == nil {
		return
	}
	st := &l.st
	first := max(st.compacted, 2) // revision 1 has no changes
	if st.log.end > 0 {
		first = max(first, st.log.at(st.log.end-1).v.mod)
	}
	if v.mod < first || v.mod > st.rev {
		l.fail(key, "a change of revision %d where %d to %d are expected", v.mod, first, st.rev)
		return
	}
	stored, old, alive := st.live.entry(key)
	if alive {
		key = stored
	}
	st.log.add(record{key: key, v: v, prev: old.cur, timeNS: timeNS})
	l.count(key, old.cur, v)
	l.place(key, old, alive, v)
}

// count keeps the counters; leases and indexes wait for finish.
func (l *loader) count(key string, old, v *version) {
	if old != nil {
		l.st.liveBytes -= old.bytes(key)
		l.st.sum -= old.sum
	}
	if !v.tombstone() {
		l.st.liveBytes += v.bytes(key)
		l.st.sum += v.sum
	}
}

// place puts v into the trees of keys. What came before a change of the
// compacted revision itself cannot be read any more.
func (l *loader) place(key string, old slot, alive bool, v *version) {
	st := &l.st
	next := slot{cur: v}
	grave, buried := st.graves.get(key)
	switch {
	case v.mod <= st.compacted:
	case alive:
		next.past = old.superseded()
	case buried:
		next.past = grave.superseded()
	}
	if !v.tombstone() {
		if buried {
			st.graves.delete(l.edit, key)
		}
		st.live.set(l.edit, key, next)
		return
	}
	if alive {
		st.live.delete(l.edit, key)
	}
	if v.mod > st.compacted {
		st.graves.set(l.edit, key, next)
	}
}

// finish makes what the snapshot leaves out because it follows from the rest.
func (l *loader) finish() {
	st := &l.st
	st.freed = st.log.freed(st.compacted)
	st.log.purged = st.log.from(st.compacted + 1)
	for key, v := range st.now(span{}) {
		if _, ok := st.leases.get(leaseKey(v.lease)); v.lease != 0 && !ok {
			l.fail(key, "it is bound to lease %d, which does not exist", v.lease)
			return
		}
		l.attach(v.lease, key)
		l.reindex(key, nil, v)
		if l.space.opts.Shed {
			l.age(key, nil, v)
		}
	}
}
