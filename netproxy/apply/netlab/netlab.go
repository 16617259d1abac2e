//go:build linux

// Package netlab builds small networks for tests: network namespaces joined by
// veth pairs, with servers and clients inside. It needs root. Namespaces are
// held by open files only, so nothing outlives the test process.
//
// It is for tests: every failure ends the test, and it refuses to touch the
// namespace the test runs in.
package netlab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// dialTimeout bounds one request. It is far above what a local request takes.
const dialTimeout = 2 * time.Second

// NS is one network namespace.
type NS struct {
	Name string
	// Path can be opened as long as the test runs.
	Path string
	Link *netlink.Handle
	file *os.File
	t    testing.TB
}

// New makes a namespace with its loopback device up.
func New(t testing.TB, name string) *NS {
	t.Helper()
	files := make(chan *os.File, 1)
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errs <- fmt.Errorf("unshare (are you root?): %w", err)
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			errs <- err
			return
		}
		files <- f
	}()
	n := &NS{Name: name, t: t}
	select {
	case err := <-errs:
		t.Fatalf("namespace %s: %v", name, err)
	case n.file = <-files:
	}
	n.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
	link, err := netlink.NewHandleAt(netns.NsHandle(n.file.Fd()))
	if err != nil {
		t.Fatalf("namespace %s: %v", name, err)
	}
	n.Link = link
	t.Cleanup(n.Close)
	n.must(link.LinkSetUp(n.Device("lo")))
	return n
}

// Close lets go of the namespace; the kernel removes it with all its devices
// once nothing else uses it. Closing twice is harmless.
func (n *NS) Close() {
	if n.file == nil {
		return
	}
	n.Link.Close()
	_ = n.file.Close() // nothing was written to it
	n.file = nil
}

func (n *NS) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("namespace %s: %v", n.Name, err)
	}
}

// Device returns a device that must exist.
func (n *NS) Device(name string) netlink.Link {
	n.t.Helper()
	l, err := n.Link.LinkByName(name)
	if err != nil {
		n.t.Fatalf("namespace %s: device %s: %v", n.Name, name, err)
	}
	return l
}

// Do runs f on a thread of its own inside the namespace.
func (n *NS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Sysctl sets a value such as net.ipv4.ip_forward.
func (n *NS) Sysctl(key, value string) {
	n.t.Helper()
	n.must(n.Do(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o644)
	}))
}

// BridgeNetfilter says whether what a bridge of the namespace carries passes through
// the rules for routed packets too. Kernels that have that in a module load it when
// somebody asks.
func (n *NS) BridgeNetfilter(on bool) {
	n.t.Helper()
	const known = "/proc/sys/net/bridge"
	if _, err := os.Stat(known); errors.Is(err, fs.ErrNotExist) {
		if out, err := exec.CommandContext(n.t.Context(), "modprobe", "br_netfilter").CombinedOutput(); err != nil {
			n.t.Fatalf("namespace %s: load br_netfilter: %v: %s", n.Name, err, out)
		}
	}
	value := map[bool]string{false: "0", true: "1"}[on]
	n.Sysctl("net.bridge.bridge-nf-call-iptables", value)
}

// Veth joins two namespaces by a pair of devices, both up.
func Veth(a *NS, aName string, b *NS, bName string) {
	a.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	a.must(a.Link.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.file.Fd())}))
	a.must(a.Link.LinkSetUp(a.Device(aName)))
	b.must(b.Link.LinkSetUp(b.Device(bName)))
}

// Bridge adds a bridge, up.
func (n *NS) Bridge(name string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	n.must(n.Link.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	n.must(n.Link.LinkSetUp(n.Device(name)))
}

// Plug puts a device into a bridge.
func (n *NS) Plug(device, bridge string) {
	n.t.Helper()
	n.must(n.Link.LinkSetMaster(n.Device(device), n.Device(bridge)))
}

// Addr gives a device an address with a prefix length.
func (n *NS) Addr(device, cidr string) {
	n.t.Helper()
	a, err := netlink.ParseAddr(cidr)
	n.must(err)
	n.must(n.Link.AddrAdd(n.Device(device), a))
}

// Route adds a route through a gateway; dst "" is the default route.
func (n *NS) Route(dst, gateway string) {
	n.t.Helper()
	r := &netlink.Route{Gw: net.ParseIP(gateway)}
	if dst != "" {
		r.Dst = CIDR(n.t, dst)
	}
	n.must(n.Link.RouteAdd(r))
}

// RoutedPod joins a pod and its node by a routed veth pair, by hand: for tests
// that want pods without the code that makes them in production.
func RoutedPod(pod, node *NS, device, ip string) {
	pod.t.Helper()
	Veth(pod, "eth0", node, device)
	pod.Addr("eth0", ip+"/32")
	inside, outside := pod.Device("eth0").Attrs(), node.Device(device).Attrs()
	gateway := net.IPv4(169, 254, 1, 1)
	pod.must(pod.Link.RouteAdd(&netlink.Route{LinkIndex: inside.Index, Scope: netlink.SCOPE_LINK, Dst: CIDR(pod.t, "169.254.1.1/32")}))
	pod.must(pod.Link.RouteAdd(&netlink.Route{LinkIndex: inside.Index, Gw: gateway}))
	pod.must(pod.Link.NeighSet(&netlink.Neigh{LinkIndex: inside.Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: outside.HardwareAddr}))
	node.must(node.Link.RouteAdd(&netlink.Route{LinkIndex: outside.Index, Scope: netlink.SCOPE_LINK, Dst: CIDR(pod.t, ip+"/32")}))
	node.must(node.Link.NeighSet(&netlink.Neigh{LinkIndex: outside.Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: inside.HardwareAddr}))
}

// CIDR parses a prefix.
func CIDR(t testing.TB, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Serve answers TCP connections and UDP packets at an address until the test
// ends, each with "<name> <client's address>". A TCP connection gets the answer
// to each line it sends, so that a test can hold it open.
func (n *NS) Serve(addr string) {
	n.t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	var config net.ListenConfig
	n.must(n.Do(func() (err error) {
		if tcp, err = config.Listen(n.t.Context(), "tcp4", addr); err != nil {
			return err
		}
		udp, err = config.ListenPacket(n.t.Context(), "udp4", addr)
		return err
	}))
	n.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
	go n.serveTCP(tcp)
	go n.serveUDP(udp)
}

func (n *NS) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 256)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", n.Name, host(c.RemoteAddr()))
			}
		}()
	}
}

func (n *NS) serveUDP(c net.PacketConn) {
	buf := make([]byte, 256)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if _, err := c.WriteTo(fmt.Appendf(nil, "%s %s", n.Name, host(from)), from); err != nil {
			return
		}
	}
}

func host(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// Dial connects from inside the namespace; network is "tcp4" or "udp4".
func (n *NS) Dial(network, addr string) (net.Conn, error) {
	return n.DialFrom(network, "", addr)
}

// DialFrom is Dial with a local address, "ip:port".
func (n *NS) DialFrom(network, local, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	if local != "" {
		var err error
		if network == "udp4" {
			d.LocalAddr, err = net.ResolveUDPAddr(network, local)
		} else {
			d.LocalAddr, err = net.ResolveTCPAddr(network, local)
		}
		if err != nil {
			return nil, err
		}
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.Dial(network, addr)
		return err
	})
	return c, err
}

// Ask sends one request on a connection and returns the answer.
func Ask(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	buf := make([]byte, 256)
	k, err := c.Read(buf)
	return string(buf[:k]), err
}

// Request connects, asks once and closes.
func (n *NS) Request(network, addr string) (string, error) {
	c, err := n.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return Ask(c)
}
