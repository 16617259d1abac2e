package dns

import (
	"net/netip"
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
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

// Zone answers for the cluster's names. It never changes; a new revision is a
// new Zone, which shares with the former one what is the same in both.
type Zone struct {
	revision int64
	domain   string // canonical: lower case, with final dot
	pods     netip.Prefix
	reverse  []netip.Prefix
	// services by "namespace/name", in lower case, as all keys here.
	services *iradix.Tree[*records]
	// namespaces by "namespace/"; those with services exist anyway.
	namespaces *iradix.Tree[struct{}]
	// pointers by the address's bytes and the service's key.
	pointers *iradix.Tree[[]string]
}

// Build makes the zone of a view.
func Build(v View) *Zone {
	c := NewZone(v.ZoneParams).change()
	for _, ns := range v.Namespaces {
		c.namespace(ns, true)
	}
	for i := range v.Services {
		s := &v.Services[i]
		c.service(s.Namespace, s.Name, compile(s, c.domain))
	}
	return c.done(v.Revision)
}

// NewZone is a zone without services.
func NewZone(p ZoneParams) *Zone {
	return &Zone{domain: Canonical(p.Domain), pods: p.Pods, reverse: slices.Clone(p.Reverse),
		services: iradix.New[*records](), namespaces: iradix.New[struct{}](), pointers: iradix.New[[]string]()}
}

// zoneChange makes the next zone of one.
type zoneChange struct {
	Zone
	services   *iradix.Txn[*records]
	namespaces *iradix.Txn[struct{}]
	pointers   *iradix.Txn[[]string]
}

func (z *Zone) change() *zoneChange {
	return &zoneChange{Zone: *z, services: z.services.Txn(), namespaces: z.namespaces.Txn(), pointers: z.pointers.Txn()}
}

func serviceKey(namespace, name string) []byte {
	return []byte(strings.ToLower(namespace + "/" + name))
}

func pointerKey(ip netip.Addr, service []byte) []byte { return append(ip.AsSlice(), service...) }

func (c *zoneChange) namespace(name string, exists bool) {
	key := serviceKey(name, "")
	if exists {
		c.namespaces.Insert(key, struct{}{})
	} else {
		c.namespaces.Delete(key)
	}
}

// service replaces the records of a service; nil: it has none.
func (c *zoneChange) service(namespace, name string, r *records) {
	key := serviceKey(namespace, name)
	if old, found := c.services.Get(key); found {
		for ip := range old.pointers {
			c.pointers.Delete(pointerKey(ip, key))
		}
	}
	if r == nil {
		c.services.Delete(key)
		return
	}
	c.services.Insert(key, r)
	for ip, names := range r.pointers {
		c.pointers.Insert(pointerKey(ip, key), names)
	}
}

func (c *zoneChange) done(revision int64) *Zone {
	next := c.Zone
	next.revision = revision
	next.services, next.namespaces, next.pointers = c.services.Commit(), c.namespaces.Commit(), c.pointers.Commit()
	return &next
}

// Revision is that of the view.
func (z *Zone) Revision() int64 { return z.revision }

// Services counts the services that have a name.
func (z *Zone) Services() int { return z.services.Len() }

// Answer is what a zone says to a question.
type Answer struct {
	// Rcode is success or NXDOMAIN.
	Rcode int
	// Answer, Ns and Extra are the sections of the reply.
	Answer, Ns, Extra []mdns.RR
	// Chase is a name outside of the zone that the answer ends at: whoever is to
	// give addresses must ask for it elsewhere.
	Chase string
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

// found is what there is at a name.
type found struct {
	exists bool
	a      []netip.Addr
	srv    []srv
	txt    []string
	cname  string
	of     *records
}

func (z *Zone) find(canonical string) found {
	if canonical == z.domain {
		return found{exists: true}
	}
	above, kind, _ := cutLast(strings.TrimSuffix(canonical, "."+z.domain))
	switch kind {
	case "dns-version":
		return found{exists: above == "", txt: []string{specVersion}}
	case "svc":
		return z.findService(above)
	case "pod":
		return z.findPod(above)
	}
	return found{}
}

// cutLast takes the last label off.
func cutLast(name string) (before, last string, more bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}

func (z *Zone) findService(name string) found {
	above, namespace, more := cutLast(name)
	if !more {
		return found{exists: name == "" || z.hasNamespace(namespace)}
	}
	sub, service, _ := cutLast(above)
	r, exists := z.services.Get(serviceKey(namespace, service))
	if !exists {
		return found{}
	}
	if sub == "" {
		return found{exists: true, a: r.a, cname: r.cname, of: r}
	}
	f := found{of: r}
	f.a, f.srv, f.exists = r.below(sub)
	return f
}

// findPod: whoever asks for a pod by its address knows the address; that there is
// such a pod is not said.
func (z *Zone) findPod(name string) found {
	above, namespace, more := cutLast(name)
	if !more {
		return found{exists: name == "" || z.hasNamespace(namespace)}
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(above, "-", "."))
	if err != nil || !ip.Is4() || dashed(ip) != above || !z.pods.Contains(ip) || !z.hasNamespace(namespace) {
		return found{}
	}
	return found{exists: true, a: []netip.Addr{ip}}
}

func (z *Zone) hasNamespace(name string) bool {
	key := serviceKey(name, "")
	if _, known := z.namespaces.Get(key); known {
		return true
	}
	services := z.services.Root().Iterator()
	services.SeekPrefix(key)
	_, _, found := services.Next()
	return found
}

func (z *Zone) lookupName(name, canonical string, qtype uint16) Answer {
	f := z.find(canonical)
	switch {
	case !f.exists:
		return Answer{Rcode: mdns.RcodeNameError, Ns: z.authority(z.domain)}
	case f.cname != "":
		return z.alias(name, f.cname, qtype)
	}
	var a Answer
	if qtype == mdns.TypeA || qtype == mdns.TypeANY {
		a.Answer = append(a.Answer, addresses(name, f.a)...)
	}
	if qtype == mdns.TypeTXT || qtype == mdns.TypeANY {
		for _, text := range f.txt {
			a.Answer = append(a.Answer, &mdns.TXT{Hdr: header(name, mdns.TypeTXT), Txt: []string{text}})
		}
	}
	if qtype == mdns.TypeSRV || qtype == mdns.TypeANY {
		addServers(&a, name, f)
	}
	if canonical == z.domain && (qtype == mdns.TypeSOA || qtype == mdns.TypeANY) {
		a.Answer = append(a.Answer, z.authority(z.domain)...)
	}
	if len(a.Answer) == 0 {
		a.Ns = z.authority(z.domain)
	}
	return a
}

// alias answers with a CNAME. That of another alias is followed by whoever chases
// it, who counts the steps: services may stand for one another in a circle.
func (z *Zone) alias(name, target string, qtype uint16) Answer {
	a := Answer{Answer: []mdns.RR{&mdns.CNAME{Hdr: header(name, mdns.TypeCNAME), Target: target}}}
	if qtype != mdns.TypeCNAME && qtype != mdns.TypeANY {
		a.Chase = target
	}
	return a
}

func addresses(name string, ips []netip.Addr) []mdns.RR {
	out := make([]mdns.RR, len(ips))
	for i, ip := range ips {
		out[i] = &mdns.A{Hdr: header(name, mdns.TypeA), A: ip.AsSlice()}
	}
	return out
}

// addServers adds SRV records, and the addresses of their targets as extra.
func addServers(a *Answer, name string, f found) {
	seen := map[string]bool{}
	for _, s := range f.srv {
		a.Answer = append(a.Answer, &mdns.SRV{Hdr: header(name, mdns.TypeSRV), Priority: srvPriority, Weight: srvWeight, Port: s.port, Target: s.target})
		if !seen[s.target] {
			seen[s.target] = true
			a.Extra = append(a.Extra, addresses(s.target, f.of.addressesOf(s.target))...)
		}
	}
}

func (z *Zone) lookupReverse(name string, ip netip.Addr, qtype uint16) (Answer, bool) {
	targets := z.targets(ip)
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

// targets are the names of an address. The services that share a pod may call it
// by the same name no more than once each.
func (z *Zone) targets(ip netip.Addr) (names []string) {
	it := z.pointers.Root().Iterator()
	it.SeekPrefix(ip.AsSlice())
	for _, targets, ok := it.Next(); ok; _, targets, ok = it.Next() {
		names = append(names, targets...)
	}
	return sorted(names, strings.Compare)
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
