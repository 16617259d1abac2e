//go:build linux

package ways

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/node/podnet"
	"github.com/balsa-run/balsa/object"
)

// On one link the way is the node itself, over a router the tunnel, and all pods
// reach each other with their own addresses, whether bridges show their packets to
// the firewall or not.
func TestMixedLinks(t *testing.T) {
	for _, filter := range []bool{false, true} {
		t.Run(fmt.Sprint("bridge-nf ", filter), func(t *testing.T) {
			l := newLab(t)
			for _, ns := range []*netlab.NS{l.links[1], l.links[2], l.nodes["n1"].ns, l.nodes["n2"].ns, l.nodes["n3"].ns} {
				ns.BridgeNetfilter(filter)
			}
			n1, n2, n3 := l.nodes["n1"], l.nodes["n2"], l.nodes["n3"]
			a, b, c, d := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c"), l.pod("n1", "d")
			meet(t, a, b, c, d)
			for _, w := range []struct {
				from *node
				to   netip.Prefix
				want string
			}{
				{n1, n3.cidr, "eth0 192.168.1.3"}, {n3, n1.cidr, "eth0 192.168.1.1"},
				{n1, n2.cidr, "bls-vxlan 10.244.2.1"}, {n2, n1.cidr, "bls-vxlan 10.244.1.1"}, {n2, n3.cidr, "bls-vxlan 10.244.3.1"},
			} {
				if got := w.from.way(t, w.to); got != w.want {
					t.Errorf("%s to %s: %s, want %s", w.from.name, w.to, got, w.want)
				}
			}
			// A node's own packets: its address, or that of its end of the tunnel.
			expect(t, n1.ns, c.ip, "c 192.168.1.1")
			expect(t, n1.ns, b.ip, "b 10.244.1.1")
			expect(t, n2.ns, a.ip, "a 10.244.2.1")
			expect(t, a.ns, netip.MustParseAddr("192.168.2.9"), "outside 192.168.1.1")
			expect(t, b.ns, netip.MustParseAddr("192.168.2.9"), "outside 192.168.2.2")
		})
	}
}

// One node thinks that it needs the tunnel, the other that it does not.
func TestOneSided(t *testing.T) {
	l := newLab(t)
	must(t, l.nodes["n1"].ns.Link.RouteAdd(&netlink.Route{Dst: netlab.CIDR(t, "192.168.1.3/32"), Gw: net.IPv4(192, 168, 1, 254)}))
	l.syncAll()
	if a, b := l.nodes["n1"].way(t, l.nodes["n3"].cidr), l.nodes["n3"].way(t, l.nodes["n1"].cidr); a != "bls-vxlan 10.244.3.1" || b != "eth0 192.168.1.1" {
		t.Fatalf("ways %s and %s", a, b)
	}
	a, c := l.pod("n1", "a"), l.pod("n3", "c")
	meet(t, a, c)
	a.echo(t, "9000")
	c.echo(t, "9000")
	everySize(t, a, c.ip, 1450)
	everySize(t, c, a.ip, 1450)
}

// everySize sends packets of each size that can matter, with DF, and larger ones
// without. mtu is that of the sender's pod.
func everySize(t *testing.T, from *member, to netip.Addr, mtu int) {
	t.Helper()
	everySizeFrom(t, from, to, mtu, false)
}

// everySizeFrom allows for a first answer that is lost: where the other pod's MTU
// is larger than ours, that teaches it the way's.
func everySizeFrom(t *testing.T, from *member, to netip.Addr, mtu int, learns bool) {
	t.Helper()
	const headers = 28
	c := dialDF(t, from.ns, to.String()+":9000", true)
	sizes := []int{0, 1, 64, 512, 548, 1000}
	for s := mtu - headers - 130; s <= mtu-headers; s++ {
		sizes = append(sizes, s)
	}
	for _, size := range sizes {
		if err := there(c, size); err != nil {
			t.Fatalf("%s -> %s: %d bytes with DF: %v", from.name, to, size, err)
		}
	}
	if err := there(c, mtu-headers+1); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("%s -> %s: a packet of %d bytes: %v, want at once: message too long", from.name, to, mtu+1, err)
	}
	c = dialDF(t, from.ns, to.String()+":9000", false)
	for _, size := range []int{mtu - headers, mtu - headers + 1, 1472, 1473, 2900, 8000} {
		err := there(c, size)
		if learns && errors.Is(err, os.ErrDeadlineExceeded) {
			err = there(c, size)
		}
		if err != nil {
			t.Errorf("%s -> %s: %d bytes in fragments: %v", from.name, to, size, err)
		}
	}
}

// stream sends megabytes by TCP and compares.
func stream(t *testing.T, from, to *member) {
	t.Helper()
	var listener net.Listener
	must(t, to.ns.Do(func() (err error) {
		listener, err = net.Listen("tcp4", ":0")
		return err
	}))
	defer listener.Close()
	want := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	received := make(chan []byte, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			received <- nil
			return
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			received <- nil
			return
		}
		all, err := io.ReadAll(c)
		if err != nil {
			all = nil
		}
		received <- all
	}()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	must(t, err)
	c, err := from.ns.Dial("tcp4", to.ip.String()+":"+port)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	if _, err := c.Write(want); err != nil {
		t.Fatalf("stream %s -> %s: %v", from.name, to.name, err)
	}
	must(t, c.(*net.TCPConn).CloseWrite())
	if got := <-received; !bytes.Equal(got, want) {
		t.Errorf("stream %s -> %s: %d bytes arrived of %d", from.name, to.name, len(got), len(want))
	}
}

func TestEverySize(t *testing.T) {
	l := newLab(t)
	a, b, c, d := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c"), l.pod("n1", "d")
	for _, m := range []*member{a, b, c, d} {
		m.echo(t, "9000")
	}
	for _, to := range []*member{b, c, d} {
		everySize(t, a, to.ip, 1450)
		everySize(t, to, a.ip, 1450)
		stream(t, a, to)
		stream(t, to, a)
	}
}

func setMTU(t *testing.T, l *lab, mtu int, names ...string) {
	t.Helper()
	for _, name := range names {
		must(t, l.nodes[name].ns.Link.LinkSetMTU(l.nodes[name].ns.Device("eth0"), mtu))
	}
}

// The uplink's MTU changes while pods run: theirs follow, both ends. Too small a
// one ends the tunnels, says so, and leaves the rest alone.
func TestMTUChanges(t *testing.T) {
	l := newLab(t)
	n1 := l.nodes["n1"]
	a, b, c := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c")
	for _, m := range []*member{a, b, c} {
		m.echo(t, "9000")
	}
	setMTU(t, l, 1400, "n1")
	found, err := n1.net.Scrub(context.Background())
	must(t, err)
	if said := strings.Join(found, "\n"); !strings.Contains(said, "the MTU of eth0 is now 1400, it was 1500: that of pods becomes 1350") {
		t.Errorf("found %q", said)
	}
	everySizeFrom(t, a, b.ip, 1350, true)
	everySizeFrom(t, a, c.ip, 1350, true)
	stream(t, a, b)
	stream(t, b, a) // the other side still has 1450
	stream(t, c, a)

	setMTU(t, l, 1300, "n1")
	_, err = n1.net.Scrub(context.Background())
	if !errors.Is(err, podnet.ErrMTU) || !strings.Contains(err.Error(), "device eth0 has an MTU of 1300, and a tunnel needs 1330 (1280 for pods and 50 for its headers); raise it") ||
		!strings.Contains(err.Error(), "node n2") || strings.Contains(err.Error(), "node n3") {
		t.Errorf("an MTU that does not fit: %v", err)
	}
	everySizeFrom(t, a, c.ip, 1300, true)
	stream(t, a, c)
	if _, err := a.ns.Request("tcp4", b.ip.String()+":8080"); err == nil {
		t.Error("a pod over the router is reached without a tunnel")
	}
	setMTU(t, l, 1500, "n1")
	if _, err := n1.net.Scrub(context.Background()); err != nil {
		t.Error(err)
	}
	everySize(t, a, b.ip, 1450)
	meet(t, a, b, c)
}

// Nodes come, go and change their addresses in one pass; ways of others lose no
// packet, and nothing stays behind.
func TestNodesChange(t *testing.T) {
	l := newLab(t)
	a, b, c := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c")
	b.echo(t, "9000")
	c.echo(t, "9000")
	toB, toC := ping(t, a.ns, b.ip.String()+":9000"), ping(t, a.ns, c.ip.String()+":9000")
	n1 := l.nodes["n1"]

	n4 := l.join("n4", 2, "192.168.2.4", "10.244.4.0/24")
	l.syncAll()
	d := l.pod("n4", "d")
	meet(t, a, b, c, d)
	must(t, n4.ns.Link.AddrDel(n4.ns.Device("eth0"), &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 168, 2, 4), Mask: net.CIDRMask(24, 32)}}))
	n4.ns.Addr("eth0", "192.168.2.44/24")
	n4.ns.Route("", "192.168.2.254")
	n4.ip = netip.MustParseAddr("192.168.2.44")
	l.start(n4)
	_, err := n4.net.Setup(context.Background(), "uid-d", d.ns.Path)
	must(t, err)
	l.syncAll()
	meet(t, a, b, c, d)

	// It moves to the link of n1: tunnels become routes.
	must(t, l.links[2].Link.LinkDel(l.links[2].Device("pn4eth0")))
	l.plug(n4.ns, "eth0", 1, "192.168.1.4/24")
	n4.ns.Route("", "192.168.1.254")
	n4.ip = netip.MustParseAddr("192.168.1.4")
	l.start(n4)
	_, err = n4.net.Setup(context.Background(), "uid-d", d.ns.Path)
	must(t, err)
	l.syncAll()
	meet(t, a, b, c, d)
	if got := n1.way(t, n4.cidr); got != "eth0 192.168.1.4" {
		t.Errorf("way to the moved node: %s", got)
	}

	delete(l.nodes, "n4")
	l.syncAll()
	if got := n1.way(t, n4.cidr); got != "0 routes" {
		t.Errorf("way to the removed node: %s", got)
	}
	if got := ends(t, n1); got != "1 neighbours, 1 forwarding entries" {
		t.Errorf("left behind: %s", got)
	}
	toB.end(t, "over the router")
	toC.end(t, "on the link")
}

// ends counts the tunnel's permanent entries.
func ends(t *testing.T, n *node) string {
	t.Helper()
	index := n.ns.Device(podnet.TunnelDevice).Attrs().Index
	neighs, err := n.ns.Link.NeighList(index, netlink.FAMILY_V4)
	must(t, err)
	fdb, err := n.ns.Link.NeighList(index, syscall.AF_BRIDGE)
	must(t, err)
	return fmt.Sprintf("%d neighbours, %d forwarding entries", len(neighs), len(fdb))
}

// An agent that is killed leaves all ways as they are, and the next one changes
// nothing: no packet is lost.
func TestRestart(t *testing.T) {
	l := newLab(t)
	a, b, c, d := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c"), l.pod("n1", "d")
	var pings []*pinger
	for _, to := range []*member{b, c, d} {
		to.echo(t, "9000")
		pings = append(pings, ping(t, a.ns, to.ip.String()+":9000"))
	}
	for range 10 {
		for name, own := range map[string][]*member{"n1": {a, d}, "n2": {b}, "n3": {c}} {
			l.start(l.nodes[name])
			must(t, l.nodes[name].net.SyncRoutes(context.Background(), l.routes()))
			for _, m := range own {
				ip, err := l.nodes[name].net.Setup(context.Background(), "uid-"+m.name, m.ns.Path)
				if err != nil || ip != m.ip {
					t.Fatalf("pod %s: %s, %v", m.name, ip, err)
				}
			}
			if found, err := l.nodes[name].net.Scrub(context.Background()); err != nil || len(found) != 0 {
				t.Fatalf("%s after a restart: %q, %v", name, found, err)
			}
		}
	}
	for _, p := range pings {
		p.end(t, "restarts")
	}
}

// Destinations that know the way back see the pods' own addresses.
func TestNoMasquerade(t *testing.T) {
	l := newLab(t)
	n5 := l.join("n5", 2, "192.168.2.5", "10.244.5.0/24", netip.MustParsePrefix("192.168.2.9/32"))
	l.syncAll()
	l.outside.Route("10.244.5.0/24", "192.168.2.5")
	e := l.pod("n5", "e")
	expect(t, e.ns, netip.MustParseAddr("192.168.2.9"), "outside "+e.ip.String())
	l.router.Serve(":8080")
	expect(t, e.ns, netip.MustParseAddr("192.168.2.254"), "router 192.168.2.5")
	if found, err := n5.net.Scrub(context.Background()); err != nil || len(found) != 0 {
		t.Errorf("the table is taken for another: %q, %v", found, err)
	}
}

// Pod CIDRs that overlap, with each other or with what the machine is in, are
// refused with the reason; the ways to other nodes stay.
func TestOverlaps(t *testing.T) {
	l := newLab(t)
	a, b, c := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c")
	n1 := l.nodes["n1"]
	n1.ns.Addr("eth0", "10.244.66.1/23")
	must(t, n1.ns.Link.RouteAdd(&netlink.Route{Dst: netlab.CIDR(t, "10.244.80.0/24"), Gw: net.IPv4(192, 168, 1, 254)}))
	prefix, ip := netip.MustParsePrefix, netip.MustParseAddr
	routes := append(l.routes(), podnet.NodeRoute{Name: "a-late", PodCIDR: prefix("10.244.2.128/25"), NodeIP: ip("192.168.2.7")},
		podnet.NodeRoute{Name: "self", PodCIDR: prefix("10.244.0.0/23"), NodeIP: ip("192.168.2.7")},
		podnet.NodeRoute{Name: "local", PodCIDR: prefix("10.244.67.0/24"), NodeIP: ip("192.168.2.7")},
		podnet.NodeRoute{Name: "routed", PodCIDR: prefix("10.244.80.0/24"), NodeIP: ip("192.168.2.7")},
		podnet.NodeRoute{Name: "inside", PodCIDR: prefix("10.244.81.0/24"), NodeIP: ip("10.244.2.9")},
		podnet.NodeRoute{Name: "me", PodCIDR: prefix("10.244.82.0/24"), NodeIP: n1.ip},
		podnet.NodeRoute{Name: "good", PodCIDR: prefix("10.244.83.0/24"), NodeIP: ip("192.168.1.83")})
	err := n1.net.SyncRoutes(context.Background(), routes)
	if !errors.Is(err, podnet.ErrOverlap) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"node a-late: networks overlap: its pod CIDR 10.244.2.128/25 and that of node n2 (10.244.2.0/24), whose routes stay; the pods of a-late are not reached from here until one is changed",
		"node self: networks overlap: its pod CIDR 10.244.0.0/23 and this node's own, 10.244.1.0/24",
		"pods of node local (10.244.67.0/24, at 192.168.2.7) cannot be reached: networks overlap: this node's device eth0 is in 10.244.66.0/23",
		"pods of node routed (10.244.80.0/24, at 192.168.2.7) cannot be reached: networks overlap: there is a route for 10.244.80.0/24 that is not ours (via 192.168.1.254 dev eth0 proto",
		"pods of node inside (10.244.81.0/24, at 10.244.2.9) cannot be reached: networks overlap: the node's own address lies in the pod network 10.244.0.0/16",
		"pods of node me (10.244.82.0/24, at 192.168.1.1) cannot be reached: its address is one of this machine's own",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nsays nothing of: %s", err, want)
		}
	}
	if got := n1.way(t, prefix("10.244.83.0/24")); got != "eth0 192.168.1.83" {
		t.Errorf("a good node among bad ones: %s", got)
	}
	if got := n1.way(t, prefix("10.244.80.0/24")); got != "eth0 192.168.1.254" {
		t.Errorf("somebody else's route: %s", got)
	}
	meet(t, a, b, c)

	// The node's own pods: it does not even start.
	n1.ns.Addr("eth0", "10.244.1.200/28")
	again, err := podnet.NewLinux(podnet.Options{NetNS: n1.ns.Path, Dir: t.TempDir(), PodCIDR: n1.cidr, ClusterCIDR: prefix("10.244.0.0/16"), NodeIP: n1.ip})
	must(t, err)
	defer again.Close()
	if err := again.Prepare(context.Background()); !errors.Is(err, podnet.ErrOverlap) || !strings.Contains(err.Error(), "this node's device eth0 is in 10.244.1.192/28") {
		t.Errorf("own pods in the uplink's network: %v", err)
	}
}

// A device without hardware addresses is no link in our sense: what is at its other
// end decides by destinations, and knows nothing of pods.
func TestPointToPointIsNoLink(t *testing.T) {
	l := newLab(t)
	n1 := l.nodes["n1"]
	must(t, n1.ns.Link.LinkSetARPOff(n1.ns.Device("eth0")))
	l.syncAll()
	if got := n1.way(t, l.nodes["n3"].cidr); got != "bls-vxlan 10.244.3.1" {
		t.Errorf("way over a device without ARP: %s", got)
	}
}

// Services lead through the tunnel; what is masqueraded there carries the address
// of the node's end, so the answer finds the tunnel.
func TestServicesThroughTheTunnel(t *testing.T) {
	l := newLab(t)
	n1 := l.nodes["n1"]
	a, b := l.pod("n1", "a"), l.pod("n2", "b")
	proxy, err := apply.New(apply.Options{NetNS: n1.ns.Path})
	must(t, err)
	t.Cleanup(func() { must(t, proxy.Close()) })
	service := &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "s", Namespace: "d"}, Spec: &balsav1.ServiceSpec{Type: "NodePort", ClusterIp: "10.96.0.10", ClusterIps: []string{"10.96.0.10"}}}
	slice := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "s-1", Namespace: "d", Labels: map[string]string{object.LabelServiceName: "s"}}, AddressType: "IPv4",
		Endpoints: []*balsav1.Endpoint{{Addresses: []string{b.ip.String()}}}}
	for _, protocol := range []string{"TCP", "UDP"} {
		service.Spec.Ports = append(service.Spec.Ports, &balsav1.ServicePort{Name: protocol, Port: 8080, Protocol: protocol, NodePort: proto.Int32(30080)})
		slice.Ports = append(slice.Ports, &balsav1.EndpointPort{Name: protocol, Port: 8080, Protocol: protocol})
	}
	tracker := netproxy.NewTracker(netproxy.NodeParams{Name: "n1", PodCIDR: n1.cidr, ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), NodeIP: n1.ip})
	tracker.SetService(service)
	tracker.SetSlice(slice)
	_, err = proxy.Sync(context.Background(), tracker.Ruleset(1))
	must(t, err)
	vip := netip.MustParseAddr("10.96.0.10")
	expect(t, a.ns, vip, "b "+a.ip.String())
	expect(t, n1.ns, vip, "b 10.244.1.1")
	for _, network := range []string{"tcp4", "udp4"} {
		if got, err := l.outside.Request(network, "192.168.1.1:30080"); err != nil || got != "b 10.244.1.1" {
			t.Errorf("%s by the node's port: %q, %v", network, got, err)
		}
	}
}
