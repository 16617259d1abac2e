package pod

import (
	"strconv"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// ending tells whether nothing of the pod may run any more: its deletion was
// asked for, nobody wants it, or its end is recorded.
func (s *step) ending() bool {
	return s.v.Pod == nil || object.IsTerminating(s.v.Pod) || s.final()
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
		s.probes() // it serves until it has ended
	}
	grace := s.grace()
	if grace > 0 && !s.drained() {
		return
	}
	if grace > 0 && !s.pastGrace(grace) {
		s.terminate(running, grace)
		return
	}
	s.kill(running, grace)
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

// grace is the time between SIGTERM and SIGKILL.
func (s *step) grace() time.Duration {
	if s.v.Pod != nil {
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

// drained waits until no connection is sent to the pod any more, so that none
// is refused because the pod went first. It is bounded: an endpoint that does
// not go must not keep a pod.
func (s *step) drained() bool {
	last := s.mem.StopSeenAt.Add(drainMax)
	switch {
	case !s.mem.StopSentAt.IsZero() || !s.v.Now.Before(last):
		return true
	case s.v.InService:
		s.mem.WasInService = true
		s.wake(last)
		return false
	case !s.mem.WasInService:
		return true
	}
	if s.mem.OutOfServiceAt.IsZero() {
		s.mem.OutOfServiceAt = s.v.Now
	}
	due := s.mem.OutOfServiceAt.Add(drainLinger)
	s.wake(due)
	return !due.After(s.v.Now)
}

// pastGrace tells whether the containers have had their time. Where SIGTERM
// could not be sent, it counts from when it should have been.
func (s *step) pastGrace(grace time.Duration) bool {
	from := s.mem.StopSentAt
	if from.IsZero() {
		from = s.mem.StopSeenAt.Add(drainMax)
	}
	s.wake(from.Add(grace))
	return !from.Add(grace).After(s.v.Now)
}

func (s *step) terminate(running []runtime.ContainerState, grace time.Duration) {
	for _, c := range running {
		if attempt, sent := s.mem.Sent[c.Name]; sent && attempt == c.Attempt {
			continue
		}
		sig := s.mem.Containers[c.Name].StopSignal
		if sig == 0 {
			sig = runtime.SIGTERM
		}
		a := Signal{Container: c.Name, Attempt: c.Attempt, Signal: sig, Grace: grace}
		if s.may(a.Key()) {
			s.act(a)
		}
	}
}

func (s *step) kill(running []runtime.ContainerState, grace time.Duration) {
	gaveUp := false
	for _, c := range running {
		at, killed := s.mem.Killed[c.Name]
		if killed && at.Add(killAgain).After(s.v.Now) && !at.After(s.v.Now) {
			s.wake(at.Add(killAgain))
			continue
		}
		gaveUp = gaveUp || s.overdue(grace)
		a := Signal{Container: c.Name, Attempt: c.Attempt, Signal: runtime.SIGKILL, Kill: true, Grace: grace}
		if s.may(a.Key()) {
			s.act(a)
		}
	}
	if gaveUp && s.leaving() {
		s.plan.Actions = nil
		s.remove()
	}
}

// overdue tells whether SIGKILL has had no effect for long; removing the pod
// kills by other means.
func (s *step) overdue(grace time.Duration) bool {
	from := s.mem.StopSentAt
	if from.IsZero() {
		from = s.mem.StopSeenAt.Add(drainMax)
	}
	return !from.Add(grace + giveUpAfter).After(s.v.Now)
}

// remove leaves nothing of a pod that has to go; one that has only ended keeps
// its sandbox, for its logs.
func (s *step) remove() {
	if !s.leaving() {
		return
	}
	switch {
	case s.v.Runtime != nil:
		s.tryTo(RemovePod{UID: s.uid()})
	case !s.mem.Freed:
		s.tryTo(Disconnect{UID: s.uid()})
	default:
		s.plan.Removed = true
	}
}

func (s *step) tryTo(a Action) {
	if s.may(a.Key()) {
		s.act(a)
	}
}
