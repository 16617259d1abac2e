package netproxytest

import (
	"net/netip"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/object"
)

// Expectation is what must become of a packet.
type Expectation struct {
	Outcome netproxy.Outcome
	Targets map[netproxy.Target]bool
	// SourceKept: the target sees the client's own address; else one of the node
	// (unless the client is the node).
	SourceKept bool
}

// claimed is a way to a service port, with its rank among those who want the
// same key.
type claimed struct {
	rank     int
	object   string
	service  *balsav1.Service
	port     *balsav1.ServicePort
	external bool
	balancer bool
	pod      *Pod
	target   netproxy.Target
}

// Expect reads the objects as a person would.
func (w *World) Expect(p netproxy.Packet) Expectation {
	c := w.claim(p, false)
	if c == nil && p.ToNode {
		c = w.claim(p, true)
	}
	switch {
	case c == nil && w.Node.ServiceCIDR.Contains(p.To):
		return Expectation{Outcome: netproxy.Refuses}
	case c == nil:
		return Expectation{}
	case c.pod != nil:
		return Expectation{Outcome: netproxy.Translates, Targets: map[netproxy.Target]bool{c.target: true}, SourceKept: true}
	}
	return w.serve(p, c)
}

func (w *World) serve(p netproxy.Packet, c *claimed) Expectation {
	spec := c.service.GetSpec()
	if c.balancer && len(spec.GetLoadBalancerSourceRanges()) > 0 && !inAny(spec.GetLoadBalancerSourceRanges(), p.From) {
		return Expectation{Outcome: netproxy.Drops}
	}
	mine := w.Node.PodCIDR.Contains(p.From)
	all, local := w.endpoints(c, false), w.endpoints(c, true)
	var e Expectation
	use := all
	switch {
	case len(all) == 0:
		return Expectation{Outcome: netproxy.Refuses}
	case !c.external:
		e.SourceKept = mine
		if spec.GetInternalTrafficPolicy() == "Local" {
			use = local
		}
	case spec.GetExternalTrafficPolicy() != "Local":
	case mine || p.FromNode:
		e.SourceKept = mine
	default:
		use, e.SourceKept = local, true
	}
	if len(use) == 0 {
		return Expectation{Outcome: netproxy.Drops}
	}
	e.Outcome, e.Targets = netproxy.Translates, use
	return e
}

func inAny(ranges []string, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r string) bool { return netip.MustParsePrefix(r).Contains(a) })
}

// endpoints are the ready ones, or else those that serve while they terminate.
func (w *World) endpoints(c *claimed, localOnly bool) map[netproxy.Target]bool {
	ready, serving := map[netproxy.Target]bool{}, map[netproxy.Target]bool{}
	for _, s := range w.Slices {
		if s.GetMetadata().GetLabels()[object.LabelServiceName] != c.service.GetMetadata().GetName() {
			continue
		}
		for _, port := range s.GetPorts() {
			if port.GetName() != c.port.GetName() {
				continue
			}
			for _, e := range s.GetEndpoints() {
				if localOnly && e.GetNodeName() != w.Node.Name {
					continue
				}
				t := netproxy.Target{IP: netip.MustParseAddr(e.GetAddresses()[0]), Port: uint16(port.GetPort())}
				if e.GetConditions().GetReady() {
					ready[t] = true
				} else if e.GetConditions().GetServing() && e.GetConditions().GetTerminating() {
					serving[t] = true
				}
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return serving
}

// claim finds who has the key that a packet is addressed to: by its address, or
// by a port of the node.
func (w *World) claim(p netproxy.Packet, node bool) *claimed {
	protocol := strings.ToUpper(p.Protocol.String())
	var all []claimed
	for _, s := range w.Services {
		for _, port := range s.GetSpec().GetPorts() {
			if port.GetProtocol() != protocol {
				continue
			}
			c := claimed{service: s, port: port, object: "services/" + s.GetMetadata().GetName()}
			all = append(all, c.keys(p, node)...)
		}
	}
	for i, pod := range w.Pods {
		for _, h := range pod.HostPorts {
			if pod.Node == "n1" && h.Protocol == p.Protocol && h.HostPort == p.Port && (node && !h.HostIP.IsValid() || !node && h.HostIP == p.To) {
				all = append(all, claimed{rank: 4, object: "pods/" + pod.Name, pod: &w.Pods[i], target: netproxy.Target{IP: pod.IP, Port: h.Port}})
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b claimed) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return strings.Compare(a.object, b.object)
	})
	return &all[0]
}

func (c claimed) keys(p netproxy.Packet, node bool) (out []claimed) {
	spec := c.service.GetSpec()
	if node {
		if c.port.GetNodePort() == int32(p.Port) {
			c.rank, c.external = 2, true
			out = append(out, c)
		}
		return out
	}
	if c.port.GetPort() != int32(p.Port) {
		return nil
	}
	to := p.To.String()
	if spec.GetClusterIp() == to {
		out = append(out, c)
	}
	c.external = true
	if slices.Contains(spec.GetExternalIps(), to) {
		c.rank = 3
		out = append(out, c)
	}
	for _, in := range c.service.GetStatus().GetLoadBalancer().GetIngress() {
		if in.GetIp() == to && in.GetIpMode() != "Proxy" {
			c.rank, c.balancer = 1, true
			out = append(out, c)
		}
	}
	return out
}

// Allowed says by the policies whether a connection may leave its pod and enter
// the other; pods of other nodes are judged there.
func (w *World) Allowed(c netproxy.Connection, everywhere bool) (egress, ingress bool) {
	egress, ingress = true, true
	if c.From == c.To {
		return true, true
	}
	for _, p := range w.Pods {
		if p.Node != "n1" && !everywhere {
			continue
		}
		if p.IP == c.From {
			egress = w.mayPass(p, "Egress", c.To, c)
		}
		if p.IP == c.To {
			ingress = w.mayPass(p, "Ingress", c.From, c)
		}
	}
	return egress, ingress
}

func (w *World) mayPass(p Pod, direction string, other netip.Addr, c netproxy.Connection) bool {
	limited := false
	for _, policy := range w.Policies {
		spec := policy.GetSpec()
		types := spec.GetPolicyTypes()
		if len(types) == 0 {
			types = []string{"Ingress"}
			if len(spec.GetEgress()) > 0 {
				types = append(types, "Egress")
			}
		}
		if !matches(spec.GetPodSelector(), p.Labels) || !slices.Contains(types, direction) {
			continue
		}
		limited = true
		if direction == "Ingress" {
			for _, r := range spec.GetIngress() {
				if w.peersMatch(r.GetFrom(), other) && portsMatch(r.GetPorts(), c, true) {
					return true
				}
			}
			continue
		}
		for _, r := range spec.GetEgress() {
			if w.egressRule(r, other, c) {
				return true
			}
		}
	}
	return !limited
}

// egressRule: a port's name means something only for pods that a selector
// matches.
func (w *World) egressRule(r *balsav1.NetworkPolicyEgressRule, other netip.Addr, c netproxy.Connection) bool {
	if len(r.GetTo()) == 0 {
		return portsMatch(r.GetPorts(), c, false)
	}
	return slices.ContainsFunc(r.GetTo(), func(peer *balsav1.NetworkPolicyPeer) bool {
		return w.peersMatch([]*balsav1.NetworkPolicyPeer{peer}, other) && portsMatch(r.GetPorts(), c, peer.GetIpBlock() == nil)
	})
}

func (w *World) peersMatch(peers []*balsav1.NetworkPolicyPeer, other netip.Addr) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p *balsav1.NetworkPolicyPeer) bool {
		if b := p.GetIpBlock(); b != nil {
			return netip.MustParsePrefix(b.GetCidr()).Contains(other) && !inAny(b.GetExcept(), other)
		}
		return slices.ContainsFunc(w.Pods, func(pod Pod) bool { return pod.IP == other && matches(p.GetPodSelector(), pod.Labels) })
	})
}

func portsMatch(ports []*balsav1.NetworkPolicyPort, c netproxy.Connection, named bool) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p *balsav1.NetworkPolicyPort) bool {
		protocol := map[string]netproxy.Protocol{"": netproxy.TCP, "TCP": netproxy.TCP, "UDP": netproxy.UDP}[p.GetProtocol()]
		if protocol != c.Protocol {
			return false
		}
		if p.GetPort() == nil {
			return true
		}
		if p.GetPort().GetString_() != "" {
			return named && slices.Contains(podPorts(), netproxy.NamedPort{Name: p.GetPort().GetString_(), Protocol: protocol, Port: c.Port})
		}
		end := p.GetPort().GetInt()
		if p.EndPort != nil {
			end = p.GetEndPort()
		}
		return p.GetPort().GetInt() <= int32(c.Port) && int32(c.Port) <= end
	})
}
