//go:build linux

package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// States of a TCP connection in the kernel's tracking (enum tcp_conntrack of
// nf_conntrack_tcp.h): those from the first packet until one side has closed.
const (
	tcpSynSent     = 1
	tcpEstablished = 3
)

// trackTimeout bounds one read of the kernel's table of connections.
const trackTimeout = 2 * time.Second

// Connections counts the TCP connections to each of these addresses that others
// have opened and nobody has closed yet, whether they came through a service or
// not. It reads the node's whole table: the library cannot make the kernel choose.
// A table that changed while it was read is good enough. UDP knows no end of a
// connection and is not counted.
func (l *Linux) Connections(_ context.Context, to []netip.Addr) (map[netip.Addr]int, error) {
	counts := make(map[netip.Addr]int, len(to))
	for _, ip := range to {
		counts[ip] = 0
	}
	at := netns.None()
	if l.ns != nil {
		at = netns.NsHandle(l.ns.Fd())
	}
	handle, err := netlink.NewHandleAt(at, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("count connections: netfilter socket: %w", err)
	}
	defer handle.Close()
	if err := handle.SetSocketTimeout(trackTimeout); err != nil {
		return nil, fmt.Errorf("count connections: %w", err)
	}
	flows, err := handle.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("count connections: %w", err)
	}
	for _, f := range flows {
		if ip, open := openTo(f); open {
			if _, asked := counts[ip]; asked {
				counts[ip]++
			}
		}
	}
	return counts, nil
}

// openTo is the address that answers on a connection; open: nobody has closed it,
// and another has opened it.
func openTo(f *netlink.ConntrackFlow) (ip netip.Addr, open bool) {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	if !ok || tcp.State < tcpSynSent || tcp.State > tcpEstablished || f.Forward.SrcIP.Equal(f.Reverse.SrcIP) {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(f.Reverse.SrcIP.To4())
}
