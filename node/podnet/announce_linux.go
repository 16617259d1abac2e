package podnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// announced are the addresses that the node answers for.
type announced struct {
	mu sync.Mutex // serialises all that is done with them
	// want is that of the last SyncAnnounced; nil before the first one.
	want map[netip.Addr]bool // guarded by mu
	// taken is when an address was taken: it is announced again for a while.
	taken map[netip.Addr]time.Time // guarded by mu
}

// announcedLabel ends the label of our addresses: by it, and by being a /32 of
// scope host, they are told from others' and found again by the next agent.
const announcedLabel = ":bls"

// labelLength is the most that the kernel keeps.
const labelLength = unix.IFNAMSIZ - 1

// reannounce is for how long after it was taken an address is announced again at
// each Scrub: one lost packet must not leave a neighbour with the former owner.
const reannounce = time.Minute

func isAnnounced(a *netlink.Addr) bool {
	ones, _ := a.Mask.Size()
	return ones == 32 && a.Scope == unix.RT_SCOPE_HOST && strings.HasSuffix(a.Label, announcedLabel)
}

// SyncAnnounced implements Network.
func (l *Linux) SyncAnnounced(ctx context.Context, addrs []netip.Addr) error {
	l.announced.mu.Lock()
	defer l.announced.mu.Unlock()
	want := map[netip.Addr]bool{}
	var errs []error
	for _, a := range addrs {
		if !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == l.o.NodeIP || l.o.ClusterCIDR.Contains(a) {
			errs = append(errs, fmt.Errorf("announce %s: not an IPv4 address that this node could answer for", a))
			continue
		}
		want[a] = true
	}
	l.announced.want = want
	m := &mending{}
	l.mendAnnounced(ctx, m)
	if err := errors.Join(append(errs, m.errs...)...); err != nil {
		return fmt.Errorf("announced addresses: %w", err)
	}
	return nil
}

// scrubAnnounced puts back what somebody took away, and announces for a while
// what is new.
func (l *Linux) scrubAnnounced(ctx context.Context, m *mending) {
	l.announced.mu.Lock()
	defer l.announced.mu.Unlock()
	if l.announced.want == nil {
		return
	}
	l.mendAnnounced(ctx, m)
	up := l.currentUplink()
	for a, since := range l.announced.taken {
		if time.Since(since) > reannounce {
			delete(l.announced.taken, a)
			continue
		}
		m.failed(l.announce(up, a))
	}
}

func (l *Linux) currentUplink() uplink {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// mendAnnounced removes what is not wanted at once, and takes what is missing
// after it has asked for it.
func (l *Linux) mendAnnounced(ctx context.Context, m *mending) {
	l.mu.Lock()
	k, err := l.look()
	if err == nil {
		l.findUplink(k, &mending{})
	}
	up, nodes := l.up, slices.Clone(l.nodes)
	l.mu.Unlock()
	if err != nil {
		m.failed(err)
		return
	}
	have := l.dropAnnounced(k, m, func(a netip.Addr, device int) bool { return l.announced.want[a] && device == up.index })
	missing := slices.SortedFunc(maps.Keys(l.announced.want), netip.Addr.Compare)
	missing = slices.DeleteFunc(missing, func(a netip.Addr) bool { return have[a] })
	if len(missing) == 0 {
		return
	}
	if up.index == 0 || len(up.mac) != macLength {
		m.failed(fmt.Errorf("no device with an Ethernet address leads to the other nodes: %v cannot be announced", missing))
		return
	}
	missing = l.notForeign(ctx, m, up, nodes, missing)
	for _, a := range missing {
		m.did(l.takeAddress(up, a), "%s did not have the announced address %s", up.name, a)
	}
}

// dropAnnounced removes our addresses but those to keep, and returns those.
func (l *Linux) dropAnnounced(k *kernel, m *mending, keep func(a netip.Addr, device int) bool) map[netip.Addr]bool {
	kept := map[netip.Addr]bool{}
	for _, a := range k.addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		if !ok || !isAnnounced(&a) {
			continue
		}
		if keep(ip, a.LinkIndex) {
			kept[ip] = true
			continue
		}
		delete(l.announced.taken, ip)
		m.did(notThere(l.link.AddrDel(nil, &a)), "the address %s is not announced here any more", ip)
	}
	return kept
}

func (l *Linux) cleanupAnnounced() error {
	l.announced.mu.Lock()
	defer l.announced.mu.Unlock()
	if l.announced.want == nil {
		return nil
	}
	addrs, err := dump("addresses", func() ([]netlink.Addr, error) { return l.link.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return err
	}
	m, device := &mending{}, l.currentUplink().index
	l.dropAnnounced(&kernel{addrs: addrs}, m, func(a netip.Addr, at int) bool { return l.announced.want[a] && at == device })
	return errors.Join(m.errs...)
}

// takeAddress adds and announces. Scope host keeps the kernel from choosing it as
// the source of what the node sends; it answers ARP for it all the same.
func (l *Linux) takeAddress(up uplink, a netip.Addr) error {
	label := up.name[:min(len(up.name), labelLength-len(announcedLabel))] + announcedLabel
	err := l.link.AddrReplace(nil, &netlink.Addr{IPNet: hostNet(a), LinkIndex: up.index, Label: label,
		Scope: unix.RT_SCOPE_HOST, Flags: unix.IFA_F_NOPREFIXROUTE})
	if err != nil {
		return err
	}
	if l.announced.taken == nil {
		l.announced.taken = map[netip.Addr]time.Time{}
	}
	l.announced.taken[a] = time.Now()
	l.log.Info("the node answers for an address", "address", a, "device", up.name)
	return l.announce(up, a)
}

// notForeign leaves out what a stranger has. Another node of the cluster that
// still has an address is about to let go of it, or cannot be told: the store has
// decided, so it is taken.
func (l *Linux) notForeign(ctx context.Context, m *mending, up uplink, nodes []NodeRoute, addrs []netip.Addr) []netip.Addr {
	owners, err := l.askOwners(ctx, up, addrs)
	if err != nil {
		m.failed(fmt.Errorf("ask who has %v: %w", addrs, err))
		return nil
	}
	if len(owners) == 0 {
		return addrs
	}
	ours, err := l.macsOf(ctx, up, nodes)
	if err != nil {
		m.failed(fmt.Errorf("ask for the nodes' hardware addresses: %w", err))
		return nil
	}
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		owner, taken := owners[a]
		if !taken || ours[owner.String()] {
			return false
		}
		m.failed(fmt.Errorf("%w: %s answers for %s on %s; take the address from it, or out of the pool", ErrForeignAddress, owner, a, up.name))
		return true
	})
}

// askedNodes bounds the nodes that are asked for their hardware addresses.
const askedNodes = 512

// macsOf asks the nodes on the link for their hardware addresses.
func (l *Linux) macsOf(ctx context.Context, up uplink, nodes []NodeRoute) (map[string]bool, error) {
	var ips []netip.Addr
	for _, n := range nodes[:min(len(nodes), askedNodes)] {
		ips = append(ips, n.NodeIP)
	}
	owners, err := l.askOwners(ctx, up, ips)
	macs := map[string]bool{}
	for _, mac := range owners {
		macs[mac.String()] = true
	}
	return macs, err
}

// The pace of duplicate address detection. RFC 5227, section 1.1, has 3 probes
// over 1 to 7 s, for machines that join a link of unknown speed; a service that
// nobody answers for cannot wait so long, and a wired link answers within a
// millisecond.
const (
	probes      = 3
	probeEvery  = 100 * time.Millisecond
	probeAnswer = 200 * time.Millisecond
)

// askOwners sends probes (RFC 5227, section 2.1.1) and collects who answers.
func (l *Linux) askOwners(ctx context.Context, up uplink, addrs []netip.Addr) (map[netip.Addr]net.HardwareAddr, error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	link, err := l.openARP(up.index)
	if err != nil {
		return nil, err
	}
	defer link.close()
	owners := map[netip.Addr]net.HardwareAddr{}
	for i := range probes {
		for _, a := range addrs {
			if _, known := owners[a]; known {
				continue
			}
			if err := link.send(arpPacket{op: arpRequest, sender: up.mac, target: a}); err != nil {
				return nil, err
			}
		}
		wait := probeEvery
		if i == probes-1 {
			wait = probeAnswer
		}
		if err := link.collect(ctx, wait, up.mac, addrs, owners); err != nil {
			return nil, err
		}
		if len(owners) == len(addrs) {
			break
		}
	}
	return owners, nil
}

// announce tells the link, once as a request (RFC 5227, section 2.3) and once as
// an answer, since some machines heed only one of them.
func (l *Linux) announce(up uplink, a netip.Addr) error {
	link, err := l.openARP(up.index)
	if err != nil {
		return err
	}
	defer link.close()
	return errors.Join(
		link.send(arpPacket{op: arpRequest, sender: up.mac, from: a, target: a}),
		link.send(arpPacket{op: arpReply, sender: up.mac, from: a, to: broadcast(), target: a}))
}
