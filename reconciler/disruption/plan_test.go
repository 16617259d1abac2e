package disruption

import (
	"flag"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

func intOrString(text string) *balsav1.IntOrString {
	if strings.HasSuffix(text, "%") || strings.HasSuffix(text, "x") {
		return object.StringValue(text)
	}
	n := int32(0)
	for _, c := range text {
		n = 10*n + c - '0'
	}
	return object.IntValue(n)
}

// A budget is "budget web min=2 max=25% granted:pod=age", a controller
// "scale web replicas=3", and its pods have owner=ReplicaSet/web.
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{Budget: &balsav1.PodDisruptionBudget{}}
		scales := map[string]int32{}
		v.Scale = func(pod *balsav1.Pod) (string, int32, bool) {
			name := object.ControllerOf(pod).GetName()
			n, ok := scales[name]
			return name, n, ok
		}
		for _, l := range lines {
			switch l.Kind {
			case "budget":
				v.Budget = parseBudget(t, l)
			case "scale":
				scales[l.Name] = l.Int(t, "replicas")
			default:
				v.Pods = append(v.Pods, l.Pod(t))
			}
		}
		a := Plan(v, rt.Now())
		return a.String()
	})
}

func parseBudget(t *testing.T, l rt.Line) *balsav1.PodDisruptionBudget {
	b := &balsav1.PodDisruptionBudget{Metadata: l.Meta(t), Spec: &balsav1.PodDisruptionBudgetSpec{}}
	if l.Has("min") {
		b.Spec.MinAvailable = intOrString(l.Words["min"])
	}
	if l.Has("max") {
		b.Spec.MaxUnavailable = intOrString(l.Words["max"])
	}
	for k := range l.Words {
		if name, ok := strings.CutPrefix(k, "granted:"); ok {
			if b.Status == nil {
				b.Status = &balsav1.PodDisruptionBudgetStatus{DisruptedPods: map[string]*timestamppb.Timestamp{}}
			}
			b.Status.DisruptedPods[name] = timestamppb.New(l.Ago(t, k))
		}
	}
	return b
}

// TestEvictionsNeverOvershoot grants evictions between counts that come late, and
// lets pods go late or never: healthy pods are never fewer than the budget asks for
// by what was granted.
func TestEvictionsNeverOvershoot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rt.New(t)
		concern := New(w.Kit())
		w.Put(&balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: "default"}})
		replicas := rapid.Int32Range(1, 8).Draw(t, "replicas")
		labels := map[string]string{"app": "web"}
		rs := &balsav1.ReplicaSet{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: &balsav1.ReplicaSetSpec{Replicas: &replicas, Selector: &balsav1.LabelSelector{MatchLabels: labels},
			Template: &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: labels}}}}
		w.Put(rs)
		for i := range replicas {
			w.Put(&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: string('a' + i), Namespace: "default", Labels: labels, OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(rs)}},
				Spec:   &balsav1.PodSpec{NodeName: "n1", Containers: []*balsav1.Container{{Name: "c", Image: "i"}}},
				Status: &balsav1.PodStatus{Phase: object.PodRunning, Conditions: []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue}}}})
		}
		budget := &balsav1.PodDisruptionBudget{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"},
			Spec: &balsav1.PodDisruptionBudgetSpec{Selector: &balsav1.LabelSelector{MatchLabels: labels}}}
		bound := intOrString(rapid.SampledFrom([]string{"0", "1", "3", "25%", "50%", "100%"}).Draw(t, "bound"))
		least, err := object.ResolveIntOrPercent(bound, replicas, true)
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "max") {
			budget.Spec.MaxUnavailable, least = bound, max(0, replicas-least)
		} else {
			budget.Spec.MinAvailable = bound
		}
		w.Put(budget)
		for range rapid.IntRange(0, 40).Draw(t, "length") {
			pods := rt.All[*balsav1.Pod](w, "Pod")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				w.Step(concern)
			case 1, 2:
				if len(pods) > 0 {
					grant(t, w, rapid.SampledFrom(pods).Draw(t, "pod"))
				}
			case 3:
				if len(pods) > 0 {
					if pod := rapid.SampledFrom(pods).Draw(t, "pod"); object.IsTerminating(pod) {
						w.Delete(pod)
					}
				}
			case 4:
				w.Clock.Advance(rapid.SampledFrom([]time.Duration{time.Second, 3 * time.Minute}).Draw(t, "time"))
			}
			healthy := int32(0)
			for _, pod := range rt.All[*balsav1.Pod](w, "Pod") {
				if object.PodActive(pod) {
					healthy++
				}
			}
			if healthy < least && healthy < replicas {
				t.Fatalf("%d healthy pods of %d, at least %d must be", healthy, replicas, least)
			}
		}
		w.Settle(concern)
		status := rt.Get[*balsav1.PodDisruptionBudget](w, "poddisruptionbudgets/default/web").GetStatus()
		active := int32(0)
		for _, pod := range rt.All[*balsav1.Pod](w, "Pod") {
			if object.PodActive(pod) {
				active++
			}
		}
		if status.GetCurrentHealthy() != active || status.GetExpectedPods() > 0 && status.GetDisruptionsAllowed() != max(0, active-status.GetDesiredHealthy()) {
			t.Fatalf("%d pods are healthy, and the budget counts %v", active, status)
		}
	})
}

// grant evicts a pod as the API does.
func grant(t *rapid.T, w *rt.World, pod *balsav1.Pod) {
	budget := rt.Get[*balsav1.PodDisruptionBudget](w, "poddisruptionbudgets/default/web")
	_, spent, err := object.SpendBudgets(pod, []*balsav1.PodDisruptionBudget{budget}, w.Clock.Now())
	if err != nil || object.IsTerminating(pod) {
		return
	}
	if len(spent) != 1 {
		t.Fatalf("a ready pod costs %d budgets", len(spent))
	}
	rt.Edit(w, object.KeyOf(budget), func(b *balsav1.PodDisruptionBudget) { b.Status = spent[0].Status })
	rt.Edit(w, object.KeyOf(pod), func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp = timestamppb.New(w.Clock.Now()) })
}
