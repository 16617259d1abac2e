package load

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// tcpTimeWait is TCP_CONNTRACK_TIME_WAIT of the kernel.
const tcpTimeWait = 7

// stateName is a state of the kernel's enum tcp_conntrack.
func stateName(state uint8) string {
	names := [...]string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}
	if int(state) < len(names) {
		return names[state]
	}
	return strconv.Itoa(int(state))
}

// maxWitnessed bounds the connections that are told of one failure.
const maxWitnessed = 100

// Tracked tells the connections to an address that the kernel of this namespace
// tracks, as of now: where from, in which state, and which pod each was led to.
// Those that are over and wait are counted only.
func Tracked(address string) string {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err.Error()
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Sprintf("connections: %v", err)
	}
	return tell(flows, to)
}

func tell(flows []*netlink.ConntrackFlow, to netip.AddrPort) string {
	var lines []string
	over := map[string]int{}
	slices.SortFunc(flows, func(a, b *netlink.ConntrackFlow) int { return cmp.Compare(a.Forward.SrcPort, b.Forward.SrcPort) })
	for _, f := range flows {
		state, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
		if !ok || !f.Forward.DstIP.Equal(to.Addr().AsSlice()) || f.Forward.DstPort != to.Port() {
			continue
		}
		pod := net.JoinHostPort(f.Reverse.SrcIP.String(), strconv.Itoa(int(f.Reverse.SrcPort)))
		if state.State == tcpTimeWait {
			over[pod]++
			continue
		}
		lines = append(lines, fmt.Sprintf("%s:%d -> %s %s, %d s left", f.Forward.SrcIP, f.Forward.SrcPort, pod, stateName(state.State), f.TimeOut))
	}
	if n := len(lines); n > maxWitnessed {
		lines = append(lines[:maxWitnessed], fmt.Sprintf("and %d more", n-maxWitnessed))
	}
	return strings.Join(append(lines, fmt.Sprintf("in TIME_WAIT: %v", over)), "\n")
}
