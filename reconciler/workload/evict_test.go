package workload

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

// asked makes a pod one whose eviction was asked for: evict=<reason>.
func asked(p *balsav1.Pod, reason string) {
	p.Status.Conditions = append(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionEvictionRequested, Status: object.ConditionTrue, Reason: reason, Message: "drain of node n1"})
}

// budgetOf is "budget web healthy=3 desired=2 expected=2 always stale".
func budgetOf(t *testing.T, l rt.Line) *balsav1.PodDisruptionBudget {
	b := &balsav1.PodDisruptionBudget{Metadata: l.Meta(t), Spec: &balsav1.PodDisruptionBudgetSpec{Selector: &balsav1.LabelSelector{}},
		Status: &balsav1.PodDisruptionBudgetStatus{ObservedGeneration: 1, CurrentHealthy: l.Int(t, "healthy"), DesiredHealthy: l.Int(t, "desired"), ExpectedPods: l.Int(t, "expected")}}
	b.Status.DisruptionsAllowed = max(0, b.Status.CurrentHealthy-b.Status.DesiredHealthy)
	if l.Has("always") {
		b.Spec.UnhealthyPodEvictionPolicy = proto.String(object.EvictAlwaysAllow)
	}
	if l.Has("stale") {
		b.Status.ObservedGeneration = 0
	}
	return b
}

// TestEvictionsNeverCostAReplica checks plans over pods whose eviction was asked
// for: what ends leaves the ReplicaSet, the rolling update and every budget with
// what they need.
func TestEvictionsNeverCostAReplica(t *testing.T) {
	evicted := 0
	rapid.Check(t, func(t *rapid.T) {
		v := genView(t)
		for i, p := range v.Pods {
			p.Metadata.Uid = p.Metadata.Name
			if rapid.Bool().Draw(t, "asked") {
				asked(p, rapid.SampledFrom([]string{object.EvictionOfNode, object.EvictionAsked}).Draw(t, fmt.Sprint("reason ", i)))
			}
		}
		uncordoned := rapid.SampledFrom([]string{"", "n1"}).Draw(t, "uncordoned")
		v.Cordoned = func(node string) bool { return node != uncordoned }
		if rapid.Bool().Draw(t, "budget") {
			b := &balsav1.PodDisruptionBudget{Metadata: &balsav1.ObjectMeta{Name: "b", Namespace: "default", Uid: "b"}, Spec: &balsav1.PodDisruptionBudgetSpec{Selector: &balsav1.LabelSelector{}},
				Status: &balsav1.PodDisruptionBudgetStatus{DisruptionsAllowed: rapid.Int32Range(0, 3).Draw(t, "allowed")}}
			v.Budgets = append(v.Budgets, b)
		}
		a, err := Plan(v, rt.Now())
		if err != nil {
			t.Fatal(err)
		}
		checkEvictions(t, v, a)
		evicted += len(a.Evict)
	})
	if evicted == 0 {
		t.Error("nothing was ever evicted")
	}
}

func checkEvictions(t *rapid.T, v View, a Actions) {
	available := func(p *balsav1.Pod) bool { ok, _ := object.PodAvailable(p, 10, rt.Now()); return ok }
	stay, paid, ready := int32(0), int32(0), false
	for _, p := range v.Pods {
		ends := slices.Contains(a.End, p) || slices.Contains(a.Evict, p)
		if !ends && object.IsControlledBy(p, v.ReplicaSet) && object.PodActive(p) && !slices.Contains(a.Release, p) && available(p) {
			stay++
		}
	}
	for _, p := range a.Adopt {
		if available(p) && !slices.Contains(a.End, p) {
			stay++
		}
	}
	for _, p := range a.Evict {
		if !object.EvictionRequested(p) || slices.Contains(a.End, p) {
			t.Fatalf("%s ends for an eviction that nobody asked for, or twice", p.GetMetadata().GetName())
		}
		ready = ready || object.PodReady(p)
		if object.PodReady(p) && p.GetStatus().GetPhase() != object.PodPending {
			paid++
		}
	}
	replicas := v.ReplicaSet.GetSpec().GetReplicas()
	if ready && stay < replicas {
		t.Fatalf("%d available pods stay of %d replicas:\n%s", stay, replicas, a.String())
	}
	if a.Spent > v.Budget {
		t.Fatalf("it spends %d of %d", a.Spent, v.Budget)
	}
	for _, b := range v.Budgets {
		if paid > b.GetStatus().GetDisruptionsAllowed() {
			t.Fatalf("%d ready pods end, and the budget allows %d", paid, b.GetStatus().GetDisruptionsAllowed())
		}
		if paid > 0 && (len(a.Pay) != 1 || int32(len(a.Pay[0].GetStatus().GetDisruptedPods())) < paid ||
			a.Pay[0].GetStatus().GetDisruptionsAllowed() != b.GetStatus().GetDisruptionsAllowed()-int32(len(a.Pay[0].GetStatus().GetDisruptedPods()))) {
			t.Fatalf("%d ready pods end, and are paid with %v", paid, a.Pay)
		}
	}
	if over := len(v.Pods); a.Create > replicas || int(a.Create) > over+int(replicas) {
		t.Fatalf("%d pods are made for %d replicas", a.Create, replicas)
	}
}

// TestExplanationsDoNotGrow: what is waited for takes the place of what was waited
// for before.
func TestExplanationsDoNotGrow(t *testing.T) {
	l := rt.Line{Kind: "replicaset", Name: "rs", Words: map[string]string{"replicas": "1"}}
	pod := rt.Line{Kind: "pod", Name: "a", Words: map[string]string{"owner": "ReplicaSet/rs", "label:app": "web", "node": "n1", "ready": "1m"}}.Pod(t)
	asked(pod, object.EvictionAsked)
	v := View{ReplicaSet: l.ReplicaSet(t), Budget: Unlimited, Pods: []*balsav1.Pod{pod}}
	plan := func() Actions {
		a, err := Plan(v, rt.Now().Add(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	message := func(a Actions) string {
		return object.FindCondition(a.Explain[0].GetStatus().GetConditions(), object.ConditionEvictionRequested).GetMessage()
	}
	a := plan()
	if got := message(a); a.Create != 1 || got != "drain of node n1; waits: another pod is being made" {
		t.Fatalf("create %d, %q", a.Create, got)
	}
	other := rt.Line{Kind: "pod", Name: "b", Words: map[string]string{"owner": "ReplicaSet/rs", "label:app": "web"}}.Pod(t)
	v.Pods = []*balsav1.Pod{a.Explain[0], other}
	a = plan()
	if got := message(a); got != "drain of node n1; waits: pod b is not available yet: it has no node yet" {
		t.Fatalf("%q", got)
	}
	v.Pods = []*balsav1.Pod{a.Explain[0], other}
	if a = plan(); len(a.Explain) != 0 {
		t.Errorf("it is said again: %v", a.Explain)
	}
}

// TestBudgetsThatFitNoPlanAreExplained: a pod that too many budgets select is not
// evicted, and nothing is to be gone on with at once.
func TestBudgetsThatFitNoPlanAreExplained(t *testing.T) {
	labels := map[string]string{"app": "web"}
	rs := &balsav1.ReplicaSet{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default", Uid: "rs"}, Spec: &balsav1.ReplicaSetSpec{
		Replicas: proto.Int32(1), Selector: &balsav1.LabelSelector{MatchLabels: labels}, Template: &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: labels}},
	}}
	v := View{ReplicaSet: rs, Budget: Unlimited}
	for _, name := range []string{"a", "b"} {
		v.Pods = append(v.Pods, &balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", Uid: name, Labels: labels, OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(rs)}},
			Spec:     &balsav1.PodSpec{NodeName: "n1"},
			Status:   &balsav1.PodStatus{Phase: object.PodRunning, Conditions: []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue}}},
		})
	}
	asked(v.Pods[0], object.EvictionAsked)
	for i := range maxBudgets + 1 {
		name := fmt.Sprint("b", i)
		v.Budgets = append(v.Budgets, &balsav1.PodDisruptionBudget{
			Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", Uid: name}, Spec: &balsav1.PodDisruptionBudgetSpec{Selector: &balsav1.LabelSelector{}},
			Status: &balsav1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1},
		})
	}
	a, err := Plan(v, rt.Now())
	if err != nil || len(a.Evict) != 0 || len(a.Explain) != 1 || a.Again != 0 {
		t.Fatalf("plan %s error %v, want one explanation and no other look", a.String(), err)
	}
	v.Budgets = v.Budgets[1:]
	if a, err = Plan(v, rt.Now()); err != nil || len(a.Evict) != 1 || len(a.Pay) != maxBudgets {
		t.Errorf("plan %s error %v, want the eviction", a.String(), err)
	}
}
