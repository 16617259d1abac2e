package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// uplink is the device that leads to the other nodes: the one that has the node's
// address, else the one of the default route.
type uplink struct {
	index int // 0: there is none
	name  string
	mac   net.HardwareAddr
	mtu   int // 0: there is none
	// src is the node's address if a device has it: the source of the node's own
	// packets to pods. Else the kernel chooses one.
	src net.IP
}

// findUplink looks anew: whoever manages the machine's network may take the
// node's address away for a moment, or change the MTU, at any time.
func (l *Linux) findUplink(k *kernel, m *mending) {
	was := l.up
	l.up = l.uplinkIn(k)
	mtu, tunnels := PodMTU(l.up.mtu)
	l.noTunnel = nil
	if !tunnels {
		l.noTunnel = fmt.Errorf("%w: device %s has an MTU of %d, and a tunnel needs %d (%d for pods and %d for its headers); raise it",
			ErrMTU, l.up.name, l.up.mtu, leastTunnelMTU+TunnelOverhead, leastTunnelMTU, TunnelOverhead)
	}
	if was.mtu != 0 && l.up.mtu != 0 && was.mtu != l.up.mtu {
		m.did(nil, "the MTU of %s is now %d, it was %d: that of pods becomes %d", l.up.name, l.up.mtu, was.mtu, mtu)
		if l.noTunnel != nil {
			m.failed(l.noTunnel)
		}
	}
}

func (l *Linux) uplinkIn(k *kernel) uplink {
	var up uplink
	for _, a := range k.addrs {
		if !a.IP.Equal(l.o.NodeIP.AsSlice()) {
			continue
		}
		up.src = l.o.NodeIP.AsSlice()
		if d := k.links[a.LinkIndex]; d != nil && d.Attrs().Flags&net.FlagLoopback == 0 {
			return up.on(d)
		}
	}
	least := -1
	for _, r := range k.routes {
		if ones, _ := maskSize(r.Dst); ones == 0 && r.LinkIndex != 0 && (least < 0 || r.Priority < least) {
			if d := k.links[r.LinkIndex]; d != nil {
				least, up = r.Priority, up.on(d)
			}
		}
	}
	return up
}

func (u uplink) on(d netlink.Link) uplink {
	u.index, u.name, u.mac, u.mtu = d.Attrs().Index, d.Attrs().Name, d.Attrs().HardwareAddr, d.Attrs().MTU
	return u
}

func maskSize(n *net.IPNet) (ones, bits int) {
	if n == nil {
		return 0, 0
	}
	return n.Mask.Size()
}

// localNets are the networks of devices that are not ours.
func (l *Linux) localNets(k *kernel) []localNet {
	var out []localNet
	for _, a := range k.addrs {
		d := k.links[a.LinkIndex]
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		if d == nil || !ok || d.Attrs().Name == TunnelDevice || isDeviceName(d.Attrs().Name) || isAnnounced(&a) {
			continue
		}
		ones, _ := a.Mask.Size()
		out = append(out, localNet{d.Attrs().Name, netip.PrefixFrom(ip, ones).Masked()})
	}
	return out
}

// foreignRoutes are the networks in the main table that others have routes for.
// Setting ours would replace theirs.
func (l *Linux) foreignRoutes(k *kernel) map[netip.Prefix]string {
	out := map[netip.Prefix]string{}
	for _, r := range k.routes {
		if p, ok := prefixOf(r.Dst); ok && r.Protocol != podRouteProtocol && r.Protocol != nodeRouteProtocol {
			out[p] = describe(k, &r)
		}
	}
	return out
}

func describe(k *kernel, r *netlink.Route) string {
	var parts []string
	if r.Gw != nil {
		parts = append(parts, "via "+r.Gw.String())
	}
	if d := k.links[r.LinkIndex]; d != nil {
		parts = append(parts, "dev "+d.Attrs().Name)
	}
	return strings.Join(append(parts, fmt.Sprintf("proto %d", r.Protocol)), " ")
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP.To4())
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip, ones), ok
}

// errOwnAddress: a node has an address of this machine.
var errOwnAddress = errors.New("its address is one of this machine's own; two nodes need two addresses")

// reach asks the kernel, with all its tables and rules, how an address is
// reached. A link is shared when there is no gateway. A device without hardware
// addresses (another tunnel, a point-to-point line) is no link in this sense:
// what is at its other end decides where a packet goes by its destination alone,
// and has never heard of our pods.
func (l *Linux) reach(k *kernel) func(netip.Addr) (device int, shared bool, err error) {
	return func(ip netip.Addr) (int, bool, error) {
		routes, err := l.link.RouteGet(ip.AsSlice())
		if err != nil || len(routes) == 0 {
			return 0, false, fmt.Errorf("no route to the node: %w", err)
		}
		r := routes[0]
		if r.Type == unix.RTN_LOCAL {
			return 0, false, errOwnAddress
		}
		d := k.links[r.LinkIndex]
		if d == nil {
			return 0, false, fmt.Errorf("the device to the node (index %d) has just gone", r.LinkIndex)
		}
		if d.Attrs().Name == TunnelDevice {
			return 0, false, fmt.Errorf("the route to the node leads through the tunnel %s itself; remove it", TunnelDevice)
		}
		plain := d.Attrs().RawFlags&(unix.IFF_NOARP|unix.IFF_POINTOPOINT) == 0 && !bytes.Equal(d.Attrs().HardwareAddr, nil)
		return r.LinkIndex, r.Gw == nil && plain, nil
	}
}
