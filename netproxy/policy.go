package netproxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// Direction of a connection, as seen by the pod that a policy selects.
type Direction uint8

// Ingress and Egress, as in a policy's policyTypes.
const (
	Ingress Direction = iota + 1
	Egress
)

// String is the API's name.
func (d Direction) String() string {
	if d == Egress {
		return "Egress"
	}
	return "Ingress"
}

// Policy is a NetworkPolicy whose selectors have been resolved to addresses.
type Policy struct {
	Namespace, Name string
	Generation      int64
	selector        object.Selector
	// limits says which directions the policy isolates.
	limits map[Direction]bool
	rules  []rule
}

// rule allows connections; index is its place in the policy.
type rule struct {
	direction Direction
	index     int
	// ports: none means every port of every protocol.
	ports []portMatch
	peers []peer
}

// portMatch is a port of the end that is connected to: a range, or a name.
type portMatch struct {
	protocol    Protocol
	first, last uint16
	name        string
}

// peer is one peer of a rule: its addresses, and for pods their named ports.
type peer struct {
	ranges []addrRange
	named  []namedPeer
}

type namedPeer struct {
	address addrRange
	port    NamedPort
}

// box is what a rule allows a pod: a protocol (0: every one), ports, addresses.
type box struct {
	protocol    Protocol
	first, last uint16
	peers       []addrRange
	policy      *Policy
	rule        int
}

func (b *box) matches(p Protocol, port uint16, other netip.Addr) bool {
	return (b.protocol == 0 || b.protocol == p) && b.first <= port && port <= b.last && coversAddr(b.peers, other)
}

func policyObject(namespace, name string) string { return "networkpolicies/" + namespace + "/" + name }

type policyReader struct {
	policy   *Policy
	resolved map[peerIndex]*balsav1.ResolvedPeer
	problems []Problem
}

type peerIndex struct {
	direction  string
	rule, peer int32
}

// policyPair is a policy and what servers derived from it, as far as either is
// known.
type policyPair struct {
	policy *balsav1.NetworkPolicy
	slice  *balsav1.NetworkPolicySlice
}

// whole reports that the slice says all there is to know: what the policy asks for
// and whom its selectors stand for, of one generation.
func (p policyPair) whole() bool { return p.slice.GetPolicy() != nil }

// resolved reports that the slice was derived from this very policy.
func (p policyPair) resolved() bool {
	if p.slice == nil || p.slice.GetObservedGeneration() != p.policy.GetMetadata().GetGeneration() {
		return false
	}
	owner := object.ControllerOf(p.slice) // one of the same name that is gone had generations as well
	return owner == nil || owner.GetUid() == p.policy.GetMetadata().GetUid()
}

// begun reports that something is enforced.
func (p policyPair) begun() bool { return p.whole() || p.policy != nil && p.slice != nil }

// pending reports that the policy as users wrote it has not begun: the slice of its
// generation is not there.
func (p policyPair) pending() bool {
	return p.policy != nil && !object.IsTerminating(p.policy) && !p.resolved()
}

// read makes what is enforced; nil if nothing is. A slice with a copy of the policy
// is enforced as it is, whatever is known of the policy itself: so a policy begins,
// changes and ends in one step. To a slice without one (of servers that do not
// write it) the policy's own spec is taken, and peers given by selectors stand for
// nobody unless the slice is of its generation: addresses of another generation may
// belong to other rules.
func (p policyPair) read() (*Policy, []Problem) {
	r := policyReader{resolved: map[peerIndex]*balsav1.ResolvedPeer{}}
	spec := p.slice.GetPolicy()
	switch {
	case p.whole():
		m := p.slice.GetMetadata()
		r.policy = &Policy{Namespace: m.GetNamespace(), Name: m.GetName(), Generation: p.slice.GetObservedGeneration()}
		r.takeAddresses(p.slice)
	case !p.begun():
		return nil, nil
	default:
		m := p.policy.GetMetadata()
		r.policy, spec = &Policy{Namespace: m.GetNamespace(), Name: m.GetName(), Generation: m.GetGeneration()}, p.policy.GetSpec()
		if p.resolved() {
			r.takeAddresses(p.slice)
		} else if needsSlice(p.policy) {
			r.problem("its selectors are not resolved for generation %d yet; connections that it allows by selectors are refused until then", m.GetGeneration())
		}
	}
	if err := r.read(spec); err != nil {
		r.problem("%v; the pods it means cannot be told, it limits none", err)
		return nil, r.problems
	}
	return r.policy, r.problems
}

func (r *policyReader) takeAddresses(slice *balsav1.NetworkPolicySlice) {
	for _, peer := range slice.GetPeers() {
		r.resolved[peerIndex{peer.GetDirection(), peer.GetRule(), peer.GetPeer()}] = peer
	}
	if n := slice.GetLeftOut(); n > 0 {
		r.problem("%d addresses are over a limit; their connections are refused", n)
	}
}

// selectorOf is the policy's of the pods that it limits; absent is the same as empty.
func selectorOf(spec *balsav1.NetworkPolicySpec) (object.Selector, error) {
	if spec.GetPodSelector() == nil {
		return object.SelectorFromLabels(nil), nil
	}
	s, err := object.SelectorFrom(spec.GetPodSelector())
	if err != nil {
		return s, fmt.Errorf("spec.podSelector: %w", err)
	}
	return s, nil
}

func needsSlice(p *balsav1.NetworkPolicy) bool {
	selects := func(peers []*balsav1.NetworkPolicyPeer) bool {
		return slices.ContainsFunc(peers, func(p *balsav1.NetworkPolicyPeer) bool { return p.GetIpBlock() == nil })
	}
	return slices.ContainsFunc(p.GetSpec().GetIngress(), func(r *balsav1.NetworkPolicyIngressRule) bool { return selects(r.GetFrom()) }) ||
		slices.ContainsFunc(p.GetSpec().GetEgress(), func(r *balsav1.NetworkPolicyEgressRule) bool { return selects(r.GetTo()) })
}

func (r *policyReader) problem(format string, args ...any) {
	r.problems = append(r.problems, Problem{Object: policyObject(r.policy.Namespace, r.policy.Name), Reason: fmt.Sprintf(format, args...)})
}

func (r *policyReader) read(spec *balsav1.NetworkPolicySpec) (err error) {
	if r.policy.selector, err = selectorOf(spec); err != nil {
		return err
	}
	r.policy.limits = policyTypes(spec)
	for i, in := range spec.GetIngress() {
		r.rule(Ingress, i, in.GetPorts(), in.GetFrom())
	}
	for i, out := range spec.GetEgress() {
		r.rule(Egress, i, out.GetPorts(), out.GetTo())
	}
	return nil
}

func policyTypes(spec *balsav1.NetworkPolicySpec) map[Direction]bool {
	if len(spec.GetPolicyTypes()) == 0 {
		return map[Direction]bool{Ingress: true, Egress: len(spec.GetEgress()) > 0}
	}
	return map[Direction]bool{Ingress: slices.Contains(spec.GetPolicyTypes(), Ingress.String()),
		Egress: slices.Contains(spec.GetPolicyTypes(), Egress.String())}
}

func (r *policyReader) rule(d Direction, index int, ports []*balsav1.NetworkPolicyPort, peers []*balsav1.NetworkPolicyPeer) {
	out := rule{direction: d, index: index}
	where := fmt.Sprintf("spec.%s[%d]", strings.ToLower(d.String()), index)
	for i, p := range ports {
		m, err := readPort(p)
		if err != nil {
			r.problem("%s.ports[%d]: %v; it allows nothing", where, i, err)
			continue
		}
		out.ports = append(out.ports, m)
	}
	if len(ports) > 0 && len(out.ports) == 0 {
		return // no ports would mean every port
	}
	if len(peers) == 0 {
		out.peers = []peer{{ranges: []addrRange{everywhere()}}}
	}
	for i, p := range peers {
		got, err := r.peer(d, index, i, p)
		if err != nil {
			r.problem("%s.peers[%d]: %v; it allows nothing", where, i, err)
			continue
		}
		out.peers = append(out.peers, got)
	}
	if d == Egress && slices.ContainsFunc(out.ports, func(m portMatch) bool { return m.name != "" }) &&
		(len(peers) == 0 || slices.ContainsFunc(peers, func(p *balsav1.NetworkPolicyPeer) bool { return p.GetIpBlock() != nil })) {
		r.problem("%s: a port's name means something for pods only; for other addresses use a number", where)
	}
	r.policy.rules = append(r.policy.rules, out)
}

func readPort(p *balsav1.NetworkPolicyPort) (portMatch, error) {
	protocol, err := ParseProtocol(p.GetProtocol())
	if err != nil {
		return portMatch{}, err
	}
	m := portMatch{protocol: protocol, last: 65535}
	switch v := p.GetPort().GetValue().(type) {
	case *balsav1.IntOrString_String_:
		m.name = v.String_
	case *balsav1.IntOrString_Int:
		last := v.Int
		if p.EndPort != nil {
			last = p.GetEndPort()
		}
		if v.Int < 1 || last < v.Int || last > 65535 {
			return portMatch{}, fmt.Errorf("ports %d to %d are no range within 1 to 65535", v.Int, last)
		}
		m.first, m.last = uint16(v.Int), uint16(last)
	}
	return m, nil
}

func (r *policyReader) peer(d Direction, rule, index int, p *balsav1.NetworkPolicyPeer) (peer, error) {
	if block := p.GetIpBlock(); block != nil {
		ranges, err := readBlock(block)
		return peer{ranges: ranges}, err
	}
	var out peer
	for _, pod := range r.resolved[peerIndex{d.String(), int32(rule), int32(index)}].GetPods() {
		ip, err := netip.ParseAddr(pod.GetIp())
		if err != nil || !ip.Is4() {
			r.problem("pod %s/%s: address %q is not IPv4; it is left out", pod.GetNamespace(), pod.GetName(), pod.GetIp())
			continue
		}
		out.ranges = append(out.ranges, oneAddr(ip))
		for _, port := range pod.GetPorts() {
			protocol, err := ParseProtocol(port.GetProtocol())
			if err != nil || port.GetPort() < 1 || port.GetPort() > 65535 {
				continue // no port that a connection could have
			}
			out.named = append(out.named, namedPeer{oneAddr(ip), NamedPort{Name: port.GetName(), Protocol: protocol, Port: uint16(port.GetPort())}})
		}
	}
	out.ranges = union(out.ranges)
	return out, nil
}

func readBlock(b *balsav1.IPBlock) ([]addrRange, error) {
	cidr, err := parsePrefix(b.GetCidr())
	if err != nil {
		return nil, fmt.Errorf("ipBlock.cidr: %w", err)
	}
	var except []addrRange
	for _, text := range b.GetExcept() {
		p, err := parsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("ipBlock.except: %w", err)
		}
		except = append(except, prefixRange(p))
	}
	return subtract([]addrRange{prefixRange(cidr)}, union(except)), nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q is not a prefix such as 10.0.0.0/8", text)
	}
	if !p.Addr().Is4() {
		return p, fmt.Errorf("%s is not IPv4; only IPv4 is supported", text)
	}
	return p, nil
}

// selects reports whether the policy limits the pod in a direction.
func (p *Policy) selects(pod *LocalPod, d Direction) bool {
	return p.limits[d] && p.Namespace == pod.Namespace && p.selector.Matches(pod.Labels)
}

// boxes are what the policy allows a pod in a direction. The named ports of an
// ingress rule are the pod's own, those of an egress rule its peers'.
func (p *Policy) boxes(pod *LocalPod, d Direction) []box {
	var out []box
	for i := range p.rules {
		r := &p.rules[i]
		if r.direction != d {
			continue
		}
		for j := range r.peers {
			out = r.peers[j].boxes(out, box{policy: p, rule: r.index, last: 65535}, r.ports, pod, d)
		}
	}
	return out
}

func (e *peer) boxes(out []box, b box, ports []portMatch, pod *LocalPod, d Direction) []box {
	b.peers = e.ranges
	if len(ports) == 0 {
		return append(out, b)
	}
	for _, m := range ports {
		b.protocol, b.first, b.last, b.peers = m.protocol, m.first, m.last, e.ranges
		switch {
		case m.name == "":
			out = append(out, b)
		case d == Ingress:
			for _, n := range pod.Ports {
				if n.Name == m.name && n.Protocol == m.protocol {
					b.first, b.last = n.Port, n.Port
					out = append(out, b)
				}
			}
		default:
			for _, n := range e.named {
				if n.port.Name == m.name && n.port.Protocol == m.protocol {
					b.first, b.last, b.peers = n.port.Port, n.port.Port, []addrRange{n.address}
					out = append(out, b)
				}
			}
		}
	}
	return out
}

func comparePolicies(a, b *Policy) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
