package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SyncRoutes implements Network.
func (l *Linux) SyncRoutes(ctx context.Context, routes []NodeRoute) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	l.nodes = slices.Clone(routes)
	k, err := l.look()
	if err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	m := &mending{}
	l.findUplink(k, &mending{}) // Scrub tells
	l.mendTunnel(k, m)
	problems := l.mendRoutes(k, m)
	if err := errors.Join(append(m.errs, problems...)...); err != nil {
		return fmt.Errorf("sync routes: %w", err)
	}
	return nil
}

// mendRoutes makes routes, neighbours and forwarding entries those of the nodes.
// What is new comes before what changes, and what is old goes last, so no packet
// meets a gap. It returns what is wrong with the nodes themselves.
func (l *Linux) mendRoutes(k *kernel, m *mending) (problems []error) {
	have := map[netip.Prefix]netlink.Route{}
	held := map[netip.Prefix]netip.Addr{}
	var surplus []netlink.Route
	nodeOf := l.forwarded(k)
	for _, r := range k.routes {
		p, ok := prefixOf(r.Dst)
		_, twice := have[p]
		if !ok || r.Protocol != nodeRouteProtocol {
			continue
		}
		if twice || r.Priority != 0 || r.Tos != 0 {
			surplus = append(surplus, r)
			continue
		}
		have[p] = r
		held[p] = nodeOf(r)
	}
	ways, problems := planWays(l.nodes, surroundings{self: l.o.PodCIDR, cluster: l.o.ClusterCIDR, held: held,
		nets: l.localNets(k), foreign: l.foreignRoutes(k), reach: l.reach(k), noTunnel: l.noTunnel})
	tunnel := 0
	if d := k.byName[TunnelDevice]; d != nil {
		tunnel = d.Attrs().Index
	}
	var ends []tunnelEnd
	for _, w := range ways {
		if w.tunnel {
			ends = append(ends, endOf(w))
		}
	}
	l.addEnds(k, m, ends, tunnel)
	for _, w := range ways {
		want := l.routeOf(w, tunnel)
		old, ok := have[w.PodCIDR]
		if ok && sameRoute(&old, want) {
			delete(have, w.PodCIDR)
			continue
		}
		err := l.link.RouteReplace(want)
		m.did(err, "the route to the pods of node %s, %s, was not there or not %s", w.Name, w.PodCIDR, describe(k, want))
		if err == nil {
			delete(have, w.PodCIDR) // one whose new way was refused goes: it is wrong
		}
	}
	for _, r := range have {
		surplus = append(surplus, r)
	}
	for _, r := range surplus {
		m.did(notThere(l.link.RouteDel(&r)), "there was a route to %s %s", r.Dst, describe(k, &r))
	}
	if tunnel != 0 {
		l.dropEnds(k, m, ends, tunnel)
	}
	return problems
}

// forwarded tells the node that a route of ours leads to.
func (l *Linux) forwarded(k *kernel) func(netlink.Route) netip.Addr {
	byMAC := map[string]netip.Addr{}
	for _, f := range k.fdb {
		if ip, ok := netip.AddrFromSlice(f.IP.To4()); ok {
			byMAC[f.HardwareAddr.String()] = ip
		}
	}
	return func(r netlink.Route) netip.Addr {
		gw, _ := netip.AddrFromSlice(r.Gw.To4())
		if d := k.byName[TunnelDevice]; d != nil && d.Attrs().Index == r.LinkIndex {
			n := k.neighs[neighKey{r.LinkIndex, gw}]
			return byMAC[n.HardwareAddr.String()]
		}
		return gw
	}
}

func (l *Linux) routeOf(w way, tunnel int) *netlink.Route {
	r := &netlink.Route{Dst: ipNet(w.PodCIDR), Gw: w.NodeIP.AsSlice(), LinkIndex: w.device, Protocol: nodeRouteProtocol, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
	if w.tunnel {
		r.Gw, r.LinkIndex, r.Flags = TunnelAddr(w.PodCIDR).AsSlice(), tunnel, int(netlink.FLAG_ONLINK)
		r.Src = TunnelAddr(l.o.PodCIDR).AsSlice()
	}
	return r
}

// sameRoute compares what we set; the kernel adds other flags of its own.
func sameRoute(have, want *netlink.Route) bool {
	onlink := int(netlink.FLAG_ONLINK)
	return have.Type == want.Type && have.LinkIndex == want.LinkIndex && have.Gw.Equal(want.Gw) && have.Scope == want.Scope &&
		have.Flags&onlink == want.Flags&onlink && have.Src.Equal(want.Src) && len(have.MultiPath) == 0 && have.MTU == 0 && have.Priority == want.Priority
}
