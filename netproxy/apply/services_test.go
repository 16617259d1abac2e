//go:build linux

//balsa:real-processes

package apply_test

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

const (
	balancer = "198.51.100.1"
	external = "203.0.113.1"
	nodePort = 30080
)

// siteView has one service by TCP and UDP with every kind of front; change
// shapes each of its two ports.
func siteView(change func(*netproxy.ServicePort), endpoints ...string) netproxy.View {
	w := world.New()
	v := netproxy.View{NodeName: "n1", PodCIDR: w.Node.PodCIDR, ClusterCIDR: w.Node.ClusterCIDR, ServiceCIDR: w.Node.ServiceCIDR, NodeIP: w.Node.NodeIP}
	for _, s := range both(webVIP, endpoints...) {
		s.NodePort, s.ExternalIPs, s.LoadBalancerIPs = nodePort, []netip.Addr{ip(external)}, []netip.Addr{ip(balancer)}
		s.PortName = s.Protocol.String()
		if change != nil {
			change(&s)
		}
		v.Services = append(v.Services, s)
	}
	return v
}

// fronts are the addresses of siteView's service.
func fronts() []string {
	return []string{webVIP + ":80", external + ":80", balancer + ":80", world.Node1 + ":30080"}
}

func packet(from, to string, p netproxy.Protocol) netproxy.Packet {
	ap := netip.MustParseAddrPort(to)
	return netproxy.Packet{From: ip(from), To: ap.Addr(), Port: ap.Port(), Protocol: p}
}

// short is how long a test waits for an answer that must not come.
const short = 80 * time.Millisecond

func (s *site) expect(t *testing.T, from, to, name, seen string) {
	t.Helper()
	for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP} {
		gotName, gotSeen, err := s.knock(packet(from, to, p), 2*time.Second)
		if err != nil || gotName != name || gotSeen != seen {
			t.Errorf("%s from %s to %s: answer by %q to %q, %v; want by %q to %q", p, from, to, gotName, gotSeen, err, name, seen)
		}
	}
}

func (s *site) expectSilence(t *testing.T, from, to string) {
	t.Helper()
	for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP} {
		if name, _, err := s.knock(packet(from, to, p), short); !isTimeout(err) && !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s from %s to %s: answer by %q, %v; want none", p, from, to, name, err)
		}
	}
}

func (s *site) expectRefusal(t *testing.T, from, to string) {
	t.Helper()
	for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP} {
		if name, _, err := s.knock(packet(from, to, p), 2*time.Second); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s from %s to %s: answer by %q, %v; want connection refused", p, from, to, name, err)
		}
	}
}

func TestExternalTrafficPolicy(t *testing.T) {
	s := newSite(t, true)
	local := func(p *netproxy.ServicePort) { p.ExternalLocal = true }
	sync(t, s.kernel, siteView(nil, world.PodA))
	for _, to := range fronts() {
		s.expect(t, world.Outside, to, "a", world.Node1) // Cluster: masqueraded
	}
	sync(t, s.kernel, siteView(local, world.PodA))
	for _, to := range fronts()[1:] {
		s.expect(t, world.Outside, to, "a", world.Outside)
		s.expect(t, world.PodC, to, "a", world.PodC) // a pod of another node is outside
		s.expect(t, world.PodB, to, "a", world.PodB)
		s.expect(t, world.PodA, to, "a", world.Node1) // hairpin
		s.expect(t, world.Node1, to, "a", world.Node1)
	}
	s.expect(t, world.Outside, webVIP+":80", "a", world.Node1) // the internal policy rules here
	sync(t, s.kernel, siteView(local, world.PodC))
	for _, to := range fronts()[1:] {
		s.expectSilence(t, world.Outside, to)
		s.expect(t, world.PodB, to, "c", world.PodB) // from within, every endpoint
		s.expect(t, world.Node1, to, "c", world.Node1)
	}
	sync(t, s.kernel, siteView(local))
	for _, to := range fronts() {
		s.expectRefusal(t, world.Outside, to)
		s.expectRefusal(t, world.PodB, to)
		s.expectRefusal(t, world.Node1, to)
	}
}

func TestInternalTrafficPolicy(t *testing.T) {
	s := newSite(t, false)
	local := func(p *netproxy.ServicePort) { p.InternalLocal = true }
	sync(t, s.kernel, siteView(local, world.PodA, world.PodC))
	for range 10 {
		s.expect(t, world.PodB, webVIP+":80", "a", world.PodB)
	}
	sync(t, s.kernel, siteView(local, world.PodC))
	s.expectSilence(t, world.PodB, webVIP+":80")
	s.expect(t, world.PodB, balancer+":80", "c", world.Node1)
}

func TestTerminatingEndpoints(t *testing.T) {
	s := newSite(t, false)
	state := func(ready, serving string) func(*netproxy.ServicePort) {
		return func(p *netproxy.ServicePort) {
			p.ExternalLocal = true
			for i := range p.Endpoints {
				e := &p.Endpoints[i]
				e.Ready, e.Serving = e.IP == ip(ready), e.IP == ip(serving)
			}
		}
	}
	// Ready elsewhere, terminating here: Cluster goes there, Local stays here.
	sync(t, s.kernel, siteView(state(world.PodC, world.PodA), world.PodA, world.PodC))
	s.expect(t, world.PodB, webVIP+":80", "c", world.PodB)
	s.expect(t, world.Outside, balancer+":80", "a", world.Outside)
	// A ready one here ends that.
	sync(t, s.kernel, siteView(state(world.PodB, world.PodA), world.PodA, world.PodB))
	s.expect(t, world.Outside, balancer+":80", "b", world.Outside)
}

func TestSourceRanges(t *testing.T) {
	s := newSite(t, true)
	ranges := func(prefixes ...string) func(*netproxy.ServicePort) {
		return func(p *netproxy.ServicePort) {
			p.Restricted = true
			for _, r := range prefixes {
				p.SourceRanges = append(p.SourceRanges, netip.MustParsePrefix(r))
			}
		}
	}
	sync(t, s.kernel, siteView(nil, world.PodC))
	flow := dial(t, s.ns[world.Node2], "udp4", balancer+":80")
	if name, err := s.steady(flow); err != nil || name != "c" {
		t.Fatalf("%q, %v", name, err)
	}
	sync(t, s.kernel, siteView(ranges(world.Outside+"/32", "10.244.1.10/31", "10.244.1.0/24"), world.PodC))
	s.expect(t, world.Outside, balancer+":80", "c", world.Node1)
	s.expect(t, world.PodB, balancer+":80", "c", world.Node1)
	if name, err := s.steady(flow); err == nil {
		t.Errorf("an old flow of a client that is shut out now: answer by %q", name)
	}
	for _, from := range []string{world.Node2, world.PodC, world.Node1} {
		s.expectSilence(t, from, balancer+":80")
	}
	for _, to := range []string{webVIP + ":80", external + ":80", world.Node1 + ":30080"} {
		s.expect(t, world.Node2, to, "c", world.Node1) // other fronts are not restricted
	}
	sync(t, s.kernel, siteView(ranges(), world.PodC)) // nothing that could be read: nobody
	s.expectSilence(t, world.Outside, balancer+":80")
	// The node itself may if it is in a range, also with the balancer's address
	// as its source, which it has where it announces it.
	s.n1.Addr("lo", balancer+"/32")
	sync(t, s.kernel, siteView(ranges("192.168.77.0/24"), world.PodC))
	s.expect(t, world.Node1, balancer+":80", "c", world.Node1)
	if report := scrub(t, s.kernel); len(report.Findings) > 0 {
		t.Error(report.Findings)
	}
}

// who asks often by one protocol and counts the names.
func (s *site) who(t *testing.T, from, to string, times int) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for i := range times {
		name, _, err := s.knock(packet(from, to, []netproxy.Protocol{netproxy.TCP, netproxy.UDP}[i%2]), 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		seen[name]++
	}
	return seen
}

func TestSessionAffinity(t *testing.T) {
	s := newSite(t, false)
	sticky := func(timeout time.Duration) func(*netproxy.ServicePort) {
		return func(p *netproxy.ServicePort) { p.Affinity = timeout }
	}
	sync(t, s.kernel, siteView(sticky(time.Hour), world.PodA, world.PodB, world.PodC))
	tcp := func(from, to string, times int) map[string]int {
		seen := map[string]int{}
		for range times {
			name, _, err := s.knock(packet(from, to, netproxy.TCP), 2*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			seen[name]++
		}
		return seen
	}
	first := tcp(world.Outside, fronts()[0], 20)
	if len(first) != 1 {
		t.Fatalf("20 connections of one client went to %v", first)
	}
	var chosen string
	for chosen = range first {
	}
	// Every front of the service port leads the client there.
	for _, to := range fronts() {
		if got := tcp(world.Outside, to, 5); got[chosen] != 5 {
			t.Errorf("%s led to %v, want %s", to, got, chosen)
		}
	}
	// It stays when other endpoints go, and when the table is made anew.
	var others []string
	for name, ip := range podNames {
		if name != chosen {
			others = append(others, ip)
		}
	}
	sync(t, s.kernel, siteView(sticky(time.Hour), podNames[chosen], others[0]))
	if got := tcp(world.Outside, fronts()[0], 10); got[chosen] != 10 {
		t.Errorf("after another endpoint went: %v, want %s", got, chosen)
	}
	sync(t, s.kernel, siteView(sticky(time.Hour), world.PodA, world.PodB, world.PodC))
	c := conn(t, s.n1)
	c.FlushSet(&nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: apply.DefaultTable}, Name: netproxy.SetServices})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if r := scrub(t, s.kernel); !r.Repaired {
		t.Fatalf("%+v", r)
	}
	if got := tcp(world.Outside, fronts()[0], 10); got[chosen] != 10 {
		t.Errorf("after a repair: %v, want %s", got, chosen)
	}
	// It ends with the endpoint, and does not come back with it.
	sync(t, s.kernel, siteView(sticky(time.Hour), others...))
	moved := tcp(world.Outside, fronts()[0], 10)
	if len(moved) != 1 || moved[chosen] > 0 {
		t.Errorf("after the endpoint went: %v", moved)
	}
	sync(t, s.kernel, siteView(sticky(time.Hour), world.PodA, world.PodB, world.PodC))
	if got := tcp(world.Outside, fronts()[0], 10); len(got) != 1 || got[chosen] > 0 {
		t.Errorf("after the endpoint came back: %v, before: %v", got, moved)
	}
	// Clients differ: with 40 clients, all at one endpoint has a chance of 3^-39.
	spread := map[string]int{}
	for i := range 40 {
		s.ns[world.Outside].Addr("eth0", netip.AddrFrom4([4]byte{192, 168, 77, byte(100 + i)}).String()+"/24")
		c, err := s.ns[world.Outside].DialFrom("tcp4", netip.AddrFrom4([4]byte{192, 168, 77, byte(100 + i)}).String()+":0", fronts()[0])
		if err != nil {
			t.Fatal(err)
		}
		spread[strings.Fields(must(t, c))[0]]++
		c.Close()
	}
	if len(spread) != 3 {
		t.Errorf("40 clients went to %v", spread)
	}
	if report := scrub(t, s.kernel); len(report.Findings) > 0 {
		t.Error(report.Findings)
	}
}

// After the timeout without a connection a client is led anywhere.
func TestSessionAffinityTimeout(t *testing.T) {
	s := newSite(t, false)
	const timeout = 200 * time.Millisecond
	sync(t, s.kernel, siteView(func(p *netproxy.ServicePort) { p.Affinity = timeout }, world.PodA, world.PodB, world.PodC))
	deadline := time.Now().Add(20 * time.Second)
	seen := map[string]bool{}
	for len(seen) < 2 && time.Now().Before(deadline) {
		got := s.who(t, world.Outside, webVIP+":80", 1)
		for name := range got {
			seen[name] = true
		}
		pause(t, timeout+50*time.Millisecond)
	}
	if len(seen) < 2 {
		t.Errorf("connections further apart than the timeout all went to %v", seen)
	}
}

// pause waits for time to pass in the kernel, which no clock of ours can hasten.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func TestHostPorts(t *testing.T) {
	s := newSite(t, true)
	v := siteView(nil)
	v.Pods = []netproxy.LocalPod{
		{IP: ip(world.PodA), Namespace: "default", Name: "a", HostPorts: []netproxy.HostPort{
			{HostPort: 9090, Protocol: netproxy.TCP, Port: 8080}, {HostPort: 9090, Protocol: netproxy.UDP, Port: 8081},
			{HostIP: ip(world.Node1), HostPort: 9091, Protocol: netproxy.TCP, Port: 8080}, {HostIP: ip(world.Node1), HostPort: 9091, Protocol: netproxy.UDP, Port: 8080}}},
	}
	sync(t, s.kernel, v)
	for _, to := range []string{world.Node1 + ":9090", world.Node1 + ":9091"} {
		s.expect(t, world.Outside, to, "a", world.Outside)
		s.expect(t, world.Node1, to, "a", world.Node1)
		s.expect(t, world.PodB, to, "a", world.PodB)
		s.expect(t, world.PodA, to, "a", world.Node1)
		s.expect(t, world.PodC, to, "a", world.PodC)
	}
}

// A node port takes no connection that the node itself began from a port of that
// number, and none to the loopback device.
func TestNodePortsLeaveTheNodeAlone(t *testing.T) {
	s := newSite(t, false)
	sync(t, s.kernel, siteView(nil)) // no endpoints: node port 30080 refuses
	for _, network := range []string{"tcp4", "udp4"} {
		c, err := s.n1.DialFrom(network, world.Node1+":30080", world.PodC+":8080")
		if err != nil {
			t.Fatal(err)
		}
		if got := must(t, c); !strings.HasPrefix(got, "c ") {
			t.Errorf("answer %q", got)
		}
		c.Close()
	}
	s.n1.Serve("127.0.0.1:30080")
	sync(t, s.kernel, siteView(nil, world.PodC))
	for _, network := range []string{"tcp4", "udp4"} {
		if got, err := s.n1.Request(network, "127.0.0.1:30080"); err != nil || !strings.HasPrefix(got, world.Node1) {
			t.Errorf("the node's own server: %q, %v", got, err)
		}
	}
}

// UDP flows leave dead endpoints whatever front they came through, stay with
// living ones, and find an agent's restart no different.
func TestUDPFlowsOfEveryFront(t *testing.T) {
	s := newSite(t, true)
	hostPort := func(v netproxy.View, pod string) netproxy.View {
		if pod != "" {
			v.Pods = []netproxy.LocalPod{{IP: ip(pod), Namespace: "default", Name: "h", HostPorts: []netproxy.HostPort{{HostPort: 9090, Protocol: netproxy.UDP, Port: 8080}}}}
		}
		return v
	}
	nothing := siteView(nil)
	nothing.Services = nil
	sync(t, s.kernel, nothing) // for the route to the service CIDR
	all := append(fronts(), world.Node1+":9090")
	clients := map[string]func() (string, error){}
	for _, from := range []string{world.Outside, world.PodB, world.Node1} {
		for _, to := range all {
			c := dial(t, s.ns[from], "udp4", to)
			clients[from+" -> "+to] = func() (string, error) { return s.steady(c) }
		}
	}
	expect := func(step, name string) {
		t.Helper()
		for who, ask := range clients {
			got, err := ask()
			if name == "" && err == nil || name != "" && (err != nil || got != name) {
				t.Errorf("%s: %s: answer by %q, %v; want %q", step, who, got, err, name)
			}
		}
	}
	local := func(p *netproxy.ServicePort) { p.ExternalLocal = true }
	expect("before there are services", "")
	sync(t, s.kernel, hostPort(siteView(nil, world.PodA), world.PodA))
	expect("first", "a")
	if r := sync(t, s.kernel, hostPort(siteView(nil, world.PodA, world.PodC), world.PodA)); r.ForgottenFlows != 0 {
		t.Errorf("an endpoint more cost %d flows", r.ForgottenFlows)
	}
	expect("one endpoint more", "a")
	sync(t, s.kernel, hostPort(siteView(nil, world.PodC), world.PodB))
	for who := range clients {
		if strings.HasSuffix(who, ":9090") {
			if got, err := clients[who](); err != nil || got != "b" {
				t.Errorf("host port of another pod: %s: %q, %v", who, got, err)
			}
		}
	}
	sync(t, s.kernel, hostPort(siteView(nil, world.PodA), world.PodA))
	expect("another endpoint", "a")
	sync(t, s.kernel, siteView(nil)) // N -> 0; the host port is gone
	expect("no endpoints", "")
	sync(t, s.kernel, hostPort(siteView(local, world.PodA), world.PodA))
	expect("0 -> N, and Local", "a")

	// An agent that restarts after something changed meanwhile.
	second := newApplier(t, s.n1)
	if r := sync(t, second, hostPort(siteView(local, world.PodA), world.PodA)); r.Replaced || r.ForgottenFlows != 0 {
		t.Errorf("restart without a change: %+v", r)
	}
	expect("after a restart", "a")
	third := newApplier(t, s.n1)
	if r := sync(t, third, siteView(nil)); !r.Replaced || r.ForgottenFlows < len(clients) {
		t.Errorf("restart after the endpoints went: %+v, want at least %d flows forgotten", r, len(clients))
	}
	expect("restarted without endpoints", "")
	sync(t, third, hostPort(siteView(nil, world.PodA), world.PodA))
	expect("back", "a")
	sync(t, third, nothing)
	expect("deleted", "")
}

// steady asks on a connection that errors of the past may be queued on.
func (s *site) steady(c interface {
	Write([]byte) (int, error)
	Read([]byte) (int, error)
	SetDeadline(time.Time) error
}) (name string, err error) {
	for range 4 {
		if err = c.SetDeadline(time.Now().Add(short)); err != nil {
			return "", err
		}
		if _, err = c.Write([]byte("?")); err != nil {
			continue
		}
		buf := make([]byte, 256)
		var n int
		if n, err = c.Read(buf); err == nil {
			name, _, _ = strings.Cut(string(buf[:n]), " ")
			return name, nil
		}
		if isTimeout(err) {
			return "", err
		}
	}
	return "", err
}
