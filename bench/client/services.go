package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/object"
)

// The services that rules and names are made of have one port and endpoints on a
// hundred nodes, of which this is the first. The program that measures
// kube-proxy's rules has the same.
const (
	serviceNamespace = "bench"
	servicePort      = 80
	endpointPort     = 8080
	endpointNodes    = 100
	domain           = "cluster.local"
)

func serviceName(number int) string   { return fmt.Sprintf("svc-%05d", number) }
func serviceIP(number int) netip.Addr { return address([4]byte{10, 96, 1, 0}, number) }
func nodeName(number int) string      { return fmt.Sprintf("n%03d", number) }

func address(first [4]byte, number int) netip.Addr {
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(first[:])+uint32(number)) //nolint:gosec // bounded by maxServices
	return netip.AddrFrom4(out)
}

// maxServices keeps endpoints within one /16.
const maxServices = 20_000

// objects are so many services with so many ready endpoints each.
func objects(services, endpoints int) (netproxy.Objects, error) {
	if services < 1 || services*endpoints > 3*maxServices {
		return netproxy.Objects{}, fmt.Errorf("%d services of %d endpoints: want at most %d endpoints", services, endpoints, 3*maxServices)
	}
	var o netproxy.Objects
	for i := range services {
		o.Services = append(o.Services, &balsav1.Service{
			Metadata: &balsav1.ObjectMeta{Namespace: serviceNamespace, Name: serviceName(i)},
			Spec: &balsav1.ServiceSpec{Type: "ClusterIP", ClusterIp: serviceIP(i).String(),
				Ports: []*balsav1.ServicePort{{Name: "http", Protocol: "TCP", Port: servicePort}}},
		})
		addresses := make([]netip.Addr, endpoints)
		for j := range addresses {
			addresses[j] = address([4]byte{10, 244, 0, 10}, i*endpoints+j)
		}
		o.Slices = append(o.Slices, slice(i, addresses))
	}
	return o, nil
}

func slice(service int, addresses []netip.Addr) *balsav1.EndpointSlice {
	ready := true
	s := &balsav1.EndpointSlice{
		Metadata: &balsav1.ObjectMeta{Namespace: serviceNamespace, Name: serviceName(service) + "-1",
			Labels: map[string]string{object.LabelServiceName: serviceName(service)}},
		AddressType: "IPv4", Ports: []*balsav1.EndpointPort{{Name: "http", Protocol: "TCP", Port: endpointPort}},
	}
	for j, ip := range addresses {
		s.Endpoints = append(s.Endpoints, &balsav1.Endpoint{Addresses: []string{ip.String()}, NodeName: nodeName((service*len(addresses) + j) % endpointNodes),
			Conditions: &balsav1.EndpointConditions{Ready: &ready, Serving: &ready}})
	}
	return s
}

// moved is the service's slice with another first endpoint.
func moved(service, endpoints, number int) *balsav1.EndpointSlice {
	addresses := make([]netip.Addr, endpoints)
	for j := range addresses {
		addresses[j] = address([4]byte{10, 244, 0, 10}, service*endpoints+j)
	}
	addresses[0] = address([4]byte{10, 245, 0, 10}, number)
	return slice(service, addresses)
}
