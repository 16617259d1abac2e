package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The tunnel to nodes that share no link with this one. VXLAN (RFC 7348) puts a
// pod's packet, with an Ethernet header, into a UDP packet between the nodes.
const (
	// TunnelDevice is the one device of all tunnels.
	TunnelDevice = "bls-vxlan"
	// TunnelPort is VXLAN's UDP port (RFC 7348, section 5; assigned by IANA), the
	// one that network cards know.
	TunnelPort = 4789
	// TunnelVNI tells our packets from those of other overlays on the same port:
	// 24 bits (RFC 7348, section 5) that read BA15A, far from where the others
	// begin to count (Flannel 1, Calico and Docker 4096).
	TunnelVNI = 0xBA15A
	// TunnelOverhead is what a tunnel adds to a pod's packet: outer IPv4 (20),
	// UDP (8), VXLAN (8) and inner Ethernet (14) headers.
	TunnelOverhead = 50
	// leastTunnelMTU is the least that a pod's packets are given in a tunnel, and
	// with it the uplink's MTU must be 1330: 1280 is what IPv6 needs (RFC 8200,
	// section 5), and what programs expect to pass anywhere.
	leastTunnelMTU = 1280
	// defaultMTU is assumed where no device leads to the other nodes.
	defaultMTU = 1500
	// largestMTU is that of a veth device.
	largestMTU = 65535
)

// PodMTU is the MTU of pods' devices on a node whose uplink has an MTU of so
// much. Each pod's packet fits into a tunnel, to wherever it goes, so no packet
// has to be lost to find out how large it may be. tunnels is false where that
// would leave less than 1280: the pods then use all there is, and nodes that
// share no link cannot be reached.
func PodMTU(uplink int) (mtu int, tunnels bool) {
	if uplink <= 0 {
		uplink = defaultMTU
	}
	uplink = min(uplink, largestMTU)
	if uplink-TunnelOverhead < leastTunnelMTU {
		return uplink, false
	}
	return uplink - TunnelOverhead, true
}

// TunnelAddr is the address of a node's end of the tunnels, derived from its pod
// CIDR, where Pool keeps it free: nobody has to store or tell it.
func TunnelAddr(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

// tunnelMAC is the hardware address of that end: 02 marks one that is not a
// maker's, and the rest is the address, so no two nodes have the same.
func tunnelMAC(podCIDR netip.Prefix) [6]byte {
	a := TunnelAddr(podCIDR).As4()
	return [6]byte{0x02, 0xba, a[0], a[1], a[2], a[3]}
}

// way is how the pods of one node are reached.
type way struct {
	NodeRoute
	// tunnel: through VXLAN; else device is the one whose link is shared.
	tunnel bool
	device int
}

// localNet is a network that a device of this node, not one of ours, is in.
type localNet struct {
	device string
	prefix netip.Prefix
}

// surroundings are what the ways depend on besides the nodes.
type surroundings struct {
	self, cluster netip.Prefix
	// held are the nodes whose pod CIDRs have routes now: who comes later with an
	// overlapping one must not disturb them.
	held map[netip.Prefix]netip.Addr
	nets []localNet
	// foreign are networks that somebody else has a route for.
	foreign map[netip.Prefix]string
	// reach tells how a node's address is reached: shared, without a gateway.
	reach func(netip.Addr) (device int, shared bool, err error)
	// noTunnel is why there are no tunnels; nil: there are.
	noTunnel error
}

// planWays finds the way to each node's pods. Ways are sorted by pod CIDR; each
// problem is about one node, whose way is left out.
func planWays(routes []NodeRoute, s surroundings) (ways []way, problems []error) {
	usable, problems := Usable(s.self, routes, s.held)
	for _, r := range usable {
		w, err := s.way(r)
		if err != nil {
			problems = append(problems, fmt.Errorf("pods of node %s (%s, at %s) cannot be reached: %w", r.Name, r.PodCIDR, r.NodeIP, err))
			continue
		}
		ways = append(ways, w)
	}
	return ways, problems
}

func (s surroundings) way(r NodeRoute) (way, error) {
	for _, n := range s.nets {
		if n.prefix.Overlaps(r.PodCIDR) {
			return way{}, fmt.Errorf("%w: this node's device %s is in %s; give one of them other addresses", ErrOverlap, n.device, n.prefix)
		}
	}
	if who, taken := s.foreign[r.PodCIDR]; taken {
		return way{}, fmt.Errorf("%w: there is a route for %s that is not ours (%s); remove it, or find out who makes it", ErrOverlap, r.PodCIDR, who)
	}
	if s.cluster.Contains(r.NodeIP) {
		return way{}, fmt.Errorf("%w: the node's own address lies in the pod network %s; give that agent another --node-ip", ErrOverlap, s.cluster)
	}
	device, shared, err := s.reach(r.NodeIP)
	switch {
	case err != nil:
		return way{}, err
	case !shared && s.noTunnel != nil:
		return way{}, fmt.Errorf("it shares no link with this node, and there is no tunnel: %w", s.noTunnel)
	}
	return way{NodeRoute: r, tunnel: !shared, device: device}, nil
}

// Usable leaves out routes that contradict others: pod CIDRs that overlap with
// self or with each other. Of those the one that held names stays, else the one
// with the lower name; a problem says who lost. The result is sorted by pod CIDR;
// routes through the node itself (PodCIDR is self) are not in it.
func Usable(self netip.Prefix, routes []NodeRoute, held map[netip.Prefix]netip.Addr) (usable []NodeRoute, problems []error) {
	routes = slices.Clone(routes)
	for i := range routes {
		routes[i].PodCIDR = routes[i].PodCIDR.Masked()
	}
	holds := func(r NodeRoute) int {
		if held[r.PodCIDR] == r.NodeIP {
			return 0
		}
		return 1
	}
	slices.SortFunc(routes, func(a, b NodeRoute) int {
		return cmp.Or(holds(a)-holds(b), strings.Compare(a.Name, b.Name), a.PodCIDR.Addr().Compare(b.PodCIDR.Addr()), a.PodCIDR.Bits()-b.PodCIDR.Bits(), a.NodeIP.Compare(b.NodeIP))
	})
	var taken prefixes
	for _, r := range routes {
		switch other, err := taken.add(self, r); {
		case err != nil:
			problems = append(problems, err)
		case !other:
			usable = append(usable, r)
		}
	}
	slices.SortFunc(usable, func(a, b NodeRoute) int { return a.PodCIDR.Addr().Compare(b.PodCIDR.Addr()) })
	return usable, problems
}

// prefixes are disjoint, sorted by address, so that one search finds an overlap.
type prefixes []NodeRoute

// add takes a route in; known is true for one that needs none.
func (p *prefixes) add(self netip.Prefix, r NodeRoute) (known bool, err error) {
	if !r.PodCIDR.IsValid() || !r.PodCIDR.Addr().Is4() || !r.NodeIP.Is4() {
		return false, fmt.Errorf("node %s: pod CIDR %s at %s: only IPv4 works", r.Name, r.PodCIDR, r.NodeIP)
	}
	if r.PodCIDR == self.Masked() {
		return true, nil
	}
	if r.PodCIDR.Overlaps(self) {
		return false, fmt.Errorf("node %s: %w: its pod CIDR %s and this node's own, %s; its pods are not reached from here until one is changed", r.Name, ErrOverlap, r.PodCIDR, self)
	}
	i, _ := slices.BinarySearchFunc(*p, r, func(a, b NodeRoute) int { return a.PodCIDR.Addr().Compare(b.PodCIDR.Addr()) })
	for _, at := range []int{i - 1, i} {
		if at < 0 || at >= len(*p) || !(*p)[at].PodCIDR.Overlaps(r.PodCIDR) {
			continue
		}
		if other := (*p)[at]; other.PodCIDR != r.PodCIDR || other.NodeIP != r.NodeIP {
			return false, fmt.Errorf("node %s: %w: its pod CIDR %s and that of node %s (%s), whose routes stay; the pods of %s are not reached from here until one is changed",
				r.Name, ErrOverlap, r.PodCIDR, other.Name, other.PodCIDR, r.Name)
		}
		return true, nil
	}
	*p = slices.Insert(*p, i, r)
	return false, nil
}

// maxExceptions bounds Options.NoMasquerade: each is a rule that every packet to
// the outside is compared with.
const maxExceptions = 64

// ParseNoMasquerade reads the destinations that pods reach with their own
// addresses.
func ParseNoMasquerade(texts []string) ([]netip.Prefix, error) {
	if len(texts) > maxExceptions {
		return nil, fmt.Errorf("%d networks; at most %d are possible", len(texts), maxExceptions)
	}
	var out []netip.Prefix
	var failed []error
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("%q is not a network such as 10.20.0.0/16 (one address is 10.20.0.1/32)", text))
		case !p.Addr().Is4():
			failed = append(failed, fmt.Errorf("%q: only IPv4 works", text))
		case p != p.Masked():
			failed = append(failed, fmt.Errorf("%q has bits beyond its length: did you mean %s?", text, p.Masked()))
		default:
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	return slices.Compact(out), errors.Join(failed...)
}
