//go:build linux

package ways

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/node/podnet"
)

// The address that is announced, on link 1, and who asks for it there.
const front = "192.168.1.100"

func (l *lab) client() *member {
	l.t.Helper()
	m := &member{name: "client", ns: netlab.New(l.t, "client")}
	l.plug(m.ns, "eth0", 1, "192.168.1.50/24")
	return m
}

func addrsOf(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// who answers for the address, asked with whatever the client's neighbour table
// says now.
func who(m *member) func() string {
	return func() string {
		name, err := m.ns.Request("tcp4", front+":8080")
		if err != nil {
			return err.Error()
		}
		name, _, _ = strings.Cut(name, " ")
		return name
	}
}

func TestAnnounced(t *testing.T) {
	l, ctx := newLab(t), context.Background()
	n1, n3 := l.nodes["n1"], l.nodes["n3"]
	n1.ns.Serve(":8080")
	n3.ns.Serve(":8080")
	client := l.client()
	must(t, n1.net.SyncAnnounced(ctx, addrsOf(front)))
	if got := who(client)(); got != "n1" {
		t.Fatalf("%s answers, want n1", got)
	}
	// The next node takes it while the former still has it: its agent is slow. The
	// client learns at once.
	must(t, n3.net.SyncAnnounced(ctx, addrsOf(front)))
	must(t, n1.net.SyncAnnounced(ctx, nil))
	within(t, time.Second, "n3 answers", func() bool { return who(client)() == "n3" })
	// An agent that restarts leaves it; then it goes, and the next takes it back.
	l.start(n3)
	if got := who(client)(); got != "n3" {
		t.Errorf("after a restart %s answers", got)
	}
	if _, err := n3.net.Cleanup(ctx, nil); err != nil || who(client)() != "n3" {
		t.Errorf("a cleaning before anything is known takes it away: %v", err)
	}
	must(t, n3.net.SyncAnnounced(ctx, nil))
	must(t, n1.net.SyncAnnounced(ctx, addrsOf(front, "192.168.1.101")))
	within(t, time.Second, "n1 answers", func() bool { return who(client)() == "n1" })
	// What the node sends keeps its own address.
	expect(t, n1.ns, netip.MustParseAddr("192.168.1.3"), "n3 192.168.1.1")
	l.start(n1)
	must(t, n1.net.SyncRoutes(ctx, l.routes()))
	must(t, n1.net.SyncAnnounced(ctx, addrsOf(front)))
	if have := announcedBy(t, n1); have != front {
		t.Errorf("after a restart with one address less: %q", have)
	}
}

func announcedBy(t *testing.T, n *node) string {
	t.Helper()
	addrs, err := n.ns.Link.AddrList(nil, netlink.FAMILY_V4)
	must(t, err)
	var out []string
	for _, a := range addrs {
		if strings.HasSuffix(a.Label, ":bls") {
			out = append(out, a.IP.String())
		}
	}
	return strings.Join(out, " ")
}

// A stranger's address is reported, not fought; others are taken, and it is, too,
// once the stranger has gone.
func TestStrangerHasTheAddress(t *testing.T) {
	l, ctx := newLab(t), context.Background()
	n1 := l.nodes["n1"]
	stranger := netlab.New(t, "stranger")
	l.plug(stranger, "eth0", 1, front+"/24")
	stranger.Serve(":8080")
	client := l.client()
	before := who(client)()
	err := n1.net.SyncAnnounced(ctx, addrsOf("192.168.1.102", front))
	if !errors.Is(err, podnet.ErrForeignAddress) || !strings.Contains(err.Error(), stranger.Device("eth0").Attrs().HardwareAddr.String()+" answers for "+front+" on eth0") {
		t.Errorf("a stranger's address: %v", err)
	}
	if have := announcedBy(t, n1); have != "192.168.1.102" || before != "stranger" || who(client)() != "stranger" {
		t.Errorf("announced %q; %s answered, %s answers", have, before, who(client)())
	}
	must(t, stranger.Link.LinkSetDown(stranger.Device("eth0")))
	found, err := n1.net.Scrub(ctx)
	if have := announcedBy(t, n1); err != nil || have != "192.168.1.102 "+front {
		t.Errorf("after the stranger has gone: %q, %q, %v", have, found, err)
	}
}

// What is not ours stays, also a /32 or one with a label of its own; ours comes
// back when somebody flushes it.
func TestAnnouncedLeavesOthersAlone(t *testing.T) {
	l, ctx := newLab(t), context.Background()
	n1 := l.nodes["n1"]
	n1.ns.Addr("eth0", "192.168.1.200/32")
	g := guardNode(t, n1)
	must(t, n1.net.SyncAnnounced(ctx, addrsOf(front)))
	n1.ns.Addr("eth0", "192.168.1.201/32")
	must(t, n1.ns.Link.AddrDel(n1.ns.Device("eth0"), &netlink.Addr{IPNet: host(front)}))
	within(t, 3*time.Second, "it is back", g.said("eth0 did not have the announced address "+front))
	must(t, n1.net.SyncAnnounced(ctx, nil))
	addrs, err := n1.ns.Link.AddrList(n1.ns.Device("eth0"), netlink.FAMILY_V4)
	must(t, err)
	var have []string
	for _, a := range addrs {
		have = append(have, a.IPNet.String())
	}
	if got := strings.Join(have, " "); got != "192.168.1.1/24 192.168.1.200/32 192.168.1.201/32" {
		t.Errorf("addresses left: %s", got)
	}
	for _, bad := range []string{"10.244.1.9", "192.168.1.1", "127.0.0.1", "224.0.0.1", "fd00::1"} {
		if err := n1.net.SyncAnnounced(ctx, addrsOf(bad)); err == nil {
			t.Errorf("%s is announced", bad)
		}
	}
}
