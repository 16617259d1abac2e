package pod

import (
	"fmt"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// Annotations of sandboxes, by which a pod is known when its object is not.
const (
	// AnnotationRevision is the revision of the set that the pod was started
	// from: a set that lacks the pod proves nothing unless it is newer.
	AnnotationRevision = "balsa.run/revision"
	// AnnotationGrace is the pod's grace period in seconds.
	AnnotationGrace = "balsa.run/grace-seconds"
	// AnnotationSidecars are the names of the sidecars in their order.
	AnnotationSidecars = "balsa.run/sidecars"
	// AnnotationUsers is the pod's range of ids, "first:size".
	AnnotationUsers = "balsa.run/users"
)

// Reasons of containers that wait.
const (
	ReasonContainerCreating = "ContainerCreating"
	ReasonPodInitializing   = "PodInitializing"
	ReasonCrashLoopBackOff  = "CrashLoopBackOff"
	ReasonConfigError       = "CreateContainerConfigError"
	ReasonCreateError       = "CreateContainerError"
	ReasonImageNeverPull    = "ErrImageNeverPull"
	ReasonImagePull         = "ErrImagePull"
	ReasonImagePullBackOff  = "ImagePullBackOff"
	ReasonImageName         = "InvalidImageName"
	// ReasonStatusUnknown: a container has run, and the node knows no more of it.
	ReasonStatusUnknown = "ContainerStatusUnknown"
)

// Reasons of pods that end before their time, and of events.
const (
	ReasonDeadlineExceeded = "DeadlineExceeded"
	ReasonEvicted          = "Evicted"
	ReasonFailedMount      = "FailedMount"
	ReasonUnhealthy        = "Unhealthy"
	ReasonFailedPostStart  = "FailedPostStartHook"
	ReasonFailedPreStop    = "FailedPreStopHook"
)

// Step looks at a pod and says what to do next.
func Step(v View) Plan {
	s := &step{v: v, mem: v.Memory.clone()}
	s.observe()
	s.decide()
	switch {
	case s.ending():
		s.stop()
	case v.Refusal != nil && !s.begun():
	default:
		s.run()
	}
	s.noteReady()
	s.status()
	s.plan.Memory = s.mem
	return s.plan
}

type step struct {
	v   View
	mem Memory
	// inits, apps and extras are containers, in the order of the spec.
	inits, apps, extras []*container
	containers          []*container
	plan                Plan
}

// kind is what a container is for.
type kind int

const (
	app kind = iota
	initial
	sidecar
	ephemeral
)

// container is one of the pod's containers and what is known of it.
type container struct {
	spec *balsav1.Container
	kind kind
	// target is whose processes an ephemeral container sees.
	target string
	// have: an attempt exists, or is known to have existed.
	have  bool
	state runtime.ContainerState
	// restart: it has ended and shall run again.
	restart bool
	// why it does not run, for people.
	waitReason  string
	waitMessage string
}

func (c *container) name() string  { return c.spec.GetName() }
func (c *container) running() bool { return c.have && c.state.Status == runtime.ContainerRunning }
func (c *container) exited() bool  { return c.have && c.state.Status == runtime.ContainerExited }
func (c *container) failed() bool  { return c.exited() && c.state.Exit.Code != 0 }

// begun tells whether an attempt has got as far as an end or a process.
func (c *container) begun() bool {
	return c.have && (c.state.Status != runtime.ContainerCreated || c.state.Attempt > 0)
}

// toRun tells whether there is a next attempt.
func (c *container) toRun() bool { return !c.running() && (!c.exited() || c.restart) }

func (s *step) uid() string                { return s.v.UID }
func (s *step) spec() *balsav1.PodSpec     { return s.v.Pod.GetSpec() }
func (s *step) tell(c *container, e Event) { s.tellAs(c, e, "") }

func (s *step) memory(c *container) ContainerMemory { return s.mem.Containers[c.name()] }

func (s *step) wake(at time.Time) {
	if at.After(s.v.Now) && (s.plan.Wake.IsZero() || at.Before(s.plan.Wake)) {
		s.plan.Wake = at
	}
}

func (s *step) act(a Action) { s.plan.Actions = append(s.plan.Actions, a) }

func (s *step) event(e Event) { s.plan.Events = append(s.plan.Events, e) }

// tellAs makes an event unless it was the last one told of the container. What
// is said is compared by mark where the text changes without meaning more.
func (s *step) tellAs(c *container, e Event, mark string) {
	e.Container = c.name()
	if mark == "" {
		mark = e.Message
	}
	if said := e.Reason + " " + mark; s.mem.Told[e.Container] != said {
		s.mem.Told[e.Container] = said
		s.event(e)
	}
}

// may tells whether an action is not resting after a failure.
func (s *step) may(key string) bool {
	f, failed := s.mem.Failures[key]
	if !failed {
		return true
	}
	due := f.At.Add(retryDelay(f.Count))
	if due.Sub(s.v.Now) > retryDelayMax { // the clock was put back
		return true
	}
	s.wake(due)
	return !due.After(s.v.Now)
}

func (s *step) tryTo(a Action) {
	if s.may(a.Key()) {
		s.act(a)
	}
}

// observe reads the containers' states and takes in what has happened to them.
func (s *step) observe() {
	now := s.v.Now
	// A clock that was put back must not make anything wait for longer.
	s.mem.StopSeenAt = notAfter(s.mem.StopSeenAt, now)
	s.mem.DrainedAt = notAfter(s.mem.DrainedAt, now)
	s.mem.StopDueAt = notAfter(s.mem.StopDueAt, now)
	s.mem.StopSentAt = notAfter(s.mem.StopSentAt, now)
	for _, spec := range s.spec().GetInitContainers() {
		k := initial
		if object.IsSidecar(spec) {
			k = sidecar
		}
		s.inits = append(s.inits, &container{spec: spec, kind: k})
	}
	for _, spec := range s.spec().GetContainers() {
		s.apps = append(s.apps, &container{spec: spec})
	}
	for _, spec := range s.spec().GetEphemeralContainers() {
		s.extras = append(s.extras, &container{spec: object.EphemeralAsContainer(spec), kind: ephemeral, target: spec.GetTargetContainerName()})
	}
	s.containers = append(append(append(s.containers, s.inits...), s.apps...), s.extras...)
	for _, c := range s.containers {
		s.observeContainer(c)
	}
}

func notAfter(t, now time.Time) time.Time {
	if t.After(now) {
		return now
	}
	return t
}

func (s *step) observeContainer(c *container) {
	if s.v.Runtime != nil {
		c.state, c.have = s.v.Runtime.Container(c.name())
	}
	recalled := !c.have
	if recalled {
		s.recall(c)
	}
	if c.running() {
		s.heed(c)
	}
	if !c.exited() {
		return
	}
	s.count(c)
	if (recalled || s.v.Runtime == nil || s.v.Runtime.Sandbox != runtime.SandboxReady) && c.kind != ephemeral {
		s.mem.change(c.name(), func(m *ContainerMemory) { m.Floor = max(m.Floor, c.state.Attempt+1) })
	}
	c.restart = !s.final() && !object.IsTerminating(s.v.Pod) && s.mem.End == nil && s.restarts(c)
}

// restarts tells whether a container that has ended is run again.
func (s *step) restarts(c *container) bool {
	policy := s.spec().GetRestartPolicy()
	switch c.kind {
	case sidecar:
		return true
	case ephemeral:
		return false
	case initial:
		if !c.failed() {
			return c.state.Attempt < s.memory(c).Floor
		}
		return policy != object.RestartNever
	}
	switch policy {
	case object.RestartNever:
		return false
	case object.RestartOnFailure:
		return c.failed()
	default:
		return true
	}
}

// recall finds out from what was recorded that a container has run of which the
// runtime knows nothing, because the node lost its disk. It ran, so it counts as
// ended: an attempt never runs twice.
func (s *step) recall(c *container) {
	status := s.mem.Status
	if status == nil {
		status = s.v.Pod.GetStatus()
	}
	recorded := containerIn(status, c.name())
	begun := recorded.GetState().GetRunning() != nil || recorded.GetState().GetTerminated() != nil ||
		recorded.GetLastState().GetTerminated() != nil || recorded.GetRestartCount() > 0
	if !begun {
		return
	}
	if m := s.memory(c); m.LostAt.IsZero() || m.LostAt.After(s.v.Now) {
		s.mem.change(c.name(), func(m *ContainerMemory) { m.LostAt = s.v.Now })
	}
	c.have = true
	c.state = runtime.ContainerState{
		Name: c.name(), Attempt: int(recorded.GetRestartCount()), Status: runtime.ContainerExited,
		Exit: runtime.ExitStatus{Code: runtime.LostExitCode}, Reason: ReasonStatusUnknown, FinishedAt: s.memory(c).LostAt,
		Message: "the node knows nothing of this container any more",
	}
	t := recorded.GetState().GetTerminated()
	if last := recorded.GetLastState().GetTerminated(); t == nil && recorded.GetState().GetRunning() == nil && last.GetContainerId() == s.containerID(c.state) {
		t = last // it was to be run again
	}
	if t != nil {
		c.state.Exit.Code, c.state.Reason, c.state.Message = int(t.GetExitCode()), runtime.Reason(t.GetReason()), t.GetMessage()
		c.state.Exit.Signal = runtime.Signal(t.GetSignal())
		c.state.StartedAt, c.state.FinishedAt = t.GetStartedAt().AsTime(), t.GetFinishedAt().AsTime()
	}
}

// statuses are those of all containers.
func statuses(status *balsav1.PodStatus) []*balsav1.ContainerStatus {
	var all []*balsav1.ContainerStatus
	all = append(append(all, status.GetInitContainerStatuses()...), status.GetContainerStatuses()...)
	return append(all, status.GetEphemeralContainerStatuses()...)
}

func containerIn(status *balsav1.PodStatus, name string) *balsav1.ContainerStatus {
	for _, c := range statuses(status) {
		if c.GetName() == name {
			return c
		}
	}
	return nil
}

// count takes the end of an attempt into account, once.
func (s *step) count(c *container) {
	m := s.memory(c)
	n := c.state.Attempt
	if m.Counted > n {
		if limit := s.v.Now.Add(restartDelayMax); m.DueAt.After(limit) { // the clock was put back
			s.mem.change(c.name(), func(m *ContainerMemory) { m.DueAt = limit })
		}
		return
	}
	if m.Counted < n {
		m.Crashes = n // what came before is forgotten: assume the worst
	}
	finished := c.state.FinishedAt
	if finished.IsZero() || finished.After(s.v.Now) {
		finished = s.v.Now
	}
	ran := time.Duration(0)
	if !c.state.StartedAt.IsZero() {
		ran = finished.Sub(c.state.StartedAt)
	}
	if ran >= restartForgetAfter || c.state.Reason == runtime.ReasonNodeRebooted {
		m.Crashes = 0
	}
	if c.kind == initial && !c.failed() {
		m.Crashes = -1 // it has done its work
	}
	m.Crashes++
	m.Counted, m.DueAt = n+1, finished.Add(restartDelay(m.Crashes))
	s.mem.Containers[c.name()] = m
}

// decide notes that the pod has to end although nobody deleted it.
func (s *step) decide() {
	if s.v.Pod == nil || object.IsTerminating(s.v.Pod) || s.final() || s.mem.End != nil || s.v.Refusal != nil && !s.begun() {
		return
	}
	if e := s.v.Eviction; e != nil {
		s.mem.End = &End{Reason: e.Reason, Message: e.Message, Grace: e.Grace}
		s.event(Event{Warning: true, Reason: e.Reason, Message: e.Message})
		return
	}
	limit := s.spec().ActiveDeadlineSeconds
	start := s.v.Pod.GetStatus().GetStartTime()
	if start == nil {
		start = s.mem.Status.GetStartTime()
	}
	if limit == nil || start == nil {
		return
	}
	due := start.AsTime().Add(time.Duration(*limit) * time.Second)
	if due.After(s.v.Now) {
		s.wake(due)
		return
	}
	if over, _ := s.over(); over {
		return // it has done what it had to
	}
	s.mem.End = &End{Reason: ReasonDeadlineExceeded, Message: fmt.Sprintf("Pod was active on the node longer than the specified deadline of %d s", *limit)}
	s.event(Event{Reason: ReasonDeadlineExceeded, Message: s.mem.End.Message})
}

// over tells whether the containers of the pod have ended for good, though
// sidecars may run; and whether that is a failure.
func (s *step) over() (over, failed bool) {
	for _, c := range s.inits {
		if c.kind == initial && c.failed() && !c.restart {
			return true, true
		}
	}
	for _, c := range s.apps {
		if !c.exited() || c.restart {
			return false, false
		}
		failed = failed || c.failed()
	}
	return len(s.apps) > 0, failed
}

// final tells whether the pod's end is recorded: then nothing of it may run.
func (s *step) final() bool {
	return object.PodFinished(s.v.Pod) || object.IsFinalPhase(s.mem.Status.GetPhase())
}

// begun tells whether the node has anything of the pod, or had.
func (s *step) begun() bool {
	for _, c := range s.containers {
		if c.have {
			return true
		}
	}
	return s.v.Runtime != nil
}

// initialised tells whether the init containers are over: a container has begun
// in this sandbox, or all of them are done.
func (s *step) initialised() bool {
	for _, c := range s.apps {
		if c.begun() && c.state.Attempt >= s.memory(c).Floor {
			return true
		}
	}
	for _, c := range s.inits {
		if !s.initDone(c) {
			return false
		}
	}
	return true
}

// initDone tells whether the next init container may begin.
func (s *step) initDone(c *container) bool {
	if c.kind == sidecar {
		return s.started(c)
	}
	return c.exited() && !c.failed() && c.state.Attempt >= s.memory(c).Floor
}

// started tells whether a container has got through its postStart hook and its
// startup probe.
func (s *step) started(c *container) bool {
	return c.running() && !s.hooking(c) && s.passed(c)
}

// hooking tells whether the postStart hook has not returned yet.
func (s *step) hooking(c *container) bool {
	return c.running() && c.spec.GetLifecycle().GetPostStart() != nil && s.memory(c).Hooked != c.state.Attempt+1
}

func (s *step) passed(c *container) bool {
	return c.spec.GetStartupProbe() == nil || s.memory(c).Passed == c.state.Attempt+1
}

// heed takes in what hooks and probes say of a container that runs.
func (s *step) heed(c *container) {
	n := c.state.Attempt + 1
	recorded := containerIn(s.v.Pod.GetStatus(), c.name())
	m := s.memory(c)
	if recorded.GetContainerId() == s.containerID(c.state) { // as another process of the agent left it
		if s.hooking(c) && recorded.GetState().GetRunning() != nil {
			m.Hooked = n
		}
		if !s.passed(c) && recorded.GetStarted() {
			m.Passed = n
		}
	}
	post := s.v.Hooks[HookKey{c.name(), PostStart}]
	if post.Attempt == c.state.Attempt && post.Done && post.Message == "" {
		m.Hooked = n
	}
	pre, heard := s.v.Hooks[HookKey{c.name(), PreStop}]
	if heard && pre.Attempt == c.state.Attempt && pre.Done && m.StopHooked != n {
		m.StopHooked = n
		if pre.Message != "" {
			s.event(Event{Warning: true, Reason: ReasonFailedPreStop, Container: c.name(), Message: "PreStopHook failed: " + pre.Message})
		}
	}
	if p, ok := s.v.Probes[ProbeKey{c.name(), Startup}]; ok && p.Attempt == c.state.Attempt && p.Ready {
		m.Passed = n
	}
	s.mem.Containers[c.name()] = m
	if post.Attempt == c.state.Attempt && post.Done && post.Message != "" {
		s.event1(c, Event{Warning: true, Reason: ReasonFailedPostStart, Message: "PostStartHook failed: " + post.Message})
		s.doom(c, ReasonFailedPostStart, nil)
	}
	for _, k := range []ProbeKind{Startup, Liveness} {
		if p, ok := s.v.Probes[ProbeKey{c.name(), k}]; ok && p.Attempt == c.state.Attempt && p.Failed {
			s.doom(c, fmt.Sprintf("failed %s probe, will be restarted", strings.ToLower(string(k))), probeOf(c.spec, k))
		}
	}
}

// event1 makes an event of a container that is not doomed yet.
func (s *step) event1(c *container, e Event) {
	if s.memory(c).Doomed != c.state.Attempt+1 {
		e.Container = c.name()
		s.event(e)
	}
}

// doom decides that a running attempt has to end.
func (s *step) doom(c *container, why string, probe *balsav1.Probe) {
	if s.memory(c).Doomed == c.state.Attempt+1 || s.v.Pod == nil {
		return
	}
	grace := time.Duration(object.DefaultTerminationGrace) * time.Second
	if g := s.spec().TerminationGracePeriodSeconds; g != nil {
		grace = time.Duration(*g) * time.Second
	}
	if probe != nil && probe.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
	}
	s.mem.change(c.name(), func(m *ContainerMemory) {
		m.Doomed, m.DoomedAt, m.Why, m.Grace = c.state.Attempt+1, s.v.Now, why, grace
	})
	s.event(Event{Reason: "Killing", Container: c.name(), Message: fmt.Sprintf("Container %s %s", c.name(), why)})
}
