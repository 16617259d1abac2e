//go:build linux

package apply_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

// vanish ends a socket without another packet, as one does whose end of the
// connection was never answered, only sooner: its port is free.
func vanish(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// A client's FIN meets a pod that has gone: the connection never ends for the
// kernel's tracking, and a new one from the same port is taken for it, so it goes
// to the pod that was. Once the pod is no endpoint any more such connections are
// forgotten, and new ones go where the rules say; those that are open stay.
func TestPortsOfConnectionsToPodsThatHaveGone(t *testing.T) {
	s := newSite(t, false)
	const client = world.Node1 + ":40001"
	sync(t, s.kernel, siteView(nil, world.PodA))
	c, err := s.n1.DialFrom("tcp4", client, webVIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	open, err := s.n1.DialFrom("tcp4", world.Node1+":40002", webVIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	unplug(t, s.ns[world.PodA])
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	vanish(t, c)
	sync(t, s.kernel, siteView(nil, world.PodB))
	if n, err := s.kernel.Forget(t.Context(), []netip.Addr{ip(world.PodA)}); err != nil || n != 1 {
		t.Errorf("forgot %d connections, %v; want 1", n, err)
	}
	again, err := s.n1.DialFrom("tcp4", client, webVIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if name, _, err := question(again, 2*time.Second); err != nil || name != "b" {
		t.Errorf("%q answers, %v; want b", name, err)
	}
}

// unplug takes a pod off its node, as at its end.
func unplug(t *testing.T, pod *netlab.NS) {
	t.Helper()
	if err := pod.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	}); err != nil {
		t.Fatal(err)
	}
}

// resetPort is where a pod listens that resets whoever connects.
const resetPort = 9999

// reset opens a connection from an address to the service, whose only pod resets
// it; then the pod goes, and the rules name another.
func (s *site) reset(t *testing.T, from *netlab.NS, client string) {
	t.Helper()
	pod := s.ns[world.PodA]
	var l net.Listener
	if err := pod.Do(func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{Port: resetPort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sync(t, s.kernel, siteView(func(p *netproxy.ServicePort) {
		for i := range p.Endpoints {
			p.Endpoints[i].Port = resetPort
		}
	}, world.PodA))
	c, err := from.DialFrom("tcp4", client, webVIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.(*net.TCPConn).SetLinger(0); err != nil { // no FIN: a reset
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection was not reset")
	}
	unplug(t, pod)
	// As node/podnet has it, so that what is led there fails at once.
	if err := s.n1.Link.RouteReplace(&netlink.Route{Dst: netlab.CIDR(t, world.PodA+"/32"), Type: unix.RTN_UNREACHABLE}); err != nil {
		t.Fatal(err)
	}
	sync(t, s.kernel, siteView(nil, world.PodC))
}

func (s *site) answeredBy(t *testing.T, from *netlab.NS, client, want string) {
	t.Helper()
	c, err := from.DialFrom("tcp4", client, webVIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if name, _, err := question(c, 2*time.Second); err != nil || name != want {
		t.Errorf("%q answers, %v; want %s", name, err, want)
	}
}

// A pod that stops resets connections on which a request has just come in, and the
// ports of their clients are free at once. Whoever is next to connect from one is
// not led to the pod that was, wherever the client is.
func TestPortOfAConnectionThatAPodHasReset(t *testing.T) {
	for _, client := range []string{world.Node1, world.PodB, world.Outside} {
		t.Run(client, func(t *testing.T) {
			s := newSite(t, false)
			s.n1.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1") // as node/podnet does
			s.reset(t, s.ns[client], client+":40001")
			s.answeredBy(t, s.ns[client], client+":40001", "c")
		})
	}
}

// Of a pod that is in no slice any more, connections that were reset are forgotten
// as well, however long the kernel would remember them.
func TestResetConnectionsToPodsThatHaveGoneAreForgotten(t *testing.T) {
	s := newSite(t, false)
	s.reset(t, s.n1, world.Node1+":40001")
	if n, err := s.kernel.Forget(t.Context(), []netip.Addr{ip(world.PodA)}); err != nil || n != 1 {
		t.Errorf("forgot %d connections, %v; want 1", n, err)
	}
	s.answeredBy(t, s.n1, world.Node1+":40001", "c")
}
