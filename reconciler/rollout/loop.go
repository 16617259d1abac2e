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

// patience is how long after its beginning a leader gives no rollout up. The time
// for which nobody led counts for the deadline: this is for what waited meanwhile.
const patience = 2 * time.Minute

type concern struct {
	*control.Kit
	contents *reader
	events   *store.Space
	began    time.Time
	// wanted is the ReplicaSet that a Deployment, by key, wants and has not yet, and
	// since when.
	wanted map[string]sighting
}

type sighting struct {
	name  string
	since time.Time
}

// maxSightings bounds them; beyond it all are forgotten, and begin anew.
const maxSightings = 16_384

// firstSeen is when a ReplicaSet was wanted first.
func (r *concern) firstSeen(key, name string) time.Time {
	if seen, ok := r.wanted[key]; ok && seen.name == name {
		return seen.since
	}
	if len(r.wanted) >= maxSightings {
		clear(r.wanted)
	}
	r.wanted[key] = sighting{name, r.Clock.Now()}
	return r.wanted[key].since
}

// New makes the concern. Its keys are those of Deployments. events is where
// agents' reports are read when a rollout fails; nil: nowhere.
func New(k *control.Kit, secrets Secrets, events *store.Space) control.Concern {
	r := &concern{Kit: k, contents: &reader{secrets: secrets, known: map[string]fingerprint{}}, events: events, began: k.Clock.Now(), wanted: map[string]sighting{}}
	return control.Concern{Name: "rollout", Batch: batch, List: list, Keys: keys, Step: r.step}
}

func list(v store.View) []string { return control.Keys(v, "Deployment") }

func (r *concern) step(ctx context.Context, keys []string) []loop.Again {
	return r.Each(ctx, keys, r.plan)
}

// unreadableAgain is when contents that could not be read are tried again: the
// seal key that was missing may have come.
const unreadableAgain = 30 * time.Second

func (r *concern) plan(v store.View, key string, now time.Time) (*control.Change, time.Duration, error) {
	d, ok := control.Get[*balsav1.Deployment](v, key)
	if !ok {
		return nil, 0, nil
	}
	view, err := r.viewOf(v, d)
	if err != nil {
		return nil, 0, err
	}
	a, err := Plan(view, now)
	if view.Unreadable != nil && a.Again == 0 {
		a.Again = unreadableAgain
	}
	if err != nil || a.Empty() {
		return nil, a.Again, err
	}
	c, err := r.change(view, a, now)
	return c, a.Again, err
}

// viewOf reads what a plan for a Deployment needs.
func (r *concern) viewOf(v store.View, d *balsav1.Deployment) (View, error) {
	namespace := d.GetMetadata().GetNamespace()
	selector, err := object.SelectorFrom(d.GetSpec().GetSelector())
	if err != nil {
		return View{}, fmt.Errorf("%s: spec.selector: %w", object.Describe(d), err)
	}
	kind, _ := object.KindByName("ReplicaSet")
	view := View{
		Deployment: d, Sets: owned(v, d), Closing: control.NamespaceClosing(v, namespace), Said: r.said,
		FirstSeen: func(name string) time.Time { return r.firstSeen(object.KeyOf(d), name) },
		Patience:  r.began.Add(min(patience, time.Duration(d.GetSpec().GetProgressDeadlineSeconds())*time.Second)),
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
	view.Contents, view.Unreadable = r.contents.contents(v, d, view.Sets)
	return view, nil
}

// said is the last warning about a pod: agents tell what a probe said there. The
// events' keys begin with the pod's name.
func (r *concern) said(pod *balsav1.Pod) string {
	if r.events == nil {
		return ""
	}
	kind, _ := object.KindByName("Event")
	var last *balsav1.Event
	for kv := range r.events.View().Prefix(object.Prefix(kind, pod.GetMetadata().GetNamespace()) + pod.GetMetadata().GetName() + ".") {
		e, ok := kv.Object.(*balsav1.Event)
		if !ok || e.GetType() != object.EventWarning || e.GetInvolvedObject().GetUid() != pod.GetMetadata().GetUid() {
			continue
		}
		if last == nil || e.GetLastTimestamp().AsTime().After(last.GetLastTimestamp().AsTime()) {
			last = e
		}
	}
	return last.GetMessage()
}

// change makes one transaction of the actions. It holds only while the
// Deployment, and every object that it writes, are as they were.
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
	for _, copied := range a.Copies {
		if err := r.hold(c, copied, a.Owner, now); err != nil {
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
	if len(a.Annotations) > 0 || a.Status != nil {
		next := object.Clone(v.Deployment)
		for key, value := range a.Annotations {
			setAnnotation(next, key, value)
		}
		if a.Status != nil {
			next.Status = a.Status
		}
		if err := c.Update(next); err != nil {
			return nil, err
		}
	}
	c.Then(func() {
		for _, n := range a.Notes {
			r.Events.Record(v.Deployment, n.Type, n.Reason, n.Message)
		}
	})
	c.Expect(v.Deployment)
	return c, nil
}

// hold makes a copy, or gives one another owner.
func (r *concern) hold(c *control.Change, copied Copy, owner *balsav1.ReplicaSet, now time.Time) error {
	if copied.Have != nil {
		next := object.Clone(copied.Have)
		meta := object.EnsureMetadata(next)
		meta.OwnerReferences = append(meta.OwnerReferences, ownerRef(owner))
		return c.Update(next)
	}
	m, err := r.contents.copied(copied.From, copied)
	if err != nil {
		return err
	}
	object.EnsureMetadata(m).OwnerReferences = []*balsav1.OwnerReference{ownerRef(owner)}
	if err := control.Stamp(m, r.Rand, now); err != nil {
		return err
	}
	return c.Create(m)
}
