package netproxy

import (
	"fmt"
	"net/netip"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// ServiceNameLabel ties an EndpointSlice to its Service, as in Kubernetes.
const ServiceNameLabel = "kubernetes.io/service-name"

// clusterIPNone is the address of a headless service, which has no VIP and is
// DNS's business alone.
const clusterIPNone = "None"

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
	services, slices := o.Services, o.Slices
	b := viewBuilder{view: View{Revision: revision, PodCIDR: node.PodCIDR, ServiceCIDR: node.ServiceCIDR, NodeIP: node.NodeIP}}
	byService := make(map[serviceName][]*balsav1.EndpointSlice, len(services))
	for _, s := range slices {
		if name := OwningService(s); name != "" {
			n := serviceName{s.GetMetadata().GetNamespace(), name}
			byService[n] = append(byService[n], s)
		}
	}
	for _, s := range services {
		b.service(s, byService[serviceName{s.GetMetadata().GetNamespace(), s.GetMetadata().GetName()}])
	}
	return b.view
}

type serviceName struct{ namespace, name string }

// OwningService is the name of the service, in the slice's namespace, that a
// slice belongs to; empty if there is none.
func OwningService(s *balsav1.EndpointSlice) string {
	if name := s.GetMetadata().GetLabels()[ServiceNameLabel]; name != "" {
		return name
	}
	for _, o := range s.GetMetadata().GetOwnerReferences() {
		if o.GetKind() == "Service" {
			return o.GetName()
		}
	}
	return ""
}

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

type viewBuilder struct{ view View }

func (b *viewBuilder) problem(object, format string, args ...any) {
	b.view.Problems = append(b.view.Problems, Problem{Object: object, Reason: fmt.Sprintf(format, args...)})
}

func (b *viewBuilder) service(s *balsav1.Service, slices []*balsav1.EndpointSlice) {
	object := "services/" + s.GetMetadata().GetNamespace() + "/" + s.GetMetadata().GetName()
	clusterIP := s.GetSpec().GetClusterIp()
	if clusterIP == clusterIPNone || clusterIP == "" {
		return
	}
	vip, err := netip.ParseAddr(clusterIP)
	if err != nil {
		b.problem(object, "spec.clusterIP %q is not an address", clusterIP)
		return
	}
	for _, p := range s.GetSpec().GetPorts() {
		protocol, err := ParseProtocol(p.GetProtocol())
		if err != nil {
			b.problem(object, "spec.ports %q: %v", p.GetName(), err)
			continue
		}
		if p.GetPort() < 1 || p.GetPort() > 65535 {
			b.problem(object, "spec.ports %q: port %d is out of 1 to 65535", p.GetName(), p.GetPort())
			continue
		}
		port := ServicePort{Namespace: s.GetMetadata().GetNamespace(), Name: s.GetMetadata().GetName(), PortName: p.GetName(),
			VIP: vip, Protocol: protocol, Port: uint16(p.GetPort())}
		for _, slice := range slices {
			port.Endpoints = b.endpoints(port.Endpoints, slice, p.GetName(), protocol)
		}
		b.view.Services = append(b.view.Services, port)
	}
}

// endpoints appends a slice's endpoints for a service port, which is matched by
// name and protocol.
func (b *viewBuilder) endpoints(out []Endpoint, slice *balsav1.EndpointSlice, portName string, protocol Protocol) []Endpoint {
	for _, p := range slice.GetPorts() {
		if got, err := ParseProtocol(p.GetProtocol()); err != nil || got != protocol || p.GetName() != portName {
			continue
		}
		if p.GetPort() < 1 || p.GetPort() > 65535 {
			b.problem("endpointslices/"+slice.GetMetadata().GetNamespace()+"/"+slice.GetMetadata().GetName(),
				"ports %q: port %d is out of 1 to 65535", p.GetName(), p.GetPort())
			continue
		}
		for _, e := range slice.GetEndpoints() {
			out = b.endpoint(out, slice, e, uint16(p.GetPort()))
		}
	}
	return out
}

// endpoint appends one endpoint. Its addresses are alternatives for the same
// pod, so the first is used. An absent condition means ready.
func (b *viewBuilder) endpoint(out []Endpoint, slice *balsav1.EndpointSlice, e *balsav1.Endpoint, port uint16) []Endpoint {
	if len(e.GetAddresses()) == 0 {
		return out
	}
	ip, err := netip.ParseAddr(e.GetAddresses()[0])
	if err != nil {
		b.problem("endpointslices/"+slice.GetMetadata().GetNamespace()+"/"+slice.GetMetadata().GetName(),
			"endpoint address %q is not an address", e.GetAddresses()[0])
		return out
	}
	c := e.GetConditions()
	ready := c == nil || c.Ready == nil || *c.Ready
	return append(out, Endpoint{IP: ip, Port: port, Ready: ready, Node: e.GetNodeName(),
		Serving: c.GetServing() && c.GetTerminating()})
}
