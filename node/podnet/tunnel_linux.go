package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mendTunnel makes this node's end of the tunnels, which every node has, also one
// that needs none: each decides by itself, and another may need one to us.
func (l *Linux) mendTunnel(k *kernel, m *mending) {
	if l.noTunnel != nil {
		return
	}
	_, there := k.byName[TunnelDevice]
	have, err := l.tunnelDevice(k, m)
	if err != nil {
		l.noTunnel = err
		return
	}
	if !there { // that it was not there says it all
		rest := &mending{}
		defer func(m *mending) { m.errs = append(m.errs, rest.errs...) }(m)
		m = rest
	}
	a, index := have.Attrs(), have.Attrs().Index
	mtu, _ := PodMTU(l.up.mtu)
	mac := tunnelMAC(l.o.PodCIDR)
	if a.MTU != mtu {
		m.did(l.link.LinkSetMTU(have, mtu), "%s had an MTU of %d, not %d", TunnelDevice, a.MTU, mtu)
	}
	if a.HardwareAddr.String() != net.HardwareAddr(mac[:]).String() {
		m.did(l.link.LinkSetHardwareAddr(have, mac[:]), "%s had the hardware address %s", TunnelDevice, a.HardwareAddr)
	}
	// Loose: a node that does not use the tunnel to us sends from elsewhere.
	l.mendSettings(m, []setting{
		{key: "net/ipv4/conf/" + TunnelDevice + "/rp_filter", value: "2"},
		{key: "net/ipv6/conf/" + TunnelDevice + "/disable_ipv6", value: "1", optional: true},
	})
	if a.Flags&net.FlagUp == 0 {
		m.did(l.link.LinkSetUp(have), "%s was down", TunnelDevice)
	}
	l.mendTunnelAddr(k, m, index)
}

// mendTunnelAddr gives the device the one address that is this node's in the pod
// network: what the node itself sends to pods through a tunnel comes from there,
// and so the answer finds the tunnel.
func (l *Linux) mendTunnelAddr(k *kernel, m *mending, index int) {
	own, found := TunnelAddr(l.o.PodCIDR), false
	for _, a := range k.addrs {
		if a.LinkIndex != index {
			continue
		}
		if ones, _ := a.Mask.Size(); a.IP.Equal(own.AsSlice()) && ones == 32 {
			found = true
			continue
		}
		m.did(l.link.AddrDel(nil, &a), "%s had the address %s", TunnelDevice, a.IPNet)
	}
	if !found {
		add := &netlink.Addr{IPNet: hostNet(own), LinkIndex: index, Flags: unix.IFA_F_NOPREFIXROUTE}
		m.did(l.link.AddrReplace(nil, add), "%s did not have the address %s", TunnelDevice, own)
	}
}

// tunnelDevice finds the device, or makes it.
func (l *Linux) tunnelDevice(k *kernel, m *mending) (netlink.Link, error) {
	if have, ok := k.byName[TunnelDevice]; ok {
		if l.isTunnel(have) {
			return have, nil
		}
		err := l.link.LinkDel(have)
		m.did(err, "device %s was made otherwise", TunnelDevice)
		if err != nil {
			return nil, fmt.Errorf("device %s is not as it should be and cannot be removed: %w", TunnelDevice, err)
		}
	}
	mtu, _ := PodMTU(l.up.mtu)
	mac := tunnelMAC(l.o.PodCIDR)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = TunnelDevice, mtu, mac[:]
	err := l.link.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: TunnelVNI, Port: TunnelPort, SrcAddr: l.up.src, Learning: false, UDPCSum: true})
	if err != nil {
		return nil, fmt.Errorf("device %s of type vxlan cannot be made (does the kernel have the module vxlan, does another overlay use VNI %d?): %w", TunnelDevice, TunnelVNI, err)
	}
	d, err := l.link.LinkByName(TunnelDevice)
	if err != nil {
		return nil, fmt.Errorf("the new device %s: %w", TunnelDevice, err)
	}
	k.byName[TunnelDevice], k.links[d.Attrs().Index], k.fdb = d, d, nil
	if err := l.link.LinkSetUp(d); err != nil { // opens the port
		return nil, errors.Join(fmt.Errorf("device %s cannot be set up; is UDP port %d taken by another overlay or program? %w", TunnelDevice, TunnelPort, err), l.link.LinkDel(d))
	}
	m.did(nil, "there was no device %s", TunnelDevice)
	return l.link.LinkByName(TunnelDevice)
}

// isTunnel tells whether what cannot be changed later is right. A source address
// stays although it has left the machine for a moment.
func (l *Linux) isTunnel(d netlink.Link) bool {
	v, ok := d.(*netlink.Vxlan)
	return ok && v.VxlanId == TunnelVNI && v.Port == TunnelPort && !v.Learning &&
		(v.SrcAddr.Equal(l.o.NodeIP.AsSlice()) || l.up.src == nil && len(v.SrcAddr) == 0)
}

// tunnelEnd is another node's end: two permanent entries instead of questions
// that nobody would answer.
type tunnelEnd struct {
	addr netip.Addr // its address in the pod network
	mac  string
	node netip.Addr
}

func endOf(w way) tunnelEnd {
	mac := tunnelMAC(w.PodCIDR)
	return tunnelEnd{TunnelAddr(w.PodCIDR), net.HardwareAddr(mac[:]).String(), w.NodeIP}
}

// addEnds sets what is missing, before any route needs it.
func (l *Linux) addEnds(k *kernel, m *mending, ends []tunnelEnd, index int) {
	fdb := map[string]netip.Addr{}
	for _, f := range k.fdb {
		if ip, ok := netip.AddrFromSlice(f.IP.To4()); ok && f.State&netlink.NUD_PERMANENT != 0 {
			fdb[f.HardwareAddr.String()] = ip
		}
	}
	for _, e := range ends {
		mac, err := net.ParseMAC(e.mac)
		if err != nil {
			m.failed(err)
			continue
		}
		if n, ok := k.neighs[neighKey{index, e.addr}]; !ok || n.State != netlink.NUD_PERMANENT || n.HardwareAddr.String() != e.mac {
			err := l.link.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: e.addr.AsSlice(), HardwareAddr: mac})
			m.did(err, "%s had no neighbour %s at %s", TunnelDevice, e.addr, e.mac)
		}
		if fdb[e.mac] != e.node {
			err := l.link.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: e.node.AsSlice(), HardwareAddr: mac})
			m.did(err, "%s did not forward %s to %s", TunnelDevice, e.mac, e.node)
		}
	}
}

// dropEnds removes the entries of nodes that are no more, after the routes.
func (l *Linux) dropEnds(k *kernel, m *mending, ends []tunnelEnd, index int) {
	macs, addrs := map[string]bool{}, map[netip.Addr]bool{}
	for _, e := range ends {
		macs[e.mac], addrs[e.addr] = true, true
	}
	for key, n := range k.neighs {
		if key.device == index && n.State == netlink.NUD_PERMANENT && !addrs[key.ip] {
			m.did(notThere(l.link.NeighDel(&n)), "%s had the neighbour %s", TunnelDevice, n.IP)
		}
	}
	for _, f := range k.fdb {
		if !macs[f.HardwareAddr.String()] {
			f.Family, f.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
			m.did(notThere(l.link.NeighDel(&f)), "%s forwarded %s to %s", TunnelDevice, f.HardwareAddr, f.IP)
		}
	}
}

// notThere forgets an error that only says that something is gone already.
func notThere(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}
