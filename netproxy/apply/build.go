//go:build linux

package apply

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/balsa-run/balsa/netproxy"
)

// builder turns a change into the messages of one transaction.
type builder struct {
	conn  *nftables.Conn
	table *nftables.Table
	// learned are elements that rules had put into sets, to be kept when the
	// table is replaced.
	learned map[string][]nftables.SetElement
}

// first writes what the change prepares.
func (b *builder) first(c netproxy.Change) error {
	if err := b.addChains(c.AddChains, c.Params); err != nil {
		return err
	}
	return b.write(c.Prepare, true)
}

// second writes what packets go by.
func (b *builder) second(c netproxy.Change) error {
	for _, chain := range c.RewriteChains {
		planned := plannedChain(chain, c.Params)
		nc := &nftables.Chain{Table: b.table, Name: chain.Name}
		b.conn.FlushChain(nc)
		b.addRules(nc, planned.rules)
	}
	if err := b.write(c.Delete, false); err != nil {
		return err
	}
	return b.write(c.Add, true)
}

// third writes what the change drops.
func (b *builder) third(c netproxy.Change) error {
	if err := b.write(c.Drop, false); err != nil {
		return err
	}
	for _, chain := range c.DropChains {
		b.conn.DelChain(&nftables.Chain{Table: b.table, Name: chain.Name})
		if s, has := chain.Set(); has {
			b.conn.DelSet(b.set(s.Name))
		}
	}
	return nil
}

// build makes the table, whatever it held, with all content and no hooks. Deleting a
// table that is not there fails, so it is added first.
func (b *builder) build(c netproxy.Change) error {
	b.conn.AddTable(b.table)
	b.conn.DelTable(b.table)
	b.conn.AddTable(b.table)
	if err := b.fixed(c.Params); err != nil {
		return err
	}
	if err := b.first(c); err != nil {
		return err
	}
	return b.second(c)
}

// fixed adds what a table has whatever the plan, but for the hooks.
func (b *builder) fixed(p netproxy.Params) error {
	for _, s := range netproxy.BaseSets() {
		if err := b.addSet(s); err != nil {
			return err
		}
	}
	for _, c := range innerChains(p) {
		b.addChain(c)
	}
	return nil
}

func (b *builder) addSet(s netproxy.Set) error {
	set, err := kernelSet(b.table, s)
	if err == nil {
		err = b.conn.AddSet(set, nil)
	}
	if err == nil {
		err = b.writeSet(set, b.learned[s.Name], true)
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", s.Name, err)
	}
	return nil
}

func (b *builder) addChains(chains []netproxy.Chain, p netproxy.Params) error {
	for _, c := range chains {
		if s, has := c.Set(); has {
			if err := b.addSet(s); err != nil {
				return err
			}
		}
		b.addChain(plannedChain(c, p))
	}
	return nil
}

func (b *builder) addChain(c chain) {
	nc := &nftables.Chain{Table: b.table, Name: c.name}
	if c.kind != "" {
		nc.Type, nc.Hooknum, nc.Priority = c.kind, c.hook, &c.priority
	}
	b.conn.AddChain(nc)
	b.addRules(nc, c.rules)
}

func (b *builder) addRules(c *nftables.Chain, rules [][]expr.Any) {
	for _, r := range rules {
		b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: r})
	}
}

// write adds or deletes elements, grouped by set, in order of first mention.
func (b *builder) write(elements []netproxy.Element, add bool) error {
	var order []string
	groups := map[string][]nftables.SetElement{}
	for i := range elements {
		e := &elements[i]
		if _, found := groups[e.Set]; !found {
			order = append(order, e.Set)
		}
		groups[e.Set] = append(groups[e.Set], kernelElement(e))
	}
	for _, name := range order {
		if err := b.writeSet(b.set(name), groups[name], add); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func (b *builder) writeSet(s *nftables.Set, elements []nftables.SetElement, add bool) error {
	for len(elements) > 0 {
		n := min(len(elements), maxElementsPerMessage)
		var err error
		if add {
			err = b.conn.SetAddElements(s, elements[:n])
		} else {
			err = b.conn.SetDeleteElements(s, elements[:n])
		}
		if err != nil {
			return err
		}
		elements = elements[n:]
	}
	return nil
}

// set names a set that exists, for messages about its elements.
func (b *builder) set(name string) *nftables.Set { return &nftables.Set{Table: b.table, Name: name} }

func kernelElement(e *netproxy.Element) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.Key)}
	if e.End != "" {
		out.KeyEnd = []byte(e.End)
	}
	if v := kernelVerdict(e.Value); v != nil {
		out.VerdictData = v
	} else if e.Value != "" {
		out.Val = []byte(e.Value)
	}
	return out
}

// kernelVerdict is nil for data.
func kernelVerdict(value string) *expr.Verdict {
	if !netproxy.IsVerdict(value) {
		return nil
	}
	kind, chain, _ := strings.Cut(value, " ")
	return &expr.Verdict{Chain: chain, Kind: map[string]expr.VerdictKind{"drop": expr.VerdictDrop, "goto": expr.VerdictGoto, "jump": expr.VerdictJump}[kind]}
}
