//go:build linux

//balsa:real-processes

package podnet_test

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
)

// A pod on another node resets a connection and is gone, as at the end of a pod that
// is replaced. The client's port is used again at once, and the request reaches the
// pod that is there now, instead of the unreachable address of the one before.
func TestPortIsUsedAgainAfterThePodHasGone(t *testing.T) {
	const client = "192.168.77.1:40001"
	w := newWorld(t)
	old := netlab.New(t, "old")
	gone := setup(t, w.n2, "uid-old", old.Path)
	_, stays := pod(t, w.n2, "new")
	proxy, err := apply.New(apply.Options{NetNS: w.ns1.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	lead := func(to netip.Addr) {
		v := netproxy.View{PodCIDR: podCIDR, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), NodeIP: netip.MustParseAddr("192.168.77.1"),
			Services: []netproxy.ServicePort{{Name: "s", VIP: netip.MustParseAddr("10.96.0.10"), Protocol: netproxy.TCP, Port: 80,
				Endpoints: []netproxy.Endpoint{{IP: to, Port: 8080, Ready: true}}}}}
		if _, err := proxy.Sync(t.Context(), netproxy.Plan(v)); err != nil {
			t.Fatal(err)
		}
	}
	lead(gone)
	resets(t, old)
	c, err := w.ns1.DialFrom("tcp4", client, "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := netlab.Ask(c); err == nil {
		t.Fatalf("%q instead of a reset", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	lead(stays)
	if err := w.n2.Teardown(context.Background(), "uid-old"); err != nil {
		t.Fatal(err)
	}
	again, err := w.ns1.DialFrom("tcp4", client, "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, err := netlab.Ask(again); err != nil || got != "new 192.168.77.1" {
		t.Errorf("%q, %v", got, err)
	}
}

// resets serves port 8080 by resetting the first who asks.
func resets(t *testing.T, pod *netlab.NS) {
	t.Helper()
	var l *net.TCPListener
	if err := pod.Do(func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{Port: 8080})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 1)) // the client is connected
		_ = c.SetLinger(0)             // no FIN
		_ = c.Close()
	}()
}
