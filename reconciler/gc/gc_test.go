package gc

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

func owned(name string, owners ...object.Message) *balsav1.ConfigMap {
	m := &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}}
	for _, o := range owners {
		m.Metadata.OwnerReferences = append(m.Metadata.OwnerReferences, object.NewControllerRef(o))
	}
	return m
}

// TestOnlyWhatHasNoOwnerLeftGoes builds random trees of owners, deletes some, and
// compares what is left with the definition: an object goes when it had owners
// and none of them is left.
func TestOnlyWhatHasNoOwnerLeftGoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rt.New(t)
		n := rapid.IntRange(1, 12).Draw(t, "objects")
		parents := make([][]int, n)
		objects := make([]object.Message, n)
		for i := range n {
			for j := range i {
				if rapid.IntRange(0, 3).Draw(t, "owns") == 0 {
					parents[i] = append(parents[i], j)
				}
			}
			var owners []object.Message
			for _, j := range parents[i] {
				owners = append(owners, objects[j])
			}
			w.Put(owned(fmt.Sprintf("m%d", i), owners...))
			objects[i] = rt.Get[*balsav1.ConfigMap](w, fmt.Sprintf("configmaps/default/m%d", i))
		}
		want := make([]bool, n) // is to stay
		for i := range n {
			if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
				w.Delete(objects[i])
				continue
			}
			want[i] = len(parents[i]) == 0
			for _, j := range parents[i] {
				want[i] = want[i] || want[j]
			}
		}
		w.Settle(New(w.Kit()))
		for i := range n {
			m, there := control.Get[*balsav1.ConfigMap](w.View(), object.KeyOf(objects[i]))
			if there != want[i] {
				t.Fatalf("m%d with owners %v: there %v, want %v", i, parents[i], there, want[i])
			}
			for _, ref := range m.GetMetadata().GetOwnerReferences() {
				if _, ok := w.View().Get("configmaps/default/" + ref.GetName()); !ok {
					t.Fatalf("m%d refers to %s, which is gone", i, ref.GetName())
				}
			}
		}
	})
}

func TestAnOwnerOfTheSameNameIsAnother(t *testing.T) {
	w := rt.New(t)
	w.Put(owned("owner"))
	w.Put(owned("child", rt.Get[*balsav1.ConfigMap](w, "configmaps/default/owner")))
	w.Delete(rt.Get[*balsav1.ConfigMap](w, "configmaps/default/owner"))
	w.Put(owned("owner"))
	w.Settle(New(w.Kit()))
	if _, there := w.View().Get("configmaps/default/child"); there {
		t.Error("the child of a deleted owner stays, because another has its name")
	}
}

func TestOrphansStay(t *testing.T) {
	w := rt.New(t)
	w.Put(owned("owner"))
	w.Put(owned("child", rt.Get[*balsav1.ConfigMap](w, "configmaps/default/owner")))
	// What the API does for propagation Orphan.
	rt.Edit(w, "configmaps/default/child", func(m *balsav1.ConfigMap) { m.Metadata.OwnerReferences = nil })
	w.Delete(rt.Get[*balsav1.ConfigMap](w, "configmaps/default/owner"))
	w.Settle(New(w.Kit()))
	if _, there := w.View().Get("configmaps/default/child"); !there {
		t.Error("an orphan was collected")
	}
}

func TestPodsAreEndedAndUnboundOnesGo(t *testing.T) {
	w := rt.New(t)
	w.Put(owned("owner"))
	owner := rt.Get[*balsav1.ConfigMap](w, "configmaps/default/owner")
	pod := func(name, node string) *balsav1.Pod {
		return &balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(owner)}},
			Spec:     &balsav1.PodSpec{NodeName: node},
		}
	}
	w.Put(pod("bound", "n1"))
	w.Put(pod("unbound", ""))
	marked := pod("marked", "")
	marked.Metadata.OwnerReferences, marked.Metadata.DeletionTimestamp = nil, timestamppb.New(w.Clock.Now())
	w.Put(marked)
	w.Delete(owner)
	w.Settle(New(w.Kit()))
	if n := w.View().CountPrefix("pods/"); n != 1 || !object.IsTerminating(rt.Get[*balsav1.Pod](w, "pods/default/bound")) {
		t.Errorf("%d pods are left, want the bound one, terminating", n)
	}
}

func TestFinishedPodsAreBounded(t *testing.T) {
	w := rt.New(t)
	for i := range maxFinishedPods + 150 {
		w.Put(&balsav1.Pod{
			Metadata: &balsav1.ObjectMeta{Name: fmt.Sprintf("p%05d", i), Namespace: "default"}, Spec: &balsav1.PodSpec{NodeName: "n1"},
			Status: &balsav1.PodStatus{Phase: object.PodSucceeded},
		})
	}
	w.Settle(New(w.Kit()))
	if n := w.View().CountPrefix("pods/"); n != maxFinishedPods {
		t.Errorf("%d finished pods are kept, want %d", n, maxFinishedPods)
	}
	if _, there := w.View().Get("pods/default/p00149"); there {
		t.Error("an older one was kept before a younger one")
	}
}

// TestKeysFindsWhatStepDoes: whatever changes, the keys of the event are enough,
// the concern needs no look at everything.
func TestKeysFindsWhatStepDoes(t *testing.T) {
	w := rt.New(t)
	c := New(w.Kit())
	watch, err := w.Store.Space(store.SpaceObjects).Watch(t.Context(), store.WatchOptions{PrevKV: true})
	if err != nil {
		t.Fatal(err)
	}
	w.Put(owned("a"))
	w.Put(owned("b", rt.Get[*balsav1.ConfigMap](w, "configmaps/default/a")))
	w.Put(owned("c", rt.Get[*balsav1.ConfigMap](w, "configmaps/default/b")))
	w.Delete(rt.Get[*balsav1.ConfigMap](w, "configmaps/default/a"))
	for w.View().Count("", "") > 0 {
		select {
		case batch := <-watch.Events():
			for _, ev := range batch.Events {
				if keys := c.Keys(w.View(), ev); len(keys) > 0 {
					c.Step(t.Context(), keys)
				}
			}
		case <-t.Context().Done():
			t.Fatal("the events were not enough")
		}
	}
}
