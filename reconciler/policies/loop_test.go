package policies

import (
	"context"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

// story changes objects one by one and steps only the keys that the concern asks
// for after each.
type story struct {
	w *rt.World
	c control.Concern
}

func (s story) change(t rt.TB, m object.Message, gone bool) {
	t.Helper()
	key := object.KeyOf(m)
	ev := store.Event{}
	if kv, ok := s.w.View().Get(key); ok {
		ev.Prev = &kv
	}
	if gone {
		ev.Type, ev.KV.Key = store.EventDelete, key
		old, ok := ev.Prev.Object.(object.Message)
		if !ok {
			t.Fatalf("%s is no object", key)
		}
		s.w.Delete(old)
	} else {
		s.put(m, ev.Prev != nil)
		ev.KV, _ = s.w.View().Get(key)
	}
	keys := s.c.Keys(s.w.View(), ev)
	if len(keys) == 0 {
		return
	}
	if again := s.c.Step(context.Background(), keys); len(again) > 0 {
		t.Fatalf("%s: %v", key, again[0].Err)
	}
}

// put writes a pod's status as well, which a user could not.
func (s story) put(m object.Message, there bool) {
	next, ok := m.(*balsav1.Pod)
	if !ok || !there {
		s.w.Put(m)
		return
	}
	rt.Edit(s.w, object.KeyOf(m), func(p *balsav1.Pod) {
		p.Metadata.Labels, p.Status = next.GetMetadata().GetLabels(), next.GetStatus()
	})
}

// TestKeysMissNothing: after every change each policy's slice is what a plan from
// scratch would make it.
func TestKeysMissNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rt.New(t)
		s := story{w: w, c: New(w.Kit())}
		label := rapid.SampledFrom([]string{"app=a", "app=b", "tier=x"})
		space := rapid.SampledFrom([]string{"shop", "lab"})
		for range rapid.IntRange(5, 25).Draw(t, "changes") {
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0, 1:
				team := rapid.SampledFrom([]string{"shop", "lab", "none"}).Draw(t, "team")
				s.change(t, &balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: space.Draw(t, "namespace"), Labels: map[string]string{"team": team}}}, false)
			case 2, 3:
				p := policy([]*balsav1.NetworkPolicyPeer{{PodSelector: labelled(label.Draw(t, "from"))}},
					&balsav1.NetworkPolicyEgressRule{To: []*balsav1.NetworkPolicyPeer{{NamespaceSelector: labelled("team=" + space.Draw(t, "to"))}}})
				p.Metadata.Namespace = space.Draw(t, "policy in")
				s.remove(t, p, rapid.IntRange(0, 3).Draw(t, "gone") == 0)
			default:
				p := pod(space.Draw(t, "pod in"), fmt.Sprint("p", rapid.IntRange(0, 3).Draw(t, "pod")), "", label.Draw(t, "label"))
				if rapid.Bool().Draw(t, "has an address") {
					p.Status.PodIp = fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 9).Draw(t, "ip"))
				}
				if rapid.IntRange(0, 4).Draw(t, "over") == 0 {
					p.Status.Phase = object.PodFailed
				}
				s.remove(t, p, rapid.IntRange(0, 3).Draw(t, "gone") == 0)
			}
			s.check(t)
		}
	})
}

// remove changes m, or removes it if it is there.
func (s story) remove(t rt.TB, m object.Message, gone bool) {
	t.Helper()
	_, there := s.w.View().Get(object.KeyOf(m))
	s.change(t, m, gone && there)
}

func (s story) check(t rt.TB) {
	t.Helper()
	v := s.w.View()
	for _, key := range s.c.List(v) {
		p, _ := control.Get[*balsav1.NetworkPolicy](v, key)
		a, err := Plan(viewOf(v, p))
		if err != nil || !a.Empty() {
			t.Fatalf("%s is not up to date (%v):\n%s", key, err, a.String())
		}
	}
}
