//go:build linux

package apply

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/netproxy"
)

// RouteProtocol marks the service route as ours. Numbers in use are listed in
// /etc/iproute2/rt_protos; node/podnet owns the next two.
const RouteProtocol = 95

// ensureRoute gives the service CIDR a route, because the kernel looks one up
// for the node's own connections before they reach nat-output. Where it points
// does not matter: everything is translated or refused before it leaves.
func (a *Applier) ensureRoute(p netproxy.Params) error {
	want, err := a.serviceRoute(p)
	if err != nil {
		return fmt.Errorf("route for service CIDR %s: %w", p.ServiceCIDR, err)
	}
	have, err := a.ownRoutes()
	if err != nil {
		return fmt.Errorf("route for service CIDR %s: %w", p.ServiceCIDR, err)
	}
	for _, r := range have {
		if r.Dst != nil && r.Dst.String() == want.Dst.String() {
			continue
		}
		if err := a.link.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete former service route %s: %w", r.Dst, err)
		}
	}
	if err := a.link.RouteReplace(want); err != nil {
		return fmt.Errorf("add route %s dev index %d src %s: %w", want.Dst, want.LinkIndex, want.Src, err)
	}
	return nil
}

// serviceRoute points at the device that carries the node's address; without
// one, at the loopback device.
func (a *Applier) serviceRoute(p netproxy.Params) (*netlink.Route, error) {
	r := &netlink.Route{Dst: ipNet(p.ServiceCIDR), Scope: netlink.SCOPE_LINK, Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN}
	addrs, err := a.link.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range addrs {
		if ip, ok := netip.AddrFromSlice(addr.IP.To4()); ok && ip == p.NodeIP {
			r.LinkIndex, r.Src = addr.LinkIndex, addr.IP
			return r, nil
		}
	}
	lo, err := a.link.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("no device has the node's address %s, and loopback: %w", p.NodeIP, err)
	}
	r.LinkIndex = lo.Attrs().Index
	return r, nil
}

func (a *Applier) ownRoutes() ([]netlink.Route, error) {
	routes, err := a.link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes of protocol %d: %w", RouteProtocol, err)
	}
	return routes, nil
}

// routeFinding compares the kernel's service route with the wish.
func (a *Applier) routeFinding(p netproxy.Params) (string, error) {
	want, err := a.serviceRoute(p)
	if err != nil {
		return "", err
	}
	have, err := a.ownRoutes()
	if err != nil {
		return "", err
	}
	if len(have) != 1 {
		return fmt.Sprintf("%d routes of protocol %d, want one for %s", len(have), RouteProtocol, want.Dst), nil
	}
	r := have[0]
	if r.Dst.String() != want.Dst.String() || r.LinkIndex != want.LinkIndex || !r.Src.Equal(want.Src) {
		return fmt.Sprintf("service route is %s dev index %d src %s, want %s dev index %d src %s",
			r.Dst, r.LinkIndex, r.Src, want.Dst, want.LinkIndex, want.Src), nil
	}
	return "", nil
}

func (a *Applier) removeRoutes() error {
	routes, err := a.ownRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := a.link.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("delete service route %s: %w", r.Dst, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
