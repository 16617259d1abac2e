package object

import (
	"slices"
	"strconv"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of NetworkPolicies.
const (
	// maxPolicyRules bounds the rules of each direction.
	maxPolicyRules = 256
	// maxPolicyPeers bounds the peers of a rule.
	maxPolicyPeers = 256
	// maxPolicyPorts bounds the ports of a rule.
	maxPolicyPorts = 256
	// maxPolicyExcept bounds the exceptions of an ipBlock.
	maxPolicyExcept = 256
)

// MaxResolvedPods bounds the pods of one NetworkPolicySlice, over all its peers.
const MaxResolvedPods = 10_000

func (c *check) networkPolicy(spec *balsav1.NetworkPolicySpec) {
	c.selector("spec.podSelector", spec.GetPodSelector())
	c.policyTypes(spec)
	if c.atMost("spec.ingress", len(spec.GetIngress()), maxPolicyRules, "rules") {
		for i, rule := range spec.GetIngress() {
			here := index("spec.ingress", i)
			c.policyPorts(field(here, "ports"), rule.GetPorts())
			c.policyPeers(field(here, "from"), rule.GetFrom())
		}
	}
	if c.atMost("spec.egress", len(spec.GetEgress()), maxPolicyRules, "rules") {
		for i, rule := range spec.GetEgress() {
			here := index("spec.egress", i)
			c.policyPorts(field(here, "ports"), rule.GetPorts())
			c.policyPeers(field(here, "to"), rule.GetTo())
		}
	}
}

// policyTypes also refuses rules of a direction that the types leave out: they
// would not be looked at.
func (c *check) policyTypes(spec *balsav1.NetworkPolicySpec) {
	const path = "spec.policyTypes"
	types := spec.GetPolicyTypes()
	if !c.atMost(path, len(types), 2, "types") {
		return
	}
	for i, t := range types {
		c.oneOf(index(path, i), t, []string{PolicyIngress, PolicyEgress})
		if slices.Contains(types[:i], t) {
			c.duplicate(index(path, i), quoted(t))
		}
	}
	for _, d := range []struct {
		path, direction string
		rules           int
	}{{"spec.ingress", PolicyIngress, len(spec.GetIngress())}, {"spec.egress", PolicyEgress, len(spec.GetEgress())}} {
		if d.rules > 0 && !slices.Contains(types, d.direction) {
			c.add(Violation{Field: d.path, Message: "has rules, and policyTypes leaves the direction out, so that they would mean nothing", Hint: "add " + d.direction + " to spec.policyTypes, or remove the rules"})
		}
	}
}

func (c *check) policyPorts(path string, ports []*balsav1.NetworkPolicyPort) {
	if !c.atMost(path, len(ports), maxPolicyPorts, "ports") {
		return
	}
	for i, p := range ports {
		c.policyPort(index(path, i), p)
	}
}

func (c *check) policyPort(path string, p *balsav1.NetworkPolicyPort) {
	c.protocol(field(path, "protocol"), p.GetProtocol())
	end := field(path, "endPort")
	if p.GetPort() == nil {
		if p.EndPort != nil {
			c.add(Violation{Field: end, Message: "has no meaning without port", Hint: "add port, where the range begins, or remove endPort"})
		}
		return
	}
	c.targetPort(field(path, "port"), p.GetPort())
	_, isName := p.GetPort().GetValue().(*balsav1.IntOrString_String_)
	switch first := p.GetPort().GetInt(); {
	case p.EndPort == nil:
	case isName:
		c.add(Violation{Field: end, Message: "needs a number in port", Found: strconv.Itoa(int(p.GetEndPort())), Hint: "give the range as two numbers"})
	case p.GetEndPort() < first || !validPort(p.GetEndPort()):
		c.add(Violation{Field: end, Message: "is out of range", Found: strconv.Itoa(int(p.GetEndPort())), Allowed: strconv.Itoa(int(max(first, 1))) + " to " + strconv.Itoa(maxPort)})
	}
}

func (c *check) policyPeers(path string, peers []*balsav1.NetworkPolicyPeer) {
	if !c.atMost(path, len(peers), maxPolicyPeers, "peers") {
		return
	}
	for i, p := range peers {
		here := index(path, i)
		selects := p.GetPodSelector() != nil || p.GetNamespaceSelector() != nil
		switch {
		case p.GetIpBlock() != nil && selects:
			c.add(Violation{Field: field(here, "ipBlock"), Message: "excludes podSelector and namespaceSelector, which are also set", Allowed: "selectors, or ipBlock", Hint: "make two peers of it"})
		case p.GetIpBlock() != nil:
			c.ipBlock(field(here, "ipBlock"), p.GetIpBlock())
		case !selects:
			c.required(here, "give podSelector, namespaceSelector or ipBlock; an empty selector, {}, matches everything")
		}
		c.selector(field(here, "podSelector"), p.GetPodSelector())
		c.selector(field(here, "namespaceSelector"), p.GetNamespaceSelector())
	}
}

func (c *check) ipBlock(path string, block *balsav1.IPBlock) {
	if block.GetCidr() == "" {
		c.required(field(path, "cidr"), "0.0.0.0/0 is every address")
		return
	}
	whole, ok := c.prefix(field(path, "cidr"), block.GetCidr())
	here := field(path, "except")
	if !c.atMost(here, len(block.GetExcept()), maxPolicyExcept, "prefixes") {
		return
	}
	for i, text := range block.GetExcept() {
		part, good := c.prefix(index(here, i), text)
		if ok && good && (part.Bits() <= whole.Bits() || !whole.Contains(part.Addr())) {
			c.add(Violation{Field: index(here, i), Message: "is not a part of cidr", Found: quoted(text), Allowed: "a prefix within " + whole.String() + ", and smaller"})
		}
	}
}

// policySlice checks what reconciler/policies writes.
func (c *check) policySlice(m *balsav1.NetworkPolicySlice) {
	pods := 0
	for i, peer := range m.GetPeers() {
		here := index("peers", i)
		c.oneOf(field(here, "direction"), peer.GetDirection(), []string{PolicyIngress, PolicyEgress})
		c.between(field(here, "rule"), int64(peer.GetRule()), 0, maxPolicyRules-1)
		c.between(field(here, "peer"), int64(peer.GetPeer()), 0, maxPolicyPeers-1)
		pods += len(peer.GetPods())
		if !c.atMost(field(here, "pods"), pods, MaxResolvedPods, "pods, together with those of the peers before") {
			return
		}
		for j, pod := range peer.GetPods() {
			at := index(field(here, "pods"), j)
			c.ipv4(field(at, "ip"), pod.GetIp(), "an IPv4 address")
			for k, p := range pod.GetPorts() {
				c.port(field(index(field(at, "ports"), k), "port"), p.GetPort())
				c.protocol(field(index(field(at, "ports"), k), "protocol"), p.GetProtocol())
			}
		}
	}
}

func (c *check) budget(spec *balsav1.PodDisruptionBudgetSpec) {
	least, most := spec.GetMinAvailable(), spec.GetMaxUnavailable()
	switch {
	case least != nil && most != nil:
		c.add(Violation{Field: "spec.maxUnavailable", Message: "excludes minAvailable, which is also set", Allowed: "one of the two"})
	case least == nil && most == nil:
		c.required("spec.minAvailable", "give minAvailable or maxUnavailable, a number or a percentage")
	}
	if least != nil {
		c.intOrPercent("spec.minAvailable", least, 100)
	}
	if most != nil {
		c.intOrPercent("spec.maxUnavailable", most, 100)
	}
	c.selector("spec.selector", spec.GetSelector())
	if spec.UnhealthyPodEvictionPolicy != nil {
		c.oneOf("spec.unhealthyPodEvictionPolicy", spec.GetUnhealthyPodEvictionPolicy(), []string{EvictIfHealthyBudget, EvictAlwaysAllow})
	}
}
