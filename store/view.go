package store

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// View is a space at one revision. It is a few words, never changes, holds no
// lock and needs no closing: what it shows stays readable for as long as the
// view is referenced, whatever is written or compacted meanwhile.
type View struct {
	space *Space
	st    *state
	rev   Revision
}

// Revision is the revision that the view shows.
func (v View) Revision() Revision { return v.rev }

// At is the same state of the space at another of its revisions: one read that
// asks for several revisions sees one history. It fails as Space.ViewAt does.
func (v View) At(rev Revision) (View, error) {
	if rev > v.st.rev {
		return View{}, &FutureRevisionError{Space: v.space.name, Revision: rev, Current: v.st.rev}
	}
	if rev < v.st.oldest() {
		return View{}, v.space.compactedError(v.st, rev)
	}
	return View{space: v.space, st: v.st, rev: rev}, nil
}

// CompactRevision is the oldest revision that could be read when the view was
// taken.
func (v View) CompactRevision() Revision { return v.st.oldest() }

// LastCompaction is the revision of the last compaction before the view was
// taken, -1 when there was none: etcd's bound for revisions in transactions.
func (v View) LastCompaction() Revision { return v.st.compacted }

// TimeNS is the commit time of the newest revision when the view was taken, in
// Unix nanoseconds; 0 in an empty space.
func (v View) TimeNS() int64 { return v.st.timeNS }

// Get is the key as it was.
func (v View) Get(key string) (KV, bool) {
	ver := v.st.get(v.rev, key)
	if ver == nil {
		return KV{}, false
	}
	return v.space.kv(key, ver), true
}

// Range yields the keys k with start <= k < end in order, at most limit of
// them. An empty end is no upper end, a limit of 0 no limit.
func (v View) Range(start, end string, limit int) iter.Seq[KV] {
	return v.walk(span{start, end}, limit)
}

// Prefix yields the keys that begin with prefix, in order.
func (v View) Prefix(prefix string) iter.Seq[KV] { return v.walk(prefixSpan(prefix), 0) }

func (v View) walk(s span, limit int) iter.Seq[KV] {
	return func(yield func(KV) bool) {
		left := limit
		for key, ver := range v.st.at(v.rev, s) {
			if !yield(v.space.kv(key, ver)) {
				return
			}
			if left--; left == 0 {
				return
			}
		}
	}
}

// Count is the number of keys k with start <= k < end; an empty end is no upper
// end. At the current revision it costs O(log n), at an older one O(n).
func (v View) Count(start, end string) int { return v.count(span{start, end}) }

// CountPrefix is the number of keys that begin with prefix. See Count.
func (v View) CountPrefix(prefix string) int { return v.count(prefixSpan(prefix)) }

func (v View) count(s span) int {
	if v.rev == v.st.rev {
		return v.st.live.count(s)
	}
	n := 0
	for range v.st.at(v.rev, s) {
		n++
	}
	return n
}

// ByIndex yields the keys whose object Options.Index gave this name, in order.
// At the current revision it costs O(log n) a key; at an older one, for which
// no index is kept, it looks at every object.
func (v View) ByIndex(index, value string) iter.Seq[KV] {
	if v.rev != v.st.rev {
		return v.scanIndex(IndexEntry{index, value})
	}
	return func(yield func(KV) bool) {
		keys, _ := v.st.index.get(indexKey(IndexEntry{index, value}))
		c := keys.seek(span{})
		for key, _, ok := c.next(); ok; key, _, ok = c.next() {
			if !yield(v.space.kv(key, v.st.get(v.rev, key))) {
				return
			}
		}
	}
}

func (v View) scanIndex(want IndexEntry) iter.Seq[KV] {
	return func(yield func(KV) bool) {
		for key, ver := range v.st.at(v.rev, span{}) {
			if v.space.named(key, ver, want) && !yield(v.space.kv(key, ver)) {
				return
			}
		}
	}
}

// Lease is the lease with this id as it was when the view was taken; leases
// have no history.
func (v View) Lease(id int64) (Lease, bool) {
	l, ok := v.st.leases.get(leaseKey(id))
	return Lease{ID: id, TTLSeconds: l.ttlSeconds}, ok
}

// Leases yields the leases as they were when the view was taken, by id.
func (v View) Leases() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		v.st.leases.each(span{}, func(key string, l leaseState) bool {
			return yield(Lease{ID: leaseID(key), TTLSeconds: l.ttlSeconds})
		})
	}
}

// LeaseKeys yields the keys that are bound to a lease, in order.
func (v View) LeaseKeys(id int64) iter.Seq[string] {
	return func(yield func(string) bool) {
		l, _ := v.st.leases.get(leaseKey(id))
		l.keys.each(span{}, func(key string, _ struct{}) bool { return yield(key) })
	}
}

// kv is a version as readers get it.
func (sp *Space) kv(key string, v *version) KV {
	kv := v.kv(key)
	kv.Object = sp.object(key, v)
	return kv
}

// object is the decoded value of v, decoded once; nil when it has none.
func (sp *Space) object(key string, v *version) proto.Message {
	if sp.decode == nil || v.tombstone() {
		return nil
	}
	if o := v.obj.Load(); o != nil {
		return o.msg
	}
	msg, err := sp.decode(key, v.value, int64(v.mod))
	if err != nil {
		sp.decodeErrors.Add(1)
		msg = nil
	}
	v.obj.CompareAndSwap(nil, &object{msg: msg})
	return v.obj.Load().msg
}
