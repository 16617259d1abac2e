package taints

import (
	"context"
	"errors"
	"slices"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// settle gathers the pods that are placed together.
const settle = 10 * time.Millisecond

type concern struct{ *control.Kit }

// New makes the concern, which has one key.
func New(k *control.Kit) control.Concern {
	c := &concern{k}
	return control.Concern{
		Name: "taints", Settle: settle, Keys: keys, Step: c.step,
		List: func(store.View) []string { return []string{""} },
	}
}

// keys: any change of a node, and pods that come to a node that evicts.
func keys(v store.View, ev store.Event) []string {
	kind, _, _, _ := object.ParseKey(ev.KV.Key)
	if kind.Name == "Node" {
		return []string{""}
	}
	pod, ok := ev.KV.Object.(*balsav1.Pod)
	if !ok || pod.GetSpec().GetNodeName() == "" {
		return nil
	}
	nodes, _ := object.KindByName("Node")
	if node, ok := control.Get[*balsav1.Node](v, object.Key(nodes, "", pod.GetSpec().GetNodeName())); ok && evicts(node) {
		return []string{""}
	}
	return nil
}

func evicts(n *balsav1.Node) bool {
	return slices.ContainsFunc(n.GetSpec().GetTaints(), func(t *balsav1.Taint) bool { return t.GetEffect() == object.TaintNoExecute })
}

func (c *concern) step(ctx context.Context, _ []string) []loop.Again {
	v, err := c.View(ctx)
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	now := c.Clock.Now()
	a := Plan(viewOf(v), now)
	changes, err := c.changes(a, now)
	if err == nil {
		err = errors.Join(c.CommitAll(ctx, changes)...)
	}
	switch {
	case err != nil:
		return []loop.Again{{Err: err}}
	case a.Again > 0:
		return []loop.Again{{After: a.Again}}
	}
	return nil
}

func viewOf(v store.View) (view View) {
	kind, _ := object.KindByName("Node")
	view.Nodes = control.Collect[*balsav1.Node](v.Prefix(object.Prefix(kind, "")))
	for _, n := range view.Nodes {
		if evicts(n) {
			view.Pods = append(view.Pods, control.Collect[*balsav1.Pod](v.ByIndex(object.IndexNode, n.GetMetadata().GetName()))...)
		}
	}
	return view
}

func (c *concern) changes(a Actions, now time.Time) (changes []*control.Change, err error) {
	for _, node := range a.Nodes {
		change := control.NewChange(object.KeyOf(node))
		if err := change.Update(node); err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	for _, e := range a.Evict {
		change := control.NewChange("evict " + object.KeyOf(e.Pod))
		if err := change.EndPod(e.Pod, now); err != nil {
			return nil, err
		}
		change.Then(func() { c.Events.Record(e.Pod, object.EventWarning, ReasonEvicted, e.Why) })
		changes = append(changes, change)
	}
	return changes, nil
}
