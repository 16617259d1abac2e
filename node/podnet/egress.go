//go:build linux

package podnet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ensureEgress writes the table in one transaction, whatever it held: pods are
// unknown outside the cluster, so what they send there carries the node's
// address; what goes to and from the local address, the resolver, is not
// tracked, since connection tracking drops one of two packets that race, which
// costs a resolver's client five seconds.
func (l *Linux) ensureEgress() error {
	var options []nftables.ConnOption
	if l.ns != nil {
		options = append(options, nftables.WithNetNSFd(int(l.ns.Fd())))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: l.o.Table}
	c.AddTable(t) // deleting what is not there fails
	c.DelTable(t)
	c.AddTable(t)
	masquerade := c.AddChain(&nftables.Chain{Name: "masquerade", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: t, Chain: masquerade, Exprs: append(append(
		match(source, l.o.PodCIDR, expr.CmpOpEq), match(destination, l.o.ClusterCIDR, expr.CmpOpNeq)...),
		&expr.Masq{FullyRandom: true})})
	if l.o.LocalAddress.IsValid() {
		l.addUntracked(c, t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("table %s: %w", l.o.Table, err)
	}
	return nil
}

func (l *Linux) addUntracked(c *nftables.Conn, t *nftables.Table) {
	local := netip.PrefixFrom(l.o.LocalAddress, l.o.LocalAddress.BitLen())
	for name, hook := range map[string]*nftables.ChainHook{"untracked-in": nftables.ChainHookPrerouting, "untracked-out": nftables.ChainHookOutput} {
		chain := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw})
		for _, side := range []headerOffset{source, destination} {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match(side, local, expr.CmpOpEq), &expr.Notrack{})})
		}
	}
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
