//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
)

const webVIP = "10.96.0.10"

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func view(services ...netproxy.ServicePort) netproxy.View {
	return netproxy.View{
		PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"),
		NodeIP: ip("192.168.77.1"), Services: services,
	}
}

func service(vip string, p netproxy.Protocol, endpoints ...string) netproxy.ServicePort {
	s := netproxy.ServicePort{Namespace: "default", Name: "s" + vip, VIP: ip(vip), Protocol: p, Port: 80}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, netproxy.Endpoint{IP: ip(e), Port: 8080, Ready: true})
	}
	return s
}

// both is a service by TCP and UDP.
func both(vip string, endpoints ...string) []netproxy.ServicePort {
	return []netproxy.ServicePort{service(vip, netproxy.TCP, endpoints...), service(vip, netproxy.UDP, endpoints...)}
}

func newApplier(t testing.TB, n *netlab.NS) *apply.Applier {
	t.Helper()
	a, err := apply.New(apply.Options{NetNS: n.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func sync(t testing.TB, a *apply.Applier, v netproxy.View) netproxy.Result {
	t.Helper()
	r := netproxy.Plan(v)
	if len(r.Problems) > 0 {
		t.Fatalf("problems: %v", r.Problems)
	}
	result, err := a.Sync(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func scrub(t testing.TB, a *apply.Applier) netproxy.ScrubReport {
	t.Helper()
	r, err := a.Scrub(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lab is a node n1 with pods a and b, a node n2 with pod c.
type lab struct{ n1, n2, a, b, c *netlab.NS }

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{netlab.New(t, "n1"), netlab.New(t, "n2"), netlab.New(t, "a"), netlab.New(t, "b"), netlab.New(t, "c")}
	netlab.Veth(l.n1, "eth0", l.n2, "eth0")
	l.n1.Addr("eth0", "192.168.77.1/24")
	l.n2.Addr("eth0", "192.168.77.2/24")
	for _, n := range []*netlab.NS{l.n1, l.n2} {
		n.Sysctl("net.ipv4.ip_forward", "1")
	}
	netlab.RoutedPod(l.a, l.n1, "va", "10.244.1.10")
	netlab.RoutedPod(l.b, l.n1, "vb", "10.244.1.11")
	netlab.RoutedPod(l.c, l.n2, "vc", "10.244.2.10")
	l.n1.Route("10.244.2.0/24", "192.168.77.2")
	l.n2.Route("10.244.1.0/24", "192.168.77.1")
	for _, p := range []*netlab.NS{l.a, l.b, l.c} {
		p.Serve(":8080")
	}
	return l
}

// answers asks often and counts the answers.
func answers(t *testing.T, from *netlab.NS, network, addr string, times int) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for range times {
		answer, err := from.Request(network, addr)
		if err != nil {
			t.Fatalf("%s %s -> %s: %v", network, from.Name, addr, err)
		}
		seen[answer]++
	}
	return seen
}

func TestTrafficIsSpreadOverAllEndpoints(t *testing.T) {
	l := newLab(t)
	sync(t, newApplier(t, l.n1), view(both(webVIP, "10.244.1.10", "10.244.1.11", "10.244.2.10")...))
	for _, network := range []string{"tcp4", "udp4"} {
		// With 60 requests and 3 endpoints, missing one has a chance of 3·(2/3)^60 = 10^-10.
		got := answers(t, l.a, network, webVIP+":80", 60)
		// The pod reaches itself masqueraded, the others see its own address.
		for _, want := range []string{"b 10.244.1.10", "c 10.244.1.10"} {
			if got[want] == 0 {
				t.Errorf("%s from pod a: no answer %q in %v", network, want, got)
			}
		}
		if got["a 10.244.1.10"] > 0 || len(got) != 3 {
			t.Errorf("%s from pod a: hairpin not masqueraded, or endpoints missing: %v", network, got)
		}
		if got := answers(t, l.n1, network, webVIP+":80", 60); len(got) != 3 {
			t.Errorf("%s from the node: %v, want three endpoints", network, got)
		}
	}
}

func TestNodeConnectionsAreMasqueraded(t *testing.T) {
	l := newLab(t)
	sync(t, newApplier(t, l.n1), view(both(webVIP, "10.244.2.10")...))
	for _, network := range []string{"tcp4", "udp4"} {
		if got := answers(t, l.n1, network, webVIP+":80", 3); got["c 192.168.77.1"] != 3 {
			t.Errorf("%s: %v, want the node's address", network, got)
		}
	}
}

// The node's own connections reach a pod with the port that they have here: others
// would meet what the pod remembers of connections that were closed.
func TestNodeConnectionsKeepTheirPort(t *testing.T) {
	l := newLab(t)
	var listener net.Listener
	if err := l.c.Do(func() (err error) {
		var config net.ListenConfig
		listener, err = config.Listen(t.Context(), "tcp4", ":8081")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	own := service(webVIP, netproxy.TCP)
	own.Endpoints = []netproxy.Endpoint{{IP: ip("10.244.2.10"), Port: 8081, Ready: true}}
	sync(t, newApplier(t, l.n1), view(own))
	for range 20 {
		c := dial(t, l.n1, "tcp4", webVIP+":80")
		seen, err := io.ReadAll(c)
		if want := c.LocalAddr().String(); err != nil || string(seen) != want {
			t.Errorf("the pod sees %q, %v; want %q", seen, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	sync(t, newApplier(t, l.n1), view(both(webVIP)...))
	for _, from := range []*netlab.NS{l.a, l.n1} {
		for _, addr := range []string{webVIP + ":80", webVIP + ":81", "10.96.7.7:80"} {
			if _, err := from.Request("tcp4", addr); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("tcp %s -> %s: %v, want connection refused", from.Name, addr, err)
			}
		}
	}
	if _, err := l.a.Request("udp4", webVIP+":80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("udp a -> %s: %v, want connection refused", webVIP, err)
	}
	// The kernel tells the node's own senders in the system call itself.
	if _, err := l.n1.Request("udp4", webVIP+":80"); !errors.Is(err, syscall.EPERM) {
		t.Errorf("udp n1 -> %s: %v, want operation not permitted", webVIP, err)
	}
}

func TestUDPFlowsLeaveDeadEndpoints(t *testing.T) {
	l := newLab(t)
	k := newApplier(t, l.n1)
	// Before anything is planned, a client speaks into the void: its flow must
	// not stay there.
	early := dial(t, l.b, "udp4", webVIP+":80")
	sync(t, k, view())
	ask(early) // refused or lost: what counts is that it was sent

	sync(t, k, view(both(webVIP, "10.244.1.10")...))
	client := dial(t, l.b, "udp4", webVIP+":80")
	for _, c := range []net.Conn{client, early} {
		mustAnswer(t, c, "a ")
	}
	if r := sync(t, k, view(both(webVIP, "10.244.1.10", "10.244.2.10")...)); r.ForgottenFlows != 0 {
		t.Errorf("a new endpoint cost %d healthy flows", r.ForgottenFlows)
	}
	mustAnswer(t, client, "a ")
	if r := sync(t, k, view(both(webVIP, "10.244.2.10")...)); r.ForgottenFlows != 2 {
		t.Errorf("forgot %d flows of the dead endpoint, want 2", r.ForgottenFlows)
	}
	mustAnswer(t, client, "c ")

	sync(t, k, view(both(webVIP)...)) // N -> 0
	if got, err := ask(client); err == nil {
		t.Errorf("answer %q from a service without endpoints", got)
	}
	sync(t, k, view(both(webVIP, "10.244.1.10")...)) // 0 -> N
	mustAnswer(t, client, "a ")
	sync(t, k, view()) // deleted
	if got, err := ask(client); err == nil {
		t.Errorf("answer %q from a service that was deleted", got)
	}
}

func dial(t *testing.T, from *netlab.NS, network, addr string) net.Conn {
	t.Helper()
	c, err := from.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ask(c net.Conn) (string, error) { return netlab.Ask(c) }

// mustAnswer allows for one error that the kernel has queued on the socket.
func mustAnswer(t *testing.T, c net.Conn, prefix string) {
	t.Helper()
	got, err := ask(c)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) {
		got, err = ask(c)
	}
	if err != nil || !strings.HasPrefix(got, prefix) {
		t.Fatalf("answer %q, %v; want %q…", got, err, prefix)
	}
}

func TestRestartDoesNotDisturbTraffic(t *testing.T) {
	l := newLab(t)
	v := view(both(webVIP, "10.244.1.10", "10.244.2.10")...)
	first, err := apply.New(apply.Options{NetNS: l.n1.Path})
	if err != nil {
		t.Fatal(err)
	}
	sync(t, first, v)
	tcp, udp := dial(t, l.b, "tcp4", webVIP+":80"), dial(t, l.b, "udp4", webVIP+":80")
	before := [2]string{must(t, tcp), must(t, udp)}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// While the agent is away, services work.
	answers(t, l.a, "tcp4", webVIP+":80", 3)

	stop := make(chan struct{})
	failures := make(chan error, 1)
	go func() { failures <- hammer(l.a, stop) }()
	second := newApplier(t, l.n1)
	if r := sync(t, second, v); r.Replaced || r.Elements != 0 || r.ForgottenFlows != 0 {
		t.Errorf("first sync after a restart, nothing changed: %+v, want nothing done", r)
	}
	third := newApplier(t, l.n1)
	if r := sync(t, third, view(append(v.Services, both("10.96.0.11", "10.244.2.10")...)...)); !r.Replaced || r.ForgottenFlows != 0 {
		t.Errorf("first sync after a restart, a service more: %+v, want the table replaced and no flow forgotten", r)
	}
	close(stop)
	if err := <-failures; err != nil {
		t.Errorf("request failed during the take-over: %v", err)
	}
	if after := [2]string{must(t, tcp), must(t, udp)}; after != before {
		t.Errorf("established connections moved from %q to %q", before, after)
	}
}

// hammer connects without pause until stop is closed, at least 20 times.
func hammer(from *netlab.NS, stop chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			if i >= 20 {
				return nil
			}
		default:
		}
		if _, err := from.Request("tcp4", webVIP+":80"); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
	}
}

func must(t *testing.T, c net.Conn) string {
	t.Helper()
	got, err := ask(c)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEndpointChangesUnderLoadDropNoConnection(t *testing.T) {
	l := newLab(t)
	k := newApplier(t, l.n1)
	sync(t, k, view(both(webVIP, "10.244.1.10", "10.244.1.11", "10.244.2.10")...))
	stop := make(chan struct{})
	failures := make(chan error, 1)
	go func() { failures <- hammer(l.b, stop) }()
	sets := [][]string{{"10.244.1.10"}, {"10.244.1.10", "10.244.2.10"}, {"10.244.2.10"}, {"10.244.1.10", "10.244.1.11", "10.244.2.10"}}
	for i := range 60 {
		sync(t, k, view(both(webVIP, sets[i%len(sets)]...)...))
	}
	close(stop)
	if err := <-failures; err != nil {
		t.Error(err)
	}
}

func conn(t *testing.T, n *netlab.NS) *nftables.Conn {
	t.Helper()
	var c *nftables.Conn
	if err := n.Do(func() (err error) {
		c, err = nftables.New(nftables.AsLasting())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseLasting() })
	return c
}

func TestScrubRepairs(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	if _, err := k.Scrub(context.Background()); !errors.Is(err, apply.ErrNothingSynced) {
		t.Errorf("scrub before sync: %v", err)
	}
	sync(t, k, view(append(both(webVIP, "10.244.1.10", "10.244.2.10"), both("10.96.0.11")...)...))
	if r := scrub(t, k); len(r.Findings) != 0 || r.Repaired || r.Elements < 10 {
		t.Fatalf("scrub of an untouched table: %+v", r)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: apply.DefaultTable}
	set := func(name string, m bool) *nftables.Set { return &nftables.Set{Table: table, Name: name, IsMap: m} }
	for name, damage := range map[string]func(c *nftables.Conn){
		"lacks element":  func(c *nftables.Conn) { c.FlushSet(set("slots-n2", true)) },
		"is missing":     func(c *nftables.Conn) { c.DelTable(table) },
		"has 0 rules":    func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Table: table, Name: "translate"}) },
		"chain x is not": func(c *nftables.Conn) { c.AddChain(&nftables.Chain{Table: table, Name: "x"}) },
		"an element too many: hairpin": func(c *nftables.Conn) {
			_ = c.SetAddElements(set("hairpin", false), []nftables.SetElement{{Key: make([]byte, 8)}})
		},
		"not the planned": func(c *nftables.Conn) {
			chain := &nftables.Chain{Table: table, Name: "nat-output"}
			c.FlushChain(chain)
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: nil})
		},
		"not the planned one: slots-n2": func(c *nftables.Conn) {
			key := []byte{10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0}
			_ = c.SetDeleteElements(set("slots-n2", true), []nftables.SetElement{{Key: key, Val: []byte{10, 244, 1, 10, 0x1f, 0x90, 0, 0}}})
			_ = c.SetAddElements(set("slots-n2", true), []nftables.SetElement{{Key: key, Val: []byte{10, 244, 1, 99, 0x1f, 0x90, 0, 0}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := conn(t, n)
			damage(c)
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			r := scrub(t, k)
			if !r.Repaired || !strings.Contains(strings.Join(r.Findings, "\n"), name) {
				t.Errorf("report %+v, want a finding with %q", r, name)
			}
			if r := scrub(t, k); len(r.Findings) != 0 {
				t.Errorf("after the repair: %v", r.Findings)
			}
		})
	}
}

func TestScrubRepairsRoute(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	sync(t, k, view())
	routes, err := n.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: apply.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) != 1 || routes[0].LinkIndex != n.Device("lo").Attrs().Index {
		t.Fatalf("routes %v, %v; want one on lo", routes, err)
	}
	if err := n.Link.RouteDel(&routes[0]); err != nil {
		t.Fatal(err)
	}
	if r := scrub(t, k); !r.Repaired {
		t.Errorf("missing route not found: %+v", r)
	}
	if r := scrub(t, k); len(r.Findings) != 0 {
		t.Errorf("after the repair: %v", r.Findings)
	}
	if err := k.Remove(); err != nil {
		t.Fatal(err)
	}
	if routes, err := n.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: apply.RouteProtocol}, netlink.RT_FILTER_PROTOCOL); err != nil || len(routes) != 0 {
		t.Errorf("after Remove: routes %v, %v", routes, err)
	}
}

func TestRefusedChangeReplacesTable(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	sync(t, k, view(both(webVIP, "10.244.1.10", "10.244.2.10")...))
	c := conn(t, n)
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: apply.DefaultTable})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if r := sync(t, k, view(both(webVIP, "10.244.1.10")...)); !r.Replaced {
		t.Errorf("sync over a deleted table: %+v, want it replaced", r)
	}
	if r := scrub(t, k); len(r.Findings) != 0 {
		t.Error(r.Findings)
	}
}

// Elements are never lost on the way into a set, however many there are.
func TestManyElementsArrive(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	sync(t, k, view(many(2000, 3)...))
	if r := scrub(t, k); len(r.Findings) != 0 || r.Elements < 2000*4 {
		t.Errorf("%d elements, findings %v", r.Elements, r.Findings)
	}
	sync(t, k, view(many(1, 3)...))
	if r := scrub(t, k); len(r.Findings) != 0 {
		t.Error(r.Findings)
	}
}

// The kernel, driven by differences, always holds what the plan says.
func TestKernelFollowsRandomViews(t *testing.T) {
	n := netlab.New(t, "n1")
	k := newApplier(t, n)
	rapid.Check(t, func(t *rapid.T) {
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			r := netproxy.Plan(drawView(t))
			if _, err := k.Sync(context.Background(), r); err != nil {
				t.Fatal(err)
			}
			report, err := k.Scrub(context.Background())
			if err != nil || len(report.Findings) > 0 {
				t.Fatalf("%v\n%v\nfor\n%v", err, report.Findings, r)
			}
		}
	})
}

func drawView(t *rapid.T) netproxy.View {
	v := view()
	for range rapid.IntRange(0, 5).Draw(t, "services") {
		s := netproxy.ServicePort{
			VIP:      netip.AddrFrom4([4]byte{10, 96, 0, byte(rapid.IntRange(1, 3).Draw(t, "vip"))}),
			Protocol: rapid.SampledFrom([]netproxy.Protocol{netproxy.TCP, netproxy.UDP}).Draw(t, "protocol"), Port: 80,
		}
		for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
			s.Endpoints = append(s.Endpoints, netproxy.Endpoint{
				IP:   netip.AddrFrom4([4]byte{10, 244, byte(rapid.IntRange(1, 2).Draw(t, "node")), byte(rapid.IntRange(1, 4).Draw(t, "pod"))}),
				Port: 8080, Ready: rapid.Bool().Draw(t, "ready"),
			})
		}
		v.Services = append(v.Services, s)
	}
	return v
}

func TestCancelledSync(t *testing.T) {
	k := newApplier(t, netlab.New(t, "n1"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := k.Sync(ctx, netproxy.Plan(view())); !errors.Is(err, context.Canceled) {
		t.Errorf("sync: %v", err)
	}
}

func TestMissingNamespace(t *testing.T) {
	if _, err := apply.New(apply.Options{NetNS: "/proc/self/no-such-namespace"}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("new: %v", err)
	}
}

func many(services, endpoints int) []netproxy.ServicePort {
	out := make([]netproxy.ServicePort, services)
	for i := range out {
		out[i] = netproxy.ServicePort{
			Namespace: "default", Name: fmt.Sprint("s", i), Protocol: netproxy.TCP, Port: 80,
			VIP: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}),
		}
		for j := range endpoints {
			k := i*endpoints + j
			out[i].Endpoints = append(out[i].Endpoints, netproxy.Endpoint{IP: netip.AddrFrom4([4]byte{10, 244, byte(k >> 8), byte(k)}), Port: 8080, Ready: true})
		}
	}
	return out
}

// An agent runs inside its node's namespace and names none.
func TestCallersNamespace(t *testing.T) {
	if os.Getenv("BALSA_APPLY_TEST_INSIDE") != "" {
		k, err := apply.New(apply.Options{Table: "other"})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		sync(t, k, view(both(webVIP, "10.244.1.10")...))
		return
	}
	n := netlab.New(t, "n1")
	cmd := exec.Command("nsenter", "--net="+n.Path, os.Args[0], "-test.run=^TestCallersNamespace$")
	cmd.Env = append(os.Environ(), "BALSA_APPLY_TEST_INSIDE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	k, err := apply.New(apply.Options{NetNS: n.Path, Table: "other"})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if r := sync(t, k, view(both(webVIP, "10.244.1.10")...)); r.Replaced || r.Elements != 0 {
		t.Errorf("the table written from inside is not found from outside: %+v", r)
	}
}
