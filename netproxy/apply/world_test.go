//go:build linux

//balsa:real-processes

package apply_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/netproxy/apply"
	"github.com/balsa-run/balsa/netproxy/apply/netlab"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

// site is the world in namespaces: nodes n1 and n2 and a client outside on one
// link, pods a and b on n1, c on n2. Only n1 has rules. Everything else leads
// what is addressed to services to n1.
type site struct {
	ns     map[string]*netlab.NS // by address
	n1     *netlab.NS
	kernel *apply.Applier
}

func newSite(t *testing.T, bridgeNF bool) *site {
	t.Helper()
	lan := netlab.New(t, "lan")
	lan.Bridge("br0")
	lan.BridgeNetfilter(bridgeNF)
	s := &site{ns: map[string]*netlab.NS{}}
	join := func(ip string) *netlab.NS {
		n := netlab.New(t, ip)
		port := "p" + ip[strings.LastIndex(ip, ".")+1:]
		netlab.Veth(n, "eth0", lan, port)
		lan.Plug(port, "br0")
		n.Addr("eth0", ip+"/24")
		n.Sysctl("net.ipv4.ip_forward", "1")
		n.BridgeNetfilter(bridgeNF)
		s.ns[ip] = n
		return n
	}
	n1, n2, outside := join(world.Node1), join(world.Node2), join(world.Outside)
	s.n1 = n1
	for ip, name := range map[string]string{world.PodA: "a", world.PodB: "b", world.PodC: "c"} {
		node := n1
		if ip == world.PodC {
			node = n2
		}
		pod := netlab.New(t, name)
		netlab.RoutedPod(pod, node, "v"+name, ip)
		s.ns[ip] = pod
		for _, port := range world.TargetPorts {
			pod.Serve(fmt.Sprintf(":%d", port))
		}
	}
	n1.Route("10.244.2.0/24", world.Node2)
	n1.Route("203.0.113.0/24", world.Node2) // some route, as a default route would be
	n1.Route("198.51.100.0/24", world.Node2)
	for _, n := range []*netlab.NS{n2, outside} {
		for _, dst := range []string{"10.244.1.0/24", "10.96.0.0/12", "203.0.113.0/24", "198.51.100.0/24"} {
			n.Route(dst, world.Node1)
		}
	}
	outside.Route("10.244.2.0/24", world.Node2)
	// One refusal more or less must not depend on how many there were.
	n1.Sysctl("net.ipv4.icmp_ratelimit", "0")
	s.kernel = newApplier(t, n1)
	return s
}

func network(p netproxy.Protocol) string { return p.String() + "4" }

// knock makes one connection and says who answered, and whom the answer went to.
func (s *site) knock(p netproxy.Packet, patience time.Duration) (name, seen string, err error) {
	d := net.Dialer{Timeout: patience}
	var c net.Conn
	err = s.ns[p.From.String()].Do(func() (err error) {
		c, err = d.Dial(network(p.Protocol), netip.AddrPortFrom(p.To, p.Port).String())
		return err
	})
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return question(c, patience)
}

func question(c net.Conn, patience time.Duration) (name, seen string, err error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return "", "", err
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return "", "", err
	}
	name, seen, _ = strings.Cut(string(buf[:n]), " ")
	return name, seen, nil
}

var podNames = map[string]string{"a": world.PodA, "b": world.PodB, "c": world.PodC}

// want is what may become of a connection, by the objects.
type want struct {
	world.Expectation
	allowed, forbidden map[string]bool // addresses of targets
}

// wanted asks Explain about policies, which a property test holds against the
// objects, so that what it tells users is what packets meet.
func wanted(w *world.World, p netproxy.Packet) want {
	out := want{Expectation: w.Expect(p), allowed: map[string]bool{}, forbidden: map[string]bool{}}
	if out.Outcome == netproxy.Passes {
		out.Targets, out.SourceKept = map[netproxy.Target]bool{{IP: p.To, Port: p.Port}: true}, true
	}
	local := w.Objects()
	for t := range out.Targets {
		c := netproxy.Connection{From: p.From, To: t.IP, Protocol: p.Protocol, Port: t.Port}
		if v := netproxy.Explain(local, c); p.FromNode || v.Allowed {
			out.allowed[t.IP.String()] = true
		} else {
			out.forbidden[t.IP.String()] = true
		}
	}
	return out
}

// check holds one real connection against the objects.
func (s *site) check(w *world.World, p netproxy.Packet) error {
	want := wanted(w, p)
	patience := 2 * time.Second
	if want.Outcome == netproxy.Drops {
		patience = 60 * time.Millisecond
	}
	name, seen, err := s.knock(p, patience)
	if err == nil {
		return want.answered(w, p, podNames[name], seen)
	}
	silent := errors.Is(err, context.DeadlineExceeded) || isTimeout(err)
	refused := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EPERM)
	switch {
	case want.Outcome == netproxy.Drops && (silent || errors.Is(err, syscall.EPERM)):
		return nil
	case (want.Outcome == netproxy.Refuses || len(want.forbidden) > 0) && refused:
		return nil
	}
	return fmt.Errorf("packet %+v: %w, want %+v", p, err, want)
}

func (want *want) answered(w *world.World, p netproxy.Packet, by, seen string) error {
	if !want.allowed[by] {
		return fmt.Errorf("packet %+v: answer by %q, want %+v", p, by, want)
	}
	from := p.From.String()
	if kept := want.SourceKept && by != from; !p.FromNode && kept != (seen == from) {
		return fmt.Errorf("packet %+v: %q sees client %s, want %+v", p, by, seen, want)
	}
	return nil
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// drawPacket prefers addresses that mean something.
func drawPacket(t *rapid.T, w *world.World) netproxy.Packet {
	from := rapid.SampledFrom([]string{world.PodA, world.PodB, world.PodC, world.Node1, world.Node2, world.Outside}).Draw(t, "from")
	p := netproxy.Packet{From: ip(from), FromNode: from == world.Node1, Protocol: rapid.SampledFrom([]netproxy.Protocol{netproxy.TCP, netproxy.UDP}).Draw(t, "protocol")}
	type front struct {
		to   string
		port uint16
	}
	var fronts []front
	for _, s := range w.Objects().Services {
		for _, port := range s.GetSpec().GetPorts() {
			fronts = append(fronts, front{s.GetSpec().GetClusterIp(), uint16(port.GetPort())})
			for _, e := range s.GetSpec().GetExternalIps() {
				fronts = append(fronts, front{e, uint16(port.GetPort())})
			}
			for _, in := range s.GetStatus().GetLoadBalancer().GetIngress() {
				fronts = append(fronts, front{in.GetIp(), uint16(port.GetPort())})
			}
			if port.NodePort != nil {
				fronts = append(fronts, front{world.Node1, uint16(port.GetNodePort())})
			}
		}
	}
	for _, pod := range []string{world.PodA, world.PodB} {
		fronts = append(fronts, front{pod, world.TargetPorts[0]}, front{pod, world.TargetPorts[1]})
	}
	fronts = append(fronts, front{world.PodC, world.TargetPorts[0]}, front{world.Node1, world.HostPortNumber}, front{"10.96.9.9", 80})
	f := rapid.SampledFrom(fronts).Draw(t, "front")
	p.To, p.Port, p.ToNode = ip(f.to), f.port, f.to == world.Node1
	return p
}

// meaningful packets have an outcome that is n1's doing: what it does not
// translate must be for a pod, and come through n1.
func meaningful(w *world.World, p netproxy.Packet) bool {
	if w.Expect(p).Outcome != netproxy.Passes {
		return true
	}
	to := p.To.String()
	_, isPod := map[string]bool{world.PodA: true, world.PodB: true}[to]
	toC := to == world.PodC && (p.From.String() == world.PodA || p.From.String() == world.PodB || p.FromNode)
	return (isPod || toC) && p.From != p.To
}

// After each of 600 random sequences (with 100 checks of rapid, as in CI) of service,
// endpoint, policy, pod and node changes the kernel holds what the plan says,
// read back by netlink, and real packets go where the objects say.
func TestRandomSequences(t *testing.T) {
	const sequencesEach, packetsEach = 3, 6 // of 100 runs, on each kind of bridge
	for _, bridgeNF := range []bool{false, true} {
		t.Run(fmt.Sprint("bridge-nf-", bridgeNF), func(t *testing.T) {
			s := newSite(t, bridgeNF)
			rapid.Check(t, func(rt *rapid.T) {
				w := world.New()
				tracker := netproxy.NewTracker(w.Node)
				tracker.Set(w.Objects())
				for range sequencesEach {
					s.sequence(rt, w, tracker, packetsEach)
				}
			})
		})
	}
}

func (s *site) sequence(t *rapid.T, w *world.World, tracker *netproxy.Tracker, packets int) {
	for range rapid.IntRange(1, 6).Draw(t, "changes") {
		w.Change(t, tracker)
	}
	r := tracker.Ruleset(1)
	if _, err := s.kernel.Sync(context.Background(), r); err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	report, err := s.kernel.Scrub(context.Background())
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("%v\n%v\nfor\n%v", err, report.Findings, r)
	}
	for range packets {
		p := drawPacket(t, w)
		if !meaningful(w, p) {
			continue
		}
		if err := s.check(w, p); err != nil {
			t.Fatalf("%v\n%v\n%v", err, w, r)
		}
	}
}
