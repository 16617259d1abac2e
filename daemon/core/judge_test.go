package core

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/apiserver/why"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// TestJudgeTellsWhatIsEnforced: the verdict is that of the slice's copy, as on the
// nodes, and what the user wrote since is told to be under way.
func TestJudgeTellsWhatIsEnforced(t *testing.T) {
	meta := &balsav1.ObjectMeta{Namespace: "shop", Name: "p", Generation: 2}
	policy := &balsav1.NetworkPolicy{Metadata: meta, Spec: &balsav1.NetworkPolicySpec{}}
	everybody := &balsav1.NetworkPolicySpec{Ingress: []*balsav1.NetworkPolicyIngressRule{{}}}
	c := why.Connection{From: netip.MustParseAddr("10.0.0.1"), To: netip.MustParseAddr("10.0.0.2"), Protocol: "TCP", Port: 80,
		Ends:     []*balsav1.Pod{{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "db"}, Status: &balsav1.PodStatus{PodIp: "10.0.0.2"}}},
		Policies: []*balsav1.NetworkPolicy{policy}}
	if j := (judge{}).Judge(c); !j.Ingress.Allowed || j.Ingress.Limited || len(j.Problems) != 1 || !strings.Contains(j.Problems[0], "generation 2 has not begun") {
		t.Errorf("without a slice: %+v", j)
	}
	c.Slices = []*balsav1.NetworkPolicySlice{{Metadata: meta, ObservedGeneration: 1, Policy: everybody}}
	if j := (judge{}).Judge(c); j.Ingress.DecidedBy != "networkpolicies/shop/p spec.ingress[0]" || len(j.Problems) != 1 || !strings.Contains(j.Problems[0], "until then generation 1 is in force") {
		t.Errorf("with the slice before: %+v", j)
	}
	c.Slices[0] = &balsav1.NetworkPolicySlice{Metadata: meta, ObservedGeneration: 2, Policy: policy.GetSpec()}
	if j := (judge{}).Judge(c); j.Ingress.Allowed || len(j.Problems) > 0 {
		t.Errorf("with its slice: %+v", j)
	}
}
