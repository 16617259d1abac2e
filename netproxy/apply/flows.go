//go:build linux

package apply

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/balsa-run/balsa/netproxy"
)

// maxFlowDumps bounds how often an interrupted listing of the connection
// tracking table is begun again before the rest is left to the next Sync or
// Scrub.
const maxFlowDumps = 3

// forgetFlowsLocked deletes UDP flows that the ruleset would no longer make.
// UDP has no end of connection: a client that goes on sending keeps a flow to
// a dead endpoint alive for ever. It compares all flows with the ruleset, not
// with a list of what changed, so nothing is missed after an error, a restart
// or a service that lost all its endpoints; flows that are right stay.
func (a *Applier) forgetFlowsLocked(stale bool) (int, error) {
	if !stale && !a.staleUDP {
		return 0, nil
	}
	a.staleUDP = true
	forgotten := 0
	var err error
	for range maxFlowDumps {
		var n uint
		n, err = a.flows.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, staleFlows{&a.have})
		forgotten += int(n)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return forgotten, fmt.Errorf("delete stale udp flows: %w", err)
	}
	a.staleUDP = false
	return forgotten, nil
}

// staleFlows matches flows that are ours and contradict the ruleset.
type staleFlows struct{ rules *netproxy.Ruleset }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != uint8(netproxy.UDP) {
		return false
	}
	vip, ok := netip.AddrFromSlice(f.Forward.DstIP.To4())
	if !ok {
		return false
	}
	service, planned := s.rules.Find(netproxy.Key{VIP: vip, Protocol: netproxy.UDP, Port: f.Forward.DstPort})
	if !planned {
		return s.rules.Params.ServiceCIDR.Contains(vip)
	}
	replier, ok := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	if !ok {
		return true
	}
	_, live := slices.BinarySearchFunc(service.Targets, netproxy.Target{IP: replier, Port: f.Reverse.SrcPort}, netproxy.Target.Compare)
	return !live
}
