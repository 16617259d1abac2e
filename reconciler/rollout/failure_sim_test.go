package rollout_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/reconciler/workload"
	"github.com/balsa-run/balsa/store"
)

const testDeadline = 60

// failing is a Deployment with a short deadline.
func failing(replicas int32, onFailure string) *balsav1.Deployment {
	d := deployment(replicas, "web:1")
	d.Spec.ProgressDeadlineSeconds = proto.Int32(testDeadline)
	d.Spec.OnFailure = onFailure
	return d
}

func (s *sim) image(image string) {
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
	s.excuse = max(s.excuse, s.total())
}

func (s *sim) progressing() *balsav1.Condition {
	return object.FindCondition(s.deployment().GetStatus().GetConditions(), object.ConditionProgressing)
}

// play lets everything that works come about, for so long.
func (s *sim) play(d time.Duration) {
	s.tb.Helper()
	for end := s.Clock.Now().Add(d); s.Clock.Now().Before(end); s.Clock.Advance(5 * time.Second) {
		for range 3 {
			s.Step(s.rollout)
			s.checkTotal()
			s.stepWorkload()
			s.checkTotal()
			s.heal()
		}
	}
}

func (s *sim) setOf(revision int64) *balsav1.ReplicaSet {
	s.tb.Helper()
	for _, rs := range s.sets() {
		if revisions.Of(rs) == revision {
			return rs
		}
	}
	s.tb.Fatalf("there is no revision %d:\n%s", revision, s.dump())
	return nil
}

// TestAFailedRolloutEndsWell: images that never become ready, at any moment and
// beside all other edits. Afterwards either the newest revision that was ever
// complete runs whole, or everything stands still and the status says so; and a
// good image gets through.
func TestAFailedRolloutEndsWell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := failing(rapid.Int32Range(0, 6).Draw(t, "replicas"), rapid.SampledFrom([]string{"", "rollback", "pause"}).Draw(t, "onFailure"))
		drawBounds(t, d.Spec)
		if rapid.Bool().Draw(t, "recreate") {
			d.Spec.Strategy = &balsav1.DeploymentStrategy{Type: object.StrategyRecreate}
		}
		d.Spec.RevisionHistoryLimit = proto.Int32(rapid.Int32Range(0, 2).Draw(t, "history"))
		s := newSim(t, d)
		actions := s.actions()
		if s.deployment().GetSpec().GetStrategy().GetType() == object.StrategyRecreate {
			delete(actions, "bounds")
		}
		actions["template"] = func(t *rapid.T) {
			s.image(rapid.SampledFrom([]string{"web:1", "web:2", "bad:1", "bad:2"}).Draw(t, "image"))
		}
		actions["time"] = func(*rapid.T) { s.Clock.Advance(testDeadline * time.Second) }
		actions["play"] = func(*rapid.T) { s.play(30 * time.Second) }
		actions["pause"] = func(t *rapid.T) {
			paused := rapid.Bool().Draw(t, "paused")
			rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { d.Spec.Paused = proto.Bool(paused) })
			s.excuse = max(s.excuse, s.total())
		}
		actions["retry"] = func(*rapid.T) { s.retry() }
		actions["leader"] = func(*rapid.T) {
			s.rollout, s.workload = rollout.New(s.Kit(), rt.Secrets{}, s.Store.Space(store.SpaceEvents)), workload.New(s.Kit())
		}
		t.Repeat(actions)
		rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { d.Spec.Paused = proto.Bool(false) })
		s.play(4 * testDeadline * time.Second)
		s.checkOutcome()
		s.image("web:9")
		s.play(2 * testDeadline * time.Second)
		s.checkDone()
	})
}

func (s *sim) retry() {
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) {
		if f := d.GetStatus().GetFailedRollout(); f != nil {
			if d.Metadata.Annotations == nil {
				d.Metadata.Annotations = map[string]string{}
			}
			d.Metadata.Annotations[revisions.AnnotationRetry] = revisions.Failure(f)
		}
	})
}

// checkOutcome compares the status with what is so.
func (s *sim) checkOutcome() {
	s.tb.Helper()
	d, f := s.deployment(), s.deployment().GetStatus().GetFailedRollout()
	replicas := d.GetSpec().GetReplicas()
	if f == nil {
		if s.progressing().GetReason() != rollout.ReasonComplete {
			s.tb.Fatalf("neither complete nor failed: %v\n%s", d.GetStatus(), s.dump())
		}
		return // a bad image with no replicas, or one that was complete when it was scaled to none
	}
	if f.GetRevision() != revisions.Of(d) || s.setOf(f.GetRevision()).GetMetadata().GetName() != f.GetReplicaSet() {
		s.tb.Fatalf("failed %v, the deployment is at revision %d", f, revisions.Of(d))
	}
	if f.GetRunningRevision() == 0 {
		if s.progressing().GetReason() != rollout.ReasonDeadlineExceeded {
			s.tb.Fatalf("stands still: %v", s.progressing())
		}
		return
	}
	running := s.setOf(f.GetRunningRevision())
	for _, p := range s.pods() {
		if !object.IsControlledBy(p, running) {
			s.tb.Fatalf("revision %d is said to run: %v\n%s", f.GetRunningRevision(), d.GetStatus(), s.dump())
		}
	}
	runsBad := strings.HasPrefix(running.GetSpec().GetTemplate().GetSpec().GetContainers()[0].GetImage(), "bad:")
	if n := int32(len(s.pods())); n != replicas || d.GetStatus().GetUpdatedReplicas() != n || !runsBad && s.progressing().GetReason() != rollout.ReasonRolledBack {
		s.tb.Fatalf("%d pods of %d: %v\n%s", n, replicas, d.GetStatus(), s.dump())
	}
}

func TestABadImageIsTakenBackAndSaysWhy(t *testing.T) {
	s := newSim(t, failing(3, ""))
	s.converge()
	s.image("bad:1")
	s.play(testDeadline / 2 * time.Second)
	for _, p := range s.pods() {
		if bad(p) {
			s.editPod(p, func(p *balsav1.Pod) {
				p.Status.Phase = object.PodPending
				p.Status.ContainerStatuses = []*balsav1.ContainerStatus{{Name: "web", State: &balsav1.ContainerState{
					Waiting: &balsav1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "bad:1": not found`},
				}}}
			})
		}
	}
	s.play(testDeadline * 2 * time.Second)
	f := s.deployment().GetStatus().GetFailedRollout()
	if f.GetReason() != "ImagePullBackOff" || !strings.Contains(f.GetMessage(), "not found") || f.GetRevision() != 2 || f.GetRunningRevision() != 1 || s.progressing().GetReason() != rollout.ReasonRolledBack {
		t.Fatalf("failed %v, condition %v", f, s.progressing())
	}
	if !contains(s.Events, "Warning RollingBack") || !contains(s.Events, "Normal RolledBack") {
		t.Errorf("events %q", s.Events)
	}
	if image := s.deployment().GetSpec().GetTemplate().GetSpec().GetContainers()[0].GetImage(); image != "bad:1" {
		t.Errorf("the spec was changed to %s", image)
	}
	before := f
	s.retry()
	s.play(10 * time.Second)
	if s.deployment().GetStatus().GetFailedRollout() != nil || s.progressing().GetStatus() != object.ConditionTrue {
		t.Fatalf("retried: %v", s.deployment().GetStatus())
	}
	s.play(testDeadline * 2 * time.Second)
	if f := s.deployment().GetStatus().GetFailedRollout(); f == nil || !f.GetTime().AsTime().After(before.GetTime().AsTime()) {
		t.Errorf("does not fail again: %v", f)
	}
}

func contains(texts []string, part string) bool {
	for _, text := range texts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// TestNeverReadySaysWhatTheProbeSaid: agents tell it as an event only.
func TestNeverReadySaysWhatTheProbeSaid(t *testing.T) {
	s := newSim(t, failing(1, ""))
	s.converge()
	s.image("bad:1")
	s.play(testDeadline / 2 * time.Second)
	for _, p := range s.pods() {
		if bad(p) {
			s.editPod(p, func(p *balsav1.Pod) {
				p.Status.Phase = object.PodRunning
				p.Status.ContainerStatuses = []*balsav1.ContainerStatus{{Name: "web", State: &balsav1.ContainerState{Running: &balsav1.ContainerStateRunning{}}}}
			})
			s.tell(p, "Readiness probe failed: GET /ready: 503")
		}
	}
	s.play(testDeadline * 2 * time.Second)
	if f := s.deployment().GetStatus().GetFailedRollout(); f.GetReason() != revisions.ReasonNeverReady || !strings.Contains(f.GetMessage(), "GET /ready: 503") {
		t.Errorf("failed %v", f)
	}
}

// tell puts an event of an agent where agents' events are.
func (s *sim) tell(p *balsav1.Pod, message string) {
	s.tb.Helper()
	e := &balsav1.Event{
		Metadata: &balsav1.ObjectMeta{Name: p.GetMetadata().GetName() + ".1234", Namespace: "default"}, InvolvedObject: object.Reference(p),
		Type: object.EventWarning, Reason: "Unhealthy", Message: message,
	}
	if err := control.Stamp(e, s.Kit().Rand, s.Clock.Now()); err != nil {
		s.tb.Fatalf("%v", err)
	}
	c := control.NewChange("event")
	if err := c.Create(e); err != nil {
		s.tb.Fatalf("%v", err)
	}
	if err := control.NewWriter(s.World, s.Store.Space(store.SpaceEvents), s.Clock, 0).Commit(s.ctx(), c); err != nil {
		s.tb.Fatalf("%v", err)
	}
}

// TestNothingToGoBackTo: the first revision of all never worked.
func TestNothingToGoBackTo(t *testing.T) {
	s := newSim(t, failing(2, "rollback"))
	s.image("bad:1")
	s.play(testDeadline * 3 * time.Second)
	f := s.deployment().GetStatus().GetFailedRollout()
	if f == nil || f.GetRunningRevision() != 0 || !strings.Contains(s.progressing().GetMessage(), "no other revision was ever complete") {
		t.Fatalf("failed %v, condition %v", f, s.progressing())
	}
	if n := len(s.pods()); n != 2 {
		t.Errorf("%d pods: the rollout shall stand still", n)
	}
	s.image("web:1")
	s.converge()
}

// TestPauseLeavesEverythingAsItIs: onFailure pause keeps old and new pods, through
// whatever time, and goes back when it becomes rollback.
func TestPauseLeavesEverythingAsItIs(t *testing.T) {
	s := newSim(t, failing(4, "pause"))
	s.converge()
	s.image("bad:1")
	s.play(testDeadline * 2 * time.Second)
	before := s.dump()
	if f := s.deployment().GetStatus().GetFailedRollout(); f == nil || f.GetRunningRevision() != 0 {
		t.Fatalf("failed %v", f)
	}
	s.play(testDeadline * 3 * time.Second)
	if after := s.dump(); after != before {
		t.Errorf("does not stay:\n%s\n%s", before, after)
	}
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { d.Spec.OnFailure = "rollback" })
	s.play(testDeadline * time.Second)
	if s.progressing().GetReason() != rollout.ReasonRolledBack || s.deployment().GetStatus().GetFailedRollout().GetRunningRevision() != 1 {
		t.Errorf("status %v", s.deployment().GetStatus())
	}
}

// TestAnOutageIsNoFailure: nobody led for longer than the deadline, in the middle
// of a rollout that has nothing wrong with it.
func TestAnOutageIsNoFailure(t *testing.T) {
	s := newSim(t, failing(4, ""))
	s.converge()
	s.image("web:2")
	s.Step(s.rollout)
	s.stepWorkload()
	s.Clock.Advance(time.Hour)
	s.rollout, s.workload = rollout.New(s.Kit(), rt.Secrets{}, s.Store.Space(store.SpaceEvents)), workload.New(s.Kit())
	s.converge()
	if contains(s.Events, "RollingBack") {
		t.Errorf("events %q", s.Events)
	}
}

// TestAnAutoscalerDoesNotKeepAFailedRolloutAlive: replicas that go up and down are
// no progress.
func TestAnAutoscalerDoesNotKeepAFailedRolloutAlive(t *testing.T) {
	s := newSim(t, failing(4, ""))
	s.converge()
	s.image("bad:1")
	for i := range 40 {
		rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { d.Spec.Replicas = proto.Int32(4 + int32(i%3)) })
		s.excuse = max(s.excuse, s.total())
		s.play(10 * time.Second)
	}
	if s.progressing().GetReason() != rollout.ReasonRolledBack && s.progressing().GetReason() != rollout.ReasonRollingBack {
		t.Fatalf("condition %v\n%s", s.progressing(), s.dump())
	}
	s.play(testDeadline * time.Second)
	if n := int32(len(s.pods())); n != s.deployment().GetSpec().GetReplicas() || s.deployment().GetStatus().GetAvailableReplicas() != n {
		t.Errorf("scaling does not go on:\n%s", s.dump())
	}
}
