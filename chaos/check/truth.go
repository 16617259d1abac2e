package check

import (
	"cmp"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// timeline is the history that a member holds at rest, for replay: of the member
// with the highest revision. Whether the others agree is the concern of Hashes.
type timeline struct {
	member string
	// All that happened at first..revision is there. whole: so is what each key was
	// before; either nothing was, or the member told it as changes before first.
	first, revision int64
	whole           bool
	changes         []history.KV
	keys            []string           // sorted
	byKey           map[string][]int32 // into changes, in order
}

// emptyRevision is the revision of a space in which nothing was ever written, as
// in etcd.
const emptyRevision = 1

// newTimeline is nil when no member was asked.
func newTimeline(members []Member) *timeline {
	if len(members) == 0 {
		return nil
	}
	m := slices.MaxFunc(members, func(a, b Member) int { return cmp.Compare(a.Revision, b.Revision) })
	t := &timeline{member: m.Name, first: m.First, revision: m.Revision, changes: m.Changes, byKey: map[string][]int32{}}
	byRevision := func(a, b history.KV) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	if !slices.IsSortedFunc(t.changes, byRevision) {
		t.changes = slices.Clone(t.changes)
		slices.SortStableFunc(t.changes, byRevision)
	}
	t.whole = m.First <= emptyRevision+1 || len(t.changes) > 0 && t.changes[0].ModRevision < m.First
	for i, kv := range t.changes {
		if t.byKey[kv.Key] == nil {
			t.keys = append(t.keys, kv.Key)
		}
		t.byKey[kv.Key] = append(t.byKey[kv.Key], int32(i))
	}
	slices.Sort(t.keys)
	return t
}

// covers says whether the state of the whole space at a revision is known.
func (t *timeline) covers(revision int64) bool {
	return t != nil && t.whole && revision <= t.revision && (revision >= t.first || t.first <= emptyRevision+1)
}

// last is the newest change of a key up to a revision; nil: none is known.
func (t *timeline) last(key string, revision int64) *history.KV {
	changes := t.byKey[key]
	i, found := slices.BinarySearchFunc(changes, revision, func(i int32, r int64) int { return compareRevisions(t.changes[i], r) })
	if found {
		i++
	}
	if i == 0 {
		return nil
	}
	return &t.changes[changes[i-1]]
}

// list is the state of a range at a revision that is covered.
func (t *timeline) list(from, end string, revision int64) []history.KV {
	i, _ := slices.BinarySearch(t.keys, from)
	var out []history.KV
	for ; i < len(t.keys) && inRange(t.keys[i], from, end); i++ {
		if kv := t.last(t.keys[i], revision); kv != nil && !kv.Deleted {
			out = append(out, *kv)
		}
	}
	return out
}

// differs names the first field in which a key is not what it is in truth. What an
// interface does not tell is 0 and agrees with everything.
func differs(told, truth history.KV) string {
	other := func(a, b int64) bool { return a != 0 && b != 0 && a != b }
	switch {
	case told.ModRevision != truth.ModRevision:
		return "modification revision"
	case told.Deleted != truth.Deleted:
		return "deletion"
	case !told.Deleted && told.Value != truth.Value:
		return "value"
	case told.Deleted: // has nothing else
		return ""
	case other(told.CreateRevision, truth.CreateRevision):
		return "create revision"
	case other(told.Version, truth.Version):
		return "version"
	case other(told.Lease, truth.Lease):
		return "lease"
	}
	return ""
}

// compaction judges refusals that say that a revision is forgotten.
type compaction struct {
	// asked is the highest revision that anybody has asked to compact to, so far.
	asked    int64
	refusals []refusal
}

type refusal struct {
	invoke, end history.Record
	// needed is the revision that was asked for, asked what could be forgotten then.
	needed, asked int64
}

func (c *compaction) add(r history.Record) {
	if r.F == history.Compact {
		c.asked = max(c.asked, r.Base)
	}
}

func (c *compaction) refused(invoke, end history.Record, needed int64) {
	c.refusals = append(c.refusals, refusal{invoke, end, needed, c.asked})
}

// forgotten is the revision that a space has compacted to by itself: members have
// less than anybody asked for.
func (c *compaction) forgotten(members []Member) int64 {
	out := int64(0)
	for _, m := range members {
		if m.First > max(c.asked, emptyRevision+1) {
			out = max(out, m.First)
		}
	}
	return out
}

// judge: what was refused as forgotten had been compacted away.
func (c *compaction) judge(f *findings, members []Member) {
	forgotten := c.forgotten(members)
	for _, r := range c.refusals {
		switch {
		case r.needed >= max(r.asked, forgotten):
			f.addf("compacted", []history.Record{r.invoke, r.end}, "revision %d is refused as compacted, and nobody had asked to forget more than what is before %d", r.needed, r.asked)
		case r.end.At != 0 && r.end.At != r.invoke.At && r.end.At <= r.needed:
			f.addf("compacted", []history.Record{r.invoke, r.end}, "revision %d is refused as compacted, and the oldest that is left is told to be %d", r.needed, r.end.At)
		}
	}
}

// proof is a change as the member holds it, as if it had been delivered.
func (t *timeline) proof(kv history.KV) history.Record {
	return held(Member{Name: t.member, Revision: t.revision}, kv)
}

func isCompacted(r history.Record) bool { return strings.Contains(r.Error, ErrorCompacted) }
