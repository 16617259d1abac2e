package dns

import (
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
)

const (
	// ttlSeconds is how long clients keep an answer from the zone: with every
	// answer it costs about as much to ask again as to be wrong.
	ttlSeconds = 5
	// srvPriority and srvWeight are the same for all: clients spread evenly.
	srvPriority, srvWeight = 0, 100
	// specVersion is the version of the naming schema.
	specVersion = "1.1.0"
)

// View is what a zone is built from.
type View struct {
	// Revision is the store's revision that the view is of.
	Revision int64
	// Domain is the cluster's domain, such as "cluster.local".
	Domain string
	// Reverse lists the networks whose reverse names are answered here even
	// where there is no record: the service CIDR and the cluster's pod CIDR.
	Reverse  []netip.Prefix
	Services []Service
}

// Service is a service with an address, or a headless one.
type Service struct {
	Namespace, Name string
	// ClusterIP is the zero value for a headless service.
	ClusterIP netip.Addr
	// Ports matter for services with an address; headless ones use those of
	// their endpoints.
	Ports     []Port
	Endpoints []Endpoint
}

// Port is a named port. Ports without name have no SRV record.
type Port struct {
	Name string
	// Protocol is "tcp" or "udp".
	Protocol string
	Port     uint16
}

// Endpoint is one pod of a headless service.
type Endpoint struct {
	IP netip.Addr
	// Hostname may be empty: then the address with dashes takes its place.
	Hostname string
	Ready    bool
	Ports    []Port
}

// Zone answers for the cluster's names. It never changes; a new revision is a
// new Zone.
type Zone struct {
	revision int64
	domain   string // canonical: lower case, with final dot
	reverse  []netip.Prefix
	names    map[string]*records
	pointers map[netip.Addr][]string
}

// records are what a name has; a name with none exists because there are names
// below it.
type records struct {
	a   []netip.Addr
	srv []srv
	txt []string
}

type srv struct {
	port   uint16
	target string
}

// Build makes the zone of a view.
func Build(v View) *Zone {
	z := &Zone{revision: v.Revision, domain: Canonical(v.Domain), reverse: slices.Clone(v.Reverse),
		names: make(map[string]*records, 3*len(v.Services)), pointers: make(map[netip.Addr][]string, len(v.Services))}
	z.at(z.domain)
	z.at("svc." + z.domain)
	z.at("dns-version." + z.domain).txt = []string{specVersion}
	for i := range v.Services {
		z.addService(&v.Services[i])
	}
	for _, r := range z.names {
		r.tidy()
	}
	for ip, targets := range z.pointers {
		slices.Sort(targets)
		z.pointers[ip] = slices.Compact(targets)
	}
	return z
}

// Canonical is the form in which names are compared.
func Canonical(name string) string { return strings.ToLower(mdns.Fqdn(name)) }

// at returns the records of a canonical name in the domain, which then exists,
// as do all names above it in the domain.
func (z *Zone) at(name string) *records {
	if r, found := z.names[name]; found {
		return r
	}
	r := &records{}
	z.names[name] = r
	if name != z.domain {
		_, above, _ := strings.Cut(name, ".")
		z.at(above)
	}
	return r
}

func (r *records) tidy() {
	slices.SortFunc(r.a, netip.Addr.Compare)
	r.a = slices.Compact(r.a)
	slices.SortFunc(r.srv, func(a, b srv) int {
		if c := strings.Compare(a.target, b.target); c != 0 {
			return c
		}
		return int(a.port) - int(b.port)
	})
	r.srv = slices.Compact(r.srv)
}

func (z *Zone) addService(s *Service) {
	name := strings.ToLower(s.Name+"."+s.Namespace) + ".svc." + z.domain
	if !s.ClusterIP.IsValid() {
		z.addHeadless(name, s)
		return
	}
	if s.ClusterIP.Is4() {
		r := z.at(name)
		r.a = append(r.a, s.ClusterIP)
	}
	z.point(s.ClusterIP, name)
	for _, p := range s.Ports {
		z.addSRV(name, p, name)
	}
}

// addHeadless adds what is ready. A headless service without ready endpoints
// does not exist, says the specification.
func (z *Zone) addHeadless(name string, s *Service) {
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if !e.Ready || !e.IP.Is4() {
			continue
		}
		host := hostname(e) + "." + name
		for _, n := range []string{name, host} {
			r := z.at(n)
			r.a = append(r.a, e.IP)
		}
		z.point(e.IP, host)
		for _, p := range e.Ports {
			z.addSRV(name, p, host)
		}
	}
}

// hostname is the endpoint's own, if it can be one label of a name.
func hostname(e *Endpoint) string {
	if n, ok := mdns.IsDomainName(e.Hostname); ok && n == 1 && e.Hostname != "" && !strings.ContainsAny(e.Hostname, `.\`) {
		return strings.ToLower(e.Hostname)
	}
	return strings.ReplaceAll(e.IP.String(), ".", "-")
}

func (z *Zone) addSRV(service string, p Port, target string) {
	if p.Name == "" {
		return
	}
	r := z.at(strings.ToLower("_"+p.Name+"._"+p.Protocol) + "." + service)
	r.srv = append(r.srv, srv{p.Port, target})
}

func (z *Zone) point(ip netip.Addr, name string) { z.pointers[ip] = append(z.pointers[ip], name) }

// Revision is that of the view.
func (z *Zone) Revision() int64 { return z.revision }

// Names counts the names of the domain.
func (z *Zone) Names() int { return len(z.names) }

// Answer is what a zone says to a question.
type Answer struct {
	// Rcode is success or NXDOMAIN.
	Rcode int
	// Answer, Ns and Extra are the sections of the reply.
	Answer, Ns, Extra []mdns.RR
}

// Lookup answers a question of class IN. ours is false if the name is neither
// in the cluster's domain nor a reverse name of it: ask somebody else.
func (z *Zone) Lookup(name string, qtype uint16) (answer Answer, ours bool) {
	canonical := Canonical(name)
	if mdns.IsSubDomain(z.domain, canonical) {
		return z.lookupName(name, canonical, qtype), true
	}
	if ip, ok := parseReverse(canonical); ok {
		return z.lookupReverse(name, ip, qtype)
	}
	return Answer{}, false
}

func (z *Zone) lookupName(name, canonical string, qtype uint16) Answer {
	r, exists := z.names[canonical]
	if !exists {
		return Answer{Rcode: mdns.RcodeNameError, Ns: z.authority(z.domain)}
	}
	var a Answer
	if qtype == mdns.TypeA || qtype == mdns.TypeANY {
		a.Answer = append(a.Answer, addresses(name, r)...)
	}
	if qtype == mdns.TypeTXT || qtype == mdns.TypeANY {
		for _, text := range r.txt {
			a.Answer = append(a.Answer, &mdns.TXT{Hdr: header(name, mdns.TypeTXT), Txt: []string{text}})
		}
	}
	if qtype == mdns.TypeSRV || qtype == mdns.TypeANY {
		z.addServers(&a, name, r)
	}
	if canonical == z.domain && (qtype == mdns.TypeSOA || qtype == mdns.TypeANY) {
		a.Answer = append(a.Answer, z.authority(z.domain)...)
	}
	if len(a.Answer) == 0 {
		a.Ns = z.authority(z.domain)
	}
	return a
}

func addresses(name string, r *records) []mdns.RR {
	out := make([]mdns.RR, len(r.a))
	for i, ip := range r.a {
		out[i] = &mdns.A{Hdr: header(name, mdns.TypeA), A: ip.AsSlice()}
	}
	return out
}

// addServers adds SRV records, and the addresses of their targets as extra.
func (z *Zone) addServers(a *Answer, name string, r *records) {
	seen := map[string]bool{}
	for _, s := range r.srv {
		a.Answer = append(a.Answer, &mdns.SRV{Hdr: header(name, mdns.TypeSRV), Priority: srvPriority, Weight: srvWeight, Port: s.port, Target: s.target})
		if target, found := z.names[s.target]; found && !seen[s.target] {
			seen[s.target] = true
			a.Extra = append(a.Extra, addresses(s.target, target)...)
		}
	}
}

func (z *Zone) lookupReverse(name string, ip netip.Addr, qtype uint16) (Answer, bool) {
	targets := z.pointers[ip]
	if len(targets) == 0 {
		inside := slices.ContainsFunc(z.reverse, func(p netip.Prefix) bool { return p.Contains(ip) })
		return Answer{Rcode: mdns.RcodeNameError, Ns: z.authority(name)}, inside
	}
	if qtype != mdns.TypePTR && qtype != mdns.TypeANY {
		return Answer{Ns: z.authority(name)}, true
	}
	var a Answer
	for _, t := range targets {
		a.Answer = append(a.Answer, &mdns.PTR{Hdr: header(name, mdns.TypePTR), Ptr: t})
	}
	return a, true
}

// parseReverse reads "4.3.2.1.in-addr.arpa.".
func parseReverse(canonical string) (netip.Addr, bool) {
	labels, found := strings.CutSuffix(canonical, ".in-addr.arpa.")
	if !found {
		return netip.Addr{}, false
	}
	parts := strings.Split(labels, ".")
	slices.Reverse(parts)
	ip, err := netip.ParseAddr(strings.Join(parts, "."))
	return ip, err == nil && ip.Is4()
}

// authority is the SOA record that says how long "no" may be remembered. The
// serial is the revision; nobody transfers the zone.
func (z *Zone) authority(owner string) []mdns.RR {
	return []mdns.RR{&mdns.SOA{Hdr: header(owner, mdns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: uint32(z.revision), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlSeconds}}
}

func header(name string, rrtype uint16) mdns.RR_Header {
	return mdns.RR_Header{Name: name, Rrtype: rrtype, Class: mdns.ClassINET, Ttl: ttlSeconds}
}
