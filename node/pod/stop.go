package pod

import (
	"slices"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// ending tells whether nothing of the pod may run any more: its deletion was
// asked for, nobody wants it, its end is recorded or decided, or its containers
// have ended for good.
func (s *step) ending() bool {
	if s.leaving() || s.final() || s.mem.End != nil {
		return true
	}
	over, _ := s.over()
	return over
}

// leaving tells whether nothing of the pod may stay.
func (s *step) leaving() bool { return s.v.Pod == nil || object.IsTerminating(s.v.Pod) }

// stop brings a pod nearer to its end.
func (s *step) stop() {
	if s.mem.StopSeenAt.IsZero() {
		s.mem.StopSeenAt = s.v.Now
	}
	running := s.running()
	if len(running) == 0 {
		s.remove()
		return
	}
	if s.leaving() {
		s.probes(false) // it serves until it has ended
	}
	grace := s.grace()
	if s.held(grace) {
		s.endAllDoomed()
		return
	}
	if s.overdue(grace) && s.leaving() && s.killed(running) {
		s.plan.Hooks = nil
		s.remove()
		return
	}
	e := ending{grace: grace, began: s.stopBegan(running, grace)}
	for _, c := range running {
		e.hold = !s.turn(c.Name, running)
		s.end(c, e)
	}
}

// running lists what runs, also containers that the pod's object does not name
// because there is none.
func (s *step) running() []runtime.ContainerState {
	if s.v.Runtime == nil {
		return nil
	}
	var out []runtime.ContainerState
	for _, c := range s.v.Runtime.Containers {
		if c.Status == runtime.ContainerRunning {
			out = append(out, c)
		}
	}
	return out
}

// stopBegan is when the grace period began: with the first hook, else with the
// first signal. Where no signal can be sent it counts from when one was due.
func (s *step) stopBegan(running []runtime.ContainerState, grace time.Duration) time.Time {
	if s.mem.StopSentAt.IsZero() && grace > 0 && slices.ContainsFunc(running, s.hasPreStop) {
		s.mem.StopSentAt = s.v.Now
	}
	if s.mem.StopSentAt.IsZero() {
		return s.mem.StopDueAt
	}
	return s.mem.StopSentAt
}

// end brings one container nearer to its end.
func (s *step) end(c runtime.ContainerState, e ending) {
	deadline := e.began.Add(e.grace)
	if e.grace <= 0 {
		s.kill(c, e)
		return
	}
	if deadline.After(s.v.Now) {
		s.wake(deadline)
		if s.preStop(c) || e.hold {
			return
		}
	}
	m := s.mem.Containers[c.Name]
	last := deadline.Add(stopLeast)
	if m.Sent == c.Attempt+1 {
		last = deadline
		if sent := notAfter(m.SentAt, s.v.Now); sent.After(e.began) && sent.Add(stopLeast).After(deadline) {
			last = sent.Add(stopLeast)
		}
	}
	if !last.After(s.v.Now) {
		s.kill(c, e)
		return
	}
	s.wake(last)
	if m.Sent == c.Attempt+1 {
		return
	}
	sig := m.StopSignal
	if sig == 0 {
		sig = runtime.SIGTERM
	}
	s.tryTo(Signal{Container: c.Name, Attempt: c.Attempt, Signal: sig, Grace: max(min(e.grace, deadline.Sub(s.v.Now)), stopLeast), Restart: e.restart})
}

// hasPreStop tells whether a hook has to run before the container's signal.
func (s *step) hasPreStop(c runtime.ContainerState) bool {
	i := slices.IndexFunc(s.containers, func(o *container) bool { return o.name() == c.Name })
	return i >= 0 && s.containers[i].spec.GetLifecycle().GetPreStop() != nil && s.mem.Containers[c.Name].StopHooked != c.Attempt+1 &&
		s.mem.Containers[c.Name].Sent != c.Attempt+1
}

// preStop has the container's hook run, and tells whether it is still to return.
func (s *step) preStop(c runtime.ContainerState) bool {
	if !s.hasPreStop(c) {
		return false
	}
	i := slices.IndexFunc(s.containers, func(o *container) bool { return o.name() == c.Name })
	h, err := s.hook(s.containers[i], PreStop)
	if err != nil {
		s.mem.change(c.Name, func(m *ContainerMemory) { m.StopHooked = c.Attempt + 1 })
		s.event(Event{Warning: true, Reason: ReasonFailedPreStop, Container: c.Name, Message: "PreStopHook failed: " + err.Error()})
		return false
	}
	s.plan.Hooks = append(s.plan.Hooks, h)
	return true
}

// turn tells whether a container's signal is due: sidecars wait for the
// containers, and for the sidecars that began after them.
func (s *step) turn(name string, running []runtime.ContainerState) bool {
	order := sidecarNames(s.spec())
	if s.v.Pod == nil {
		order = strings.Split(s.v.Runtime.Annotations[AnnotationSidecars], ",")
	}
	own := slices.Index(order, name)
	if own < 0 {
		return true
	}
	return !slices.ContainsFunc(running, func(c runtime.ContainerState) bool {
		at := slices.Index(order, c.Name)
		extra := slices.ContainsFunc(s.extras, func(o *container) bool { return o.name() == c.Name })
		return !extra && (at < 0 || at > own)
	})
}

// grace is the time between the first hook or SIGTERM, and SIGKILL.
func (s *step) grace() time.Duration {
	switch {
	case s.v.Pod != nil && !s.leaving() && s.mem.End != nil && s.mem.End.Grace != nil:
		return *s.mem.End.Grace
	case s.v.Pod != nil:
		return time.Duration(graceSeconds(s.v.Pod)) * time.Second
	}
	if text, ok := s.v.Runtime.Annotations[AnnotationGrace]; ok {
		if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 {
			return time.Duration(n) * time.Second
		}
	}
	return time.Duration(object.DefaultTerminationGrace) * time.Second
}

func graceSeconds(pod *balsav1.Pod) int64 {
	if g := pod.GetMetadata().DeletionGracePeriodSeconds; g != nil {
		return *g
	}
	if g := pod.GetSpec().TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	return object.DefaultTerminationGrace
}

// kill kills a container, and again if that had no effect.
func (s *step) kill(c runtime.ContainerState, e ending) {
	at, killed := s.mem.Killed[c.Name]
	if killed && at.Add(killAgain).After(s.v.Now) && !at.After(s.v.Now) {
		s.wake(at.Add(killAgain))
		return
	}
	s.tryTo(Signal{Container: c.Name, Attempt: c.Attempt, Signal: runtime.SIGKILL, Kill: true, Grace: e.grace, Restart: e.restart})
}

// killed tells whether everything that runs was sent SIGKILL, or could not be.
func (s *step) killed(running []runtime.ContainerState) bool {
	return !slices.ContainsFunc(running, func(c runtime.ContainerState) bool {
		_, done := s.mem.Killed[c.Name]
		_, failed := s.mem.Failures[Signal{Container: c.Name}.Key()]
		return !done && !failed
	})
}

// overdue tells whether SIGKILL has had no effect for long; removing the pod
// kills by other means.
func (s *step) overdue(grace time.Duration) bool {
	from := s.mem.StopSentAt
	if from.IsZero() {
		from = s.mem.StopDueAt
	}
	if grace > 0 {
		grace += stopLeast
	}
	return !from.Add(grace + giveUpAfter).After(s.v.Now)
}

// remove leaves nothing of a pod that has to go; one that has only ended keeps
// its sandbox, for its logs.
func (s *step) remove() {
	switch {
	case !s.leaving():
		if len(s.spec().GetVolumes()) > 0 && !s.mem.Emptied {
			s.tryTo(RemoveVolumes{UID: s.uid()})
		}
	case s.v.Runtime != nil:
		s.tryTo(RemovePod{UID: s.uid()})
	case !s.mem.Emptied:
		s.tryTo(RemoveVolumes{UID: s.uid()})
	case !s.mem.Freed:
		s.tryTo(Disconnect{UID: s.uid()})
	default:
		s.plan.Removed = true
	}
}
