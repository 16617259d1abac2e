package dns_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"github.com/balsa-run/balsa/dns"
)

var (
	client = netip.MustParseAddr("10.244.1.77")
	host   = netip.MustParseAddr("192.0.2.77")
)

// internet knows two names, denies the rest, and counts what it is asked for.
type internet struct{ asked []string }

func (i *internet) exchange(_ context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
	name := q.Question[0].Name
	i.asked = append(i.asked, name)
	switch name {
	case "www.example.com.", "web.dev.":
		if q.Question[0].Qtype == mdns.TypeAAAA {
			return says(q)
		}
		return says(q, name+" 60 IN A 198.51.100.7")
	case "x.broken.corp.example.":
		return says(q, "x.broken.corp.example. 60 IN A 198.51.100.8")
	case "x.broken.example.":
		return nil, errors.New("no route")
	}
	m, err := says(q)
	m.Rcode = mdns.RcodeNameError
	return m, err
}

func podServer(t *testing.T) (*dns.Server, *internet) {
	t.Helper()
	i := &internet{}
	s := server(t, i.exchange, up1)
	s.SetClients(dns.NewClients(map[netip.Addr][]string{
		client: {"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"},
	}))
	return s, i
}

func lines(m *mdns.Msg) []string {
	out := []string{mdns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return out
}

// TestAliases: an ExternalName service stands for a name inside or outside, and
// not for itself.
func TestAliases(t *testing.T) {
	s, _ := podServer(t)
	for name, want := range map[string][]string{
		"outside.shop.svc.cluster.local.": {"NOERROR", "outside.shop.svc.cluster.local. 5 IN CNAME www.example.com.", "www.example.com. 60 IN A 198.51.100.7"},
		"inside.shop.svc.cluster.local.":  {"NOERROR", "inside.shop.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.", "web.shop.svc.cluster.local. 5 IN A 10.96.0.10"},
	} {
		if diff := cmp.Diff(want, lines(ask(s, name))); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	m := ask(s, "tick.shop.svc.cluster.local.")
	if m.Rcode != mdns.RcodeServerFailure || !strings.Contains(reason(m), "for itself") {
		t.Errorf("a circle: %v %q", lines(m), reason(m))
	}
}

// TestCompletion: one question instead of one for every search domain.
func TestCompletion(t *testing.T) {
	for name, test := range map[string]struct {
		from        netip.Addr
		qtype       uint16
		want, asked []string
	}{
		"web.shop.shop.svc.cluster.local.": { // "web.shop", as many write it
			client, mdns.TypeA, []string{"NOERROR", "web.shop.shop.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.", "web.shop.svc.cluster.local. 5 IN A 10.96.0.10"}, nil},
		"inside.shop.shop.svc.cluster.local.": {
			client, mdns.TypeA, []string{"NOERROR", "inside.shop.shop.svc.cluster.local. 5 IN CNAME inside.shop.svc.cluster.local.",
				"inside.shop.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.", "web.shop.svc.cluster.local. 5 IN A 10.96.0.10"}, nil},
		"www.example.com.shop.svc.cluster.local.": {
			client, mdns.TypeA, []string{"NOERROR", "www.example.com.shop.svc.cluster.local. 5 IN CNAME www.example.com.", "www.example.com. 60 IN A 198.51.100.7"},
			[]string{"www.example.com.corp.example.", "www.example.com."}},
		"www.Example.com.shop.svc.cluster.local.": { // exists without such a record: no other domain may be tried
			client, mdns.TypeAAAA, []string{"NOERROR", "www.Example.com.shop.svc.cluster.local. 5 IN CNAME www.example.com."},
			[]string{"www.example.com.corp.example.", "www.example.com."}},
		"none.example.com.shop.svc.cluster.local.": {
			client, mdns.TypeA, []string{"NXDOMAIN"}, []string{"none.example.com.corp.example.", "none.example.com."}},
		// Not completed: somebody else asks, ...
		"www.example.com.shop.svc.cluster.local": {host, mdns.TypeA, []string{"NXDOMAIN"}, nil},
		// ... or for a name of one label, ...
		"host.shop.svc.cluster.local.": {client, mdns.TypeA, []string{"NXDOMAIN"}, nil},
		// ... or below a service, ...
		"web.db.shop.svc.cluster.local.": {client, mdns.TypeA, []string{"NXDOMAIN"}, nil},
		// ... or with a later domain, ...
		"www.example.com.svc.cluster.local.": {client, mdns.TypeA, []string{"NXDOMAIN"}, nil},
		// ... or for what is there.
		"web.shop.svc.cluster.local.": {client, mdns.TypeAAAA, []string{"NOERROR"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, i := podServer(t)
			m := s.Resolve(t.Context(), test.from, question(mdns.Fqdn(name), test.qtype))
			if diff := cmp.Diff(test.want, lines(m)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.asked, i.asked); diff != "" {
				t.Errorf("asked upstream:\n%s", diff)
			}
		})
	}
}

// TestCompletionStopsAtAFailure: a domain that cannot be asked for might have the
// name, so that none after it may answer.
func TestCompletionStopsAtAFailure(t *testing.T) {
	s, i := podServer(t)
	s.SetClients(dns.NewClients(map[netip.Addr][]string{client: {"shop.svc.cluster.local", "example", "corp.example"}}))
	m := s.Resolve(t.Context(), client, question("x.broken.shop.svc.cluster.local.", mdns.TypeA))
	if m.Rcode != mdns.RcodeNameError || len(m.Answer) != 0 || slices.Contains(i.asked, "x.broken.corp.example.") {
		t.Errorf("got %v, asked %v", lines(m), i.asked)
	}
}

// TestLongSearchLists are cut, and names that become too long passed over.
func TestLongSearchLists(t *testing.T) {
	s, i := podServer(t)
	searches := []string{"shop.svc.cluster.local"}
	for range 100 {
		searches = append(searches, strings.Repeat("a.", 120)+"example")
	}
	s.SetClients(dns.NewClients(map[netip.Addr][]string{client: searches}))
	m := s.Resolve(t.Context(), client, question("www.example.com.shop.svc.cluster.local.", mdns.TypeA))
	if len(m.Answer) != 2 || len(i.asked) != 1 {
		t.Errorf("got %v, asked %d", lines(m), len(i.asked))
	}
}
