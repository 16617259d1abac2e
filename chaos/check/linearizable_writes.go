package check

import (
	"fmt"
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// linMustExist is the base of a deletion that names no revision.
const linMustExist = -1

// acknowledge judges a write that ended, and has a revision.
func (c *Linearizable) acknowledge(o *linOp, r *history.Record) {
	if o.f == history.Txn {
		c.acknowledgeTxn(o, r)
		return
	}
	c.forget(o)
	k, rev := o.key, r.Revision
	if o.claimed != 0 && o.claimed != rev && !c.rebind(o) && !c.excused(o.content()) {
		proof := append(c.shownAt(k, o.claimed), *r)
		c.violate("twice", fmt.Sprintf("it was shown as revision %d, and acknowledged as %d", o.claimed, rev), proof...)
	}
	if o.claimed != rev {
		c.letGo(o)
	}
	if rev <= o.floor {
		c.tooLow(o, r)
		return
	}
	at, _ := k.at(rev)
	switch f := c.fact(rev); {
	case k.shownAlready(rev, o):
		c.confirm(&k.versions[at], o, r)
	case f.sum != 0:
		c.violate("lost", fmt.Sprintf("another write has its revision %d", rev), append(c.madeOrShown(k, rev), *r)...)
		c.raise(r, max(rev, r.At))
		return
	default:
		c.assign(rev, o)
		at = c.insert(k, linVersion{rev: rev, content: o.content(), invoked: o.index, by: linSlipOf(r)})
	}
	c.fact(rev).base = linBaseOf(o)
	c.made.put(rev, linSlipOf(r))
	if at > 0 {
		c.basis(k, at, o, r)
	}
	c.lookAtAbsences(k)
	c.raise(r, max(rev, r.At))
}

// assign gives a revision its write.
func (c *Linearizable) assign(rev int64, o *linOp) {
	c.fact(rev).sum = linSum(o.key.key, o.value, o.deletes)
	if rev > c.opts.Start {
		c.assigned++
	}
}

func linBaseOf(o *linOp) int64 {
	switch {
	case o.f == history.CAS, o.f == history.Delete && o.base != 0:
		return o.base + 1
	case o.f == history.Delete:
		return linMustExist
	}
	return 0
}

// tooLow judges a write whose revision was known before it began.
func (c *Linearizable) tooLow(o *linOp, r *history.Record) {
	at, there := o.key.at(r.Revision)
	rule := "stale"
	switch f := c.fact(r.Revision); {
	case there && o.key.versions[at].content == o.content() && o.key.versions[at].shownOnly:
		rule = "future"
	case f.sum != 0:
		rule = "lost"
	default:
		c.assign(r.Revision, o)
		c.made.put(r.Revision, linSlipOf(r))
	}
	proof := append(c.witness(o.floor), c.madeOrShown(o.key, r.Revision)...)
	c.violate(rule, fmt.Sprintf("it got revision %d, and revision %d was known before it began", r.Revision, o.floor), append(proof, *r)...)
	c.lookAtAbsences(o.key)
}

// madeOrShown is the record of another operation at a revision.
func (c *Linearizable) madeOrShown(k *linKey, rev int64) []history.Record {
	if made := c.made.get(rev); made != nil {
		return made
	}
	return c.shownAt(k, rev)
}

func (c *Linearizable) shownAt(k *linKey, rev int64) []history.Record {
	if at, there := k.at(rev); there && k.versions[at].by.f != 0 {
		return []history.Record{k.versions[at].by.record()}
	}
	return c.witness(rev)
}

// confirm joins a write with the version that was shown before it was
// acknowledged.
func (c *Linearizable) confirm(v *linVersion, o *linOp, r *history.Record) {
	c.unhold(v, o)
	if v.content != o.content() && !v.opaque {
		c.violate("value", fmt.Sprintf("revision %d of %q was written as %s, and it was shown as %s", v.rev, o.key.key, o.content().text(), v.content.text()),
			*r, v.by.record())
	}
	v.shownOnly, v.holder, v.content, v.invoked = false, nil, o.content(), o.index
	c.fact(v.rev).sum = linSum(o.key.key, o.value, o.deletes)
}

// basis judges a conditional write, whose version is at, by the version before.
func (c *Linearizable) basis(k *linKey, at int, o *linOp, r *history.Record) {
	before := &k.versions[at-1]
	base := linBaseOf(o)
	switch {
	case base == 0 || before.opaque:
	case base == linMustExist:
		if before.deletes && k.puts+k.wild == 0 && (before.rev != 0 || c.opts.Start == 1) {
			c.violate("basis", fmt.Sprintf("it deleted %q, which was not there", k.key), append(c.writeOf(k, before.rev), *r)...)
		}
	case base == 1 && !before.deletes:
		c.needs(k, before.rev, before.invoked, linSlipOf(r))
	case base == 1, before.rev == o.base && !before.deletes:
		if last := r.Revision - 1; last > before.until {
			before.until, before.quiet = last, linSlipOf(r)
		}
	case before.rev >= o.base:
		c.violate("basis", fmt.Sprintf("it was made upon revision %d of %q, and %q was at %d", o.base, k.key, k.key, before.rev),
			append(c.writeOf(k, before.rev), *r)...)
	case o.base > c.opts.Start && (c.fact(o.base).sum > linAnySum || k.puts+k.wild == 0):
		c.violate("basis", fmt.Sprintf("it was made upon revision %d of %q, and no write of %q has that", o.base, k.key, k.key),
			append(c.madeOrShown(k, o.base), *r)...)
	}
}

// keep takes an operation that ended as Unknown: it may take effect at any time.
func (c *Linearizable) keep(o *linOp) {
	o.ended = true
	for what := range o.contents() {
		what.key.open = slices.DeleteFunc(what.key.open, func(other *linOp) bool { return other == o })
		if o.claimed == 0 {
			c.unknown[what] = append(c.unknown[what], o)
		}
	}
}

// forget takes an operation that ended from what is open.
func (c *Linearizable) forget(o *linOp) {
	for what := range o.contents() {
		at := slices.Index(what.key.open, o)
		what.key.open = slices.Delete(what.key.open, at, at+1)
	}
	if o.claimed == 0 {
		c.count(o, -1)
	}
}

// count adds n to what counts the operation as one that may yet be shown.
func (c *Linearizable) count(o *linOp, n int) {
	if !o.writes {
		return
	}
	c.free += int64(n)
	switch {
	case o.key == nil:
		for _, m := range o.makes {
			if m.key.wild += n; m.opaque {
				m.key.blind += n
			}
		}
	case o.deletes:
		o.key.deletes += n
	default:
		o.key.puts += n
	}
}

// refuse takes an operation that never took effect.
func (c *Linearizable) refuse(o *linOp, r *history.Record) {
	if !o.writes {
		return
	}
	c.release(o, r, "refused-applied")
	for what := range o.contents() {
		if !what.deletes {
			c.refuseSum(linSum(what.key.key, what.value, false))
		}
	}
}

func (c *Linearizable) refuseSum(s uint64) {
	if _, there := c.refused[s]; there {
		return
	}
	c.refused[s] = struct{}{}
	if c.refusedOrder = append(c.refusedOrder, s); len(c.refusedOrder) > maxRefused {
		delete(c.refused, c.refusedOrder[0])
		c.refusedOrder = c.refusedOrder[1:]
	}
}

// release takes a write that made nothing; when something was shown that only it
// can have made, it breaks rule.
func (c *Linearizable) release(o *linOp, r *history.Record, rule string) {
	c.forget(o)
	k := o.key
	if k == nil && len(o.makes) > 0 {
		k = o.makes[0].key
	}
	if o.claimed != 0 && !c.rebind(o) && !c.excusedOp(o) {
		c.violate(rule, fmt.Sprintf("it made nothing, and what it would have made was shown as revision %d", o.claimed),
			append(c.shownAt(k, o.claimed), *r)...)
	}
	if c.letGo(o); o.key != nil {
		c.lookAtAbsences(o.key)
	}
}

// showsNew takes a revision of k that is shown before its write was acknowledged,
// and returns where it is; -1 when there is no such version.
func (c *Linearizable) showsNew(k *linKey, rev int64, what content, s linSight) int {
	f := c.fact(rev)
	switch {
	case rev < k.versions[0].rev:
		c.showsForgotten(k, rev, what, s)
		return -1
	case rev <= c.opts.Start:
		return c.insert(k, linVersion{rev: rev, content: what, invoked: -1, by: linSlipOfKey(s.r, k.key, what.value, rev)})
	}
	o, sum := c.whose(what, rev)
	switch {
	case f.sum > linAnySum || f.sum != 0 && sum&1 == 0:
		c.violate("phantom", fmt.Sprintf("it shows revision %d of %q, and that is another write", rev, k.key), append(c.made.get(rev), *s.r)...)
		return -1
	case sum == 0:
		c.nobodyWrote(k, rev, what, s)
		return -1
	case f.sum == 0:
		f.sum = sum
		c.assigned++
	case o != nil && o.f != history.Txn:
		o = nil // Another key has that revision, too.
	}
	v := linVersion{rev: rev, content: what, shownOnly: true, holder: o, invoked: -1, by: linSlipOfKey(s.r, k.key, what.value, rev)}
	switch {
	case o == nil:
	case o.f == history.Txn:
		return c.claimTxn(o, k, v)
	default:
		c.claim(o, rev)
		v.invoked = o.index
	}
	return c.insert(k, v)
}

// whose is the write that made what was shown as revision rev, and the sum of all
// that was written then; 0 when nobody can have made it. A write may that began
// before that was known, and was not shown yet. When there are several, it may have
// been another one, and what it is is vague from then on. Of a transaction one must
// be certain, since that tells what the other keys are: else it is nobody, and the
// revision may have other keys.
func (c *Linearizable) whose(what content, rev int64) (*linOp, uint64) {
	var found *linOp
	one, txn := 0, 0
	for _, operations := range [][]*linOp{what.key.open, c.unknown[what]} {
		for _, o := range operations {
			switch {
			case o.claimed != 0 || o.floor >= rev || !o.mayMake(what):
			case o.f == history.Txn:
				if txn++; one == 0 {
					found = o
				}
			default:
				if one++; one == 1 {
					found = o
				}
			}
		}
	}
	hidden := what.deletes && what.key.leased || !what.deletes && what.key.blind > 0
	if one+txn > 1 || found != nil && hidden {
		c.vague[what] = struct{}{}
	}
	switch {
	case found == nil && !c.excused(what):
		return nil, 0
	case one > 0 && txn == 0 && !hidden:
		return found, linSum(what.key.key, what.value, what.deletes)
	case txn > 0 && one == 0 && !c.isVague(what):
		return found, found.sum()
	case one > 0:
		return found, linAnySum
	}
	return nil, linAnySum
}

func (c *Linearizable) isVague(what content) bool {
	_, vague := c.vague[what]
	return vague
}

// excused says that what may have been made by a write that cannot be told: a
// transaction's, a lease's end, or one of several with the same content.
func (c *Linearizable) excused(what content) bool {
	if what.deletes && what.key.leased || !what.deletes && what.key.blind > 0 {
		return true
	}
	return c.isVague(what)
}

// excusedOp says that what o was shown to make may have been made by another write. A
// transaction is taken to be shown only when that is certain.
func (c *Linearizable) excusedOp(o *linOp) bool {
	return o.f != history.Txn && c.excused(o.content())
}

// claim notes that o was shown as revision rev: it has taken effect.
func (c *Linearizable) claim(o *linOp, rev int64) {
	c.count(o, -1)
	o.claimed = rev
	if o.f == history.Txn || !c.isVague(o.content()) {
		c.fact(rev).base = linBaseOf(o)
	}
	if !o.ended {
		return
	}
	for what := range o.contents() {
		c.taken[what] = rev
		rest := slices.DeleteFunc(c.unknown[what], func(other *linOp) bool { return other == o })
		if c.unknown[what] = rest; len(rest) == 0 {
			delete(c.unknown, what)
		}
	}
}

// unhold takes a version from who was taken for its writer, but for o: that is
// another write with the same content.
func (c *Linearizable) unhold(v *linVersion, o *linOp) {
	holder := v.holder
	if holder == nil || holder == o || holder.f == history.Txn {
		return
	}
	holder.claimed = 0
	c.count(holder, 1)
	if holder.ended {
		c.unknown[holder.content()] = append(c.unknown[holder.content()], holder)
	}
}

// letGo takes from o the versions that it was taken to have written: it did not, and
// is forgotten.
func (c *Linearizable) letGo(o *linOp) {
	if o.claimed == 0 {
		return
	}
	release := func(k *linKey) {
		if at, there := k.at(o.claimed); there && k.versions[at].holder == o {
			k.versions[at].holder = nil
		}
	}
	if o.key != nil {
		release(o.key)
	}
	for _, m := range o.makes {
		release(m.key)
	}
}

// rebind gives what was taken for o's to another write that may have made it.
func (c *Linearizable) rebind(o *linOp) bool {
	if o.f == history.Txn {
		return false
	}
	other, _ := c.whose(o.content(), o.claimed)
	if other == nil || other.f == history.Txn {
		return false
	}
	c.fact(o.claimed).base = 0
	c.claim(other, o.claimed)
	if at, there := o.key.at(o.claimed); there {
		o.key.versions[at].holder = other
	}
	return true
}

// nobodyWrote names the violation when something is shown that no write explains.
func (c *Linearizable) nobodyWrote(k *linKey, rev int64, what content, s linSight) {
	if already, proof := c.already(k, what); already != 0 && !what.deletes {
		c.violate("twice", fmt.Sprintf("%s was written to %q once, as revision %d, and it is shown as %d", what.text(), k.key, already, rev),
			append(proof, *s.r)...)
		return
	}
	if _, there := c.refused[linSum(k.key, what.value, what.deletes)]; there {
		c.violate("refused-applied", fmt.Sprintf("it shows %s as revision %d of %q, and that write was refused", what.text(), rev, k.key), *s.r)
		return
	}
	if len(c.verdict.Violations) < MaxViolations {
		c.phantoms = append(c.phantoms, linPhantom{violation: len(c.verdict.Violations), content: what})
	}
	c.violate("phantom", fmt.Sprintf("it shows %s as revision %d of %q, which nobody wrote", what.text(), rev, k.key), *s.r)
}

// already is a revision that what has, with the record that tells so; 0 when there
// is none. It is asked for violations only.
func (c *Linearizable) already(k *linKey, what content) (int64, []history.Record) {
	for i := range k.versions {
		if v := &k.versions[i]; v.content == what && !v.opaque && v.by.f != 0 {
			return v.rev, c.writeOf(k, v.rev)
		}
	}
	if rev, there := c.taken[what]; there {
		return rev, c.writeOf(k, rev)
	}
	for i := range c.made {
		if m := &c.made[i]; m.f != 0 && m.f != history.Txn && m.key == k.key && m.value == what.value && m.f != history.Delete {
			return m.of, c.made.get(m.of)
		}
	}
	return 0, nil
}

// showsForgotten judges what shows a version that is not held any more, by its
// checksum.
func (c *Linearizable) showsForgotten(k *linKey, rev int64, what content, s linSight) {
	f := c.fact(rev)
	position, _ := s.position()
	next := k.versions[0].rev
	switch {
	case rev <= c.opts.Start:
	case f.sum == 0:
		o, sum := c.whose(what, rev)
		if sum == 0 {
			c.nobodyWrote(k, rev, what, s)
			return
		}
		f.sum = sum
		c.assigned++
		c.claimAny(o, k, linVersion{rev: rev, content: what, by: linSlipOfKey(s.r, k.key, what.value, rev)})
		if what.deletes {
			k.deletedAt(rev)
		}
	case f.single() && f.sum != linSum(k.key, what.value, what.deletes):
		rule, made := "phantom", c.made.get(rev)
		if len(made) > 0 && made[0].Key == k.key {
			rule = "value"
		}
		c.violate(rule, fmt.Sprintf("it shows %s as revision %d of %q, and that is another write", what.text(), rev, k.key), append(made, *s.r)...)
	case position >= next:
		c.violate("stale", fmt.Sprintf("it shows revision %d of %q, which was changed at %d; it has to show revision %d", rev, k.key, next, position),
			append(c.writeOf(k, next), *s.r)...)
	case position > f.until:
		f.until = position
	}
}
