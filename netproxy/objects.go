package netproxy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// NodeParams are the parts of a view that are not about services.
type NodeParams struct {
	Name        string
	PodCIDR     netip.Prefix
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	NodeIP      netip.Addr
}

// Objects are what a view is built from.
type Objects struct {
	Services     []*balsav1.Service
	Slices       []*balsav1.EndpointSlice
	Policies     []*balsav1.NetworkPolicy
	PolicySlices []*balsav1.NetworkPolicySlice
	// Pods are those of the node that have an address of their own.
	Pods []LocalPod
}

// LocalPod is a pod of this node.
type LocalPod struct {
	IP              netip.Addr
	Namespace, Name string
	Labels          map[string]string
	Ports           []NamedPort
	HostPorts       []HostPort
}

// NamedPort is a port of a pod that policies may call by name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// HostPort leads from a port of the node to one of a pod.
type HostPort struct {
	// HostIP is the node's address; the zero Addr: every one.
	HostIP   netip.Addr
	HostPort uint16
	Protocol Protocol
	Port     uint16
}

// FromObjects builds the view of a node at a revision. Objects are read only.
// What it cannot use becomes a Problem of the view; the rest is used.
func FromObjects(revision int64, node NodeParams, o Objects) View {
	v := View{Revision: revision, NodeName: node.Name, PodCIDR: node.PodCIDR, ClusterCIDR: node.ClusterCIDR, ServiceCIDR: node.ServiceCIDR, NodeIP: node.NodeIP, Pods: o.Pods}
	byService := make(map[objectName][]*balsav1.EndpointSlice, len(o.Services))
	for _, s := range o.Slices {
		if name := object.OwningService(s); name != "" {
			n := objectName{s.GetMetadata().GetNamespace(), name}
			byService[n] = append(byService[n], s)
		}
	}
	for _, s := range o.Services {
		ports, problems := servicePorts(s, byService[nameOf(s.GetMetadata())])
		v.Services, v.Problems = append(v.Services, ports...), append(v.Problems, problems...)
	}
	policies, problems := readPolicies(o.pairs())
	for _, p := range policies {
		v.Policies = append(v.Policies, *p)
	}
	v.Problems = append(v.Problems, problems...)
	return v
}

type objectName struct{ namespace, name string }

func nameOf(m *balsav1.ObjectMeta) objectName { return objectName{m.GetNamespace(), m.GetName()} }

// ParseProtocol reads a protocol of the API; empty means TCP.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToUpper(s) {
	case "", "TCP":
		return TCP, nil
	case "UDP":
		return UDP, nil
	}
	return 0, fmt.Errorf("protocol %q is not supported; use TCP or UDP", s)
}

type serviceReader struct {
	object   string
	problems []Problem
}

func (b *serviceReader) problem(format string, args ...any) {
	b.problems = append(b.problems, Problem{Object: b.object, Reason: fmt.Sprintf(format, args...)})
}

// servicePorts reads one service with its slices, which are in the order of
// their names.
func servicePorts(s *balsav1.Service, slices []*balsav1.EndpointSlice) ([]ServicePort, []Problem) {
	b := serviceReader{object: "services/" + s.GetMetadata().GetNamespace() + "/" + s.GetMetadata().GetName()}
	clusterIP := s.GetSpec().GetClusterIp()
	if clusterIP == object.ClusterIPNone || clusterIP == "" || s.GetSpec().GetType() == object.ServiceExternalName {
		return nil, nil
	}
	vip, err := netip.ParseAddr(clusterIP)
	if err != nil {
		b.problem("spec.clusterIP %q is not an address", clusterIP)
		return nil, b.problems
	}
	common := b.common(s)
	common.VIP = vip
	var ports []ServicePort
	for _, p := range s.GetSpec().GetPorts() {
		port := common
		if err := port.read(p); err != nil {
			b.problem("spec.ports %q: %v", p.GetName(), err)
			continue
		}
		for _, slice := range slices {
			port.Endpoints = b.endpoints(port.Endpoints, slice, p.GetName(), port.Protocol)
		}
		ports = append(ports, port)
	}
	return ports, b.problems
}

// read takes over what one port says.
func (s *ServicePort) read(p *balsav1.ServicePort) (err error) {
	if s.Protocol, err = ParseProtocol(p.GetProtocol()); err != nil {
		return err
	}
	if p.GetPort() < 1 || p.GetPort() > 65535 {
		return fmt.Errorf("port %d is out of 1 to 65535", p.GetPort())
	}
	if p.GetNodePort() < 0 || p.GetNodePort() > 65535 {
		return fmt.Errorf("nodePort %d is out of 1 to 65535", p.GetNodePort())
	}
	s.PortName, s.Port, s.NodePort = p.GetName(), uint16(p.GetPort()), uint16(p.GetNodePort())
	return nil
}

// DefaultAffinity is how long ClientIP affinity lasts unless the service says it,
// as in Kubernetes.
const DefaultAffinity = 3 * time.Hour

// policyLocal is the traffic policy that stays on the node.
const policyLocal = "Local"

// common reads what all ports of a service share.
func (b *serviceReader) common(s *balsav1.Service) ServicePort {
	spec := s.GetSpec()
	out := ServicePort{Namespace: s.GetMetadata().GetNamespace(), Name: s.GetMetadata().GetName(),
		InternalLocal: spec.GetInternalTrafficPolicy() == policyLocal, ExternalLocal: spec.GetExternalTrafficPolicy() == policyLocal}
	if spec.GetSessionAffinity() == "ClientIP" {
		out.Affinity = DefaultAffinity
		if c := spec.GetSessionAffinityConfig().GetClientIp(); c.GetTimeoutSeconds() > 0 {
			out.Affinity = time.Duration(c.GetTimeoutSeconds()) * time.Second
		}
	}
	for _, text := range spec.GetExternalIps() {
		out.ExternalIPs = b.address(out.ExternalIPs, "spec.externalIPs", text)
	}
	if spec.GetType() != "LoadBalancer" {
		return out
	}
	for _, in := range s.GetStatus().GetLoadBalancer().GetIngress() {
		if in.GetIp() != "" && (in.IpMode == nil || in.GetIpMode() == "VIP") {
			out.LoadBalancerIPs = b.address(out.LoadBalancerIPs, "status.loadBalancer.ingress", in.GetIp())
		}
	}
	out.Restricted = len(spec.GetLoadBalancerSourceRanges()) > 0
	for _, text := range spec.GetLoadBalancerSourceRanges() {
		r, err := parsePrefix(strings.TrimSpace(text))
		if err != nil {
			b.problem("spec.loadBalancerSourceRanges: %v; it lets nobody in", err)
			continue
		}
		out.SourceRanges = append(out.SourceRanges, r)
	}
	return out
}

func (b *serviceReader) address(out []netip.Addr, field, text string) []netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil {
		b.problem("%s %q is not an address", field, text)
		return out
	}
	return append(out, a)
}

// endpoints appends a slice's endpoints for a service port, which is matched by
// name and protocol.
func (b *serviceReader) endpoints(out []Endpoint, slice *balsav1.EndpointSlice, portName string, protocol Protocol) []Endpoint {
	for _, p := range slice.GetPorts() {
		if got, err := ParseProtocol(p.GetProtocol()); err != nil || got != protocol || p.GetName() != portName {
			continue
		}
		if p.GetPort() < 1 || p.GetPort() > 65535 {
			b.sliceProblem(slice, "ports %q: port %d is out of 1 to 65535", p.GetName(), p.GetPort())
			continue
		}
		if out == nil {
			out = make([]Endpoint, 0, len(slice.GetEndpoints()))
		}
		for _, e := range slice.GetEndpoints() {
			out = b.endpoint(out, slice, e, uint16(p.GetPort()))
		}
	}
	return out
}

func (b *serviceReader) sliceProblem(slice *balsav1.EndpointSlice, format string, args ...any) {
	m := slice.GetMetadata()
	b.problems = append(b.problems, Problem{Object: "endpointslices/" + m.GetNamespace() + "/" + m.GetName(), Reason: fmt.Sprintf(format, args...)})
}

// endpoint appends one endpoint. Its addresses are alternatives for the same
// pod, so the first is used. An absent condition means ready.
func (b *serviceReader) endpoint(out []Endpoint, slice *balsav1.EndpointSlice, e *balsav1.Endpoint, port uint16) []Endpoint {
	if len(e.GetAddresses()) == 0 {
		return out
	}
	ip, err := netip.ParseAddr(e.GetAddresses()[0])
	if err != nil {
		b.sliceProblem(slice, "endpoint address %q is not an address", e.GetAddresses()[0])
		return out
	}
	c := e.GetConditions()
	ready := c == nil || c.Ready == nil || *c.Ready
	return append(out, Endpoint{IP: ip, Port: port, Ready: ready, Node: e.GetNodeName(),
		Serving: c.GetServing() && c.GetTerminating()})
}

// LocalPodOf is a pod as its node's proxy knows it, at an address.
func LocalPodOf(p *balsav1.Pod, ip netip.Addr) LocalPod {
	meta := p.GetMetadata()
	out := LocalPod{IP: ip, Namespace: meta.GetNamespace(), Name: meta.GetName(), Labels: meta.GetLabels(), HostPorts: HostPortsOf(p)}
	for _, c := range object.AllContainers(p.GetSpec()) {
		for _, port := range c.GetPorts() {
			protocol, err := ParseProtocol(port.GetProtocol())
			if err != nil || port.GetName() == "" || !isPort(port.GetContainerPort()) {
				continue
			}
			out.Ports = append(out.Ports, NamedPort{Name: port.GetName(), Protocol: protocol, Port: uint16(port.GetContainerPort())})
		}
	}
	return out
}

// HostPortsOf are the ports of the node that lead to the pod. Validation has refused
// what is left out here.
func HostPortsOf(p *balsav1.Pod) (out []HostPort) {
	if p.GetSpec().GetHostNetwork() {
		return nil
	}
	for _, c := range object.AllContainers(p.GetSpec()) {
		for _, port := range c.GetPorts() {
			protocol, err := ParseProtocol(port.GetProtocol())
			if err != nil || !isPort(port.GetHostPort()) || !isPort(port.GetContainerPort()) {
				continue
			}
			h := HostPort{HostPort: uint16(port.GetHostPort()), Protocol: protocol, Port: uint16(port.GetContainerPort())}
			if ip, err := netip.ParseAddr(port.GetHostIp()); err == nil && !ip.IsUnspecified() {
				h.HostIP = ip
			}
			out = append(out, h)
		}
	}
	return out
}

func isPort(n int32) bool { return n >= 1 && n <= 65535 }
