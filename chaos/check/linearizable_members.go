package check

import (
	"fmt"
	"maps"
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// Verdict is called once. Members are at rest, so each holds all that was
// acknowledged.
func (c *Linearizable) Verdict(members []Member) Verdict {
	if len(members) == 0 {
		c.leave("what the members hold: whether each acknowledged write is there, and whether each revision was asked for")
	}
	for i := range members {
		c.member(&members[i])
	}
	return c.verdict
}

// linReplay is a member's history being compared.
type linReplay struct {
	name string
	// complete: the member holds all from the beginning, so that what a key was
	// before its first change is known.
	complete bool
	// last is the last change of each key.
	last map[string]*history.KV
}

// member judges what a member holds.
func (c *Linearizable) member(m *Member) {
	first := max(m.First, c.opts.Start+1)
	p := linReplay{name: m.Name, complete: m.First <= c.opts.Start+1 && c.opts.Start <= 1, last: map[string]*history.KV{}}
	if m.First > c.opts.Start+1 {
		c.leave(fmt.Sprintf("what %s held before revision %d, where its history begins", m.Name, m.First))
	}
	changes := c.base(&p, m.Changes, m.First, first)
	for at := first; ; {
		n := linRevision(changes)
		if n == 0 {
			c.notHeld(m.Name, at, max(m.Revision, c.known))
			return
		}
		rev := changes[0].ModRevision
		if rev < at {
			c.violate("phantom", fmt.Sprintf("%s holds revision %d after revision %d", m.Name, rev, at-1), linChanged(m.Name, &changes[0]))
		} else {
			c.notHeld(m.Name, at, rev-1)
			at = rev + 1
			c.change(&p, changes[:n])
		}
		changes = changes[n:]
	}
}

// base takes the changes from before first, where the history of a member begins:
// they are what its keys were then. It returns the others.
func (c *Linearizable) base(p *linReplay, changes []history.KV, oldest, first int64) []history.KV {
	for len(changes) > 0 && changes[0].ModRevision < first {
		kv := &changes[0]
		p.complete = p.complete || kv.ModRevision < oldest
		if k, ours := c.ours(kv.Key); ours && kv.ModRevision > c.opts.Start {
			// There may have been more at that revision, which was changed since.
			f := c.fact(kv.ModRevision)
			switch what := linContent(k, kv); {
			case f.single() && f.sum != linSum(k.key, what.value, what.deletes):
				c.differs(p, changes[:1])
			case f.sum == 0:
				f.sum = c.unasked(p, changes[:1])
			}
		}
		p.last[kv.Key] = kv
		changes = changes[1:]
	}
	return changes
}

// linRevision is how many of the changes are of the first one's revision.
func linRevision(changes []history.KV) int {
	n := 0
	for n < len(changes) && changes[n].ModRevision == changes[0].ModRevision {
		n++
	}
	return n
}

func linContent(k *linKey, kv *history.KV) content {
	if kv.Deleted {
		return content{key: k, deletes: true}
	}
	return content{key: k, value: kv.Value}
}

// linChanged is a change of a member as a record, for proofs.
func linChanged(member string, kv *history.KV) history.Record {
	return history.Record{
		Index: -1, Time: history.MaxTime, Type: history.OK, F: history.Deliver, Server: member, Key: kv.Key,
		Revision: kv.ModRevision, KVs: []history.KV{*kv},
	}
}

// notHeld judges the revisions from first to last, at which a member holds no
// change.
func (c *Linearizable) notHeld(member string, first, last int64) {
	if first > last {
		return
	}
	lost := int64(0)
	for _, number := range c.pages(first/pageSize, last/pageSize) {
		for i := range c.facts[number] {
			rev := number*pageSize + int64(i)
			if rev < first || rev > last || c.facts[number][i].sum == 0 {
				continue
			}
			lost++
			c.violate("lost", fmt.Sprintf("revision %d was acknowledged or shown, and %s has no change at it", rev, member), c.recordOf(rev)...)
		}
	}
	if missing := last - first + 1 - lost; missing > 0 && !c.opts.Foreign {
		c.violate("gap", fmt.Sprintf("%s has no change at %d revisions between %d and %d", member, missing, first, last),
			history.Record{Index: -1, Time: history.MaxTime, Type: history.OK, F: history.Deliver, Server: member, At: last})
	}
}

// pages are those from first to last that there are, in order. Mostly that is one,
// but a wrong answer may have named any revision.
func (c *Linearizable) pages(first, last int64) []int64 {
	if first != last {
		return slices.DeleteFunc(slices.Sorted(maps.Keys(c.facts)), func(number int64) bool { return number < first || number > last })
	}
	if c.facts[first] == nil {
		return nil
	}
	return []int64{first}
}

// recordOf is what is known of a revision.
func (c *Linearizable) recordOf(rev int64) []history.Record {
	if made := c.made.get(rev); made != nil {
		return made
	}
	return c.witness(rev)
}

// change judges all that a member holds of one revision.
func (c *Linearizable) change(p *linReplay, kvs []history.KV) {
	f, sum := c.fact(kvs[0].ModRevision), linSumOfAll(kvs)
	if f.sum == 0 {
		if f.sum = c.unasked(p, kvs); f.sum == linAnySum {
			f.sum = sum // So the other members are held to the same.
		}
	}
	same := f.sum == 0 || f.sum == linAnySum || f.sum == sum
	if !same {
		c.differs(p, kvs)
	}
	for i := range kvs {
		kv := &kvs[i]
		if k, ours := c.ours(kv.Key); ours && same {
			c.follows(p, k, kv, f)
		}
		p.last[kv.Key] = kv
	}
}

func linSumOfAll(kvs []history.KV) uint64 {
	total := uint64(0)
	for i := range kvs {
		what := linContent(nil, &kvs[i])
		total += linSum(kvs[i].Key, what.value, what.deletes)
	}
	return linSumOf(len(kvs), total)
}

// differs judges a revision that is not what was acknowledged or shown.
func (c *Linearizable) differs(p *linReplay, kvs []history.KV) {
	kv := &kvs[0]
	rule, known := "lost", c.recordOf(kv.ModRevision)
	if len(kvs) == 1 && !kv.Deleted && len(known) > 0 && known[0].Key == kv.Key && known[0].Revision == kv.ModRevision && known[0].Value != kv.Value {
		rule = "value"
	}
	c.violate(rule, fmt.Sprintf("revision %d is %v on %s, and that is not what was written or shown", kv.ModRevision, kvs, p.name),
		append(known, linChanged(p.name, kv))...)
}

// unasked looks for the write, of those that ended as Unknown, that made a revision
// which nobody has shown yet. It returns the sum of that write, and 0 for what is
// of strangers only.
func (c *Linearizable) unasked(p *linReplay, kvs []history.KV) uint64 {
	out := uint64(0)
	for i := range kvs {
		kv := &kvs[i]
		k, ours := c.ours(kv.Key)
		if !ours {
			continue
		}
		what := linContent(k, kv)
		o, sum := c.whose(what, kv.ModRevision)
		switch {
		case sum == 0 && what.deletes:
			c.violate("phantom", fmt.Sprintf("%s holds that %q was deleted at revision %d, and nobody asked for that", p.name, k.key, kv.ModRevision), linChanged(p.name, kv))
		case sum == 0:
			c.nobodyWrote(k, kv.ModRevision, what, linSight{r: new(linChanged(p.name, kv))})
		case o != nil && (o.f == history.Txn || len(kvs) == 1):
			c.claim(o, kv.ModRevision)
			return sum
		}
		if out = linAnySum; sum&1 == 0 && sum != 0 && len(kvs) > 1 {
			return sum // A write of this key alone: the others are not explained.
		}
	}
	return out
}

// follows judges a change by the one before it of the same key.
func (c *Linearizable) follows(p *linReplay, k *linKey, kv *history.KV, f *linFact) {
	before, there := p.last[kv.Key]
	proof := func() []history.Record { return append(c.recordOf(kv.ModRevision), linChanged(p.name, kv)) }
	// Of several keys, until may be that of another one.
	if there && c.fact(before.ModRevision).single() && c.fact(before.ModRevision).until >= kv.ModRevision && before.ModRevision > c.opts.Start {
		c.violate("stale", fmt.Sprintf("%q was shown at revision %d as of revision %d, and was changed at %d", k.key, before.ModRevision,
			c.fact(before.ModRevision).until, kv.ModRevision), append(c.recordOf(before.ModRevision), proof()...)...)
	}
	live := there && !before.Deleted
	switch {
	case f.base == 0 || !there && !p.complete:
	case f.base == linMustExist && !live, f.base == 1 && live:
		c.violate("basis", fmt.Sprintf("revision %d of %q cannot be: before it %s", kv.ModRevision, k.key, linState(before, there)), proof()...)
	case f.base > 1 && (!live || before.ModRevision != f.base-1):
		c.violate("basis", fmt.Sprintf("revision %d of %q was made upon %d: before it %s", kv.ModRevision, k.key, f.base-1, linState(before, there)), proof()...)
	}
}

func linState(kv *history.KV, there bool) string {
	if !there {
		return "there was nothing"
	}
	return "there was " + kv.String()
}
