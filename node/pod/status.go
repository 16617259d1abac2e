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
		HostIp: s.v.Node.IP.String(), HostIps: []*balsav1.HostIP{{Ip: s.v.Node.IP.String()}}, StartTime: s.startTime(before),
		ObservedGeneration: s.v.Pod.GetMetadata().GetGeneration(), QosClass: object.QOSClass(s.spec()),
	}
	if ip := s.podIP(); ip != "" {
		next.PodIp, next.PodIps = ip, []*balsav1.PodIP{{Ip: ip}}
	}
	for _, c := range s.inits {
		next.InitContainerStatuses = append(next.InitContainerStatuses, s.containerStatus(c, before))
	}
	for _, c := range s.apps {
		next.ContainerStatuses = append(next.ContainerStatuses, s.containerStatus(c, before))
	}
	for _, c := range s.extras {
		next.EphemeralContainerStatuses = append(next.EphemeralContainerStatuses, s.containerStatus(c, before))
	}
	boundMessages(next)
	s.phase(next, before)
	s.conditions(next, before)
	s.mem.Status, s.plan.Status = next, next
}

// Bounds of termination messages, as in Kubernetes: of one, and of all of a pod
// together.
const (
	MaxMessageBytes    = 4096
	maxPodMessageBytes = 12 << 10
	MaxMessageLogBytes = 2048
	MaxMessageLogLines = 80
)

// boundMessages gives every container its part of the room for messages.
func boundMessages(status *balsav1.PodStatus) {
	all := statuses(status)
	if len(all) == 0 {
		return
	}
	most := min(maxPodMessageBytes/len(all), MaxMessageBytes)
	for _, c := range all {
		for _, t := range []*balsav1.ContainerStateTerminated{c.GetState().GetTerminated(), c.GetLastState().GetTerminated()} {
			if len(t.GetMessage()) > most {
				t.Message = strings.ToValidUTF8(t.Message[:most], "")
			}
		}
	}
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
	if end := s.mem.End; end != nil {
		next.Reason, next.Message = end.Reason, end.Message
	}
	next.Phase = s.currentPhase()
	if next.Phase == object.PodPending && (recorded.GetPhase() == object.PodRunning || before.GetPhase() == object.PodRunning) {
		next.Phase = object.PodRunning
	}
}

// currentPhase: the end is told when nothing runs any more.
func (s *step) currentPhase() string {
	over, failed := s.over()
	switch {
	case s.mem.End != nil && len(s.running()) == 0:
		return object.PodFailed
	case over && len(s.running()) == 0 && failed:
		return object.PodFailed
	case over && len(s.running()) == 0:
		return object.PodSucceeded
	}
	for _, c := range s.apps {
		if !c.begun() || s.hooking(c) && c.state.Attempt == 0 {
			return object.PodPending
		}
	}
	return object.PodRunning
}

func (s *step) containerStatus(c *container, before *balsav1.PodStatus) *balsav1.ContainerStatus {
	started := s.started(c)
	if c.kind == initial || c.kind == ephemeral {
		started = c.running()
	}
	out := &balsav1.ContainerStatus{Name: c.name(), Image: c.spec.GetImage(), Ready: proto.Bool(s.ready(c)), Started: proto.Bool(started), RestartCount: proto.Int32(0), State: &balsav1.ContainerState{}}
	if !c.have {
		out.State.Waiting = s.waiting(c)
		return out
	}
	out.RestartCount = proto.Int32(int32(c.state.Attempt))
	out.ImageId = c.state.ImageDigest
	out.ContainerId = s.containerID(c.state)
	switch {
	case s.hooking(c):
		out.State.Waiting = s.waiting(c)
	case c.running():
		out.State.Running = &balsav1.ContainerStateRunning{StartedAt: stamp(c.state.StartedAt)}
	case c.exited() && (!c.restart || c.waitReason == ""):
		out.State.Terminated = s.terminated(c.state, before)
	case c.exited():
		out.State.Waiting = s.waiting(c)
		out.LastState = &balsav1.ContainerState{Terminated: s.terminated(c.state, before)}
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
		return &balsav1.ContainerStateWaiting{Reason: s.creating()}
	}
	return &balsav1.ContainerStateWaiting{Reason: c.waitReason, Message: c.waitMessage}
}

func (s *step) terminated(c runtime.ContainerState, before *balsav1.PodStatus) *balsav1.ContainerStateTerminated {
	return &balsav1.ContainerStateTerminated{
		ExitCode: proto.Int32(int32(c.Exit.Code)), Signal: int32(c.Exit.Signal), Reason: string(c.Reason), Message: s.message(c, before),
		StartedAt: stamp(c.StartedAt), FinishedAt: stamp(c.FinishedAt), ContainerId: s.containerID(c),
	}
}

// message is what the container had to say at its end; where that is lost it is
// what was reported of it, and where it said nothing what the runtime says.
func (s *step) message(c runtime.ContainerState, before *balsav1.PodStatus) string {
	if text := s.v.Messages[AttemptKey{c.Name, c.Attempt}]; text != "" {
		return text
	}
	for _, status := range []*balsav1.PodStatus{before, s.v.Pod.GetStatus()} {
		said := containerIn(status, c.Name)
		for _, t := range []*balsav1.ContainerStateTerminated{said.GetState().GetTerminated(), said.GetLastState().GetTerminated()} {
			if t.GetContainerId() == s.containerID(c) && t.GetMessage() != "" {
				return t.GetMessage()
			}
		}
	}
	return c.Message
}

// attemptBefore is how the run before this one ended: the runtime keeps it, and
// where it is lost the last status does.
func (s *step) attemptBefore(c *container, before *balsav1.PodStatus) *balsav1.ContainerState {
	if c.state.Attempt == 0 {
		return nil
	}
	if s.v.Runtime != nil {
		if last, ok := s.v.Runtime.Attempt(c.name(), c.state.Attempt-1); ok && last.Status == runtime.ContainerExited {
			return &balsav1.ContainerState{Terminated: s.terminated(last, before)}
		}
	}
	said := containerIn(before, c.name())
	switch {
	case said == nil || int(said.GetRestartCount()) < c.state.Attempt-1:
		return nil
	case int(said.GetRestartCount()) == c.state.Attempt-1 && said.GetState().GetTerminated() != nil:
		return said.GetState()
	}
	return said.GetLastState()
}

// Reasons of conditions.
const (
	reasonNotReady       = "ContainersNotReady"
	reasonNotInitialized = "ContainersNotInitialized"
	reasonCompleted      = "PodCompleted"
	reasonFailed         = "PodFailed"
	reasonByNode         = "TerminationByKubelet"
)

func (s *step) conditions(next, before *balsav1.PodStatus) {
	list := before.GetConditions()
	if len(list) == 0 {
		list = s.v.Pod.GetStatus().GetConditions()
	}
	set := func(kind string, c *balsav1.Condition) {
		c.Type = kind
		list, _ = object.SetCondition(list, c, s.v.Now)
	}
	if !object.IsConditionTrue(list, object.ConditionPodScheduled) {
		set(object.ConditionPodScheduled, &balsav1.Condition{Status: object.ConditionTrue})
	}
	set(object.ConditionReadyToStart, &balsav1.Condition{Status: truth(s.readyToStart())})
	set(object.ConditionInitialized, s.initialization(next))
	set(object.ConditionContainersReady, s.readiness(next))
	set(object.ConditionReady, s.readiness(next))
	if s.mem.End != nil && s.mem.End.Reason == ReasonEvicted {
		set(object.ConditionDisruptionTarget, &balsav1.Condition{Status: object.ConditionTrue, Reason: reasonByNode, Message: s.mem.End.Message})
	}
	next.Conditions = ownConditions(list)
}

func truth(b bool) string {
	if b {
		return object.ConditionTrue
	}
	return object.ConditionFalse
}

// readyToStart tells whether the sandbox and its network are there.
func (s *step) readyToStart() bool {
	return s.v.Runtime != nil && s.v.Runtime.Sandbox == runtime.SandboxReady && s.podIP() != "" && !s.final()
}

// ownConditions are those that the node writes, sorted; others have other
// writers.
func ownConditions(list []*balsav1.Condition) []*balsav1.Condition {
	own := slices.DeleteFunc(slices.Clone(list), func(c *balsav1.Condition) bool {
		switch c.GetType() {
		case object.ConditionPodScheduled, object.ConditionReadyToStart, object.ConditionInitialized, object.ConditionContainersReady, object.ConditionReady:
			return false
		case object.ConditionDisruptionTarget:
			return c.GetReason() != reasonByNode
		}
		return true
	})
	slices.SortFunc(own, func(a, b *balsav1.Condition) int { return strings.Compare(a.GetType(), b.GetType()) })
	return own
}

func (s *step) initialization(next *balsav1.PodStatus) *balsav1.Condition {
	if next.GetPhase() == object.PodSucceeded {
		return &balsav1.Condition{Status: object.ConditionTrue, Reason: reasonCompleted}
	}
	var missing []string
	for _, c := range s.inits {
		if !s.initDone(c) {
			missing = append(missing, c.name())
		}
	}
	if len(missing) == 0 || slices.ContainsFunc(s.apps, (*container).begun) {
		return &balsav1.Condition{Status: object.ConditionTrue}
	}
	return &balsav1.Condition{Status: object.ConditionFalse, Reason: reasonNotInitialized, Message: fmt.Sprintf("containers with incomplete status: %v", missing)}
}

func (s *step) readiness(next *balsav1.PodStatus) *balsav1.Condition {
	switch next.GetPhase() {
	case object.PodSucceeded:
		return &balsav1.Condition{Status: object.ConditionFalse, Reason: reasonCompleted}
	case object.PodFailed:
		return &balsav1.Condition{Status: object.ConditionFalse, Reason: reasonFailed}
	}
	var unready []string
	for _, c := range append(slices.Clone(s.inits), s.apps...) {
		if c.kind != initial && !s.ready(c) {
			unready = append(unready, c.name())
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
	own.Conditions = ownConditions(own.Conditions)
	return proto.Equal(ours, own)
}
