package dns

import (
	"context"
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"
)

const (
	// maxSteps bounds the names that one question leads to by aliases, as other
	// resolvers do: services may stand for one another in a circle.
	maxSteps = 8
	// maxSearches bounds the domains that a name is completed with; resolv.conf(5)
	// had six for long, Kubernetes allows 32.
	maxSearches = 32
)

// Clients are the pods that ask, with the domains that their resolv.conf tells
// them to try, in order. They never change.
type Clients struct{ searches map[netip.Addr][]string }

// NewClients makes a set of clients. The first search domain of each must be the
// one that its own names have, such as "shop.svc.cluster.local". Not more than
// maxSearches are used of each.
func NewClients(searches map[netip.Addr][]string) *Clients {
	c := &Clients{searches: make(map[netip.Addr][]string, len(searches))}
	for ip, domains := range searches {
		for _, d := range domains[:min(len(domains), maxSearches)] {
			c.searches[ip] = append(c.searches[ip], Canonical(d))
		}
	}
	return c
}

// Searches are the domains of a client, canonical; none for one that is not known.
func (c *Clients) Searches(ip netip.Addr) []string {
	if c == nil {
		return nil
	}
	return c.searches[ip]
}

// completion is a question that a client's resolver has made by appending its
// first search domain, and would repeat with every other, each in a round trip of
// its own.
type completion struct {
	name     string // as it was before, with a final dot
	searches []string
}

// completes tells whether a question that the zone denies is one to complete.
// Names of one label are not: they are meant for the cluster, and asking others
// for them leaks what is inside. Nor are those below a service, which the zone
// knows all of: somebody else's web.dev is not the pod "web" of a service "dev".
func (z *Zone) completes(searches []string, canonical string) (completion, bool) {
	if len(searches) == 0 {
		return completion{}, false
	}
	before, found := strings.CutSuffix(canonical, "."+searches[0])
	if !found || !strings.Contains(before, ".") || z.belowService(canonical) {
		return completion{}, false
	}
	return completion{name: before + ".", searches: searches[1:]}, true
}

func (z *Zone) belowService(canonical string) bool {
	above, kind, _ := cutLast(strings.TrimSuffix(canonical, "."+z.domain))
	above, namespace, _ := cutLast(above)
	_, service, _ := cutLast(above)
	_, exists := z.services.Get(serviceKey(namespace, service))
	return kind == "svc" && exists
}

// complete tries a name with the other search domains and at last as it is. The
// first that exists is the answer, behind an alias from the name that was asked
// for. exists is false if none does: the client may go on by itself.
func (s *Server) complete(ctx context.Context, z *Zone, q mdns.Question, do bool, c completion) (reply *mdns.Msg, exists bool) {
	candidates := make([]string, 0, len(c.searches)+1)
	for _, domain := range c.searches {
		candidates = append(candidates, c.name+domain)
	}
	for _, name := range append(candidates, c.name) {
		if _, ok := mdns.IsDomainName(name); !ok {
			continue
		}
		got := s.step(ctx, z, mdns.Question{Name: name, Qtype: q.Qtype, Qclass: q.Qclass}, do)
		switch {
		case got == nil || got.Rcode == mdns.RcodeServerFailure:
			// The next may not be tried before this one is known. The client's own
			// question for the name will be told why.
			return nil, false
		case got.Rcode != mdns.RcodeSuccess:
			continue
		}
		got.Answer = append([]mdns.RR{&mdns.CNAME{Hdr: header(q.Name, mdns.TypeCNAME), Target: name}}, got.Answer...)
		return got, true
	}
	return nil, false
}

// step is the answer to one name, from the zone, which has the last word on its
// own, or upstream; nil if that failed.
func (s *Server) step(ctx context.Context, z *Zone, q mdns.Question, do bool) *mdns.Msg {
	if a, ours := z.Lookup(q.Name, q.Qtype); ours {
		return s.chase(ctx, z, a, q, do)
	}
	got, _, err := s.forward.resolve(ctx, q, do)
	if err != nil {
		return nil
	}
	return got
}

// chase makes a message of the zone's answer, with the records of the name at the
// end of its aliases. A name that cannot be resolved leaves the aliases, as RFC
// 1034 has it: whoever asked can try again from there.
func (s *Server) chase(ctx context.Context, z *Zone, a Answer, q mdns.Question, do bool) *mdns.Msg {
	m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Rcode: a.Rcode}, Answer: a.Answer, Ns: a.Ns, Extra: a.Extra}
	for steps := 0; a.Chase != ""; steps++ {
		if steps == maxSteps {
			m.Rcode = mdns.RcodeServerFailure
			return m
		}
		target := a.Chase
		next, ours := z.Lookup(target, q.Qtype)
		if !ours {
			got, _, err := s.forward.resolve(ctx, mdns.Question{Name: target, Qtype: q.Qtype, Qclass: q.Qclass}, do)
			if err != nil {
				m.Rcode = mdns.RcodeServerFailure
				return m
			}
			m.Rcode, m.Answer, m.Ns, m.Extra = got.Rcode, append(m.Answer, got.Answer...), got.Ns, got.Extra
			return m
		}
		a = next
		m.Rcode, m.Answer, m.Ns, m.Extra = a.Rcode, append(m.Answer, a.Answer...), a.Ns, append(m.Extra, a.Extra...)
	}
	return m
}
