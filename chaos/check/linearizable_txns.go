package check

import (
	"fmt"
	"iter"
	"slices"

	"github.com/balsa-run/balsa/chaos/history"
)

// A transaction writes all its keys at one revision. So when one of them is shown,
// and no other write can have made it, it took effect, and all that it writes has
// that revision. While none of them is shown it may still take effect, or never.

// beginTxn takes what a transaction is going to write.
func (c *Linearizable) beginTxn(o *linOp, r *history.Record) {
	for i := range r.Mops {
		m := &r.Mops[i]
		if m.F == history.MopRead {
			continue
		}
		k := c.key(m.Key)
		at := slices.IndexFunc(o.makes, func(made linMake) bool { return made.key == k })
		if at < 0 {
			at = len(o.makes)
			o.makes = append(o.makes, linMake{})
		}
		if o.makes[at] = (linMake{content: content{key: k, value: m.Value}}); m.F != history.MopWrite {
			o.makes[at] = linMake{content: content{key: k}, opaque: true}
		}
	}
	for _, m := range o.makes {
		o.writes = true
		if m.key.wild++; m.opaque {
			m.key.blind++
		} else {
			m.key.open = append(m.key.open, o)
		}
	}
	c.explain(o, r)
}

// mayMake says that what is what o writes, as far as that is known.
func (o *linOp) mayMake(what content) bool {
	if o.key != nil {
		return o.content() == what
	}
	return slices.Contains(o.makes, linMake{content: what})
}

// contents are what o writes, as far as that is known.
func (o *linOp) contents() iter.Seq[content] {
	return func(yield func(content) bool) {
		if o.key != nil {
			yield(o.content())
			return
		}
		for _, m := range o.makes {
			if !m.opaque && !yield(m.content) {
				return
			}
		}
	}
}

// sum is of all that a transaction writes.
func (o *linOp) sum() uint64 {
	total := uint64(0)
	for _, m := range o.makes {
		if m.opaque {
			return linAnySum
		}
		total += linSum(m.key.key, m.value, false)
	}
	return linSumOf(len(o.makes), total)
}

// claimTxn notes that the transaction o was shown as the version v of k: so its other
// keys have that revision, too. It returns where v is.
func (c *Linearizable) claimTxn(o *linOp, k *linKey, v linVersion) int {
	c.claim(o, v.rev)
	c.fact(v.rev).sum = o.sum()
	for _, m := range o.makes {
		at, there := m.key.at(v.rev)
		if !there {
			c.insert(m.key, linVersion{rev: v.rev, content: m.content, opaque: m.opaque, shownOnly: true, holder: o, invoked: o.index, by: v.by})
			continue
		}
		// It was shown before, when it was not certain whose it is.
		shown := &m.key.versions[at]
		c.unhold(shown, o)
		shown.holder, shown.invoked = o, o.index
		c.sameAs(shown, m, v.by.record())
	}
	if at, there := k.at(v.rev); there {
		return at
	}
	return -1
}

// claimAny notes that o was shown as the version v of k, which is forgotten.
func (c *Linearizable) claimAny(o *linOp, k *linKey, v linVersion) {
	switch {
	case o == nil:
	case o.f == history.Txn:
		c.claimTxn(o, k, v)
	default:
		c.claim(o, v.rev)
	}
}

// sameAs judges that a version was shown as what a transaction made of it.
func (c *Linearizable) sameAs(v *linVersion, m linMake, by history.Record) {
	if !m.opaque && !v.opaque && v.content != m.content {
		c.violate("value", fmt.Sprintf("revision %d of %q was written as %s, and it was shown as %s", v.rev, m.key.key, m.text(), v.text()),
			by, v.by.record())
	}
}

// acknowledgeTxn judges a transaction that ended, and has a revision.
func (c *Linearizable) acknowledgeTxn(o *linOp, r *history.Record) {
	c.forget(o)
	rev := r.Revision
	if o.claimed != 0 && o.claimed != rev {
		proof := append(c.shownAt(o.makes[0].key, o.claimed), *r)
		c.violate("twice", fmt.Sprintf("it was shown as revision %d, and acknowledged as %d", o.claimed, rev), proof...)
		c.letGo(o)
	}
	mine := func(m linMake) bool { return m.key.shownAlready(rev, o) }
	switch f := c.fact(rev); {
	case rev <= o.floor:
		c.violate("stale", fmt.Sprintf("it got revision %d, and revision %d was known before it began", rev, o.floor), append(c.witness(o.floor), *r)...)
	case f.sum != 0 && !slices.ContainsFunc(o.makes, mine):
		c.violate("lost", fmt.Sprintf("another write has its revision %d", rev), append(c.made.get(rev), *r)...)
	default:
		if f.sum == 0 && rev > c.opts.Start {
			c.assigned++
		}
		f.sum = o.sum()
		c.made.put(rev, linSlipOf(r))
		for _, m := range o.makes {
			c.confirmMake(o, m, r)
		}
	}
	c.raise(r, max(rev, r.At))
}

// confirmMake gives a key the version that an acknowledged transaction made of it.
func (c *Linearizable) confirmMake(o *linOp, m linMake, r *history.Record) {
	at, there := m.key.at(r.Revision)
	if !there {
		c.insert(m.key, linVersion{rev: r.Revision, content: m.content, opaque: m.opaque, invoked: o.index, by: linSlipOfKey(r, m.key.key, m.value, r.Revision)})
		return
	}
	v := &m.key.versions[at]
	c.sameAs(v, m, *r)
	c.unhold(v, o)
	if v.shownOnly, v.holder, v.invoked = false, nil, o.index; !m.opaque {
		v.content, v.opaque = m.content, false
	}
}

// shownAlready says that a revision was shown that may be what o made: it is not
// acknowledged, nor certainly another transaction's.
func (k *linKey) shownAlready(rev int64, o *linOp) bool {
	at, there := k.at(rev)
	if !there || !k.versions[at].shownOnly {
		return false
	}
	holder := k.versions[at].holder
	return holder == nil || holder == o || holder.f != history.Txn
}
