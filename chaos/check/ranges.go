package check

import (
	"cmp"
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// Ranges judges lists of keys, whole and in pages. The promise: a list is exactly
// what the range held at the revision that the answer names (At), and so are the
// pages of a list together, at the revision of the first.
//
// A list begins at Key and ends before End; Key alone without an End, and all from
// Key with End "\x00". The next page has the Key just after the last one of the
// page before, the same End, and asks for the At of the page before. Count is
// of all keys from Key to End; an answer that does not tell it has 0. Who asks for
// the number of keys only asks for a page of none, with Limit -1, and More says
// whether there are any. Fields of keys that the answer does not tell are 0.
//
// The rules that an answer breaks by itself:
//
//	order      keys are not ascending, or one is there twice
//	bounds     a key outside the range
//	limit      more keys than were asked for, or More without any limit
//	future     a key changed after the revision of the list, or before its creation
//	at         another revision than was asked for
//	count      fewer keys counted than shown, or more and no More
//	chain      a page of another revision than the one before it
//
// those that a replay of a member's changes shows:
//
//	missing    a key was there, and is not in the list
//	extra      a key is in the list, and was not there
//	value      a key was there, and was something else
//	more       there were more keys and More does not say so, or the reverse
//	total      the number of keys is not what Count says
//	ahead      the list is of a revision that no member has
//
// and of refusals:
//
//	compacted  refused as forgotten, and nobody had asked to forget it
//
// Whether a list is new enough is not judged here, but by Linearizable.
//
// Source: the replay of stale reads in etcd's tests/robustness/validate.
type Ranges struct {
	findings
	pairs pairing
	compaction
	// kept are the lists that wait for the replay, with keptKVs keys together.
	kept     []listed
	keptKVs  int
	overflow int64
	// chains is what each process has listed last, when there was more.
	chains map[int32]history.Record
	maxKVs int
}

// MaxKeptKVs bounds the keys of lists that are kept until a member's history is
// there to compare with; lists beyond it are Left.
const MaxKeptKVs = 8 << 20

type listed struct{ invoke, end history.Record }

// NewRanges returns a checker of lists.
func NewRanges() *Ranges {
	return &Ranges{chains: map[int32]history.Record{}, maxKVs: MaxKeptKVs}
}

// Add takes the next record.
func (c *Ranges) Add(r history.Record) {
	c.compaction.add(r)
	if r.F != history.List && r.F != history.StaleList {
		return
	}
	invoke, ended := c.pairs.next(r)
	if !ended {
		return
	}
	c.out.Checked++
	switch {
	case r.Type == history.OK:
		c.answer(invoke.Record, r)
	case r.Type == history.Refused && isCompacted(r) && invoke.At != 0:
		c.refused(invoke.Record, r, invoke.At)
	}
}

func (c *Ranges) answer(invoke, r history.Record) {
	c.alone(invoke, r)
	c.chain(invoke, r)
	if c.keptKVs+len(r.KVs) > c.maxKVs {
		c.overflow++
		return
	}
	c.keptKVs += len(r.KVs)
	c.kept = append(c.kept, listed{invoke, r})
}

// alone judges an answer by itself.
func (c *Ranges) alone(invoke, r history.Record) {
	proof := []history.Record{r}
	n := int64(len(r.KVs))
	for i, kv := range r.KVs {
		switch {
		case i > 0 && kv.Key <= r.KVs[i-1].Key:
			c.addf("order", proof, "%s comes after %s", kv.Key, r.KVs[i-1].Key)
		case !inRange(kv.Key, invoke.Key, invoke.End):
			c.addf("bounds", proof, "%s is not in the range", kv.Key)
		case r.At != 0 && kv.ModRevision > r.At:
			c.addf("future", proof, "%s is of revision %d, and the list of %d", kv.Key, kv.ModRevision, r.At)
		case kv.CreateRevision > kv.ModRevision:
			c.addf("future", proof, "%s was changed at revision %d and created at %d", kv.Key, kv.ModRevision, kv.CreateRevision)
		}
	}
	switch {
	case invoke.Limit != 0 && n > max(0, invoke.Limit):
		c.addf("limit", proof, "%d keys where at most %d were asked for", n, max(0, invoke.Limit))
	case invoke.Limit == 0 && r.More:
		c.addf("limit", proof, "there is said to be more, and no limit was given")
	}
	if invoke.At != 0 && r.At != invoke.At {
		c.addf("at", proof, "revision %d was asked for, and %d is shown", invoke.At, r.At)
	}
	if r.Count != 0 && (r.Count < n || r.Count > n && !r.More) {
		c.addf("count", proof, "%d keys are counted, and %d shown", r.Count, n)
	}
}

// chain judges a page by the one before it.
func (c *Ranges) chain(invoke, r history.Record) {
	before, ok := c.chains[r.Process]
	delete(c.chains, r.Process)
	if ok && invoke.Key == next(before) && invoke.End == before.End && r.At != before.At {
		c.addf("chain", []history.Record{before, r}, "the pages are of the revisions %d and %d", before.At, r.At)
	}
	if r.More && len(r.KVs) > 0 && r.At != 0 {
		r.End = invoke.End
		c.chains[r.Process] = r
	}
}

// next is where the page after this one begins.
func next(page history.Record) string { return page.KVs[len(page.KVs)-1].Key + "\x00" }

// Verdict compares all lists with a replay.
func (c *Ranges) Verdict(members []Member) Verdict {
	t := newTimeline(members)
	var untold, unknown int64
	for _, l := range c.kept {
		switch {
		case t == nil:
			unknown++
		case l.end.At == 0:
			untold++
		case l.end.At > t.revision:
			c.addf("ahead", []history.Record{l.end}, "no member at rest is at revision %d; %s is the newest, at %d", l.end.At, t.member, t.revision)
		case !t.covers(l.end.At):
			unknown++
		default:
			c.replay(t, l.invoke, l.end)
		}
	}
	c.judge(&c.findings, members)
	if untold > 0 {
		c.leftf("the content of %d lists that do not tell their revision", untold)
	}
	if unknown > 0 {
		c.leftf("the content of %d lists, of revisions that no member holds any more, or was asked for", unknown)
	}
	if c.overflow > 0 {
		c.leftf("the content of %d lists beyond the %d keys that are kept", c.overflow, c.maxKVs)
	}
	c.out.Unknown += int64(len(c.pairs.unended()))
	return c.verdict("ranges", c.pairs.odd)
}

// replay compares an answer with what there was.
func (c *Ranges) replay(t *timeline, invoke, r history.Record) {
	truth := t.list(invoke.Key, invoke.End, r.At)
	total := int64(len(truth))
	if (r.Count != 0 || invoke.Limit < 0) && r.Count != total {
		c.addf("total", []history.Record{r}, "%d keys are counted, and there were %d at revision %d", r.Count, total, r.At)
	}
	page := truth
	if invoke.Limit != 0 {
		page = truth[:min(total, max(0, invoke.Limit))]
	}
	if more := len(page) < len(truth); more != r.More {
		c.addf("more", []history.Record{r}, "%d keys were there at revision %d, the limit is %d, and more is %v", total, r.At, invoke.Limit, r.More)
	}
	c.compare(t, page, r)
}

// compare walks along the keys that were there, and those that are shown. The first
// difference is told.
func (c *Ranges) compare(t *timeline, truth []history.KV, r history.Record) {
	told := r.KVs
	if !slices.IsSortedFunc(told, compareKeys) {
		told = slices.SortedStableFunc(slices.Values(told), compareKeys) // the rule "order" has told
	}
	for len(truth) > 0 || len(told) > 0 {
		switch side(truth, told) {
		case -1:
			c.addf("missing", []history.Record{r, t.proof(truth[0])}, "%s was there at revision %d, with revision %d", truth[0].Key, r.At, truth[0].ModRevision)
			return
		case 1:
			c.addf("extra", []history.Record{r}, "%s with revision %d should not be there at revision %d", told[0].Key, told[0].ModRevision, r.At)
			return
		}
		if field := differs(told[0], truth[0]); field != "" {
			c.addf("value", []history.Record{r, t.proof(truth[0])}, "%s has another %s at revision %d", told[0].Key, field, r.At)
			return
		}
		truth, told = truth[1:], told[1:]
	}
}

// side says which of two lists has the smaller key first; -1: the truth.
func side(truth, told []history.KV) int {
	switch {
	case len(told) == 0:
		return -1
	case len(truth) == 0:
		return 1
	}
	return cmp.Compare(truth[0].Key, told[0].Key)
}
