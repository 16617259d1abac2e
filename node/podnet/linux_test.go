//go:build linux

//balsa:real-processes

package podnet_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/dns"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/node/podnet"
)

const localAddress = "169.254.20.10"

// node opens the pod network of a namespace, as an agent does at its start.
func node(t *testing.T, n *netlab.NS, dir, cidr, ip string, noMasquerade ...netip.Prefix) *podnet.Linux {
	t.Helper()
	l, err := podnet.NewLinux(podnet.Options{NetNS: n.Path, Dir: dir, PodCIDR: netip.MustParsePrefix(cidr), NoMasquerade: noMasquerade,
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), NodeIP: netip.MustParseAddr(ip), LocalAddress: netip.MustParseAddr(localAddress)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Prepare(context.Background()); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLinux(t *testing.T) {
	dir, ns := t.TempDir(), netlab.New(t, "n1")
	suite(t, func(t *testing.T) podnet.Network { return node(t, ns, dir, podCIDR.String(), "192.168.77.1") },
		func(t *testing.T) string { return netlab.New(t, "pod").Path })
}

// world is two nodes and a machine outside the cluster on one wire.
type world struct {
	ns1, ns2, outside *netlab.NS
	n1, n2            *podnet.Linux
	dir1              string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ns1: netlab.New(t, "n1"), ns2: netlab.New(t, "n2"), outside: netlab.New(t, "outside"), dir1: t.TempDir()}
	wire := netlab.New(t, "switch")
	wire.Bridge("br0")
	for i, n := range []*netlab.NS{w.ns1, w.ns2, w.outside} {
		port := "p" + n.Name
		netlab.Veth(n, "eth0", wire, port)
		wire.Plug(port, "br0")
		n.Addr("eth0", netip.AddrFrom4([4]byte{192, 168, 77, byte(i + 1)}).String()+"/24")
	}
	w.n1 = node(t, w.ns1, w.dir1, "10.244.1.0/24", "192.168.77.1")
	w.n2 = node(t, w.ns2, t.TempDir(), "10.244.2.0/24", "192.168.77.2")
	routes := []podnet.NodeRoute{{"n", netip.MustParsePrefix("10.244.1.0/24"), netip.MustParseAddr("192.168.77.1")},
		{"n", netip.MustParsePrefix("10.244.2.0/24"), netip.MustParseAddr("192.168.77.2")}}
	for _, n := range []*podnet.Linux{w.n1, w.n2} {
		if err := n.SyncRoutes(context.Background(), routes); err != nil {
			t.Fatal(err)
		}
	}
	w.outside.Serve(":8080")
	return w
}

// pod makes a namespace with a server and connects it.
func pod(t *testing.T, n *podnet.Linux, name string) (*netlab.NS, netip.Addr) {
	t.Helper()
	ns := netlab.New(t, name)
	ip := setup(t, n, "uid-"+name, ns.Path)
	ns.Serve(":8080")
	return ns, ip
}

func expect(t *testing.T, from *netlab.NS, to, want string) {
	t.Helper()
	for _, network := range []string{"tcp4", "udp4"} {
		if got, err := from.Request(network, to); err != nil || got != want {
			t.Errorf("%s %s -> %s: %q, %v; want %q", network, from.Name, to, got, err, want)
		}
	}
}

func TestEveryWayIsOpen(t *testing.T) {
	w := newWorld(t)
	a, ipA := pod(t, w.n1, "a")
	b, ipB := pod(t, w.n1, "b")
	c, ipC := pod(t, w.n2, "c")
	at := func(ip netip.Addr) string { return ip.String() + ":8080" }

	expect(t, a, at(ipB), "b "+ipA.String())
	expect(t, a, at(ipC), "c "+ipA.String())
	expect(t, c, at(ipA), "a "+ipC.String())
	expect(t, w.ns1, at(ipA), "a 192.168.77.1")
	expect(t, w.ns1, at(ipC), "c 192.168.77.1")
	expect(t, b, "192.168.77.3:8080", "outside 192.168.77.1") // masqueraded
	w.ns1.Serve(localAddress + ":5353")
	expect(t, a, localAddress+":5353", "n1 "+ipA.String())
	expect(t, w.ns1, localAddress+":5353", "n1 "+localAddress)

	// An address without a pod is refused at once, by the node that would have it.
	if _, err := a.Request("tcp4", "10.244.1.99:8080"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("address without pod: %v, want no route to host", err)
	}
}

// Agents that begin with other exceptions than the ones before write other rules;
// what pods send out meanwhile is masqueraded by the old ones or by the new ones.
func TestEgressRulesChangeInOneStep(t *testing.T) {
	w := newWorld(t)
	a, _ := pod(t, w.n1, "a")
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			var got string
			if got, err = a.Request("tcp4", "192.168.77.3:8080"); err == nil && got != "outside 192.168.77.1" {
				err = fmt.Errorf("answer %q", got)
			}
		}
		failed <- err
	}()
	for i := range 60 {
		w.n1 = node(t, w.ns1, w.dir1, "10.244.1.0/24", "192.168.77.1", netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24))
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// What others put into the table goes, also when it holds on to their chains.
func TestForeignEgressRulesGo(t *testing.T) {
	w := newWorld(t)
	a, _ := pod(t, w.n1, "a")
	nft := func(script string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+w.ns1.Path, "nft", script).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %s: %v: %s", script, err, out)
		}
		return string(out)
	}
	for _, foreign := range []string{
		"add chain ip balsa-pods x",
		"add chain ip balsa-pods x; add map ip balsa-pods m { type ipv4_addr : verdict; }; add element ip balsa-pods m { 192.0.2.1 : jump x }",
	} {
		nft(foreign)
		w.n1 = node(t, w.ns1, w.dir1, "10.244.1.0/24", "192.168.77.1")
		if text := nft("list table ip balsa-pods"); strings.Contains(text, "chain x") {
			t.Errorf("after %q:\n%s", foreign, text)
		}
		expect(t, a, "192.168.77.3:8080", "outside 192.168.77.1")
	}
}

func TestLocalAddressIsNotTracked(t *testing.T) {
	w := newWorld(t)
	a, ipA := pod(t, w.n1, "a")
	w.ns1.Serve(localAddress + ":5353")
	expect(t, a, localAddress+":5353", "n1 "+ipA.String())
	var flows []*netlink.ConntrackFlow
	if err := w.ns1.Do(func() (err error) {
		flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if f.Forward.DstIP.Equal(net.ParseIP(localAddress)) {
			t.Errorf("tracked: %v", f)
		}
	}
}

// The node's resolver, on the local address, answers its pods by UDP and TCP.
func TestPodsReachTheResolver(t *testing.T) {
	w := newWorld(t)
	a, _ := pod(t, w.n1, "a")
	var udp net.PacketConn
	var tcp net.Listener
	if err := w.ns1.Do(func() (err error) {
		if udp, err = net.ListenPacket("udp4", localAddress+":53"); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp4", localAddress+":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s, err := dns.NewServer(dns.Options{Domain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	s.SetZone(dns.Build(dns.View{ZoneParams: dns.ZoneParams{Domain: "cluster.local"}, Services: []dns.Service{{Namespace: "x", Name: "web", ClusterIP: netip.MustParseAddr("10.96.0.10")}}}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, udp, tcp) }()
	for _, network := range []string{"udp4", "tcp4"} {
		c, err := a.Dial(network, localAddress+":53")
		if err != nil {
			t.Fatal(err)
		}
		client := mdns.Client{Net: network}
		m, _, err := client.ExchangeWithConn(new(mdns.Msg).SetQuestion("web.x.svc.cluster.local.", mdns.TypeA), &mdns.Conn{Conn: c})
		if err != nil || len(m.Answer) != 1 {
			t.Errorf("%s: %v, %v", network, m, err)
		}
		c.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Services work over routed pods, and what the proxy masquerades never carries
// the local address of the loopback device.
func TestServicesOverRoutedPods(t *testing.T) {
	w := newWorld(t)
	a, ipA := pod(t, w.n1, "a")
	proxy, err := apply.New(apply.Options{NetNS: w.ns1.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	vip := netip.MustParseAddr("10.96.0.10")
	v := netproxy.View{PodCIDR: podCIDR, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), NodeIP: netip.MustParseAddr("192.168.77.1")}
	for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP} {
		v.Services = append(v.Services, netproxy.ServicePort{Name: "s", VIP: vip, Protocol: p, Port: 80,
			Endpoints: []netproxy.Endpoint{{IP: ipA, Port: 8080, Ready: true}}})
	}
	if _, err := proxy.Sync(context.Background(), netproxy.Plan(v)); err != nil {
		t.Fatal(err)
	}
	expect(t, w.ns1, "10.96.0.10:80", "a 192.168.77.1")
	expect(t, a, "10.96.0.10:80", "a 192.168.77.1") // hairpin
	b, ipB := pod(t, w.n1, "b")
	expect(t, b, "10.96.0.10:80", "a "+ipB.String())
}

func TestPodCannotBorrowAnAddress(t *testing.T) {
	w := newWorld(t)
	a, ipA := pod(t, w.n1, "a")
	a.Addr("eth0", "10.244.1.77/32")
	var inbox net.PacketConn
	if err := w.ns1.Do(func() (err error) {
		inbox, err = net.ListenPacket("udp4", ":9090")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()
	// The borrowed address speaks first: what arrives first must be the other.
	for _, from := range []string{"10.244.1.77:0", ipA.String() + ":0"} {
		c, err := a.DialFrom("udp4", from, "192.168.77.1:9090")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
	}
	_, from, err := inbox.ReadFrom(make([]byte, 1))
	if err != nil || from.(*net.UDPAddr).IP.String() != ipA.String() {
		t.Errorf("first packet from %v, %v; want %s", from, err, ipA)
	}
}

// Whatever is broken or missing in a pod's network, another Setup mends.
func TestSetupMends(t *testing.T) {
	w := newWorld(t)
	a, ipA := pod(t, w.n1, "a")
	device := podnet.DeviceName("uid-a")
	for name, damage := range map[string]func() error{
		"nothing":           func() error { return nil },
		"device down":       func() error { return w.ns1.Link.LinkSetDown(w.ns1.Device(device)) },
		"pod device down":   func() error { return a.Link.LinkSetDown(a.Device("eth0")) },
		"pair deleted":      func() error { return w.ns1.Link.LinkDel(w.ns1.Device(device)) },
		"pod has no route":  func() error { return flushRoutes(a, "eth0") },
		"node has no route": func() error { return flushRoutes(w.ns1, device) },
		"wrong neighbour": func() error {
			return a.Link.NeighSet(&netlink.Neigh{LinkIndex: a.Device("eth0").Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.IPv4(169, 254, 1, 1), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if again := setup(t, w.n1, "uid-a", a.Path); again != ipA {
				t.Errorf("address %s, was %s", again, ipA)
			}
			expect(t, a, "192.168.77.3:8080", "outside 192.168.77.1")
		})
	}
}

func flushRoutes(n *netlab.NS, device string) error {
	routes, err := n.Link.RouteList(n.Device(device), netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := n.Link.RouteDel(&r); err != nil {
			return err
		}
	}
	return nil
}

// A pod whose namespace was made anew keeps its address, while the old
// namespace still exists.
func TestNewNamespaceForTheSamePod(t *testing.T) {
	w := newWorld(t)
	_, before := pod(t, w.n1, "a")
	second := netlab.New(t, "a2")
	if after := setup(t, w.n1, "uid-a", second.Path); after != before {
		t.Errorf("address %s, was %s", after, before)
	}
	expect(t, second, "192.168.77.3:8080", "outside 192.168.77.1")
}

// What a killed agent and its dead pods leave goes; what lives, and what is not
// ours, stays.
func TestCleanupAfterKill(t *testing.T) {
	w := newWorld(t)
	a, _ := pod(t, w.n1, "a")
	pod(t, w.n1, "b")
	// A pod whose address was lost, a device of somebody else.
	orphan := podnet.DeviceName("uid-lost")
	netlab.Veth(w.ns1, orphan, netlab.New(t, "lost"), "eth0")
	netlab.Veth(w.ns1, "blsomebody", netlab.New(t, "stranger"), "eth0")
	n1 := node(t, w.ns1, w.dir1, "10.244.1.0/24", "192.168.77.1")
	removed, err := n1.Cleanup(context.Background(), []string{"uid-a"})
	if err != nil || strings.Join(removed, " ") != "uid-b "+orphan {
		t.Errorf("removed %v, %v; want uid-b and %s", removed, err, orphan)
	}
	w.ns1.Device("blsomebody")
	w.ns1.Device(podnet.DeviceName("uid-a"))
	if _, err := w.ns1.Link.LinkByName(podnet.DeviceName("uid-b")); err == nil {
		t.Error("the dead pod's device is still there")
	}
	expect(t, a, "192.168.77.3:8080", "outside 192.168.77.1")
}

func TestSyncRoutesIsExact(t *testing.T) {
	w := newWorld(t)
	foreign := netlab.CIDR(t, "10.50.0.0/16")
	if err := w.ns1.Link.RouteAdd(&netlink.Route{Dst: foreign, Gw: net.IPv4(192, 168, 77, 3)}); err != nil {
		t.Fatal(err)
	}
	prefix, ip := netip.MustParsePrefix, netip.MustParseAddr
	for _, step := range []struct {
		routes []podnet.NodeRoute
		want   string
		fails  bool
	}{
		{[]podnet.NodeRoute{{"n", prefix("10.244.2.0/24"), ip("192.168.77.2")}, {"n", prefix("10.244.3.0/24"), ip("192.168.77.3")}}, "10.244.2.0/24>192.168.77.2 10.244.3.0/24>192.168.77.3", false},
		{[]podnet.NodeRoute{{"n", prefix("10.244.2.0/24"), ip("192.168.77.3")}}, "10.244.2.0/24>192.168.77.3", false},
		{[]podnet.NodeRoute{{"n", prefix("10.244.2.0/24"), ip("172.30.0.1")}, {"n", prefix("10.244.4.0/24"), ip("192.168.77.2")}}, "10.244.4.0/24>192.168.77.2", true},
		{nil, "", false},
	} {
		err := w.n1.SyncRoutes(context.Background(), step.routes)
		if (err != nil) != step.fails {
			t.Errorf("%v: %v", step.routes, err)
		}
		if got := nodeRoutes(t, w.ns1); got != step.want {
			t.Errorf("%v: routes %q, want %q", step.routes, got, step.want)
		}
	}
	if found, err := w.ns1.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: foreign}, netlink.RT_FILTER_DST); err != nil || len(found) != 1 {
		t.Errorf("somebody else's route: %v, %v", found, err)
	}
}

func nodeRoutes(t *testing.T, n *netlab.NS) string {
	t.Helper()
	routes, err := n.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 97, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range routes {
		out = append(out, r.Dst.String()+">"+r.Gw.String())
	}
	return strings.Join(out, " ")
}

// An agent killed at any moment leaves something that the next one completes:
// a process is started again and again and killed while it sets pods up.
func TestKilledWhileSettingUp(t *testing.T) {
	if dir := os.Getenv("BALSA_PODNET_TEST_DIR"); dir != "" {
		setUpForEver(t, dir)
		return
	}
	ns, target, dir := netlab.New(t, "n1"), netlab.New(t, "pod"), t.TempDir()
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileSettingUp$")
		cmd.Env = append(os.Environ(), "BALSA_PODNET_TEST_DIR="+dir, "BALSA_PODNET_TEST_NODE="+ns.Path, "BALSA_PODNET_TEST_POD="+target.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it works: kill it in the middle
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the killed process ended well")
		}
		l := node(t, ns, dir, podCIDR.String(), "192.168.77.1")
		first := setup(t, l, "uid-1", target.Path)
		if second := setup(t, l, "uid-1", target.Path); second != first {
			t.Fatalf("address %s, then %s", first, second)
		}
		if _, err := l.Cleanup(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
	}
}

func setUpForEver(t *testing.T, dir string) {
	l, err := podnet.NewLinux(podnet.Options{NetNS: os.Getenv("BALSA_PODNET_TEST_NODE"), Dir: dir, PodCIDR: podCIDR,
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), NodeIP: netip.MustParseAddr("192.168.77.1")})
	if err != nil {
		t.Fatal(err)
	}
	for {
		for _, uid := range []string{"uid-1", "uid-2", "uid-3"} {
			setup(t, l, uid, os.Getenv("BALSA_PODNET_TEST_POD"))
		}
		if _, err := os.Stdout.WriteString("."); err != nil {
			t.Fatal(err)
		}
		if err := l.Teardown(context.Background(), "uid-2"); err != nil {
			t.Fatal(err)
		}
	}
}

// How long a pod waits for its network.
func BenchmarkSetup(b *testing.B) {
	ns := netlab.New(b, "n1")
	l, err := podnet.NewLinux(podnet.Options{NetNS: ns.Path, Dir: b.TempDir(), PodCIDR: netip.MustParsePrefix("10.244.0.0/20"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), NodeIP: netip.MustParseAddr("192.168.77.1")})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		b.StopTimer()
		p := netlab.New(b, "pod")
		b.StartTimer()
		if _, err := l.Setup(context.Background(), p.Path, p.Path); err != nil {
			b.Fatal(err)
		}
	}
}

// An agent runs inside its node's namespace and names none.
func TestCallersNamespace(t *testing.T) {
	if target := os.Getenv("BALSA_PODNET_TEST_INSIDE"); target != "" {
		l, err := podnet.NewLinux(podnet.Options{Dir: t.TempDir(), PodCIDR: podCIDR, ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
			NodeIP: netip.MustParseAddr("192.168.77.1"), LocalAddress: netip.MustParseAddr(localAddress)})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Prepare(context.Background()); err != nil {
			t.Fatal(err)
		}
		setup(t, l, "uid-a", target)
		return
	}
	ns, target := netlab.New(t, "n1"), netlab.New(t, "pod")
	target.Serve(":8080")
	netlab.Veth(ns, "eth0", netlab.New(t, "switch"), "p0")
	ns.Addr("eth0", "192.168.77.1/24")
	cmd := exec.Command("nsenter", "--net="+ns.Path, os.Args[0], "-test.run=^TestCallersNamespace$")
	cmd.Env = append(os.Environ(), "BALSA_PODNET_TEST_INSIDE="+target.Path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ns.Device(podnet.DeviceName("uid-a"))
	expect(t, ns, "10.244.1.2:8080", "pod 192.168.77.1")
}

// A pod's first packet arrives: the device carries traffic when Setup returns,
// not only once the kernel's link watch has noticed.
func TestFirstPacketOfAPod(t *testing.T) {
	w := newWorld(t)
	var udp net.PacketConn
	if err := w.ns1.Do(func() (err error) {
		udp, err = net.ListenPacket("udp4", localAddress+":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	buffer := make([]byte, 16)
	for i := range 20 {
		name := fmt.Sprintf("first-%d", i)
		a, _ := pod(t, w.n1, name)
		c, err := a.Dial("udp4", localAddress+":53")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(name)); err != nil {
			t.Fatal(err)
		}
		if err := udp.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := udp.ReadFrom(buffer)
		if err != nil || string(buffer[:n]) != name {
			t.Fatalf("the first packet of pod %d: %q, %v", i, buffer[:n], err)
		}
		c.Close()
	}
}

// What a look costs on a node with as many pods as it takes, and other nodes.
func BenchmarkScrub(b *testing.B) {
	ns := netlab.New(b, "n1")
	netlab.Veth(ns, "eth0", netlab.New(b, "switch"), "p0")
	ns.Addr("eth0", "192.168.77.1/16")
	l, err := podnet.NewLinux(podnet.Options{NetNS: ns.Path, Dir: b.TempDir(), PodCIDR: netip.MustParsePrefix("10.244.0.0/20"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), NodeIP: netip.MustParseAddr("192.168.77.1")})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if err := l.Prepare(context.Background()); err != nil {
		b.Fatal(err)
	}
	for range 110 {
		p := netlab.New(b, "pod")
		if _, err := l.Setup(context.Background(), p.Path, p.Path); err != nil {
			b.Fatal(err)
		}
	}
	var routes []podnet.NodeRoute
	for i := range 200 {
		routes = append(routes, podnet.NodeRoute{Name: fmt.Sprint("n", i), PodCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(20 + i), 0}), 24), NodeIP: netip.AddrFrom4([4]byte{192, 168, 78, byte(1 + i)})})
	}
	if err := l.SyncRoutes(context.Background(), routes); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if found, err := l.Scrub(context.Background()); err != nil || len(found) > 0 {
			b.Fatal(found, err)
		}
	}
}
