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
	at := first
	for i := range m.Changes {
		kv := &m.Changes[i]
		if kv.ModRevision < at-1 {
			c.violate("phantom", fmt.Sprintf("%s holds revision %d after revision %d", m.Name, kv.ModRevision, at-1), linChanged(m.Name, kv))
			continue
		}
		c.notHeld(m.Name, at, kv.ModRevision-1)
		at = kv.ModRevision + 1
		c.change(&p, kv)
		p.last[kv.Key] = kv
	}
	c.notHeld(m.Name, at, max(m.Revision, c.known))
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

// change judges one change that a member holds.
func (c *Linearizable) change(p *linReplay, kv *history.KV) {
	if kv.ModRevision <= c.opts.Start {
		return
	}
	k, ours := c.ours(kv.Key)
	f := c.fact(kv.ModRevision)
	if !ours {
		if f.sum > linAnySum {
			c.violate("lost", fmt.Sprintf("revision %d is %q on %s", kv.ModRevision, kv.Key, p.name), append(c.recordOf(kv.ModRevision), linChanged(p.name, kv))...)
		}
		return
	}
	what := content{key: k, value: kv.Value, deletes: kv.Deleted}
	if what.deletes {
		what.value = ""
	}
	switch {
	case f.sum == linAnySum:
	case f.sum == 0:
		c.unasked(p, k, what, kv)
	case f.sum != linSum(k.key, what.value, what.deletes):
		c.differs(p, kv)
		return
	}
	c.follows(p, k, kv, f)
}

// differs judges a change that is not what was acknowledged or shown.
func (c *Linearizable) differs(p *linReplay, kv *history.KV) {
	rule, known := "lost", c.recordOf(kv.ModRevision)
	if len(known) > 0 && known[0].Key == kv.Key && known[0].Revision == kv.ModRevision {
		rule = "value"
	}
	c.violate(rule, fmt.Sprintf("revision %d is %v on %s, and that is not what was written or shown", kv.ModRevision, *kv, p.name),
		append(known, linChanged(p.name, kv))...)
}

// unasked looks for the write, of those that ended as Unknown, that made a change
// which nobody has shown yet.
func (c *Linearizable) unasked(p *linReplay, k *linKey, what content, kv *history.KV) {
	f := c.fact(kv.ModRevision)
	o := c.candidate(what, kv.ModRevision)
	switch {
	case o != nil:
		c.claim(o, kv.ModRevision)
	case c.excused(what):
	case what.deletes:
		c.violate("phantom", fmt.Sprintf("%s holds that %q was deleted at revision %d, and nobody asked for that", p.name, k.key, kv.ModRevision), linChanged(p.name, kv))
	default:
		c.nobodyWrote(k, kv.ModRevision, what, linSight{r: new(linChanged(p.name, kv))})
	}
	// So that it is told once, and the other members are held to the same.
	f.sum = linSum(k.key, what.value, what.deletes)
}

// follows judges a change by the one before it of the same key.
func (c *Linearizable) follows(p *linReplay, k *linKey, kv *history.KV, f *linFact) {
	before, there := p.last[kv.Key]
	proof := func() []history.Record { return append(c.recordOf(kv.ModRevision), linChanged(p.name, kv)) }
	// Of a transaction, until may be that of another of its keys.
	if there && c.fact(before.ModRevision).sum != linAnySum && c.fact(before.ModRevision).until >= kv.ModRevision && before.ModRevision > c.opts.Start {
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
