//go:build linux

package apply

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/balsa-run/balsa/netproxy"
)

// builder turns a change into the messages of one transaction.
type builder struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// first writes the change's first transaction.
func (b *builder) first(c netproxy.Change) error {
	if c.Replace {
		if err := b.empty(c.Params); err != nil {
			return err
		}
	}
	for _, n := range c.AddClasses {
		if err := b.addClass(n, c.Params); err != nil {
			return fmt.Errorf("class %d: %w", n, err)
		}
	}
	var all []batch
	all = append(all, b.services(c.DeleteServices, false)...)
	all = append(all, b.slots(c.DeleteSlots, false)...)
	all = append(all, b.slots(c.AddSlots, true)...)
	all = append(all, b.services(c.AddServices, true)...)
	all = append(all, batch{b.set(setHairpin, false), hairpinElements(c.AddHairpin), true})
	return b.writeAll(all)
}

// second writes what the change drops.
func (b *builder) second(c netproxy.Change) error {
	all := append(b.slots(c.DropSlots, false), batch{b.set(setHairpin, false), hairpinElements(c.DropHairpin), false})
	if err := b.writeAll(all); err != nil {
		return err
	}
	for _, n := range c.DropClasses {
		b.conn.DelChain(&nftables.Chain{Table: b.table, Name: className(n)})
		b.conn.DelSet(b.set(slotsName(n), true))
	}
	return nil
}

// empty leaves the table with its fixed chains and empty sets, whatever it
// held. Deleting a table that is not there fails, so it is added first.
func (b *builder) empty(p netproxy.Params) error {
	b.conn.AddTable(b.table)
	b.conn.DelTable(b.table)
	b.conn.AddTable(b.table)
	sets, err := baseSets(b.table)
	if err != nil {
		return err
	}
	for _, s := range sets {
		if err := b.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	for _, c := range baseChains(p) {
		b.addChain(c)
	}
	return nil
}

func (b *builder) addClass(n int, p netproxy.Params) error {
	s, err := slotsSet(b.table, n)
	if err != nil {
		return err
	}
	if err := b.conn.AddSet(s, nil); err != nil {
		return err
	}
	b.addChain(classChain(n, p))
	return nil
}

func (b *builder) addChain(c chain) {
	nc := &nftables.Chain{Table: b.table, Name: c.name}
	if c.kind != "" {
		nc.Type, nc.Hooknum, nc.Priority = c.kind, c.hook, &c.priority
	}
	b.conn.AddChain(nc)
	for _, r := range c.rules {
		b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: nc, Exprs: r})
	}
}

// batch is the elements of one set, added or deleted.
type batch struct {
	set      *nftables.Set
	elements []nftables.SetElement
	add      bool
}

func (b *builder) writeAll(all []batch) error {
	for _, w := range all {
		if err := b.write(w); err != nil {
			return fmt.Errorf("set %s: %w", w.set.Name, err)
		}
	}
	return nil
}

func (b *builder) write(w batch) error {
	for len(w.elements) > 0 {
		n := min(len(w.elements), maxElementsPerMessage)
		var err error
		if w.add {
			err = b.conn.SetAddElements(w.set, w.elements[:n])
		} else {
			err = b.conn.SetDeleteElements(w.set, w.elements[:n])
		}
		if err != nil {
			return err
		}
		w.elements = w.elements[n:]
	}
	return nil
}

// services splits elements into those of the map and those of the set of
// services without endpoints.
func (b *builder) services(elements []netproxy.ServiceElement, add bool) []batch {
	known := batch{set: b.set(mapServices, true), add: add}
	empty := batch{set: b.set(setNoEndpoints, false), add: add}
	for _, e := range elements {
		if e.Class == 0 {
			empty.elements = append(empty.elements, nftables.SetElement{Key: keyBytes(e.Key)})
			continue
		}
		known.elements = append(known.elements, nftables.SetElement{Key: keyBytes(e.Key),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: className(e.Class)}})
	}
	return []batch{known, empty}
}

// slots groups elements by map, in order of first mention.
func (b *builder) slots(elements []netproxy.SlotElement, add bool) []batch {
	var batches []batch
	index := map[int]int{}
	for _, e := range elements {
		i, found := index[e.Class]
		if !found {
			i = len(batches)
			index[e.Class] = i
			batches = append(batches, batch{set: b.set(slotsName(e.Class), true), add: add})
		}
		batches[i].elements = append(batches[i].elements, nftables.SetElement{Key: slotBytes(e.Key, e.Slot), Val: targetBytes(e.Target)})
	}
	return batches
}

// set names a set that exists, for messages about its elements.
func (b *builder) set(name string, isMap bool) *nftables.Set {
	return &nftables.Set{Table: b.table, Name: name, IsMap: isMap, Concatenation: true}
}

func hairpinElements(addrs []netip.Addr) []nftables.SetElement {
	elements := make([]nftables.SetElement, len(addrs))
	for i, a := range addrs {
		elements[i].Key = hairpinBytes(a)
	}
	return elements
}

// Every part of a concatenated key or value is padded to four bytes:
//
//	0        4      5       8        10       12
//	+--------+------+-------+--------+--------+------------------+
//	|  VIP   | proto|  0    |  port  |   0    | slot, native     |
//	+--------+------+-------+--------+--------+------------------+
func keyBytes(k netproxy.Key) []byte { return appendKey(make([]byte, 0, 16), k) }

func appendKey(b []byte, k netproxy.Key) []byte {
	vip := k.VIP.As4()
	b = append(b, vip[:]...)
	b = append(b, byte(k.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return append(b, 0, 0)
}

func slotBytes(k netproxy.Key, slot int) []byte {
	return binary.NativeEndian.AppendUint32(appendKey(make([]byte, 0, 16), k), uint32(slot))
}

func targetBytes(t netproxy.Target) []byte {
	ip := t.IP.As4()
	b := append(make([]byte, 0, 8), ip[:]...)
	b = binary.BigEndian.AppendUint16(b, t.Port)
	return append(b, 0, 0)
}

func hairpinBytes(a netip.Addr) []byte {
	ip := a.As4()
	return append(append(make([]byte, 0, 8), ip[:]...), ip[:]...)
}
