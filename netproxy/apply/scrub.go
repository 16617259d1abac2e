//go:build linux

package apply

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// ErrNothingSynced is Scrub's answer before the first successful Sync.
var ErrNothingSynced = errors.New("nothing synced yet")

// Scrub implements netproxy.Kernel. Any difference in the table is repaired by
// replacing the whole of it: differences are rare, and the path that version changes
// take anyway stays the only one that is used for repairs.
func (a *Applier) Scrub(ctx context.Context) (netproxy.ScrubReport, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var report netproxy.ScrubReport
	if err := ctx.Err(); err != nil {
		return report, fmt.Errorf("scrub table %s: %w", a.table, err)
	}
	if !a.known {
		return report, fmt.Errorf("scrub table %s: %w", a.table, ErrNothingSynced)
	}
	if err := a.compareLocked(&a.have, &report); err != nil {
		a.disconnectLocked()
		return report, fmt.Errorf("scrub table %s: %w", a.table, err)
	}
	if err := a.repairLocked(ctx, &report); err != nil {
		return report, fmt.Errorf("scrub table %s: %w", a.table, err)
	}
	return report, nil
}

// adoptLocked says whether the kernel already holds the ruleset, as it does
// when an agent restarts and nothing has changed meanwhile. Then nothing is
// written at all.
func (a *Applier) adoptLocked(r netproxy.Ruleset) bool {
	var report netproxy.ScrubReport
	if err := a.compareLocked(&r, &report); err != nil {
		a.log.Warn("cannot read the existing table; replacing it", "table", a.table, "error", err)
		a.disconnectLocked()
		return false
	}
	return len(report.Findings) == 0
}

func (a *Applier) repairLocked(ctx context.Context, report *netproxy.ScrubReport) error {
	if len(report.Findings) > 0 {
		a.log.Warn("nftables table differs from the plan; replacing it", "table", a.table, "findings", report.Findings, "omitted", report.Omitted)
		a.known = false
		if _, err := a.writeLocked(ctx, a.have, func() {}); err != nil {
			return err
		}
	}
	finding, err := a.routeFinding(a.have.Params)
	if err != nil {
		return err
	}
	if finding != "" {
		report.Find("%s", finding)
		if err := a.ensureRoute(a.have.Params); err != nil {
			return err
		}
	}
	a.stale.udp = true
	if report.ForgottenFlows, err = a.forgetFlowsLocked(); err != nil {
		return err
	}
	report.Repaired = len(report.Findings) > 0
	return nil
}

func (a *Applier) compareLocked(r *netproxy.Ruleset, report *netproxy.ScrubReport) error {
	present, err := a.presentLocked(a.kernelTable())
	if err != nil {
		return err
	}
	if !present {
		report.Find("table %s is missing", a.table)
		return nil
	}
	if err := a.compareChainsLocked(a.kernelTable(), r, report); err != nil {
		return err
	}
	return a.compareSetsLocked(r, report)
}

func (a *Applier) compareChainsLocked(t *nftables.Table, r *netproxy.Ruleset, report *netproxy.ScrubReport) error {
	listed, err := a.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	have := map[string]*nftables.Chain{}
	for _, c := range listed {
		if c.Table.Name == t.Name {
			have[c.Name] = c
		}
	}
	want := append(innerChains(r.Params), hookedChains()...)
	r.Each(func(u *netproxy.Unit) {
		if u.Chain != nil {
			want = append(want, plannedChain(*u.Chain, r.Params))
		}
	})
	for _, c := range want {
		if err := a.compareChainLocked(t, c, have[c.name], report); err != nil {
			return err
		}
		delete(have, c.name)
	}
	for name := range have {
		report.Find("chain %s is not ours", name)
	}
	return nil
}

func (a *Applier) compareChainLocked(t *nftables.Table, want chain, have *nftables.Chain, report *netproxy.ScrubReport) error {
	report.Elements++
	if have == nil {
		report.Find("chain %s is missing", want.name)
		return nil
	}
	if !sameHook(want, have) {
		report.Find("chain %s has another type, hook or priority", want.name)
	}
	rules, err := a.conn.GetRules(t, have)
	if err != nil {
		return fmt.Errorf("list rules of chain %s: %w", want.name, err)
	}
	if len(rules) != len(want.rules) {
		report.Find("chain %s has %d rules, want %d", want.name, len(rules), len(want.rules))
		return nil
	}
	for i, r := range rules {
		same, err := sameRule(want.rules[i], r.Exprs)
		if err != nil {
			return fmt.Errorf("rule %d of chain %s: %w", i, want.name, err)
		}
		if !same {
			report.Find("rule %d of chain %s is not the planned one", i, want.name)
		}
	}
	return nil
}

func sameHook(want chain, have *nftables.Chain) bool {
	if want.kind == "" {
		return have.Hooknum == nil
	}
	return have.Type == want.kind && have.Hooknum != nil && *have.Hooknum == *want.hook &&
		have.Priority != nil && *have.Priority == want.priority &&
		(have.Policy == nil || *have.Policy == nftables.ChainPolicyAccept)
}

// sameRule compares the encoded form.
func sameRule(want, have []expr.Any) (bool, error) {
	if len(want) != len(have) {
		return false, nil
	}
	for i := range want {
		w, err := expr.Marshal(unix.NFPROTO_IPV4, want[i])
		if err != nil {
			return false, err
		}
		h, err := expr.Marshal(unix.NFPROTO_IPV4, have[i])
		if err != nil {
			return false, err
		}
		if !bytes.Equal(w, h) {
			return false, nil
		}
	}
	return true, nil
}

func (a *Applier) compareSetsLocked(r *netproxy.Ruleset, report *netproxy.ScrubReport) error {
	have, err := a.listSetsLocked(a.kernelTable())
	if err != nil {
		return err
	}
	sets, elements := wanted(r)
	for _, s := range sets {
		if err := a.compareSetLocked(have[s.Name], s, elements[s.Name], report); err != nil {
			return err
		}
		delete(have, s.Name)
	}
	for name := range have {
		report.Find("set %s is not ours", name)
	}
	return nil
}

// place is an element without its value.
type place struct{ key, end string }

// wanted lists the sets of a ruleset, and the planned elements of each.
func wanted(r *netproxy.Ruleset) (sets []netproxy.Set, elements map[string]map[place]string) {
	sets, elements = netproxy.BaseSets(), map[string]map[place]string{}
	r.Each(func(u *netproxy.Unit) {
		if u.Chain != nil {
			if s, has := u.Chain.Set(); has {
				sets = append(sets, s)
			}
		}
		for _, e := range u.Elements {
			if elements[e.Set] == nil {
				elements[e.Set] = map[place]string{}
			}
			elements[e.Set][place{e.Key, e.End}] = e.Value
		}
	})
	return sets, elements
}

func (a *Applier) compareSetLocked(have *nftables.Set, s netproxy.Set, want map[place]string, report *netproxy.ScrubReport) error {
	report.Elements += len(want)
	if have == nil {
		report.Find("set %s is missing", s.Name)
		return nil
	}
	if s.Learned() {
		return nil
	}
	listed, err := a.conn.GetSetElements(have)
	if err != nil {
		return fmt.Errorf("list elements of set %s: %w", s.Name, err)
	}
	for _, e := range listed {
		got, err := plannedElement(s, e)
		if err != nil {
			return fmt.Errorf("element %x of set %s: %w", e.Key, s.Name, err)
		}
		p := place{got.Key, got.End}
		value, found := want[p]
		switch {
		case !found:
			report.Find("an element too many: %s", got)
		case value != got.Value:
			report.Find("an element is not the planned one: %s, want %q", got, value)
		}
		delete(want, p)
	}
	for p, value := range want {
		report.Find("lacks element %s", netproxy.Element{Set: s.Name, Key: p.key, End: p.end, Value: value})
	}
	return nil
}

// plannedElement is an element of the kernel in the plan's form. The library
// hands a verdict back undecoded.
func plannedElement(s netproxy.Set, e nftables.SetElement) (netproxy.Element, error) {
	out := netproxy.Element{Set: s.Name, Key: string(e.Key), End: string(e.KeyEnd), Value: string(e.Val)}
	if !s.Verdicts {
		return out, nil
	}
	d, err := mdnetlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return out, fmt.Errorf("decode verdict: %w", err)
	}
	d.ByteOrder = binary.BigEndian
	out.Value = ""
	var target string
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_VERDICT_CODE:
			code := expr.VerdictKind(int32(d.Uint32()))
			out.Value = map[expr.VerdictKind]string{expr.VerdictDrop: "drop", expr.VerdictGoto: "goto ", expr.VerdictJump: "jump "}[code]
		case unix.NFTA_VERDICT_CHAIN:
			target = d.String()
		}
	}
	if err := d.Err(); err != nil {
		return out, fmt.Errorf("decode verdict: %w", err)
	}
	out.Value += target
	return out, nil
}

// PolicyCounters implements netproxy.Kernel.
func (a *Applier) PolicyCounters(ctx context.Context) ([]netproxy.PolicyCount, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("policy counters of table %s: %w", a.table, err)
	}
	if err := a.connectLocked(); err != nil {
		return nil, fmt.Errorf("policy counters of table %s: %w", a.table, err)
	}
	var out []netproxy.PolicyCount
	for d, sets := range map[netproxy.Direction][2]string{
		netproxy.Egress:  {netproxy.SetEgressPods, netproxy.SetEgressRefused},
		netproxy.Ingress: {netproxy.SetIngressPods, netproxy.SetIngressRefused},
	} {
		// The refused are read first, so that they are among the judged.
		refused, err := a.countLocked(sets[1])
		if err == nil {
			var judged map[netip.Addr]uint64
			judged, err = a.countLocked(sets[0])
			for ip, n := range judged {
				out = append(out, netproxy.PolicyCount{PodIP: ip, Direction: d, Allowed: n - min(n, refused[ip]), Refused: refused[ip]})
			}
		}
		if err != nil {
			a.disconnectLocked()
			return nil, fmt.Errorf("policy counters of table %s: %w", a.table, err)
		}
	}
	netproxy.SortPolicyCounts(out)
	return out, nil
}

func (a *Applier) countLocked(set string) (map[netip.Addr]uint64, error) {
	elements, err := a.conn.GetSetElements(&nftables.Set{Table: a.kernelTable(), Name: set})
	if err != nil {
		return nil, fmt.Errorf("list elements of set %s: %w", set, err)
	}
	out := map[netip.Addr]uint64{}
	for _, e := range elements {
		if ip, ok := netip.AddrFromSlice(e.Key); ok && e.Counter != nil {
			out[ip] = e.Counter.Packets
		}
	}
	return out, nil
}
