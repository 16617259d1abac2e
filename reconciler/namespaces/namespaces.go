// Package namespaces empties namespaces whose deletion was asked for, and then
// removes them. What is left, and why, stands in the namespace's condition. It
// refuses to remove a namespace in which anything is left: the last transaction
// compares that there is nothing.
package namespaces

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// ConditionContent is True while something is left in a terminating namespace.
const ConditionContent = "NamespaceContentRemaining"

const (
	// settle lets pods end together before the condition is written anew.
	settle = 50 * time.Millisecond
	// maxChanges bounds the transactions of one plan; the next goes on.
	maxChanges = 32
)

// Actions is the outcome of a plan.
type Actions struct {
	// Remove holds what goes; pods go as by the API.
	Remove []object.Message
	// Left counts the pods that still go: their nodes have not ended them yet.
	Left int
	// Done: nothing is left, the namespace itself may go.
	Done bool
}

// String prints the actions, one a line.
func (a Actions) String() string {
	var b strings.Builder
	for _, m := range a.Remove {
		fmt.Fprintf(&b, "remove %s\n", object.KeyOf(m))
	}
	if a.Done {
		b.WriteString("done\n")
	} else if a.Left > 0 {
		fmt.Fprintf(&b, "left: %s\n", a.leftover())
	}
	return b.String()
}

func (a Actions) leftover() string {
	if a.Left == 1 {
		return "1 pod that its node has not ended yet"
	}
	return fmt.Sprintf("%d pods that their nodes have not ended yet", a.Left)
}

// Plan decides about the content of a namespace that is about to go. Owners go
// before what they own, in the reverse of the order in which they are made, so
// that nothing is made again.
func Plan(content []object.Message) (a Actions) {
	kinds := object.Kinds()
	rank := func(m object.Message) int {
		return slices.IndexFunc(kinds, func(k object.Kind) bool { return k.Name == object.KindOf(m).Name })
	}
	sorted := slices.SortedFunc(slices.Values(content), func(a, b object.Message) int {
		if x, y := rank(a), rank(b); x != y {
			return x - y
		}
		return strings.Compare(object.KeyOf(a), object.KeyOf(b))
	})
	pods := slices.ContainsFunc(content, func(m object.Message) bool { _, ok := m.(*balsav1.Pod); return ok })
	for _, m := range sorted {
		if pods && outlivesPods(m) {
			continue
		}
		pod, isPod := m.(*balsav1.Pod)
		if isPod && object.IsTerminating(pod) && pod.GetSpec().GetNodeName() != "" && !object.PodFinished(pod) {
			a.Left++
			continue
		}
		a.Remove = append(a.Remove, m)
	}
	a.Done = len(content) == 0
	return a
}

// outlivesPods tells what goes after the namespace's pods: a volume may be mounted
// still, and a policy guards pods up to their end.
func outlivesPods(m object.Message) bool {
	switch m.(type) {
	case *balsav1.PersistentVolumeClaim, *balsav1.NetworkPolicy, *balsav1.NetworkPolicySlice:
		return true
	}
	return false
}

type concern struct {
	*control.Kit
	events *control.Writer
}

// New makes the concern. Its keys are those of Namespaces. events writes into the
// space of events.
func New(k *control.Kit, events *control.Writer) control.Concern {
	n := &concern{k, events}
	return control.Concern{Name: "namespaces", Settle: settle, List: list, Keys: keys, Step: n.step}
}

func list(v store.View) (out []string) {
	for _, key := range control.Keys(v, "Namespace") {
		if ns, ok := control.Get[*balsav1.Namespace](v, key); ok && object.IsTerminating(ns) {
			out = append(out, key)
		}
	}
	return out
}

// keys: a namespace that is about to go, also when something in it changes.
func keys(v store.View, ev store.Event) []string {
	kind, namespace, name, ok := object.ParseKey(ev.KV.Key)
	if kind.Name != "Namespace" {
		name = namespace
	}
	if !ok || name == "" || !control.NamespaceClosing(v, name) {
		return nil
	}
	return []string{"namespaces/" + name}
}

func (n *concern) step(ctx context.Context, keys []string) (again []loop.Again) {
	for _, key := range keys {
		v, err := n.View(ctx)
		if err == nil {
			err = n.empty(ctx, v, key)
		}
		switch {
		case errors.Is(err, errMore):
			again = append(again, loop.Again{Key: key})
		case err != nil:
			again = append(again, loop.Again{Key: key, Err: err})
		}
	}
	return again
}

var errMore = errors.New("there is more to remove")

func (n *concern) empty(ctx context.Context, v store.View, key string) error {
	ns, ok := control.Get[*balsav1.Namespace](v, key)
	if !ok || !object.IsTerminating(ns) {
		return nil
	}
	name := ns.GetMetadata().GetName()
	a := Plan(control.Collect[object.Message](v.ByIndex(object.IndexNamespace, name)))
	if a.Done {
		return n.finish(ctx, ns)
	}
	changes, more, err := n.removals(a)
	if err != nil {
		return err
	}
	if err := errors.Join(n.CommitAll(ctx, changes)...); err != nil {
		return err
	}
	if more || len(a.Remove) > 0 {
		return errMore
	}
	return n.report(ctx, ns, a)
}

// removals puts as many objects into a transaction as fit: a Service also gives
// back what it has claimed.
func (n *concern) removals(a Actions) (changes []*control.Change, more bool, err error) {
	now := n.Clock.Now()
	c := control.NewChange("empty a namespace")
	for _, m := range a.Remove {
		if !c.Empty() && c.Room() < control.DeleteOps(m) {
			if changes = append(changes, c); len(changes) == maxChanges {
				return changes, true, nil
			}
			c = control.NewChange("empty a namespace")
		}
		if err := n.remove(c, m, now); err != nil {
			return nil, false, err
		}
	}
	if !c.Empty() {
		changes = append(changes, c)
	}
	return changes, false, nil
}

func (n *concern) remove(c *control.Change, m object.Message, now time.Time) error {
	if pod, ok := m.(*balsav1.Pod); ok {
		return c.EndPod(pod, now)
	}
	c.Delete(m)
	return nil
}

// finish removes the events of the namespace, and the namespace, if there is
// nothing in it.
func (n *concern) finish(ctx context.Context, ns *balsav1.Namespace) error {
	name := ns.GetMetadata().GetName()
	c := control.NewChange(object.KeyOf(ns))
	for _, kind := range object.Kinds() {
		if kind.Namespaced && kind.Space == object.SpaceObjects {
			c.ExpectAbsent(object.Prefix(kind, name))
		}
	}
	c.Delete(ns)
	if err := n.Commit(ctx, c); err != nil {
		return err
	}
	kind, _ := object.KindByName("Event")
	events := control.NewChange("events of namespace " + name)
	events.DeletePrefix(object.Prefix(kind, name))
	return n.events.Commit(ctx, events)
}

// report writes what is left, and that the namespace is Terminating.
func (n *concern) report(ctx context.Context, ns *balsav1.Namespace, a Actions) error {
	next := object.Clone(ns)
	if next.Status == nil {
		next.Status = &balsav1.NamespaceStatus{}
	}
	next.Status.Phase = object.NamespaceTerminating
	next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: ConditionContent, Status: object.ConditionTrue, Reason: "SomeResourcesRemain", Message: "waits for " + a.leftover(),
	}, n.Clock.Now())
	if object.Same(next, ns) {
		return nil
	}
	c := control.NewChange(object.KeyOf(ns))
	if err := c.Update(next); err != nil {
		return err
	}
	return n.Commit(ctx, c)
}
