//go:build linux

//balsa:real-processes

package ways

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/node/podnet"
)

// The lab: two links with a router between them that knows nothing of pods.
//
//	n1 192.168.1.1 --+                         +-- n2 192.168.2.2
//	                 +-- link 1 -- router -- link 2
//	n3 192.168.1.3 --+   .254            .254  +-- outside 192.168.2.9
type lab struct {
	t       *testing.T
	router  *netlab.NS
	outside *netlab.NS
	links   [3]*netlab.NS // 1 and 2
	nodes   map[string]*node
}

type node struct {
	name string
	ns   *netlab.NS
	dir  string
	ip   netip.Addr
	cidr netip.Prefix
	net  *podnet.Linux
	none []netip.Prefix // NoMasquerade
}

// member is a pod.
type member struct {
	name string
	ns   *netlab.NS
	ip   netip.Addr
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, router: netlab.New(t, "router"), outside: netlab.New(t, "outside"), nodes: map[string]*node{}}
	l.router.Sysctl("net.ipv4.ip_forward", "1")
	for i := 1; i <= 2; i++ {
		l.links[i] = netlab.New(t, fmt.Sprint("link", i))
		l.links[i].Bridge("br0")
		l.plug(l.router, fmt.Sprint("r", i), i, fmt.Sprintf("192.168.%d.254/24", i))
	}
	l.plug(l.outside, "eth0", 2, "192.168.2.9/24")
	l.outside.Route("", "192.168.2.254")
	l.outside.Serve(":8080")
	l.join("n1", 1, "192.168.1.1", "10.244.1.0/24")
	l.join("n2", 2, "192.168.2.2", "10.244.2.0/24")
	l.join("n3", 1, "192.168.1.3", "10.244.3.0/24")
	l.syncAll()
	return l
}

// plug joins a namespace to a link.
func (l *lab) plug(n *netlab.NS, device string, link int, cidr string) {
	l.t.Helper()
	port := "p" + n.Name + device
	netlab.Veth(n, device, l.links[link], port)
	l.links[link].Plug(port, "br0")
	if cidr != "" {
		n.Addr(device, cidr)
	}
}

func (l *lab) join(name string, link int, ip, cidr string, none ...netip.Prefix) *node {
	l.t.Helper()
	n := &node{name: name, ns: netlab.New(l.t, name), dir: l.t.TempDir(), ip: netip.MustParseAddr(ip), cidr: netip.MustParsePrefix(cidr), none: none}
	l.plug(n.ns, "eth0", link, ip+"/24")
	n.ns.Route("", fmt.Sprintf("192.168.%d.254", link))
	l.nodes[name] = n
	l.start(n)
	return n
}

// start is what an agent does, also after it was killed.
func (l *lab) start(n *node) {
	l.t.Helper()
	opened, err := podnet.NewLinux(podnet.Options{NetNS: n.ns.Path, Dir: n.dir, PodCIDR: n.cidr, ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		NodeIP: n.ip, LocalAddress: netip.MustParseAddr("169.254.20.10"), NoMasquerade: n.none})
	must(l.t, err)
	l.t.Cleanup(func() { must(l.t, opened.Close()) })
	must(l.t, opened.Prepare(context.Background()))
	n.net = opened
}

func (l *lab) routes() (out []podnet.NodeRoute) {
	for _, n := range l.nodes {
		out = append(out, podnet.NodeRoute{Name: n.name, PodCIDR: n.cidr, NodeIP: n.ip})
	}
	return out
}

func (l *lab) syncAll() {
	l.t.Helper()
	for _, n := range l.nodes {
		must(l.t, n.net.SyncRoutes(context.Background(), l.routes()))
	}
}

// pod connects a pod with a server.
func (l *lab) pod(on, name string) *member {
	l.t.Helper()
	m := &member{name: name, ns: netlab.New(l.t, name)}
	var err error
	m.ip, err = l.nodes[on].net.Setup(context.Background(), "uid-"+name, m.ns.Path)
	must(l.t, err)
	m.ns.Serve(":8080")
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expect asks by TCP and UDP; the answer names who answers and whom he sees.
func expect(t *testing.T, from *netlab.NS, to netip.Addr, want string) {
	t.Helper()
	for _, network := range []string{"tcp4", "udp4"} {
		if got, err := from.Request(network, to.String()+":8080"); err != nil || got != want {
			t.Errorf("%s %s -> %s: %q, %v; want %q", network, from.Name, to, got, err, want)
		}
	}
}

// meet lets all pods reach each other with their own addresses.
func meet(t *testing.T, pods ...*member) {
	t.Helper()
	for _, a := range pods {
		for _, b := range pods {
			if a != b {
				expect(t, a.ns, b.ip, b.name+" "+a.ip.String())
			}
		}
	}
}

// within polls, at most so long.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not within %v: %s", d, what)
			return
		}
	}
}

// way is the gateway of a node's route to pods: what it is decided by.
func (n *node) way(t *testing.T, cidr netip.Prefix) string {
	t.Helper()
	routes, err := n.ns.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: netlab.CIDR(t, cidr.String())}, netlink.RT_FILTER_DST)
	must(t, err)
	if len(routes) != 1 {
		return fmt.Sprintf("%d routes", len(routes))
	}
	d, err := n.ns.Link.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	return d.Attrs().Name + " " + routes[0].Gw.String()
}

// echo answers UDP with what came.
func (m *member) echo(t *testing.T, port string) {
	t.Helper()
	var c net.PacketConn
	must(t, m.ns.Do(func() (err error) {
		c, err = net.ListenPacket("udp4", ":"+port)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	go func() {
		buffer := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			if _, err := c.WriteTo(buffer[:n], from); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
				return
			}
		}
	}()
}

// dialDF connects by UDP with the flag "do not fragment" on, or off.
func dialDF(t *testing.T, from *netlab.NS, to string, df bool) net.Conn {
	t.Helper()
	c, err := from.Dial("udp4", to)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	mode := unix.IP_PMTUDISC_DONT
	if df {
		mode = unix.IP_PMTUDISC_DO
	}
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode)
	}))
	must(t, err)
	return c
}

// there sends a packet of a size and waits for it to come back.
func there(c net.Conn, size int) error {
	if _, err := c.Write(make([]byte, size)); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	n, err := c.Read(make([]byte, 65536))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes came back", n)
	}
	return err
}

// pinger sends a packet every few milliseconds until it is stopped, and counts
// those that did not come back.
type pinger struct {
	stop chan struct{}
	over chan struct{}
	sent atomic.Int64
	lost atomic.Int64
}

func ping(t *testing.T, from *netlab.NS, to string) *pinger {
	t.Helper()
	c := dialDF(t, from, to, true)
	p := &pinger{stop: make(chan struct{}), over: make(chan struct{})}
	go func() {
		defer close(p.over)
		for {
			select {
			case <-p.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			p.sent.Add(1)
			if err := there(c, 100); err != nil {
				p.lost.Add(1)
			}
		}
	}()
	within(t, 5*time.Second, "the first packets come back", func() bool { return p.sent.Load() > 3 })
	return p
}

func (p *pinger) end(t *testing.T, what string) {
	t.Helper()
	close(p.stop)
	<-p.over
	t.Logf("%s: %d packets, %d lost", what, p.sent.Load(), p.lost.Load())
	if p.lost.Load() != 0 {
		t.Errorf("%s: %d of %d packets were lost", what, p.lost.Load(), p.sent.Load())
	}
}

func host(a string) *net.IPNet {
	return &net.IPNet{IP: net.ParseIP(a).To4(), Mask: net.CIDRMask(32, 32)}
}
