//go:build linux

package apply

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// Names of the fixed chains of the table.
const (
	chainTranslate    = "translate"
	chainFromOutside  = "from-outside"
	chainFirewall     = "firewall"
	chainMark         = "mark-for-masquerade"
	chainNoEndpoints  = "refuse-no-endpoints"
	chainNodePorts    = "refuse-node-ports"
	chainUnknown      = "refuse-unknown"
	chainPolicies     = "policies"
	chainRefuseFrom   = "refuse-ingress"
	chainRefuseTo     = "refuse-egress"
	chainReopeningIn  = "reopening-prerouting"
	chainReopeningOut = "reopening-output"
	chainPrerouting   = "nat-prerouting"
	chainOutput       = "nat-output"
	chainPostrouting  = "nat-postrouting"
	chainForward      = "filter-forward"
	chainFilterInput  = "filter-input"
	chainFilterOutput = "filter-output"
)

// masqueradeMark is a bit of the packet mark; kube-proxy's and Cilium's are
// others.
const masqueradeMark uint32 = 0x0200_0000

// Offsets in the IPv4 header.
const (
	sourceAddress      = 12
	destinationAddress = 16
)

// tcpFlags is the offset of the flags in the TCP header.
const tcpFlags = 13

// statusDestination is IPS_DST_NAT of the kernel: the destination is translated.
const statusDestination = 1 << 5

// ICMP codes of "destination unreachable".
const (
	icmpPort       = 3  // sockets report it as refused
	icmpProhibited = 13 // and this as no route to host
)

// learnedSize bounds the clients that a service's endpoint remembers; a client
// more is led anywhere.
const learnedSize = 1 << 16

// reg numbers the 4-byte registers, of which a concatenated key takes
// consecutive ones, in the way the kernel lists them: every fourth by the name
// of the 16-byte register that it begins. Scrub compares with that list.
func reg(i uint32) uint32 {
	if i%4 == 0 {
		return unix.NFT_REG_1 + i/4
	}
	return unix.NFT_REG32_00 + i
}

// chain is a chain of the table with its rules, in order.
type chain struct {
	name     string
	kind     nftables.ChainType // empty for a chain without hook
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// kernelSet is a declared set in the library's form.
func kernelSet(t *nftables.Table, s netproxy.Set) (*nftables.Set, error) {
	key, err := datatype(s.Key)
	if err != nil {
		return nil, err
	}
	out := &nftables.Set{Table: t, Name: s.Name, KeyType: key, Concatenation: len(s.Key) > 1, Interval: s.Intervals, Counter: s.Counted}
	switch {
	case s.Verdicts:
		out.IsMap, out.DataType = true, nftables.TypeVerdict
	case len(s.Data) > 0:
		out.IsMap = true
		if out.DataType, err = datatype(s.Data); err != nil {
			return nil, err
		}
	case s.Learned():
		out.HasTimeout, out.Timeout, out.Dynamic, out.Size = true, s.Timeout, true, learnedSize
	}
	return out, nil
}

func datatype(fields []netproxy.Field) (nftables.SetDatatype, error) {
	types := make([]nftables.SetDatatype, len(fields))
	for i, f := range fields {
		types[i] = map[netproxy.Field]nftables.SetDatatype{netproxy.FieldAddress: nftables.TypeIPAddr, netproxy.FieldProtocol: nftables.TypeInetProto,
			netproxy.FieldPort: nftables.TypeInetService, netproxy.FieldSlot: nftables.TypeMark}[f]
	}
	if len(types) == 1 {
		return types[0], nil
	}
	return nftables.ConcatSetType(types...)
}

// rule joins parts of a rule.
func rule(parts ...[]expr.Any) (out []expr.Any) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// innerChains have no hook. Callees come first.
func innerChains(p netproxy.Params) []chain {
	return []chain{
		{name: chainMark, rules: [][]expr.Any{setMark()}},
		{name: chainFirewall, rules: [][]expr.Any{
			rule(loadKey(), load(3, sourceAddress), inSet(netproxy.SetSources), verdict(expr.VerdictReturn)),
			verdict(expr.VerdictDrop),
		}},
		{name: chainFromOutside, rules: [][]expr.Any{
			rule(loadKey(), lookupVerdict(netproxy.SetOutside)),
			rule(notLoopback(), local(destinationAddress, expr.CmpOpEq), loadNodeKey(), lookupVerdict(netproxy.SetOutsideNodePorts)),
		}},
		{name: chainTranslate, rules: [][]expr.Any{
			rule(loadKey(), inSet(netproxy.SetRestricted), jump(chainFirewall)),
			rule(address(sourceAddress, p.PodCIDR, expr.CmpOpNeq), local(sourceAddress, expr.CmpOpNeq), jump(chainFromOutside)),
			rule(loadKey(), lookupVerdict(netproxy.SetServices)),
			rule(notLoopback(), local(destinationAddress, expr.CmpOpEq), loadNodeKey(), lookupVerdict(netproxy.SetNodePorts)),
		}},
		{name: chainNoEndpoints, rules: refuse(rule(loadKey(), inSet(netproxy.SetNoEndpoints)))},
		{name: chainNodePorts, rules: refuse(rule(notLoopback(), local(destinationAddress, expr.CmpOpEq), loadNodeKey(), inSet(netproxy.SetNoEndpointsNode)))},
		{name: chainUnknown, rules: refuse(address(destinationAddress, p.ServiceCIDR, expr.CmpOpEq))},
		{name: chainRefuseTo, rules: prohibit(sourceAddress, netproxy.SetEgressRefused)},
		{name: chainRefuseFrom, rules: prohibit(destinationAddress, netproxy.SetIngressRefused)},
		{name: chainPolicies, rules: [][]expr.Any{
			rule(load(0, sourceAddress), load(1, destinationAddress), inSet(netproxy.SetHairpin), verdict(expr.VerdictReturn)),
			rule(load(0, sourceAddress), lookupVerdict(netproxy.SetEgressPods)),
			rule(load(0, destinationAddress), lookupVerdict(netproxy.SetIngressPods)),
		}},
	}
}

// hookedChains are where packets come in. NAT chains see the first packet of a
// connection alone, and cannot refuse it, so filter chains do, after translation:
// what still carries the address of a front was not translated. What would reopen a
// connection that is over is dropped before it is translated, and so before the route
// to a pod that is gone is looked for.
func hookedChains() []chain {
	translate := [][]expr.Any{jump(chainTranslate)}
	known := rule(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	return []chain{
		{chainReopeningIn, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityMangle, reopening()},
		{chainReopeningOut, nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityMangle, reopening()},
		{chainPrerouting, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, translate},
		{chainOutput, nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest, translate},
		{chainPostrouting, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, append(
			masqueradeMarked(), masqueradeHairpin())},
		{chainForward, nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, [][]expr.Any{
			known, jump(chainPolicies), jump(chainNoEndpoints), jump(chainUnknown)}},
		{chainFilterInput, nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, [][]expr.Any{
			known, jump(chainNoEndpoints), jump(chainNodePorts)}},
		{chainFilterOutput, nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, [][]expr.Any{
			known, jump(chainNoEndpoints), jump(chainNodePorts), jump(chainUnknown)}},
	}
}

// plannedChain is a chain of the plan with its rules.
func plannedChain(c netproxy.Chain, p netproxy.Params) chain {
	out := chain{name: c.Name}
	switch c.Kind {
	case netproxy.ChainClass:
		out.rules = append(marking(c.Mark, p), choose(c))
	case netproxy.ChainAffinity:
		out.rules = append(marking(c.Mark, p), remembered(c.MemberNames())...)
	case netproxy.ChainAffinityEndpoint:
		// In a rule of its own: a set that is full ends the rule, and the
		// client is led to the endpoint all the same.
		out.rules = [][]expr.Any{
			rule(load(0, sourceAddress), one(&expr.Dynset{SrcRegKey: reg(0), SetName: c.Name, Operation: unix.NFT_DYNSET_OP_UPDATE})),
			translateTo(c.Target)}
	case netproxy.ChainProfile:
		refusal, other := chainRefuseFrom, uint32(sourceAddress)
		if c.Direction == netproxy.Egress {
			refusal, other = chainRefuseTo, destinationAddress
		}
		out.rules = [][]expr.Any{
			rule(loadNodeKey(), load(2, other), inSet(c.Name), verdict(expr.VerdictReturn)),
			one(&expr.Verdict{Kind: expr.VerdictGoto, Chain: refusal})}
	}
	return out
}

func marking(m netproxy.Mark, p netproxy.Params) [][]expr.Any {
	switch m {
	case netproxy.MarkAlways:
		return [][]expr.Any{jump(chainMark)}
	case netproxy.MarkForeign:
		return [][]expr.Any{rule(address(sourceAddress, p.PodCIDR, expr.CmpOpNeq), jump(chainMark))}
	}
	return nil
}

// choose translates to the target in a random slot.
func choose(c netproxy.Chain) []expr.Any {
	slots, _ := c.Set()
	key, n := loadKey(), uint32(3)
	if c.Table.Node() {
		key, n = loadNodeKey(), 2
	}
	// Data follow the key in registers of their own, whole 16-byte ones away.
	return rule(key, one(&expr.Numgen{Register: reg(n), Modulus: uint32(c.N), Type: unix.NFT_NG_RANDOM}),
		one(&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(4), IsDestRegSet: true, SetName: slots.Name}), dnat(4))
}

func dnat(r uint32) []expr.Any {
	return one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(r), RegAddrMax: reg(r), RegProtoMin: reg(r + 1), RegProtoMax: reg(r + 1), Specified: true})
}

func translateTo(t netproxy.Target) []expr.Any {
	ip := t.IP.As4()
	return rule(one(&expr.Immediate{Register: reg(0), Data: ip[:]}), one(&expr.Immediate{Register: reg(1), Data: binaryutil.BigEndian.PutUint16(t.Port)}), dnat(0))
}

// remembered leads a client to the endpoint that remembers it, and others to any
// with equal chance: the first of n with 1/n, the next with 1/(n-1) of the rest.
func remembered(members []string) (rules [][]expr.Any) {
	for _, m := range members {
		rules = append(rules, rule(load(0, sourceAddress), inSet(m), one(&expr.Verdict{Kind: expr.VerdictGoto, Chain: m})))
	}
	for i, m := range members {
		to := one(&expr.Verdict{Kind: expr.VerdictGoto, Chain: m})
		if left := len(members) - i; left > 1 {
			to = rule(one(&expr.Numgen{Register: reg(0), Modulus: uint32(left), Type: unix.NFT_NG_RANDOM}),
				one(&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: make([]byte, 4)}), to)
		}
		rules = append(rules, to)
	}
	return rules
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func jump(to string) []expr.Any { return one(&expr.Verdict{Kind: expr.VerdictJump, Chain: to}) }

func verdict(k expr.VerdictKind) []expr.Any { return one(&expr.Verdict{Kind: k}) }

// load puts an address of the IPv4 header into a register.
func load(r uint32, offset uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg(r), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4})
}

// loadPorts puts protocol and destination port into two registers from r on.
func loadPorts(r uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(r)},
		&expr.Payload{DestRegister: reg(r + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// loadKey puts destination address, protocol and destination port into
// consecutive registers.
func loadKey() []expr.Any { return rule(load(0, destinationAddress), loadPorts(1)) }

func loadNodeKey() []expr.Any { return loadPorts(0) }

func lookupVerdict(set string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set})
}

func inSet(set string) []expr.Any { return one(&expr.Lookup{SourceRegister: reg(0), SetName: set}) }

func isTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{byte(netproxy.TCP)}},
	}
}

// local compares the kind of an address with "one of this node".
func local(offset uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), ResultADDRTYPE: true, FlagSADDR: offset == sourceAddress, FlagDADDR: offset == destinationAddress},
		&expr.Cmp{Op: op, Register: reg(0), Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// notLoopback: the kernel does not route what is translated from 127.0.0.0/8.
func notLoopback() []expr.Any {
	return address(destinationAddress, netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8), expr.CmpOpNeq)
}

// state matches packets of connections in any of the states.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg(0), Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
	}
}

// reopening drops what would begin a connection and is taken for part of one that a
// pod has reset. A reset frees the client's port at once, but the kernel's tracking
// keeps the connection, closed, and leads a first packet from that port to the same
// pod (it begins anew only after a FIN, or a reset by the client: see
// nf_conntrack_tcp_packet). A pod that stops resets connections on which a request
// has just come in, and then it is gone. The client sends the packet again after a
// second (RFC 6298, section 2), and the closed connection lives no longer than that:
// node/podnet sets the time.
func reopening() [][]expr.Any {
	return [][]expr.Any{rule(begins(), state(expr.CtStateBitESTABLISHED), translated(), expiring(), verdict(expr.VerdictDrop))}
}

// begins matches the first packet of a TCP connection.
func begins() []expr.Any {
	const fin, syn, rst, ack = 1, 2, 4, 16
	return rule(isTCP(), []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{syn}},
	})
}

// translated matches packets of connections that go elsewhere than to where they
// are addressed.
func translated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg(0), Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDestination), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
	}
}

// expiring matches packets of connections that are forgotten within 1024 ms, as one
// that was reset is. A mask compares without the conversion of byte order that the
// library cannot read back.
func expiring() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg(0), Key: expr.CtKeyEXPIRATION},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^uint32(1024 - 1)), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: make([]byte, 4)},
	}
}

// address compares the address at an offset of the IPv4 header with a prefix.
func address(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	network := p.Masked().Addr().As4()
	return rule(load(0, offset), []expr.Any{
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg(0), Data: network[:]},
	})
}

func unreachable(code uint8) []expr.Any {
	return one(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code})
}

func reset() []expr.Any { return one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}) }

// refuse answers TCP with a reset and the rest with "port unreachable".
func refuse(match []expr.Any) [][]expr.Any {
	return [][]expr.Any{rule(isTCP(), match, reset()), rule(match, unreachable(icmpPort))}
}

// prohibit counts by the pod's address what no policy allows, and answers with a
// reset or "administratively prohibited". A packet that belongs to no connection
// is dropped without an answer: it may be a late copy, and a reset would kill the
// connection it is a copy of.
func prohibit(pod uint32, counted string) [][]expr.Any {
	return [][]expr.Any{
		rule(load(0, pod), inSet(counted)),
		rule(state(expr.CtStateBitINVALID), verdict(expr.VerdictDrop)),
		rule(isTCP(), reset()),
		unreachable(icmpProhibited),
	}
}

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
//
// What others send gets a random port, since two that choose the next free one at the
// same moment lose a packet. The node's own connections keep theirs, which nobody else
// has: a pod remembers a closed connection for a minute, and takes a new one with the same
// ports for a packet of the old one unless its time stamps go on, which begin elsewhere
// for other ports of the client (RFC 6191).
func masqueradeMarked() [][]expr.Any {
	bit := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: bit, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: bit},
	}
	unmark := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^masqueradeMark), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg(0)},
	}
	return [][]expr.Any{
		rule(marked, local(sourceAddress, expr.CmpOpEq), unmark, one(&expr.Masq{})),
		rule(marked, unmark, one(&expr.Masq{FullyRandom: true})),
	}
}

// masqueradeHairpin is for a pod that reaches itself through a service: it would
// otherwise answer itself directly, with an address it did not ask.
func masqueradeHairpin() []expr.Any {
	return rule(load(0, sourceAddress), load(1, destinationAddress), inSet(netproxy.SetHairpin), one(&expr.Masq{FullyRandom: true}))
}
