package netproxy

import (
	"slices"
	"strings"
)

// Unit is a part of a ruleset that changes as a whole: the elements of one
// front, one pod or one profile, or one chain. Units are never changed once
// they are in a ruleset. The elements of two units of a ruleset never share a
// set and key.
type Unit struct {
	// ID orders units: a letter for the sort, and the encoded key.
	ID string
	// Chain is set if the unit is a chain.
	Chain    *Chain
	Elements []Element
	// Stamp of a pod's unit names the policies that select the pod, with their
	// generations: when it changes, the pod's connections are judged again.
	Stamp string
}

// The sorts of units.
const (
	sortChain    = "c"
	sortService  = "f" // a front with an address
	sortNodePort = "n" // a front without
	sortHairpin  = "h"
	sortEgress   = "pe" // a pod that policies select
	sortIngress  = "pi"
	sortProfile  = "r"
)

func chainID(name string) string { return sortChain + name }

func frontID(k Key) string {
	if k.VIP.IsValid() {
		return sortService + keyBytes(k)
	}
	return sortNodePort + keyBytes(k)
}

func profileID(name string) string { return sortProfile + name }

// String names what the unit is for.
func (u *Unit) String() string {
	if k, front := u.front(); front {
		return "front " + k.String()
	}
	switch {
	case u.Chain != nil:
		return "chain " + u.Chain.Name
	case u.Stamp != "":
		return "policies " + strings.TrimSpace(u.Stamp)
	case len(u.Elements) > 0:
		return u.Elements[0].String()
	}
	return "unit " + u.ID
}

// Same reports that two units hold the same.
func (u *Unit) Same(o *Unit) bool { return u != nil && o != nil && same(u, o) }

func same(a, b *Unit) bool {
	if a == b {
		return true
	}
	if a.Stamp != b.Stamp || (a.Chain == nil) != (b.Chain == nil) || a.Chain != nil && *a.Chain != *b.Chain {
		return false
	}
	return slices.Equal(a.Elements, b.Elements)
}

// shardCount: a change copies one pointer a shard, and the units of one shard
// for each changed unit; at 20,000 units both are some microseconds.
const shardCount = 1024

// content is an immutable sorted map of units. Contents that come from one
// another by edits share what has not changed, so that comparing them costs no
// more than the change.
type content struct {
	shards [shardCount][]*Unit
	count  int
}

func shardOf(id string) int {
	const offset, prime = 2166136261, 16777619 // FNV-1a
	h := uint32(offset)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * prime
	}
	return int((h ^ h>>16) % shardCount)
}

func find(shard []*Unit, id string) (int, bool) {
	return slices.BinarySearchFunc(shard, id, func(u *Unit, id string) int { return strings.Compare(u.ID, id) })
}

func (c *content) get(id string) *Unit {
	if c == nil {
		return nil
	}
	shard := c.shards[shardOf(id)]
	if i, found := find(shard, id); found {
		return shard[i]
	}
	return nil
}

// each calls f for every unit, in an order that depends on the IDs alone.
func (c *content) each(f func(*Unit)) {
	if c == nil {
		return
	}
	for i := range c.shards {
		for _, u := range c.shards[i] {
			f(u)
		}
	}
}

// sorted lists all units by ID.
func (c *content) sorted() []*Unit {
	var all []*Unit
	c.each(func(u *Unit) { all = append(all, u) })
	slices.SortFunc(all, func(a, b *Unit) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// edit is a content that is being made from another one.
type edit struct {
	next  *content
	owned [shardCount]bool
}

func newEdit(from *content) *edit {
	e := &edit{next: new(content)}
	if from != nil {
		*e.next = *from
	}
	return e
}

func (e *edit) own(i int) {
	if !e.owned[i] {
		e.next.shards[i], e.owned[i] = slices.Clone(e.next.shards[i]), true
	}
}

// set puts a unit in, or in place of the one with its ID. A unit that is equal to
// the one that is there leaves it there.
func (e *edit) set(u *Unit) {
	s := shardOf(u.ID)
	i, found := find(e.next.shards[s], u.ID)
	if found && same(e.next.shards[s][i], u) {
		return
	}
	e.own(s)
	if found {
		e.next.shards[s][i] = u
		return
	}
	e.next.shards[s] = slices.Insert(e.next.shards[s], i, u)
	e.next.count++
}

func (e *edit) remove(id string) {
	s := shardOf(id)
	if i, found := find(e.next.shards[s], id); found {
		e.own(s)
		e.next.shards[s] = slices.Delete(e.next.shards[s], i, i+1)
		e.next.count--
	}
}
