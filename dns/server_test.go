package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/balsa-run/balsa/dns"
)

// upstream is a world of DNS servers in memory.
type upstream func(ctx context.Context, network string, server netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error)

func (u upstream) Exchange(ctx context.Context, network string, server netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
	return u(ctx, network, server, q)
}

func silent(ctx context.Context) (*mdns.Msg, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func says(q *mdns.Msg, records ...string) (*mdns.Msg, error) {
	m := new(mdns.Msg).SetReply(q)
	for _, r := range records {
		rr, err := mdns.NewRR(r)
		if err != nil {
			return nil, err
		}
		m.Answer = append(m.Answer, rr)
	}
	return m, nil
}

func server(t testing.TB, u upstream, upstreams ...string) *dns.Server {
	t.Helper()
	s, err := dns.NewServer(dns.Options{Domain: "cluster.local", Exchange: u, Self: []netip.AddrPort{netip.MustParseAddrPort("169.254.20.10:53")}})
	if err != nil {
		t.Fatal(err)
	}
	var servers []netip.AddrPort
	for _, a := range upstreams {
		servers = append(servers, netip.MustParseAddrPort(a))
	}
	s.SetUpstreams(servers)
	s.SetZone(exampleZone(t))
	return s
}

func question(name string, qtype uint16) *mdns.Msg {
	m := new(mdns.Msg).SetQuestion(name, qtype)
	m.SetEdns0(4096, false)
	return m
}

func ask(s *dns.Server, name string) *mdns.Msg {
	return s.Resolve(context.Background(), netip.Addr{}, question(name, mdns.TypeA))
}

// reason is the text of an extended error.
func reason(m *mdns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*mdns.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
	}
	return ""
}

func first(m *mdns.Msg) string {
	if len(m.Answer) == 0 {
		return mdns.RcodeToString[m.Rcode]
	}
	return strings.ReplaceAll(m.Answer[0].String(), "\t", " ")
}

const (
	up1 = "192.0.2.1:53"
	up2 = "192.0.2.2:53"
)

func TestZoneSwap(t *testing.T) {
	s, err := dns.NewServer(dns.Options{Domain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	m := ask(s, "web.shop.svc.cluster.local.")
	if m.Rcode != mdns.RcodeServerFailure || reason(m) == "" || s.Revision() != 0 {
		t.Errorf("before the first zone: %v", m)
	}
	s.SetZone(exampleZone(t))
	if m := ask(s, "web.shop.svc.cluster.local."); first(m) != "web.shop.svc.cluster.local. 5 IN A 10.96.0.10" || !m.Authoritative || s.Revision() != 42 {
		t.Errorf("with a zone: %v", m)
	}
	s.SetZone(dns.Build(dns.View{Revision: 43, ZoneParams: dns.ZoneParams{Domain: "cluster.local"}}))
	if m := ask(s, "web.shop.svc.cluster.local."); m.Rcode != mdns.RcodeNameError || s.Revision() != 43 {
		t.Errorf("with the next zone: %v", m)
	}
}

func TestAnswersRotate(t *testing.T) {
	s := server(t, nil)
	seen := map[string]bool{}
	for range 3 {
		seen[first(ask(s, "db.shop.svc.cluster.local."))] = true
	}
	if len(seen) != 3 {
		t.Errorf("first answers of three questions: %v", seen)
	}
}

func TestForwardAndCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := server(t, func(_ context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
			asked++
			if q.Question[0].Name == "no.example.com." {
				m := new(mdns.Msg).SetRcode(q, mdns.RcodeNameError)
				soa, err := mdns.NewRR("example.com. 600 IN SOA ns h 1 2 3 4 10")
				m.Ns = []mdns.RR{soa}
				return m, err
			}
			return says(q, "example.com. 20 IN A 192.0.2.80")
		}, up1)
		for _, step := range []struct {
			name, want string
			sleep      time.Duration
			asked      int
		}{
			{"Example.com.", "example.com. 20 IN A 192.0.2.80", 0, 1},
			{"example.com.", "example.com. 15 IN A 192.0.2.80", 5 * time.Second, 1}, // cached, and older
			{"example.com.", "example.com. 20 IN A 192.0.2.80", 15 * time.Second, 2},
			{"no.example.com.", "NXDOMAIN", 0, 3},
			{"no.example.com.", "NXDOMAIN", 9 * time.Second, 3},
			{"no.example.com.", "NXDOMAIN", time.Second, 4}, // after the SOA's ten seconds
		} {
			time.Sleep(step.sleep) // virtual
			if got := first(ask(s, step.name)); got != step.want || asked != step.asked {
				t.Errorf("%s after %s: %q, upstream asked %d times; want %q and %d", step.name, step.sleep, got, asked, step.want, step.asked)
			}
		}
	})
}

func TestNextUpstreamAndPreference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		s := server(t, func(ctx context.Context, _ string, server netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
			order = append(order, server.String())
			if server.String() == up1 {
				return silent(ctx)
			}
			return says(q, q.Question[0].Name+" 1 IN A 192.0.2.80")
		}, up1, up2)
		start := time.Now()
		ask(s, "a.example.com.")
		if d := time.Since(start); d != 1500*time.Millisecond {
			t.Errorf("first answer after %s, want one attempt's time-out", d)
		}
		start = time.Now()
		ask(s, "b.example.com.")
		if d := time.Since(start); d != 0 || strings.Join(order, " ") != up1+" "+up2+" "+up2 {
			t.Errorf("second answer after %s, asked %v; want the one that answered last first", d, order)
		}
	})
}

func TestFailuresHaveReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servfail := func(_ context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
			return new(mdns.Msg).SetRcode(q, mdns.RcodeServerFailure), nil
		}
		for name, test := range map[string]struct {
			upstream  upstream
			upstreams []string
			within    time.Duration
			reason    string
		}{
			"none":        {nil, nil, 0, "no upstream"},
			"only itself": {nil, []string{"169.254.20.10:53"}, 0, "no upstream"},
			"silent": {func(ctx context.Context, _ string, _ netip.AddrPort, _ *mdns.Msg) (*mdns.Msg, error) {
				return silent(ctx)
			}, []string{up1, up2}, 4 * time.Second, "deadline"},
			"refused": {func(context.Context, string, netip.AddrPort, *mdns.Msg) (*mdns.Msg, error) {
				return nil, errors.New("connection refused")
			}, []string{up1}, 500 * time.Millisecond, up1 + ": connection refused"},
			"other question": {func(_ context.Context, _ string, _ netip.AddrPort, _ *mdns.Msg) (*mdns.Msg, error) {
				return says(question("evil.example.", mdns.TypeA), "evil.example. 1 IN A 192.0.2.66")
			}, []string{up1}, 500 * time.Millisecond, "another question"},
			"they fail": {servfail, []string{up1, up2}, 0, ""},
		} {
			s := server(t, test.upstream, test.upstreams...)
			start := time.Now()
			m := ask(s, "example.com.")
			if d := time.Since(start); m.Rcode != mdns.RcodeServerFailure || d != test.within || !strings.Contains(reason(m), test.reason) {
				t.Errorf("%s: %s %q after %s; want SERVFAIL, %q, %s", name, mdns.RcodeToString[m.Rcode], reason(m), d, test.reason, test.within)
			}
			start = time.Now()
			if m := ask(s, "example.com."); time.Since(start) != 0 || !strings.Contains(reason(m), test.reason) {
				t.Errorf("%s: a failure is not remembered for a second", name)
			}
		}
	})
}

// An upstream that asks us in turn must cost one time-out, not a storm.
func TestLoopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *dns.Server
		asked := 0
		s = server(t, func(ctx context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
			asked++
			done := make(chan *mdns.Msg, 1)
			go func() { done <- s.Resolve(context.Background(), netip.Addr{}, q) }()
			select {
			case m := <-done:
				return m, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, up1)
		m := ask(s, "example.com.")
		if m.Rcode != mdns.RcodeServerFailure || asked > 3 {
			t.Errorf("%s after %d questions upstream", mdns.RcodeToString[m.Rcode], asked)
		}
		synctest.Wait()
	})
}

func TestEqualQuestionsShareOneForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := server(t, func(_ context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
			asked++
			time.Sleep(time.Second) // virtual
			return says(q, "example.com. 0 IN A 192.0.2.80")
		}, up1)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got := first(ask(s, "example.com.")); got != "example.com. 0 IN A 192.0.2.80" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if asked != 1 {
			t.Errorf("upstream asked %d times for 100 equal questions at once", asked)
		}
	})
}

func TestForwardsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := server(t, func(ctx context.Context, _ string, _ netip.AddrPort, _ *mdns.Msg) (*mdns.Msg, error) {
			return silent(ctx)
		}, up1)
		const questions = 1024 + 10
		refused := make(chan string, questions)
		for i := range questions {
			go func() { refused <- reason(ask(s, fmt.Sprintf("n%d.example.com.", i))) }()
		}
		synctest.Wait() // all that wait, wait; the others have their answer
		if len(refused) != 10 {
			t.Fatalf("%d questions refused, want 10", len(refused))
		}
		if r := <-refused; !strings.Contains(r, "1024") {
			t.Errorf("reason %q does not name the limit", r)
		}
		if m := ask(s, "web.shop.svc.cluster.local."); len(m.Answer) != 1 {
			t.Error("the zone's answers suffer from upstreams")
		}
		time.Sleep(10 * time.Second) // virtual
	})
}

func TestTCPFallbackAndOldServers(t *testing.T) {
	var networks []string
	s := server(t, func(_ context.Context, network string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
		networks = append(networks, fmt.Sprint(network, q.IsEdns0() != nil))
		if q.IsEdns0() != nil {
			return new(mdns.Msg).SetRcode(q, mdns.RcodeFormatError), nil
		}
		m, err := says(q, "example.com. 1 IN A 192.0.2.80")
		m.Truncated = network == "udp"
		return m, err
	}, up1)
	if m := ask(s, "example.com."); len(m.Answer) != 1 || strings.Join(networks, " ") != "udptrue udpfalse tcpfalse" {
		t.Errorf("%v by %v", m.Answer, networks)
	}
}

func TestRefusals(t *testing.T) {
	s := server(t, nil)
	chaos := question("version.bind.", mdns.TypeTXT)
	chaos.Question[0].Qclass = mdns.ClassCHAOS
	notify := new(mdns.Msg).SetNotify("cluster.local.")
	two := question("a.", mdns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	newer := question("web.shop.svc.cluster.local.", mdns.TypeA)
	newer.IsEdns0().SetVersion(1)
	for want, m := range map[int]*mdns.Msg{mdns.RcodeRefused: chaos, mdns.RcodeNotImplemented: notify, mdns.RcodeFormatError: two, mdns.RcodeBadVers: newer} {
		if got := s.Resolve(context.Background(), netip.Addr{}, m).Rcode; got != want {
			t.Errorf("%v: %s, want %s", m.Question, mdns.RcodeToString[got], mdns.RcodeToString[want])
		}
	}
	if _, err := dns.NewServer(dns.Options{}); err == nil {
		t.Error("a server without domain was made")
	}
}

// Real sockets: UDP is cut to what the client takes, TCP is whole, and Serve
// ends when it is told to.
func TestServe(t *testing.T) {
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := server(t, nil)
	big := dns.Service{Namespace: "x", Name: "big"}
	for i := range 200 {
		big.Endpoints = append(big.Endpoints, dns.Endpoint{IP: netip.AddrFrom4([4]byte{10, 244, 0, byte(i)}), Ready: true})
	}
	s.SetZone(dns.Build(dns.View{ZoneParams: dns.ZoneParams{Domain: "cluster.local"}, Services: []dns.Service{big}}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, udp, tcp) }()

	q := question("big.x.svc.cluster.local.", mdns.TypeA)
	for network, c := range map[string]struct {
		addr string
		all  bool
	}{"udp": {udp.LocalAddr().String(), false}, "tcp": {tcp.Addr().String(), true}} {
		client := mdns.Client{Net: network, UDPSize: 4096}
		m, _, err := client.Exchange(q, c.addr)
		if err != nil {
			t.Fatal(network, err)
		}
		if m.Truncated == c.all || (len(m.Answer) == 200) != c.all || len(m.Answer) < 50 {
			t.Errorf("%s: %d answers, truncated %v", network, len(m.Answer), m.Truncated)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeReportsDeadSocket(t *testing.T) {
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	if err := server(t, nil).Serve(context.Background(), udp, tcp); err == nil {
		t.Error("serving on a closed socket ended well")
	}
}

func TestParseResolvConf(t *testing.T) {
	got, err := dns.ParseResolvConf(strings.NewReader("# comment\nnameserver 192.0.2.1\nsearch x\n nameserver fe80::1%eth0 # last\noptions ndots:5\n"))
	if err != nil || fmt.Sprint(got) != "[192.0.2.1:53 [fe80::1%eth0]:53]" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"nameserver", "nameserver one"} {
		if _, err := dns.ParseResolvConf(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := dns.NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	s, err := dns.NewServer(dns.Options{Domain: "cluster.local", Metrics: m, Exchange: upstream(func(_ context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) {
		return says(q, "example.com. 20 IN A 192.0.2.80")
	})})
	if err != nil {
		t.Fatal(err)
	}
	s.SetUpstreams([]netip.AddrPort{netip.MustParseAddrPort(up1)})
	s.SetZone(exampleZone(t))
	for _, name := range []string{"web.shop.svc.cluster.local.", "none.svc.cluster.local.", "example.com.", "example.com."} {
		ask(s, name)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, c := range f.GetMetric() {
			line := f.GetName()
			for _, l := range c.GetLabel() {
				line += " " + l.GetValue()
			}
			if c.GetCounter() != nil {
				got = append(got, fmt.Sprint(line, " ", c.GetCounter().GetValue()))
			}
		}
	}
	want := []string{"balsa_dns_queries_total NOERROR cache 1", "balsa_dns_queries_total NOERROR upstream 1", "balsa_dns_queries_total NOERROR zone 1",
		"balsa_dns_queries_total NXDOMAIN zone 1", "balsa_dns_upstream_failures_total 0"}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("metrics %q, want %q", got, want)
	}
	if _, err := dns.NewMetrics(registry); err == nil {
		t.Error("metrics registered twice")
	}
}

// Whatever comes in, the answer can be sent.
func FuzzResolve(f *testing.F) {
	for _, name := range []string{"web.shop.svc.cluster.local.", "_http._tcp.web.shop.svc.cluster.local.", "10.0.96.10.in-addr.arpa.", `a\.b.cluster.local.`} {
		b, err := question(name, mdns.TypeANY).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := server(f, func(_ context.Context, _ string, _ netip.AddrPort, q *mdns.Msg) (*mdns.Msg, error) { return says(q) }, up1)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(mdns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		reply := s.Resolve(context.Background(), netip.Addr{}, m)
		reply.Truncate(mdns.MinMsgSize)
		if _, err := reply.Pack(); err != nil {
			t.Fatalf("%v\n->\n%v: %v", m, reply, err)
		}
	})
}
