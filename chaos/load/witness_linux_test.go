package load

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestTrackedConnectionsAreTold(t *testing.T) {
	flow := func(port uint16, to string, state uint8, pod string) *netlink.ConntrackFlow {
		f := &netlink.ConntrackFlow{TimeOut: 29, ProtoInfo: &netlink.ProtoInfoTCP{State: state}}
		f.Forward.SrcIP, f.Forward.SrcPort = net.ParseIP("10.0.0.1").To4(), port
		f.Forward.DstIP, f.Forward.DstPort = net.ParseIP(to).To4(), 80
		f.Reverse.SrcIP, f.Reverse.SrcPort = net.ParseIP(pod).To4(), 8080
		return f
	}
	udp := flow(5, "10.96.0.1", 1, "10.244.0.9")
	udp.ProtoInfo = nil
	got := tell([]*netlink.ConntrackFlow{
		flow(3, "10.96.0.1", 6, "10.244.0.2"), flow(2, "10.96.0.1", 3, "10.244.0.1"), flow(4, "10.96.0.1", tcpTimeWait, "10.244.0.1"),
		flow(1, "10.96.0.2", 3, "10.244.0.1"), udp,
	}, netip.MustParseAddrPort("10.96.0.1:80"))
	want := "10.0.0.1:2 -> 10.244.0.1:8080 ESTABLISHED, 29 s left\n10.0.0.1:3 -> 10.244.0.2:8080 LAST_ACK, 29 s left\nin TIME_WAIT: map[10.244.0.1:8080:1]"
	if got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
}
