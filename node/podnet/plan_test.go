package podnet

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPodMTU(t *testing.T) {
	for _, c := range []struct {
		uplink, want int
		tunnels      bool
	}{{0, 1450, true}, {1500, 1450, true}, {9000, 8950, true}, {1330, 1280, true}, {1329, 1329, false}, {576, 576, false}, {65536, 65485, true}} {
		if mtu, tunnels := PodMTU(c.uplink); mtu != c.want || tunnels != c.tunnels {
			t.Errorf("uplink %d: %d %v, want %d %v", c.uplink, mtu, tunnels, c.want, c.tunnels)
		}
	}
}

// The node's end of a tunnel is never a pod's address, and no two nodes have the
// same end.
func TestTunnelEndsDiffer(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		a, b := drawCIDR(r, "a"), drawCIDR(r, "b")
		if p, err := OpenPool(a, ""); err == nil && p.usable(TunnelAddr(a)) {
			r.Errorf("a pod of %s may get %s", a, TunnelAddr(a))
		}
		if !a.Overlaps(b) && (TunnelAddr(a) == TunnelAddr(b) || tunnelMAC(a) == tunnelMAC(b)) {
			r.Errorf("%s and %s have the same end", a, b)
		}
		if mac := tunnelMAC(a); mac[0]&3 != 2 {
			r.Errorf("%v is not a locally administered unicast address", net.HardwareAddr(mac[:]))
		}
	})
}

func drawCIDR(r *rapid.T, name string) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(rapid.IntRange(0, 7).Draw(r, name+"3")), byte(rapid.IntRange(0, 255).Draw(r, name+"4"))}),
		rapid.IntRange(22, 30).Draw(r, name+"bits")).Masked()
}

// Usable against its dumb twin, which compares each with each: what is usable does
// not overlap, what is left out does and is told, and who was there first stays.
func TestUsable(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		self := netip.MustParsePrefix("10.244.0.0/24")
		var routes []NodeRoute
		held := map[netip.Prefix]netip.Addr{}
		for i := range rapid.IntRange(0, 12).Draw(r, "n") {
			route := NodeRoute{Name: fmt.Sprint("n", rapid.IntRange(0, 9).Draw(r, "name")), PodCIDR: drawCIDR(r, fmt.Sprint(i)), NodeIP: netip.AddrFrom4([4]byte{192, 168, 0, byte(rapid.IntRange(1, 5).Draw(r, "ip"))})}
			routes = append(routes, route)
		}
		// Those that are held do not contradict each other.
		for _, route := range routes {
			if rapid.Bool().Draw(r, "held") && !route.PodCIDR.Overlaps(self) && !slices.ContainsFunc(slices.Collect(maps.Keys(held)), route.PodCIDR.Overlaps) {
				held[route.PodCIDR] = route.NodeIP
			}
		}
		usable, problems := Usable(self, routes, held)
		for i, a := range usable {
			for _, b := range usable[i+1:] {
				if a.PodCIDR.Overlaps(b.PodCIDR) {
					r.Errorf("%v and %v", a, b)
				}
			}
			if a.PodCIDR.Overlaps(self) {
				r.Errorf("%v overlaps with the node's own", a)
			}
		}
		for cidr, ip := range held {
			if !slices.ContainsFunc(usable, func(u NodeRoute) bool { return u.PodCIDR == cidr && u.NodeIP == ip }) {
				r.Errorf("%s by %s was there first and is left out: %v", cidr, ip, problems)
			}
		}
		for _, route := range routes {
			used := slices.ContainsFunc(usable, func(u NodeRoute) bool { return u.PodCIDR == route.PodCIDR && u.NodeIP == route.NodeIP })
			told := slices.ContainsFunc(problems, func(err error) bool {
				return errors.Is(err, ErrOverlap) && strings.Contains(err.Error(), "node "+route.Name+":") && strings.Contains(err.Error(), route.PodCIDR.String())
			})
			if !used && !told && route.PodCIDR != self {
				r.Errorf("%v is left out without a word: %v", route, problems)
			}
			clash := route.PodCIDR.Overlaps(self) || slices.ContainsFunc(routes, func(o NodeRoute) bool {
				return o.PodCIDR.Overlaps(route.PodCIDR) && (o.PodCIDR != route.PodCIDR || o.NodeIP != route.NodeIP)
			})
			if !clash && !used {
				r.Errorf("%v clashes with nobody and is left out", route)
			}
		}
		slices.Reverse(routes)
		again, _ := Usable(self, routes, held)
		if !slices.Equal(addrsOnly(again), addrsOnly(usable)) {
			r.Errorf("the order matters: %v, %v", usable, again)
		}
	})
}

func addrsOnly(routes []NodeRoute) (out []string) {
	for _, r := range routes {
		out = append(out, r.PodCIDR.String()+" "+r.NodeIP.String())
	}
	return out
}

func TestPlanWays(t *testing.T) {
	prefix, ip := netip.MustParsePrefix, netip.MustParseAddr
	routes := []NodeRoute{
		{"near", prefix("10.244.2.0/24"), ip("192.168.1.2")}, {"far", prefix("10.244.3.0/24"), ip("192.168.2.3")},
		{"lost", prefix("10.244.4.0/24"), ip("192.168.3.4")}, {"six", prefix("fd00::/64"), ip("192.168.1.6")},
	}
	s := surroundings{self: prefix("10.244.1.0/24"), cluster: prefix("10.244.0.0/16"), reach: func(a netip.Addr) (int, bool, error) {
		switch {
		case a == ip("192.168.3.4"):
			return 0, false, errors.New("no route")
		default:
			return 7, a == ip("192.168.1.2"), nil
		}
	}}
	ways, problems := planWays(routes, s)
	if len(ways) != 2 || ways[0].Name != "near" || ways[0].tunnel || ways[0].device != 7 || ways[1].Name != "far" || !ways[1].tunnel || len(problems) != 2 {
		t.Errorf("%v, %v", ways, problems)
	}
	s.noTunnel = fmt.Errorf("%w: too small", ErrMTU)
	ways, problems = planWays(routes, s)
	if len(ways) != 1 || ways[0].Name != "near" || len(problems) != 3 || !errors.Is(errors.Join(problems...), ErrMTU) {
		t.Errorf("without tunnels: %v, %v", ways, problems)
	}
	joined := fmt.Errorf("sync routes: %w", errors.Join(problems...))
	if got := Problems(joined); len(got) != 3 || Problems(nil) != nil || len(Problems(errDummy())) != 1 {
		t.Errorf("taken apart: %v", got)
	}
}

func errDummy() error { return errors.New("one") }

func TestParseNoMasquerade(t *testing.T) {
	got, err := ParseNoMasquerade([]string{"10.20.0.0/16", "192.0.2.1/32", "10.20.0.0/16"})
	if err != nil || fmt.Sprint(got) != "[10.20.0.0/16 192.0.2.1/32]" {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{
		"10.20.0.0":    `"10.20.0.0" is not a network such as 10.20.0.0/16 (one address is 10.20.0.1/32)`,
		"fd00::/8":     `"fd00::/8": only IPv4 works`,
		"10.20.0.1/16": `"10.20.0.1/16" has bits beyond its length: did you mean 10.20.0.0/16?`,
		"":             `"" is not a network`,
	} {
		if _, err := ParseNoMasquerade([]string{"10.1.0.0/16", text}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if _, err := ParseNoMasquerade(slices.Repeat([]string{"10.0.0.0/8"}, 65)); err == nil || !strings.Contains(err.Error(), "65 networks; at most 64") {
		t.Errorf("too many: %v", err)
	}
}

func TestARP(t *testing.T) {
	p := arpPacket{op: arpReply, sender: net.HardwareAddr{2, 1, 2, 3, 4, 5}, from: netip.MustParseAddr("192.0.2.1"), to: broadcast(), target: netip.MustParseAddr("192.0.2.2")}
	got, ok := decodeARP(p.encode())
	if !ok || got.op != p.op || got.sender.String() != p.sender.String() || got.from != p.from || got.to.String() != p.to.String() || got.target != p.target {
		t.Errorf("%v, %v", got, ok)
	}
	probe, ok := decodeARP(arpPacket{op: arpRequest, sender: p.sender, target: p.target}.encode())
	if !ok || !probe.from.IsUnspecified() {
		t.Errorf("a probe says who asks: %v", probe)
	}
}

func FuzzARP(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(arpPacket{op: arpRequest, sender: broadcast(), target: netip.MustParseAddr("192.0.2.2")}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decodeARP(b)
		if ok && string(p.encode()) != string(b[:arpLength]) {
			t.Errorf("%x reads as %v", b, p)
		}
	})
}
