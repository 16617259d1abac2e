package check

import (
	"math"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
)

// leases is what Locks knows of leases, and of the keys that are bound to them.
type leases struct {
	drift time.Duration
	byID  map[int64]*lease
	keys  map[string]*bound
	// expired counts the leases that were seen gone, latest is how long after its
	// time the worst of them was.
	expired int
	latest  time.Duration
	unsure  int
}

type lease struct {
	// alive is until when it cannot expire, without the drift; by is the answer that
	// says so. due is when it may at the latest, if a leader is there all the time.
	alive, due time.Duration
	by         history.Record
	// revoked is the position of the first Revoke; 0: none.
	revoked int64
	// gone is the first sight of it being gone.
	gone    history.Record
	goneSeq int64
	told    bool
}

// bound is a key of which the last write may be known.
type bound struct {
	lease, revision int64
	seq             int64 // of the end of that write
	// writes counts those that began, running those that have not ended.
	writes, running int
	// began is what writes was when a running write began, if no other was running.
	began map[int64]int
	// lost: a write of an unknown outcome may come at any time.
	lost bool
}

func newLeases(drift time.Duration) leases {
	return leases{drift: drift, byID: map[int64]*lease{}, keys: map[string]*bound{}}
}

func (l *leases) get(id int64) *lease {
	if l.byID[id] == nil {
		l.byID[id] = &lease{}
	}
	return l.byID[id]
}

func (l *leases) key(name string) *bound {
	if l.keys[name] == nil {
		l.keys[name] = &bound{began: map[int64]int{}}
	}
	return l.keys[name]
}

func (l *leases) add(f *findings, invoke started, r history.Record, seq int64) {
	switch r.F {
	case history.Grant, history.KeepAlive:
		l.renew(f, invoke, r, seq)
	case history.Lock:
		// Its lease may be one that nobody granted before.
		if r.Type == history.OK && r.Lease != 0 && r.TTL > 0 && l.get(r.Lease).by.F == 0 {
			l.extend(l.get(r.Lease), invoke, r)
		}
	case history.Revoke:
		if one := l.get(invoke.Lease); r.Type == history.Invoke && one.revoked == 0 {
			one.revoked = seq
		} else if r.Type == history.Refused && one.revoked == invoke.seq {
			one.revoked = 0
		} else if r.Type == history.OK && one.goneSeq == 0 {
			one.gone, one.goneSeq = r, seq
		}
	case history.Put, history.CAS, history.Delete:
		l.bind(l.key(invoke.Key), invoke, r, seq)
	case history.Read:
		if b, ok := l.keys[invoke.Key]; ok && r.Type == history.OK && r.Revision == 0 && b.lease != 0 && b.seq < invoke.seq {
			l.absent(f, l.get(b.lease), r, seq)
		}
	case history.Deliver:
		for _, kv := range r.KVs {
			if b, ok := l.keys[kv.Key]; ok && kv.Deleted && b.lease != 0 && kv.ModRevision > b.revision {
				l.absent(f, l.get(b.lease), r, seq)
			}
		}
	}
}

// renew takes the end of a Grant or a KeepAlive.
func (l *leases) renew(f *findings, invoke started, r history.Record, seq int64) {
	gone := r.F == history.KeepAlive && (r.Type == history.OK && r.TTL <= 0 ||
		r.Type == history.Refused && strings.Contains(r.Error, ErrorNotFound))
	switch {
	case r.Type == history.Invoke:
	case gone:
		l.absent(f, l.get(invoke.Lease), r, seq)
	case r.Type == history.OK && r.Lease != 0:
		l.risen(f, l.get(r.Lease), invoke, r)
		l.extend(l.get(r.Lease), invoke, r)
	}
}

// extend: the lease lives from the moment of a renewal, which is not before it was
// asked for.
func (l *leases) extend(one *lease, invoke started, r history.Record) {
	if until := later(invoke.Time, r.TTL); until > one.alive {
		one.alive, one.by = until, r
	}
	one.due = max(one.due, later(r.Time, r.TTL))
}

// later is a time after another, and never before it.
func later(t, by time.Duration) time.Duration {
	if by > math.MaxInt64-t {
		return math.MaxInt64
	}
	return t + by
}

// risen judges the renewal of a lease that was seen gone. One that was asked for
// before that may have come before it, and then the lease went early.
func (l *leases) risen(f *findings, one *lease, invoke started, r history.Record) {
	switch {
	case one.goneSeq == 0 || one.told:
	case one.goneSeq < invoke.seq:
		one.told = true
		f.addf("risen", []history.Record{one.gone, invoke.Record, r}, "the lease %d was gone, and is renewed", r.Lease)
	case one.gone.Time < later(invoke.Time, r.TTL)-l.drift && one.revoked == 0:
		one.told = true
		f.addf("early", []history.Record{invoke.Record, r, one.gone}, "the lease %d was renewed for %v, and was gone before that", r.Lease, r.TTL)
	}
}

// absent: the lease was seen to be gone.
func (l *leases) absent(f *findings, one *lease, r history.Record, seq int64) {
	if one.goneSeq != 0 {
		return
	}
	one.gone, one.goneSeq = r, seq
	switch {
	case one.revoked != 0:
	case one.by.F == 0:
		l.unsure++
	case r.Time < one.alive-l.drift:
		one.told = true
		f.addf("early", []history.Record{one.by, r}, "the lease lives until %v, less a drift of %v, and is gone at %v", one.alive, l.drift, r.Time)
	default:
		l.expired++
		l.latest = max(l.latest, r.Time-one.due)
	}
}

// bind follows the writes of a key.
func (l *leases) bind(b *bound, invoke started, r history.Record, seq int64) {
	if r.Type == history.Invoke {
		b.writes++
		if b.running++; b.running == 1 {
			b.began[invoke.seq] = b.writes
		}
		b.lease = 0
		return
	}
	alone := b.began[invoke.seq] == b.writes && b.running == 1
	delete(b.began, invoke.seq)
	b.running--
	switch r.Type {
	case history.Unknown:
		b.lost = true
	case history.OK:
		if alone && !b.lost && r.F != history.Delete {
			b.lease, b.revision, b.seq = r.Lease, r.Revision, seq
		}
	}
}

// revoked says whether somebody had asked to revoke a lease.
func (l *leases) revoked(id, before int64) bool {
	one, ok := l.byID[id]
	return ok && one.revoked != 0 && one.revoked < before
}

// until is when the lease of a hold may first have expired.
func (l *leases) until(h *hold) time.Duration {
	if h.lease == 0 {
		return history.MaxTime
	}
	one, ok := l.byID[h.lease]
	if !ok || one.by.F == 0 {
		return 0 // nobody knows
	}
	return one.alive - l.drift
}

func (l *leases) note(f *findings) {
	if l.expired > 0 {
		f.notef("%d leases were seen to have expired, the last at most %v after its time", l.expired, max(0, l.latest))
	}
	if l.unsure > 0 {
		f.leftf("%d leases that were gone, of which nobody was told for how long they were granted", l.unsure)
	}
}
