//go:build linux

//balsa:real-processes

package podnet_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/node/podnet"
)

// TestConnectionsAreCounted opens real connections to pods: from another node, from
// the node itself, and from a pod to another; what a pod opens is not its own to
// wait for.
func TestConnectionsAreCounted(t *testing.T) {
	w := newWorld(t)
	_, ipA := pod(t, w.n1, "a")
	b, ipB := pod(t, w.n1, "b")
	c, _ := pod(t, w.n2, "c")
	at := ipA.String() + ":8080"
	remote, local, neighbour := open(t, c, at), open(t, w.ns1, at), open(t, b, at)
	count(t, w.n1, map[netip.Addr]int{ipA: 3, ipB: 0})
	if err := remote.Close(); err != nil {
		t.Fatal(err)
	}
	count(t, w.n1, map[netip.Addr]int{ipA: 2, ipB: 0})
	for _, conn := range []net.Conn{local, neighbour} {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	count(t, w.n1, map[netip.Addr]int{ipA: 0, ipB: 0})
}

func count(t *testing.T, n *podnet.Linux, want map[netip.Addr]int) {
	t.Helper()
	var to []netip.Addr
	for ip := range want {
		to = append(to, ip)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		got, err := n.Connections(context.Background(), to)
		if err != nil {
			t.Fatal(err)
		}
		same := len(got) == len(want)
		for ip, n := range want {
			same = same && got[ip] == n
		}
		if same {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, want %v", got, want)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// open opens a connection and waits until it carries something.
func open(t *testing.T, from *netlab.NS, to string) net.Conn {
	t.Helper()
	conn, err := from.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // again, when the test has failed
	return conn
}
