package check

import (
	"fmt"

	"github.com/balsa-run/balsa/chaos/history"
)

// Hashes judges whether the servers are replicas of each other. The promise: at
// equal revisions they hold equal states, always, and at rest they are at equal
// revisions. A Hash record has the hash as FormatHash writes it.
//
// The rules:
//
//	hash     two hashes of the same revision, of two servers or of one
//	behind   at rest a member has not got as far as another
//	changes  the histories of two members differ where both are complete
//	order    a member's changes are not in the order of their revisions
//
// Source: the KV hash at the end of etcd's robustness tests; ours is also taken
// while faults go on.
type Hashes struct {
	findings
	// at is the first hash that was told of each revision.
	at map[int64]history.Record
}

// NewHashes returns a checker of state hashes.
func NewHashes() *Hashes { return &Hashes{at: map[int64]history.Record{}} }

// FormatHash is a state hash as the value of a record.
func FormatHash(hash uint64) string { return fmt.Sprintf("%016x", hash) }

// Add takes the next record.
func (c *Hashes) Add(r history.Record) {
	if r.F != history.Hash || r.Type != history.OK {
		return
	}
	c.out.Checked++
	c.hash(r)
}

func (c *Hashes) hash(r history.Record) {
	before, ok := c.at[r.At]
	if !ok {
		c.at[r.At] = r
	} else if before.Value != r.Value {
		c.addf("hash", []history.Record{before, r}, "at revision %d server %s has the hash %s, and server %s %s", r.At, before.Server, before.Value, r.Server, r.Value)
	}
}

// Verdict compares the members at rest with each other, and with what they said.
func (c *Hashes) Verdict(members []Member) Verdict {
	if len(members) < 2 {
		c.leftf("whether members agree at rest: %d were asked", len(members))
	}
	for i, m := range members {
		c.out.Checked++
		c.hash(rest(m))
		c.ordered(m)
		if i == 0 {
			continue
		}
		first := members[0]
		if m.Revision != first.Revision {
			c.addf("behind", []history.Record{rest(first), rest(m)}, "at rest %s is at revision %d, and %s at %d", first.Name, first.Revision, m.Name, m.Revision)
		}
		c.changes(first, m)
	}
	return c.verdict("hashes", 0)
}

// rest is what a member said when it was asked at the end, as a record.
func rest(m Member) history.Record {
	return history.Record{Type: history.OK, F: history.Hash, Server: m.Name, At: m.Revision, Value: FormatHash(m.Hash)}
}

func (c *Hashes) ordered(m Member) {
	for i := 1; i < len(m.Changes); i++ {
		if m.Changes[i].ModRevision < m.Changes[i-1].ModRevision {
			c.addf("order", []history.Record{held(m, m.Changes[i-1:i+1]...)}, "%s holds revision %d after %d", m.Name, m.Changes[i].ModRevision, m.Changes[i-1].ModRevision)
			return
		}
	}
}

// changes compares two members where both are complete.
func (c *Hashes) changes(a, b Member) {
	from, to := max(a.First, b.First), min(a.Revision, b.Revision)
	ours, theirs := between(a.Changes, from, to), between(b.Changes, from, to)
	for i := range max(len(ours), len(theirs)) {
		one, other := held(a), held(b)
		if i < len(ours) {
			one = held(a, ours[i])
		}
		if i < len(theirs) {
			other = held(b, theirs[i])
		}
		if i < len(ours) && i < len(theirs) && sameKV(ours[i], theirs[i]) {
			continue
		}
		c.addf("changes", []history.Record{one, other}, "the histories of %s and %s differ from change %d after revision %d on", a.Name, b.Name, i+1, from-1)
		return
	}
}

// between are the changes of some revisions.
func between(changes []history.KV, from, to int64) []history.KV {
	var out []history.KV
	for _, kv := range changes {
		if from <= kv.ModRevision && kv.ModRevision <= to {
			out = append(out, kv)
		}
	}
	return out
}

// sameKV compares all that a history holds of a change.
func sameKV(a, b history.KV) bool {
	a.Prev, b.Prev = nil, nil
	return a == b
}

// held is a part of a member's history, as if it had been delivered.
func held(m Member, changes ...history.KV) history.Record {
	return history.Record{Type: history.OK, F: history.Deliver, Server: m.Name, At: m.Revision, KVs: changes}
}
