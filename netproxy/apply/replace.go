//go:build linux

package apply

import (
	"fmt"
	"slices"

	"github.com/google/nftables"

	"github.com/balsa-run/balsa/netproxy"
)

// standInSuffix names the table that does a table's work while that is replaced.
const standInSuffix = "-stand-in"

func (a *Applier) standIn() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: a.table + standInSuffix}
}

// replaceLocked builds the table anew, under traffic. Emptying and filling it in one
// transaction would not do: a packet that is between two lookups at the commit finds
// its chain among the old rules and nothing in the old sets, so it is not translated
// and refused. So no rule is taken away while it alone does its work: a second table
// with the same content goes into force, and the first one out of it, before it is
// emptied. In both at once a connection is translated by the hook that comes first,
// and judged by both.
//
// A table in force is one with hooks. Whoever is killed at any point leaves at least
// one, and its successor goes on from there.
func (a *Applier) replaceLocked(c netproxy.Change, effective func()) error {
	hooks, err := a.hooksLocked(a.kernelTable())
	if err != nil {
		return err
	}
	if len(hooks) > 0 {
		if err := a.removeTableLocked(a.standIn()); err != nil {
			return fmt.Errorf("an earlier replacement's table: %w", err)
		}
		if err := a.raiseLocked(a.standIn(), a.kernelTable(), c); err != nil {
			return err
		}
		if err := a.unhookLocked(a.kernelTable(), hooks); err != nil {
			return err
		}
	}
	before := a.standIn()
	if present, err := a.presentLocked(before); err != nil {
		return err
	} else if !present {
		before = a.kernelTable()
	}
	if err := a.raiseLocked(a.kernelTable(), before, c); err != nil {
		return err
	}
	effective()
	return a.removeTableLocked(a.standIn())
}

// raiseLocked makes a table and brings it into force. Its hooks come last, because
// sets of intervals get their elements a little after the commit. What the rules of
// the table before it have learned is taken over.
func (a *Applier) raiseLocked(t, before *nftables.Table, c netproxy.Change) error {
	learned, err := a.learnedLocked(before, c)
	if err != nil {
		return err
	}
	if err := a.transactLocked(t, c.Elements(), func(b *builder) error {
		b.learned = learned
		return b.build(c)
	}); err != nil {
		return err
	}
	if err := a.transactLocked(t, 0, func(b *builder) error {
		for _, chain := range hookedChains() {
			b.addChain(chain)
		}
		return nil
	}); err != nil {
		return err
	}
	return gracePeriod()
}

// hooksLocked names the chains of a table that packets come to by themselves; none
// if there is no table.
func (a *Applier) hooksLocked(t *nftables.Table) (names []string, err error) {
	if err := a.connectLocked(); err != nil {
		return nil, err
	}
	chains, err := a.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == t.Name && c.Hooknum != nil {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// unhookLocked takes a table out of force: when it returns, no packet is under way
// through it. The sets are still whole then.
func (a *Applier) unhookLocked(t *nftables.Table, hooks []string) error {
	if err := a.transactLocked(t, 0, func(b *builder) error {
		for _, name := range hooks {
			chain := &nftables.Chain{Table: t, Name: name}
			b.conn.FlushChain(chain)
			b.conn.DelChain(chain)
		}
		return nil
	}); err != nil {
		return err
	}
	return gracePeriod()
}

// removeTableLocked removes a table, if it is there, without a packet noticing.
func (a *Applier) removeTableLocked(t *nftables.Table) error {
	present, err := a.presentLocked(t)
	if err != nil || !present {
		return err
	}
	hooks, err := a.hooksLocked(t)
	if err != nil {
		return err
	}
	if len(hooks) > 0 {
		if err := a.unhookLocked(t, hooks); err != nil {
			return err
		}
	}
	return a.transactLocked(t, 0, func(b *builder) error {
		b.conn.DelTable(t)
		return nil
	})
}

// learnedLocked reads which clients services remember, from a table's sets, for the
// ones that the change will make again. Who is first seen between this and the new
// table's hooks is not among them.
func (a *Applier) learnedLocked(t *nftables.Table, c netproxy.Change) (map[string][]nftables.SetElement, error) {
	out := map[string][]nftables.SetElement{}
	var have map[string]*nftables.Set
	for _, chain := range c.AddChains {
		s, has := chain.Set()
		if !has || !s.Learned() {
			continue
		}
		if have == nil {
			var err error
			if have, err = a.listSetsLocked(t); err != nil {
				return nil, err
			}
		}
		if have[s.Name] == nil {
			continue
		}
		elements, err := a.conn.GetSetElements(have[s.Name])
		if err != nil {
			return nil, fmt.Errorf("list elements of set %s: %w", s.Name, err)
		}
		for _, e := range elements {
			if e.Expires > 0 {
				out[s.Name] = append(out[s.Name], nftables.SetElement{Key: e.Key, Timeout: e.Expires})
			}
		}
	}
	return out, nil
}

// listSetsLocked lists the sets of a table by name; none if there is no table.
func (a *Applier) listSetsLocked(t *nftables.Table) (map[string]*nftables.Set, error) {
	present, err := a.presentLocked(t)
	if err != nil || !present {
		return nil, err
	}
	listed, err := a.conn.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	have := make(map[string]*nftables.Set, len(listed))
	for _, s := range listed {
		have[s.Name] = s
	}
	return have, nil
}

func (a *Applier) presentLocked(t *nftables.Table) (bool, error) {
	if err := a.connectLocked(); err != nil {
		return false, err
	}
	tables, err := a.conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == t.Name }), nil
}
