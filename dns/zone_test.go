package dns_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// objects is a small cluster, as the API has it.
func objects() ([]*balsav1.Service, []*balsav1.EndpointSlice) {
	no := false
	meta := func(ns, name string) *balsav1.ObjectMeta { return &balsav1.ObjectMeta{Namespace: ns, Name: name} }
	services := []*balsav1.Service{
		{Metadata: meta("shop", "web"), Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.10", Ports: []*balsav1.ServicePort{{Name: "http", Port: 80}, {Name: "quic", Port: 443, Protocol: "UDP"}, {Port: 99}}}},
		{Metadata: meta("shop", "db"), Spec: &balsav1.ServiceSpec{ClusterIp: "None"}},
		{Metadata: meta("shop", "empty"), Spec: &balsav1.ServiceSpec{ClusterIp: "None"}},
		{Metadata: meta("shop", "pending"), Spec: &balsav1.ServiceSpec{}},
		{Metadata: meta("shop", "broken"), Spec: &balsav1.ServiceSpec{ClusterIp: "ten"}},
	}
	slices := []*balsav1.EndpointSlice{
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "db-x", Labels: map[string]string{"kubernetes.io/service-name": "db"}},
			Ports: []*balsav1.EndpointPort{{Name: "sql", Port: 5432}, {Port: 1}},
			Endpoints: []*balsav1.Endpoint{
				{Addresses: []string{"10.244.1.5"}, Hostname: "DB-0"}, {Addresses: []string{"10.244.2.6"}}, {Addresses: []string{"10.244.3.7"}, Hostname: "a.b"},
				{Addresses: []string{"10.244.9.9"}, Hostname: "db-9", Conditions: &balsav1.EndpointConditions{Ready: &no}}, {Addresses: []string{"nonsense"}},
			}},
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "empty-x", OwnerReferences: []*balsav1.OwnerReference{{Kind: "Service", Name: "empty"}}},
			Endpoints: []*balsav1.Endpoint{{Addresses: []string{"10.244.1.8"}, Conditions: &balsav1.EndpointConditions{Ready: &no}}}},
		{Metadata: meta("shop", "web-x"), Endpoints: []*balsav1.Endpoint{{Addresses: []string{"10.244.1.1"}}}},
	}
	return services, slices
}

func exampleZone(t testing.TB) *dns.Zone {
	t.Helper()
	services, slices := objects()
	v, problems := dns.FromObjects(42, dns.ZoneParams{Domain: "cluster.local", Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}, services, slices)
	if len(problems) != 2 {
		t.Errorf("problems %q, want 2", problems)
	}
	return dns.Build(v)
}

// TestZoneGolden asks the questions of testdata/zone.txtar, "name TYPE" a line.
func TestZoneGolden(t *testing.T) {
	const file = "testdata/zone.txtar"
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	z := exampleZone(t)
	var got strings.Builder
	for line := range strings.Lines(string(archive.Files[0].Data)) {
		name, qtype, _ := strings.Cut(strings.TrimSpace(line), " ")
		a, ours := z.Lookup(name, mdns.StringToType[qtype])
		fmt.Fprintf(&got, "? %s %s\n", name, qtype)
		if !ours {
			got.WriteString("  not ours\n")
			continue
		}
		fmt.Fprintf(&got, "  %s\n", mdns.RcodeToString[a.Rcode])
		for _, rr := range a.Answer {
			fmt.Fprintf(&got, "  %s\n", strings.ReplaceAll(rr.String(), "\t", " "))
		}
		for _, rr := range a.Ns {
			fmt.Fprintf(&got, "  authority %s\n", strings.ReplaceAll(rr.String(), "\t", " "))
		}
		for _, rr := range a.Extra {
			fmt.Fprintf(&got, "  extra %s\n", strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	if *update {
		archive.Files = []txtar.File{archive.Files[0], {Name: "answers", Data: []byte(got.String())}}
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(archive.Files[1].Data), got.String()); d != "" {
		t.Errorf("recorded and answered differ (run with -update to accept):\n%s", d)
	}
}

// twin answers A questions by going through the view.
func twin(v dns.View, name string) (ips []netip.Addr, exists bool) {
	add := func(n string, ip netip.Addr) {
		if n == name {
			ips = append(ips, ip)
		}
		exists = exists || n == name || strings.HasSuffix(n, "."+name)
	}
	for _, fixed := range []string{"svc.cluster.local.", "dns-version.cluster.local."} {
		exists = exists || fixed == name || strings.HasSuffix(fixed, "."+name) && name != "local."
	}
	for _, s := range v.Services {
		base := s.Name + "." + s.Namespace + ".svc.cluster.local."
		if s.ClusterIP.IsValid() {
			add(base, s.ClusterIP)
			for _, p := range s.Ports {
				if n := "_" + p.Name + "._" + p.Protocol + "." + base; p.Name != "" {
					exists = exists || n == name || strings.HasSuffix(n, "."+name)
				}
			}
		}
		for _, e := range s.Endpoints {
			if s.ClusterIP.IsValid() || !e.Ready {
				continue
			}
			host := e.Hostname
			if host == "" {
				host = strings.ReplaceAll(e.IP.String(), ".", "-")
			}
			add(base, e.IP)
			add(host+"."+base, e.IP)
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips), exists
}

func TestZoneAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := dns.View{Domain: "cluster.local"}
		names := []string{"cluster.local.", "svc.cluster.local.", "no.cluster.local.", "dns-version.cluster.local."}
		for range rapid.IntRange(0, 5).Draw(t, "services") {
			s := dns.Service{Namespace: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "ns"), Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")}
			if rapid.Bool().Draw(t, "address") {
				s.ClusterIP = netip.AddrFrom4([4]byte{10, 96, 0, rapid.ByteRange(1, 9).Draw(t, "ip")})
				s.Ports = []dns.Port{{Name: rapid.SampledFrom([]string{"", "http"}).Draw(t, "port"), Protocol: "tcp", Port: 80}}
			}
			for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
				s.Endpoints = append(s.Endpoints, dns.Endpoint{IP: netip.AddrFrom4([4]byte{10, 244, 0, rapid.ByteRange(1, 4).Draw(t, "pod")}),
					Hostname: rapid.SampledFrom([]string{"", "h0", "h1"}).Draw(t, "host"), Ready: rapid.Bool().Draw(t, "ready")})
			}
			v.Services = append(v.Services, s)
		}
		for _, ns := range []string{"x", "y", "z"} {
			names = append(names, ns+".svc.cluster.local.")
			for _, s := range []string{"a", "b", "c"} {
				base := s + "." + ns + ".svc.cluster.local."
				names = append(names, base, "h0."+base, "10-244-0-1."+base, "_tcp."+base, "_http._tcp."+base, "_sql._tcp."+base)
			}
		}
		z := dns.Build(v)
		for _, name := range names {
			a, ours := z.Lookup(strings.ToUpper(name), mdns.TypeA)
			want, exists := twin(v, name)
			var got []netip.Addr
			for _, rr := range a.Answer {
				ip, _ := netip.AddrFromSlice(rr.(*mdns.A).A)
				got = append(got, ip)
			}
			if !ours || !slices.Equal(got, want) || exists != (a.Rcode == mdns.RcodeSuccess) || (len(got) == 0) != (len(a.Ns) == 1) {
				t.Fatalf("%s: %v code %s authority %v, want %v exists %v\nin %+v", name, got, mdns.RcodeToString[a.Rcode], a.Ns, want, exists, v)
			}
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		v := dns.View{Domain: "cluster.local"}
		for i := range n {
			v.Services = append(v.Services, dns.Service{Namespace: "default", Name: fmt.Sprint("s", i), ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}),
				Ports: []dns.Port{{Name: "http", Protocol: "tcp", Port: 80}}})
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				dns.Build(v)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	z := exampleZone(b)
	for b.Loop() {
		z.Lookup("web.shop.svc.cluster.local.", mdns.TypeA)
	}
}
