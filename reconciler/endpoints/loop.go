package endpoints

import (
	"context"
	"fmt"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/nodes"
	"github.com/balsa-run/balsa/store"
)

const (
	// batch bounds the Services of one step.
	batch = 128
	// settle gathers the pods that become ready together. It is short: a pod that
	// stops must leave its Services at once.
	settle = 2 * time.Millisecond
)

type concern struct{ *control.Kit }

// New makes the concern. Its keys are those of Services.
func New(k *control.Kit) control.Concern {
	e := &concern{k}
	return control.Concern{Name: "endpoints", Settle: settle, Batch: batch, List: list, Keys: keys, Step: e.step}
}

func list(v store.View) []string { return control.Keys(v, "Service") }

// keys: the Service itself, that of a slice, those that match a pod as it is or
// as it was, and for a node whose mark changed those of its pods.
func keys(v store.View, ev store.Event) (out []string) {
	kvs := []store.KV{ev.KV}
	if ev.Prev != nil {
		kvs = append(kvs, *ev.Prev)
	}
	for _, kv := range kvs {
		switch m := kv.Object.(type) {
		case *balsav1.Service:
			out = append(out, kv.Key)
		case *balsav1.EndpointSlice:
			out = append(out, serviceKey(m.GetMetadata().GetNamespace(), m.GetMetadata().GetLabels()[object.LabelServiceName]))
		case *balsav1.Pod:
			out = append(out, servicesOf(v, m)...)
		}
	}
	if node, changed := markChanged(ev); changed {
		for _, pod := range control.Collect[*balsav1.Pod](v.ByIndex(object.IndexNode, node)) {
			out = append(out, servicesOf(v, pod)...)
		}
	}
	return out
}

// markChanged tells whether an event marks or unmarks a node's host.
func markChanged(ev store.Event) (node string, changed bool) {
	kind, _, name, ok := object.ParseKey(ev.KV.Key)
	if !ok || kind.Name != "Node" {
		return "", false
	}
	now, _ := ev.KV.Object.(*balsav1.Node)
	if ev.Prev == nil {
		return name, true
	}
	before, _ := ev.Prev.Object.(*balsav1.Node)
	return name, nodes.HostUnreachable(now) != nodes.HostUnreachable(before)
}

func serviceKey(namespace, name string) string {
	kind, _ := object.KindByName("Service")
	return object.Key(kind, namespace, name)
}

func servicesOf(v store.View, pod *balsav1.Pod) (out []string) {
	kind, _ := object.KindByName("Service")
	for kv := range v.Prefix(object.Prefix(kind, pod.GetMetadata().GetNamespace())) {
		svc, ok := kv.Object.(*balsav1.Service)
		if ok && selects(svc, pod) {
			out = append(out, kv.Key)
		}
	}
	return out
}

// selects is object.ServiceSelector without making one: it is asked for every
// Service of the namespace at every event of a pod.
func selects(svc *balsav1.Service, pod *balsav1.Pod) bool {
	labels := pod.GetMetadata().GetLabels()
	for k, want := range svc.GetSpec().GetSelector() {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return len(svc.GetSpec().GetSelector()) > 0
}

func (e *concern) step(ctx context.Context, keys []string) []loop.Again {
	return e.Each(ctx, keys, func(v store.View, key string, _ time.Time) (*control.Change, time.Duration, error) {
		svc, ok := control.Get[*balsav1.Service](v, key)
		if !ok || object.IsTerminating(svc) || control.NamespaceClosing(v, svc.GetMetadata().GetNamespace()) {
			return nil, 0, nil // what is left of it goes by its owner reference
		}
		c, err := e.plan(v, svc)
		return c, 0, err
	})
}

func (e *concern) plan(v store.View, svc *balsav1.Service) (*control.Change, error) {
	a := Plan(viewOf(v, svc))
	c := control.NewChange(object.KeyOf(svc))
	if a.Empty() {
		return c, nil
	}
	c.Expect(svc)
	for _, s := range a.Create {
		if err := control.Stamp(s, e.Rand, e.Clock.Now()); err != nil {
			return nil, err
		}
		if err := c.Create(s); err != nil {
			return nil, err
		}
	}
	for _, s := range a.Update {
		if err := c.Update(s); err != nil {
			return nil, err
		}
	}
	for _, s := range a.Delete {
		c.Delete(s)
	}
	if a.LeftOut > 0 {
		message := fmt.Sprintf("%d endpoints are left out: a service has at most %d endpoints and %d sets of port numbers", a.LeftOut, MaxEndpoints, MaxPortSets)
		c.Then(func() { e.Events.Record(svc, object.EventWarning, "EndpointsLeftOut", message) })
	}
	return c, nil
}

func viewOf(v store.View, svc *balsav1.Service) View {
	namespace, name := svc.GetMetadata().GetNamespace(), svc.GetMetadata().GetName()
	kind, _ := object.KindByName("EndpointSlice")
	byLabel := object.LabelIndex(kind, namespace, object.LabelServiceName, name)
	view := View{
		Service:     svc,
		Pods:        control.Matching[*balsav1.Pod](v, "Pod", namespace, object.ServiceSelector(svc)),
		Slices:      control.Collect[*balsav1.EndpointSlice](v.ByIndex(byLabel.Index, byLabel.Value)),
		Unreachable: func(node string) bool { return nodes.HostUnreachable(nodes.Get(v, node)) },
	}
	if s, ok := control.Get[*balsav1.EndpointSlice](v, object.Key(kind, namespace, name)); ok && s.GetMetadata().GetLabels()[object.LabelServiceName] != name {
		view.Slices = append(view.Slices, s)
	}
	return view
}
