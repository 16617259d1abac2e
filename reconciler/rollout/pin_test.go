package rollout_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/store"
)

// refer makes the Deployment refer to ConfigMaps and Secrets as a whole.
func (s *configSim) refer(names ...revisions.Ref) {
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) {
		c := d.Spec.Template.Spec.Containers[0]
		c.EnvFrom = nil
		for _, ref := range names {
			from := &balsav1.EnvFromSource{ConfigMapRef: &balsav1.ObjectNameSelector{Name: ref.Name}}
			if ref.Kind == revisions.Secret {
				from = &balsav1.EnvFromSource{SecretRef: &balsav1.ObjectNameSelector{Name: ref.Name}}
			}
			c.EnvFrom = append(c.EnvFrom, from)
		}
		object.Default(d)
	})
	s.excuse = max(s.excuse, s.total())
}

// TestTooManyReferencesAreRefusedAndScalingGoesOn.
func TestTooManyReferencesAreRefusedAndScalingGoesOn(t *testing.T) {
	s := newConfigSim(t)
	s.rest()
	var many []revisions.Ref
	for i := range 65 {
		many = append(many, revisions.Ref{Kind: revisions.ConfigMap, Name: fmt.Sprintf("m%d", i)})
	}
	s.refer(many...)
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { *d.Spec.Replicas = 5 })
	s.excuse = 5
	for range 5 {
		s.Settle(s.rollout, s.workload)
		s.heal()
	}
	if c := s.progressing(); c.GetReason() != rollout.ReasonNotPinned || !strings.Contains(c.GetMessage(), "at most 64") || len(s.pods()) != 5 || len(s.sets()) != 1 {
		t.Fatalf("condition %v, %d pods, %d replicasets", c, len(s.pods()), len(s.sets()))
	}
	s.refer(many[:64]...)
	for _, ref := range many[:64] {
		s.write(ref, "x")
	}
	s.rest()
	if n := len(copies[*balsav1.ConfigMap](s.World, "ConfigMap")); n != 64 || s.progressing().GetReason() != rollout.ReasonComplete {
		t.Errorf("%d copies, condition %v", n, s.progressing())
	}
}

// TestGreatContentsComeInSeveralTransactions, and no pod before the last of them.
func TestGreatContentsComeInSeveralTransactions(t *testing.T) {
	s := newConfigSim(t)
	s.rest()
	var great []revisions.Ref
	for i := range 5 {
		great = append(great, revisions.Ref{Kind: revisions.ConfigMap, Name: fmt.Sprintf("great%d", i)})
		s.write(great[i], strings.Repeat("x", 600<<10))
	}
	s.refer(great...)
	for step := 1; ; step++ {
		s.Step(s.rollout)
		n := len(copies[*balsav1.ConfigMap](s.World, "ConfigMap"))
		if spec := s.fresh().GetSpec().GetReplicas(); n < 5 && spec > 0 {
			t.Fatalf("%d of 5 copies are there, and %d pods are ordered", n, spec)
		}
		if n == 5 {
			if step != 5 {
				t.Errorf("took %d steps: two copies do not fit one command", step)
			}
			break
		}
	}
	s.rest()
}

// unreadable opens nothing: the seal key is missing.
type unreadable struct{ rt.Secrets }

func (unreadable) Open(string, string, []byte) ([]byte, error) {
	return nil, errors.New("sealed with a key that this server does not have")
}

func TestASecretThatDoesNotOpenHoldsTheRolloutUp(t *testing.T) {
	s := newConfigSim(t)
	s.rest()
	s.write(revisions.Ref{Kind: revisions.Secret, Name: "key"}, "sesame")
	s.refer(revisions.Ref{Kind: revisions.Secret, Name: "key"})
	s.rollout = rollout.New(s.Kit(), unreadable{}, s.Store.Space(store.SpaceEvents))
	if again := s.Settle(s.rollout, s.workload); again == 0 {
		t.Error("is never tried again")
	}
	if c := s.progressing(); c.GetReason() != rollout.ReasonNotPinned || !strings.Contains(c.GetMessage(), "does not have") || len(s.sets()) != 1 {
		t.Fatalf("condition %v, %d replicasets", c, len(s.sets()))
	}
	if !contains(s.Events, "Warning "+rollout.ReasonNotPinned) {
		t.Errorf("events %q", s.Events)
	}
	s.rollout = rollout.New(s.Kit(), rt.Secrets{}, s.Store.Space(store.SpaceEvents))
	s.rest()
	if s.progressing().GetReason() != rollout.ReasonComplete {
		t.Errorf("condition %v", s.progressing())
	}
}

// TestADeletedCopyComesBack as long as its content is there.
func TestADeletedCopyComesBack(t *testing.T) {
	s := newConfigSim(t)
	app := refs()[0]
	s.write(app, "one")
	s.refer(app)
	s.rest()
	before := copies[*balsav1.ConfigMap](s.World, "ConfigMap")[0]
	revision := revisions.Of(s.deployment())
	s.Delete(before)
	s.Settle(s.rollout, s.workload)
	after := copies[*balsav1.ConfigMap](s.World, "ConfigMap")
	if len(after) != 1 || after[0].GetMetadata().GetName() != before.GetMetadata().GetName() || revisions.Of(s.deployment()) != revision {
		t.Errorf("copies %v, revision %d", after, revisions.Of(s.deployment()))
	}
}

// TestATakenNameGetsAnother: somebody's own object has the name of a copy.
func TestATakenNameGetsAnother(t *testing.T) {
	s := newConfigSim(t)
	app := refs()[0]
	s.write(app, "one")
	s.refer(app)
	s.Step(s.rollout)
	name := copies[*balsav1.ConfigMap](s.World, "ConfigMap")[0].GetMetadata().GetName()

	other := newConfigSim(t)
	other.write(app, "one")
	other.write(revisions.Ref{Kind: revisions.ConfigMap, Name: name}, "somebody's own")
	other.refer(app)
	other.rest()
	if got := pinsOf(t, other.fresh())[app]; got == name || other.read(app, got) != "one" {
		t.Errorf("pinned as %q", got)
	}
}

// TestTwoDeploymentsShareACopy, and it outlives the first.
func TestTwoDeploymentsShareACopy(t *testing.T) {
	s := newConfigSim(t)
	app := refs()[0]
	s.write(app, "one")
	s.refer(app)
	s.rest()
	second := object.Clone(s.deployment())
	second.Metadata = &balsav1.ObjectMeta{Name: "second", Namespace: "default"}
	second.Status = nil
	s.Put(second)
	s.Settle(s.rollout)
	if c := copies[*balsav1.ConfigMap](s.World, "ConfigMap"); len(c) != 1 || len(c[0].GetMetadata().GetOwnerReferences()) != 2 {
		t.Fatalf("copies %v", c)
	}
	s.Delete(s.deployment())
	for range 5 {
		s.Step(s.gc)
	}
	if c := copies[*balsav1.ConfigMap](s.World, "ConfigMap"); len(c) != 1 || len(c[0].GetMetadata().GetOwnerReferences()) != 1 {
		t.Errorf("copies %v", c)
	}
}

// TestAnEditOfLabelsIsNoRevision, nor is one that changes nothing: neither ends an
// undo.
func TestAnEditOfLabelsIsNoRevision(t *testing.T) {
	s := newConfigSim(t)
	app := refs()[0]
	s.write(app, "one")
	s.refer(app)
	s.rest()
	first := s.fresh()
	s.write(app, "two")
	s.rest()
	s.undo(first)
	revision := revisions.Of(s.deployment())
	rt.Edit(s.World, s.key(app, app.Name), func(m *balsav1.ConfigMap) { m.Metadata.Labels = map[string]string{"a": "b"} })
	s.user = map[string]string{}
	s.rest()
	if now := revisions.Of(s.deployment()); now != revision || s.resolved(s.fresh())[app] != "one" {
		t.Errorf("revision %d became %d, pods see %v", revision, now, s.resolved(s.fresh()))
	}
	s.write(app, "three")
	s.rest()
	s.write(app, "two") // what the undo passed over, but that is over
	s.rest()
	if got := s.resolved(s.fresh())[app]; got != "two" {
		t.Errorf("pods see %q", got)
	}
}

// TestASpoiltAnnotationIsToldAndNothingMoves.
func TestASpoiltAnnotationIsToldAndNothingMoves(t *testing.T) {
	s := newConfigSim(t)
	s.rest()
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) {
		d.Metadata.Annotations[revisions.AnnotationPinned] = "{"
		d.Spec.Template.Spec.Containers[0].Image = "web:2"
	})
	s.Settle(s.rollout, s.workload)
	if c := s.progressing(); c.GetReason() != rollout.ReasonNotPinned || !strings.Contains(c.GetMessage(), revisions.AnnotationPinned) || len(s.sets()) != 1 {
		t.Errorf("condition %v", c)
	}
	s.Clock.Advance(time.Hour)
	s.Settle(s.rollout, s.workload)
	if s.deployment().GetStatus().GetFailedRollout() != nil {
		t.Error("is given up, though it was never begun")
	}
}
