package object

import (
	"net/netip"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Claims are keys that say who has an address or a port: they are written in the
// transaction of the object that uses it, on the condition that they did not
// exist, so that two objects never have the same one. Their value is the key of
// the object.
const (
	prefixClusterIP    = PrefixClaims + "clusterip/"
	prefixPodCIDR      = PrefixClaims + "podcidr/"
	prefixNodePort     = PrefixClaims + "nodeport/"
	prefixLoadBalancer = PrefixClaims + "loadbalancer/"
	// ClaimAddressPools is written with every AddressPool, so that of two that
	// overlap one is refused.
	ClaimAddressPools = PrefixClaims + "addresspools"
)

// ClaimClusterIP is the key of who has a cluster IP.
func ClaimClusterIP(ip netip.Addr) string { return prefixClusterIP + ip.String() }

// ClaimPodCIDR is the key of which node has a part of the pod CIDR.
func ClaimPodCIDR(p netip.Prefix) string {
	return prefixPodCIDR + strings.ReplaceAll(p.String(), "/", "_")
}

// ClaimNodePort is the key of who has a port of every node.
func ClaimNodePort(p NodePort) string {
	return prefixNodePort + strings.ToLower(p.Protocol) + "/" + strconv.Itoa(int(p.Port))
}

// ClaimLoadBalancer is the key of which Service has an address of an AddressPool.
func ClaimLoadBalancer(ip netip.Addr) string { return prefixLoadBalancer + ip.String() }

// ServiceClaims lists the keys of everything that a stored Service has claimed: its
// cluster IP, its node ports, and the addresses of AddressPools in its status.
// Whoever deletes the Service deletes them in the same transaction.
func ServiceClaims(svc *balsav1.Service) []string {
	var keys []string
	if ip, ok := ClaimedClusterIP(svc); ok {
		keys = append(keys, ClaimClusterIP(ip))
	}
	for _, p := range NodePorts(svc) {
		keys = append(keys, ClaimNodePort(p))
	}
	for _, ip := range PoolAddresses(svc) {
		keys = append(keys, ClaimLoadBalancer(ip))
	}
	return keys
}

// ClaimedClusterIP is a Service's address of the service CIDR, if it has one.
func ClaimedClusterIP(svc *balsav1.Service) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(svc.GetSpec().GetClusterIp())
	return ip, err == nil
}

// NodePort is a port of every node.
type NodePort struct {
	Port     int32
	Protocol string
}

// NodePorts lists the node ports that a Service names, in the order of its ports,
// each once.
func NodePorts(svc *balsav1.Service) []NodePort {
	var out []NodePort
	seen := map[NodePort]bool{}
	for _, p := range svc.GetSpec().GetPorts() {
		n := nodePortOf(p)
		if n.Port != 0 && !seen[n] {
			out = append(out, n)
			seen[n] = true
		}
	}
	return out
}

func nodePortOf(p *balsav1.ServicePort) NodePort {
	return NodePort{p.GetNodePort(), keyText(p.GetProtocol(), "protocol")}
}

// PoolAddresses lists the addresses of AddressPools that a Service was given, in
// the order of its status. Those of a Service with a load balancer class come from
// elsewhere: nobody claims them.
func PoolAddresses(svc *balsav1.Service) []netip.Addr {
	if !WantsPoolAddress(svc) {
		return nil
	}
	var out []netip.Addr
	for _, in := range svc.GetStatus().GetLoadBalancer().GetIngress() {
		if ip, err := netip.ParseAddr(in.GetIp()); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// WantsPoolAddress tells whether Balsa gives a Service an address of an
// AddressPool.
func WantsPoolAddress(svc *balsav1.Service) bool {
	return svc.GetSpec().GetType() == ServiceLoadBalancer && svc.GetSpec().GetLoadBalancerClass() == ""
}
