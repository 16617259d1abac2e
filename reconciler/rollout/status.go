package rollout

import (
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

// complete tells whether exactly the replicas of the ReplicaSet that shall run are
// there and available.
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
	switch {
	case p.problem != "":
		s.FailedRollout = p.failure
		p.setProgressing(s, object.ConditionFalse, ReasonNotPinned, "nothing is rolled out: "+p.problem)
	case p.failure != nil:
		p.tellFailure(s)
	case p.Deployment.GetSpec().GetPaused():
		p.setProgressing(s, object.ConditionUnknown, ReasonPaused, "the deployment is paused: it is scaled, but nothing is rolled out")
	case p.started != "":
		p.restart(s, object.ConditionTrue, p.started, p.freshName()+" is rolled out")
	case p.fresh == nil: // its name is taken, and it gets another
	case old.GetReason() == ReasonPaused:
		p.restart(s, object.ConditionUnknown, ReasonResumed, p.freshName()+" is rolled out on")
	case old.GetReason() == ReasonComplete:
	case p.complete():
		p.setProgressing(s, object.ConditionTrue, ReasonComplete, p.freshName()+" is complete")
		p.annotateProgress("")
	case old == nil, old.GetStatus() == object.ConditionFalse:
		p.restart(s, object.ConditionTrue, ReasonFoundReplicaSet, p.freshName()+" is rolled out")
	case p.progressed():
		p.setProgressing(s, object.ConditionTrue, ReasonUpdated, p.freshName()+" makes progress")
		p.touch(s)
	default:
		p.checkDeadline(s, old)
	}
}

// restart sets the condition and counts progress from here.
func (p *planner) restart(s *balsav1.DeploymentStatus, status, reason, message string) {
	p.setProgressing(s, status, reason, message)
	p.touch(s)
	p.annotateProgress(p.reached().String())
}

// checkDeadline gives a rollout up when there was no progress for too long. It is
// not the pods' fault that replicas are moved only now, and so they get the time
// for that: a rollout has only so many moves.
func (p *planner) checkDeadline(s *balsav1.DeploymentStatus, old *balsav1.Condition) {
	end := old.GetLastTransitionTime().AsTime().Add(time.Duration(p.deadline()) * time.Second)
	if p.Patience.After(end) {
		end = p.Patience
	}
	switch left := end.Sub(p.now); {
	case left > 0:
		p.soon(left)
	case p.moved:
		p.touch(s)
	default:
		p.fail(s)
	}
}

func (p *planner) freshName() string { return "replicaset " + strconv.Quote(p.fresh.name()) }

// setProgressing sets the condition, and the time with it unless it says the same
// already. What people have to know is told as an event.
func (p *planner) setProgressing(s *balsav1.DeploymentStatus, status, reason, message string) {
	c := &balsav1.Condition{
		Type: object.ConditionProgressing, Status: status, Reason: reason, Message: message,
		LastTransitionTime: timestamppb.New(p.now),
	}
	s.Conditions = slices.Clone(s.Conditions)
	i := slices.IndexFunc(s.Conditions, func(old *balsav1.Condition) bool { return old.GetType() == c.Type })
	if i < 0 {
		s.Conditions = append(s.Conditions, c)
		p.tellChange("", c)
		return
	}
	old := s.Conditions[i]
	if old.GetStatus() == status && old.GetReason() == reason {
		c.LastTransitionTime = old.GetLastTransitionTime()
	}
	s.Conditions[i] = c
	p.tellChange(old.GetReason(), c)
}

func (p *planner) tellChange(before string, c *balsav1.Condition) {
	if before == c.GetReason() {
		return
	}
	switch c.GetReason() {
	case ReasonDeadlineExceeded, ReasonRollingBack, ReasonNotPinned:
		p.note(object.EventWarning, c.GetReason(), c.GetMessage())
	case ReasonRolledBack, ReasonComplete, ReasonPaused, ReasonResumed, ReasonRetried:
		p.note(object.EventNormal, c.GetReason(), c.GetMessage())
	}
}

// touch says that there was progress now.
func (p *planner) touch(s *balsav1.DeploymentStatus) {
	i := slices.IndexFunc(s.Conditions, func(c *balsav1.Condition) bool { return c.GetType() == object.ConditionProgressing })
	s.Conditions[i] = proto.CloneOf(s.Conditions[i])
	s.Conditions[i].LastTransitionTime = timestamppb.New(p.now)
}
