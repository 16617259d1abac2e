// Package netproxytest draws random services, endpoints, policies and nodes, and
// says by a naive reading of the objects what must become of a connection. Both
// the plan in memory and the real kernel are held against it.
//
// It shares no code with the planner but the names of things, and it is for
// tests only.
package netproxytest

import (
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/object"
)

// Pod is a pod of the world.
type Pod struct {
	Name, Namespace string
	IP              netip.Addr
	Node            string
	Labels          map[string]string
	HostPorts       []netproxy.HostPort
}

// World is a cluster as the node n1 sees it.
type World struct {
	Node         netproxy.NodeParams
	Pods         []Pod
	Services     map[string]*balsav1.Service
	Slices       map[string]*balsav1.EndpointSlice
	Policies     map[string]*balsav1.NetworkPolicy
	PolicySlices map[string]*balsav1.NetworkPolicySlice
	// OldServers write slices without a copy of the policy.
	OldServers bool
	generation int64
}

// Addresses of the world. Outside is a client that is neither pod nor node.
const (
	Node1   = "192.168.77.1"
	Node2   = "192.168.77.2"
	Outside = "192.168.77.9"
	PodA    = "10.244.1.10"
	PodB    = "10.244.1.11"
	PodC    = "10.244.2.10"
)

// Ports that services and pods have.
var (
	FrontPorts  = []int32{80, 81}
	NodePorts   = []int32{30080, 30081, 30082}
	TargetPorts = []uint16{8080, 8081}
	External    = []string{"203.0.113.1", "203.0.113.2"}
	Balancers   = []string{"198.51.100.1", "198.51.100.2"}
	VIPs        = []string{"10.96.0.1", "10.96.0.2", "10.96.0.3"}
)

// HostPortNumber is the only port of the node that pods may have.
const HostPortNumber = 9090

// New is a world with pods a and b on this node and c on another one.
func New() *World {
	w := &World{
		Node: netproxy.NodeParams{Name: "n1", PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
			ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), NodeIP: netip.MustParseAddr(Node1)},
		Services: map[string]*balsav1.Service{}, Slices: map[string]*balsav1.EndpointSlice{},
		Policies: map[string]*balsav1.NetworkPolicy{}, PolicySlices: map[string]*balsav1.NetworkPolicySlice{},
	}
	for i, ip := range []string{PodA, PodB, PodC} {
		name := string(rune('a' + i))
		w.Pods = append(w.Pods, Pod{Name: name, Namespace: "default", IP: netip.MustParseAddr(ip), Node: []string{"n1", "n1", "n2"}[i],
			Labels: map[string]string{"pod": name}})
	}
	return w
}

// Local are the pods of n1 as the proxy gets them.
func (w *World) Local() (out []netproxy.LocalPod) {
	for _, p := range w.Pods {
		if p.Node == "n1" {
			out = append(out, w.local(p))
		}
	}
	return out
}

func (w *World) local(p Pod) netproxy.LocalPod {
	return netproxy.LocalPod{IP: p.IP, Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, HostPorts: p.HostPorts, Ports: podPorts()}
}

func podPorts() []netproxy.NamedPort {
	return []netproxy.NamedPort{{Name: "web", Protocol: netproxy.TCP, Port: TargetPorts[0]}, {Name: "web", Protocol: netproxy.UDP, Port: TargetPorts[1]}}
}

// All are all pods, for Explain.
func (w *World) All() (out []netproxy.LocalPod) {
	for _, p := range w.Pods {
		out = append(out, w.local(p))
	}
	return out
}

// Objects are what the node gets, in the order of their names.
func (w *World) Objects() netproxy.Objects {
	return netproxy.Objects{Services: values(w.Services), Slices: values(w.Slices), Policies: values(w.Policies), PolicySlices: values(w.PolicySlices), Pods: w.Local()}
}

func values[T any](m map[string]T) (out []T) {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out = append(out, m[name])
	}
	return out
}

// Change draws one change and makes it; t, if not nil, is told as well.
func (w *World) Change(rt *rapid.T, t *netproxy.Tracker) {
	switch rapid.IntRange(0, 11).Draw(rt, "change") {
	case 0, 1, 2:
		w.service(rt, t)
	case 3, 4, 5:
		w.slice(rt, t)
	case 6, 7, 8:
		w.policy(rt, t)
	case 9, 10:
		w.pod(rt, t)
	default:
		w.node(rt, t)
	}
}

func (w *World) service(rt *rapid.T, t *netproxy.Tracker) {
	name := rapid.SampledFrom([]string{"s0", "s1", "s2"}).Draw(rt, "service")
	if rapid.IntRange(0, 5).Draw(rt, "delete") == 0 {
		delete(w.Services, name)
		if t != nil {
			t.DeleteService("default", name)
		}
		return
	}
	s := drawService(rt, name)
	w.Services[name] = s
	if t != nil {
		t.SetService(s)
	}
}

func drawService(rt *rapid.T, name string) *balsav1.Service {
	spec := &balsav1.ServiceSpec{ClusterIp: rapid.SampledFrom(VIPs).Draw(rt, "vip"), Type: rapid.SampledFrom([]string{"ClusterIP", "NodePort", "LoadBalancer"}).Draw(rt, "type")}
	s := &balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec, Status: &balsav1.ServiceStatus{}}
	for i, p := range []string{"TCP", "UDP"} {
		port := &balsav1.ServicePort{Name: p, Protocol: p, Port: rapid.SampledFrom(FrontPorts).Draw(rt, "port")}
		if spec.Type != "ClusterIP" {
			n := NodePorts[rapid.IntRange(0, len(NodePorts)-1).Draw(rt, "node port")]
			port.NodePort = &n
		}
		if i == 0 || rapid.Bool().Draw(rt, "udp too") {
			spec.Ports = append(spec.Ports, port)
		}
	}
	if rapid.IntRange(0, 2).Draw(rt, "external") == 0 {
		spec.ExternalIps = []string{rapid.SampledFrom(External).Draw(rt, "external ip")}
	}
	if spec.Type == "LoadBalancer" {
		in := &balsav1.LoadBalancerIngress{Ip: rapid.SampledFrom(Balancers).Draw(rt, "balancer")}
		if rapid.IntRange(0, 4).Draw(rt, "proxy mode") == 0 {
			mode := "Proxy"
			in.IpMode = &mode
		}
		s.Status.LoadBalancer = &balsav1.LoadBalancerStatus{Ingress: []*balsav1.LoadBalancerIngress{in}}
		spec.LoadBalancerSourceRanges = rapid.SampledFrom([][]string{nil, nil, {"10.244.0.0/16"}, {"192.168.77.8/29", "10.244.1.11/32"}, {"192.168.77.0/24"}}).Draw(rt, "ranges")
	}
	spec.ExternalTrafficPolicy = rapid.SampledFrom([]string{"", "Cluster", "Local"}).Draw(rt, "external policy")
	spec.InternalTrafficPolicy = rapid.SampledFrom([]string{"", "Cluster", "Local"}).Draw(rt, "internal policy")
	if rapid.IntRange(0, 3).Draw(rt, "affinity") == 0 {
		spec.SessionAffinity = "ClientIP"
	}
	return s
}

func (w *World) slice(rt *rapid.T, t *netproxy.Tracker) {
	service := rapid.SampledFrom([]string{"s0", "s1", "s2"}).Draw(rt, "service")
	name := service + rapid.SampledFrom([]string{"-x", "-y"}).Draw(rt, "slice")
	if rapid.IntRange(0, 5).Draw(rt, "delete") == 0 {
		delete(w.Slices, name)
		if t != nil {
			t.DeleteSlice("default", name)
		}
		return
	}
	s := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{object.LabelServiceName: service}}}
	for i, p := range []string{"TCP", "UDP"} {
		s.Ports = append(s.Ports, &balsav1.EndpointPort{Name: p, Protocol: p, Port: int32(TargetPorts[(i+rapid.IntRange(0, 1).Draw(rt, "target"))%2])})
	}
	for _, p := range w.Pods {
		state := rapid.IntRange(0, 4).Draw(rt, "endpoint "+p.Name)
		if state == 0 {
			continue
		}
		ready, serving, terminating := state >= 3, state != 1, state <= 2
		s.Endpoints = append(s.Endpoints, &balsav1.Endpoint{Addresses: []string{p.IP.String()}, NodeName: p.Node,
			Conditions: &balsav1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}})
	}
	w.Slices[name] = s
	if t != nil {
		t.SetSlice(s)
	}
}

func (w *World) pod(rt *rapid.T, t *netproxy.Tracker) {
	p := &w.Pods[rapid.IntRange(0, len(w.Pods)-1).Draw(rt, "pod")]
	p.Labels = map[string]string{"pod": p.Name, "role": rapid.SampledFrom([]string{"front", "back"}).Draw(rt, "role")}
	p.HostPorts = nil
	if rapid.IntRange(0, 2).Draw(rt, "host port") == 0 {
		h := netproxy.HostPort{HostPort: HostPortNumber, Protocol: netproxy.TCP, Port: TargetPorts[0]}
		h.Protocol = rapid.SampledFrom([]netproxy.Protocol{netproxy.TCP, netproxy.UDP}).Draw(rt, "protocol")
		if rapid.Bool().Draw(rt, "host ip") {
			h.HostIP = netip.MustParseAddr(Node1)
		}
		p.HostPorts = []netproxy.HostPort{h}
	}
	if t != nil && p.Node == "n1" {
		t.SetPod(w.local(*p))
	}
	w.resolveAll(t)
}

func (w *World) node(rt *rapid.T, t *netproxy.Tracker) {
	w.Node.ServiceCIDR = netip.MustParsePrefix(rapid.SampledFrom([]string{"10.96.0.0/12", "10.96.0.0/16"}).Draw(rt, "service CIDR"))
	w.Node.PodCIDR = netip.MustParsePrefix(rapid.SampledFrom([]string{"10.244.1.0/24", "10.244.1.0/25"}).Draw(rt, "pod CIDR"))
	if t != nil {
		t.SetNode(w.Node)
	}
}

func (w *World) policy(rt *rapid.T, t *netproxy.Tracker) {
	name := rapid.SampledFrom([]string{"p0", "p1", "p2"}).Draw(rt, "policy")
	if rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
		delete(w.Policies, name)
		delete(w.PolicySlices, name)
		if t != nil {
			t.DeletePolicy("default", name)
			t.DeletePolicySlice("default", name)
		}
		return
	}
	p := w.DrawPolicy(rt, name)
	w.Policies[name] = p
	w.PolicySlices[name] = w.Resolve(p)
	if t != nil {
		t.SetPolicy(p)
		t.SetPolicySlice(w.PolicySlices[name])
	}
}

// DrawPolicy draws a policy, of a generation that none had before.
func (w *World) DrawPolicy(rt *rapid.T, name string) *balsav1.NetworkPolicy {
	w.generation++
	p := &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: name, Generation: w.generation}, Spec: &balsav1.NetworkPolicySpec{
		PodSelector: drawSelector(rt), PolicyTypes: rapid.SampledFrom([][]string{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}).Draw(rt, "types")}}
	for range rapid.IntRange(0, 2).Draw(rt, "ingress rules") {
		p.Spec.Ingress = append(p.Spec.Ingress, &balsav1.NetworkPolicyIngressRule{Ports: drawPorts(rt), From: drawPeers(rt)})
	}
	for range rapid.IntRange(0, 2).Draw(rt, "egress rules") {
		p.Spec.Egress = append(p.Spec.Egress, &balsav1.NetworkPolicyEgressRule{Ports: drawPorts(rt), To: drawPeers(rt)})
	}
	return p
}

func drawSelector(rt *rapid.T) *balsav1.LabelSelector {
	return &balsav1.LabelSelector{MatchLabels: rapid.SampledFrom([]map[string]string{nil, {"pod": "a"}, {"pod": "b"}, {"role": "front"}, {"role": "back"}}).Draw(rt, "selector")}
}

func drawPorts(rt *rapid.T) (out []*balsav1.NetworkPolicyPort) {
	for range rapid.IntRange(0, 2).Draw(rt, "ports") {
		p := &balsav1.NetworkPolicyPort{Protocol: rapid.SampledFrom([]string{"", "TCP", "UDP"}).Draw(rt, "protocol")}
		switch rapid.IntRange(0, 4).Draw(rt, "kind of port") {
		case 0:
		case 1:
			p.Port = &balsav1.IntOrString{Value: &balsav1.IntOrString_String_{String_: "web"}}
		case 2:
			p.Port = &balsav1.IntOrString{Value: &balsav1.IntOrString_Int{Int: 8000}}
			end := rapid.SampledFrom([]int32{8079, 8080, 9000}).Draw(rt, "end port")
			p.EndPort = &end
		default:
			p.Port = &balsav1.IntOrString{Value: &balsav1.IntOrString_Int{Int: int32(rapid.SampledFrom(TargetPorts).Draw(rt, "port"))}}
		}
		out = append(out, p)
	}
	return out
}

func drawPeers(rt *rapid.T) (out []*balsav1.NetworkPolicyPeer) {
	for range rapid.IntRange(0, 2).Draw(rt, "peers") {
		if rapid.Bool().Draw(rt, "block") {
			block := &balsav1.IPBlock{Cidr: rapid.SampledFrom([]string{"0.0.0.0/0", "10.244.0.0/16", "192.168.77.0/24", "10.244.1.11/32"}).Draw(rt, "cidr")}
			if block.Cidr == "0.0.0.0/0" || block.Cidr == "10.244.0.0/16" {
				block.Except = rapid.SampledFrom([][]string{nil, {"10.244.1.0/24"}, {"10.244.1.11/32", "10.244.2.0/24"}}).Draw(rt, "except")
			}
			out = append(out, &balsav1.NetworkPolicyPeer{IpBlock: block})
			continue
		}
		out = append(out, &balsav1.NetworkPolicyPeer{PodSelector: drawSelector(rt)})
	}
	return out
}

func (w *World) resolveAll(t *netproxy.Tracker) {
	for name, p := range w.Policies {
		w.PolicySlices[name] = w.Resolve(p)
		if t != nil {
			t.SetPolicySlice(w.PolicySlices[name])
		}
	}
}

// Resolve is what the reconciler does: selectors to addresses.
func (w *World) Resolve(p *balsav1.NetworkPolicy) *balsav1.NetworkPolicySlice {
	s := &balsav1.NetworkPolicySlice{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: p.GetMetadata().GetName()}, ObservedGeneration: p.GetMetadata().GetGeneration()}
	if !w.OldServers {
		s.Policy = p.GetSpec()
	}
	peers := func(direction string, rule int, list []*balsav1.NetworkPolicyPeer) {
		for i, peer := range list {
			if peer.GetIpBlock() != nil {
				continue
			}
			r := &balsav1.ResolvedPeer{Direction: direction, Rule: int32(rule), Peer: int32(i)}
			for _, pod := range w.Pods {
				if matches(peer.GetPodSelector(), pod.Labels) {
					r.Pods = append(r.Pods, resolvedPod(pod, direction))
				}
			}
			s.Peers = append(s.Peers, r)
		}
	}
	for i, r := range p.GetSpec().GetIngress() {
		peers("Ingress", i, r.GetFrom())
	}
	for i, r := range p.GetSpec().GetEgress() {
		peers("Egress", i, r.GetTo())
	}
	return s
}

func resolvedPod(p Pod, direction string) *balsav1.ResolvedPod {
	out := &balsav1.ResolvedPod{Ip: p.IP.String(), Namespace: p.Namespace, Name: p.Name}
	if direction == "Egress" {
		for _, port := range podPorts() {
			out.Ports = append(out.Ports, &balsav1.ResolvedPort{Name: port.Name, Protocol: map[netproxy.Protocol]string{netproxy.TCP: "TCP", netproxy.UDP: "UDP"}[port.Protocol], Port: int32(port.Port)})
		}
	}
	return out
}

func matches(s *balsav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.GetMatchLabels() {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// String prints the world for a failed test.
func (w *World) String() string {
	text := fmt.Sprintf("%+v\n", w.Node)
	for _, p := range w.Pods {
		text += fmt.Sprintf("pod %+v\n", p)
	}
	o := w.Objects()
	for _, s := range o.Services {
		text += fmt.Sprintf("%v\n", s)
	}
	for _, s := range o.Slices {
		text += fmt.Sprintf("%v\n", s)
	}
	for _, p := range o.Policies {
		text += fmt.Sprintf("%v\n", p)
	}
	return text
}
