package rollout

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

const (
	// maxSetsPerStep bounds the ReplicaSets that one plan writes, and those that it
	// deletes; maxCopiesPerStep the copies that it makes or becomes an owner of. So
	// they fit one transaction (control.MaxOps).
	maxSetsPerStep   = 30
	maxCopiesPerStep = 32
	// maxStepBytes bounds what one plan writes, but for the first object of each
	// sort: a ConfigMap has up to 1 MiB, a command of the cluster up to 2.
	maxStepBytes = 768 << 10
)

// View is what a plan is made from.
type View struct {
	Deployment *balsav1.Deployment
	// Sets holds the ReplicaSets that the Deployment controls, and those without
	// a controller that its selector matches.
	Sets []Set
	// Taken tells whether a ReplicaSet of a name exists, whoever's it is.
	Taken func(name string) bool
	// Contents is what the template refers to. Unreadable says why it is not known;
	// nil: it is.
	Contents   Contents
	Unreadable error
	// Said gives the last warning that was told of a pod; nil: nothing is known.
	Said func(*balsav1.Pod) string
	// FirstSeen tells when a ReplicaSet of a name was wanted first, which may be now;
	// nil: long ago.
	FirstSeen func(name string) time.Time
	// Patience is until when no rollout is given up: what stood still because nobody
	// led has to move first.
	Patience time.Time
	// Closing: the namespace is about to go, so nothing is made or moved.
	Closing bool
}

// Actions is the outcome of a plan.
type Actions struct {
	// Create is the ReplicaSet of a new template, without uid and times; nil: none.
	Create *balsav1.ReplicaSet
	// Copies are made, or get one owner more: the ReplicaSet Owner, which is Create
	// or one that there is.
	Copies []Copy
	Owner  *balsav1.ReplicaSet
	// Update holds ReplicaSets as they shall be, changed clones.
	Update []*balsav1.ReplicaSet
	// Delete holds ReplicaSets that the history no longer keeps.
	Delete []*balsav1.ReplicaSet
	// Annotations are those of the Deployment that shall change; "": removed.
	Annotations map[string]string
	// Status is the Deployment's once all this is done; nil: as it was.
	Status *balsav1.DeploymentStatus
	// Notes are told as events.
	Notes []Note
	// Again is when to look again although nothing changes; 0: never.
	Again time.Duration
}

// Note is an event about the Deployment.
type Note struct{ Type, Reason, Message string }

// Empty tells whether there is nothing to write.
func (a *Actions) Empty() bool {
	return a.Create == nil && len(a.Copies) == 0 && len(a.Update) == 0 && len(a.Delete) == 0 && len(a.Annotations) == 0 && a.Status == nil
}

// planner holds the plan while it is made. What it changes of ReplicaSets it
// keeps in counts until the end.
type planner struct {
	View
	Actions
	now time.Time
	// pinned is the template as its ReplicaSet has it; problem says why there is
	// none, "" otherwise.
	pinned  Pinned
	problem string
	// sets are all ReplicaSets, the oldest first; wanted is the one of the current
	// template, or nil; fresh is the one that gets the replicas: wanted, or that of
	// an earlier revision when the rollout failed; old are the others than fresh.
	sets, old     []*counts
	wanted, fresh *counts
	// failure is the failed rollout that still counts, nil: none. Never written.
	failure *balsav1.FailedRollout
	// halted: nothing is rolled out, but scaling goes on.
	halted bool
	// incomplete: not all copies of fresh are there yet, so it gets no more pods.
	incomplete bool
	// surge and unavailable are the bounds in pods.
	replicas, surge, unavailable int32
	// started says why the condition Progressing begins anew; "": it does not.
	started    string
	collisions int32
	bytes      int
	// rescaled: the Deployment's replicas were changed. moved: the plan changes how
	// many pods there are to be, and not for that reason.
	rescaled, moved bool
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
	p.pin()
	p.find()
	p.resume()
	if !object.IsTerminating(d) && !v.Closing {
		p.move()
	}
	p.status()
	return p.Actions, nil
}

// move decides what becomes of ReplicaSets and copies.
func (p *planner) move() {
	p.halted = p.halted || p.Deployment.GetSpec().GetPaused() || p.problem != ""
	if !p.halted && p.failure == nil {
		p.ensure()
	}
	p.hold()
	p.rescaled = p.wasRescaled()
	recreate := p.Deployment.GetSpec().GetStrategy().GetType() == object.StrategyRecreate
	switch {
	case p.halted:
		p.scale(recreate)
	case recreate:
		p.recreate()
	default:
		if p.failure == nil && p.rescaled {
			p.spread()
		}
		p.roll()
	}
	p.updates()
	p.cleanUp()
}

// bounds are those of the strategy: Recreate may end every pod and makes none
// beyond replicas.
func bounds(d *balsav1.Deployment) (surge, unavailable int32, err error) {
	if d.GetSpec().GetStrategy().GetType() == object.StrategyRecreate {
		return 0, d.GetSpec().GetReplicas(), nil
	}
	return object.RolloutBounds(d)
}

// pin finds out what the template's ReplicaSet has to look like.
func (p *planner) pin() {
	err := p.Unreadable
	var overrides map[revisions.Ref]revisions.Override
	text := p.Deployment.GetMetadata().GetAnnotations()[revisions.AnnotationPinned]
	if err == nil {
		overrides, err = revisions.ParsePinned(text)
	}
	if err == nil {
		p.pinned, err = Pin(p.Deployment.GetSpec().GetTemplate(), p.Contents, overrides)
	}
	if err != nil {
		p.problem = err.Error()
		return
	}
	if held := revisions.FormatPinned(p.pinned.Overrides); held != text {
		p.annotate(revisions.AnnotationPinned, held)
	}
	for _, ended := range p.pinned.Ended {
		p.note(object.EventNormal, "PinEnded", ended+"; the live object counts again")
	}
}

// find tells the ReplicaSet of the current template from the others. Of several
// with equal templates the oldest is taken, as in Kubernetes.
//
// A Deployment that an earlier version stored may lack what is a default now, and
// the ReplicaSet that is made of it has it: both are the same.
func (p *planner) find() {
	if p.problem == "" {
		defaulted := &balsav1.ReplicaSet{Spec: &balsav1.ReplicaSetSpec{Template: proto.CloneOf(p.pinned.Template)}}
		object.Default(defaulted)
		for _, c := range p.sets {
			t := c.rs.GetSpec().GetTemplate()
			if object.TemplateEqual(t, p.pinned.Template) || object.TemplateEqual(t, defaulted.GetSpec().GetTemplate()) {
				p.wanted = c
				break
			}
		}
	}
	p.choose(p.wanted)
}

// choose makes a ReplicaSet the one that gets the replicas.
func (p *planner) choose(fresh *counts) {
	p.fresh, p.old = fresh, nil
	for _, c := range p.sets {
		if c != fresh {
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
	case p.wanted == nil && p.settling():
		p.choose(p.sets[len(p.sets)-1])
	case p.wanted == nil:
		rs := newReplicaSet(p.Deployment, p.pinned, p.collisions)
		if p.Taken(rs.GetMetadata().GetName()) {
			p.collisions++
			p.Again = time.Nanosecond
			return
		}
		p.begin(newest+1, ReasonNewReplicaSet)
		setAnnotation(rs, AnnotationRevision, formatRevision(newest+1))
		p.Create = rs
		p.wanted = &counts{rs: rs}
		p.note(object.EventNormal, "NewReplicaSet", p.newSetMessage(newest+1))
		p.sets = append(p.sets, p.wanted)
		p.choose(p.wanted)
	case p.wanted.revision() <= newest || p.wanted.revision() == 0:
		p.begin(newest+1, ReasonFoundReplicaSet)
	case p.wanted.revision() != revisions.Of(p.Deployment):
		p.begin(p.wanted.revision(), ReasonFoundReplicaSet)
	}
}

// contentsSettle is how long contents stay as they are before a revision is made
// for them alone: what is applied together, ConfigMaps, Secrets and the Deployment
// at the end, is one revision.
const contentsSettle = time.Second

// settling tells whether only contents have changed, and only just. Meanwhile the
// newest revision is rolled out on.
func (p *planner) settling() bool {
	if p.FirstSeen == nil || len(p.changedContents()) == 0 {
		return false
	}
	left := p.FirstSeen(p.wantedName()).Add(contentsSettle).Sub(p.now)
	if left <= 0 {
		return false
	}
	p.soon(left)
	return true
}

// begin starts a rollout of a revision.
func (p *planner) begin(revision int64, reason string) {
	p.started = reason
	p.annotate(AnnotationRevision, formatRevision(revision))
}

// revisionNow is the Deployment's revision once the plan is carried out.
func (p *planner) revisionNow() int64 {
	if text, ok := p.Annotations[AnnotationRevision]; ok {
		return revisions.Of(&balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Annotations: map[string]string{AnnotationRevision: text}}})
	}
	return revisions.Of(p.Deployment)
}

func (p *planner) newSetMessage(revision int64) string {
	text := fmt.Sprintf("made replicaset %q for revision %d", p.wanted.name(), revision)
	if changed := p.changedContents(); len(changed) > 0 {
		text += ": other contents of " + strings.Join(changed, ", ")
	}
	return text
}

// changedContents names the objects that are all that a new revision differs in
// from the one before it; none if it differs in the template.
func (p *planner) changedContents() (changed []string) {
	if len(p.old) == 0 {
		return nil
	}
	before := p.old[len(p.old)-1].rs
	was, err := revisions.ParsePins(before.GetMetadata().GetAnnotations()[revisions.AnnotationPins])
	if err != nil || !object.TemplateEqual(revisions.Original(before.GetSpec().GetTemplate(), was), p.Deployment.GetSpec().GetTemplate()) {
		return nil
	}
	for _, use := range revisions.Uses(p.Deployment.GetSpec().GetTemplate()) {
		if was[use.Ref] != p.pinned.Pins[use.Ref] {
			changed = append(changed, use.Ref.String())
		}
	}
	return changed
}

func (p *planner) annotate(key, value string) {
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[key] = value
}

func (p *planner) note(eventType, reason, message string) {
	p.Notes = append(p.Notes, Note{eventType, reason, message})
}

// hold sees to it that the copies of the wanted ReplicaSet are there and have it
// as an owner, as many at a time as fit one transaction.
func (p *planner) hold() {
	if p.wanted == nil || p.wanted != p.fresh || p.halted {
		return
	}
	for _, c := range p.pinned.Copies {
		if c.Have != nil && isOwner(c.Have, p.wanted.rs) {
			continue
		}
		if len(p.Copies) == maxCopiesPerStep || len(p.Copies) > 0 && !p.fits(copySize(c)) {
			p.incomplete = true
			p.soon(time.Nanosecond)
			return
		}
		p.bytes += copySize(c)
		p.Copies = append(p.Copies, c)
		p.Owner = p.wanted.rs
	}
}

func (p *planner) fits(bytes int) bool { return p.bytes+bytes <= maxStepBytes }
