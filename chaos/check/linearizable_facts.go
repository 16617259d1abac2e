package check

import (
	"time"

	"github.com/balsa-run/balsa/chaos/history"
)

// linFact is what is held of each revision for ever.
type linFact struct {
	// sum is of what was written; see linSum. It is 0 while the revision has no write
	// that is known, and linAnySum when a transaction may have made it, or a lease's
	// end: then it may be of more keys than are known.
	sum uint64
	// base is the revision that its write depended on, plus one; 0: on none.
	base int64
	// until is the highest revision at which it was shown to be still there.
	until int64
}

const linAnySum = 1

type linPage [pageSize]linFact

// fact returns that of a revision, which may be any number: a wrong answer names
// revisions that never were, so the pages are sparse.
func (c *Linearizable) fact(revision int64) *linFact {
	number := revision / pageSize
	if number != c.lastNumber || c.lastPage == nil {
		p := c.facts[number]
		if p == nil {
			p = new(linPage)
			c.facts[number] = p
		}
		c.lastPage, c.lastNumber = p, number
	}
	return &c.lastPage[uint64(revision)%pageSize] // a wrong revision may be negative
}

// single says that the revision is of one key, which is known.
func (f *linFact) single() bool { return f.sum != 0 && f.sum&1 == 0 }

// linSumOf is of all that was written at one revision, from the total of the sums of
// its n keys: even when n is 1, else odd.
func linSumOf(n int, total uint64) uint64 {
	if n == 1 {
		return total
	}
	return max(total|1, linAnySum+2)
}

// linSum is 63 bits of a write, by FNV-1a with a last mixing (the finalizer of
// MurmurHash3), since the low bits of FNV are weak. It is even, and not 0.
func linSum(key, value string, deletes bool) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * prime
	}
	// A byte that is in no UTF-8 text separates the two.
	h = (h ^ 0xff) * prime
	if deletes {
		h = (h ^ 0xfe) * prime
	}
	for i := range len(value) {
		h = (h ^ uint64(value[i])) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return max(h&^1, linAnySum+1)
}

// linSlip is what a proof needs of a record: without lists, which may be long.
type linSlip struct {
	index    int64
	time     time.Duration
	server   string
	key, end string
	value    string
	base     int64
	revision int64
	at       int64
	process  int32
	kind     history.Type
	f        history.F
}

func linSlipOf(r *history.Record) linSlip {
	return linSlip{
		index: r.Index, time: r.Time, server: r.Server, key: r.Key, end: r.End, value: r.Value, base: r.Base,
		revision: r.Revision, at: r.At, process: r.Process, kind: r.Type, f: r.F,
	}
}

func (s *linSlip) record() history.Record {
	return history.Record{
		Index: s.index, Time: s.time, Server: s.server, Key: s.key, End: s.end, Value: s.value, Base: s.base,
		Revision: s.revision, At: s.at, Process: s.process, Type: s.kind, F: s.f,
	}
}

// linSlipOfKey is the slip of r that says what r showed of one key: of a list or a
// delivery only that is kept.
func linSlipOfKey(r *history.Record, key, value string, revision int64) linSlip {
	s := linSlipOf(r)
	s.key, s.value, s.revision = key, value, revision
	return s
}

// linRing holds the slips of the last maxMade revisions; it grows as they come.
type linRing []linRingSlip

type linRingSlip struct {
	of int64
	linSlip
}

func (r *linRing) put(revision int64, s linSlip) {
	at := int(uint64(revision) % maxMade)
	for len(*r) <= at {
		*r = append(*r, linRingSlip{})
	}
	(*r)[at] = linRingSlip{of: revision, linSlip: s}
}

// get returns the slip of a revision, as records; none when it is not held.
func (r linRing) get(revision int64) []history.Record {
	at := int(uint64(revision) % maxMade)
	if at >= len(r) || r[at].of != revision || r[at].f == 0 {
		return nil
	}
	return []history.Record{r[at].record()}
}
