package store

import "strings"

// writer changes a copy of a space's state. Apply makes one for each space that
// its entry touches, and publishes them when the entry is done.
type writer struct {
	space *Space
	st    state
	edit  *edit
	begun int64 // log position where the entry began
	// changed says that st is to be published although no revision was made.
	changed bool
	// leasesChanged says that leases came or went.
	leasesChanged bool
}

func newWriter(sp *Space) *writer {
	w := &writer{space: sp, st: *sp.state.Load(), edit: &edit{}}
	w.begun = w.st.log.end
	return w
}

// txn is one revision in the making.
type txn struct {
	w   *writer
	rev Revision
	// timeNS is the commit time, if it comes to a commit.
	timeNS int64
	began  int64 // log position where it began
}

func (w *writer) begin(timeNS int64) *txn {
	return &txn{w: w, rev: w.st.rev + 1, timeNS: timeNS, began: w.st.log.end}
}

// changes says whether the transaction has done anything yet.
func (t *txn) changes() bool { return t.w.st.log.end > t.began }

// get is the key as the transaction sees it.
func (t *txn) get(key string) *version {
	if sl, ok := t.w.st.live.get(key); ok {
		return sl.cur
	}
	return nil
}

// put writes a key, which may be borrowed. The caller has checked that it may.
func (t *txn) put(key string, value []byte, lease int64) {
	st := &t.w.st
	v := &version{value: value, create: t.rev, mod: t.rev, number: 1, lease: lease}
	next := slot{cur: v}
	// Where the key is known already, everybody shares the string that is there.
	stored, old, alive := st.live.entry(key)
	if alive {
		key, next.past = stored, old.superseded()
		v.create, v.number = old.cur.create, old.cur.number+1
	} else if stored, grave, ok := st.graves.entry(key); ok {
		key = stored
		next.past = grave.superseded()
		st.graves.delete(t.w.edit, key)
	} else {
		key = strings.Clone(key)
	}
	v.sum = v.checksum(key)
	t.w.replace(record{key: key, v: v, prev: old.cur, timeNS: t.timeNS})
	st.live.set(t.w.edit, key, next)
}

// delete ends a key that exists.
func (t *txn) delete(key string) {
	st := &t.w.st
	key, old, _ := st.live.entry(key)
	v := &version{mod: t.rev}
	v.sum = v.checksum(key)
	t.w.replace(record{key: key, v: v, prev: old.cur, timeNS: t.timeNS})
	st.live.delete(t.w.edit, key)
	st.graves.set(t.w.edit, key, slot{cur: v, past: old.superseded()})
}

// replace does all that follows from a change but the trees of keys: log,
// counters, leases, indexes.
func (w *writer) replace(r record) {
	w.st.log.add(r)
	w.account(r.key, r.prev, r.v)
	w.reindex(r.key, r.prev, liveOrNil(r.v))
	if w.space.opts.Shed {
		w.age(r.key, r.prev, r.v)
	}
}

func liveOrNil(v *version) *version {
	if v.tombstone() {
		return nil
	}
	return v
}

// account keeps the counters and the leases.
func (w *writer) account(key string, old, v *version) {
	var oldLease, newLease int64
	if old != nil {
		w.st.liveBytes -= old.bytes(key)
		w.st.sum -= old.sum
		oldLease = old.lease
	}
	if !v.tombstone() {
		w.st.liveBytes += v.bytes(key)
		w.st.sum += v.sum
		newLease = v.lease
	}
	if oldLease == newLease {
		return
	}
	w.detach(oldLease, key)
	w.attach(newLease, key)
}

func (w *writer) age(key string, old, v *version) {
	if old != nil {
		w.st.ages.delete(w.edit, ageKey(old.mod, key))
	}
	if !v.tombstone() {
		w.st.ages.set(w.edit, ageKey(v.mod, key), key)
	}
}

// commit makes the changes a revision; without changes there is none.
func (t *txn) commit() {
	if !t.changes() {
		return
	}
	if t.w.space.opts.Shed {
		t.shed()
	}
	st := &t.w.st
	hash := fold(st.hash, uint64(t.rev), uint64(t.timeNS), st.pending)
	for pos := t.began; pos < st.log.end; pos++ {
		hash = fold(hash, st.log.at(pos).v.sum)
	}
	st.rev, st.timeNS, st.hash, st.pending = t.rev, t.timeNS, hash, 0
	st.ring = st.ring.with(t.rev, hash)
	t.w.changed = true
	if t.w.space.opts.Shed {
		t.w.shedHistory()
	}
}

func (w *writer) attach(id int64, key string) {
	if id == 0 {
		return
	}
	if l, ok := w.st.leases.get(leaseKey(id)); ok {
		l.keys.set(w.edit, key, struct{}{})
		w.st.leases.set(w.edit, leaseKey(id), l)
	}
}

func (w *writer) detach(id int64, key string) {
	if id == 0 {
		return
	}
	if l, ok := w.st.leases.get(leaseKey(id)); ok {
		l.keys.delete(w.edit, key)
		w.st.leases.set(w.edit, leaseKey(id), l)
	}
}
