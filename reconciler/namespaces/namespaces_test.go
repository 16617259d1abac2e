package namespaces

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

func setUp(t *testing.T) (*rt.World, control.Concern, *control.Writer) {
	w := rt.New(t)
	events := control.NewWriter(w, w.Store.Space(store.SpaceEvents), w.Clock, w.Term)
	for _, name := range []string{"shop", "other"} {
		w.Put(&balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: name}})
	}
	return w, New(w.Kit(), events), events
}

func meta(namespace, name string) *balsav1.ObjectMeta {
	return &balsav1.ObjectMeta{Name: name, Namespace: namespace}
}

func closeShop(w *rt.World) {
	rt.Edit(w, "namespaces/shop", func(ns *balsav1.Namespace) { ns.Metadata.DeletionTimestamp = timestamppb.New(w.Clock.Now()) })
}

func TestAnActiveNamespaceKeepsEverything(t *testing.T) {
	w, c, _ := setUp(t)
	w.Put(&balsav1.ConfigMap{Metadata: meta("shop", "a")})
	before := w.View().Revision()
	w.Settle(c)
	if w.View().Revision() != before {
		t.Error("something was written")
	}
}

func TestItWaitsForPodsThatNodesHaveToEnd(t *testing.T) {
	w, c, events := setUp(t)
	w.Put(&balsav1.Deployment{Metadata: meta("shop", "web"), Spec: &balsav1.DeploymentSpec{}})
	w.Put(&balsav1.Service{Metadata: meta("shop", "web"), Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.7"}})
	w.Put(&balsav1.Secret{Metadata: meta("shop", "key")})
	w.Put(&balsav1.Pod{Metadata: meta("shop", "bound"), Spec: &balsav1.PodSpec{NodeName: "n1"}})
	w.Put(&balsav1.Pod{Metadata: meta("shop", "unbound"), Spec: &balsav1.PodSpec{}})
	w.Put(&balsav1.Pod{Metadata: meta("other", "bound"), Spec: &balsav1.PodSpec{NodeName: "n1"}})
	e := &balsav1.Event{Metadata: meta("shop", "e")}
	change := control.NewChange("event")
	if err := change.Create(e); err != nil {
		t.Fatal(err)
	}
	if err := events.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	closeShop(w)
	w.Settle(c)
	ns := rt.Get[*balsav1.Namespace](w, "namespaces/shop")
	left := object.FindCondition(ns.GetStatus().GetConditions(), ConditionContent)
	if ns.GetStatus().GetPhase() != object.NamespaceTerminating || left.GetMessage() != "waits for 1 pod that its node has not ended yet" {
		t.Errorf("status %v", ns.GetStatus())
	}
	bound := rt.Get[*balsav1.Pod](w, "pods/shop/bound")
	if !object.IsTerminating(bound) {
		t.Error("the bound pod was not asked to end")
	}
	if n := w.View().Count("", ""); n != 4 { // two namespaces, two pods
		t.Errorf("%d keys are left", n)
	}
	w.Delete(bound) // its agent says that it is gone
	w.Settle(c)
	if _, there := w.View().Get("namespaces/shop"); there {
		t.Error("the empty namespace stays")
	}
	if w.View().CountPrefix("pods/other/") != 1 || w.View().CountPrefix("namespaces/other") != 1 {
		t.Error("another namespace was touched")
	}
	if n := w.Store.Space(store.SpaceEvents).View().CountPrefix("events/"); n != 0 {
		t.Errorf("%d events of the namespace are left", n)
	}
}

func TestAFullNamespaceIsEmptiedInBoundedSteps(t *testing.T) {
	w, c, _ := setUp(t)
	for i := range control.MaxOps*maxChanges + 100 {
		w.Put(&balsav1.ConfigMap{Metadata: meta("shop", fmt.Sprintf("m%05d", i))})
	}
	closeShop(w)
	w.Step(c)
	if n := w.View().CountPrefix("configmaps/"); n != 100 {
		t.Errorf("%d are left after the first step, want 100", n)
	}
	w.Settle(c)
	if _, there := w.View().Get("namespaces/shop"); there {
		t.Error("the namespace stays")
	}
}

// A Service gives back many claims, which are writes of the same transaction.
func TestServicesWithManyPortsFitIntoTransactions(t *testing.T) {
	w, c, _ := setUp(t)
	for i := range 4 {
		svc := &balsav1.Service{Metadata: meta("shop", fmt.Sprintf("s%d", i)), Spec: &balsav1.ServiceSpec{Type: object.ServiceNodePort, ClusterIp: fmt.Sprintf("10.96.0.%d", 10+i)}}
		for j := range 100 {
			svc.Spec.Ports = append(svc.Spec.Ports, &balsav1.ServicePort{Port: int32(j + 1), Protocol: "TCP", NodePort: proto.Int32(int32(30000 + 100*i + j))})
		}
		w.Put(svc)
		claims := control.NewChange("claims")
		for _, key := range object.ServiceClaims(svc) {
			claims.Claim(key, svc)
		}
		if err := w.Kit().Commit(t.Context(), claims); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.View().CountPrefix("claims/"); n != 4*101 {
		t.Fatalf("%d claims, want %d", n, 4*101)
	}
	closeShop(w)
	w.Settle(c)
	if _, there := w.View().Get("namespaces/shop"); there || w.View().CountPrefix("claims/") != 0 {
		t.Errorf("the namespace stays: %v, with %d claims", there, w.View().CountPrefix("claims/"))
	}
}

// Policies guard the namespace's pods up to their end (KEP-5080).
func TestPoliciesOutlivePods(t *testing.T) {
	pod := &balsav1.Pod{Metadata: meta("shop", "p")}
	policy := &balsav1.NetworkPolicy{Metadata: meta("shop", "n")}
	slice := &balsav1.NetworkPolicySlice{Metadata: meta("shop", "n")}
	if got, want := Plan([]object.Message{policy, slice, pod}).String(), "remove pods/shop/p\n"; got != want {
		t.Errorf("with a pod:\n%swant\n%s", got, want)
	}
	if got, want := Plan([]object.Message{slice, policy}).String(), "remove networkpolicies/shop/n\nremove networkpolicyslices/shop/n\n"; got != want {
		t.Errorf("without:\n%swant\n%s", got, want)
	}
}

// TestNothingIsLostThatCameInBetween puts an object into the namespace between
// the plan that finds it empty and the transaction that removes it.
func TestNothingIsLostThatCameInBetween(t *testing.T) {
	w, c, _ := setUp(t)
	closeShop(w)
	late := true
	w.Before = func(cmd *internalv1.Command) (bool, error) {
		if late && cmd.GetEpoch() != 0 {
			late = false
			value, err := object.Encode(&balsav1.ConfigMap{Metadata: meta("shop", "late")})
			if err != nil {
				t.Error(err)
			}
			txn := &internalv1.Txn{Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte("configmaps/shop/late"), Value: value}}}}}
			w.ApplyLocked(&internalv1.Command{Space: store.SpaceObjects, Op: &internalv1.Command_Txn{Txn: txn}})
		}
		return true, nil
	}
	again := w.Step(c)
	if _, there := w.View().Get("namespaces/shop"); !there || len(again) != 1 || !strings.Contains(fmt.Sprint(again[0].Err), "conflict") {
		t.Errorf("there %v, looks again %v", there, again)
	}
	w.Settle(c)
	if n := w.View().Count("", ""); n != 1 {
		t.Errorf("%d keys are left, want the other namespace", n)
	}
}
