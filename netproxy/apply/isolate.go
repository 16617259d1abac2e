//go:build linux

package apply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// maxRefused bounds how many parts of a plan are left out because the kernel
// refuses them; with more, the fault is elsewhere, and Sync fails.
const maxRefused = 32

// refusal is a unit that the kernel does not take.
type refusal struct {
	unit *netproxy.Unit
	err  error
}

// acceptableLocked leaves out what was refused before and is still the same.
func (a *Applier) acceptableLocked(r netproxy.Ruleset) netproxy.Ruleset {
	out := map[string]bool{}
	for id, old := range a.refused {
		if u := r.Unit(id); u.Same(old.unit) {
			out[id] = true
			continue
		}
		delete(a.refused, id)
	}
	if len(out) == 0 {
		return r
	}
	return r.Without(out)
}

func (a *Applier) refusalsLocked() (problems []netproxy.Problem) {
	for _, old := range a.refused {
		problems = append(problems, netproxy.Problem{Object: old.unit.String(), Reason: fmt.Sprintf("left out, the kernel refuses it: %v", old.err)})
	}
	slices.SortFunc(problems, netproxy.Problem.Compare)
	return problems
}

// refusedByKernel tells a refusal of what was asked from a broken connection or
// from want of memory.
func refusedByKernel(err error) bool {
	for _, e := range []syscall.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.EBUSY, unix.ERANGE, unix.EMLINK, unix.ELOOP, unix.E2BIG, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// isolateLocked finds the units that the kernel refuses, by trying in a table
// without hooks, within transactions that leave nothing behind. Meanwhile the old
// table goes on working.
func (a *Applier) isolateLocked(ctx context.Context, r netproxy.Ruleset, cause error) (netproxy.Ruleset, error) {
	s := search{a: a, ctx: ctx, params: r.Params, bad: map[string]refusal{}}
	if err := s.try(nil); err != nil {
		return r, fmt.Errorf("%w%s", err, a.missingLocked())
	}
	var units []*netproxy.Unit
	affinity := a.affinityLocked()
	r.Each(func(u *netproxy.Unit) {
		if affinity != nil && remembers(u) {
			s.bad[u.ID] = refusal{u, affinity}
			return
		}
		units = append(units, u)
	})
	s.limit = len(s.bad) + maxRefused
	// A chain must be known before the elements, or the chains, that name it.
	slices.SortStableFunc(units, func(x, y *netproxy.Unit) int { return order(x) - order(y) })
	if err := s.add(units); err != nil {
		return r, err
	}
	if len(s.bad) == 0 {
		return r, fmt.Errorf("%w%s", cause, a.missingLocked())
	}
	missing := a.missingLocked()
	ids := map[string]bool{}
	if a.refused == nil {
		a.refused = map[string]refusal{}
	}
	for id, bad := range s.bad {
		bad.err = fmt.Errorf("%w%s", bad.err, missing)
		ids[id], a.refused[id] = true, bad
		a.log.Error("the kernel refuses a part of the network's rules; it is left out", "table", a.table, "part", bad.unit, "error", bad.err)
	}
	return r.Without(ids), nil
}

// trial is a table that no transaction leaves behind.
func (a *Applier) trial() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: a.table + "-trial"}
}

func order(u *netproxy.Unit) int {
	switch {
	case u.Chain == nil:
		return 2
	case u.Chain.Kind == netproxy.ChainAffinity:
		return 1
	}
	return 0
}

type search struct {
	a      *Applier
	ctx    context.Context
	params netproxy.Params
	good   []*netproxy.Unit
	bad    map[string]refusal
	limit  int
}

// affinityLocked is why the kernel cannot do session affinity; nil if it can. All
// services with affinity would be refused one by one.
func (a *Applier) affinityLocked() error {
	for _, f := range a.features {
		if f.name != featureAffinity {
			continue
		}
		if err := a.probeLocked(f); err != nil {
			return fmt.Errorf("session affinity needs %s: %w", f.name, err)
		}
	}
	return nil
}

// remembers reports a part of a service with affinity.
func remembers(u *netproxy.Unit) bool {
	if u.Chain != nil {
		return u.Chain.Kind == netproxy.ChainAffinity || u.Chain.Kind == netproxy.ChainAffinityEndpoint
	}
	return slices.ContainsFunc(u.Elements, func(e netproxy.Element) bool { return e.Affinity() })
}

// add sorts candidates into good and bad, by halves: units that the kernel takes
// only without each other are told apart too, the earlier is good.
func (s *search) add(units []*netproxy.Unit) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if len(units) == 0 {
		return nil
	}
	err := s.try(units)
	switch {
	case err == nil:
		s.good = append(s.good, units...)
		return nil
	case !refusedByKernel(err):
		return err
	case len(units) == 1:
		if len(s.bad) == s.limit {
			return fmt.Errorf("more than %d parts are refused (limit maxRefused), %s among them: %w", maxRefused, units[0], err)
		}
		s.bad[units[0].ID] = refusal{units[0], err}
		return nil
	}
	if err := s.add(units[:len(units)/2]); err != nil {
		return err
	}
	return s.add(units[len(units)/2:])
}

// try asks the kernel for the good units and some more.
func (s *search) try(more []*netproxy.Unit) error {
	b, err := s.a.builderLocked(s.a.trial())
	if err != nil {
		return err
	}
	b.conn.AddTable(b.table)
	err = b.fixed(s.params)
	for _, u := range slices.Concat(s.good, more) {
		if u.Chain != nil && err == nil {
			err = b.addChains([]netproxy.Chain{*u.Chain}, s.params)
		}
	}
	var elements []netproxy.Element
	for _, u := range slices.Concat(s.good, more) {
		elements = append(elements, u.Elements...)
	}
	if err == nil {
		err = b.write(elements, true)
	}
	if err != nil {
		s.a.disconnectLocked()
		return err
	}
	b.conn.DelTable(b.table)
	return s.a.flushLocked()
}

// feature is something that kernels may be built without.
type feature struct {
	name, option string
	hook         chain
	sets         []netproxy.Set
}

// featureAffinity is what sets that learn clients need.
const featureAffinity = "sets that rules fill (dynset)"

// features are all that the rules use.
func features() []feature {
	nat := func(rule ...expr.Any) chain {
		return chain{"x", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, [][]expr.Any{rule}}
	}
	filter := func(rule ...expr.Any) chain {
		return chain{"x", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, [][]expr.Any{rule}}
	}
	one := []netproxy.Field{netproxy.FieldAddress}
	two := []netproxy.Field{netproxy.FieldProtocol, netproxy.FieldPort}
	return []feature{
		{"sets with concatenated keys", "NFT_SET_HASH or NF_TABLES_IPV4", filter(), []netproxy.Set{{Name: "s", Key: two}}},
		{"sets of concatenated intervals", "NF_TABLES of Linux 5.6 or later", filter(), []netproxy.Set{{Name: "s", Key: two, Intervals: true}}},
		{"counters of set elements", "NF_TABLES of Linux 5.7 or later", filter(), []netproxy.Set{{Name: "s", Key: one, Counted: true}}},
		{featureAffinity, "NF_TABLES", filter(rule(load(0, sourceAddress), []expr.Any{&expr.Dynset{SrcRegKey: reg(0), SetName: "s", Operation: unix.NFT_DYNSET_OP_UPDATE}})...), []netproxy.Set{{Name: "s", Key: one, Timeout: 1e9}}},
		{"connection tracking (ct)", "NFT_CT", filter(state(expr.CtStateBitNEW)...), nil},
		{"address kinds (fib)", "NFT_FIB_IPV4", filter(local(destinationAddress, expr.CmpOpEq)...), nil},
		{"random numbers (numgen)", "NFT_NUMGEN", filter(&expr.Numgen{Register: reg(0), Modulus: 2, Type: unix.NFT_NG_RANDOM}), nil},
		{"refusals (reject)", "NFT_REJECT_IPV4", filter(unreachable(icmpPort)...), nil},
		{"NAT chains and dnat", "NFT_NAT", nat(translateTo(netproxy.Target{IP: netip.IPv4Unspecified(), Port: 1})...), nil},
		{"masquerading", "NFT_MASQ", chain{"x", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, [][]expr.Any{{&expr.Masq{FullyRandom: true}}}}, nil},
	}
}

// missingLocked names the features that the kernel does not have, for the end of
// an error; empty if it has all.
func (a *Applier) missingLocked() (text string) {
	for _, f := range a.features {
		if err := a.probeLocked(f); err != nil {
			text += fmt.Sprintf("; the kernel lacks %s (CONFIG_%s): %v", f.name, f.option, err)
		}
	}
	return text
}

// probeLocked uses a feature in a transaction that leaves nothing behind.
func (a *Applier) probeLocked(f feature) error {
	b, err := a.builderLocked(a.trial())
	if err != nil {
		return err
	}
	b.conn.AddTable(b.table)
	for _, s := range f.sets {
		if err := b.addSet(s); err != nil {
			a.disconnectLocked()
			return err
		}
	}
	b.addChain(f.hook)
	b.conn.DelTable(b.table)
	return a.flushLocked()
}
