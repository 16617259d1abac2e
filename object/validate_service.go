package object

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of Services.
const (
	// maxServicePorts bounds a Service's ports, and so the node ports that one write
	// claims: each is an operation of its transaction.
	maxServicePorts = 100
	// maxExternalIPs bounds externalIPs, and the addresses of a load balancer.
	maxExternalIPs = 64
	// maxSourceRanges bounds loadBalancerSourceRanges.
	maxSourceRanges = 256
	// maxAffinitySeconds is the longest sessionAffinityConfig.clientIP.timeoutSeconds:
	// a day, as in Kubernetes.
	maxAffinitySeconds = 86_400
)

func (c *check) service(spec *balsav1.ServiceSpec) {
	c.oneOf("spec.type", spec.GetType(), []string{ServiceClusterIP, ServiceNodePort, ServiceLoadBalancer, ServiceExternalName})
	c.labels("spec.selector", spec.GetSelector())
	c.externalName(spec)
	c.clusterIPs(spec)
	c.ipFamilies(spec)
	c.servicePorts(spec)
	c.affinity(spec)
	c.externalIPs(spec)
	c.trafficPolicies(spec)
	c.loadBalancer(spec)
}

// onlyFor reports a field that a Service's type has no use for.
func (c *check) onlyFor(path string, set bool, what string) {
	if set {
		c.add(Violation{Field: path, Message: "has no meaning but for " + what, Hint: "remove the field, or change spec.type"})
	}
}

const exceptExternalName = "a Service with endpoints, which one of type ExternalName has not"

func isHeadless(spec *balsav1.ServiceSpec) bool { return spec.GetClusterIp() == ClusterIPNone }

func (c *check) externalName(spec *balsav1.ServiceSpec) {
	name := spec.GetExternalName()
	switch {
	case spec.GetType() != ServiceExternalName:
		c.onlyFor("spec.externalName", name != "", "type ExternalName")
	case name == "":
		c.required("spec.externalName", "name what the Service stands for, for example db.example.com")
	default:
		c.text("spec.externalName", name, dnsSubdomainProblem(strings.TrimSuffix(name, ".")))
	}
}

func (c *check) clusterIPs(spec *balsav1.ServiceSpec) {
	ip, list := spec.GetClusterIp(), spec.GetClusterIps()
	if !HasClusterIP(spec) {
		c.onlyFor("spec.clusterIP", ip != "", exceptExternalName)
		c.onlyFor("spec.clusterIPs", len(list) > 0, exceptExternalName)
		return
	}
	if TakesNodePorts(spec) && isHeadless(spec) {
		c.add(Violation{Field: "spec.clusterIP", Message: "a headless Service cannot be of type " + spec.GetType(), Found: ip, Allowed: "an address, or nothing to let the server choose"})
	}
	if ip != "" && !isHeadless(spec) {
		c.ipv4("spec.clusterIP", ip, "an IPv4 address of the cluster's service range, None, or nothing to let the server choose")
	}
	switch {
	case len(list) == 0:
	case list[0] != ip:
		c.add(Violation{Field: "spec.clusterIPs[0]", Message: "is not the same as clusterIP", Found: quoted(list[0]), Allowed: quoted(ip), Hint: "set clusterIP alone: the server fills in clusterIPs"})
	case len(list) > 1:
		c.add(Violation{Field: "spec.clusterIPs[1]", Message: "a second address is not supported yet, and so no IPv6", Found: quoted(list[1]), Allowed: "one address"})
	}
}

func (c *check) ipFamilies(spec *balsav1.ServiceSpec) {
	if !HasClusterIP(spec) {
		c.onlyFor("spec.ipFamilies", len(spec.GetIpFamilies()) > 0, exceptExternalName)
		c.onlyFor("spec.ipFamilyPolicy", spec.IpFamilyPolicy != nil, exceptExternalName)
		return
	}
	if len(spec.GetIpFamilies()) > 2 {
		c.add(Violation{Field: "spec.ipFamilies", Message: "has too many families", Found: strconv.Itoa(len(spec.GetIpFamilies())), Allowed: AddressIPv4})
		return
	}
	for i, family := range spec.GetIpFamilies() {
		here := index("spec.ipFamilies", i)
		c.oneOf(here, family, []string{AddressIPv4}, "IPv6")
		if i > 0 && family == AddressIPv4 {
			c.duplicate(here, family)
		}
	}
	if spec.IpFamilyPolicy != nil {
		c.oneOf("spec.ipFamilyPolicy", spec.GetIpFamilyPolicy(), []string{FamilySingleStack}, "PreferDualStack", "RequireDualStack")
	}
}

func (c *check) servicePorts(spec *balsav1.ServiceSpec) {
	ports := spec.GetPorts()
	if len(ports) == 0 && !isHeadless(spec) && HasClusterIP(spec) {
		c.required("spec.ports", "a Service needs at least one port, unless it is headless (clusterIP: None) or of type ExternalName")
	}
	if !c.atMost("spec.ports", len(ports), maxServicePorts, "ports") {
		return
	}
	seen := seenPorts{map[string]bool{}, map[string]bool{}, map[NodePort]bool{}}
	for i, p := range ports {
		here := index("spec.ports", i)
		c.servicePort(here, p, len(ports) > 1, seen)
		c.nodePort(field(here, "nodePort"), p, spec, seen)
	}
}

// seenPorts is what a Service's ports before have.
type seenPorts struct {
	names, numbers map[string]bool
	nodePorts      map[NodePort]bool
}

func (c *check) servicePort(here string, p *balsav1.ServicePort, several bool, seen seenPorts) {
	c.servicePortName(field(here, "name"), p.GetName(), seen.names, several)
	c.port(field(here, "port"), p.GetPort())
	c.protocol(field(here, "protocol"), p.GetProtocol())
	if target := p.GetTargetPort(); validPort(p.GetPort()) || !proto.Equal(target, IntValue(p.GetPort())) {
		c.targetPort(field(here, "targetPort"), target) // unless Default copied a port that was refused
	}
	if p.AppProtocol != nil {
		c.text(field(here, "appProtocol"), p.GetAppProtocol(), labelKeyProblem(p.GetAppProtocol()))
	}
	number := strconv.Itoa(int(p.GetPort())) + "/" + p.GetProtocol()
	if seen.numbers[number] {
		c.duplicate(field(here, "port"), number)
	}
	seen.numbers[number] = true
}

func (c *check) servicePortName(path, name string, seen map[string]bool, required bool) {
	switch {
	case name == "" && required:
		c.required(path, "name every port when there are several")
	case name == "":
	case seen[name]:
		c.duplicate(path, quoted(name))
	default:
		c.text(path, name, dnsLabelProblem(name))
	}
	seen[name] = true
}

func (c *check) targetPort(path string, port *balsav1.IntOrString) {
	if name, isName := port.GetValue().(*balsav1.IntOrString_String_); isName {
		c.text(path, name.String_, portNameProblem(name.String_))
		return
	}
	c.port(path, port.GetInt())
}

func (c *check) nodePort(path string, p *balsav1.ServicePort, spec *balsav1.ServiceSpec, seen seenPorts) {
	number := nodePortOf(p)
	if number.Port == 0 {
		return // 0 is as good as nothing, as in Kubernetes
	}
	if !TakesNodePorts(spec) {
		c.onlyFor(path, true, "types NodePort and LoadBalancer")
		return
	}
	if r := NodePortRange(); !r.Contains(number.Port) {
		c.add(Violation{Field: path, Message: "is outside of the range of node ports", Found: strconv.Itoa(int(number.Port)),
			Allowed: strconv.Itoa(int(r.First)) + " to " + strconv.Itoa(int(r.Last)), Hint: "leave it out: the server chooses one"})
	}
	if seen.nodePorts[number] {
		c.duplicate(path, strconv.Itoa(int(number.Port))+"/"+number.Protocol)
	}
	seen.nodePorts[number] = true
}

func (c *check) affinity(spec *balsav1.ServiceSpec) {
	c.optional("spec.sessionAffinity", spec.GetSessionAffinity(), AffinityNone, AffinityClientIP)
	if spec.GetSessionAffinity() != AffinityClientIP {
		if spec.GetSessionAffinityConfig() != nil {
			c.add(Violation{Field: "spec.sessionAffinityConfig", Message: "has no meaning but for sessionAffinity: ClientIP", Hint: "remove the field, or set spec.sessionAffinity: ClientIP"})
		}
		return
	}
	if !HasClusterIP(spec) || isHeadless(spec) {
		c.add(Violation{Field: "spec.sessionAffinity", Message: "has no meaning without a cluster IP: clients choose among the addresses themselves", Found: AffinityClientIP, Allowed: AffinityNone})
	}
	const path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
	timeout := spec.GetSessionAffinityConfig().GetClientIp()
	if timeout == nil || timeout.TimeoutSeconds == nil {
		c.required(path, "")
		return
	}
	c.between(path, int64(timeout.GetTimeoutSeconds()), 1, maxAffinitySeconds)
}

func (c *check) externalIPs(spec *balsav1.ServiceSpec) {
	const path = "spec.externalIPs"
	ips := spec.GetExternalIps()
	if !c.atMost(path, len(ips), maxExternalIPs, "addresses") {
		return
	}
	if !HasClusterIP(spec) || isHeadless(spec) {
		c.onlyFor(path, len(ips) > 0, "a Service with a cluster IP, whose connections are translated")
	}
	for i, ip := range ips {
		here := index(path, i)
		c.unicast(here, ip, "an IPv4 address that leads to the nodes")
		if slices.Contains(ips[:i], ip) {
			c.duplicate(here, quoted(ip))
		}
	}
}

// unicast checks an address that somebody else can send packets to.
func (c *check) unicast(path, ip, allowed string) {
	before := len(c.found)
	c.ipv4(path, ip, allowed)
	if len(c.found) > before {
		return
	}
	if problem := specialAddress(netip.MustParseAddr(ip)); problem != "" {
		c.add(Violation{Field: path, Message: "is " + problem, Found: quoted(ip), Allowed: allowed})
	}
}

// specialAddress tells what an IPv4 address is for that is no host's, "" for one
// that may be.
func specialAddress(ip netip.Addr) string {
	switch {
	case ip.IsUnspecified():
		return "the unspecified address"
	case ip.IsLoopback():
		return "a loopback address (127.0.0.0/8)"
	case ip.IsLinkLocalUnicast():
		return "a link-local address (169.254.0.0/16)"
	case ip.IsMulticast():
		return "a multicast address (224.0.0.0/4)"
	case ip.As4() == [4]byte{255, 255, 255, 255}:
		return "the broadcast address"
	}
	return ""
}

func (c *check) trafficPolicies(spec *balsav1.ServiceSpec) {
	external, internal := spec.GetExternalTrafficPolicy(), spec.GetInternalTrafficPolicy()
	if ExternallyReachable(spec) {
		c.optional("spec.externalTrafficPolicy", external, TrafficCluster, TrafficLocal)
	} else {
		c.onlyFor("spec.externalTrafficPolicy", external != "", "types NodePort and LoadBalancer, and with externalIPs")
	}
	if HasClusterIP(spec) {
		c.optional("spec.internalTrafficPolicy", internal, TrafficCluster, TrafficLocal)
	} else {
		c.onlyFor("spec.internalTrafficPolicy", internal != "", exceptExternalName)
	}
}

func (c *check) loadBalancer(spec *balsav1.ServiceSpec) {
	if spec.GetType() != ServiceLoadBalancer {
		const only = "type LoadBalancer"
		c.onlyFor("spec.loadBalancerClass", spec.LoadBalancerClass != nil, only)
		c.onlyFor("spec.loadBalancerIP", spec.GetLoadBalancerIp() != "", only)
		c.onlyFor("spec.loadBalancerSourceRanges", len(spec.GetLoadBalancerSourceRanges()) > 0, only)
		c.onlyFor("spec.allocateLoadBalancerNodePorts", spec.AllocateLoadBalancerNodePorts != nil, only)
		return
	}
	if class := spec.LoadBalancerClass; class != nil {
		c.text("spec.loadBalancerClass", *class, labelKeyProblem(*class))
	}
	if ip := spec.GetLoadBalancerIp(); ip != "" {
		c.unicast("spec.loadBalancerIP", ip, "an IPv4 address of an AddressPool, or nothing for any")
	}
	const path = "spec.loadBalancerSourceRanges"
	if !c.atMost(path, len(spec.GetLoadBalancerSourceRanges()), maxSourceRanges, "ranges") {
		return
	}
	for i, text := range spec.GetLoadBalancerSourceRanges() {
		c.prefix(index(path, i), text)
	}
}

// prefix checks an IPv4 network and returns it where it is good.
func (c *check) prefix(path, text string) (netip.Prefix, bool) {
	const allowed = "an IPv4 network such as 192.0.2.0/24"
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		c.text(path, text, allowed)
	case !p.Addr().Is4():
		c.add(Violation{Field: path, Message: "IPv6 is not supported yet", Found: quoted(text), Allowed: allowed})
	case p != p.Masked():
		c.add(Violation{Field: path, Message: "has bits set beyond its length", Found: quoted(text), Allowed: quoted(p.Masked().String())})
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

func (c *check) serviceUpdate(old, next *balsav1.ServiceSpec) {
	from, to := old.GetClusterIp(), next.GetClusterIp()
	if from != "" && from != to && HasClusterIP(old) && HasClusterIP(next) {
		c.add(Violation{Field: "spec.clusterIP", Message: "never changes, but for a change to or from type ExternalName", Found: quoted(to), Allowed: quoted(from), Hint: "delete the Service and create it again"})
	}
	balanced := old.GetType() == ServiceLoadBalancer && next.GetType() == ServiceLoadBalancer
	if balanced && !sameValue(old.LoadBalancerClass, next.LoadBalancerClass) {
		c.add(Violation{Field: "spec.loadBalancerClass", Message: "never changes as long as the type is LoadBalancer", Found: quoted(next.GetLoadBalancerClass()), Allowed: quoted(old.GetLoadBalancerClass()), Hint: "delete the Service and create it again"})
	}
}

// serviceStatus checks what reconciler/addresses, or a controller outside, writes.
func (c *check) serviceStatus(status *balsav1.ServiceStatus) {
	const path = "status.loadBalancer.ingress"
	list := status.GetLoadBalancer().GetIngress()
	if !c.atMost(path, len(list), maxExternalIPs, "addresses") {
		return
	}
	for i, in := range list {
		here := index(path, i)
		if in.GetIp() == "" && in.GetHostname() == "" {
			c.required(field(here, "ip"), "give an address or a host name")
		}
		if in.GetIp() != "" {
			c.unicast(field(here, "ip"), in.GetIp(), "an IPv4 address that leads to the nodes")
		}
		if name := in.GetHostname(); name != "" {
			c.text(field(here, "hostname"), name, dnsSubdomainProblem(name))
		}
		if in.IpMode != nil {
			c.oneOf(field(here, "ipMode"), in.GetIpMode(), []string{IPModeVIP, IPModeProxy})
			if in.GetIp() == "" {
				c.add(Violation{Field: field(here, "ipMode"), Message: "has no meaning without ip", Hint: "remove the field"})
			}
		}
	}
}
