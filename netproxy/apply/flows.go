//go:build linux

package apply

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/balsa-run/balsa/netproxy"
)

// maxFlowDumps bounds how often an interrupted listing of the connection
// tracking table is begun again before the rest is left to the next Sync or
// Scrub.
const maxFlowDumps = 3

// staleWork says which flows must be looked for.
type staleWork struct {
	// udp: any that the ruleset would not make.
	udp bool
	// gone are UDP fronts that are no more.
	gone map[netproxy.Key]bool
	// judge are pods whose policies have changed.
	judge map[netip.Addr]bool
}

func (w *staleWork) add(c netproxy.Change) {
	w.udp = w.udp || c.StaleUDP
	for _, k := range c.Gone {
		if w.gone == nil {
			w.gone = map[netproxy.Key]bool{}
		}
		w.gone[k] = true
	}
	w.judgePods(c.Judge)
}

func (w *staleWork) judgePods(pods []netip.Addr) {
	for _, pod := range pods {
		if w.judge == nil {
			w.judge = map[netip.Addr]bool{}
		}
		w.judge[pod] = true
	}
}

func (w *staleWork) judgeAll(r netproxy.Ruleset) {
	nothing := netproxy.Ruleset{Params: r.Params}
	w.judgePods(netproxy.Diff(nothing, r).Judge)
}

// forgetFlowsLocked deletes flows that the ruleset would no longer make. UDP has
// no end of connection: a client that goes on sending keeps a flow to a dead
// endpoint alive for ever. It compares all flows with the ruleset, not with a
// list of what changed, so nothing is missed after an error, a restart or a
// service that lost all its endpoints; flows that are right stay.
func (a *Applier) forgetFlowsLocked() (int, error) {
	if !a.stale.udp && len(a.stale.judge) == 0 {
		return 0, nil
	}
	own, err := a.ownAddresses()
	if err != nil {
		return 0, fmt.Errorf("delete stale flows: %w", err)
	}
	filter := staleFlows{rules: &a.have, work: &a.stale, own: own}
	forgotten := 0
	for range maxFlowDumps {
		var n uint
		n, err = a.flows.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, filter)
		forgotten += int(n)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return forgotten, fmt.Errorf("delete stale flows: %w", err)
	}
	a.stale = staleWork{}
	return forgotten, nil
}

// States of a TCP connection in the kernel's tracking (enum tcp_conntrack of
// nf_conntrack_tcp.h).
const (
	tcpEstablished = 3
	tcpTimeWait    = 7 // the next SYN begins a new connection
)

// Forget deletes the TCP connections through services to addresses that are no
// endpoints any more, but for those that are open or have ended well. A connection
// whose end met a pod that was gone never ends for the kernel: it takes the next one
// of the client from the same port for the same, and leads it to where nobody is; one
// that the pod has reset likewise, until it is forgotten (see expiring). One that has
// only begun is made anew by the client's next try.
func (a *Applier) Forget(ctx context.Context, gone []netip.Addr) (forgotten int, err error) {
	own, err := a.ownAddresses()
	if err != nil {
		return 0, fmt.Errorf("forget connections: %w", err)
	}
	filter := ended{gone: make(map[netip.Addr]bool, len(gone)), own: own}
	for _, ip := range gone {
		filter.gone[ip] = true
	}
	a.mu.Lock()
	filter.rules = a.have
	a.mu.Unlock()
	for range maxFlowDumps {
		if ctx.Err() != nil {
			return forgotten, context.Cause(ctx)
		}
		n, err := a.flows.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, filter)
		forgotten += int(n)
		if err == nil {
			return forgotten, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return forgotten, fmt.Errorf("forget connections: %w", err)
		}
	}
	return forgotten, nil // the table changes all the time; most of it was seen
}

// ended matches connections to addresses that have gone which are not open.
type ended struct {
	rules netproxy.Ruleset
	gone  map[netip.Addr]bool
	own   map[netip.Addr]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (e ended) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	if !ok || tcp.State == tcpEstablished || tcp.State == tcpTimeWait {
		return false
	}
	c, ok := flowOf(f)
	if !ok || !e.gone[c.replier] || c.replier == c.to {
		return false
	}
	p := e.rules.Route(netproxy.Packet{From: c.from, To: c.to, Protocol: c.protocol, Port: c.port, FromNode: e.own[c.from], ToNode: e.own[c.to]})
	return p.Outcome != netproxy.Translates || !p.Allows(netproxy.Target{IP: c.replier, Port: c.replierPort})
}

func (a *Applier) ownAddresses() (map[netip.Addr]bool, error) {
	listed, err := a.link.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	own := make(map[netip.Addr]bool, len(listed))
	for _, l := range listed {
		if ip, ok := netip.AddrFromSlice(l.IP.To4()); ok {
			own[ip] = true
		}
	}
	return own, nil
}

// staleFlows matches flows that are ours and contradict the ruleset.
type staleFlows struct {
	rules *netproxy.Ruleset
	work  *staleWork
	own   map[netip.Addr]bool
}

// flow is what matters of a tracked connection: who began it, whom it was
// addressed to, and who answers.
type flow struct {
	protocol          netproxy.Protocol
	from, to, replier netip.Addr
	port, replierPort uint16
}

func flowOf(f *netlink.ConntrackFlow) (c flow, ok bool) {
	c = flow{protocol: netproxy.Protocol(f.Forward.Protocol), port: f.Forward.DstPort, replierPort: f.Reverse.SrcPort}
	for ip, to := range map[*net.IP]*netip.Addr{&f.Forward.SrcIP: &c.from, &f.Forward.DstIP: &c.to, &f.Reverse.SrcIP: &c.replier} {
		if *to, ok = netip.AddrFromSlice(ip.To4()); !ok {
			return c, false
		}
	}
	return c, true
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	c, ok := flowOf(f)
	if !ok {
		return false
	}
	return s.work.udp && c.protocol == netproxy.UDP && s.misled(&c) || len(s.work.judge) > 0 && s.forbidden(&c)
}

// misled reports a UDP flow that goes elsewhere than a new one would.
func (s *staleFlows) misled(c *flow) bool {
	translated := c.replier != c.to || c.replierPort != c.port
	p := s.rules.Route(netproxy.Packet{From: c.from, To: c.to, Protocol: c.protocol, Port: c.port, FromNode: s.own[c.from], ToNode: s.own[c.to]})
	switch p.Outcome {
	case netproxy.Translates:
		return !p.Allows(netproxy.Target{IP: c.replier, Port: c.replierPort})
	case netproxy.Refuses, netproxy.Drops:
		return true
	}
	if !translated {
		return false
	}
	// Nothing of ours translates it now. We did if a front of ours is gone, or
	// if it goes to a pod: nobody else leads foreign connections there.
	exact, node := netproxy.Key{VIP: c.to, Protocol: c.protocol, Port: c.port}, netproxy.Key{Protocol: c.protocol, Port: c.port}
	return s.work.gone[exact] || s.own[c.to] && s.work.gone[node] ||
		s.rules.Params.ClusterCIDR.Contains(c.replier) || s.rules.Params.PodCIDR.Contains(c.replier)
}

// forbidden reports a flow of a pod with new policies that they do not allow. Its
// next packet is a new connection's, and refused. The node's own flows are its
// own business.
func (s *staleFlows) forbidden(c *flow) bool {
	if !s.work.judge[c.from] && !s.work.judge[c.replier] || s.own[c.from] || s.own[c.replier] {
		return false
	}
	egress, ingress := s.rules.Judge(netproxy.Connection{From: c.from, To: c.replier, Protocol: c.protocol, Port: c.replierPort})
	return s.work.judge[c.from] && !egress || s.work.judge[c.replier] && !ingress
}
