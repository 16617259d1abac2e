package dns_test

import (
	"flag"
	"fmt"
	"maps"
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
	alias := func(name string) *balsav1.ServiceSpec {
		return &balsav1.ServiceSpec{Type: "ExternalName", ExternalName: name}
	}
	services := []*balsav1.Service{
		{Metadata: meta("shop", "outside"), Spec: alias("www.Example.com")},
		{Metadata: meta("shop", "inside"), Spec: alias("web.shop.svc.cluster.local")},
		{Metadata: meta("shop", "tick"), Spec: alias("tock.shop.svc.cluster.local")},
		{Metadata: meta("shop", "tock"), Spec: alias("tick.shop.svc.cluster.local")},
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

var zoneParams = dns.ZoneParams{Domain: "cluster.local", Pods: netip.MustParsePrefix("10.244.0.0/16"), Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}

func exampleZone(t testing.TB) *dns.Zone {
	t.Helper()
	services, slices := objects()
	v, problems := dns.FromObjects(42, zoneParams, services, slices)
	if len(problems) != 2 {
		t.Errorf("problems %q, want 2", problems)
	}
	v.Namespaces = []string{"shop", "empty"}
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
		v := dns.View{ZoneParams: dns.ZoneParams{Domain: "cluster.local"}}
		names := []string{"cluster.local.", "svc.cluster.local.", "no.cluster.local.", "dns-version.cluster.local."}
		for _, of := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"x/a", "x/b", "x/c", "y/a", "y/b", "y/c"}), rapid.ID).Draw(t, "services") {
			namespace, name, _ := strings.Cut(of, "/")
			s := dns.Service{Namespace: namespace, Name: name}
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

// TestTrackerIsBuild: a zone of many changes is the zone of what there is.
func TestTrackerIsBuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tracker := dns.NewTracker(zoneParams)
		services, endpoints := map[string]*balsav1.Service{}, map[string]*balsav1.EndpointSlice{}
		key := rapid.SampledFrom([]string{"x/a", "x/b", "y/a"})
		for range rapid.IntRange(1, 30).Draw(t, "changes") {
			k := key.Draw(t, "of")
			namespace, name, _ := strings.Cut(k, "/")
			switch rapid.IntRange(0, 6).Draw(t, "change") {
			case 0:
				delete(services, k)
				tracker.Delete("Service", namespace, name)
			case 1:
				delete(endpoints, k)
				tracker.Delete("EndpointSlice", namespace, name)
			case 2, 3:
				services[k] = drawService(t, namespace, name)
				tracker.Upsert(services[k])
			case 4:
				tracker.Zone(1)
			default:
				endpoints[k] = drawSlice(t, namespace, name)
				tracker.Upsert(endpoints[k])
			}
		}
		got, _ := tracker.Zone(2)
		if again, changed := tracker.Zone(3); changed || again != got {
			t.Fatal("nothing has changed, and it made another zone")
		}
		v, problems := dns.FromObjects(2, zoneParams, slices.Collect(maps.Values(services)), slices.Collect(maps.Values(endpoints)))
		if slices.Sort(problems); !slices.Equal(problems, tracker.Problems()) {
			t.Fatalf("problems %q, want %q", tracker.Problems(), problems)
		}
		want := dns.Build(v)
		for _, q := range questionsOf("x", "y") {
			a, _ := got.Lookup(q.Name, q.Qtype)
			b, _ := want.Lookup(q.Name, q.Qtype)
			if a, b := recordsOf(a), recordsOf(b); a != b {
				t.Fatalf("%s: %s, want %s", q.String(), a, b)
			}
		}
	})
}

func drawService(t *rapid.T, namespace, name string) *balsav1.Service {
	s := &balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: &balsav1.ServiceSpec{
		ClusterIp: rapid.SampledFrom([]string{"", "None", "None", "10.96.0.1", "10.96.0.2", "ten"}).Draw(t, "ip"),
		Ports:     []*balsav1.ServicePort{{Name: "http", Port: 80}},
	}}
	if rapid.IntRange(0, 5).Draw(t, "alias") == 0 {
		s.Spec = &balsav1.ServiceSpec{Type: "ExternalName", ExternalName: "www.example.com"}
	}
	return s
}

func drawSlice(t *rapid.T, namespace, name string) *balsav1.EndpointSlice {
	s := &balsav1.EndpointSlice{Ports: []*balsav1.EndpointPort{{Name: "sql", Port: 5432}}, Metadata: &balsav1.ObjectMeta{Namespace: namespace, Name: name,
		Labels: map[string]string{"kubernetes.io/service-name": rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "service")}}}
	for range rapid.IntRange(0, 3).Draw(t, "endpoints") {
		ready := rapid.Bool().Draw(t, "ready")
		s.Endpoints = append(s.Endpoints, &balsav1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.244.0.%d", rapid.IntRange(1, 3).Draw(t, "pod"))}, Hostname: rapid.SampledFrom([]string{"", "h0"}).Draw(t, "host"),
			Conditions: &balsav1.EndpointConditions{Ready: &ready},
		})
	}
	return s
}

// questionsOf asks for all that drawService and drawSlice can make.
func questionsOf(namespaces ...string) (out []mdns.Question) {
	for _, ns := range namespaces {
		names := []string{ns + ".svc", ns + ".pod"}
		for _, s := range []string{"a", "b"} {
			base := s + "." + ns + ".svc"
			names = append(names, base, "h0."+base, "10-244-0-1."+base, "_http._tcp."+base, "_sql._tcp."+base, "_tcp."+base)
		}
		for _, n := range names {
			out = append(out, mdns.Question{Name: n + ".cluster.local.", Qtype: mdns.TypeANY})
		}
	}
	for _, ip := range []string{"1.0.96.10", "2.0.96.10", "1.0.244.10", "2.0.244.10", "3.0.244.10"} {
		out = append(out, mdns.Question{Name: ip + ".in-addr.arpa.", Qtype: mdns.TypePTR})
	}
	return out
}

func recordsOf(a dns.Answer) string {
	return fmt.Sprint(mdns.RcodeToString[a.Rcode], a.Answer, a.Extra, a.Chase)
}

func BenchmarkTracker(b *testing.B) {
	t := dns.NewTracker(zoneParams)
	service := func(i, ip int) *balsav1.Service {
		return &balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("s", i)}, Spec: &balsav1.ServiceSpec{
			ClusterIp: netip.AddrFrom4([4]byte{10, 96, byte(ip >> 8), byte(ip)}).String(), Ports: []*balsav1.ServicePort{{Name: "http", Port: 80}}}}
	}
	for i := range 10_000 {
		t.Upsert(service(i, i))
	}
	t.Zone(1)
	for i := 0; b.Loop(); i++ {
		t.Upsert(service(i%10_000, (i+1)%20_000))
		t.Zone(2)
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		v := dns.View{ZoneParams: dns.ZoneParams{Domain: "cluster.local"}}
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
