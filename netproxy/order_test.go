package netproxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	world "github.com/balsa-run/balsa/netproxy/netproxytest"
)

// edition is a policy as it was at one time, with its slice; nil: there was none.
type edition struct {
	policy *balsav1.NetworkPolicy
	slice  *balsav1.NetworkPolicySlice
}

func (e edition) objects(w *world.World) netproxy.Objects {
	o := w.Objects()
	if e.policy != nil {
		o.Policies = append(o.Policies, e.policy)
	}
	if e.slice != nil {
		o.PolicySlices = append(o.PolicySlices, e.slice)
	}
	return o
}

// verdicts are those of a ruleset about every connection of the world.
func verdicts(r netproxy.Ruleset) string {
	var b strings.Builder
	for _, c := range connections() {
		egress, ingress := r.Judge(c)
		fmt.Fprintln(&b, c.From, c.To, c.Protocol, c.Port, egress, ingress)
	}
	return b.String()
}

func connections() (out []netproxy.Connection) {
	ends := []string{world.PodA, world.PodB, world.PodC, world.Outside}
	for _, from := range ends {
		for _, to := range ends {
			for _, port := range []uint16{79, 8000, 8080, 8081, 9000} {
				for _, p := range []netproxy.Protocol{netproxy.TCP, netproxy.UDP} {
					out = append(out, netproxy.Connection{From: addr(from), To: addr(to), Protocol: p, Port: port})
				}
			}
		}
	}
	return out
}

// A policy that is made, edited, deleted and made again, and its slices, reach a
// node as two streams, in any order between them. At every moment all connections
// have the verdicts of one edition of the policy, and editions never go back: what
// the old and the new policy both allow is never refused in between. An agent that
// starts at that moment finds the same.
func TestPoliciesChangeInOneStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world.New()
		editions := drawEditions(t, w)
		want := make([]string, len(editions))
		for i, e := range editions {
			want[i] = verdicts(netproxy.Plan(netproxy.FromObjects(1, w.Node, e.objects(w))))
		}
		tracker := netproxy.NewTracker(w.Node)
		tracker.Set(w.Objects())
		policies, resolved := 0, 0 // the editions that have come
		for last := len(editions) - 1; policies < last || resolved < last; {
			if resolved == last || policies < last && rapid.Bool().Draw(t, "the policy is first") {
				policies++
				setPolicy(tracker, editions[policies].policy)
			} else {
				resolved++
				setPolicySlice(tracker, editions[resolved].slice)
			}
			now := edition{editions[policies].policy, editions[resolved].slice}
			got := tracker.Ruleset(1)
			if d := cmp.Diff(want[resolved], verdicts(got)); d != "" {
				t.Fatalf("policy edition %d, slice edition %d of %v: not the verdicts of edition %d (-want +got):\n%s", policies, resolved, editions, resolved, d)
			}
			fresh := netproxy.NewTracker(w.Node)
			fresh.Set(now.objects(w))
			if d := cmp.Diff(fresh.Ruleset(1).String(), got.String()); d != "" {
				t.Fatalf("an agent that starts now has others (-started +running):\n%s", d)
			}
			checkPending(t, w, tracker, now)
		}
	})
}

// drawEditions begins without a policy. A slice stays until servers remove it, which
// is after the policy, and of a policy that is made again they write another.
func drawEditions(t *rapid.T, w *world.World) []edition {
	out := []edition{{}}
	for range rapid.IntRange(1, 4).Draw(t, "editions") {
		if out[len(out)-1].policy != nil && rapid.IntRange(0, 3).Draw(t, "deleted") == 0 {
			out = append(out, edition{})
			continue
		}
		p := w.DrawPolicy(t, "p")
		out = append(out, edition{p, w.Resolve(p)})
	}
	return out
}

func setPolicy(tracker *netproxy.Tracker, p *balsav1.NetworkPolicy) {
	if p == nil {
		tracker.DeletePolicy("default", "p")
		return
	}
	tracker.SetPolicy(p)
}

func setPolicySlice(tracker *netproxy.Tracker, s *balsav1.NetworkPolicySlice) {
	if s == nil {
		tracker.DeletePolicySlice("default", "p")
		return
	}
	tracker.SetPolicySlice(s)
}

// checkPending: exactly the pods that the policy's newest edition selects wait for
// it, and Explain says so.
func checkPending(t *rapid.T, w *world.World, tracker *netproxy.Tracker, now edition) {
	waits := now.policy != nil && now.slice.GetObservedGeneration() != now.policy.GetMetadata().GetGeneration()
	o := now.objects(w)
	o.Pods = w.All()
	for _, pod := range w.All() {
		selected := true
		for key, value := range now.policy.GetSpec().GetPodSelector().GetMatchLabels() {
			selected = selected && pod.Labels[key] == value
		}
		want := waits && selected
		if got := tracker.Pending(pod); len(got) > 0 != want {
			t.Fatalf("pod %s waits for %v; policy %v, slice %v", pod.Name, got, now.policy, now.slice)
		}
		v := netproxy.Explain(o, netproxy.Connection{From: pod.IP, To: addr(world.Outside), Protocol: netproxy.TCP, Port: 80})
		told := slices.ContainsFunc(v.Problems, func(p netproxy.Problem) bool { return strings.Contains(p.Reason, "has not begun") })
		if told != want {
			t.Fatalf("pod %s: Explain says %+v; policy %v, slice %v", pod.Name, v, now.policy, now.slice)
		}
	}
}

// A slice of a policy that is gone is not another one's of that name, also when
// their generations are equal.
func TestSliceOfAnotherPolicy(t *testing.T) {
	w := world.New()
	tracker := netproxy.NewTracker(w.Node)
	tracker.Set(w.Objects())
	first, slice := policyFor(1, world.PodB)
	first.Metadata = &balsav1.ObjectMeta{Namespace: "default", Name: "p", Generation: 1, Uid: "first"}
	yes := true
	slice.Metadata = &balsav1.ObjectMeta{Namespace: "default", Name: "p", OwnerReferences: []*balsav1.OwnerReference{{Kind: "NetworkPolicy", Name: "p", Uid: "first", Controller: &yes}}}
	second, _ := policyFor(1, world.PodC)
	second.Metadata = &balsav1.ObjectMeta{Namespace: "default", Name: "p", Generation: 1, Uid: "second"}
	pod := w.Local()[0]
	tracker.SetPolicy(second)
	tracker.SetPolicySlice(slice)
	if got := tracker.Pending(pod); len(got) != 1 || got[0] != "default/p" {
		t.Errorf("pending %v with a slice of the policy before", got)
	}
	tracker.SetPolicy(first)
	if got := tracker.Pending(pod); len(got) > 0 {
		t.Errorf("pending %v with its slice", got)
	}
}
