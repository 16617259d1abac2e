package pod

import (
	"fmt"
	"net/netip"
	"strconv"
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
)

// Reasons of containers that wait.
const (
	ReasonContainerCreating = "ContainerCreating"
	ReasonCrashLoopBackOff  = "CrashLoopBackOff"
	ReasonConfigError       = "CreateContainerConfigError"
	ReasonCreateError       = "CreateContainerError"
	ReasonImageNeverPull    = "ErrImageNeverPull"
	ReasonImageNotPresent   = "ImageNotPresent"
	ReasonImagePull         = "ErrImagePull"
	// ReasonStatusUnknown: a container has run, and the node knows no more of it.
	ReasonStatusUnknown = "ContainerStatusUnknown"
)

// Step looks at a pod and says what to do next.
func Step(v View) Plan {
	s := &step{v: v, mem: v.Memory.clone()}
	s.observe()
	switch {
	case s.ending():
		s.stop()
	case v.Refusal != nil && !s.begun():
	default:
		s.run()
	}
	s.status()
	s.plan.Memory = s.mem
	return s.plan
}

type step struct {
	v          View
	mem        Memory
	containers []*container
	plan       Plan
}

// container is one of the pod's containers and what is known of it.
type container struct {
	spec *balsav1.Container
	// have: an attempt exists, or is known to have existed.
	have  bool
	state runtime.ContainerState
	// restart: it has ended and shall run again.
	restart bool
	// why it does not run, for people.
	waitReason  string
	waitMessage string
}

func (c *container) running() bool { return c.have && c.state.Status == runtime.ContainerRunning }
func (c *container) exited() bool  { return c.have && c.state.Status == runtime.ContainerExited }

// started tells whether an attempt has got as far as an end or a process.
func (c *container) started() bool {
	return c.have && (c.state.Status != runtime.ContainerCreated || c.state.Attempt > 0)
}

// toRun tells whether there is a next attempt.
func (c *container) toRun() bool { return !c.running() && (!c.exited() || c.restart) }

func (s *step) uid() string { return s.v.UID }

func (s *step) wake(at time.Time) {
	if at.After(s.v.Now) && (s.plan.Wake.IsZero() || at.Before(s.plan.Wake)) {
		s.plan.Wake = at
	}
}

func (s *step) act(a Action) { s.plan.Actions = append(s.plan.Actions, a) }

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

// observe reads the containers' states and takes new ends into account.
func (s *step) observe() {
	now := s.v.Now
	// A clock that was put back must not make anything wait for longer.
	if s.mem.StopSeenAt.After(now) {
		s.mem.StopSeenAt = now
	}
	if s.mem.StopSentAt.After(now) {
		s.mem.StopSentAt = now
	}
	final := s.final()
	for _, spec := range s.v.Pod.GetSpec().GetContainers() {
		c := &container{spec: spec}
		if s.v.Runtime != nil {
			c.state, c.have = s.v.Runtime.Container(spec.GetName())
		}
		if !c.have {
			s.recall(c)
		}
		if c.exited() {
			s.count(c)
			c.restart = !final && !object.IsTerminating(s.v.Pod) && restarts(s.v.Pod.GetSpec().GetRestartPolicy(), c.state.Exit.Code)
		}
		s.containers = append(s.containers, c)
	}
}

func restarts(policy string, code int) bool {
	switch policy {
	case object.RestartNever:
		return false
	case object.RestartOnFailure:
		return code != 0
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
	recorded := containerIn(status, c.spec.GetName())
	begun := recorded.GetState().GetRunning() != nil || recorded.GetState().GetTerminated() != nil ||
		recorded.GetLastState().GetTerminated() != nil || recorded.GetRestartCount() > 0
	if !begun {
		return
	}
	m := s.mem.Containers[c.spec.GetName()]
	if m.LostAt.IsZero() || m.LostAt.After(s.v.Now) {
		m.LostAt = s.v.Now
		s.mem.Containers[c.spec.GetName()] = m
	}
	c.have = true
	c.state = runtime.ContainerState{
		Name: c.spec.GetName(), Attempt: int(recorded.GetRestartCount()), Status: runtime.ContainerExited,
		Exit: runtime.ExitStatus{Code: runtime.LostExitCode}, Reason: ReasonStatusUnknown, FinishedAt: m.LostAt,
		Message: "the node knows nothing of this container any more",
	}
	if t := recorded.GetState().GetTerminated(); t != nil {
		c.state.Exit.Code, c.state.Reason, c.state.Message = int(t.GetExitCode()), runtime.Reason(t.GetReason()), t.GetMessage()
		c.state.Exit.Signal = runtime.Signal(t.GetSignal())
		c.state.StartedAt, c.state.FinishedAt = t.GetStartedAt().AsTime(), t.GetFinishedAt().AsTime()
	}
}

func containerIn(status *balsav1.PodStatus, name string) *balsav1.ContainerStatus {
	for _, c := range status.GetContainerStatuses() {
		if c.GetName() == name {
			return c
		}
	}
	return nil
}

// count takes the end of an attempt into account, once.
func (s *step) count(c *container) {
	m := s.mem.Containers[c.spec.GetName()]
	n := c.state.Attempt
	if m.Counted > n {
		s.clampDue(c, m)
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
	m.Crashes++
	m.Counted, m.DueAt = n+1, finished.Add(restartDelay(m.Crashes))
	s.mem.Containers[c.spec.GetName()] = m
}

func (s *step) clampDue(c *container, m ContainerMemory) {
	if limit := s.v.Now.Add(restartDelayMax); m.DueAt.After(limit) {
		m.DueAt = limit
		s.mem.Containers[c.spec.GetName()] = m
	}
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

// run brings a pod nearer to running.
func (s *step) run() {
	if !s.anyToRun() {
		s.probes()
		return
	}
	if s.v.Runtime == nil || s.v.Runtime.Sandbox != runtime.SandboxReady {
		s.wants()
		s.try(CreateSandbox{Config: s.sandbox()})
		return
	}
	if !s.v.IP.IsValid() {
		s.wants()
		hostname := Hostname(s.v.Pod.GetSpec().GetHostname(), s.v.Pod.GetMetadata().GetName())
		s.try(Connect{UID: s.uid(), NetNS: s.v.Runtime.NetNS, Hosts: func(ip netip.Addr) []byte { return Hosts(ip, hostname) }})
		return
	}
	for _, c := range s.containers {
		if c.toRun() {
			s.start(c)
		}
	}
	s.probes()
}

// try acts unless the action rests after a failure; then everything that is to
// run says what it waits for.
func (s *step) try(a Action) {
	if s.may(a.Key()) {
		s.act(a)
	}
	f := s.mem.Failures[a.Key()]
	for _, c := range s.containers {
		if c.toRun() && c.waitReason == "" {
			c.waitReason, c.waitMessage = ReasonContainerCreating, f.Message
		}
	}
}

func (s *step) anyToRun() bool {
	for _, c := range s.containers {
		if c.toRun() || c.running() && !s.v.IP.IsValid() {
			return true
		}
	}
	return false
}

// wants names the images early, so that they come while the sandbox is made.
func (s *step) wants() {
	for _, c := range s.containers {
		if c.toRun() {
			s.image(c)
		}
	}
}

func (s *step) sandbox() runtime.PodConfig {
	meta, spec := s.v.Pod.GetMetadata(), s.v.Pod.GetSpec()
	return runtime.PodConfig{
		UID: runtime.PodUID(meta.GetUid()), Namespace: meta.GetNamespace(), Name: meta.GetName(),
		Hostname:   Hostname(spec.GetHostname(), meta.GetName()),
		Hosts:      Hosts(s.v.IP, Hostname(spec.GetHostname(), meta.GetName())),
		ResolvConf: ResolvConf(s.v.Node.DNS, meta.GetNamespace(), s.v.Node.Domain),
		Annotations: map[string]string{
			AnnotationRevision: strconv.FormatInt(s.v.Revision, 10),
			AnnotationGrace:    strconv.FormatInt(graceSeconds(s.v.Pod), 10),
		},
	}
}

// start starts the next attempt of a container, or says what it waits for.
func (s *step) start(c *container) {
	image, ready := s.image(c)
	if !s.due(c) || !ready {
		return
	}
	config, skipped, err := s.config(c, image)
	if err != nil {
		c.waitReason, c.waitMessage = ReasonConfigError, err.Error()
		s.tell(c, Event{Warning: true, Reason: "Failed", Message: err.Error()})
		return
	}
	action := StartContainer{Config: config}
	if f, failed := s.mem.Failures[action.Key()]; failed {
		c.waitReason, c.waitMessage = ReasonCreateError, f.Message
	}
	if s.may(action.Key()) {
		s.act(action)
		s.plan.Events = append(s.plan.Events, skipped...)
	}
}

// due tells whether a container has rested long enough since its last end.
func (s *step) due(c *container) bool {
	m := s.mem.Containers[c.spec.GetName()]
	if !c.exited() || !m.DueAt.After(s.v.Now) {
		return true
	}
	s.wake(m.DueAt)
	c.waitReason = ReasonCrashLoopBackOff
	c.waitMessage = fmt.Sprintf("back-off %s restarting container %s: %s", restartDelay(m.Crashes), c.spec.GetName(), ended(c.state))
	s.tell(c, Event{Warning: true, Reason: "BackOff", Message: c.waitMessage})
	return false
}

// ended says in a few words how a container ended.
func ended(c runtime.ContainerState) string {
	text := fmt.Sprintf("attempt %d ended with %s, exit code %d", c.Attempt, c.Reason, c.Exit.Code)
	if c.Message != "" {
		text += " (" + c.Message + ")"
	}
	return text
}

// tell makes an event unless it was the last one told of the container.
func (s *step) tell(c *container, e Event) {
	e.Container = c.spec.GetName()
	if said := e.Reason + " " + e.Message; s.mem.Told[e.Container] != said {
		s.mem.Told[e.Container] = said
		s.plan.Events = append(s.plan.Events, e)
	}
}

// image returns the container's image; while it is not there the container
// says why.
func (s *step) image(c *container) (runtime.Image, bool) {
	want := ImageWant{Name: c.spec.GetImage(), LocalOnly: c.spec.GetImagePullPolicy() == object.PullNever, First: !c.have}
	s.plan.Images = append(s.plan.Images, want)
	have := s.v.Images[c.spec.GetName()]
	switch {
	case have.Ready:
		return have.Image, true
	case have.Reason == "":
		c.waitReason, c.waitMessage = ReasonContainerCreating, "waiting for image "+want.Name
		return runtime.Image{}, false
	}
	c.waitReason, c.waitMessage = have.Reason, have.Message
	if want.LocalOnly && have.Reason == ReasonImageNotPresent {
		c.waitReason = ReasonImageNeverPull
		c.waitMessage = fmt.Sprintf("image %q is not on the node, and imagePullPolicy is Never", want.Name)
	}
	s.tell(c, Event{Warning: true, Reason: c.waitReason, Message: c.waitMessage})
	return runtime.Image{}, false
}

// config is what the next attempt is made from, with a warning for every key
// that was left out. An error names what is missing.
func (s *step) config(c *container, image runtime.Image) (config runtime.ContainerConfig, warnings []Event, err error) {
	pod := s.podWithStatus()
	env, err := environment(pod, c.spec, s.v.Sources)
	if err != nil {
		return config, nil, err
	}
	for _, skipped := range env.Skipped {
		warnings = append(warnings, Event{Warning: true, Reason: "InvalidEnvironmentVariableNames", Container: c.spec.GetName(),
			Message: skipped + " was left out: it is no name of an environment variable"})
	}
	resources, err := Resources(pod.GetSpec(), c.spec, s.v.Node.MemoryBytes)
	if err != nil {
		return config, nil, err
	}
	values := make(map[string]string, len(env.Vars))
	for _, v := range env.Vars {
		values[v.Name] = v.Value
	}
	lookup := func(name string) (string, bool) { value, ok := values[name]; return value, ok }
	config = runtime.ContainerConfig{
		Name: c.spec.GetName(), Attempt: nextAttempt(c), Image: image, Env: env.Vars, Resources: resources,
		Command: expandAll(c.spec.GetCommand(), lookup), Args: expandAll(c.spec.GetArgs(), lookup),
		WorkingDir: c.spec.GetWorkingDir(),
	}
	if s.v.HostsPath != "" {
		config.Mounts = []runtime.Mount{{HostPath: s.v.HostsPath, ContainerPath: "/etc/hosts"}}
	}
	return config, warnings, nil
}

// nextAttempt: one that was made but not started is taken up again.
func nextAttempt(c *container) int {
	switch {
	case !c.have:
		return 0
	case c.state.Status == runtime.ContainerCreated:
		return c.state.Attempt
	default:
		return c.state.Attempt + 1
	}
}

// podWithStatus is the pod with the addresses that fieldRef may ask for.
func (s *step) podWithStatus() *balsav1.Pod {
	return &balsav1.Pod{Metadata: s.v.Pod.GetMetadata(), Spec: s.v.Pod.GetSpec(),
		Status: &balsav1.PodStatus{HostIp: s.v.Node.IP.String(), PodIp: s.podIP()}}
}

func (s *step) podIP() string {
	if s.v.IP.IsValid() {
		return s.v.IP.String()
	}
	return s.v.Pod.GetStatus().GetPodIp()
}

// probes lists whom to ask.
func (s *step) probes() {
	for _, c := range s.containers {
		if !c.running() || c.spec.GetReadinessProbe() == nil {
			continue
		}
		if p, ok := newProbe(s.uid(), c.spec, c.state, s.v.IP, s.recordedReady(c)); ok {
			s.plan.Probes = append(s.plan.Probes, p)
		}
	}
}

// recordedReady tells whether this very attempt was last reported ready.
func (s *step) recordedReady(c *container) bool {
	recorded := containerIn(s.v.Pod.GetStatus(), c.spec.GetName())
	return recorded.GetReady() && recorded.GetContainerId() == containerID(runtime.PodUID(s.uid()), c.spec.GetName(), c.state.Attempt)
}

// ready tells whether a container takes requests.
func (s *step) ready(c *container) bool {
	if !c.running() || s.final() {
		return false
	}
	if c.spec.GetReadinessProbe() == nil {
		return true
	}
	if p, ok := s.v.Probes[c.spec.GetName()]; ok && p.Attempt == c.state.Attempt {
		return p.Ready
	}
	return s.recordedReady(c)
}
