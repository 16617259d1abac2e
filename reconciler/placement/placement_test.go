package placement

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

func node(name, cpu string) *balsav1.Node {
	return &balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: name}, Status: &balsav1.NodeStatus{
		Allocatable: map[string]*balsav1.Quantity{"cpu": object.NewQuantity(cpu), "memory": object.NewQuantity("64Gi"), "pods": object.NewQuantity("1000")},
		Conditions:  []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue}},
	}}
}

func pod(name, cpu string) *balsav1.Pod {
	return &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{
		Name: "c", Resources: &balsav1.ResourceRequirements{Requests: map[string]*balsav1.Quantity{"cpu": object.NewQuantity(cpu)}},
	}}}}
}

func scheduled(w *rt.World, name string) (string, *balsav1.Condition) {
	p := rt.Get[*balsav1.Pod](w, "pods/default/"+name)
	return p.GetSpec().GetNodeName(), object.FindCondition(p.GetStatus().GetConditions(), object.ConditionPodScheduled)
}

func TestManyPodsAreBoundInFewTransactions(t *testing.T) {
	w := rt.New(t)
	for i := range 3 {
		w.Put(node(fmt.Sprintf("n%d", i), "100"))
	}
	for i := range 200 {
		w.Put(pod(fmt.Sprintf("p%03d", i), "100m"))
	}
	before := w.View().Revision()
	w.Settle(New(w.Kit(), nil))
	if got, want := int(w.View().Revision()-before), (200+maxPerChange-1)/maxPerChange; got != want {
		t.Errorf("%d transactions, want %d", got, want)
	}
	on := map[string]int{}
	for _, p := range rt.All[*balsav1.Pod](w, "Pod") {
		on[p.GetSpec().GetNodeName()]++
		if c := object.FindCondition(p.GetStatus().GetConditions(), object.ConditionPodScheduled); c.GetStatus() != object.ConditionTrue || p.GetMetadata().GetGeneration() != 2 {
			t.Fatalf("%s: condition %v, generation %d", p.GetMetadata().GetName(), c, p.GetMetadata().GetGeneration())
		}
	}
	if on["n0"] < 66 || on["n1"] < 66 || on["n2"] < 66 {
		t.Errorf("pods on nodes: %v", on)
	}
}

func TestNothingIsBoundToANodeThatWasCordonedInBetween(t *testing.T) {
	w := rt.New(t)
	w.Put(node("n1", "4"))
	w.Put(pod("p", "1"))
	cordoned := object.Clone(rt.Get[*balsav1.Node](w, "nodes/n1"))
	cordoned.Spec = &balsav1.NodeSpec{Unschedulable: proto.Bool(true)}
	w.Before = func(cmd *internalv1.Command) (bool, error) {
		if cordoned != nil && cmd.GetEpoch() != 0 {
			value, err := object.Encode(cordoned)
			if err != nil {
				t.Error(err)
			}
			txn := &internalv1.Txn{Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte("nodes/n1"), Value: value}}}}}
			w.ApplyLocked(&internalv1.Command{Space: store.SpaceObjects, Op: &internalv1.Command_Txn{Txn: txn}})
			cordoned = nil
		}
		return true, nil
	}
	c := New(w.Kit(), nil)
	if again := w.Step(c); len(again) != 1 || again[0].Err == nil {
		t.Fatalf("again %v", again)
	}
	w.Settle(c)
	if on, why := scheduled(w, "p"); on != "" || why.GetReason() != ReasonUnschedulable || !strings.Contains(why.GetMessage(), "1 cordoned") {
		t.Errorf("on %q, condition %v", on, why)
	}
}

func TestExplanationsAreWrittenAtOnceThenNowAndThen(t *testing.T) {
	w := rt.New(t)
	explanations := &Explanations{}
	c := New(w.Kit(), explanations)
	w.Put(node("n1", "1"))
	w.Put(pod("big", "3"))
	w.Settle(c)
	if _, why := scheduled(w, "big"); !strings.Contains(why.GetMessage(), "short by 2 at best") {
		t.Fatalf("condition %v", why)
	}
	if why, ok := explanations.Of("pods/default/big"); !ok || why.Compact() != "n1 cpu-2" {
		t.Errorf("verdict %v", why)
	}
	resize := func(cpu string) {
		rt.Edit(w, "nodes/n1", func(n *balsav1.Node) { n.Status.Allocatable["cpu"] = object.NewQuantity(cpu) })
	}
	resize("1500m")
	w.Settle(c) // is written: no explanation was written anew for long
	resize("1600m")
	again := w.Settle(c)
	if _, why := scheduled(w, "big"); !strings.Contains(why.GetMessage(), "short by 1500m at best") || again != explainEvery {
		t.Errorf("condition %v; looks again in %v", why, again)
	}
	w.Clock.Advance(explainEvery)
	w.Settle(c)
	if _, why := scheduled(w, "big"); !strings.Contains(why.GetMessage(), "short by 1400m at best") {
		t.Errorf("condition %v", why)
	}
	failures := 0
	for _, e := range w.Events {
		if strings.Contains(e, ReasonFailed) {
			failures++
		}
	}
	if failures != 3 {
		t.Errorf("%d events, want one for each explanation written: %v", failures, w.Events)
	}
	resize("4")
	w.Settle(c)
	if on, _ := scheduled(w, "big"); on != "n1" {
		t.Error("is not placed when it fits")
	}
	if _, ok := explanations.Of("pods/default/big"); ok {
		t.Error("a verdict on a placed pod is kept")
	}
}

func TestWhatIsNotToBePlaced(t *testing.T) {
	w := rt.New(t)
	w.Put(node("n1", "4"))
	done := pod("done", "1")
	done.Status = &balsav1.PodStatus{Phase: object.PodFailed}
	going := pod("going", "1")
	going.Metadata.DeletionTimestamp = timestamppb.New(w.Clock.Now())
	w.Put(done)
	w.Put(going)
	before := w.View().Revision()
	w.Settle(New(w.Kit(), nil))
	if w.View().Revision() != before {
		t.Error("something was written")
	}
}

func TestOneBadObjectHoldsUpNoOther(t *testing.T) {
	bad := pod("bad", "much")
	good := pod("good", "1")
	a := Plan(View{Nodes: []*balsav1.Node{node("n1", "4"), node("n2", "many")}, Pods: []*balsav1.Pod{bad, good}}, rt.Now())
	if len(a.Unreadable) != 2 || len(a.Bind) != 1 || a.Bind[0].GetMetadata().GetName() != "good" {
		t.Errorf("unreadable %v\n%s", a.Unreadable, a.String())
	}
}

func TestKeys(t *testing.T) {
	bound := pod("bound", "1")
	bound.Spec.NodeName = "n1"
	finished := object.Clone(bound)
	finished.Status = &balsav1.PodStatus{Phase: object.PodSucceeded}
	for name, test := range map[string]struct {
		ev   store.Event
		want int
	}{
		"new pod":      {store.Event{KV: store.KV{Key: "pods/default/p", Object: pod("p", "1")}}, 1},
		"bound pod":    {store.Event{KV: store.KV{Key: "pods/default/p", Object: bound}}, 0},
		"finished pod": {store.Event{KV: store.KV{Key: "pods/default/p", Object: finished}}, 1},
		"deleted pod":  {store.Event{Type: store.EventDelete, KV: store.KV{Key: "pods/default/p"}}, 1},
		"node":         {store.Event{KV: store.KV{Key: "nodes/n1", Object: node("n1", "1")}}, 1},
		"service":      {store.Event{KV: store.KV{Key: "services/default/web"}}, 0},
	} {
		if got := keys(store.View{}, test.ev); len(got) != test.want {
			t.Errorf("%s: keys %q", name, got)
		}
	}
}

// How long is one step, from the store to the store, when a thousand pods of ten
// owners wait for a thousand nodes on which four thousand run?
func BenchmarkStep(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		w := rt.New(b)
		for i := range 1000 {
			w.Put(node(fmt.Sprintf("n%04d", i), "8"))
		}
		for i := range 5000 {
			p := pod(fmt.Sprintf("p%05d", i), "100m")
			p.Metadata.OwnerReferences = []*balsav1.OwnerReference{{Uid: fmt.Sprint(i % 10), Controller: proto.Bool(true)}}
			if i >= 1000 {
				p.Spec.NodeName = fmt.Sprintf("n%04d", i%1000)
			}
			w.Put(p)
		}
		c := New(w.Kit(), nil)
		b.StartTimer()
		if again := w.Step(c); len(again) > 0 {
			b.Fatal(again)
		}
	}
}
