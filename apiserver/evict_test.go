package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

// evictable is a world with node n1 and, in the namespace default, a ReplicaSet
// web of two pods, web-0 and web-1, and a pod bare that nothing controls. All are
// ready, on n1 and have the label app=web.
type evictable struct {
	*world
	t *testing.T
}

func newEvictable(t *testing.T, w *world) *evictable {
	t.Helper()
	e := &evictable{world: w, t: t}
	w.direct(&balsav1.Node{ApiVersion: "v1", Kind: "Node", Metadata: &balsav1.ObjectMeta{Name: "n1", Uid: "n1"}})
	rs := &balsav1.ReplicaSet{ApiVersion: "apps/v1", Kind: "ReplicaSet", Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default", Uid: "rs"},
		Spec: &balsav1.ReplicaSetSpec{Replicas: proto.Int32(2), Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: podTemplate("web")}}
	w.direct(rs)
	for _, name := range []string{"web-0", "web-1", "bare"} {
		p := newPod(name, map[string]string{"app": "web"})
		object.Default(p)
		p.Metadata.Namespace, p.Metadata.Uid, p.Spec.NodeName = "default", name, "n1"
		p.Status = &balsav1.PodStatus{Phase: object.PodRunning, Conditions: []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue}}}
		if name != "bare" {
			p.Metadata.OwnerReferences = []*balsav1.OwnerReference{object.NewControllerRef(rs)}
		}
		w.direct(p)
	}
	return e
}

func (e *evictable) budget(name string, desired, healthy int32, change ...func(*balsav1.PodDisruptionBudgetSpec)) {
	b := &balsav1.PodDisruptionBudget{ApiVersion: "policy/v1", Kind: "PodDisruptionBudget", Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", Uid: name, Generation: 1},
		Spec:   &balsav1.PodDisruptionBudgetSpec{MinAvailable: object.IntValue(desired), Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
		Status: &balsav1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DesiredHealthy: desired, CurrentHealthy: healthy, ExpectedPods: healthy, DisruptionsAllowed: max(0, healthy-desired)}}
	for _, c := range change {
		c(b.Spec)
	}
	object.Default(b)
	e.direct(b)
}

func (e *evictable) edit(name string, change func(*balsav1.Pod)) {
	p := object.Clone(e.pod(name))
	change(p)
	e.direct(p)
}

func (e *evictable) pod(name string) *balsav1.Pod {
	kv, _ := e.objects().Get("pods/default/" + name)
	p, _ := kv.Object.(*balsav1.Pod)
	return p
}

func (e *evictable) evict(name string, change ...func(*balsav1.EvictRequest)) (*balsav1.EvictResponse, error) {
	req := &balsav1.EvictRequest{Name: name, Reason: "drain of node n1"}
	for _, c := range change {
		c(req)
	}
	return e.admin().objects.Evict(e.t.Context(), req)
}

func TestEvictReplacesFirst(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		e.budget("tight", 3, 3) // asked when the pod ends, not before
		res, err := e.evict("web-0", func(r *balsav1.EvictRequest) { r.GracePeriodSeconds = proto.Int64(7) })
		must(t, err)
		c := object.FindCondition(res.GetPod().GetStatus().GetConditions(), object.ConditionEvictionRequested)
		if !res.GetReplacing() || object.IsTerminating(res.GetPod()) || c.GetStatus() != object.ConditionTrue || c.GetReason() != object.EvictionAsked || c.GetMessage() != "drain of node n1" {
			t.Fatalf("%v", res)
		}
		if got := object.EvictionGrace(e.pod("web-0")); got != 7 {
			t.Errorf("its grace period will be %d", got)
		}
		before := w.revision()
		if res, err = e.evict("web-0", func(r *balsav1.EvictRequest) { r.GracePeriodSeconds = proto.Int64(7) }); err != nil || !res.GetReplacing() || w.revision() != before {
			t.Errorf("asked again: %v, %v, %d revisions written", res, err, w.revision()-before)
		}
		if _, err = e.evict("web-0"); err != nil || object.EvictionGrace(e.pod("web-0")) != 30 {
			t.Errorf("asked again without a grace period: %v, %v", err, e.pod("web-0").GetMetadata().GetAnnotations())
		}
		w.direct(&balsav1.Node{ApiVersion: "v1", Kind: "Node", Metadata: &balsav1.ObjectMeta{Name: "n1", Uid: "n1"}, Spec: &balsav1.NodeSpec{Unschedulable: proto.Bool(true)}})
		if res, err = e.evict("web-1"); err != nil || object.FindCondition(res.GetPod().GetStatus().GetConditions(), object.ConditionEvictionRequested).GetReason() != object.EvictionOfNode {
			t.Errorf("on a cordoned node: %v, %v", res, err)
		}
	})
}

func TestEvictEndsWhatCannotBeReplacedFirst(t *testing.T) {
	for what, prepare := range map[string]func(*evictable){
		"a pod without a controller": func(e *evictable) {
			e.edit("web-0", func(p *balsav1.Pod) { p.Metadata.OwnerReferences = nil })
		},
		"a pod with a claim": func(e *evictable) {
			e.edit("web-0", func(p *balsav1.Pod) {
				p.Spec.Volumes = []*balsav1.Volume{{Name: "v", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}
			})
		},
		"a pod that is not ready": func(e *evictable) {
			e.edit("web-0", func(p *balsav1.Pod) { p.Status.Conditions[0].Status = object.ConditionFalse })
		},
		"a pod of a deployment that recreates": func(e *evictable) {
			d := newDeployment("web", 2)
			d.Metadata.Namespace, d.Metadata.Uid, d.Spec.Strategy = "default", "d", &balsav1.DeploymentStrategy{Type: object.StrategyRecreate}
			e.direct(d)
			kv, _ := e.objects().Get("replicasets/default/web")
			rs := proto.CloneOf(kv.Object.(*balsav1.ReplicaSet))
			rs.Metadata.OwnerReferences = []*balsav1.OwnerReference{object.NewControllerRef(d)}
			e.direct(rs)
		},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				e := newEvictable(t, w)
				prepare(e)
				res, err := e.evict("web-0", func(r *balsav1.EvictRequest) { r.DryRun = true })
				must(t, err)
				if res.GetReplacing() || !object.IsTerminating(res.GetPod()) || object.IsTerminating(e.pod("web-0")) {
					t.Fatalf("dry run: %v", res)
				}
				res, err = e.evict("web-0", func(r *balsav1.EvictRequest) { r.GracePeriodSeconds = proto.Int64(3) })
				must(t, err)
				target := object.FindCondition(e.pod("web-0").GetStatus().GetConditions(), object.ConditionDisruptionTarget)
				if res.GetReplacing() || res.GetPod().GetMetadata().GetDeletionGracePeriodSeconds() != 3 || target.GetReason() != object.ReasonEvictionAPI || target.GetMessage() != "drain of node n1" {
					t.Fatalf("%v", res)
				}
				if _, err = e.evict("web-0", func(r *balsav1.EvictRequest) { r.GracePeriodSeconds = proto.Int64(0) }); err != nil || e.pod("web-0") != nil {
					t.Errorf("a second eviction that gives no time: %v", err)
				}
			})
		})
	}
}

func TestEvictAsksTheBudgets(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		e.budget("web", 3, 3)
		_, err := e.evict("bare")
		d := refused(t, err, connect.CodeResourceExhausted, "DisruptionBudget")
		if want := `pod "default/bare" cannot be evicted now: poddisruptionbudget "default/web" needs 3 healthy pods and has 3, of 3 expected; disruptions allowed: 0`; !strings.HasSuffix(err.Error(), want) {
			t.Errorf("it says %q", err)
		}
		if d.GetApplied() != notApplied || d.GetObject().GetName() != "web" || d.GetObject().GetKind() != "PodDisruptionBudget" || !strings.Contains(d.GetHint(), "10 s") {
			t.Errorf("%v", d)
		}
		if object.IsTerminating(e.pod("bare")) {
			t.Error("it ends nevertheless")
		}
		e.edit("bare", func(p *balsav1.Pod) { p.Status.Conditions[0].Status = object.ConditionFalse })
		if _, err := e.evict("bare", func(r *balsav1.EvictRequest) { r.DryRun = true }); err != nil {
			t.Errorf("a pod that is not ready, of a budget that is met: %v", err)
		}
		e.budget("web", 3, 2)
		_, err = e.evict("bare")
		refused(t, err, connect.CodeResourceExhausted, "DisruptionBudget")
	})
}

// A pod that is not ready costs a budget nothing that says AlwaysAllow, also while
// the budget is not met.
func TestEvictOfUnhealthyPods(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		always := func(s *balsav1.PodDisruptionBudgetSpec) {
			s.UnhealthyPodEvictionPolicy = proto.String(object.EvictAlwaysAllow)
		}
		e.budget("web", 3, 2, always)
		_, err := e.evict("bare")
		refused(t, err, connect.CodeResourceExhausted, "DisruptionBudget")
		e.edit("bare", func(p *balsav1.Pod) { p.Status.Conditions[0].Status = object.ConditionFalse })
		if _, err := e.evict("bare", func(r *balsav1.EvictRequest) { r.DryRun = true }); err != nil {
			t.Errorf("AlwaysAllow: %v", err)
		}
		e.budget("strict", 3, 2)
		_, err = e.evict("bare")
		if d := refused(t, err, connect.CodeResourceExhausted, "DisruptionBudget"); d.GetObject().GetName() != "strict" {
			t.Errorf("refused by %v", d.GetObject())
		}
	})
}

// Only budgets whose selector takes the pod in are asked, and of those each one.
func TestEvictAsksTheBudgetsThatSelectThePod(t *testing.T) {
	selects := func(selector *balsav1.LabelSelector) func(*balsav1.PodDisruptionBudgetSpec) {
		return func(s *balsav1.PodDisruptionBudgetSpec) { s.Selector = selector }
	}
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		e.budget("other", 3, 0, selects(&balsav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}))
		e.budget("but-web", 3, 0, selects(&balsav1.LabelSelector{MatchExpressions: []*balsav1.LabelSelectorRequirement{{Key: "app", Operator: "NotIn", Values: []string{"web"}}}}))
		if _, err := e.evict("bare", func(r *balsav1.EvictRequest) { r.DryRun = true }); err != nil {
			t.Errorf("budgets of other pods: %v", err)
		}
		e.budget("all", 3, 0, selects(&balsav1.LabelSelector{}))
		_, err := e.evict("bare")
		if d := refused(t, err, connect.CodeResourceExhausted, "DisruptionBudget"); d.GetObject().GetName() != "all" {
			t.Errorf("refused by %v", d.GetObject())
		}
	})
}

// TestEvictIsRefusedWithStatus429 looks at what goes over the wire.
func TestEvictIsRefusedWithStatus429(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		e.budget("web", 3, 3)
		c := w.admin()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/balsa.v1.ObjectService/Evict", strings.NewReader(`{"name":"bare"}`))
		must(t, err)
		request.Header.Set("Content-Type", "application/json")
		response, err := c.http.Do(request)
		must(t, err)
		must(t, response.Body.Close())
		if response.StatusCode != http.StatusTooManyRequests {
			t.Errorf("status %d", response.StatusCode)
		}
	})
}

func TestEvictSpendsEveryBudgetOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		e.budget("one", 2, 3)
		e.budget("two", 1, 3)
		_, err := e.evict("bare")
		must(t, err)
		for name, want := range map[string]int32{"one": 0, "two": 1} {
			b := get[*balsav1.PodDisruptionBudget](t, w.admin(), "default", name)
			if b.GetStatus().GetDisruptionsAllowed() != want || b.GetStatus().GetDisruptedPods()["bare"] == nil {
				t.Errorf("budget %s: %v", name, b.GetStatus())
			}
		}
		before := w.revision()
		if _, err := e.evict("bare"); err != nil || w.revision() != before {
			t.Errorf("evicted again: %v, %d revisions written", err, w.revision()-before)
		}
	})
}

func TestEvictRefusesBadInput(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		for what, c := range map[string]struct {
			change func(*balsav1.EvictRequest)
			code   connect.Code
			reason string
		}{
			"no name":        {func(r *balsav1.EvictRequest) { r.Name = "" }, connect.CodeInvalidArgument, "Invalid"},
			"no such pod":    {func(r *balsav1.EvictRequest) { r.Name = "x" }, connect.CodeNotFound, "NotFound"},
			"another uid":    {func(r *balsav1.EvictRequest) { r.Uid = "x" }, connect.CodeAborted, "OtherObject"},
			"negative grace": {func(r *balsav1.EvictRequest) { r.GracePeriodSeconds = proto.Int64(-1) }, connect.CodeInvalidArgument, "Invalid"},
			"endless grace":  {func(r *balsav1.EvictRequest) { r.GracePeriodSeconds = proto.Int64(1 << 40) }, connect.CodeInvalidArgument, "Invalid"},
			"long reason":    {func(r *balsav1.EvictRequest) { r.Reason = strings.Repeat("x", 257) }, connect.CodeInvalidArgument, "Invalid"},
		} {
			if _, err := e.evict("bare", c.change); err == nil {
				t.Errorf("%s: taken", what)
			} else {
				refused(t, err, c.code, c.reason)
			}
		}
		for _, role := range []pki.Role{pki.RoleReader, pki.RoleAgent} {
			_, err := w.as(role, "n1").objects.Evict(t.Context(), &balsav1.EvictRequest{Name: "bare"})
			refused(t, err, connect.CodePermissionDenied, "Forbidden")
		}
		e.budget("web", 1, 3)
		b := get[*balsav1.PodDisruptionBudget](t, w.admin(), "default", "web")
		b.Metadata.Generation = 2
		w.direct(b)
		_, err := e.evict("bare")
		if d := refused(t, err, connect.CodeResourceExhausted, "DisruptionBudget"); !strings.Contains(d.GetHint(), "in a second") {
			t.Errorf("a budget that was changed and not counted: %v", d)
		}
	})
}

// TestEvictionsTogetherNeverOvershoot lets many ask at once, for more pods than two
// budgets allow.
func TestEvictionsTogetherNeverOvershoot(t *testing.T) {
	for allowed := range int32(6) {
		t.Run(fmt.Sprint(allowed), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				e := newEvictable(t, w)
				const pods = 8
				for i := range pods {
					p := object.Clone(e.pod("bare"))
					p.Metadata.Name, p.Metadata.Uid = fmt.Sprint("p", i), fmt.Sprint("p", i)
					w.direct(p)
				}
				e.budget("a", 11-allowed, 11)
				e.budget("b", 11-min(allowed+1, 11), 11)
				var mu sync.Mutex
				var granted, refusals int32
				var group sync.WaitGroup
				for i := range pods {
					group.Go(func() {
						for { // contention is no answer
							_, err := e.evict(fmt.Sprint("p", i))
							var ce *connect.Error
							if errors.As(err, &ce) && ce.Code() == connect.CodeAborted {
								continue
							}
							mu.Lock()
							defer mu.Unlock()
							if err == nil {
								granted++
							} else if detailOf(ce).GetReason() == "DisruptionBudget" {
								refusals++
							} else {
								t.Error(err)
							}
							return
						}
					})
				}
				group.Wait()
				ending := int32(0)
				for i := range pods {
					if object.IsTerminating(e.pod(fmt.Sprint("p", i))) {
						ending++
					}
				}
				b := get[*balsav1.PodDisruptionBudget](t, w.admin(), "default", "a").GetStatus()
				if granted != allowed || ending != allowed || refusals != pods-allowed || b.GetDisruptionsAllowed() != 0 || len(b.GetDisruptedPods()) != int(allowed) {
					t.Errorf("%d granted, %d end, %d refused, of %d that are allowed; the budget says %v", granted, ending, refusals, allowed, b)
				}
			})
		})
	}
}

func TestEvictOfWhatHasEnded(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		e := newEvictable(t, w)
		e.budget("web", 3, 3)
		e.edit("bare", func(p *balsav1.Pod) { p.Status.Phase = object.PodSucceeded })
		if _, err := e.evict("bare"); err != nil || e.pod("bare") != nil {
			t.Errorf("a pod that has ended: %v", err)
		}
		e.edit("web-0", func(p *balsav1.Pod) {
			p.Metadata.DeletionTimestamp, p.Metadata.DeletionGracePeriodSeconds = timestamppb.New(time.Now()), proto.Int64(30)
		})
		if res, err := e.evict("web-0"); err != nil || res.GetReplacing() {
			t.Errorf("a pod that is ending: %v, %v", res, err)
		}
	})
}
