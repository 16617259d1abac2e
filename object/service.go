package object

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last int32 }

// Contains tells whether a port lies in the range.
func (r PortRange) Contains(port int32) bool { return r.First <= port && port <= r.Last }

// Size is the number of ports.
func (r PortRange) Size() int64 { return int64(r.Last) - int64(r.First) + 1 }

// NodePortRange is where node ports lie.
func NodePortRange() PortRange { return PortRange{firstNodePort, lastNodePort} }

// ChosenNodePorts is the part of NodePortRange that the server chooses from as
// long as there is room: who names a port by number is seldom in the way in the
// part before. Its size is that of Kubernetes (KEP-3668).
func ChosenNodePorts() PortRange { return PortRange{firstNodePort + namedNodePorts, lastNodePort} }

const (
	firstNodePort  = 30000
	lastNodePort   = 32767
	namedNodePorts = 86
)

// DefaultAffinityTimeout is sessionAffinityConfig.clientIP.timeoutSeconds where it
// is not given: three hours.
const DefaultAffinityTimeout int32 = 10800

// HasClusterIP tells whether Services of a type have a cluster IP, None included.
func HasClusterIP(spec *balsav1.ServiceSpec) bool { return spec.GetType() != ServiceExternalName }

// TakesNodePorts tells whether ports of the node may lead to a Service.
func TakesNodePorts(spec *balsav1.ServiceSpec) bool {
	return spec.GetType() == ServiceNodePort || spec.GetType() == ServiceLoadBalancer
}

// NeedsNodePorts tells whether every port of a Service gets a port of the node.
func NeedsNodePorts(spec *balsav1.ServiceSpec) bool {
	switch spec.GetType() {
	case ServiceNodePort:
		return true
	case ServiceLoadBalancer:
		return spec.AllocateLoadBalancerNodePorts == nil || spec.GetAllocateLoadBalancerNodePorts()
	}
	return false
}

// ExternallyReachable tells whether connections come to a Service from outside of
// the cluster.
func ExternallyReachable(spec *balsav1.ServiceSpec) bool {
	return TakesNodePorts(spec) || HasClusterIP(spec) && len(spec.GetExternalIps()) > 0
}

func defaultService(spec *balsav1.ServiceSpec) {
	setDefault(&spec.Type, ServiceClusterIP)
	for _, p := range spec.Ports {
		setDefault(&p.Protocol, ProtocolTCP)
		if p.TargetPort == nil {
			p.TargetPort = IntValue(p.Port)
		}
	}
	setDefault(&spec.SessionAffinity, AffinityNone)
	if spec.SessionAffinity == AffinityClientIP {
		spec.SessionAffinityConfig = ensure(spec.SessionAffinityConfig)
		spec.SessionAffinityConfig.ClientIp = ensure(spec.SessionAffinityConfig.ClientIp)
		setDefaultPtr(&spec.SessionAffinityConfig.ClientIp.TimeoutSeconds, DefaultAffinityTimeout)
	}
	if ExternallyReachable(spec) {
		setDefault(&spec.ExternalTrafficPolicy, TrafficCluster)
	}
	if spec.Type == ServiceLoadBalancer {
		setDefaultPtr(&spec.AllocateLoadBalancerNodePorts, true)
	}
	if HasClusterIP(spec) {
		defaultClusterIP(spec)
	}
}

// defaultClusterIP fills in what every type but ExternalName has.
func defaultClusterIP(spec *balsav1.ServiceSpec) {
	setDefault(&spec.InternalTrafficPolicy, TrafficCluster)
	setDefaultPtr(&spec.IpFamilyPolicy, FamilySingleStack)
	if len(spec.IpFamilies) == 0 {
		spec.IpFamilies = []string{AddressIPv4}
	}
	if spec.ClusterIp != "" && len(spec.ClusterIps) == 0 {
		spec.ClusterIps = []string{spec.ClusterIp}
	}
}

// keepService gives next, which replaces old, the addresses and ports that the
// server chose for old and that next leaves out, and takes out what only the type
// of old has and next repeats: Kubernetes' patchAllocatedValues and
// dropTypeDependentFields. What an Apply mentions is never taken out: validation
// judges it. mentioned is nil for a replacement as a whole.
func keepService(old, next *balsav1.ServiceSpec, mentioned func(path string) bool) {
	setDefault(&next.Type, ServiceClusterIP)
	if HasClusterIP(old) && HasClusterIP(next) {
		keepClusterIP(old, next)
	}
	if TakesNodePorts(old) && NeedsNodePorts(next) {
		keepNodePorts(old, next)
	}
	d := dropper{old, next, mentioned}
	d.byType()
	d.nodePorts()
}

func keepClusterIP(old, next *balsav1.ServiceSpec) {
	setDefault(&next.ClusterIp, old.GetClusterIp())
	// A list that only repeats what was is no wish.
	if slices.Equal(next.GetClusterIps(), old.GetClusterIps()) && old.GetClusterIp() != next.GetClusterIp() {
		next.ClusterIps = nil
	}
}

// keepNodePorts: by name, since the user may have changed the number of a port
// that clients outside know by its node port.
func keepNodePorts(old, next *balsav1.ServiceSpec) {
	had, used := map[string]int32{}, map[NodePort]bool{}
	for _, p := range old.GetPorts() {
		had[p.GetName()] = p.GetNodePort()
	}
	for _, p := range next.GetPorts() {
		used[nodePortOf(p)] = true
	}
	for _, p := range next.GetPorts() {
		n := NodePort{had[p.GetName()], nodePortOf(p).Protocol}
		if p.GetNodePort() == 0 && n.Port != 0 && !used[n] {
			p.NodePort, used[n] = &n.Port, true
		}
	}
}

// dropper takes out what next repeats of old and its type does not have.
type dropper struct {
	old, next *balsav1.ServiceSpec
	mentioned func(path string) bool
}

func (d dropper) field(path string, fits, same bool, drop func()) {
	if !fits && same && (d.mentioned == nil || !d.mentioned(path)) {
		drop()
	}
}

func (d dropper) byType() {
	old, next := d.old, d.next
	local := HasClusterIP(next)
	d.field("spec.clusterIP", local, old.GetClusterIp() == next.GetClusterIp(), func() { next.ClusterIp, next.ClusterIps = "", nil })
	d.field("spec.ipFamilies", local, slices.Equal(old.GetIpFamilies(), next.GetIpFamilies()), func() { next.IpFamilies = nil })
	d.field("spec.ipFamilyPolicy", local, old.GetIpFamilyPolicy() == next.GetIpFamilyPolicy(), func() { next.IpFamilyPolicy = nil })
	d.field("spec.internalTrafficPolicy", local, old.GetInternalTrafficPolicy() == next.GetInternalTrafficPolicy(), func() { next.InternalTrafficPolicy = "" })
	d.field("spec.externalName", !local, old.GetExternalName() == next.GetExternalName(), func() { next.ExternalName = "" })
	d.field("spec.externalTrafficPolicy", ExternallyReachable(next), old.GetExternalTrafficPolicy() == next.GetExternalTrafficPolicy(), func() { next.ExternalTrafficPolicy = "" })
	balanced := next.GetType() == ServiceLoadBalancer
	d.field("spec.loadBalancerClass", balanced, sameValue(old.LoadBalancerClass, next.LoadBalancerClass), func() { next.LoadBalancerClass = nil })
	d.field("spec.loadBalancerIP", balanced, old.GetLoadBalancerIp() == next.GetLoadBalancerIp(), func() { next.LoadBalancerIp = "" })
	d.field("spec.allocateLoadBalancerNodePorts", balanced, sameValue(old.AllocateLoadBalancerNodePorts, next.AllocateLoadBalancerNodePorts),
		func() { next.AllocateLoadBalancerNodePorts = nil })
	d.field("spec.sessionAffinityConfig", next.GetSessionAffinity() == AffinityClientIP, proto.Equal(old.GetSessionAffinityConfig(), next.GetSessionAffinityConfig()),
		func() { next.SessionAffinityConfig = nil })
}

// nodePorts also takes out those of a load balancer whose manifest says that it
// wants none and does not name them: nobody else could.
func (d dropper) nodePorts() {
	declined := d.mentioned != nil && NeedsNodePorts(d.old) && !NeedsNodePorts(d.next)
	if TakesNodePorts(d.next) && !declined {
		return
	}
	had := map[NodePort]bool{}
	for _, p := range d.old.GetPorts() {
		had[nodePortOf(p)] = true
	}
	for _, p := range d.next.GetPorts() {
		path := "spec.ports[port=" + strconv.Itoa(int(p.GetPort())) + ",protocol=" + nodePortOf(p).Protocol + "].nodePort"
		d.field(path, false, had[nodePortOf(p)], func() { p.NodePort = nil })
	}
}

func sameValue[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// dropBalancer takes the addresses of a load balancer out of the status of a
// Service that is none any more.
func dropBalancer(svc *balsav1.Service) {
	if svc.GetSpec().GetType() != ServiceLoadBalancer && svc.GetStatus().GetLoadBalancer() != nil {
		svc.Status = proto.CloneOf(svc.Status) // shared with the Service that this one replaces
		svc.Status.LoadBalancer = nil
	}
}

// LabelServiceName ties an EndpointSlice to its Service, as in Kubernetes.
const LabelServiceName = "kubernetes.io/service-name"

// OwningService is the name of the Service, in the slice's namespace, that a slice
// belongs to; empty if there is none.
func OwningService(s *balsav1.EndpointSlice) string {
	if name := s.GetMetadata().GetLabels()[LabelServiceName]; name != "" {
		return name
	}
	for _, o := range s.GetMetadata().GetOwnerReferences() {
		if o.GetKind() == "Service" {
			return o.GetName()
		}
	}
	return ""
}
