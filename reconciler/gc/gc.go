// Package gc removes what nothing needs any more: objects whose owners are gone,
// pods whose deletion was asked for before any agent had them, and the oldest of
// too many finished pods. It refuses to guess: an object whose owner reference
// was taken away (propagation Orphan) has no owner and stays.
package gc

import (
	"context"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

const (
	// batch bounds the objects of one step.
	batch = 256
	// maxFinishedPods bounds the pods that have ended and are kept for their logs.
	maxFinishedPods = 1000
	// finishedKey is the key under which finished pods are counted.
	finishedKey = "finished pods"
)

// Verdict is what is to become of an object.
type Verdict int

// The verdicts.
const (
	Keep Verdict = iota
	// Remove: it goes, a pod as by the API.
	Remove
	// Cut: it stays, without the references to owners that are gone.
	Cut
)

// Judge decides what becomes of an object. exists tells whether an owner is there
// under its name and with its uid.
func Judge(m object.Message, exists func(*balsav1.OwnerReference) bool) Verdict {
	owners := m.GetMetadata().GetOwnerReferences()
	gone := 0
	for _, ref := range owners {
		if !exists(ref) {
			gone++
		}
	}
	switch {
	case len(owners) > 0 && gone == len(owners):
		return Remove
	case gone > 0:
		return Cut
	}
	if pod, ok := m.(*balsav1.Pod); ok && object.IsTerminating(pod) && pod.GetSpec().GetNodeName() == "" {
		return Remove
	}
	return Keep
}

// Surplus are the finished pods beyond the limit, those that were made first.
func Surplus(pods []*balsav1.Pod, limit int) []*balsav1.Pod {
	finished := slices.DeleteFunc(slices.Clone(pods), func(p *balsav1.Pod) bool { return !object.PodFinished(p) })
	slices.SortFunc(finished, func(a, b *balsav1.Pod) int {
		x, y := a.GetMetadata(), b.GetMetadata()
		if c := x.GetCreationTimestamp().AsTime().Compare(y.GetCreationTimestamp().AsTime()); c != 0 {
			return c
		}
		return strings.Compare(x.GetNamespace()+"/"+x.GetName(), y.GetNamespace()+"/"+y.GetName())
	})
	return finished[:max(0, len(finished)-limit)]
}

type concern struct{ *control.Kit }

// New makes the concern. Its keys are those of objects that may have to go, and
// one for finished pods.
func New(k *control.Kit) control.Concern {
	g := &concern{k}
	return control.Concern{Name: "gc", Batch: batch, List: list, Keys: keys, Step: g.step}
}

// list: every object that has an owner or whose deletion was asked for.
func list(v store.View) []string {
	keys := []string{finishedKey}
	for _, kind := range object.Kinds() {
		if kind.Space != object.SpaceObjects {
			continue
		}
		for kv := range v.Prefix(object.Prefix(kind, "")) {
			if m := control.Object(kv); m != nil && (len(m.GetMetadata().GetOwnerReferences()) > 0 || object.IsTerminating(m)) {
				keys = append(keys, kv.Key)
			}
		}
	}
	return keys
}

// keys: what an object that went had owned, an object whose owner is not there,
// a pod that is to go, and finished pods.
func keys(v store.View, ev store.Event) (out []string) {
	if m := control.Object(ev.KV); m != nil {
		if Judge(m, exister(v, m)) != Keep {
			out = append(out, ev.KV.Key)
		}
		if pod, ok := m.(*balsav1.Pod); ok && object.PodFinished(pod) {
			out = append(out, finishedKey)
		}
	}
	if ev.Prev == nil {
		return out
	}
	if was := control.Object(*ev.Prev); was != nil && gone(v, ev.KV.Key, was) {
		for kv := range v.ByIndex(object.IndexOwner, was.GetMetadata().GetUid()) {
			out = append(out, kv.Key)
		}
	}
	return out
}

// gone tells whether an object is no longer under its key, or is another there.
func gone(v store.View, key string, was object.Message) bool {
	kv, ok := v.Get(key)
	is := control.Object(kv)
	return !ok || is == nil || is.GetMetadata().GetUid() != was.GetMetadata().GetUid()
}

// exister looks owners up in the namespace of their dependant, or in the cluster.
// An owner of a kind that is not known counts as there: a later version may know
// it.
func exister(v store.View, m object.Message) func(*balsav1.OwnerReference) bool {
	return func(ref *balsav1.OwnerReference) bool {
		kind, ok := object.KindByName(ref.GetKind())
		if !ok {
			return true
		}
		kv, ok := v.Get(object.Key(kind, m.GetMetadata().GetNamespace(), ref.GetName()))
		owner := control.Object(kv)
		return ok && owner != nil && owner.GetMetadata().GetUid() == ref.GetUid()
	}
}

func (g *concern) step(ctx context.Context, keys []string) []loop.Again {
	return g.Each(ctx, keys, g.plan)
}

func (g *concern) plan(v store.View, key string, now time.Time) (*control.Change, time.Duration, error) {
	c := control.NewChange(key)
	if key == finishedKey {
		kind, _ := object.KindByName("Pod")
		pods := Surplus(control.Collect[*balsav1.Pod](v.Prefix(object.Prefix(kind, ""))), maxFinishedPods)
		for _, pod := range pods[:min(len(pods), control.MaxOps)] {
			c.Delete(pod)
		}
		return c, 0, nil
	}
	m, ok := control.Get[object.Message](v, key)
	if !ok {
		return c, 0, nil
	}
	switch exists := exister(v, m); Judge(m, exists) {
	case Remove:
		return c, 0, g.remove(c, m, now)
	case Cut:
		next := object.Clone(m)
		meta := object.EnsureMetadata(next)
		meta.OwnerReferences = slices.DeleteFunc(meta.OwnerReferences, func(ref *balsav1.OwnerReference) bool { return !exists(ref) })
		return c, 0, c.Update(next)
	}
	return c, 0, nil
}

func (g *concern) remove(c *control.Change, m object.Message, now time.Time) error {
	if pod, ok := m.(*balsav1.Pod); ok {
		return c.EndPod(pod, now)
	}
	c.Delete(m)
	return nil
}
