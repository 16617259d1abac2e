package dns

import (
	"fmt"
	"net/netip"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// serviceNameLabel ties an EndpointSlice to its Service, as in Kubernetes.
const serviceNameLabel = "kubernetes.io/service-name"

// clusterIPNone is the address of a headless service.
const clusterIPNone = "None"

// ZoneParams are the parts of a view that are not about services.
type ZoneParams struct {
	Domain  string
	Reverse []netip.Prefix
}

// FromObjects builds a view at a revision. Objects are read only. What it
// cannot use is left out and named in problems. A service that has no address
// yet does not exist yet.
func FromObjects(revision int64, p ZoneParams, services []*balsav1.Service, slices []*balsav1.EndpointSlice) (v View, problems []string) {
	v = View{Revision: revision, Domain: p.Domain, Reverse: p.Reverse, Services: make([]Service, 0, len(services))}
	headless := map[[2]string]int{}
	for _, s := range services {
		m, ip := s.GetMetadata(), s.GetSpec().GetClusterIp()
		out := Service{Namespace: m.GetNamespace(), Name: m.GetName()}
		switch ip {
		case "":
			continue
		case clusterIPNone:
			headless[[2]string{out.Namespace, out.Name}] = len(v.Services)
		default:
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				problems = append(problems, fmt.Sprintf("services/%s/%s: spec.clusterIP %q is not an address", out.Namespace, out.Name, ip))
				continue
			}
			out.ClusterIP = addr
			for _, port := range s.GetSpec().GetPorts() {
				out.Ports = appendPort(out.Ports, port.GetName(), port.GetProtocol(), port.GetPort())
			}
		}
		v.Services = append(v.Services, out)
	}
	for _, slice := range slices {
		i, found := headless[[2]string{slice.GetMetadata().GetNamespace(), owningService(slice)}]
		if !found {
			continue
		}
		problems = append(problems, addEndpoints(&v.Services[i], slice)...)
	}
	return v, problems
}

func owningService(s *balsav1.EndpointSlice) string {
	if name := s.GetMetadata().GetLabels()[serviceNameLabel]; name != "" {
		return name
	}
	for _, o := range s.GetMetadata().GetOwnerReferences() {
		if o.GetKind() == "Service" {
			return o.GetName()
		}
	}
	return ""
}

func addEndpoints(s *Service, slice *balsav1.EndpointSlice) (problems []string) {
	var ports []Port
	for _, p := range slice.GetPorts() {
		ports = appendPort(ports, p.GetName(), p.GetProtocol(), p.GetPort())
	}
	for _, e := range slice.GetEndpoints() {
		c := e.GetConditions()
		ready := c == nil || c.Ready == nil || *c.Ready
		for _, a := range e.GetAddresses() {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				problems = append(problems, fmt.Sprintf("endpointslices/%s/%s: endpoint address %q is not an address",
					slice.GetMetadata().GetNamespace(), slice.GetMetadata().GetName(), a))
				continue
			}
			s.Endpoints = append(s.Endpoints, Endpoint{IP: ip, Hostname: e.GetHostname(), Ready: ready, Ports: ports})
		}
	}
	return problems
}

// appendPort leaves out what cannot be a port; the proxy reports those.
func appendPort(ports []Port, name, protocol string, port int32) []Port {
	if protocol == "" {
		protocol = "TCP"
	}
	if port < 1 || port > 65535 {
		return ports
	}
	return append(ports, Port{Name: name, Protocol: strings.ToLower(protocol), Port: uint16(port)})
}
