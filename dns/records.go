package dns

import (
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
)

// records are all of one service: those of its own name and those below it, which
// no other service shares. They never change.
type records struct {
	// owner is the service's name, canonical.
	owner string
	a     []netip.Addr
	// cname is the name that the service stands for, canonical, or empty.
	cname string
	// hosts are the names of one label below owner; srv those of two, such as
	// "_http._tcp".
	hosts map[string][]netip.Addr
	srv   map[string][]srv
	// pointers are the reverse records.
	pointers map[netip.Addr][]string
}

type srv struct {
	port   uint16
	target string
}

// compile makes the records of a service; nil if its name does not exist: a
// headless service without ready endpoints does not, says the specification.
func compile(s *Service, domain string) *records {
	r := &records{owner: strings.ToLower(s.Name+"."+s.Namespace) + ".svc." + domain}
	switch {
	case s.External != "":
		r.cname = Canonical(s.External)
		return r
	case s.ClusterIP.IsValid():
		r.addAddress(s)
	default:
		r.addEndpoints(s)
		if len(r.a) == 0 {
			return nil
		}
	}
	r.tidy()
	return r
}

func (r *records) addAddress(s *Service) {
	if s.ClusterIP.Is4() {
		r.a = []netip.Addr{s.ClusterIP}
		r.point(s.ClusterIP, r.owner)
	}
	for _, p := range s.Ports {
		r.addSRV(p, r.owner)
	}
}

func (r *records) addEndpoints(s *Service) {
	r.hosts = map[string][]netip.Addr{}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if !e.Ready || !e.IP.Is4() {
			continue
		}
		host := hostname(e)
		r.a = append(r.a, e.IP)
		r.hosts[host] = append(r.hosts[host], e.IP)
		r.point(e.IP, host+"."+r.owner)
		for _, p := range e.Ports {
			r.addSRV(p, host+"."+r.owner)
		}
	}
}

// hostname is the endpoint's own, if it can be one label of a name.
func hostname(e *Endpoint) string {
	if n, ok := mdns.IsDomainName(e.Hostname); ok && n == 1 && e.Hostname != "" && !strings.ContainsAny(e.Hostname, `.\`) {
		return strings.ToLower(e.Hostname)
	}
	return dashed(e.IP)
}

func dashed(ip netip.Addr) string { return strings.ReplaceAll(ip.String(), ".", "-") }

func (r *records) addSRV(p Port, target string) {
	if p.Name == "" {
		return
	}
	if r.srv == nil {
		r.srv = map[string][]srv{}
	}
	name := strings.ToLower("_" + p.Name + "._" + p.Protocol)
	r.srv[name] = append(r.srv[name], srv{p.Port, target})
}

func (r *records) point(ip netip.Addr, name string) {
	if r.pointers == nil {
		r.pointers = map[netip.Addr][]string{}
	}
	r.pointers[ip] = append(r.pointers[ip], name)
}

// tidy orders what is asked for, without anything twice.
func (r *records) tidy() {
	r.a = sorted(r.a, netip.Addr.Compare)
	for host, ips := range r.hosts {
		r.hosts[host] = sorted(ips, netip.Addr.Compare)
	}
	for name, servers := range r.srv {
		r.srv[name] = sorted(servers, func(a, b srv) int {
			if c := strings.Compare(a.target, b.target); c != 0 {
				return c
			}
			return int(a.port) - int(b.port)
		})
	}
	for ip, names := range r.pointers {
		r.pointers[ip] = sorted(names, strings.Compare)
	}
}

func sorted[T comparable](items []T, compare func(a, b T) int) []T {
	slices.SortFunc(items, compare)
	return slices.Compact(items)
}

// below finds what is at a name below the owner's. A name with none exists if
// there are names below it.
func (r *records) below(sub string) (a []netip.Addr, servers []srv, exists bool) {
	if ips, found := r.hosts[sub]; found {
		return ips, nil, true
	}
	if servers, found := r.srv[sub]; found {
		return nil, servers, true
	}
	for name := range r.srv {
		if strings.HasSuffix(name, "."+sub) {
			return nil, nil, true
		}
	}
	return nil, nil, false
}

// addressesOf are those of a name at or below the owner's.
func (r *records) addressesOf(name string) []netip.Addr {
	if name == r.owner {
		return r.a
	}
	return r.hosts[strings.TrimSuffix(name, "."+r.owner)]
}
