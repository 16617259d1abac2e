package disruption

import (
	"context"
	"fmt"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// batch bounds the budgets of one step.
const batch = 128

type concern struct{ *control.Kit }

// New makes the concern. Its keys are those of PodDisruptionBudgets.
func New(k *control.Kit) control.Concern {
	d := &concern{k}
	return control.Concern{Name: "disruption", Batch: batch, List: list, Keys: keys, Step: d.step}
}

func list(v store.View) []string { return control.Keys(v, "PodDisruptionBudget") }

// keys: the budget itself, those that select a pod as it is or as it was, and all
// of a namespace where a controller was scaled.
func keys(v store.View, ev store.Event) (out []string) {
	kvs := []store.KV{ev.KV}
	if ev.Prev != nil {
		kvs = append(kvs, *ev.Prev)
	}
	for _, kv := range kvs {
		switch m := kv.Object.(type) {
		case *balsav1.PodDisruptionBudget:
			out = append(out, kv.Key)
		case *balsav1.Pod:
			out = append(out, selecting(v, m.GetMetadata().GetNamespace(), m.GetMetadata().GetLabels())...)
		case *balsav1.ReplicaSet, *balsav1.Deployment:
			if scaled(ev) {
				out = append(out, selecting(v, control.Object(kv).GetMetadata().GetNamespace(), nil)...)
			}
		}
	}
	return out
}

// selecting lists the budgets of a namespace that select a pod's labels; nil
// labels: all of them.
func selecting(v store.View, namespace string, labels map[string]string) (out []string) {
	kind, _ := object.KindByName("PodDisruptionBudget")
	for kv := range v.Prefix(object.Prefix(kind, namespace)) {
		b, ok := kv.Object.(*balsav1.PodDisruptionBudget)
		if !ok {
			continue
		}
		if s, err := object.SelectorFrom(b.GetSpec().GetSelector()); labels == nil || err == nil && s.Matches(labels) {
			out = append(out, kv.Key)
		}
	}
	return out
}

// scaled tells whether an event changes how many pods a controller asks for.
func scaled(ev store.Event) bool {
	if ev.Prev == nil || ev.KV.Object == nil {
		return true
	}
	return replicasOf(ev.KV) != replicasOf(*ev.Prev)
}

func replicasOf(kv store.KV) int32 {
	switch m := kv.Object.(type) {
	case *balsav1.ReplicaSet:
		return m.GetSpec().GetReplicas()
	case *balsav1.Deployment:
		return m.GetSpec().GetReplicas()
	}
	return -1
}

func (d *concern) step(ctx context.Context, keys []string) []loop.Again {
	return d.Each(ctx, keys, d.plan)
}

func (d *concern) plan(v store.View, key string, now time.Time) (*control.Change, time.Duration, error) {
	b, ok := control.Get[*balsav1.PodDisruptionBudget](v, key)
	if !ok {
		return nil, 0, nil
	}
	selector, err := object.SelectorFrom(b.GetSpec().GetSelector())
	if err != nil {
		return nil, 0, fmt.Errorf("%s: spec.selector: %w", object.Describe(b), err)
	}
	view := View{Budget: b, Scale: func(pod *balsav1.Pod) (string, int32, bool) { return scaleOf(v, pod) }}
	for _, pod := range control.Matching[*balsav1.Pod](v, "Pod", b.GetMetadata().GetNamespace(), selector) {
		if !object.PodFinished(pod) {
			view.Pods = append(view.Pods, pod)
		}
	}
	a := Plan(view, now)
	if a.Status == nil {
		return nil, a.Again, nil
	}
	next := object.Clone(b)
	next.Status = a.Status
	c := control.NewChange(key)
	c.Then(func() { d.record(b, a) })
	return c, a.Again, c.Update(next)
}

func (d *concern) record(b *balsav1.PodDisruptionBudget, a Actions) {
	if len(a.Late) > 0 {
		d.Events.Record(b, object.EventWarning, "NotDeleted", fmt.Sprintf("the end of pod %s was granted more than %v ago and has not begun; it counts again", short(a.Late), object.DisruptedPodTimeout))
	}
	if len(a.Unmanaged) > 0 {
		d.Events.Record(b, object.EventWarning, "UnmanagedPods", "no controller makes pod "+short(a.Unmanaged)+", so it does not count for the number that is expected; use minAvailable with a number, or a selector without it")
	}
}

// scaleOf is the Deployment of a pod's ReplicaSet and how many pods that asks for,
// or the ReplicaSet if nothing controls it.
func scaleOf(v store.View, pod *balsav1.Pod) (controller string, replicas int32, ok bool) {
	key, ok := control.ControllerKey(pod, "ReplicaSet")
	if !ok {
		return "", 0, false
	}
	rs, ok := control.Get[*balsav1.ReplicaSet](v, key)
	if !ok || !object.IsControlledBy(pod, rs) {
		return "", 0, false
	}
	if key, owned := control.ControllerKey(rs, "Deployment"); owned {
		if d, ok := control.Get[*balsav1.Deployment](v, key); ok && object.IsControlledBy(rs, d) {
			return key, d.GetSpec().GetReplicas(), true
		}
	}
	return key, rs.GetSpec().GetReplicas(), true
}
