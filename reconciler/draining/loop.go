package draining

import (
	"context"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/nodes"
	"github.com/balsa-run/balsa/store"
)

const (
	// batch bounds the pods that one step takes up.
	batch = 512
	// settle gathers acknowledgements that arrive together.
	settle = time.Millisecond
)

// Leases is what the leader has heard from the nodes; *nodes.Leases is it.
type Leases interface {
	Standing(node *balsav1.Node) (applied int64, leased bool)
	Acknowledged() <-chan struct{}
}

// Told, if not nil, is called for each pod that was said to be drained, for the
// metrics: with the reason and how long that took. Calls may overlap.
type Told func(reason string, took time.Duration)

type concern struct {
	*control.Kit
	leases Leases
	told   Told
	// waiting are the pods that end, by key, in this term's memory: another leader
	// asks every node again.
	waiting map[string]*waiting
}

type waiting struct {
	uid   string
	since time.Time
	out   int64
}

// New makes the concern. Its keys are those of pods that end, and "" for all of
// them that are known.
func New(k *control.Kit, leases Leases, told Told) control.Concern {
	if told == nil {
		told = func(string, time.Duration) {}
	}
	d := &concern{Kit: k, leases: leases, told: told, waiting: map[string]*waiting{}}
	return control.Concern{Name: "draining", Settle: settle, Batch: batch, List: list, Keys: keys, Step: d.step, Woken: leases.Acknowledged()}
}

func list(v store.View) (out []string) {
	kind, _ := object.KindByName("Pod")
	for kv := range v.Prefix(object.Prefix(kind, "")) {
		if pod, ok := kv.Object.(*balsav1.Pod); ok && Ends(pod) {
			out = append(out, kv.Key)
		}
	}
	return out
}

// keys: a pod that ends; all that do, when endpoints, Services or nodes change.
func keys(_ store.View, ev store.Event) []string {
	kind, _, _, ok := object.ParseKey(ev.KV.Key)
	if !ok {
		return nil
	}
	switch kind.Name {
	case "Pod":
		if pod, ok := ev.KV.Object.(*balsav1.Pod); ok && Ends(pod) {
			return []string{ev.KV.Key}
		}
	case "EndpointSlice", "Service", "Node", "Namespace":
		return []string{""}
	}
	return nil
}

func (d *concern) step(ctx context.Context, keys []string) (again []loop.Again) {
	v, err := d.View(ctx)
	if err != nil {
		return loop.Failed(keys, err)
	}
	now := d.Clock.Now()
	for _, key := range keys {
		d.takeUp(v, key, now)
	}
	if len(d.waiting) == 0 {
		return nil
	}
	view := d.viewOf(v)
	a := Plan(view, now)
	for key, w := range d.waiting {
		if out, found := a.Out[w.uid]; found {
			d.waiting[key].out = out
		}
	}
	changes := make([]*control.Change, len(a.Drained))
	for i, decision := range a.Drained {
		if changes[i], err = d.change(decision, now); err != nil {
			return append(again, loop.Again{Key: object.KeyOf(decision.Pod), Err: err})
		}
	}
	for i, err := range d.CommitAll(ctx, changes) {
		if err != nil {
			again = append(again, loop.Again{Key: object.KeyOf(a.Drained[i].Pod), Err: err})
		}
	}
	switch {
	case len(again) == len(changes) && len(changes) > 0: // at once it would go the same way
	case a.Again > 0:
		again = append(again, loop.Again{Key: "", After: a.Again})
	}
	return again
}

// takeUp begins to wait for a pod.
func (d *concern) takeUp(v store.View, key string, now time.Time) {
	pod, ok := control.Get[*balsav1.Pod](v, key)
	if !ok || !Ends(pod) {
		return
	}
	if w := d.waiting[key]; w == nil || w.uid != pod.GetMetadata().GetUid() {
		d.waiting[key] = &waiting{uid: pod.GetMetadata().GetUid(), since: now}
	}
}

// viewOf reads what a plan needs, and forgets the pods that are drained or gone.
func (d *concern) viewOf(v store.View) View {
	view := View{Namespaces: map[string]Namespace{}}
	for key, w := range d.waiting {
		pod, ok := control.Get[*balsav1.Pod](v, key)
		if !ok || pod.GetMetadata().GetUid() != w.uid || !Ends(pod) {
			delete(d.waiting, key)
			continue
		}
		own := nodes.Get(v, pod.GetSpec().GetNodeName())
		view.Pods = append(view.Pods, Pod{Pod: pod, Since: w.since, Out: w.out, Unreachable: own == nil || nodes.HostUnreachable(own)})
		namespace := pod.GetMetadata().GetNamespace()
		if _, have := view.Namespaces[namespace]; !have {
			view.Namespaces[namespace] = namespaceOf(v, namespace)
		}
	}
	kind, _ := object.KindByName("Node")
	for _, node := range control.Collect[*balsav1.Node](v.Prefix(object.Prefix(kind, ""))) {
		view.Nodes = append(view.Nodes, d.nodeOf(node))
	}
	return view
}

func namespaceOf(v store.View, name string) Namespace {
	services, _ := object.KindByName("Service")
	slices, _ := object.KindByName("EndpointSlice")
	return Namespace{
		Services: control.Collect[*balsav1.Service](v.Prefix(object.Prefix(services, name))),
		Slices:   control.Collect[*balsav1.EndpointSlice](v.Prefix(object.Prefix(slices, name))),
		Closing:  control.NamespaceClosing(v, name),
	}
}

func (d *concern) nodeOf(node *balsav1.Node) Node {
	applied, leased := d.leases.Standing(node)
	n := Node{Name: node.GetMetadata().GetName(), Applied: applied}
	switch {
	case nodes.HostUnreachable(node):
		n.Gone = "its host is unreachable"
	case !leased:
		n.Gone = "its lease has lapsed"
	}
	return n
}

// change says that a pod is drained. It holds only for the pod as it was seen.
func (d *concern) change(decision Decision, now time.Time) (*control.Change, error) {
	next := object.Clone(decision.Pod)
	if next.Status == nil {
		next.Status = &balsav1.PodStatus{}
	}
	next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: object.ConditionDrained, Status: object.ConditionTrue, Reason: decision.Reason, Message: decision.Message,
	}, now)
	c := control.NewChange(object.KeyOf(next))
	c.Then(func() {
		d.told(decision.Reason, decision.Took)
		if decision.Reason == ReasonTimedOut {
			d.Events.Record(decision.Pod, object.EventWarning, "DrainTimedOut", decision.Message)
		}
	})
	return c, c.Update(next)
}
