package policies

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

const (
	// batch bounds the policies of one step.
	batch = 64
	// settle gathers the pods that get their addresses together: a slice is written
	// as a whole.
	settle = 10 * time.Millisecond
)

type concern struct{ *control.Kit }

// New makes the concern. Its keys are those of NetworkPolicies.
func New(k *control.Kit) control.Concern {
	c := &concern{k}
	return control.Concern{Name: "policies", Settle: settle, Batch: batch, List: list, Keys: keys, Step: c.step}
}

func list(v store.View) []string { return control.Keys(v, "NetworkPolicy") }

// keys: the policy itself, that of a slice, and those with a peer that a pod or a
// namespace is or was of.
func keys(v store.View, ev store.Event) []string {
	was, now := before(ev), after(ev)
	switch m := either(now, was).(type) {
	case *balsav1.NetworkPolicy:
		return []string{ev.KV.Key}
	case *balsav1.NetworkPolicySlice:
		return []string{policyKey(m.GetMetadata())}
	case *balsav1.Pod:
		return keysOfPod(v, podOf(was), podOf(now))
	case *balsav1.Namespace:
		if was != nil && now != nil && maps.Equal(was.GetMetadata().GetLabels(), now.GetMetadata().GetLabels()) {
			return nil
		}
		return having(v, func(_ *balsav1.NetworkPolicy, peer *balsav1.NetworkPolicyPeer) bool {
			return peer.GetNamespaceSelector() != nil
		})
	}
	return nil
}

func before(ev store.Event) object.Message {
	if ev.Prev == nil {
		return nil
	}
	m, _ := ev.Prev.Object.(object.Message)
	return m
}

func after(ev store.Event) object.Message {
	m, _ := ev.KV.Object.(object.Message)
	return m
}

// either is what an event is about, also when it is gone.
func either(now, was object.Message) object.Message {
	if now != nil {
		return now
	}
	return was
}

func podOf(m object.Message) *balsav1.Pod {
	pod, _ := m.(*balsav1.Pod)
	return pod
}

func policyKey(meta *balsav1.ObjectMeta) string {
	kind, _ := object.KindByName("NetworkPolicy")
	return object.Key(kind, meta.GetNamespace(), meta.GetName())
}

// keysOfPod passes over the many changes of a pod's status that no policy sees.
func keysOfPod(v store.View, was, now *balsav1.Pod) []string {
	if was != nil && now != nil && HasAddress(was) == HasAddress(now) && was.GetStatus().GetPodIp() == now.GetStatus().GetPodIp() &&
		maps.Equal(was.GetMetadata().GetLabels(), now.GetMetadata().GetLabels()) {
		return nil
	}
	return having(v, func(policy *balsav1.NetworkPolicy, peer *balsav1.NetworkPolicyPeer) bool {
		labels, err := selector(peer.GetPodSelector())
		return err == nil && (mayBe(policy, peer, labels, was) || mayBe(policy, peer, labels, now))
	})
}

// mayBe tells whether a peer could stand for a pod, without a look at namespaces.
func mayBe(policy *balsav1.NetworkPolicy, peer *balsav1.NetworkPolicyPeer, labels object.Selector, pod *balsav1.Pod) bool {
	return pod != nil && HasAddress(pod) && labels.Matches(pod.GetMetadata().GetLabels()) &&
		(peer.GetNamespaceSelector() != nil || policy.GetMetadata().GetNamespace() == pod.GetMetadata().GetNamespace())
}

// having are the policies with a peer of selectors that wanted says yes to.
func having(v store.View, wanted func(*balsav1.NetworkPolicy, *balsav1.NetworkPolicyPeer) bool) (out []string) {
	kind, _ := object.KindByName("NetworkPolicy")
	for kv := range v.Prefix(object.Prefix(kind, "")) {
		policy, ok := kv.Object.(*balsav1.NetworkPolicy)
		if ok && slices.ContainsFunc(peersOf(policy), func(p *balsav1.NetworkPolicyPeer) bool { return p.GetIpBlock() == nil && wanted(policy, p) }) {
			out = append(out, kv.Key)
		}
	}
	return out
}

func peersOf(policy *balsav1.NetworkPolicy) (out []*balsav1.NetworkPolicyPeer) {
	for _, rule := range policy.GetSpec().GetIngress() {
		out = append(out, rule.GetFrom()...)
	}
	for _, rule := range policy.GetSpec().GetEgress() {
		out = append(out, rule.GetTo()...)
	}
	return out
}

func (c *concern) step(ctx context.Context, keys []string) []loop.Again {
	return c.Each(ctx, keys, func(v store.View, key string, _ time.Time) (*control.Change, time.Duration, error) {
		policy, ok := control.Get[*balsav1.NetworkPolicy](v, key)
		if !ok || object.IsTerminating(policy) || control.NamespaceClosing(v, policy.GetMetadata().GetNamespace()) {
			return nil, 0, nil // the slice goes by its owner reference
		}
		change, err := c.plan(v, policy)
		return change, 0, err
	})
}

func (c *concern) plan(v store.View, policy *balsav1.NetworkPolicy) (*control.Change, error) {
	change := control.NewChange(object.KeyOf(policy))
	a, err := Plan(viewOf(v, policy))
	if err != nil || a.Empty() {
		return change, err
	}
	change.Expect(policy)
	if a.Create != nil {
		if err := control.Stamp(a.Create, c.Rand, c.Clock.Now()); err != nil {
			return nil, err
		}
		err = change.Create(a.Create)
	} else {
		err = change.Update(a.Update)
	}
	if err != nil {
		return nil, err
	}
	if a.LeftOut > 0 {
		message := fmt.Sprintf("%d pods are left out, and their connections refused: a policy's selectors stand for at most %d pods; use an ipBlock, or several policies", a.LeftOut, MaxPods)
		change.Then(func() { c.Events.Record(policy, object.EventWarning, "PeersLeftOut", message) })
	}
	return change, nil
}

func viewOf(v store.View, policy *balsav1.NetworkPolicy) View {
	slicesKind, _ := object.KindByName("NetworkPolicySlice")
	namespaces, _ := object.KindByName("Namespace")
	pods, _ := object.KindByName("Pod")
	view := View{
		Policy:     policy,
		Namespaces: control.Collect[*balsav1.Namespace](v.Prefix(object.Prefix(namespaces, ""))),
		Pods: func(namespace string) []*balsav1.Pod {
			return control.Collect[*balsav1.Pod](v.Prefix(object.Prefix(pods, namespace)))
		},
	}
	view.Slice, _ = control.Get[*balsav1.NetworkPolicySlice](v, object.Key(slicesKind, policy.GetMetadata().GetNamespace(), policy.GetMetadata().GetName()))
	return view
}
