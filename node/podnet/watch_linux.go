package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// disturbed listens for changes that others make.
type disturbed struct {
	mu     sync.Mutex
	socket *nl.NetlinkSocket // guarded by mu; nil: not open
}

// listenBuffer holds notifications while nobody reads. If it overflows, that is a
// disturbance by itself.
const listenBuffer = 1 << 20

// NextDisturbance implements Network. It tells of routes, rules, addresses,
// devices and permanent neighbours; settings under /proc/sys and nftables are not
// told of by the kernel, or too often, and are for Scrub at its own pace.
func (l *Linux) NextDisturbance(ctx context.Context) error {
	socket, err := l.listen()
	if err != nil {
		return fmt.Errorf("listen for changes of the network: %w", err)
	}
	defer context.AfterFunc(ctx, l.stopListening)() // ends the wait
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		messages, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return nil // something was missed
		case err != nil:
			l.stopListening()
			return fmt.Errorf("listen for changes of the network: %w", err)
		case from.Pid != 0:
			continue // not the kernel
		}
		for _, m := range messages {
			if l.disturbs(m) {
				return nil
			}
		}
	}
}

func (l *Linux) listen() (*nl.NetlinkSocket, error) {
	l.disturbed.mu.Lock()
	defer l.disturbed.mu.Unlock()
	if l.disturbed.socket != nil {
		return l.disturbed.socket, nil
	}
	at := netns.None()
	if l.ns != nil {
		at = netns.NsHandle(l.ns.Fd())
	}
	socket, err := nl.SubscribeAt(at, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE)
	if err != nil {
		return nil, err
	}
	if err := socket.SetReceiveBufferSize(listenBuffer, true); err != nil {
		socket.Close()
		return nil, err
	}
	l.disturbed.socket = socket
	return socket, nil
}

func (l *Linux) stopListening() {
	l.disturbed.mu.Lock()
	defer l.disturbed.mu.Unlock()
	if l.disturbed.socket != nil {
		l.disturbed.socket.Close()
		l.disturbed.socket = nil
	}
}

// disturbs tells whether a change may be somebody else's and of interest. What
// pods coming and going cause is left out as far as it can be told; a false alarm
// costs a look.
func (l *Linux) disturbs(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_DELRULE, unix.RTM_NEWRULE, unix.RTM_DELADDR:
		return true
	case unix.RTM_NEWADDR:
		return l.isNodeAddr(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeDisturbs(m)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return l.linkDisturbs(m)
	case unix.RTM_DELNEIGH:
		return l.neighDisturbs(m)
	}
	return false
}

// neighDisturbs: of a permanent entry that somebody deletes the kernel tells that it
// failed, as of any other (it does so first, see neigh_delete); only one that goes with
// its device is told as permanent. So it goes by the address: ours are of the cluster,
// where nobody asks for neighbours.
func (l *Linux) neighDisturbs(m syscall.NetlinkMessage) bool {
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return false
	}
	ip, ok := netip.AddrFromSlice(n.IP.To4())
	return n.State&netlink.NUD_PERMANENT != 0 || ok && l.o.ClusterCIDR.Contains(ip)
}

func (l *Linux) isNodeAddr(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFA_LOCAL && net.IP(a.Value).Equal(l.o.NodeIP.AsSlice()) {
			return true
		}
	}
	return false
}

// routeDisturbs: what others add or remove may be a way to a node, or take one of
// ours away; what goes of ours may be our own doing.
func routeDisturbs(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	r := nl.DeserializeRtMsg(m.Data)
	ours := r.Protocol == podRouteProtocol || r.Protocol == nodeRouteProtocol
	return r.Table == unix.RT_TABLE_MAIN && r.Flags&unix.RTM_F_CLONED == 0 && (!ours || m.Header.Type == unix.RTM_DELROUTE)
}

// linkDisturbs: the uplink, the tunnels' device and lo change, pods' go down. The
// rest of a machine's devices come and go as they like; what they change for us
// is told as a route or an address.
func (l *Linux) linkDisturbs(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	if info.Family == unix.AF_BRIDGE {
		return false
	}
	d, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: m.Header.Type}, m.Data)
	if err != nil {
		return false
	}
	name := d.Attrs().Name
	if isDeviceName(name) {
		// The alias comes last: the device was up before.
		return m.Header.Type == unix.RTM_NEWLINK && d.Attrs().Flags&net.FlagUp == 0 && d.Attrs().Alias != ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return name == TunnelDevice || name == "lo" || d.Attrs().Index == l.up.index
}
