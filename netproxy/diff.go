package netproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Change turns one ruleset into another, in two transactions, each applied in
// the order of its fields. Within one, deletions precede additions, because
// the kernel refuses to add a key that exists with another value.
//
// After the first transaction every packet goes where the new ruleset says.
// But a packet that is on its way through the rules may have found its chain
// before it and look up its slot, or its hairpin, after it: the kernel looks
// at the current generation with every lookup. So what the old ruleset needs
// stays until a grace period has passed, and the second transaction drops it.
type Change struct {
	// Replace means that the table is emptied and built anew in the first
	// transaction; the rest of the change is the full content.
	Replace bool
	// Params belong to the new ruleset.
	Params Params

	// The first transaction. A chain must exist before an element names it.
	// DeleteSlots holds only keys that AddSlots gives another target.
	AddClasses     []int
	DeleteServices []ServiceElement
	DeleteSlots    []SlotElement
	AddSlots       []SlotElement
	AddServices    []ServiceElement
	AddHairpin     []netip.Addr

	// The second transaction, after a grace period.
	DropSlots   []SlotElement
	DropHairpin []netip.Addr
	DropClasses []int

	// StaleUDP says that UDP flows may exist that connection tracking still
	// sends to a place the new ruleset does not name.
	StaleUDP bool
}

// ServiceElement is an element of the verdict map "services", or for class 0
// of the set "no-endpoints".
type ServiceElement struct {
	Key   Key
	Class int
}

// SlotElement is an element of the map "slots<Class>".
type SlotElement struct {
	Class  int
	Key    Key
	Slot   int
	Target Target
}

// Full is the change that builds a ruleset from nothing.
func Full(r Ruleset) Change {
	c := diffServices(nil, r.Services)
	c.Replace = true
	c.Params = r.Params
	c.AddClasses = r.Classes()
	c.AddHairpin = slices.Clone(r.Hairpin)
	c.StaleUDP = true
	return c
}

// Diff computes the change from one ruleset to another. Its cost is one pass
// over both; what it returns is proportional to what differs.
func Diff(old, next Ruleset) Change {
	if old.Params != next.Params {
		return Full(next)
	}
	c := diffServices(old.Services, next.Services)
	c.Params = next.Params
	oldClasses, newClasses := old.Classes(), next.Classes()
	c.AddClasses = missing(newClasses, oldClasses)
	c.DropClasses = missing(oldClasses, newClasses)
	c.DropHairpin, c.AddHairpin = diffAddrs(old.Hairpin, next.Hairpin)
	return c
}

// diffServices walks two sorted lists side by side.
func diffServices(old, next []Service) Change {
	var c Change
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
	return c
}

func order(old, next []Service) int {
	switch {
	case len(next) == 0:
		return -1
	case len(old) == 0:
		return 1
	}
	return old[0].Key.Compare(next[0].Key)
}

func (c *Change) remove(s Service) {
	c.DeleteServices = append(c.DeleteServices, ServiceElement{s.Key, s.Class()})
	for i, t := range s.Targets {
		c.DropSlots = append(c.DropSlots, SlotElement{s.Class(), s.Key, i, t})
	}
	c.touchUDP(s.Key)
}

func (c *Change) add(s Service) {
	c.AddServices = append(c.AddServices, ServiceElement{s.Key, s.Class()})
	for i, t := range s.Targets {
		c.AddSlots = append(c.AddSlots, SlotElement{s.Class(), s.Key, i, t})
	}
	// A client that spoke before the service existed has a flow to nowhere,
	// and keeps it alive by speaking on.
	c.touchUDP(s.Key)
}

func (c *Change) modify(old, next Service) {
	if old.Class() != next.Class() {
		c.remove(old)
		c.add(next)
		return
	}
	for i := range next.Targets {
		if old.Targets[i] == next.Targets[i] {
			continue
		}
		c.DeleteSlots = append(c.DeleteSlots, SlotElement{old.Class(), old.Key, i, old.Targets[i]})
		c.AddSlots = append(c.AddSlots, SlotElement{next.Class(), next.Key, i, next.Targets[i]})
		c.touchUDP(next.Key)
	}
}

func (c *Change) touchUDP(k Key) {
	if k.Protocol == UDP {
		c.StaleUDP = true
	}
}

// missing returns the elements of the sorted list a that b lacks.
func missing(a, b []int) []int {
	var out []int
	for _, n := range a {
		if _, found := slices.BinarySearch(b, n); !found {
			out = append(out, n)
		}
	}
	return out
}

func diffAddrs(old, next []netip.Addr) (gone, added []netip.Addr) {
	for _, a := range old {
		if _, found := slices.BinarySearchFunc(next, a, netip.Addr.Compare); !found {
			gone = append(gone, a)
		}
	}
	for _, a := range next {
		if _, found := slices.BinarySearchFunc(old, a, netip.Addr.Compare); !found {
			added = append(added, a)
		}
	}
	return gone, added
}

// Empty reports that nothing has to be done.
func (c *Change) Empty() bool { return !c.Replace && !c.StaleUDP && c.Elements() == 0 }

// Elements counts the set elements, and chains, that the change touches.
func (c *Change) Elements() int { return c.firstElements() + c.DropElements() }

func (c *Change) firstElements() int {
	return len(c.AddClasses) + len(c.DeleteServices) + len(c.DeleteSlots) + len(c.AddSlots) + len(c.AddServices) + len(c.AddHairpin)
}

// Removes reports that packets may be under way to where the new ruleset would
// not send them; a grace period ends that.
func (c *Change) Removes() bool {
	return c.StaleUDP || c.DropElements()+len(c.DeleteSlots)+len(c.DeleteServices) > 0
}

// DropElements counts what the second transaction touches.
func (c *Change) DropElements() int {
	return len(c.DropSlots) + len(c.DropHairpin) + len(c.DropClasses)
}

// String prints the change in the order it is applied.
func (c Change) String() string {
	var b strings.Builder
	if c.Replace {
		fmt.Fprintf(&b, "replace table: pods %s services %s node %s\n", c.Params.PodCIDR, c.Params.ServiceCIDR, c.Params.NodeIP)
	}
	for _, n := range c.AddClasses {
		fmt.Fprintf(&b, "+ class n%d\n", n)
	}
	printServices(&b, "-", c.DeleteServices)
	printSlots(&b, "-", c.DeleteSlots)
	printSlots(&b, "+", c.AddSlots)
	printServices(&b, "+", c.AddServices)
	printHairpin(&b, "+", c.AddHairpin)
	if c.DropElements() > 0 {
		b.WriteString("after a grace period\n")
	}
	printSlots(&b, "-", c.DropSlots)
	printHairpin(&b, "-", c.DropHairpin)
	for _, n := range c.DropClasses {
		fmt.Fprintf(&b, "- class n%d\n", n)
	}
	if c.StaleUDP {
		b.WriteString("forget stale udp flows\n")
	}
	return b.String()
}

func printServices(b *strings.Builder, sign string, elements []ServiceElement) {
	for _, e := range elements {
		if e.Class == 0 {
			fmt.Fprintf(b, "%s no-endpoints { %s }\n", sign, e.Key)
			continue
		}
		fmt.Fprintf(b, "%s services { %s : goto n%d }\n", sign, e.Key, e.Class)
	}
}

func printSlots(b *strings.Builder, sign string, elements []SlotElement) {
	for _, e := range elements {
		fmt.Fprintf(b, "%s slots%d { %s . %d : %s }\n", sign, e.Class, e.Key, e.Slot, e.Target)
	}
}

func printHairpin(b *strings.Builder, sign string, addrs []netip.Addr) {
	for _, a := range addrs {
		fmt.Fprintf(b, "%s hairpin { %s . %s }\n", sign, a, a)
	}
}
