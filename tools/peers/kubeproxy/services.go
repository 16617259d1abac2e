package main

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// service has one port, TCP 80, and the address of the cluster.
type service struct {
	name      string
	chain     string
	address   netip.Addr
	endpoints []endpoint
}

type endpoint struct {
	chain   string
	address netip.Addr
}

const (
	servicePort  = 80
	endpointPort = 8080
)

// Addresses are those of Balsa's client: services from 10.96.1.0 on, endpoints
// from 10.244.0.10 on, and from 10.245.0.10 on what takes an endpoint's place.
func makeServices(count, endpoints int) []service {
	all := make([]service, count)
	for i := range all {
		s := service{name: fmt.Sprintf("bench/svc-%05d/tcp/http", i), address: address(10, 96, 1, 0, i)}
		s.chain = "service-" + hashed(s.name)
		for j := range endpoints {
			s.endpoints = append(s.endpoints, s.endpoint(address(10, 244, 0, 10, i*endpoints+j)))
		}
		all[i] = s
	}
	return all
}

func (s *service) endpoint(a netip.Addr) endpoint {
	return endpoint{chain: "endpoint-" + hashed(fmt.Sprintf("%s__%v/%d", s.name, a, endpointPort)), address: a}
}

func (s *service) replaceFirst(number int) {
	s.endpoints[0] = s.endpoint(address(10, 245, 0, 10, number))
}

func address(a, b, c, d byte, add int) netip.Addr {
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32([]byte{a, b, c, d})+uint32(add))
	return netip.AddrFrom4(out)
}

// hashed puts eight characters of a hash before the name, as kube-proxy does: its
// chains have long names.
func hashed(name string) string {
	hash := sha256.Sum256([]byte(name))
	return base32.StdEncoding.EncodeToString(hash[:])[:8] + "-" + name
}
