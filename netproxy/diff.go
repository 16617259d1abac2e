package netproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Change turns one ruleset into another, in three transactions, each applied in
// the order of its fields. Within one, deletions precede additions, because
// the kernel refuses to add a key that exists with another value.
//
// The first prepares what nothing names yet. A commit is not one moment for
// packets under way: a packet keeps the generation of rules that its hook began
// with, in which a chain made meanwhile is empty, hashes answer with what is
// newest, and sets of intervals get their new elements a little after that.
//
// After the second transaction every packet goes where the new ruleset says.
// But a packet that is on its way through the rules may have found its chain
// before it and look up its slot, or its hairpin, after it: the kernel looks
// at the current generation with every lookup. So what the old ruleset needs
// stays until a grace period has passed, and the third transaction drops it.
type Change struct {
	// Replace means that the table is built anew, whatever it holds; the rest of the
	// change is the full content, and nothing of it is removed.
	Replace bool
	// Params belong to the new ruleset.
	Params Params

	// The first transaction. A chain, with its set, must exist before an element
	// or a chain names it. Prepare holds elements that no packet looks for yet.
	AddChains []Chain
	Prepare   []Element

	// The second transaction.
	// RewriteChains get other rules.
	RewriteChains []Chain
	// Delete holds what must not be found any more, and keys whose value
	// changes.
	Delete []Element
	Add    []Element

	// The third transaction, after a grace period.
	Drop       []Element
	DropChains []Chain

	// StaleUDP says that UDP flows may exist that connection tracking still
	// sends to a place the new ruleset does not name. Gone are the UDP fronts
	// that the new ruleset does not have.
	StaleUDP bool
	Gone     []Key
	// Judge lists the pods whose policies are others now: their established
	// connections are judged again.
	Judge []netip.Addr
}

// Full is the change that builds a ruleset from nothing.
func Full(r Ruleset) Change {
	c := Change{Replace: true, Params: r.Params, StaleUDP: true}
	r.content.each(c.add)
	c.finish()
	return c
}

// Diff computes the change from one ruleset to another. What they share costs
// nothing.
func Diff(old, next Ruleset) Change {
	if old.Params != next.Params {
		c := Full(next)
		c.Judge = append(c.Judge, judged(old, next)...)
		return c
	}
	c := Change{Params: next.Params}
	a, b := old.content, next.content
	if a == nil {
		a = &content{}
	}
	if b == nil {
		b = &content{}
	}
	if a != b {
		for i := range a.shards {
			c.shard(a.shards[i], b.shards[i])
		}
	}
	c.finish()
	return c
}

// judged are the pods whose policies changed together with the parameters.
func judged(old, next Ruleset) []netip.Addr {
	old.Params = next.Params
	return Diff(old, next).Judge
}

// shard walks two sorted lists side by side.
func (c *Change) shard(old, next []*Unit) {
	if len(old) == len(next) && (len(old) == 0 || &old[0] == &next[0]) {
		return
	}
	for len(old) > 0 || len(next) > 0 {
		switch order(old, next) {
		case -1:
			c.remove(old[0])
			old = old[1:]
		case 1:
			c.add(next[0])
			next = next[1:]
		default:
			c.modify(old[0], next[0])
			old, next = old[1:], next[1:]
		}
	}
}

func order(old, next []*Unit) int {
	switch {
	case len(next) == 0:
		return -1
	case len(old) == 0:
		return 1
	}
	return strings.Compare(old[0].ID, next[0].ID)
}

func (c *Change) remove(u *Unit) {
	if u.Chain != nil {
		c.DropChains = append(c.DropChains, *u.Chain)
	}
	if strings.HasPrefix(u.ID, sortProfile) {
		// A packet may have been sent here by its pod's element before it went.
		c.Drop = append(c.Drop, u.Elements...)
	} else {
		c.removeElements(u.Elements)
	}
	if k, front := u.front(); front && k.Protocol == UDP {
		c.StaleUDP = true
		c.Gone = append(c.Gone, k)
	}
}

func (c *Change) removeElements(elements []Element) {
	for _, e := range elements {
		if e.late() {
			c.Drop = append(c.Drop, e)
		} else {
			c.Delete = append(c.Delete, e)
		}
	}
}

// Prepares reports that the change has a first transaction of its own.
func (c *Change) Prepares() bool { return !c.Replace && len(c.AddChains)+len(c.Prepare) > 0 }

func (c *Change) add(u *Unit) {
	if u.Chain != nil {
		c.AddChains = append(c.AddChains, *u.Chain)
	}
	c.Add = append(c.Add, u.Elements...)
	// A client that spoke before the service existed has a flow to nowhere,
	// and keeps it alive by speaking on.
	if k, front := u.front(); front && k.Protocol == UDP {
		c.StaleUDP = true
	}
	c.judge(u)
}

func (c *Change) judge(u *Unit) {
	if u.Stamp != "" && !c.Replace {
		c.Judge = append(c.Judge, netip.AddrFrom4([4]byte([]byte(u.ID[len(u.ID)-4:]))))
	}
}

func (c *Change) modify(old, next *Unit) {
	if old == next {
		return
	}
	if next.Chain != nil && *old.Chain != *next.Chain {
		c.RewriteChains = append(c.RewriteChains, *next.Chain)
	}
	if old.Stamp != next.Stamp {
		c.judge(next)
	}
	before := len(c.Delete) + len(c.Drop)
	c.elements(old.Elements, next.Elements)
	// An endpoint more leaves all flows right; one less, or none before, does
	// not.
	fewer := len(c.Delete)+len(c.Drop) > before
	if k, front := next.front(); front && k.Protocol == UDP && (lostTargets(old, next) || restricts(old, next, fewer)) {
		c.StaleUDP = true
	}
}

// elements compares the elements of one unit. Most often one value among few
// differs, so the lists are first compared in place.
func (c *Change) elements(old, next []Element) {
	if len(old) == len(next) && slices.EqualFunc(old, next, func(a, b Element) bool { return a.Set == b.Set && a.Key == b.Key && a.End == b.End }) {
		for i := range old {
			if old[i].Value != next[i].Value {
				c.Delete, c.Add = append(c.Delete, old[i]), append(c.Add, next[i])
			}
		}
		return
	}
	type place struct{ set, key, end string }
	wanted := make(map[place]string, len(next))
	for _, e := range next {
		wanted[place{e.Set, e.Key, e.End}] = e.Value
	}
	for _, e := range old {
		p := place{e.Set, e.Key, e.End}
		value, kept := wanted[p]
		switch {
		case !kept:
			c.removeElements([]Element{e})
		case value == e.Value:
			delete(wanted, p)
		default:
			c.Delete = append(c.Delete, e)
		}
	}
	for _, e := range next {
		if _, missing := wanted[place{e.Set, e.Key, e.End}]; missing {
			c.Add = append(c.Add, e)
		}
	}
}

// front is the key of a front's unit.
func (u *Unit) front() (Key, bool) {
	id := u.ID
	switch {
	case len(id) == 13 && id[:1] == sortService:
		b := []byte(id[1:])
		return Key{VIP: netip.AddrFrom4([4]byte(b[:4])), Protocol: Protocol(b[4]), Port: uint16(b[8])<<8 | uint16(b[9])}, true
	case len(id) == 9 && id[:1] == sortNodePort:
		b := []byte(id[1:])
		return Key{Protocol: Protocol(b[0]), Port: uint16(b[4])<<8 | uint16(b[5])}, true
	}
	return Key{}, false
}

// lostTargets reports that a target of the old front is none of the new one's,
// or that flows were made while it had none.
func lostTargets(old, next *Unit) bool {
	if old.Refuses() || next.Refuses() {
		return true
	}
	targets := map[string]bool{}
	for _, e := range next.Elements {
		targets[targetOf(&e)] = true
	}
	return slices.ContainsFunc(old.Elements, func(e Element) bool { return !targets[targetOf(&e)] })
}

// targetOf is empty for elements that name no targets. A goto counts as one where
// the chain holds the targets, which may be others now.
func targetOf(e *Element) string {
	switch {
	case strings.HasPrefix(e.Set, slotsPrefix):
		return e.Value
	case e.Affinity():
		return e.Value
	}
	return ""
}

// restricts reports that what decides by source may be stricter: there is more of
// it, or elements of a front that has it are fewer or others.
func restricts(old, next *Unit, fewer bool) bool {
	count := func(u *Unit) (n int) {
		for _, e := range u.Elements {
			if e.Set == SetRestricted || e.Set == SetOutside || e.Set == SetOutsideNodePorts {
				n++
			}
		}
		return n
	}
	return count(old) != count(next) || fewer && count(next) > 0
}

// Refuses reports a front without endpoints, or that drops.
func (u *Unit) Refuses() bool {
	return slices.ContainsFunc(u.Elements, func(e Element) bool {
		return e.Set == SetNoEndpoints || e.Set == SetNoEndpointsNode || e.Value == verdictDrop
	})
}

// finish orders chains so that those that are named exist, and go last.
func (c *Change) finish() {
	rank := func(c Chain) int {
		if c.Kind == ChainAffinity {
			return 1
		}
		return 0
	}
	slices.SortFunc(c.AddChains, func(a, b Chain) int { return compareChains(rank(a)-rank(b), a, b) })
	slices.SortFunc(c.DropChains, func(a, b Chain) int { return compareChains(rank(b)-rank(a), a, b) })
	slices.SortFunc(c.RewriteChains, func(a, b Chain) int { return strings.Compare(a.Name, b.Name) })
	for _, chain := range c.RewriteChains {
		c.StaleUDP = c.StaleUDP || chain.Kind == ChainAffinity
	}
	slices.SortFunc(c.Judge, netip.Addr.Compare)
	c.Judge = slices.Compact(c.Judge)
	if !c.Replace {
		c.prepare()
	}
}

// prepare moves elements to the first transaction: those of sets that it makes,
// and ranges of sources whose front is not restricted before the second, unless
// they might overlap others that go only then.
func (c *Change) prepare() {
	early := map[string]bool{SetSources: !slices.ContainsFunc(c.Delete, func(e Element) bool { return e.Set == SetSources })}
	for _, chain := range c.AddChains {
		if s, has := chain.Set(); has {
			early[s.Name] = true
		}
	}
	added := c.Add
	c.Add = nil
	for _, e := range added {
		if early[e.Set] {
			c.Prepare = append(c.Prepare, e)
		} else {
			c.Add = append(c.Add, e)
		}
	}
}

func compareChains(rank int, a, b Chain) int {
	if rank != 0 {
		return rank
	}
	return strings.Compare(a.Name, b.Name)
}

// Empty reports that nothing has to be done.
func (c *Change) Empty() bool {
	return !c.Replace && !c.StaleUDP && len(c.Judge) == 0 && c.Elements() == 0
}

// Elements counts the set elements, and chains, that the change touches.
func (c *Change) Elements() int { return c.firstElements() + c.DropElements() }

func (c *Change) firstElements() int {
	return len(c.AddChains) + len(c.Prepare) + len(c.RewriteChains) + len(c.Delete) + len(c.Add)
}

// Removes reports that packets may be under way to where the new ruleset would
// not send them; a grace period ends that.
func (c *Change) Removes() bool {
	return c.StaleUDP || len(c.Judge)+c.DropElements()+len(c.Delete)+len(c.RewriteChains) > 0
}

// DropElements counts what the third transaction touches.
func (c *Change) DropElements() int { return len(c.Drop) + len(c.DropChains) }

// String prints the change in the order it is applied; elements are sorted.
func (c Change) String() string {
	var b strings.Builder
	if c.Replace {
		fmt.Fprintf(&b, "replace table: pods %s services %s node %s\n", c.Params.PodCIDR, c.Params.ServiceCIDR, c.Params.NodeIP)
	}
	printChains(&b, "+", c.AddChains)
	printElements(&b, "+", c.Prepare)
	if c.Prepares() {
		b.WriteString("then\n")
	}
	printChains(&b, "=", c.RewriteChains)
	printElements(&b, "-", c.Delete)
	printElements(&b, "+", c.Add)
	if c.DropElements() > 0 {
		b.WriteString("after a grace period\n")
	}
	printElements(&b, "-", c.Drop)
	printChains(&b, "-", c.DropChains)
	if c.StaleUDP {
		b.WriteString("forget stale udp flows\n")
	}
	for _, pod := range c.Judge {
		fmt.Fprintf(&b, "judge the connections of %s\n", pod)
	}
	return b.String()
}

func printChains(b *strings.Builder, sign string, chains []Chain) {
	for _, c := range chains {
		fmt.Fprintf(b, "%s %s\n", sign, c)
	}
}

func printElements(b *strings.Builder, sign string, elements []Element) {
	sorted := slices.SortedFunc(slices.Values(elements), func(x, y Element) int {
		return strings.Compare(x.Set+x.Key, y.Set+y.Key)
	})
	for _, e := range sorted {
		fmt.Fprintf(b, "%s %s\n", sign, e)
	}
}
