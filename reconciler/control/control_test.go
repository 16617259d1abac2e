package control_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

func configMap(name string) *balsav1.ConfigMap {
	return &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}}
}

func create(t *testing.T, m object.Message) *control.Change {
	t.Helper()
	c := control.NewChange("create " + object.KeyOf(m))
	if err := c.Create(m); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAChangeHoldsOnlyAtItsRevisions(t *testing.T) {
	w := rt.New(t)
	w.Put(configMap("a"))
	w.Put(configMap("b"))
	k := w.Kit()
	a := rt.Get[*balsav1.ConfigMap](w, "configmaps/default/a")
	b := rt.Get[*balsav1.ConfigMap](w, "configmaps/default/b")
	rt.Edit(w, "configmaps/default/b", func(m *balsav1.ConfigMap) { m.Data = map[string]string{"k": "v"} })
	said := false
	c := control.NewChange("both")
	c.Delete(a)
	c.Expect(b)
	c.Then(func() { said = true })
	err := k.Commit(t.Context(), c)
	if !errors.Is(err, control.ErrConflict) || !strings.Contains(err.Error(), "configmaps/default/b") || said {
		t.Fatalf("err %v, said %v", err, said)
	}
	if err := k.Commit(t.Context(), create(t, configMap("a"))); !errors.Is(err, control.ErrConflict) {
		t.Errorf("creates what is there: %v", err)
	}
	rt.Get[*balsav1.ConfigMap](w, "configmaps/default/a") // is still there
	if err := k.Commit(t.Context(), control.NewChange("nothing")); err != nil {
		t.Errorf("an empty change: %v", err)
	}
}

func TestACommandOfAnotherTermStopsTheLoop(t *testing.T) {
	w := rt.New(t)
	k := w.Kit()
	w.SetTerm(9)
	if err := k.Commit(t.Context(), create(t, configMap("a"))); !errors.Is(err, loop.ErrStop) {
		t.Fatalf("err %v", err)
	}
	if w.View().Count("", "") != 0 {
		t.Error("a deposed leader wrote")
	}
}

// TestAnOpenOutcomeIsDecidedBeforeTheNextView holds back a command whose outcome
// its author does not learn, and lets it into the log only when something follows
// it, as a log does.
func TestAnOpenOutcomeIsDecidedBeforeTheNextView(t *testing.T) {
	w := rt.New(t)
	log := &slowLog{World: w}
	writer := control.NewWriter(log, w.Store.Space("objects"), w.Clock, w.Term)
	if err := writer.Commit(t.Context(), create(t, configMap("a"))); err == nil || errors.Is(err, control.ErrConflict) {
		t.Fatalf("err %v, want an open outcome", err)
	}
	if _, ok := control.Get[*balsav1.ConfigMap](w.View(), "configmaps/default/a"); ok {
		t.Fatal("the test holds nothing back")
	}
	v, err := writer.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := control.Get[*balsav1.ConfigMap](v, "configmaps/default/a"); !ok {
		t.Error("the view is older than what its author ordered")
	}
}

type slowLog struct {
	*rt.World
	held []*internalv1.Command
}

func (l *slowLog) Propose(ctx context.Context, cmd *internalv1.Command) (*internalv1.CommandResult, error) {
	if len(l.held) == 0 && len(cmd.GetTxn().GetSuccess()) > 0 {
		l.held = append(l.held, cmd)
		return nil, errors.New("timed out")
	}
	for _, held := range l.held {
		if _, err := l.World.Propose(ctx, held); err != nil {
			return nil, err
		}
	}
	return l.World.Propose(ctx, cmd)
}

func TestCommitAllKeepsErrorsApart(t *testing.T) {
	w := rt.New(t)
	w.Put(configMap("c007"))
	var changes []*control.Change
	for i := range 200 {
		changes = append(changes, create(t, configMap(fmt.Sprintf("c%03d", i))))
	}
	for i, err := range w.Kit().CommitAll(t.Context(), changes) {
		if (i == 7) != errors.Is(err, control.ErrConflict) || i != 7 && err != nil {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if n := w.View().CountPrefix("configmaps/"); n != 200 {
		t.Errorf("%d keys, want 200", n)
	}
}

func TestEndPodDoesAsTheAPI(t *testing.T) {
	now := rt.Now()
	for name, test := range map[string]struct {
		change  func(*balsav1.Pod)
		deleted bool
		marked  bool
	}{
		"running":     {func(p *balsav1.Pod) {}, false, true},
		"unbound":     {func(p *balsav1.Pod) { p.Spec.NodeName = "" }, true, false},
		"finished":    {func(p *balsav1.Pod) { p.Status.Phase = object.PodFailed }, true, false},
		"no grace":    {func(p *balsav1.Pod) { p.Spec.TerminationGracePeriodSeconds = proto.Int64(0) }, true, false},
		"marked once": {func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp = timestamppb.New(now.Add(-1)) }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := rt.New(t)
			pod := &balsav1.Pod{
				Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "default"},
				Spec:     &balsav1.PodSpec{NodeName: "n1", TerminationGracePeriodSeconds: proto.Int64(30)},
				Status:   &balsav1.PodStatus{Phase: object.PodRunning},
			}
			test.change(pod)
			w.Put(pod)
			c := control.NewChange("end")
			if err := c.EndPod(rt.Get[*balsav1.Pod](w, "pods/default/p"), now); err != nil {
				t.Fatal(err)
			}
			if err := w.Kit().Commit(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			got, there := control.Get[*balsav1.Pod](w.View(), "pods/default/p")
			if there == test.deleted || there && object.IsTerminating(got) != test.marked {
				t.Errorf("there %v: %v", there, got.GetMetadata())
			}
		})
	}
}

func TestADeletedServiceGivesItsAddressBack(t *testing.T) {
	w := rt.New(t)
	w.Put(&balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.7"}})
	claim := &internalv1.Command{Space: "objects", Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: []*internalv1.Op{
		{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte("claims/clusterip/10.96.0.7"), Value: []byte("services/default/web")}}},
	}}}}
	if _, err := w.Propose(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	c := control.NewChange("delete")
	c.Delete(rt.Get[*balsav1.Service](w, "services/default/web"))
	if err := w.Kit().Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if n := w.View().Count("", ""); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

func TestCounted(t *testing.T) {
	for n, want := range []string{"0 pods", "1 pod", "2 pods"} {
		if have := control.Counted(n, "pod"); have != want {
			t.Errorf("%d: %q, want %q", n, have, want)
		}
	}
}
