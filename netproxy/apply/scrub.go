//go:build linux

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// ErrNothingSynced is Scrub's answer before the first successful Sync.
var ErrNothingSynced = errors.New("nothing synced yet")

// Scrub implements netproxy.Kernel. Any difference in the table is repaired by
// replacing the whole of it in one transaction: differences are rare, and the
// common path stays the only one that is used for repairs.
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
	if err := a.repairLocked(&report); err != nil {
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

func (a *Applier) repairLocked(report *netproxy.ScrubReport) error {
	if len(report.Findings) > 0 {
		a.log.Warn("nftables table differs from the plan; replacing it", "table", a.table, "findings", report.Findings, "omitted", report.Omitted)
		a.known = false
		if _, err := a.writeLocked(a.have); err != nil {
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
	if report.ForgottenFlows, err = a.forgetFlowsLocked(true); err != nil {
		return err
	}
	report.Repaired = len(report.Findings) > 0
	return nil
}

func (a *Applier) compareLocked(r *netproxy.Ruleset, report *netproxy.ScrubReport) error {
	if err := a.connectLocked(); err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: a.table}
	tables, err := a.conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == t.Name }) {
		report.Find("table %s is missing", t.Name)
		return nil
	}
	if err := a.compareChainsLocked(t, r, report); err != nil {
		return err
	}
	return a.compareSetsLocked(t, r, report)
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
	want := baseChains(r.Params)
	for _, n := range r.Classes() {
		want = append(want, classChain(n, r.Params))
	}
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

func (a *Applier) compareSetsLocked(t *nftables.Table, r *netproxy.Ruleset, report *netproxy.ScrubReport) error {
	listed, err := a.conn.GetSets(t)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	have := map[string]*nftables.Set{}
	for _, s := range listed {
		have[s.Name] = s
	}
	for name, elements := range wantedSets(r) {
		if err := a.compareSetLocked(have[name], name, elements, report); err != nil {
			return err
		}
		delete(have, name)
	}
	for name := range have {
		report.Find("set %s is not ours", name)
	}
	return nil
}

func (a *Applier) compareSetLocked(s *nftables.Set, name string, want map[string]string, report *netproxy.ScrubReport) error {
	report.Elements += len(want)
	if s == nil {
		report.Find("set %s is missing", name)
		return nil
	}
	elements, err := a.conn.GetSetElements(s)
	if err != nil {
		return fmt.Errorf("list elements of set %s: %w", name, err)
	}
	for _, e := range elements {
		value, err := elementValue(name, e)
		if err != nil {
			return fmt.Errorf("element %x of set %s: %w", e.Key, name, err)
		}
		wanted, found := want[string(e.Key)]
		switch {
		case !found:
			report.Find("set %s has an element too many: %x", name, e.Key)
		case wanted != value:
			report.Find("set %s, element %x: is %q, want %q", name, e.Key, value, wanted)
		}
		delete(want, string(e.Key))
	}
	for key := range want {
		report.Find("set %s lacks element %x", name, key)
	}
	return nil
}

// wantedSets lists every set of a ruleset with its elements, encoded.
func wantedSets(r *netproxy.Ruleset) map[string]map[string]string {
	sets := map[string]map[string]string{mapServices: {}, setNoEndpoints: {}, setHairpin: {}}
	for _, n := range r.Classes() {
		sets[slotsName(n)] = map[string]string{}
	}
	for _, s := range r.Services {
		if s.Class() == 0 {
			sets[setNoEndpoints][string(keyBytes(s.Key))] = ""
			continue
		}
		sets[mapServices][string(keyBytes(s.Key))] = "goto " + className(s.Class())
		for i, t := range s.Targets {
			sets[slotsName(s.Class())][string(slotBytes(s.Key, i))] = string(targetBytes(t))
		}
	}
	for _, a := range r.Hairpin {
		sets[setHairpin][string(hairpinBytes(a))] = ""
	}
	return sets
}

// elementValue is an element's value in the form of wantedSets. The library
// hands a verdict back undecoded.
func elementValue(set string, e nftables.SetElement) (string, error) {
	if set != mapServices {
		return string(e.Val), nil
	}
	d, err := mdnetlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return "", fmt.Errorf("decode verdict: %w", err)
	}
	kind, target := "verdict", ""
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_VERDICT_CODE:
			if code := d.Bytes(); bytes.Equal(code, verdictGoto()) {
				kind = "goto"
			}
		case unix.NFTA_VERDICT_CHAIN:
			target = d.String()
		}
	}
	if err := d.Err(); err != nil {
		return "", fmt.Errorf("decode verdict: %w", err)
	}
	return kind + " " + target, nil
}

// verdictGoto is NFT_GOTO, -4, in network byte order.
func verdictGoto() []byte { return []byte{0xff, 0xff, 0xff, 0xfc} }
