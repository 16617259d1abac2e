package rollout

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

// batch bounds the Deployments of one step.
const batch = 128

type concern struct{ *control.Kit }

// New makes the concern. Its keys are those of Deployments.
func New(k *control.Kit) control.Concern {
	r := &concern{k}
	return control.Concern{Name: "rollout", Batch: batch, List: list, Keys: keys, Step: r.step}
}

func list(v store.View) []string { return control.Keys(v, "Deployment") }

// keys: the Deployment itself, that of a ReplicaSet, and that of a pod's
// ReplicaSet. An orphan may be adopted by any Deployment of its namespace.
func keys(v store.View, ev store.Event) (out []string) {
	kvs := []store.KV{ev.KV}
	if ev.Prev != nil {
		kvs = append(kvs, *ev.Prev)
	}
	for _, kv := range kvs {
		switch m := kv.Object.(type) {
		case *balsav1.Deployment:
			out = append(out, kv.Key)
		case *balsav1.ReplicaSet:
			out = append(out, keysOfSet(v, m)...)
		case *balsav1.Pod:
			if key, ok := control.ControllerKey(m, "ReplicaSet"); ok {
				if rs, ok := control.Get[*balsav1.ReplicaSet](v, key); ok {
					out = append(out, keysOfSet(v, rs)...)
				}
			}
		}
	}
	return out
}

func keysOfSet(v store.View, rs *balsav1.ReplicaSet) []string {
	if key, ok := control.ControllerKey(rs, "Deployment"); ok {
		return []string{key}
	}
	if object.ControllerOf(rs) != nil {
		return nil
	}
	var out []string
	kind, _ := object.KindByName("Deployment")
	for kv := range v.Prefix(object.Prefix(kind, rs.GetMetadata().GetNamespace())) {
		out = append(out, kv.Key)
	}
	return out
}

func (r *concern) step(ctx context.Context, keys []string) (again []loop.Again) {
	v, err := r.View(ctx)
	if err != nil {
		return loop.Failed(keys, err)
	}
	now := r.Clock.Now()
	var changes []*control.Change
	var changed []string
	for _, key := range keys {
		c, after, err := r.plan(v, key, now)
		if err != nil {
			again = append(again, loop.Again{Key: key, Err: err})
			continue
		}
		if after > 0 {
			again = append(again, loop.Again{Key: key, After: after})
		}
		if c != nil {
			changes, changed = append(changes, c), append(changed, key)
		}
	}
	for i, err := range r.CommitAll(ctx, changes) {
		if err != nil {
			again = append(again, loop.Again{Key: changed[i], Err: err})
		}
	}
	return again
}

func (r *concern) plan(v store.View, key string, now time.Time) (*control.Change, time.Duration, error) {
	d, ok := control.Get[*balsav1.Deployment](v, key)
	if !ok {
		return nil, 0, nil
	}
	view, err := viewOf(v, d)
	if err != nil {
		return nil, 0, err
	}
	a, err := Plan(view, now)
	if err != nil || a.Empty() {
		return nil, a.Again, err
	}
	c, err := r.change(view, a, now)
	return c, a.Again, err
}

// viewOf reads what a plan for a Deployment needs.
func viewOf(v store.View, d *balsav1.Deployment) (View, error) {
	namespace := d.GetMetadata().GetNamespace()
	selector, err := object.SelectorFrom(d.GetSpec().GetSelector())
	if err != nil {
		return View{}, fmt.Errorf("%s: spec.selector: %w", object.Describe(d), err)
	}
	kind, _ := object.KindByName("ReplicaSet")
	view := View{
		Deployment: d, Sets: owned(v, d), Closing: control.NamespaceClosing(v, namespace),
		Taken: func(name string) bool {
			_, taken := v.Get(object.Key(kind, namespace, name))
			return taken
		},
	}
	for _, rs := range control.Matching[*balsav1.ReplicaSet](v, "ReplicaSet", namespace, selector) {
		if object.ControllerOf(rs) == nil {
			view.Sets = append(view.Sets, Set{ReplicaSet: rs, Pods: podsOf(v, rs)})
		}
	}
	return view, nil
}

// change makes one transaction of the actions. It holds only while the
// Deployment, and every ReplicaSet that it writes, are as they were.
func (r *concern) change(v View, a Actions, now time.Time) (*control.Change, error) {
	c := control.NewChange(object.KeyOf(v.Deployment))
	if a.Create != nil {
		if err := control.Stamp(a.Create, r.Rand, now); err != nil {
			return nil, err
		}
		if err := c.Create(a.Create); err != nil {
			return nil, err
		}
	}
	for _, rs := range a.Update {
		if err := c.Update(rs); err != nil {
			return nil, err
		}
	}
	for _, rs := range a.Delete {
		c.Delete(rs)
	}
	if a.Revision > 0 || a.Status != nil {
		next := object.Clone(v.Deployment)
		if a.Revision > 0 {
			setAnnotation(next, AnnotationRevision, formatRevision(a.Revision))
		}
		if a.Status != nil {
			next.Status = a.Status
		}
		if err := c.Update(next); err != nil {
			return nil, err
		}
	}
	c.Then(func() { r.record(v.Deployment, a) })
	c.Expect(v.Deployment)
	return c, nil
}

// record tells of replicas that move, once they are planned.
func (r *concern) record(d *balsav1.Deployment, a Actions) {
	if a.Create != nil {
		r.Events.Record(d, object.EventNormal, "NewReplicaSet",
			fmt.Sprintf("made replicaset %q for revision %d with %s", a.Create.GetMetadata().GetName(), a.Revision,
				control.Counted(a.Create.GetSpec().GetReplicas(), "replica")))
	}
	for _, rs := range a.Update {
		r.Events.Record(d, object.EventNormal, "ScalingReplicaSet",
			fmt.Sprintf("replicaset %q to %s", rs.GetMetadata().GetName(), control.Counted(rs.GetSpec().GetReplicas(), "replica")))
	}
	before := object.FindCondition(d.GetStatus().GetConditions(), object.ConditionProgressing)
	c := object.FindCondition(a.Status.GetConditions(), object.ConditionProgressing)
	if c.GetReason() == ReasonDeadlineExceeded && before.GetReason() != ReasonDeadlineExceeded {
		r.Events.Record(d, object.EventWarning, ReasonDeadlineExceeded, c.GetMessage())
	}
}
