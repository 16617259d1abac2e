package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// MaxFindings bounds what Check returns: the first ones tell most.
const MaxFindings = 20

// Check returns what contradicts the cluster's promises, or nothing.
func Check(ops []Op, members []Member) []string {
	c := &checker{ops: ops}
	if len(members) == 0 {
		return []string{"no member was asked"}
	}
	c.agree(members)
	c.index(members[0].Changes)
	c.writes()
	c.accounted()
	c.reads()
	c.realTime()
	return c.findings[:min(len(c.findings), MaxFindings)]
}

type checker struct {
	ops      []Op
	findings []string

	changes  []Change           // as all members have them
	at       map[int64][]Change // by revision
	byKey    map[string][]Change
	byValue  map[string][]Change
	previous map[Change]int64 // revision of the key's write before; 0: none
}

func (c *checker) findf(format string, args ...any) {
	c.findings = append(c.findings, fmt.Sprintf(format, args...))
}

// agree: members at equal revisions have equal hashes, and the same history.
func (c *checker) agree(members []Member) {
	first := members[0]
	for _, m := range members[1:] {
		if m.Revision != first.Revision || m.Hash != first.Hash {
			c.findf("members differ: %s is at revision %d with hash %016x, %s at %d with %016x",
				first.Name, first.Revision, first.Hash, m.Name, m.Revision, m.Hash)
		}
		if !slices.Equal(m.Changes, first.Changes) {
			c.findf("members differ: %s and %s do not have the same %d and %d changes", first.Name, m.Name, len(first.Changes), len(m.Changes))
		}
	}
}

func (c *checker) index(changes []Change) {
	c.changes = changes
	c.at, c.byKey, c.byValue = map[int64][]Change{}, map[string][]Change{}, map[string][]Change{}
	c.previous = map[Change]int64{}
	for _, ch := range changes {
		if before := c.byKey[ch.Key]; len(before) > 0 {
			c.previous[ch] = before[len(before)-1].Revision
		}
		c.at[ch.Revision] = append(c.at[ch.Revision], ch)
		c.byKey[ch.Key] = append(c.byKey[ch.Key], ch)
		c.byValue[ch.Value] = append(c.byValue[ch.Value], ch)
	}
}

// writes: what was acknowledged is there, at the revision that was told, on the
// base that it named; what was refused is not there.
func (c *checker) writes() {
	for _, o := range c.ops {
		if !o.Write() {
			continue
		}
		found := c.byValue[o.Value]
		if len(found) > 1 {
			c.findf("applied %d times: %v", len(found), o)
		}
		switch {
		case o.Outcome == Refused && len(found) > 0:
			c.findf("refused, but there at revision %d: %v", found[0].Revision, o)
		case o.Outcome == OK && !slices.Contains(c.at[o.Revision], Change{o.Revision, o.Key, o.Value}):
			c.findf("acknowledged, but lost: %v", o)
		}
		for _, ch := range found {
			if ch.Key == o.Key && c.previous[ch] != o.Base {
				c.findf("based on revision %d, but the one before it is %d: %v", o.Base, c.previous[ch], o)
			}
		}
	}
}

// accounted: somebody asked for every change.
func (c *checker) accounted() {
	asked := map[string]string{}
	for _, o := range c.ops {
		if o.Write() {
			asked[o.Value] = o.Key
		}
	}
	for _, ch := range c.changes {
		if asked[ch.Value] != ch.Key {
			c.findf("nobody wrote %s=%q of revision %d", ch.Key, ch.Value, ch.Revision)
		}
	}
}

// reads: what was read was written at the revision that was told, and a list is
// all there was at its revision.
func (c *checker) reads() {
	for _, o := range c.ops {
		if o.Outcome == OK && (o.Kind == Get || o.Kind == Stale) && o.Revision != 0 &&
			!slices.Contains(c.at[o.Revision], Change{o.Revision, o.Key, o.Value}) {
			c.findf("read what was never written: %v", o)
		}
		if o.Outcome == OK && o.Kind == List {
			if all := Fingerprint(c.asOf(o.Revision)); all != o.Value {
				c.findf("not what there was at that revision, which is %s: %v", all, o)
			}
		}
	}
}

// asOf is the newest change of each key at a revision, by key.
func (c *checker) asOf(revision int64) []Change {
	var out []Change
	for _, key := range slices.Sorted(maps.Keys(c.byKey)) {
		changes := c.byKey[key]
		i, exact := slices.BinarySearchFunc(changes, revision, func(ch Change, r int64) int { return cmp.Compare(ch.Revision, r) })
		if exact {
			i++
		}
		if i > 0 {
			out = append(out, changes[i-1])
		}
	}
	return out
}

// realTime: what an operation shows or makes is not older than what had been
// shown or made before it began. For a key that is the revision of its value,
// for a list that of the whole space. Stale reads promise nothing here.
func (c *checker) realTime() {
	begins := c.promising()
	ends := slices.Clone(begins)
	slices.SortStableFunc(begins, func(a, b Op) int { return cmp.Compare(a.Begun, b.Begun) })
	slices.SortStableFunc(ends, func(a, b Op) int { return cmp.Compare(a.Ended, b.Ended) })
	known := newest{keys: map[string]Op{}}
	for _, o := range begins {
		for len(ends) > 0 && ends[0].Ended < o.Begun {
			known.learn(ends[0])
			ends = ends[1:]
		}
		before, ok := known.before(o)
		if ok && (o.Revision < before.Revision || o.Write() && o.Revision == before.Revision) {
			c.findf("stale: %v; known since %v by %v", o, before.Ended.Round(time.Microsecond), before)
		}
	}
}

func (c *checker) promising() []Op {
	var out []Op
	for _, o := range c.ops {
		if o.Outcome == OK && o.Kind != Stale {
			out = append(out, o)
		}
	}
	return out
}

// newest is the newest that any operation has shown or made, that has ended.
type newest struct {
	keys map[string]Op
	all  Op // of any key or list
}

func (n *newest) learn(o Op) {
	if o.Revision > n.all.Revision {
		n.all = o
	}
	if o.Kind != List && o.Revision > n.keys[o.Key].Revision {
		n.keys[o.Key] = o
	}
}

func (n *newest) before(o Op) (Op, bool) {
	if o.Kind == List || o.Write() {
		return n.all, n.all.Revision > 0
	}
	before, ok := n.keys[o.Key]
	return before, ok
}
