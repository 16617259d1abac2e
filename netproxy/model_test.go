package netproxy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/netproxy"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// packets are all that the world can tell apart.
func packets(w *world.World) (out []netproxy.Packet) {
	froms := []string{world.PodA, world.PodB, world.PodC, world.Node1, world.Node2, world.Outside}
	tos := append(append(append([]string{world.Node1, world.PodA, "10.96.9.9", "8.8.8.8"}, world.VIPs...), world.External...), world.Balancers...)
	for _, from := range froms {
		for _, to := range tos {
			for _, port := range []uint16{80, 81, 30080, 30081, world.HostPortNumber, 8080} {
				for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP} {
					out = append(out, netproxy.Packet{From: addr(from), To: addr(to), Protocol: p, Port: port, FromNode: from == world.Node1, ToNode: to == world.Node1})
				}
			}
		}
	}
	return out
}

// compare holds a path against what the objects say.
func compare(p netproxy.Packet, got netproxy.Path, want world.Expectation) error {
	targets := map[netproxy.Target]bool{}
	for _, t := range got.Targets {
		targets[t] = true
	}
	if got.Outcome != want.Outcome || len(got.Targets) != len(want.Targets) || len(targets) > 0 && !maps.Equal(targets, want.Targets) ||
		want.Outcome == netproxy.Translates && got.Masqueraded == want.SourceKept {
		return fmt.Errorf("packet %+v: rules say %+v, objects say %+v", p, got, want)
	}
	return nil
}

// The kernel, driven by a Tracker's differences, does what a naive reading of the
// objects says, for every packet and connection of the world; Explain says the
// same; and a Tracker makes what Plan makes from nothing.
func TestRulesetsDoWhatObjectsSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world.New()
		w.OldServers = rapid.Bool().Draw(t, "slices without the policy")
		tracker := netproxy.NewTracker(w.Node)
		tracker.Set(w.Objects())
		var kernel netproxy.Fake
		for step := range rapid.IntRange(1, 6).Draw(t, "steps") {
			for range rapid.IntRange(1, 6).Draw(t, "changes") {
				w.Change(t, tracker)
			}
			next := tracker.Ruleset(int64(step))
			fresh := netproxy.Plan(netproxy.FromObjects(int64(step), w.Node, w.Objects()))
			if d := cmp.Diff(fresh.String(), next.String()); d != "" {
				t.Fatalf("tracker and plan differ (-plan +tracker):\n%s\n%v", d, w)
			}
			if rapid.IntRange(0, 4).Draw(t, "fail") == 0 {
				kernel.FailNext(errors.New("injected"))
				if _, err := kernel.Sync(context.Background(), next); err == nil {
					t.Fatal("the injected error was lost")
				}
			}
			if _, err := kernel.Sync(context.Background(), next); err != nil {
				t.Fatalf("%v\n%v", err, w)
			}
			checkPackets(t, w, &kernel, &next)
			checkConnections(t, w, &kernel, &next)
		}
	})
}

func checkPackets(t *rapid.T, w *world.World, kernel *netproxy.Fake, r *netproxy.Ruleset) {
	for _, p := range packets(w) {
		want := w.Expect(p)
		if err := errors.Join(compare(p, kernel.Route(p), want), compare(p, r.Route(p), want)); err != nil {
			t.Fatalf("%v\n%v\n%v", err, w, r)
		}
	}
}

func checkConnections(t *rapid.T, w *world.World, kernel *netproxy.Fake, r *netproxy.Ruleset) {
	ends := []string{world.PodA, world.PodB, world.PodC, world.Outside, "10.244.9.9"}
	all := w.Objects()
	all.Pods = w.All()
	for _, from := range ends {
		for _, to := range ends {
			for _, port := range []uint16{79, 7999, 8000, 8079, 8080, 8081, 9000, 9001} {
				for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP, 132} {
					c := netproxy.Connection{From: addr(from), To: addr(to), Protocol: p, Port: port}
					egress, ingress := w.Allowed(c, false)
					if e, i := kernel.Judge(c); e != egress || i != ingress {
						t.Fatalf("%+v: kernel says %v %v, objects say %v %v\n%v\n%v", c, e, i, egress, ingress, w, r)
					}
					if e, i := r.Judge(c); e != egress || i != ingress {
						t.Fatalf("%+v: plan says %v %v, objects say %v %v", c, e, i, egress, ingress)
					}
					egress, ingress = w.Allowed(c, true)
					if v := netproxy.Explain(all, c); v.Egress.Allowed != egress || v.Ingress.Allowed != ingress || v.Allowed != (egress && ingress) {
						t.Fatalf("%+v: Explain says %+v, objects say %v %v\n%v", c, v, egress, ingress, w)
					}
				}
			}
		}
	}
}

// Tracker.Set, from any state, makes what the single updates make.
func TestTrackerSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world.New()
		w.OldServers = rapid.Bool().Draw(t, "slices without the policy")
		tracker := netproxy.NewTracker(w.Node)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				w.Change(t, nil)
			}
			tracker.SetNode(w.Node)
			tracker.Set(w.Objects())
			got, want := tracker.Ruleset(1), netproxy.Plan(netproxy.FromObjects(1, w.Node, w.Objects()))
			if d := cmp.Diff(want.String(), got.String()); d != "" {
				t.Fatalf("(-plan +tracker):\n%s\n%v", d, w)
			}
			again := tracker.Ruleset(1)
			if c := netproxy.Diff(got, again); !c.Empty() {
				t.Fatalf("nothing changed, but\n%v", c)
			}
		}
	})
}

// Applying differences equals building from nothing, and a difference to
// itself is empty.
func TestDiffEqualsFull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world.New()
		plan := func() netproxy.Ruleset { return netproxy.Plan(netproxy.FromObjects(1, w.Node, w.Objects())) }
		var stepwise netproxy.Fake
		old := plan()
		if err := stepwise.Apply(netproxy.Full(old)); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				w.Change(t, nil)
			}
			next := plan()
			if err := stepwise.Apply(netproxy.Diff(old, next)); err != nil {
				t.Fatalf("%v\napplying\n%v", err, netproxy.Diff(old, next))
			}
			var fresh netproxy.Fake
			if err := fresh.Apply(netproxy.Full(next)); err != nil {
				t.Fatal(err)
			}
			if !stepwise.Equal(&fresh) {
				t.Fatalf("after\n%v\nthe kernel differs from one built from nothing for\n%v", netproxy.Diff(old, next), next)
			}
			if c := netproxy.Diff(next, next); !c.Empty() {
				t.Fatalf("difference of a plan to itself: %v", c)
			}
			old = next
		}
	})
}
