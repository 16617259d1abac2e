//go:build linux

package podnet

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// egressChain is one chain of the table and the rules in it.
type egressChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

// egressChains is what the table holds. Pods are unknown outside the cluster, so
// what they send there carries the node's address, but for the exceptions, whose
// side knows the way back; what goes to and from the local address, the resolver,
// is not tracked, since connection tracking drops one of two packets that race,
// which costs a resolver's client five seconds.
func (l *Linux) egressChains() []egressChain {
	masquerade := egressChain{name: "masquerade", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource}
	for _, p := range l.o.NoMasquerade {
		masquerade.rules = append(masquerade.rules, join(match(source, l.o.PodCIDR, expr.CmpOpEq), match(destination, p, expr.CmpOpEq), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}))
	}
	masquerade.rules = append(masquerade.rules, join(match(source, l.o.PodCIDR, expr.CmpOpEq), match(destination, l.o.ClusterCIDR, expr.CmpOpNeq), []expr.Any{&expr.Masq{FullyRandom: true}}))
	chains := []egressChain{masquerade}
	if !l.o.LocalAddress.IsValid() {
		return chains
	}
	local := netip.PrefixFrom(l.o.LocalAddress, l.o.LocalAddress.BitLen())
	untracked := [][]expr.Any{join(match(source, local, expr.CmpOpEq), []expr.Any{&expr.Notrack{}}), join(match(destination, local, expr.CmpOpEq), []expr.Any{&expr.Notrack{}})}
	return append(chains,
		egressChain{"untracked-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, untracked},
		egressChain{"untracked-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, untracked})
}

func join(parts ...[]expr.Any) (out []expr.Any) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func (l *Linux) nft() (*nftables.Conn, error) {
	var options []nftables.ConnOption
	if l.ns != nil {
		options = append(options, nftables.WithNetNSFd(int(l.ns.Fd())))
	}
	return nftables.New(options...)
}

// mendEgress compares the table with what it should hold, and if anything differs
// writes it in one transaction, whatever it held.
func (l *Linux) mendEgress(m *mending) {
	c, err := l.nft()
	if err != nil {
		m.failed(err)
		return
	}
	want := l.egressChains()
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: l.o.Table}
	have, err := chainsOf(c, t)
	if err != nil {
		m.failed(fmt.Errorf("read table %s: %w", t.Name, err))
		return
	}
	why, err := egressDiffers(c, t, have, want)
	if err != nil {
		m.failed(fmt.Errorf("read table %s: %w", t.Name, err))
		return
	}
	if why == "" {
		return
	}
	writeEgress(c, t, have, want)
	if err = c.Flush(); err == nil {
		m.did(nil, "nftables table %s: %s", t.Name, why)
		return
	}
	// Somebody has put in what holds on to a chain that is not ours.
	c.AddTable(t) // deleting what is not there fails
	c.DelTable(t)
	writeEgress(c, t, nil, want)
	m.did(c.Flush(), "nftables table %s: %s; made anew, since it could not be changed: %v", t.Name, why, err)
}

// writeEgress gives chains that are where they should be other rules, which is one
// moment for a packet. A chain that is deleted and one in its place are two, and a
// packet may see neither.
func writeEgress(c *nftables.Conn, t *nftables.Table, have map[string]*nftables.Chain, want []egressChain) {
	c.AddTable(t)
	extra := maps.Clone(have)
	for _, w := range want {
		at := have[w.name]
		if !w.hooked(at) {
			if at != nil {
				c.FlushChain(at)
				c.DelChain(at)
			}
			at = c.AddChain(&nftables.Chain{Name: w.name, Table: t, Type: w.kind, Hooknum: w.hook, Priority: w.priority})
		} else {
			c.FlushChain(at)
		}
		for _, rule := range w.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: at, Exprs: rule, UserData: ruleMark(rule)})
		}
		delete(extra, w.name)
	}
	for _, chain := range extra {
		c.FlushChain(chain)
	}
	for _, chain := range extra {
		c.DelChain(chain)
	}
}

// hooked reports that a chain of the kernel sees the packets that this one should.
func (w *egressChain) hooked(have *nftables.Chain) bool {
	return have != nil && have.Type == w.kind && have.Hooknum != nil && *have.Hooknum == *w.hook && have.Priority != nil && *have.Priority == *w.priority
}

// chainsOf lists the chains of a table by name; none if there is no table.
func chainsOf(c *nftables.Conn, t *nftables.Table) (map[string]*nftables.Chain, error) {
	all, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, err
	}
	out := map[string]*nftables.Chain{}
	for _, chain := range all {
		if chain.Table.Name == t.Name {
			out[chain.Name] = chain
		}
	}
	return out, nil
}

// egressDiffers tells the first difference between the table and what it should
// hold. Rules are told by their marks: the kernel's own form is not ours.
func egressDiffers(c *nftables.Conn, t *nftables.Table, have map[string]*nftables.Chain, want []egressChain) (string, error) {
	if len(have) == 0 {
		return "it was not there", nil
	}
	for _, w := range want {
		chain := have[w.name]
		if !w.hooked(chain) {
			return "chain " + w.name + " was not there or elsewhere", nil
		}
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return "", err
		}
		if len(rules) != len(w.rules) {
			return fmt.Sprintf("chain %s had %d rules, not %d", w.name, len(rules), len(w.rules)), nil
		}
		for i, r := range rules {
			if string(r.UserData) != string(ruleMark(w.rules[i])) {
				return fmt.Sprintf("rule %d of chain %s was another", i+1, w.name), nil
			}
		}
	}
	if len(have) != len(want) {
		return fmt.Sprintf("it had %d chains, not %d", len(have), len(want)), nil
	}
	return "", nil
}

// markBytes is how much of a rule's hash marks it.
const markBytes = 8

// ruleMark is kept by the kernel with a rule. Nothing but a new rule changes it,
// so a rule that was replaced by hand is found.
func ruleMark(rule []expr.Any) []byte {
	h := sha256.New()
	for _, e := range rule {
		fmt.Fprintf(h, "%T%+v;", e, e)
	}
	return h.Sum(nil)[:markBytes]
}

// headerOffset is the place of an address in the IPv4 header.
type headerOffset uint32

const (
	source      headerOffset = 12
	destination headerOffset = 16
)

func match(at headerOffset, p netip.Prefix, op expr.CmpOp) []expr.Any {
	network := p.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(at), Len: 4},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: network[:]},
	}
}
