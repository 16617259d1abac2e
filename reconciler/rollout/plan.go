package rollout

import (
	"fmt"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// maxSetsPerStep bounds the ReplicaSets that one plan writes or deletes, so that
// they fit one transaction.
const maxSetsPerStep = 50

// View is what a plan is made from.
type View struct {
	Deployment *balsav1.Deployment
	// Sets holds the ReplicaSets that the Deployment controls, and those without
	// a controller that its selector matches.
	Sets []Set
	// Taken tells whether a ReplicaSet of a name exists, whoever's it is.
	Taken func(name string) bool
	// Closing: the namespace is about to go, so nothing is made or moved.
	Closing bool
}

// Actions is the outcome of a plan.
type Actions struct {
	// Create is the ReplicaSet of a new template, without uid and times; nil: none.
	Create *balsav1.ReplicaSet
	// Update holds ReplicaSets as they shall be, changed clones.
	Update []*balsav1.ReplicaSet
	// Delete holds ReplicaSets that the history no longer keeps.
	Delete []*balsav1.ReplicaSet
	// Revision is what the Deployment's annotation shall say; 0: as it is.
	Revision int64
	// Status is the Deployment's once all this is done; nil: as it was.
	Status *balsav1.DeploymentStatus
	// Again is when to look again although nothing changes; 0: never.
	Again time.Duration
}

// Empty tells whether there is nothing to write.
func (a *Actions) Empty() bool {
	return a.Create == nil && len(a.Update) == 0 && len(a.Delete) == 0 && a.Revision == 0 && a.Status == nil
}

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	describe := func(verb string, rs *balsav1.ReplicaSet) {
		fmt.Fprintf(&b, "%s %s replicas=%d revision=%d\n", verb, rs.GetMetadata().GetName(), rs.GetSpec().GetReplicas(), revisionOf(rs))
	}
	if a.Create != nil {
		describe("create", a.Create)
	}
	for _, rs := range a.Update {
		describe("update", rs)
	}
	for _, rs := range a.Delete {
		describe("delete", rs)
	}
	if a.Revision > 0 {
		fmt.Fprintf(&b, "revision %d\n", a.Revision)
	}
	if s := a.Status; s != nil {
		fmt.Fprintf(&b, "status replicas=%d updated=%d ready=%d available=%d unavailable=%d generation=%d\n",
			s.GetReplicas(), s.GetUpdatedReplicas(), s.GetReadyReplicas(), s.GetAvailableReplicas(), s.GetUnavailableReplicas(), s.GetObservedGeneration())
		if n := s.GetCollisionCount(); n > 0 {
			fmt.Fprintf(&b, "collisions %d\n", n)
		}
		for _, c := range s.GetConditions() {
			fmt.Fprintf(&b, "condition %s=%s %s: %s\n", c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage())
		}
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// planner holds the plan while it is made. What it changes of ReplicaSets it
// keeps in counts until the end.
type planner struct {
	View
	Actions
	now time.Time
	// sets are all ReplicaSets, the oldest first; fresh is the one of the current
	// template, or nil; old are the others.
	sets, old []*counts
	fresh     *counts
	// surge and unavailable are the bounds in pods.
	replicas, surge, unavailable int32
	// started says why the condition Progressing begins anew; "": it does not.
	started    string
	collisions int32
}

// Plan decides what a Deployment needs at now.
func Plan(v View, now time.Time) (Actions, error) {
	d := v.Deployment
	p := &planner{View: v, now: now, replicas: d.GetSpec().GetReplicas(), collisions: d.GetStatus().GetCollisionCount()}
	var err error
	if p.surge, p.unavailable, err = bounds(d); err != nil {
		return Actions{}, fmt.Errorf("%s: %w", object.Describe(d), err)
	}
	p.sets = countSets(v, now)
	p.find()
	if !object.IsTerminating(d) && !v.Closing {
		p.ensure()
		if d.GetSpec().GetStrategy().GetType() == object.StrategyRecreate {
			p.recreate()
		} else {
			p.roll()
		}
		p.updates()
		p.cleanUp()
	}
	p.status()
	return p.Actions, nil
}

// bounds are those of the strategy: Recreate may end every pod and makes none
// beyond replicas.
func bounds(d *balsav1.Deployment) (surge, unavailable int32, err error) {
	if d.GetSpec().GetStrategy().GetType() == object.StrategyRecreate {
		return 0, d.GetSpec().GetReplicas(), nil
	}
	return object.RolloutBounds(d)
}

// find tells the ReplicaSet of the current template from the old ones. Of several
// with equal templates the oldest is taken, as in Kubernetes.
func (p *planner) find() {
	for _, c := range p.sets {
		if p.fresh == nil && object.TemplateEqual(c.rs.GetSpec().GetTemplate(), p.Deployment.GetSpec().GetTemplate()) {
			p.fresh = c
		} else {
			p.old = append(p.old, c)
		}
	}
}

// ensure makes the ReplicaSet of the current template, unless there is one, and
// gives it the newest revision. A name that is taken by a ReplicaSet of another
// template or owner is a collision: the next plan hashes with another count.
func (p *planner) ensure() {
	newest := int64(0)
	for _, c := range p.old {
		newest = max(newest, c.revision())
	}
	switch {
	case p.fresh == nil:
		rs := newReplicaSet(p.Deployment, p.collisions)
		if p.Taken(rs.GetMetadata().GetName()) {
			p.collisions++
			p.Again = time.Nanosecond
			return
		}
		p.Revision, p.started = newest+1, ReasonNewReplicaSet
		setAnnotation(rs, AnnotationRevision, formatRevision(p.Revision))
		p.Create = rs
		p.fresh = &counts{rs: rs}
		p.sets = append(p.sets, p.fresh)
	case p.fresh.revision() <= newest || p.fresh.revision() == 0:
		p.Revision, p.started = newest+1, ReasonFoundReplicaSet
	case p.fresh.revision() != revisionOf(p.Deployment):
		p.Revision, p.started = p.fresh.revision(), ReasonFoundReplicaSet
	}
}
