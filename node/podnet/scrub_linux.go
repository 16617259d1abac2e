package podnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Scrub implements Network.
func (l *Linux) Scrub(ctx context.Context) (repaired []string, err error) {
	m := &mending{}
	problems, err := l.scrub(ctx, m)
	l.scrubAnnounced(ctx, m)
	if err := errors.Join(append(append(m.errs, problems...), err)...); err != nil {
		return m.repaired, fmt.Errorf("scrub pod network %s: %w", l.o.PodCIDR, err)
	}
	return m.repaired, nil
}

func (l *Linux) scrub(ctx context.Context, m *mending) (problems []error, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	k, err := l.look()
	if err != nil {
		return nil, err
	}
	l.findUplink(k, m)
	l.mendNode(k, m)
	if l.nodes != nil { // else those of an agent that ran before are right until told
		problems = l.mendRoutes(k, m)
	}
	pods := l.pool.Addresses()
	var settings []setting
	for _, uid := range slices.Sorted(maps.Keys(pods)) {
		l.mendPodUnlessGone(k, m, uid, pods[uid])
		if name := DeviceName(uid); k.byName[name] != nil {
			settings = append(settings, podSettings(name)...)
		}
	}
	l.mendSettings(m, settings)
	return problems, nil
}

// mendNode mends what the node has whatever its pods and neighbours are.
func (l *Linux) mendNode(k *kernel, m *mending) {
	l.mendSettings(m, []setting{{key: "net/ipv4/ip_forward", value: "1"}})
	l.mendRule(m)
	l.mendLoopback(k, m)
	l.mendOwnCIDR(k, m)
	l.mendEgress(m)
	// Now that a rule has made the kernel track connections.
	l.mendSettings(m, []setting{{key: "net/netfilter/nf_conntrack_tcp_timeout_close", value: closedFor}})
	l.mendTunnel(k, m)
}

// closedFor is how many seconds the kernel goes on tracking a connection that was
// reset. The service rules of netproxy/apply rely on it: a client's port is used
// again, and as long as the old connection is tracked the new one is led to the old
// one's pod, or nowhere. The second is for an answer to a reset that was not meant
// (RFC 5961, section 3.2), which keeps the connection.
const closedFor = "1"

// mainRulePriority is that of the kernel's own rule for the main table, where all
// our routes are.
const mainRulePriority = 32766

func (l *Linux) mendRule(m *mending) {
	rules, err := dump("rules", func() ([]netlink.Rule, error) { return l.link.RuleList(netlink.FAMILY_V4) })
	if err != nil {
		m.failed(err)
		return
	}
	if slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == unix.RT_TABLE_MAIN }) {
		return
	}
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority = netlink.FAMILY_V4, unix.RT_TABLE_MAIN, mainRulePriority
	m.did(l.link.RuleAdd(r), "no rule led to the main routing table")
}

// mendLoopback brings lo up and puts the local address on it. Its scope is
// "host", or masquerading would choose it: a pod's device on the node has no
// address, and the kernel then takes the first global one of any device, lo
// before all others.
func (l *Linux) mendLoopback(k *kernel, m *mending) {
	lo := k.byName["lo"]
	if lo == nil {
		m.failed(errors.New("there is no loopback device"))
		return
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		m.did(l.link.LinkSetUp(lo), "lo was down")
	}
	if !l.o.LocalAddress.IsValid() {
		return
	}
	index := lo.Attrs().Index
	if slices.ContainsFunc(k.addrs, func(a netlink.Addr) bool {
		return a.LinkIndex == index && a.IP.Equal(l.o.LocalAddress.AsSlice()) && a.Scope == unix.RT_SCOPE_HOST
	}) {
		return
	}
	addr := &netlink.Addr{IPNet: hostNet(l.o.LocalAddress), Scope: unix.RT_SCOPE_HOST}
	m.did(l.link.AddrReplace(lo, addr), "lo did not have the address %s", l.o.LocalAddress)
}

// mendOwnCIDR makes addresses without a pod unreachable: a route to a pod is
// more specific, and without either, packets to a pod that is gone would leave
// by the default route, and come back from a router that sends the whole CIDR
// here.
func (l *Linux) mendOwnCIDR(k *kernel, m *mending) {
	own := l.o.PodCIDR.Masked()
	if who, taken := l.foreignRoutes(k)[own]; taken {
		m.failed(fmt.Errorf("%w: somebody has made a route for this node's pods, %s (%s); remove it", ErrOverlap, own, who))
		return
	}
	if slices.ContainsFunc(k.routes, func(r netlink.Route) bool {
		p, ok := prefixOf(r.Dst)
		return ok && p == own && r.Type == unix.RTN_UNREACHABLE
	}) {
		return
	}
	err := l.link.RouteReplace(&netlink.Route{Dst: ipNet(own), Type: unix.RTN_UNREACHABLE, Protocol: podRouteProtocol, Table: unix.RT_TABLE_MAIN})
	m.did(err, "the route that makes %s unreachable where there is no pod was not there", own)
}

// mendPodUnlessGone: a device goes with its pod's namespace at any moment, and then
// nothing is wrong.
func (l *Linux) mendPodUnlessGone(k *kernel, m *mending, uid string, addr netip.Addr) {
	one := &mending{}
	l.mendPod(k, one, uid, addr)
	if len(one.errs) > 0 {
		if _, err := l.link.LinkByName(DeviceName(uid)); isNotFound(err) {
			return
		}
	}
	m.repaired, m.errs = append(m.repaired, one.repaired...), append(m.errs, one.errs...)
}

// mendPod mends the node's end of a pod's network. What is inside belongs to the
// pod, which may be allowed to change it; only the MTU follows the node's. A
// device that has gone is for Setup, which its pod's end of life decides about.
func (l *Linux) mendPod(k *kernel, m *mending, uid string, addr netip.Addr) {
	name := DeviceName(uid)
	d := k.byName[name]
	if d == nil {
		return
	}
	index, ip := d.Attrs().Index, net.IP(addr.AsSlice())
	// Where this process has not connected the pod yet, Setup will see to it.
	if mtu, _ := PodMTU(l.up.mtu); d.Attrs().MTU != mtu && l.paths[uid] != "" {
		m.did(l.setPodMTU(uid, addr, d, mtu), "the pod at %s had an MTU of %d, not %d", addr, d.Attrs().MTU, mtu)
	}
	if d.Attrs().Flags&net.FlagUp == 0 {
		m.did(l.link.LinkSetUp(d), "the device %s of the pod at %s was down", name, addr)
	}
	mac := hardwareAddr(uid, 'p')
	if n, ok := k.neighs[neighKey{index, addr}]; !ok || n.State != netlink.NUD_PERMANENT || n.HardwareAddr.String() != mac.String() {
		err := l.link.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac})
		m.did(err, "the neighbour entry of the pod at %s was not there or wrong", addr)
	}
	want := l.podRoute(addr, index)
	self := netip.PrefixFrom(addr, addr.BitLen())
	if slices.ContainsFunc(k.routes, func(r netlink.Route) bool {
		p, ok := prefixOf(r.Dst)
		return ok && p == self && r.Protocol == podRouteProtocol && sameRoute(&r, want)
	}) {
		return
	}
	m.did(l.link.RouteReplace(want), "the route to the pod at %s was not there or wrong", addr)
}

func (l *Linux) podRoute(addr netip.Addr, device int) *netlink.Route {
	return &netlink.Route{LinkIndex: device, Scope: netlink.SCOPE_LINK, Dst: hostNet(addr), Src: l.up.src,
		Protocol: podRouteProtocol, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
}

// setPodMTU changes both ends; a packet that is larger than the other end takes
// is lost.
func (l *Linux) setPodMTU(uid string, addr netip.Addr, device netlink.Link, mtu int) error {
	p, err := l.openPod(uid, l.paths[uid], addr)
	if err != nil {
		return err
	}
	defer p.close()
	inside, err := p.link.LinkByName(podDevice)
	if err != nil {
		return err
	}
	return errors.Join(p.link.LinkSetMTU(inside, mtu), l.link.LinkSetMTU(device, mtu))
}

// podSettings let the pod send with no address but its own, and nothing by IPv6,
// which would bypass every rule until it is supported. They are where the device
// is.
func podSettings(device string) []setting {
	return []setting{
		{key: "net/ipv4/conf/" + device + "/rp_filter", value: "1", optional: true},
		{key: "net/ipv6/conf/" + device + "/disable_ipv6", value: "1", optional: true},
	}
}
