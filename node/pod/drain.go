package pod

import (
	"slices"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// held tells whether hooks and signals have to wait, so that no request meets a
// pod that has gone: first until no node sends new connections to it, which the
// servers say, then until the open ones have finished. Both are bounded, and
// once it is over it is over, also for another agent.
func (s *step) held(grace time.Duration) bool {
	if s.mem.StopDueAt.IsZero() && (!waits || !s.serves(grace) || s.drained() && s.finished()) {
		s.mem.StopDueAt = s.v.Now
	}
	return s.mem.StopDueAt.IsZero()
}

// serves tells whether a pod that ends may be sent requests, by whoever thinks
// that it goes on. The node's own need, and a grace period of 0, wait for nobody;
// of a pod that is not assigned any more no server says anything.
func (s *step) serves(grace time.Duration) bool {
	over, _ := s.over()
	switch {
	case s.v.Pod == nil || grace <= 0 || s.final() || over || s.anySent() || !s.mem.StopSentAt.IsZero():
		return false
	case s.mem.End != nil:
		return s.mem.End.Reason == ReasonDeadlineExceeded
	}
	return s.leaving()
}

// drained tells whether no node sends new connections to the pod, or the wait
// for that is over.
func (s *step) drained() bool {
	last := s.mem.StopSeenAt.Add(drainWait)
	said := object.IsConditionTrue(s.v.Pod.GetStatus().GetConditions(), object.ConditionDrained)
	if s.mem.DrainedAt.IsZero() && (said || !last.After(s.v.Now)) {
		s.mem.DrainedAt = s.v.Now
	}
	if s.mem.DrainedAt.IsZero() {
		s.wake(last)
	}
	return !s.mem.DrainedAt.IsZero()
}

// finished tells whether no connection to the pod is open any more, or the wait
// for that is over. The node's address has connections that are not the pod's, so
// those of a pod that uses it are not waited for.
func (s *step) finished() bool {
	last := s.mem.DrainedAt.Add(object.DrainConnections(s.v.Pod))
	if s.spec().GetHostNetwork() || s.podIP() == "" || !last.After(s.v.Now) {
		return true
	}
	s.plan.CountConnections = true
	if n := s.v.Connections; n != nil && *n == 0 {
		return true
	}
	s.wake(last)
	return false
}

// anySent tells whether a container that runs has had its signal.
func (s *step) anySent() bool {
	return slices.ContainsFunc(s.running(), func(c runtime.ContainerState) bool {
		m := s.mem.Containers[c.Name]
		return m.Sent == c.Attempt+1 && m.Doomed != m.Sent
	})
}
