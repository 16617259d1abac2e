package check

import (
	"cmp"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/chaos/history"
)

// deed is a change that happened, and who says so.
type deed struct {
	kv     history.KV
	source source
	record *history.Record // of a write
	told   int32           // of watches only
}

type source uint8

const (
	bySomeWatch source = iota
	byWrite
	byMember
)

// deeds are all changes that are known, in order.
type deeds struct {
	t   *timeline
	all []deed
	// index finds a change, byKey those of a key, in order.
	index map[changeID]int
	byKey map[string][]int
}

// Verdict compares what watches delivered with what happened.
func (c *Watch) Verdict(members []Member) Verdict {
	d := c.deeds(members)
	for i := range c.told {
		c.happened(d, &c.told[i])
	}
	filters := map[[2]string][]int{}
	for _, w := range c.watches {
		filter := [2]string{w.invoke.Key, w.invoke.End}
		if _, ok := filters[filter]; !ok {
			filters[filter] = d.filter(filter)
		}
		c.complete(d, w, filters[filter])
		c.prevs(d, w, c.forgotten(members))
	}
	c.judge(&c.findings, members)
	if len(members) == 0 {
		c.leftf("events against the history that members hold: no member was asked")
	} else if !d.t.whole {
		c.leftf("what keys were before revision %d: %s does not tell", d.t.first, d.t.member)
	}
	if c.late > 0 {
		c.leftf("%d events beyond the %d that are kept", c.late, c.maxKept)
	}
	return c.verdict("watch", c.pairs.odd)
}

// deeds gathers the truth. What a write was told counts only where no member is
// complete; that it is lost there is the concern of Linearizable.
func (c *Watch) deeds(members []Member) *deeds {
	d := &deeds{t: newTimeline(members), byKey: map[string][]int{}}
	d.index = make(map[changeID]int, len(c.changes))
	if d.t != nil {
		for _, kv := range d.t.changes {
			d.add(deed{kv: kv, source: byMember})
		}
	}
	for _, w := range c.writes {
		if !d.settled(w.kv.ModRevision) {
			w.source = byWrite
			d.add(w)
		}
	}
	for i := range c.told {
		if t := &c.told[i]; !d.settled(t.kv.ModRevision) {
			d.add(deed{kv: t.kv, source: bySomeWatch, told: int32(i)})
		}
	}
	slices.SortStableFunc(d.all, func(a, b deed) int {
		return cmp.Or(cmp.Compare(a.kv.ModRevision, b.kv.ModRevision), strings.Compare(a.kv.Key, b.kv.Key))
	})
	for i, one := range d.all {
		d.index[changeID{one.kv.ModRevision, one.kv.Key}] = i
		d.byKey[one.kv.Key] = append(d.byKey[one.kv.Key], i)
	}
	return d
}

// settled says whether a member knows all that happened at a revision. Nothing has
// happened after the last one.
func (d *deeds) settled(revision int64) bool { return d.t != nil && revision >= d.t.first }

func (d *deeds) add(one deed) {
	id := changeID{one.kv.ModRevision, one.kv.Key}
	if _, ok := d.index[id]; !ok {
		d.index[id] = len(d.all)
		d.all = append(d.all, one)
	}
}

// filter are the changes of a range of keys.
func (d *deeds) filter(of [2]string) []int {
	var out []int
	for i := range d.all {
		if inRange(d.all[i].kv.Key, of[0], of[1]) {
			out = append(out, i)
		}
	}
	return out
}

// before is the change of the same key before a revision, if one is known, and
// whether it is certain that there was none in between. What only writes and watches
// tell of the time before a member is complete does not count as certain: a deletion
// after it may have left no trace.
func (d *deeds) before(key string, revision int64) (last *deed, certain bool) {
	of := d.byKey[key]
	i, _ := slices.BinarySearchFunc(of, revision, func(i int, r int64) int { return compareRevisions(d.all[i].kv, r) })
	of = of[:i]
	if !d.settled(revision) {
		return d.newest(of), false
	}
	held := of
	for len(held) > 0 && d.newest(held).source != byMember {
		held = held[:len(held)-1]
	}
	if last = d.newest(held); d.t.whole || last != nil && last.kv.ModRevision >= d.t.first {
		return last, true
	}
	return d.newest(of), false
}

func (d *deeds) newest(of []int) *deed {
	if len(of) == 0 {
		return nil
	}
	return &d.all[of[len(of)-1]]
}

// witness is who says that a change happened.
func (c *Watch) witness(d *deeds, one deed) history.Record {
	switch one.source {
	case bySomeWatch:
		return c.told[one.told].record(one.kv)
	case byMember:
		return d.t.proof(one.kv)
	}
	return *one.record
}

// happened judges what was told of a change.
func (c *Watch) happened(d *deeds, t *told) {
	i, ok := d.index[changeID{t.kv.ModRevision, t.kv.Key}]
	if !ok {
		c.addf("phantom", []history.Record{t.record(t.kv)}, "%s was not changed at revision %d, says %s, which is at %d", t.kv.Key, t.kv.ModRevision, d.t.member, d.t.revision)
		return
	}
	if one := d.all[i]; one.source != bySomeWatch {
		if field := differs(t.kv, one.kv); field != "" {
			c.addf("value", []history.Record{c.witness(d, one), t.record(t.kv)}, "the watch tells another %s of %s at revision %d", field, t.kv.Key, t.kv.ModRevision)
		}
	}
	c.creation(d, t)
	if t.kv.Prev != nil {
		c.prev(d, t)
	}
}

// creation: an event is of a new key if and only if there was none before.
func (c *Watch) creation(d *deeds, t *told) {
	kv := t.kv
	if kv.Deleted || kv.CreateRevision == 0 {
		return
	}
	created := kv.CreateRevision == kv.ModRevision
	if kv.CreateRevision > kv.ModRevision || kv.Version != 0 && (kv.Version == 1) != created {
		c.addf("isCreate", []history.Record{t.record(kv)}, "%s is version %d at revision %d, and was created at %d", kv.Key, kv.Version, kv.ModRevision, kv.CreateRevision)
		return
	}
	last, certain := d.before(kv.Key, kv.ModRevision)
	existed := last != nil && !last.kv.Deleted
	if !certain || created != existed {
		return
	}
	proof := []history.Record{t.record(kv)}
	if last != nil {
		proof = append(proof, c.witness(d, *last))
	}
	c.addf("isCreate", proof, "%s is told as created at revision %d; that it was there before is %v", kv.Key, kv.CreateRevision, existed)
}

// prev: the key before the change is what it was.
func (c *Watch) prev(d *deeds, t *told) {
	prev, proof := *t.kv.Prev, []history.Record{t.record(t.kv)}
	if prev.Key != t.kv.Key || prev.ModRevision >= t.kv.ModRevision || prev.Deleted {
		c.addf("prevKV", proof, "before %s of revision %d there cannot have been %s of %d", t.kv.Key, t.kv.ModRevision, prev.Key, prev.ModRevision)
		return
	}
	last, certain := d.before(t.kv.Key, t.kv.ModRevision)
	switch {
	case last == nil && certain:
		c.addf("prevKV", proof, "%s was never there before revision %d", t.kv.Key, t.kv.ModRevision)
	case last == nil:
	case last.kv.ModRevision > prev.ModRevision || last.kv.ModRevision < prev.ModRevision && certain:
		c.addf("prevKV", append(proof, c.witness(d, *last)), "%s was of revision %d before, and not %d", t.kv.Key, last.kv.ModRevision, prev.ModRevision)
	case last.kv.ModRevision == prev.ModRevision:
		if field := differs(prev, last.kv); field != "" {
			c.addf("prevKV", append(proof, c.witness(d, *last)), "%s had another %s before", t.kv.Key, field)
		}
	}
}

// prevs: a watch that gets what was before gets it always, but for what was
// compacted.
func (c *Watch) prevs(d *deeds, w *watch, forgotten int64) {
	if !w.prevs {
		return
	}
	for n, b := range w.batches {
		for _, e := range w.events[b.from:b.to] {
			kv := c.told[e].kv
			if kv.Prev != nil || kv.ModRevision <= max(b.asked, forgotten) {
				continue
			}
			if last, certain := d.before(kv.Key, kv.ModRevision); certain && last != nil && !last.kv.Deleted {
				c.addf("prevKV", []history.Record{w.record(c, int32(n)), c.witness(d, *last)}, "what %s was before revision %d is left out, and nobody had asked to compact it", kv.Key, kv.ModRevision)
				return
			}
		}
	}
}

// complete: a watch delivered all that happened from where it began up to the last
// event or mark. The first that it left out is told.
func (c *Watch) complete(d *deeds, w *watch, watched []int) {
	if w.start == 0 {
		return
	}
	upto := max(w.last, w.mark)
	if w.full {
		upto = w.last
	}
	has := c.has(w)
	i, _ := slices.BinarySearchFunc(watched, w.start, func(i int, r int64) int { return compareRevisions(d.all[i].kv, r) })
	for ; i < len(watched); i++ {
		one := d.all[watched[i]]
		if one.kv.ModRevision > upto {
			return
		}
		if !has(one.kv) {
			c.omitted(d, w, one)
			return
		}
	}
}

// has returns a function that says whether a watch delivered a change; it is to be
// asked in the order of revisions. A watch that never went back is read along.
func (c *Watch) has(w *watch) func(kv history.KV) bool {
	if w.seen != nil {
		return func(kv history.KV) bool { return w.seen[changeID{kv.ModRevision, kv.Key}] }
	}
	next := 0
	return func(kv history.KV) bool {
		for next < len(w.events) && c.told[w.events[next]].kv.ModRevision < kv.ModRevision {
			next++
		}
		for i := next; i < len(w.events); i++ {
			if t := &c.told[w.events[i]].kv; t.ModRevision != kv.ModRevision {
				break
			} else if t.Key == kv.Key {
				return true
			}
		}
		return false
	}
}

func (c *Watch) omitted(d *deeds, w *watch, one deed) {
	rule, proof := "reliable", []history.Record{w.invoke, c.witness(d, one)}
	after := slices.IndexFunc(w.batches, func(b batch) bool {
		return slices.ContainsFunc(w.events[b.from:b.to], func(e int32) bool { return c.told[e].kv.ModRevision >= one.kv.ModRevision })
	})
	if after >= 0 {
		proof = append(proof, w.record(c, int32(after)))
	} else {
		proof = append(proof, w.marked)
	}
	switch {
	case one.source == bySomeWatch:
		rule = "equal"
	case w.invoke.Base > 0 && after == 0 && one.kv.ModRevision < c.told[w.events[0]].kv.ModRevision:
		rule = "resumable"
	}
	c.addf(rule, proof, "the watch left out %s of revision %d", one.kv.Key, one.kv.ModRevision)
}
