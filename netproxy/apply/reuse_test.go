//go:build linux

package apply_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	s := newSite(t, "0")
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
	if err := s.ns[world.PodA].Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	}); err != nil {
		t.Fatal(err)
	}
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
