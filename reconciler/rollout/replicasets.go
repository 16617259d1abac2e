package rollout

import (
	"maps"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// newReplicaSet makes the ReplicaSet of a Deployment's pinned template, with no
// replicas yet and without uid and times.
func newReplicaSet(d *balsav1.Deployment, pinned Pinned, collisions int32) *balsav1.ReplicaSet {
	hash := object.TemplateHash(pinned.Template, collisions)
	template := proto.CloneOf(pinned.Template)
	if template == nil {
		template = &balsav1.PodTemplateSpec{}
	}
	if template.Metadata == nil {
		template.Metadata = &balsav1.ObjectMeta{}
	}
	if template.Metadata.Labels == nil {
		template.Metadata.Labels = map[string]string{}
	}
	template.Metadata.Labels[object.LabelTemplateHash] = hash
	selector := proto.CloneOf(d.GetSpec().GetSelector())
	if selector == nil {
		selector = &balsav1.LabelSelector{}
	}
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[object.LabelTemplateHash] = hash
	rs := &balsav1.ReplicaSet{
		Metadata: &balsav1.ObjectMeta{
			Name: d.GetMetadata().GetName() + "-" + hash, Namespace: d.GetMetadata().GetNamespace(),
			Labels: maps.Clone(template.Metadata.Labels), OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(d)},
		},
		Spec: &balsav1.ReplicaSetSpec{Replicas: proto.Int32(0), Selector: selector, Template: template, MinReadySeconds: d.GetSpec().MinReadySeconds},
	}
	setAnnotation(rs, revisions.AnnotationPins, revisions.FormatPins(pinned.Pins))
	copyChangeCause(d, rs)
	return rs
}

// setAnnotation sets one, or removes it for "".
func setAnnotation(m object.Message, key, value string) {
	meta := object.EnsureMetadata(m)
	if value == "" {
		delete(meta.Annotations, key)
		return
	}
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Annotations[key] = value
}

func copyChangeCause(d *balsav1.Deployment, rs *balsav1.ReplicaSet) {
	if cause, ok := d.GetMetadata().GetAnnotations()[AnnotationChangeCause]; ok {
		setAnnotation(rs, AnnotationChangeCause, cause)
	}
}

// updates turns what the plan changed in counts into ReplicaSets. Any part of
// them is safe to write without the rest.
func (p *planner) updates() {
	if p.Create != nil {
		p.Create.Spec.Replicas = proto.Int32(p.fresh.spec)
		p.setScale(p.fresh, p.Create)
		p.bytes += proto.Size(p.Create)
	}
	for _, c := range p.sets {
		if c.rs == p.Create {
			continue
		}
		next := p.updated(c)
		if object.Same(next, c.rs) {
			continue
		}
		if size := proto.Size(next); len(p.Update) == maxSetsPerStep || len(p.Update) > 0 && !p.fits(size) {
			p.soon(time.Nanosecond)
			return
		}
		p.bytes += proto.Size(next)
		object.BumpGeneration(c.rs, next)
		p.Update = append(p.Update, next)
		if from := c.rs.GetSpec().GetReplicas(); from != c.spec {
			p.moved = !p.rescaled
			p.note(object.EventNormal, "ScalingReplicaSet", "replicaset "+strconv.Quote(c.name())+" from "+strconv.Itoa(int(from))+" to "+strconv.Itoa(int(c.spec))+" replicas")
		}
	}
}

// updated is a ReplicaSet as it shall be.
func (p *planner) updated(c *counts) *balsav1.ReplicaSet {
	next := object.Clone(c.rs)
	next.Spec.Replicas = proto.Int32(c.spec)
	if object.ControllerOf(next) == nil {
		next.Metadata.OwnerReferences = append(next.Metadata.OwnerReferences, object.NewControllerRef(p.Deployment))
	}
	p.setScale(c, next)
	if c == p.fresh {
		next.Spec.MinReadySeconds = p.Deployment.GetSpec().MinReadySeconds
		if !p.halted && p.replicas > 0 && p.complete() { // no pods prove nothing
			setAnnotation(next, revisions.AnnotationComplete, "true")
		}
	}
	if c == p.wanted && p.failure == nil && !p.halted {
		copyChangeCause(p.Deployment, next)
		setAnnotation(next, revisions.AnnotationPins, revisions.FormatPins(p.pinned.Pins))
		if p.Annotations[AnnotationRevision] != "" {
			setAnnotation(next, AnnotationRevision, p.Annotations[AnnotationRevision])
		}
	}
	return next
}

// setScale notes for how many replicas an active ReplicaSet was scaled.
func (p *planner) setScale(c *counts, next *balsav1.ReplicaSet) {
	if c.spec > 0 && !c.keepScale {
		setAnnotation(next, annotationDesired, strconv.Itoa(int(p.replicas)))
		setAnnotation(next, annotationMax, strconv.Itoa(int(p.replicas+p.surge)))
	}
}

// cleanUp deletes the oldest ReplicaSets beyond the history, once the rollout is
// complete and nothing of them is left. That of the current template stays, also
// when it failed and another runs.
func (p *planner) cleanUp() {
	if p.halted || !p.complete() {
		return
	}
	limit := p.Deployment.GetSpec().GetRevisionHistoryLimit()
	if p.Deployment.GetSpec().RevisionHistoryLimit == nil {
		limit = object.DefaultRevisionHistoryLimit
	}
	var spare []*counts
	for _, c := range p.old {
		if c != p.wanted {
			spare = append(spare, c)
		}
	}
	surplus := len(spare) - int(limit)
	for _, c := range spare[:max(0, surplus)] {
		if len(p.Delete) < maxSetsPerStep && c.empty() {
			p.Delete = append(p.Delete, c.rs)
		}
	}
}

// empty tells whether a ReplicaSet has and wants no pods, and reconciler/workload
// knows it.
func (c *counts) empty() bool {
	status := c.rs.GetStatus()
	return c.rs.GetSpec().GetReplicas() == 0 && c.running == 0 && status.GetReplicas() == 0 &&
		status.GetObservedGeneration() >= c.rs.GetMetadata().GetGeneration()
}

// copySize is what a copy, or one more owner of it, adds to a transaction.
func copySize(c Copy) int {
	if c.Have != nil {
		return proto.Size(c.Have)
	}
	return proto.Size(c.From)
}
