//go:build linux

package ways

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	"github.com/balsa-run/balsa/node/podnet"
)

// guardian is what the agent does: scrub on each disturbance, not more often than
// now and then.
type guardian struct {
	mu    sync.Mutex
	found []string
	errs  []error
}

func guardNode(t *testing.T, n *node) *guardian {
	t.Helper()
	g := &guardian{}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for n.net.NextDisturbance(ctx) == nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			g.note(n.net.Scrub(ctx))
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	return g
}

func (g *guardian) note(found []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.found = append(g.found, found...)
	if err != nil {
		g.errs = append(g.errs, err)
	}
}

func (g *guardian) said(part string) func() bool {
	return func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return slices.ContainsFunc(g.found, func(s string) bool { return strings.Contains(s, part) })
	}
}

func (g *guardian) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.found, g.errs = nil, nil
}

func deleteRoutes(ns *netlab.NS, ours func(netlink.Route) bool) error {
	routes, err := ns.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if !ours(r) {
			continue
		}
		if err := ns.Link.RouteDel(&r); err != nil {
			return err
		}
	}
	return nil
}

// What somebody else breaks is whole again within seconds and told: at once where
// the kernel tells of it, else at the next Scrub.
func TestOthersFlush(t *testing.T) {
	l := newLab(t)
	n1 := l.nodes["n1"]
	ns := n1.ns
	a, b, c := l.pod("n1", "a"), l.pod("n2", "b"), l.pod("n3", "c")
	device := podnet.DeviceName("uid-a")
	g := guardNode(t, n1)
	address := netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 168, 1, 1), Mask: net.CIDRMask(24, 32)}}
	for _, damage := range []struct {
		name   string
		do     func() error
		says   string
		silent bool // the kernel tells nobody
	}{
		{"routes flushed", func() error {
			return deleteRoutes(ns, func(r netlink.Route) bool { return r.Protocol == 96 || r.Protocol == 97 })
		}, "the route to the pod at " + a.ip.String(), false},
		{"one route goes elsewhere", func() error {
			return ns.Link.RouteReplace(&netlink.Route{Dst: netlab.CIDR(t, "10.244.2.0/24"), Gw: net.IPv4(192, 168, 1, 3), Protocol: 97})
		}, "the route to the pods of node n2", true},
		// What `systemctl restart systemd-networkd` does: the address goes and comes back
		// after 55 ms, and with it go all routes that have it as their source.
		{"address flushed", func() error {
			if err := ns.Link.AddrDel(ns.Device("eth0"), &address); err != nil {
				return err
			}
			<-time.After(55 * time.Millisecond)
			if err := ns.Link.AddrAdd(ns.Device("eth0"), &address); err != nil {
				return err
			}
			return ns.Link.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 168, 1, 254)})
		}, "the route to the pod at " + a.ip.String(), false},
		{"rules flushed", func() error {
			rules, err := ns.Link.RuleList(netlink.FAMILY_V4)
			for _, r := range rules {
				if err == nil && r.Table != unix.RT_TABLE_LOCAL {
					r.Family = netlink.FAMILY_V4
					err = ns.Link.RuleDel(&r)
				}
			}
			return err
		}, "no rule led to the main routing table", false},
		{"neighbours flushed", func() error {
			neighs, err := ns.Link.NeighList(0, netlink.FAMILY_V4)
			for _, n := range neighs {
				if err == nil && n.State == netlink.NUD_PERMANENT {
					err = ns.Link.NeighDel(&n)
				}
			}
			return err
		}, "the neighbour entry of the pod at " + a.ip.String(), false},
		{"forwarding entries flushed", func() error {
			entries, err := ns.Link.NeighList(ns.Device(podnet.TunnelDevice).Attrs().Index, unix.AF_BRIDGE)
			for _, n := range entries {
				if err == nil {
					n.Family, n.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
					err = ns.Link.NeighDel(&n)
				}
			}
			return err
		}, "did not forward", false},
		{"tunnel removed", func() error { return ns.Link.LinkDel(ns.Device(podnet.TunnelDevice)) }, "there was no device bls-vxlan", false},
		{"tunnel down", func() error { return ns.Link.LinkSetDown(ns.Device(podnet.TunnelDevice)) }, "bls-vxlan was down", false},
		{"tunnel has another address", func() error {
			d := ns.Device(podnet.TunnelDevice)
			if err := ns.Link.AddrAdd(d, &netlink.Addr{IPNet: netlab.CIDR(t, "10.9.9.9/32")}); err != nil {
				return err
			}
			return ns.Link.AddrDel(d, &netlink.Addr{IPNet: netlab.CIDR(t, "10.244.1.1/32")})
		}, "bls-vxlan did not have the address 10.244.1.1", false},
		{"tunnel made otherwise", func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = podnet.TunnelDevice
			for {
				if err := ns.Link.LinkDel(ns.Device(podnet.TunnelDevice)); err != nil {
					return err
				}
				// The guardian may have been quicker.
				if err := ns.Link.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, Port: 8472}); !errors.Is(err, unix.EEXIST) {
					return err
				}
			}
		}, "device bls-vxlan was made otherwise", false},
		{"pod's device down", func() error { return ns.Link.LinkSetDown(ns.Device(device)) }, "of the pod at " + a.ip.String() + " was down", false},
		{"uplink down and up", func() error {
			if err := ns.Link.LinkSetDown(ns.Device("eth0")); err != nil {
				return err
			}
			if err := ns.Link.LinkSetUp(ns.Device("eth0")); err != nil {
				return err
			}
			return ns.Link.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 168, 1, 254)})
		}, "the route to the pods of node n3", false},
		{"local address", func() error {
			return ns.Link.AddrDel(ns.Device("lo"), &netlink.Addr{IPNet: netlab.CIDR(t, "169.254.20.10/32")})
		}, "lo did not have the address 169.254.20.10", false},
		{"settings", func() error {
			ns.Sysctl("net.ipv4.ip_forward", "0")
			ns.Sysctl("net.ipv4.conf."+device+".rp_filter", "0")
			return nil
		}, "rp_filter was \"0\", not 1", true},
		{"memory of closed connections", func() error {
			ns.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "10")
			return nil
		}, "nf_conntrack_tcp_timeout_close was \"10\", not 1", true},
		{"nftables flushed", func() error {
			f, err := os.Open(ns.Path)
			if err != nil {
				return err
			}
			defer f.Close()
			conn, err := nftables.New(nftables.WithNetNSFd(int(f.Fd())))
			if err != nil {
				return err
			}
			conn.FlushRuleset()
			return conn.Flush()
		}, "nftables table balsa-pods: ", true}, // or what the guardian sees in the middle of it
	} {
		t.Run(damage.name, func(t *testing.T) {
			g.forget()
			must(t, damage.do())
			if damage.silent {
				g.note(n1.net.Scrub(context.Background()))
			}
			within(t, 3*time.Second, "it is told: "+damage.says, g.said(damage.says))
			meet(t, a, b, c)
			expect(t, a.ns, netip.MustParseAddr("192.168.2.9"), "outside 192.168.1.1")
			expect(t, n1.ns, b.ip, "b 10.244.1.1")
			expect(t, n1.ns, a.ip, "a 192.168.1.1")
			// Wait for what is still under way, then nothing more may be found.
			within(t, 2*time.Second, "it comes to rest", func() bool {
				found, err := n1.net.Scrub(context.Background())
				return err == nil && len(found) == 0
			})
			if t.Failed() {
				t.Logf("found %q, %v", g.found, g.errs)
			}
		})
	}
}

// Neighbours that somebody deletes are told of, without any other sign.
func TestDeletedNeighbourIsTold(t *testing.T) {
	l := newLab(t)
	n1, a := l.nodes["n1"], l.pod("n1", "a")
	told := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for n1.net.NextDisturbance(ctx) == nil {
			select {
			case told <- struct{}{}:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	for _, gone := range []struct {
		device string
		ip     netip.Addr
	}{{podnet.DeviceName("uid-a"), a.ip}, {podnet.TunnelDevice, netip.MustParseAddr("10.244.2.1")}} {
		for heard(told, 300*time.Millisecond) { // what is still told of the making of all this
		}
		must(t, n1.ns.Link.NeighDel(&netlink.Neigh{LinkIndex: n1.ns.Device(gone.device).Attrs().Index, IP: gone.ip.AsSlice(), Family: netlink.FAMILY_V4}))
		if !heard(told, 10*time.Second) {
			t.Errorf("nothing is told of neighbour %s of %s", gone.ip, gone.device)
		}
	}
}

func heard(told <-chan struct{}, patience time.Duration) bool {
	select {
	case <-told:
		return true
	case <-time.After(patience):
		return false
	}
}

// A wait for a disturbance ends with its context, again and again.
func TestDisturbanceIsGivenUp(t *testing.T) {
	l := newLab(t)
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan error, 1)
		go func() { over <- l.nodes["n1"].net.NextDisturbance(ctx) }()
		cancel()
		select {
		case err := <-over:
			if err == nil && ctx.Err() == nil {
				t.Error("a disturbance out of nothing")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the wait does not end")
		}
	}
}
