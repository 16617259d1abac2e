package check

import (
	"cmp"
	"slices"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
)

// Locks judges locks, the writes that they fence, and leases.
//
// A process holds the lock Key from the OK of its Lock until it begins to Unlock,
// or until the Lease of the lock may have expired: TTL after the invocation of the
// last Grant or KeepAlive that was acknowledged (renewals take effect no earlier),
// less Options.Drift, by which clocks of servers may run fast. Without a lease it
// holds on. The OK of Lock has the fencing token in Base, which grows with each
// holder. Nobody can keep a paused process from believing that it holds a lock:
// what the token gives is that its writes (Fenced, with the token in Base) are
// refused once a newer one was accepted. Unlock is OK when the token did hold the
// lock until then, and Refused when it had lost it.
//
// A lease is seen to be gone by a KeepAlive that is Refused with ErrorNotFound or
// answers with no time left, by a Read that does not find a key, or a Deliver of its
// deletion, when the last write of the key was an acknowledged Put or CAS with the
// Lease, and nobody has begun another write of it.
//
// The rules:
//
//	overlap  two hold a lock at once, and the lease cannot have expired
//	token    a token is not greater than that of an earlier holder, or missing
//	fence    a write is accepted after one with a newer token
//	refused  a fenced write was refused, and members hold it
//	untold   an Unlock is OK, and another held the lock before it began
//	early    a lease is gone before its time
//	risen    a lease that was gone is renewed
//
// How late leases expired is noted. Source: Kleppmann, "How to do distributed
// locking" (2016), for the tokens; Jepsen on etcd 3.4.3 (2020) for what goes wrong
// without.
type Locks struct {
	findings
	pairs  pairing
	drift  time.Duration
	locks  map[string]*lock
	names  []string // of locks, in the order in which they were met
	fences map[string]*fence
	fenced []string // keys of fences, likewise
	leases leases
}

// NewLocks returns a checker of locks and leases. Drift bounds how much earlier a
// lease may expire than the clients' clock says.
func NewLocks(drift time.Duration) *Locks {
	return &Locks{drift: drift, locks: map[string]*lock{}, fences: map[string]*fence{}, leases: newLeases(drift)}
}

type lock struct {
	holds   []*hold
	byToken map[int64]*hold
	// newest is the hold with the greatest token that was acknowledged; floors are
	// what it was when a running Lock began.
	newest *hold
	floors map[int64]*hold
}

// hold is one acknowledged Lock.
type hold struct {
	token, lease int64
	end          history.Record
	seq          int64 // of the end
	unlocks      []unlock
}

// unlock is an attempt to give a lock back.
type unlock struct {
	started
	// end has no Type while it has not ended.
	end history.Record
}

// fence is a key with fenced writes.
type fence struct {
	accepted []history.Record
	newest   history.Record
	floors   map[int64]history.Record
	// open are writes of an outcome that is not known, refused those that were.
	open, refused map[string]history.Record
}

// Add takes the next record.
func (c *Locks) Add(r history.Record) {
	if r.F == history.Fault || r.F == history.Hash || r.F == history.Compact {
		return
	}
	invoke, ended := c.pairs.next(r)
	if r.Type != history.Invoke && !ended && r.F != history.Deliver {
		return
	}
	if ended {
		c.out.Checked++
		if r.Type == history.Unknown {
			c.out.Unknown++
		}
	}
	switch r.F {
	case history.Lock:
		c.lock(c.named(r.Key), invoke, r)
	case history.Unlock:
		c.unlock(c.named(r.Key), invoke, r)
	case history.Fenced:
		c.write(c.fence(r.Key), invoke, r)
	}
	c.leases.add(&c.findings, invoke, r, c.pairs.seq)
}

func (c *Locks) named(name string) *lock {
	if c.locks[name] == nil {
		c.locks[name] = &lock{byToken: map[int64]*hold{}, floors: map[int64]*hold{}}
		c.names = append(c.names, name)
	}
	return c.locks[name]
}

func (c *Locks) fence(key string) *fence {
	if c.fences[key] == nil {
		c.fences[key] = &fence{floors: map[int64]history.Record{}, open: map[string]history.Record{}, refused: map[string]history.Record{}}
		c.fenced = append(c.fenced, key)
	}
	return c.fences[key]
}

func (c *Locks) lock(l *lock, invoke started, r history.Record) {
	if r.Type == history.Invoke {
		l.floors[invoke.seq] = l.newest
		return
	}
	floor := l.floors[invoke.seq]
	delete(l.floors, invoke.seq)
	if r.Type != history.OK {
		return
	}
	h := &hold{token: r.Base, lease: r.Lease, end: r, seq: c.pairs.seq}
	switch {
	case h.token <= 0:
		c.addf("token", []history.Record{r}, "the lock %s was given without a fencing token", r.Key)
	case floor != nil && h.token <= floor.token:
		c.addf("token", []history.Record{floor.end, invoke.Record, r}, "the lock %s was given with the token %d, after %d was given", r.Key, h.token, floor.token)
	case l.byToken[h.token] != nil:
		c.addf("token", []history.Record{l.byToken[h.token].end, r}, "two hold the lock %s with the token %d", r.Key, h.token)
	}
	if l.byToken[h.token] == nil {
		l.byToken[h.token] = h
	}
	l.holds = append(l.holds, h)
	if l.newest == nil || h.token > l.newest.token {
		l.newest = h
	}
}

func (c *Locks) unlock(l *lock, invoke started, r history.Record) {
	h := l.byToken[invoke.Base]
	if h == nil {
		return // a token that nobody was told
	}
	if r.Type == history.Invoke {
		h.unlocks = append(h.unlocks, unlock{started: invoke})
		return
	}
	for i := range h.unlocks {
		if h.unlocks[i].seq == invoke.seq {
			h.unlocks[i].end = r
		}
	}
}

// released says whether a hold may have been given back before.
func (h *hold) released(before int64) bool {
	return slices.ContainsFunc(h.unlocks, func(u unlock) bool { return u.seq < before && u.end.Type != history.Refused })
}

func (c *Locks) write(f *fence, invoke started, r history.Record) {
	switch r.Type {
	case history.Invoke:
		f.floors[invoke.seq] = f.newest
		f.open[r.Value] = r
		return
	case history.OK:
		if floor := f.floors[invoke.seq]; floor.Base > invoke.Base {
			c.addf("fence", []history.Record{floor, invoke.Record, r}, "a write to %s with the token %d was accepted after one with %d", invoke.Key, invoke.Base, floor.Base)
		}
		delete(f.open, invoke.Value)
		r.Base = invoke.Base
		f.accepted = append(f.accepted, r)
		if r.Base > f.newest.Base {
			f.newest = r
		}
	case history.Refused:
		delete(f.open, invoke.Value)
		f.refused[invoke.Value] = r
	}
	delete(f.floors, invoke.seq)
}

// Verdict judges what the order of revisions says, and what is known of leases.
func (c *Locks) Verdict(members []Member) Verdict {
	for _, name := range c.names {
		c.holders(c.locks[name])
	}
	t := newTimeline(members)
	for _, key := range c.fenced {
		c.revisions(c.fences[key], key, t)
	}
	if t == nil && len(c.fenced) > 0 {
		c.leftf("fenced writes of an unknown outcome: no member was asked")
	}
	unended := int64(len(c.pairs.unended()))
	c.out.Checked += unended
	c.out.Unknown += unended
	c.leases.note(&c.findings)
	return c.verdict("locks", c.pairs.odd)
}

// holders: nobody held the lock when it was given to the next. Of all holders with
// a greater token, the one who was told first is the proof.
func (c *Locks) holders(l *lock) {
	slices.SortStableFunc(l.holds, func(a, b *hold) int { return cmp.Compare(a.token, b.token) })
	var first *hold
	for i := len(l.holds) - 1; i >= 0; i-- {
		h := l.holds[i]
		if i+1 < len(l.holds) && l.holds[i+1].token > h.token {
			if later := l.earliest(i + 1); first == nil || later.seq < first.seq {
				first = later
			}
		}
		if first == nil {
			continue
		}
		gone := h.released(first.seq) || c.leases.revoked(h.lease, first.seq)
		if !gone && first.end.Time < c.leases.until(h) {
			c.addf("overlap", []history.Record{h.end, first.end}, "the lock %s is given with the token %d, and its holder with the token %d has it until %v at least", h.end.Key, first.token, h.token, c.leases.until(h))
		}
		for _, u := range h.unlocks {
			if u.end.Type == history.OK && u.seq > first.seq {
				c.addf("untold", []history.Record{first.end, u.Record, u.end}, "the token %d gave the lock %s back, and %d had it before", h.token, h.end.Key, first.token)
			}
		}
	}
}

// earliest is the first that was told of those with the token of number i.
func (l *lock) earliest(i int) *hold {
	out := l.holds[i]
	for _, h := range l.holds[i:] {
		if h.token != out.token {
			break
		}
		if h.seq < out.seq {
			out = h
		}
	}
	return out
}

// revisions: in the order of their revisions, tokens do not go back. A member's
// history tells also of writes whose outcome nobody was told.
func (c *Locks) revisions(f *fence, key string, t *timeline) {
	all := slices.Clone(f.accepted)
	all = slices.DeleteFunc(all, func(r history.Record) bool { return r.Revision == 0 })
	if t != nil {
		for _, i := range t.byKey[key] {
			kv := t.changes[i]
			if r, ok := f.refused[kv.Value]; ok && !kv.Deleted {
				c.addf("refused", []history.Record{r, t.proof(kv)}, "the write of %q to %s was refused, and is there at revision %d", kv.Value, key, kv.ModRevision)
			}
			if r, ok := f.open[kv.Value]; ok && !kv.Deleted {
				r.Revision = kv.ModRevision
				all = append(all, r)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b history.Record) int { return cmp.Compare(a.Revision, b.Revision) })
	var newest history.Record
	for _, r := range all {
		if r.Base < newest.Base {
			c.addf("fence", []history.Record{newest, r}, "a write to %s with the token %d is of revision %d, after one with %d of revision %d", key, r.Base, r.Revision, newest.Base, newest.Revision)
		} else {
			newest = r
		}
	}
}
