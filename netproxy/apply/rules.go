//go:build linux

package apply

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// Names of the fixed objects of the table. "n<N>" and "slots<N>" come with the
// classes.
const (
	mapServices    = "services"
	setNoEndpoints = "no-endpoints"
	setHairpin     = "hairpin"

	chainTranslate   = "translate"
	chainMark        = "mark-for-masquerade"
	chainNoEndpoints = "refuse-no-endpoints"
	chainUnknown     = "refuse-unknown"
	chainPrerouting  = "nat-prerouting"
	chainOutput      = "nat-output"
	chainPostrouting = "nat-postrouting"
	chainForward     = "filter-forward"
	chainFilterOut   = "filter-output"
	chainFilterLate  = "filter-output-late"
)

const (
	// masqueradeMark is a bit of the packet mark; kube-proxy's and Cilium's
	// are others.
	masqueradeMark uint32 = 0x0200_0000
	// priorityRefuse is just before destination NAT (-100), where a local
	// packet still carries the virtual address.
	priorityRefuse nftables.ChainPriority = -110
)

// reg numbers the 4-byte registers, of which a concatenated key takes
// consecutive ones, in the way the kernel lists them: every fourth by the name
// of the 16-byte register that it begins. Scrub compares with that list.
func reg(i uint32) uint32 {
	if i%4 == 0 {
		return unix.NFT_REG_1 + i/4
	}
	return unix.NFT_REG32_00 + i
}

func className(n int) string { return fmt.Sprintf("n%d", n) }
func slotsName(n int) string { return fmt.Sprintf("slots%d", n) }

// chain is a chain of the table with its rules, in order.
type chain struct {
	name     string
	kind     nftables.ChainType // empty for a chain without hook
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// baseSets are the sets that do not depend on services.
func baseSets(t *nftables.Table) ([]*nftables.Set, error) {
	key, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return nil, err
	}
	pair, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	if err != nil {
		return nil, err
	}
	return []*nftables.Set{
		{Table: t, Name: mapServices, IsMap: true, Concatenation: true, KeyType: key, DataType: nftables.TypeVerdict},
		{Table: t, Name: setNoEndpoints, Concatenation: true, KeyType: key},
		{Table: t, Name: setHairpin, Concatenation: true, KeyType: pair},
	}, nil
}

func slotsSet(t *nftables.Table, n int) (*nftables.Set, error) {
	key, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark)
	if err != nil {
		return nil, err
	}
	target, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return nil, err
	}
	return &nftables.Set{Table: t, Name: slotsName(n), IsMap: true, Concatenation: true, KeyType: key, DataType: target}, nil
}

// baseChains are the chains that do not depend on services. Callees come first.
func baseChains(p netproxy.Params) []chain {
	translate := [][]expr.Any{{jump(chainTranslate)}}
	refuse := [][]expr.Any{{jump(chainNoEndpoints)}}
	return []chain{
		{name: chainMark, rules: [][]expr.Any{setMark()}},
		{name: chainTranslate, rules: [][]expr.Any{append(loadKey(), lookupVerdict(mapServices))}},
		{name: chainNoEndpoints, rules: [][]expr.Any{
			append(isTCP(), append(append(loadKey(), inSet(setNoEndpoints)), reset())...),
			append(append(loadKey(), inSet(setNoEndpoints)), unreachable()),
		}},
		{name: chainUnknown, rules: [][]expr.Any{
			append(isTCP(), append(address(16, p.ServiceCIDR, expr.CmpOpEq), reset())...),
			append(address(16, p.ServiceCIDR, expr.CmpOpEq), unreachable()),
		}},
		{chainPrerouting, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, translate},
		{chainOutput, nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest, translate},
		{chainPostrouting, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, [][]expr.Any{
			masqueradeMarked(), masqueradeHairpin()}},
		// NAT chains cannot refuse, so filter chains do. On the forward path
		// translation is already done: what still carries a virtual address
		// is unknown. On the way out it happens between two chains.
		{chainForward, nftables.ChainTypeFilter, nftables.ChainHookForward, priorityRefuse, [][]expr.Any{
			{jump(chainNoEndpoints)}, {jump(chainUnknown)}}},
		{chainFilterOut, nftables.ChainTypeFilter, nftables.ChainHookOutput, priorityRefuse, refuse},
		{chainFilterLate, nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, [][]expr.Any{
			{jump(chainUnknown)}}},
	}
}

// classChain translates every service that has n endpoints.
func classChain(n int, p netproxy.Params) chain {
	return chain{name: className(n), rules: [][]expr.Any{
		append(address(12, p.PodCIDR, expr.CmpOpNeq), jump(chainMark)),
		append(loadKey(),
			&expr.Numgen{Register: reg(3), Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(4), IsDestRegSet: true, SetName: slotsName(n)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(4), RegAddrMax: reg(4), RegProtoMin: reg(5), RegProtoMax: reg(5), Specified: true}),
	}}
}

func jump(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: to} }

// loadKey puts destination address, protocol and destination port into
// consecutive registers.
func loadKey() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(1)},
		&expr.Payload{DestRegister: reg(2), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func lookupVerdict(set string) expr.Any {
	return &expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set}
}

func inSet(set string) expr.Any { return &expr.Lookup{SourceRegister: reg(0), SetName: set} }

func isTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{byte(netproxy.TCP)}},
	}
}

// address compares the address at an offset of the IPv4 header (12 source, 16
// destination) with a prefix.
func address(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	network := p.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg(0), Data: network[:]},
	}
}

func reset() expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// unreachable is ICMP "port unreachable", which sockets report as refused.
func unreachable() expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} }

func setMark() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^masqueradeMark), Xor: binaryutil.NativeEndian.PutUint32(masqueradeMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg(0)},
	}
}

// masqueradeMarked also takes the mark off, so that a packet that is wrapped
// into another does not hand it on.
func masqueradeMarked() []expr.Any {
	bit := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: bit, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: bit},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^masqueradeMark), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg(0)},
		&expr.Masq{FullyRandom: true},
	}
}

// masqueradeHairpin is for a pod that reaches itself through a service: it would
// otherwise answer itself directly, with an address it did not ask.
func masqueradeHairpin() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Payload{DestRegister: reg(1), Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		inSet(setHairpin),
		&expr.Masq{FullyRandom: true},
	}
}
