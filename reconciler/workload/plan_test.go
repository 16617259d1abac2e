package workload

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{Budget: Unlimited}
		for _, l := range lines {
			switch l.Kind {
			case "replicaset":
				v.ReplicaSet = l.ReplicaSet(t)
				v.Closing = l.Has("closing")
				if l.Has("budget") {
					v.Budget = l.Int(t, "budget")
				}
			case "pods": // so many like the first of them
				for i := range l.Int(t, "count") {
					p := l.Pod(t)
					p.Metadata.Name = fmt.Sprintf("%s-%03d", l.Name, i)
					v.Pods = append(v.Pods, p)
				}
			case "budget":
				v.Budgets = append(v.Budgets, budgetOf(t, l))
			case "uncordoned":
				v.Cordoned = func(node string) bool { return node != l.Name }
			default:
				p := l.Pod(t)
				if l.Has("evict") {
					asked(p, l.Words["evict"])
				}
				v.Pods = append(v.Pods, p)
			}
		}
		a, err := Plan(v, rt.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a.String()
	})
}

// TestPlanIsRightWhateverThePods checks a plan against what it is for: the number
// of pods is right, within the step's bound and the budget, and those that end
// are no better than those that stay.
func TestPlanIsRightWhateverThePods(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView(t)
		a, err := Plan(v, rt.Now())
		if err != nil {
			t.Fatal(err)
		}
		active := int32(0)
		available := func(p *balsav1.Pod) bool { ok, _ := object.PodAvailable(p, v.MinReadySeconds, rt.Now()); return ok }
		spent := int32(0)
		for _, p := range v.Pods {
			if object.PodActive(p) && (slices.Contains(a.Adopt, p) || object.IsControlledBy(p, v.ReplicaSet) && !slices.Contains(a.Release, p)) {
				active++
			}
			if slices.Contains(a.End, p) && available(p) {
				spent++
			}
		}
		want := v.ReplicaSet.GetSpec().GetReplicas()
		if got := active + a.Create - int32(len(a.End)) - a.Held; got != want {
			t.Fatalf("%d active, create %d, end %d, hold %d: want %d", active, a.Create, len(a.End), a.Held, want)
		}
		if spent != a.Spent || spent > v.Budget || a.Create > 0 && len(a.End) > 0 || a.Held > 0 && spent < v.Budget {
			t.Fatalf("spends %d, says %d, of %d; creates %d, ends %d, holds %d", spent, a.Spent, v.Budget, a.Create, len(a.End), a.Held)
		}
		if s := a.Status; s.GetReplicas() != active+a.Create-int32(len(a.End)) || s.GetAvailableReplicas() > s.GetReadyReplicas() || s.GetReadyReplicas() > s.GetReplicas() {
			t.Fatalf("status %v", s)
		}
	})
}

func genView(t *rapid.T) View {
	l := rt.Line{Kind: "replicaset", Name: "rs", Words: map[string]string{"image": "web:1"}}
	rs := &balsav1.ReplicaSet{Metadata: &balsav1.ObjectMeta{Name: "rs", Namespace: "default", Uid: "rs", Generation: 3}, Spec: &balsav1.ReplicaSetSpec{
		Replicas: proto.Int32(rapid.Int32Range(0, 8).Draw(t, "replicas")), Template: l.Template(),
		Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, MinReadySeconds: proto.Int32(10),
	}}
	v := View{ReplicaSet: rs, Budget: rapid.SampledFrom([]int32{0, 1, 2, Unlimited}).Draw(t, "budget"), MinReadySeconds: 10}
	for i := range rapid.IntRange(0, 12).Draw(t, "pods") {
		p := &balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Namespace: "default", Labels: map[string]string{"app": rapid.SampledFrom([]string{"web", "web", "web", "other"}).Draw(t, "app")}},
			Spec:     &balsav1.PodSpec{NodeName: rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node")},
			Status:   &balsav1.PodStatus{Phase: rapid.SampledFrom([]string{"Pending", "Running", "Running", "Failed"}).Draw(t, "phase")},
		}
		if rapid.IntRange(0, 4).Draw(t, "owned") > 0 {
			p.Metadata.OwnerReferences = []*balsav1.OwnerReference{object.NewControllerRef(rs)}
		}
		if rapid.IntRange(0, 4).Draw(t, "terminating") == 0 {
			p.Metadata.DeletionTimestamp = timestamppb.New(rt.Now())
		}
		if since := rapid.SampledFrom([]int{-1, 3, 30}).Draw(t, "ready since"); since >= 0 && p.Status.Phase == object.PodRunning {
			c := &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionTrue}
			p.Status.Conditions, _ = object.SetCondition(nil, c, rt.Now().Add(-time.Duration(since)*time.Second))
		}
		v.Pods = append(v.Pods, p)
	}
	return v
}
