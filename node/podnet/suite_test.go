package podnet_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/balsa-run/balsa/node/podnet"
	"github.com/balsa-run/balsa/node/podnet/fake"
)

// suite is what every podnet.Network must do. restart returns the network as a
// new agent finds it after the old one was killed; newNS makes a network
// namespace and returns its path.
func suite(t *testing.T, restart func(t *testing.T) podnet.Network, newNS func(t *testing.T) string) {
	ctx := context.Background()
	n := restart(t)
	a := setup(t, n, "uid-a", newNS(t))
	nsB := newNS(t)
	b := setup(t, n, "uid-b", nsB)
	if a == b {
		t.Fatalf("two pods with address %s", a)
	}
	for _, x := range []netip.Addr{a, b} {
		if !podCIDR.Contains(x) || x == podCIDR.Addr() {
			t.Errorf("address %s is not for pods of %s", x, podCIDR)
		}
	}
	if again := setup(t, n, "uid-b", nsB); again != b {
		t.Errorf("second setup gave %s, first %s", again, b)
	}
	n = restart(t)
	if have := n.Addresses(); len(have) != 2 || have["uid-a"] != a || have["uid-b"] != b {
		t.Errorf("after a restart pods have %v, before %s and %s", have, a, b)
	}
	if again := setup(t, n, "uid-b", nsB); again != b {
		t.Errorf("setup after a restart gave %s, before %s", again, b)
	}
	if found, err := n.Scrub(ctx); err != nil || len(found) != 0 {
		t.Errorf("scrub of what is right: %q, %v", found, err)
	}
	for range 2 {
		if err := n.Teardown(ctx, "uid-a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Teardown(ctx, "never seen"); err != nil {
		t.Errorf("teardown of an unknown pod: %v", err)
	}
	c := setup(t, n, "uid-c", newNS(t))
	if c == b || c == a {
		t.Errorf("new pod got %s; a's %s should rest, b's %s is in use", c, a, b)
	}
	n = restart(t)
	removed, err := n.Cleanup(ctx, []string{"uid-b"})
	if err != nil || !slices.Equal(removed, []string{"uid-c"}) {
		t.Errorf("cleanup removed %v, %v; want uid-c", removed, err)
	}
	if again := setup(t, n, "uid-b", nsB); again != b {
		t.Errorf("cleanup took the living pod's address %s, now %s", b, again)
	}
	refusals(t, n, nsB)
}

func refusals(t *testing.T, n podnet.Network, ns string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	for _, uid := range []string{"", "two\nlines", "with space"} {
		if _, err := n.Setup(ctx, uid, ns); !errors.Is(err, podnet.ErrBadUID) {
			t.Errorf("uid %q: %v", uid, err)
		}
	}
	if _, err := n.Setup(ctx, "uid-d", ""); err == nil {
		t.Error("setup without a namespace succeeded")
	}
	contradiction := []podnet.NodeRoute{{"n", netip.MustParsePrefix("10.244.7.0/24"), netip.MustParseAddr("192.168.77.7")},
		{"n", netip.MustParsePrefix("10.244.7.0/24"), netip.MustParseAddr("192.168.77.8")}}
	if err := n.SyncRoutes(ctx, contradiction); err == nil {
		t.Error("one pod CIDR by two nodes accepted")
	}
	cancel()
	if err := n.NextDisturbance(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	if _, err := n.Scrub(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled scrub: %v", err)
	}
	if _, err := n.Setup(ctx, "uid-e", ns); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled setup: %v", err)
	}
	if err := n.Teardown(ctx, "uid-b"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled teardown: %v", err)
	}
}

func setup(t *testing.T, n podnet.Network, uid, ns string) netip.Addr {
	t.Helper()
	a, err := n.Setup(context.Background(), uid, ns)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var podCIDR = netip.MustParsePrefix("10.244.1.0/24")

func TestFake(t *testing.T) {
	dir := t.TempDir()
	suite(t, func(t *testing.T) podnet.Network {
		n, err := fake.New(podCIDR, dir)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}, func(*testing.T) string { return "/run/netns/any" })
}

func TestFakeFailsOnRequest(t *testing.T) {
	n, err := fake.New(podCIDR, "")
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	n.FailNext(boom)
	if _, err := n.Setup(context.Background(), "uid", "ns"); !errors.Is(err, boom) {
		t.Errorf("setup: %v", err)
	}
	if len(n.Pods()) != 0 {
		t.Errorf("pods %v after a failed setup", n.Pods())
	}
	routes := []podnet.NodeRoute{{"n", podCIDR, netip.MustParseAddr("192.168.77.1")}, {"n", netip.MustParsePrefix("10.244.2.0/24"), netip.MustParseAddr("192.168.77.2")}}
	if err := n.SyncRoutes(context.Background(), routes); err != nil || len(n.Routes()) != 1 {
		t.Errorf("routes %v, %v; want the other node's only", n.Routes(), err)
	}
}
