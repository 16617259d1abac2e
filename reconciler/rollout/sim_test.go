package rollout_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/reconciler/workload"
	"github.com/balsa-run/balsa/store"
)

const webKey = "deployments/default/web"

func deployment(replicas int32, image string) *balsav1.Deployment {
	labels := map[string]string{"app": "web"}
	return &balsav1.Deployment{
		Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: &balsav1.DeploymentSpec{
			Replicas: proto.Int32(replicas), Selector: &balsav1.LabelSelector{MatchLabels: labels},
			Template: &balsav1.PodTemplateSpec{
				Metadata: &balsav1.ObjectMeta{Labels: labels},
				Spec:     &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "web", Image: image}}},
			},
		},
	}
}

// sim is one history: a Deployment, its two concerns, and a test that plays the
// user, the scheduler and the agents.
type sim struct {
	*rt.World
	tb                rt.TB
	rollout, workload control.Concern
	// excuse is how many pods there may be beyond the bound, because a user's edit
	// lowered it.
	excuse int32
}

func newSim(tb rt.TB, d *balsav1.Deployment) *sim {
	w := rt.New(tb)
	s := &sim{World: w, tb: tb, rollout: rollout.New(w.Kit(), rt.Secrets{}, w.Store.Space(store.SpaceEvents)), workload: workload.New(w.Kit())}
	w.Put(d)
	return s
}

func (s *sim) ctx() context.Context { return context.Background() }

func (s *sim) deployment() *balsav1.Deployment {
	return rt.Get[*balsav1.Deployment](s.World, webKey)
}
func (s *sim) pods() []*balsav1.Pod        { return rt.All[*balsav1.Pod](s.World, "Pod") }
func (s *sim) sets() []*balsav1.ReplicaSet { return rt.All[*balsav1.ReplicaSet](s.World, "ReplicaSet") }

func (s *sim) bounds() (most, least int32) {
	d := s.deployment()
	if d.GetSpec().GetStrategy().GetType() == object.StrategyRecreate {
		return d.GetSpec().GetReplicas(), 0
	}
	surge, unavailable, err := object.RolloutBounds(d)
	if err != nil {
		s.tb.Fatalf("%v", err)
	}
	return d.GetSpec().GetReplicas() + surge, d.GetSpec().GetReplicas() - unavailable
}

func (s *sim) isAvailable(p *balsav1.Pod) bool {
	ok, _ := object.PodAvailable(p, s.deployment().GetSpec().GetMinReadySeconds(), s.Clock.Now())
	return ok && object.PodActive(p)
}

// total is how many pods there are or may come without a further decision.
func (s *sim) total() (n int32) {
	live := map[string]int32{}
	for _, p := range s.pods() {
		if object.PodActive(p) {
			live[object.ControllerOf(p).GetUid()]++
		}
	}
	for _, rs := range s.sets() {
		n += max(rs.GetSpec().GetReplicas(), live[rs.GetMetadata().GetUid()])
	}
	return n
}

func (s *sim) checkTotal() {
	most, _ := s.bounds()
	total := s.total()
	if total > max(most, s.excuse) {
		s.tb.Fatalf("%d pods are there or ordered, at most %d may be", total, max(most, s.excuse))
	}
	s.excuse = min(s.excuse, total)
}

// stepWorkload checks what the concern ended and made.
func (s *sim) stepWorkload() {
	before := map[string]*balsav1.Pod{}
	available, ended := int32(0), int32(0)
	for _, p := range s.pods() {
		before[p.GetMetadata().GetUid()] = p
		if s.isAvailable(p) {
			available++
		}
	}
	s.Step(s.workload)
	after := map[string]*balsav1.Pod{}
	for _, p := range s.pods() {
		after[p.GetMetadata().GetUid()] = p
		if before[p.GetMetadata().GetUid()] == nil {
			s.checkRecreate(p)
		}
	}
	for uid, p := range before {
		if s.isAvailable(p) && (after[uid] == nil || object.IsTerminating(after[uid])) {
			ended++
		}
	}
	if _, least := s.bounds(); ended > 0 && available-ended < least {
		s.tb.Fatalf("ended %d of %d available pods, at least %d must stay", ended, available, least)
	}
}

// checkRecreate: with that strategy no new pod is made while an old one runs.
func (s *sim) checkRecreate(made *balsav1.Pod) {
	if s.deployment().GetSpec().GetStrategy().GetType() != object.StrategyRecreate {
		return
	}
	hash := made.GetMetadata().GetLabels()[object.LabelTemplateHash]
	for _, p := range s.pods() {
		if other := p.GetMetadata().GetLabels()[object.LabelTemplateHash]; other != hash && !object.PodFinished(p) {
			s.tb.Fatalf("made %s while %s of another template runs", object.Describe(made), object.Describe(p))
		}
	}
}

func (s *sim) editPod(p *balsav1.Pod, change func(*balsav1.Pod)) {
	rt.Edit(s.World, object.KeyOf(p), change)
}

func (s *sim) bind(p *balsav1.Pod) {
	s.editPod(p, func(p *balsav1.Pod) { p.Spec.NodeName = "n1" })
}

func (s *sim) setReady(p *balsav1.Pod, ready bool) {
	s.editPod(p, func(p *balsav1.Pod) {
		p.Status.Phase = object.PodRunning
		status := object.ConditionFalse
		if ready {
			status = object.ConditionTrue
		}
		p.Status.Conditions, _ = object.SetCondition(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionReady, Status: status}, s.Clock.Now())
	})
}

// heal plays agents for whom everything works: pods start, are ready, and go
// when they shall.
func (s *sim) heal() {
	for _, p := range s.pods() {
		switch {
		case object.IsTerminating(p):
			s.Delete(p)
		case object.PodFinished(p):
			s.Delete(p)
		case p.GetSpec().GetNodeName() == "":
			s.bind(p)
		case !object.PodReady(p) && !bad(p):
			s.setReady(p, true)
		}
	}
}

// bad tells the pods that never become ready.
func bad(p *balsav1.Pod) bool {
	return strings.HasPrefix(p.GetSpec().GetContainers()[0].GetImage(), "bad:")
}

// converge lets everything work until nothing changes any more, and checks that
// the rollout is then done and stays so.
func (s *sim) converge() {
	s.tb.Helper()
	quiet := 0
	for range 200 {
		before := s.View().Revision()
		s.Step(s.rollout)
		s.checkTotal()
		s.stepWorkload()
		s.checkTotal()
		s.heal()
		if quiet++; s.View().Revision() != before {
			quiet = 0
		}
		if quiet > 4 { // longer than minReadySeconds
			s.checkDone()
			return
		}
		s.Clock.Advance(5 * time.Second)
	}
	s.tb.Fatalf("does not converge:\n%s", s.dump())
}

func (s *sim) checkDone() {
	s.tb.Helper()
	d := s.deployment()
	replicas := d.GetSpec().GetReplicas()
	for _, p := range s.pods() {
		if !object.TemplateEqual(d.GetSpec().GetTemplate(), &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: p.GetMetadata().GetLabels()}, Spec: d.GetSpec().GetTemplate().GetSpec()}) {
			s.tb.Fatalf("%s is of another template", object.Describe(p))
		}
	}
	st := d.GetStatus()
	if n := int32(len(s.pods())); n != replicas || st.GetReplicas() != n || st.GetUpdatedReplicas() != n || st.GetAvailableReplicas() != n || st.GetUnavailableReplicas() != 0 ||
		st.GetObservedGeneration() != d.GetMetadata().GetGeneration() {
		s.tb.Fatalf("%d pods of %d; status %v:\n%s", n, replicas, st, s.dump())
	}
	progressing := object.FindCondition(st.GetConditions(), object.ConditionProgressing)
	if !object.IsConditionTrue(st.GetConditions(), object.ConditionAvailable) || progressing.GetReason() != rollout.ReasonComplete {
		s.tb.Fatalf("conditions %v", st.GetConditions())
	}
	if n := len(s.sets()); n > int(d.GetSpec().GetRevisionHistoryLimit())+1 {
		s.tb.Fatalf("%d replicasets are kept", n)
	}
	before := s.View().Revision()
	s.Settle(s.rollout, s.workload)
	s.Clock.Advance(24 * time.Hour)
	if s.Settle(s.rollout, s.workload); s.View().Revision() != before {
		s.tb.Fatalf("is done, and writes again:\n%s", s.dump())
	}
}

func (s *sim) dump() string {
	var b strings.Builder
	for _, rs := range s.sets() {
		fmt.Fprintf(&b, "%s spec %d status %v\n", rs.GetMetadata().GetName(), rs.GetSpec().GetReplicas(), rs.GetStatus())
	}
	for _, p := range s.pods() {
		fmt.Fprintf(&b, "  %s node %q phase %s ready %v terminating %v\n", p.GetMetadata().GetName(), p.GetSpec().GetNodeName(),
			p.GetStatus().GetPhase(), object.PodReady(p), object.IsTerminating(p))
	}
	return b.String()
}

// actions are what may happen at any time.
func (s *sim) actions() map[string]func(*rapid.T) {
	edit := func(change func(*rapid.T, *balsav1.DeploymentSpec)) func(*rapid.T) {
		return func(t *rapid.T) {
			rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { change(t, d.Spec) })
			s.excuse = max(s.excuse, s.total())
		}
	}
	pick := func(what string, ok func(*balsav1.Pod) bool, do func(*balsav1.Pod)) func(*rapid.T) {
		return func(t *rapid.T) {
			var fit []*balsav1.Pod
			for _, p := range s.pods() {
				if ok(p) {
					fit = append(fit, p)
				}
			}
			if len(fit) > 0 {
				do(fit[rapid.IntRange(0, len(fit)-1).Draw(t, what)])
			}
		}
	}
	bound := func(p *balsav1.Pod) bool { return p.GetSpec().GetNodeName() != "" && object.PodActive(p) }
	ready := func(t *rapid.T) {
		pick("ready", func(p *balsav1.Pod) bool { return bound(p) && !object.PodReady(p) && !bad(p) }, func(p *balsav1.Pod) { s.setReady(p, true) })(t)
	}
	bind := pick("bind", func(p *balsav1.Pod) bool { return p.GetSpec().GetNodeName() == "" }, s.bind)
	return map[string]func(*rapid.T){
		"rollout":   func(*rapid.T) { s.Step(s.rollout) },
		"rollout2":  func(*rapid.T) { s.Step(s.rollout) },
		"workload":  func(*rapid.T) { s.stepWorkload() },
		"workload2": func(*rapid.T) { s.stepWorkload() },
		"bind":      bind, "bind2": bind, "ready": ready, "ready2": ready,
		"unready": pick("unready", object.PodReady, func(p *balsav1.Pod) { s.setReady(p, false) }),
		"fail": pick("fail", bound, func(p *balsav1.Pod) {
			s.editPod(p, func(p *balsav1.Pod) { p.Status = &balsav1.PodStatus{Phase: object.PodFailed} })
		}),
		"kill": pick("kill", bound, func(p *balsav1.Pod) {
			s.editPod(p, func(p *balsav1.Pod) { p.Metadata.DeletionTimestamp = timestamppb.New(s.Clock.Now()) })
		}),
		"gone": pick("gone", func(p *balsav1.Pod) bool { return object.IsTerminating(p) }, func(p *balsav1.Pod) { s.Delete(p) }),
		"heal": func(*rapid.T) { s.heal() },
		"clock": func(t *rapid.T) {
			s.Clock.Advance(time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second)
		},
		"scale": edit(func(t *rapid.T, d *balsav1.DeploymentSpec) {
			d.Replicas = proto.Int32(rapid.Int32Range(0, 8).Draw(t, "replicas"))
		}),
		"template": edit(func(t *rapid.T, d *balsav1.DeploymentSpec) {
			d.Template.Spec.Containers[0].Image = rapid.SampledFrom([]string{"web:1", "web:2", "web:3"}).Draw(t, "image")
		}),
		"bounds": edit(func(t *rapid.T, d *balsav1.DeploymentSpec) { drawBounds(t, d) }),
		"":       func(*rapid.T) { s.checkTotal() },
	}
}

func drawBounds(t *rapid.T, d *balsav1.DeploymentSpec) {
	value := func(name string) *balsav1.IntOrString {
		if rapid.Bool().Draw(t, name+" in per cent") {
			return object.StringValue(rapid.SampledFrom([]string{"0%", "25%", "50%", "100%"}).Draw(t, name))
		}
		return object.IntValue(rapid.Int32Range(0, 3).Draw(t, name))
	}
	d.Strategy = &balsav1.DeploymentStrategy{Type: object.StrategyRollingUpdate}
	d.Strategy.RollingUpdate = &balsav1.RollingUpdateDeployment{MaxSurge: value("surge"), MaxUnavailable: value("unavailable")}
	d.MinReadySeconds = proto.Int32(rapid.SampledFrom([]int32{0, 0, 10}).Draw(t, "minReadySeconds"))
}

// TestNeverLeavesItsBounds plays random histories and checks both bounds at
// every step, and that the rollout ends and stays ended once nothing goes wrong.
func TestNeverLeavesItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := deployment(rapid.Int32Range(0, 6).Draw(t, "replicas"), "web:1")
		drawBounds(t, d.Spec)
		d.Spec.RevisionHistoryLimit = proto.Int32(rapid.Int32Range(0, 2).Draw(t, "history"))
		s := newSim(t, d)
		if rapid.Bool().Draw(t, "begins complete") {
			s.converge()
		}
		t.Repeat(s.actions())
		s.converge()
	})
}

func TestRecreateNeverMixesTemplates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := deployment(rapid.Int32Range(0, 4).Draw(t, "replicas"), "web:1")
		d.Spec.Strategy = &balsav1.DeploymentStrategy{Type: object.StrategyRecreate}
		s := newSim(t, d)
		actions := s.actions()
		delete(actions, "bounds")
		t.Repeat(actions)
		s.converge()
	})
}
