package rollout

import (
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// newReplicaSet makes the ReplicaSet of a Deployment's template, with no
// replicas yet and without uid and times.
func newReplicaSet(d *balsav1.Deployment, collisions int32) *balsav1.ReplicaSet {
	hash := object.TemplateHash(d.GetSpec().GetTemplate(), collisions)
	template := proto.CloneOf(d.GetSpec().GetTemplate())
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
	copyChangeCause(d, rs)
	return rs
}

func setAnnotation(m object.Message, key, value string) {
	meta := object.EnsureMetadata(m)
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
	}
	for _, c := range p.sets {
		if c.rs == p.Create {
			continue
		}
		next := p.updated(c)
		if object.Same(next, c.rs) {
			continue
		}
		if len(p.Update) == maxSetsPerStep {
			p.soon(time.Nanosecond)
			return
		}
		object.BumpGeneration(c.rs, next)
		p.Update = append(p.Update, next)
	}
}

// updated is a ReplicaSet as it shall be.
func (p *planner) updated(c *counts) *balsav1.ReplicaSet {
	next := object.Clone(c.rs)
	next.Spec.Replicas = proto.Int32(c.spec)
	if object.ControllerOf(next) == nil {
		next.Metadata.OwnerReferences = append(next.Metadata.OwnerReferences, object.NewControllerRef(p.Deployment))
	}
	if c == p.fresh {
		next.Spec.MinReadySeconds = p.Deployment.GetSpec().MinReadySeconds
		copyChangeCause(p.Deployment, next)
		if p.Revision > 0 {
			setAnnotation(next, AnnotationRevision, formatRevision(p.Revision))
		}
	}
	return next
}

// cleanUp deletes the oldest ReplicaSets beyond the history, once the rollout is
// complete and nothing of them is left.
func (p *planner) cleanUp() {
	if !p.complete() {
		return
	}
	limit := p.Deployment.GetSpec().GetRevisionHistoryLimit()
	if p.Deployment.GetSpec().RevisionHistoryLimit == nil {
		limit = object.DefaultRevisionHistoryLimit
	}
	surplus := len(p.old) - int(limit)
	for _, c := range p.old {
		if len(p.Delete) >= min(surplus, maxSetsPerStep) {
			return
		}
		if c.empty() {
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
