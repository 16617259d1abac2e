package workload

import (
	"context"
	"fmt"
	"slices"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/nodes"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/store"
)

// batch bounds the ReplicaSets of one step.
const batch = 128

type concern struct{ *control.Kit }

// New makes the concern. Its keys are those of ReplicaSets.
func New(k *control.Kit) control.Concern {
	w := &concern{k}
	return control.Concern{Name: "workload", Batch: batch, List: list, Keys: keys, Step: w.step}
}

func list(v store.View) []string { return control.Keys(v, "ReplicaSet") }

// keys: the ReplicaSet itself, and that of a pod; for a pod without a controller,
// all that could adopt it.
func keys(v store.View, ev store.Event) []string {
	kind, namespace, _, ok := object.ParseKey(ev.KV.Key)
	if !ok {
		return nil
	}
	switch kind.Name {
	case "ReplicaSet":
		return []string{ev.KV.Key}
	case "Pod":
		return podKeys(v, namespace, ev)
	case "Node":
		return uncordoned(v, ev)
	}
	return nil
}

// uncordoned are the ReplicaSets of pods whose eviction was asked for, on a node
// that takes pods again.
func uncordoned(v store.View, ev store.Event) (out []string) {
	node, ok := ev.KV.Object.(*balsav1.Node)
	if !ok || node.GetSpec().GetUnschedulable() || ev.Prev == nil {
		return nil
	}
	if before, ok := ev.Prev.Object.(*balsav1.Node); !ok || !before.GetSpec().GetUnschedulable() {
		return nil
	}
	for _, pod := range control.Collect[*balsav1.Pod](v.ByIndex(object.IndexNode, node.GetMetadata().GetName())) {
		if key, ok := control.ControllerKey(pod, "ReplicaSet"); ok && object.EvictionRequested(pod) {
			out = append(out, key)
		}
	}
	return out
}

func podKeys(v store.View, namespace string, ev store.Event) (out []string) {
	kvs := []store.KV{ev.KV}
	if ev.Prev != nil {
		kvs = append(kvs, *ev.Prev)
	}
	for _, kv := range kvs {
		pod := control.Object(kv)
		if pod == nil {
			continue
		}
		if key, ok := control.ControllerKey(pod, "ReplicaSet"); ok {
			out = append(out, key)
		} else {
			out = append(out, adopters(v, namespace, pod)...)
		}
	}
	return out
}

func adopters(v store.View, namespace string, pod object.Message) (out []string) {
	kind, _ := object.KindByName("ReplicaSet")
	for kv := range v.Prefix(object.Prefix(kind, namespace)) {
		rs, ok := kv.Object.(*balsav1.ReplicaSet)
		if !ok {
			continue
		}
		if s, err := object.SelectorFrom(rs.GetSpec().GetSelector()); err == nil && s.Matches(pod.GetMetadata().GetLabels()) {
			out = append(out, kv.Key)
		}
	}
	return out
}

// step plans every key at one view and commits the changes at once. What the
// ReplicaSets of one Deployment may end together is counted over the step.
func (w *concern) step(ctx context.Context, keys []string) []loop.Again {
	budgets := map[string]int32{}
	return w.Each(ctx, keys, func(v store.View, key string, now time.Time) (*control.Change, time.Duration, error) {
		return w.plan(v, key, budgets, now)
	})
}

func (w *concern) plan(v store.View, key string, budgets map[string]int32, now time.Time) (*control.Change, time.Duration, error) {
	rs, ok := control.Get[*balsav1.ReplicaSet](v, key)
	if !ok {
		return nil, 0, nil
	}
	pods, err := candidates(v, rs)
	if err != nil {
		return nil, 0, err
	}
	view := View{
		ReplicaSet: rs, Pods: pods, Budget: Unlimited, Closing: control.NamespaceClosing(v, rs.GetMetadata().GetNamespace()),
		Cordoned: func(node string) bool { n := nodes.Get(v, node); return n == nil || n.GetSpec().GetUnschedulable() },
	}
	if slices.ContainsFunc(pods, object.EvictionRequested) {
		kind, _ := object.KindByName("PodDisruptionBudget")
		view.Budgets = control.Collect[*balsav1.PodDisruptionBudget](v.Prefix(object.Prefix(kind, rs.GetMetadata().GetNamespace())))
	}
	owner := guard(v, &view, budgets, now)
	a, err := Plan(view, now)
	if err != nil || a.Empty() {
		return nil, a.Again, err
	}
	if owner != "" {
		budgets[owner] = view.Budget - a.Spent
	}
	c, err := w.change(rs, a, now)
	return c, a.Again, err
}

// candidates are the pods of a ReplicaSet and those that it may adopt.
func candidates(v store.View, rs *balsav1.ReplicaSet) ([]*balsav1.Pod, error) {
	var pods []*balsav1.Pod
	for _, pod := range control.Collect[*balsav1.Pod](v.ByIndex(object.IndexOwner, rs.GetMetadata().GetUid())) {
		if object.IsControlledBy(pod, rs) {
			pods = append(pods, pod)
		}
	}
	selector, err := object.SelectorFrom(rs.GetSpec().GetSelector())
	if err != nil {
		return nil, fmt.Errorf("%s: spec.selector: %w", object.Describe(rs), err)
	}
	for _, pod := range control.Matching[*balsav1.Pod](v, "Pod", rs.GetMetadata().GetNamespace(), selector) {
		if object.ControllerOf(pod) == nil {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// guard sets what is left of the budget of the view's Deployment, and returns the
// key of that, if there is one.
func guard(v store.View, view *View, budgets map[string]int32, now time.Time) (owner string) {
	key, ok := control.ControllerKey(view.ReplicaSet, "Deployment")
	if !ok {
		return ""
	}
	d, ok := control.Get[*balsav1.Deployment](v, key)
	if !ok || !object.IsControlledBy(view.ReplicaSet, d) {
		return ""
	}
	budget, guarded := rollout.Budget(v, d, now)
	if !guarded {
		return ""
	}
	if left, known := budgets[key]; known {
		budget = left
	}
	view.Budget, view.MinReadySeconds = budget, d.GetSpec().GetMinReadySeconds()
	return key
}
