package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func formatRevision(n int64) string { return strconv.FormatInt(n, 10) }

// soon makes the next look no later than in d.
func (p *planner) soon(d time.Duration) {
	if d > 0 && (p.Again == 0 || d < p.Again) {
		p.Again = d
	}
}

// complete tells whether exactly the replicas of the current template are there
// and available.
func (p *planner) complete() bool {
	return p.fresh != nil && p.fresh.spec == p.replicas && p.fresh.live == p.replicas && p.fresh.available == p.replicas &&
		sum(p.old, (*counts).total) == 0
}

func (p *planner) status() {
	d := p.Deployment
	next := &balsav1.DeploymentStatus{
		ObservedGeneration: d.GetMetadata().GetGeneration(),
		Replicas:           sum(p.sets, func(c *counts) int32 { return c.live }),
		ReadyReplicas:      sum(p.sets, func(c *counts) int32 { return c.ready }),
		AvailableReplicas:  sum(p.sets, func(c *counts) int32 { return c.available }),
		Conditions:         d.GetStatus().GetConditions(),
	}
	if d.GetStatus() != nil {
		next.CollisionCount = d.GetStatus().CollisionCount
	}
	if p.fresh != nil {
		next.UpdatedReplicas = p.fresh.live
	}
	next.UnavailableReplicas = max(0, next.Replicas-next.AvailableReplicas)
	if p.collisions != d.GetStatus().GetCollisionCount() {
		next.CollisionCount = proto.Int32(p.collisions)
	}
	for _, c := range p.sets {
		p.soon(c.wait)
	}
	next.Conditions, _ = object.SetCondition(next.Conditions, p.availableCondition(next), p.now)
	p.progressing(next)
	if !proto.Equal(next, d.GetStatus()) {
		p.Status = next
	}
}

func (p *planner) availableCondition(s *balsav1.DeploymentStatus) *balsav1.Condition {
	c := &balsav1.Condition{
		Type: object.ConditionAvailable, Status: object.ConditionTrue, Reason: ReasonAvailable,
		Message: fmt.Sprintf("at least %d of %d pods are available", p.least(), p.replicas),
	}
	if s.AvailableReplicas < p.least() {
		c.Status, c.Reason = object.ConditionFalse, ReasonUnavailable
		c.Message = fmt.Sprintf("fewer than %d of %d pods are available", p.least(), p.replicas)
	}
	return c
}

// progressing sets the condition by which a rollout is known to go on, be done or
// hang. Its lastTransitionTime is when there was progress last, so that a new
// leader counts the deadline on.
func (p *planner) progressing(s *balsav1.DeploymentStatus) {
	old := object.FindCondition(s.Conditions, object.ConditionProgressing)
	if old == nil && p.started == "" && p.fresh != nil {
		p.started = ReasonFoundReplicaSet
	}
	switch {
	case p.started != "":
		p.setProgressing(s, object.ConditionTrue, p.started, p.freshName()+" is rolled out")
	case old == nil, p.fresh == nil, old.GetReason() == ReasonComplete:
	case p.complete():
		p.setProgressing(s, object.ConditionTrue, ReasonComplete, p.freshName()+" is complete")
	case progressed(p.Deployment.GetStatus(), s):
		p.setProgressing(s, object.ConditionTrue, ReasonUpdated, p.freshName()+" makes progress")
	default:
		p.checkDeadline(s, old)
	}
}

// checkDeadline gives up hope, in words only, when there was no progress for too
// long. The rollout itself goes on.
func (p *planner) checkDeadline(s *balsav1.DeploymentStatus, old *balsav1.Condition) {
	if old.GetStatus() == object.ConditionFalse {
		return
	}
	seconds := object.DefaultProgressDeadline
	if given := p.Deployment.GetSpec().ProgressDeadlineSeconds; given != nil {
		seconds = *given
	}
	left := old.GetLastTransitionTime().AsTime().Add(time.Duration(seconds) * time.Second).Sub(p.now)
	if left > 0 {
		p.soon(left)
		return
	}
	message := fmt.Sprintf("%s has made no progress for %d seconds", p.freshName(), seconds)
	if problem := p.problem(); problem != "" {
		message += "; " + problem
	}
	p.setProgressing(s, object.ConditionFalse, ReasonDeadlineExceeded, message)
}

func (p *planner) freshName() string { return "replicaset " + strconv.Quote(p.fresh.name()) }

func (p *planner) setProgressing(s *balsav1.DeploymentStatus, status, reason, message string) {
	c := &balsav1.Condition{
		Type: object.ConditionProgressing, Status: status, Reason: reason, Message: message,
		LastTransitionTime: timestamppb.New(p.now),
	}
	s.Conditions = slices.Clone(s.Conditions)
	for i, old := range s.Conditions {
		if old.GetType() == c.Type {
			s.Conditions[i] = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

func progressed(old, next *balsav1.DeploymentStatus) bool {
	return next.GetUpdatedReplicas() > old.GetUpdatedReplicas() || next.GetReadyReplicas() > old.GetReadyReplicas() ||
		next.GetAvailableReplicas() > old.GetAvailableReplicas() ||
		next.GetReplicas()-next.GetUpdatedReplicas() < old.GetReplicas()-old.GetUpdatedReplicas()
}

// problem is what the first pod of the new template that is not available says of
// itself, by name.
func (p *planner) problem() string {
	var pods []*balsav1.Pod
	for _, s := range p.Sets {
		if s.ReplicaSet == p.fresh.rs {
			pods = slices.Clone(s.Pods)
		}
	}
	slices.SortFunc(pods, func(a, b *balsav1.Pod) int { return cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName()) })
	for _, pod := range pods {
		if text := podProblem(pod); text != "" && object.PodActive(pod) && !object.PodReady(pod) {
			return object.Describe(pod) + ": " + text
		}
	}
	return ""
}

func podProblem(pod *balsav1.Pod) string {
	scheduled := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionPodScheduled)
	if scheduled.GetStatus() == object.ConditionFalse {
		return scheduled.GetMessage()
	}
	for _, c := range pod.GetStatus().GetContainerStatuses() {
		if w := c.GetState().GetWaiting(); w.GetReason() != "" {
			return fmt.Sprintf("container %q: %s: %s", c.GetName(), w.GetReason(), w.GetMessage())
		}
	}
	if pod.GetStatus().GetPhase() == object.PodRunning {
		return "is running but not ready"
	}
	return ""
}
