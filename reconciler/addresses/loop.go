package addresses

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// settle gathers what happens together when a node goes.
const settle = 5 * time.Millisecond

type concern struct{ *control.Kit }

// New makes the concern, which has one key.
func New(k *control.Kit) control.Concern {
	c := &concern{k}
	return control.Concern{
		Name: "addresses", Settle: settle, Keys: keys, Step: c.step,
		List: func(store.View) []string { return []string{""} },
	}
}

// keys: pools; Services that want an address, or did; nodes; and the endpoints of
// Services that only a node with one may be announced by.
func keys(v store.View, ev store.Event) []string {
	for _, m := range []any{ev.KV.Object, previous(ev)} {
		if concerns(v, m) {
			return []string{""}
		}
	}
	return nil
}

func previous(ev store.Event) any {
	if ev.Prev == nil {
		return nil
	}
	return ev.Prev.Object
}

func concerns(v store.View, m any) bool {
	switch m := m.(type) {
	case *balsav1.AddressPool, *balsav1.Node:
		return true
	case *balsav1.Service:
		return object.WantsPoolAddress(m)
	case *balsav1.EndpointSlice:
		kind, _ := object.KindByName("Service")
		svc, ok := control.Get[*balsav1.Service](v, object.Key(kind, m.GetMetadata().GetNamespace(), m.GetMetadata().GetLabels()[object.LabelServiceName]))
		return ok && object.WantsPoolAddress(svc) && svc.GetSpec().GetExternalTrafficPolicy() == object.TrafficLocal
	}
	return false
}

func (c *concern) step(ctx context.Context, _ []string) []loop.Again {
	v, err := c.View(ctx)
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	a, err := Plan(viewOf(v), c.Clock.Now())
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	// Addresses first: a pool that says who has one before it is had would lie.
	if err := c.commit(ctx, len(a.Assign), func(i int) (*control.Change, error) { return c.assign(a.Assign[i]) }); err != nil {
		return []loop.Again{{Err: err}}
	}
	if err := c.commit(ctx, len(a.Pools), func(i int) (*control.Change, error) {
		change := control.NewChange(object.KeyOf(a.Pools[i]))
		return change, change.Update(a.Pools[i])
	}); err != nil {
		return []loop.Again{{Err: err}}
	}
	return nil
}

func (c *concern) commit(ctx context.Context, count int, change func(int) (*control.Change, error)) error {
	var changes []*control.Change
	for i := range count {
		next, err := change(i)
		if err != nil {
			return err
		}
		changes = append(changes, next)
	}
	return errors.Join(c.CommitAll(ctx, changes)...)
}

func (c *concern) assign(a Assignment) (*control.Change, error) {
	change := control.NewChange(object.KeyOf(a.Service))
	if err := change.Update(a.Service); err != nil {
		return nil, err
	}
	if a.Pool != nil {
		change.Expect(a.Pool) // which may be about to lose the address
	}
	for _, ip := range a.Release {
		change.Release(object.ClaimLoadBalancer(ip))
	}
	for _, ip := range a.Claim {
		change.Claim(object.ClaimLoadBalancer(ip), a.Service)
	}
	change.Then(func() { c.tell(a) })
	return change, nil
}

func (c *concern) tell(a Assignment) {
	for _, ip := range a.Release {
		c.Events.Record(a.Service, object.EventWarning, "AddressReleased", fmt.Sprintf("%s is no longer an address of this Service", ip))
	}
	for _, ip := range a.Claim {
		c.Events.Record(a.Service, object.EventNormal, "AddressAssigned", fmt.Sprintf("%s, %s", ip, a.Message))
	}
	if a.ConditionChanged && len(a.Claim) == 0 && a.Reason != ReasonAssigned {
		c.Events.Record(a.Service, object.EventWarning, "NoAddress", a.Message)
	}
}

func viewOf(v store.View) View {
	return View{
		Pools:    all[*balsav1.AddressPool](v, "AddressPool"),
		Services: all[*balsav1.Service](v, "Service"),
		Nodes:    all[*balsav1.Node](v, "Node"),
		Claimed: func(ip netip.Addr) string {
			kv, _ := v.Get(object.ClaimLoadBalancer(ip))
			return string(kv.Value)
		},
		Serves: func(svc *balsav1.Service, node string) bool { return serves(v, svc, node) },
	}
}

func all[M object.Message](v store.View, kind string) []M {
	k, _ := object.KindByName(kind)
	return control.Collect[M](v.Prefix(object.Prefix(k, "")))
}

func serves(v store.View, svc *balsav1.Service, node string) bool {
	kind, _ := object.KindByName("EndpointSlice")
	entry := object.LabelIndex(kind, svc.GetMetadata().GetNamespace(), object.LabelServiceName, svc.GetMetadata().GetName())
	for _, s := range control.Collect[*balsav1.EndpointSlice](v.ByIndex(entry.Index, entry.Value)) {
		for _, e := range s.GetEndpoints() {
			if e.GetNodeName() == node && e.GetConditions().GetReady() {
				return true
			}
		}
	}
	return false
}
