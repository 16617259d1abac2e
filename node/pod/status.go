package pod

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// status makes the status that the node reports.
func (s *step) status() {
	if s.v.Pod == nil {
		return
	}
	before := s.mem.Status
	if before == nil {
		before = s.v.Pod.GetStatus()
	} else if s.leaving() && s.v.Runtime == nil {
		s.plan.Status = before // what is removed cannot be read any more
		return
	}
	next := &balsav1.PodStatus{
		HostIp: s.v.Node.IP.String(), StartTime: s.startTime(before),
		ObservedGeneration: s.v.Pod.GetMetadata().GetGeneration(),
	}
	if ip := s.podIP(); ip != "" {
		next.PodIp, next.PodIps = ip, []*balsav1.PodIP{{Ip: ip}}
	}
	for _, c := range s.containers {
		next.ContainerStatuses = append(next.ContainerStatuses, s.containerStatus(c, before))
	}
	s.phase(next, before)
	s.conditions(next, before)
	s.mem.Status, s.plan.Status = next, next
}

func (s *step) startTime(before *balsav1.PodStatus) *timestamppb.Timestamp {
	switch {
	case s.v.Pod.GetStatus().GetStartTime() != nil:
		return s.v.Pod.GetStatus().GetStartTime()
	case before.GetStartTime() != nil:
		return before.GetStartTime()
	case s.v.Runtime != nil:
		return stamp(s.v.Runtime.CreatedAt)
	default:
		return stamp(s.v.Now)
	}
}

// stamp is nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// phase never goes back: Pending, Running, then Succeeded or Failed for good.
func (s *step) phase(next, before *balsav1.PodStatus) {
	recorded := s.v.Pod.GetStatus()
	for _, old := range []*balsav1.PodStatus{recorded, before} {
		if object.IsFinalPhase(old.GetPhase()) {
			next.Phase, next.Reason, next.Message = old.GetPhase(), old.GetReason(), old.GetMessage()
			return
		}
	}
	if s.v.Refusal != nil && !s.begun() && !s.ending() {
		next.Phase, next.Reason, next.Message = object.PodFailed, s.v.Refusal.Reason, s.v.Refusal.Message
		return
	}
	next.Phase = s.currentPhase()
	if next.Phase == object.PodPending && (recorded.GetPhase() == object.PodRunning || before.GetPhase() == object.PodRunning) {
		next.Phase = object.PodRunning
	}
}

func (s *step) currentPhase() string {
	failed, live := false, false
	for _, c := range s.containers {
		if !c.started() {
			return object.PodPending
		}
		live = live || c.running() || !c.exited() || c.restart
		failed = failed || c.exited() && c.state.Exit.Code != 0
	}
	switch {
	case live || len(s.containers) == 0:
		return object.PodRunning
	case failed:
		return object.PodFailed
	default:
		return object.PodSucceeded
	}
}

func (s *step) containerStatus(c *container, before *balsav1.PodStatus) *balsav1.ContainerStatus {
	name := c.spec.GetName()
	out := &balsav1.ContainerStatus{Name: name, Image: c.spec.GetImage(), Ready: s.ready(c), Started: c.running(), State: &balsav1.ContainerState{}}
	if !c.have {
		out.State.Waiting = s.waiting(c)
		return out
	}
	out.RestartCount = int32(c.state.Attempt)
	out.ImageId = c.state.ImageDigest
	out.ContainerId = s.containerID(c.state)
	switch {
	case c.running():
		out.State.Running = &balsav1.ContainerStateRunning{StartedAt: stamp(c.state.StartedAt)}
	case c.exited() && (!c.restart || c.waitReason == ""):
		out.State.Terminated = s.terminated(c.state)
	case c.exited():
		out.State.Waiting = s.waiting(c)
		out.LastState = &balsav1.ContainerState{Terminated: s.terminated(c.state)}
		return out
	default:
		out.State.Waiting = s.waiting(c)
	}
	out.LastState = s.attemptBefore(c, before)
	return out
}

func (s *step) containerID(c runtime.ContainerState) string {
	return containerID(runtime.PodUID(s.uid()), c.Name, c.Attempt)
}

func (s *step) waiting(c *container) *balsav1.ContainerStateWaiting {
	if c.waitReason == "" {
		return &balsav1.ContainerStateWaiting{Reason: ReasonContainerCreating}
	}
	return &balsav1.ContainerStateWaiting{Reason: c.waitReason, Message: c.waitMessage}
}

func (s *step) terminated(c runtime.ContainerState) *balsav1.ContainerStateTerminated {
	return &balsav1.ContainerStateTerminated{
		ExitCode: int32(c.Exit.Code), Signal: int32(c.Exit.Signal), Reason: string(c.Reason), Message: c.Message,
		StartedAt: stamp(c.StartedAt), FinishedAt: stamp(c.FinishedAt), ContainerId: s.containerID(c),
	}
}

// attemptBefore is how the run before this one ended: the runtime keeps it, and
// where it is lost the last status does.
func (s *step) attemptBefore(c *container, before *balsav1.PodStatus) *balsav1.ContainerState {
	if c.state.Attempt == 0 {
		return nil
	}
	if s.v.Runtime != nil {
		if last, ok := s.v.Runtime.Attempt(c.spec.GetName(), c.state.Attempt-1); ok && last.Status == runtime.ContainerExited {
			return &balsav1.ContainerState{Terminated: s.terminated(last)}
		}
	}
	for _, status := range before.GetContainerStatuses() {
		switch {
		case status.GetName() != c.spec.GetName() || int(status.GetRestartCount()) < c.state.Attempt-1:
			continue
		case int(status.GetRestartCount()) == c.state.Attempt-1 && status.GetState().GetTerminated() != nil:
			return status.GetState()
		}
		return status.GetLastState()
	}
	return nil
}

// Reasons of conditions.
const (
	reasonNotReady  = "ContainersNotReady"
	reasonCompleted = "PodCompleted"
	reasonFailed    = "PodFailed"
)

func (s *step) conditions(next, before *balsav1.PodStatus) {
	list := before.GetConditions()
	if recorded := s.v.Pod.GetStatus().GetConditions(); len(list) == 0 {
		list = recorded
	}
	set := func(c *balsav1.Condition) { list, _ = object.SetCondition(list, c, s.v.Now) }
	if !object.IsConditionTrue(list, object.ConditionPodScheduled) {
		set(&balsav1.Condition{Type: object.ConditionPodScheduled, Status: object.ConditionTrue})
	}
	set(&balsav1.Condition{Type: object.ConditionInitialized, Status: object.ConditionTrue})
	for _, kind := range []string{object.ConditionContainersReady, object.ConditionReady} {
		c := s.readiness(next)
		c.Type = kind
		set(c)
	}
	next.Conditions = slices.DeleteFunc(slices.Clone(list), func(c *balsav1.Condition) bool { return !ownCondition(c.GetType()) })
	slices.SortFunc(next.Conditions, func(a, b *balsav1.Condition) int { return strings.Compare(a.GetType(), b.GetType()) })
}

// ownCondition tells which conditions the node writes; others have other
// writers.
func ownCondition(kind string) bool {
	switch kind {
	case object.ConditionPodScheduled, object.ConditionInitialized, object.ConditionContainersReady, object.ConditionReady:
		return true
	}
	return false
}

func (s *step) readiness(next *balsav1.PodStatus) *balsav1.Condition {
	switch next.GetPhase() {
	case object.PodSucceeded:
		return &balsav1.Condition{Status: object.ConditionFalse, Reason: reasonCompleted}
	case object.PodFailed:
		return &balsav1.Condition{Status: object.ConditionFalse, Reason: reasonFailed}
	}
	var unready []string
	for _, c := range next.GetContainerStatuses() {
		if !c.GetReady() {
			unready = append(unready, c.GetName())
		}
	}
	if len(unready) == 0 && next.GetPhase() == object.PodRunning {
		return &balsav1.Condition{Status: object.ConditionTrue}
	}
	return &balsav1.Condition{Status: object.ConditionFalse, Reason: reasonNotReady,
		Message: fmt.Sprintf("containers with unready status: %v", unready)}
}

// SameStatus tells whether a recorded status says what the node says; conditions
// that others write do not count.
func SameStatus(ours, recorded *balsav1.PodStatus) bool {
	if recorded == nil {
		return ours == nil
	}
	own := &balsav1.PodStatus{}
	proto.Merge(own, recorded)
	own.Conditions = slices.DeleteFunc(own.Conditions, func(c *balsav1.Condition) bool { return !ownCondition(c.GetType()) })
	slices.SortFunc(own.Conditions, func(a, b *balsav1.Condition) int { return strings.Compare(a.GetType(), b.GetType()) })
	return proto.Equal(ours, own)
}
