package netproxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Protocol is a transport protocol by its IANA number.
type Protocol uint8

// The protocols whose connections the proxy translates.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String is the protocol's name in nftables and DNS.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// View is all that the proxy of one node has to know. It is built once for a
// revision, handed over, and not changed afterwards.
type View struct {
	// Revision is the store's revision the view was built from. The proxy
	// only hands it on, so that a node can say what it has applied.
	Revision int64
	// NodeName says which endpoints are local; an endpoint that names no node
	// is local if PodCIDR holds its address.
	NodeName string
	// PodCIDR holds the addresses of this node's pods. Connections to a
	// service from any other source are masqueraded.
	PodCIDR netip.Prefix
	// ClusterCIDR holds the addresses of all pods; it tells flows that the
	// proxy has made from those of others.
	ClusterCIDR netip.Prefix
	// ServiceCIDR holds the virtual addresses. Whatever is addressed to it and
	// was not translated is refused.
	ServiceCIDR netip.Prefix
	// NodeIP is the source address of the node's own connections to services.
	NodeIP netip.Addr
	// Services holds one entry a service port, in any order.
	Services []ServicePort
	// Policies limit the connections of Pods.
	Policies []Policy
	// Pods are those of this node. Of two with one address the later counts.
	Pods []LocalPod
	// Problems are complaints about the objects the view was built from; the
	// plan repeats them.
	Problems []Problem
}

// ServicePort is one port of one service, with every address that leads to it.
type ServicePort struct {
	Namespace, Name string
	PortName        string
	VIP             netip.Addr
	Protocol        Protocol
	Port            uint16
	// NodePort is a port of every address of the node; 0: none.
	NodePort uint16
	// ExternalIPs and LoadBalancerIPs are translated like VIP, but for sources
	// outside: ExternalLocal decides about those.
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// SourceRanges are the clients that may use LoadBalancerIPs, if Restricted.
	SourceRanges []netip.Prefix
	Restricted   bool
	// Affinity is how long a client is led to the endpoint it was led to
	// before; 0: not at all.
	Affinity time.Duration
	// InternalLocal: connections to VIP go to this node's endpoints only.
	InternalLocal bool
	// ExternalLocal: connections from outside to the other addresses go to this
	// node's endpoints only, which see the client's address.
	ExternalLocal bool
	Endpoints     []Endpoint
}

// Endpoint is one place a service port's connections may go.
type Endpoint struct {
	IP    netip.Addr
	Port  uint16
	Ready bool
	// Serving endpoints are on their way out and still answer. They are used
	// only while no endpoint is ready, so that the last pod of a service can
	// finish what it began.
	Serving bool
	// Node is the name of the node the endpoint runs on; empty if unknown.
	Node string
}

// Key is what a packet is matched by: virtual address, protocol and port. The
// zero address stands for every address of the node.
type Key struct {
	VIP      netip.Addr
	Protocol Protocol
	Port     uint16
}

// String prints the key as nftables does.
func (k Key) String() string {
	if !k.VIP.IsValid() {
		return fmt.Sprintf("node . %s . %d", k.Protocol, k.Port)
	}
	return fmt.Sprintf("%s . %s . %d", k.VIP, k.Protocol, k.Port)
}

// Compare orders keys by address, protocol and port.
func (k Key) Compare(o Key) int {
	return cmp.Or(k.VIP.Compare(o.VIP), cmp.Compare(k.Protocol, o.Protocol), cmp.Compare(k.Port, o.Port))
}

// Target is where a translated packet goes.
type Target struct {
	IP   netip.Addr
	Port uint16
}

// String prints the target as nftables does.
func (t Target) String() string { return fmt.Sprintf("%s . %d", t.IP, t.Port) }

// Compare orders targets by address and port.
func (t Target) Compare(o Target) int {
	return cmp.Or(t.IP.Compare(o.IP), cmp.Compare(t.Port, o.Port))
}

// Problem is a part of the view that could not be planned. The rest is.
type Problem struct {
	// Object names the service, endpoint slice, pod or policy, for instance
	// "services/default/web port http".
	Object string
	Reason string
}

// String is one line for a log or an event.
func (p Problem) String() string { return p.Object + ": " + p.Reason }

// Compare orders problems by object and reason.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(cmp.Compare(p.Object, o.Object), cmp.Compare(p.Reason, o.Reason))
}

func (v *View) params() Params {
	return Params{PodCIDR: v.PodCIDR.Masked(), ClusterCIDR: v.ClusterCIDR.Masked(), ServiceCIDR: v.ServiceCIDR.Masked(), NodeIP: v.NodeIP}
}

func (v *View) node() NodeParams {
	return NodeParams{Name: v.NodeName, PodCIDR: v.PodCIDR.Masked(), ClusterCIDR: v.ClusterCIDR.Masked(), ServiceCIDR: v.ServiceCIDR.Masked(), NodeIP: v.NodeIP}
}

func (s *ServicePort) object() string {
	port := s.PortName
	if port == "" {
		port = fmt.Sprint(s.Port)
	}
	return "services/" + s.Namespace + "/" + s.Name + " port " + port
}
