package main

import (
	"fmt"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

func podColumns(now func() time.Time) []column {
	return []column{
		{"READY", false, of(func(p *balsav1.Pod) string { return summarise(p, now()).ready })},
		{"STATUS", false, of(func(p *balsav1.Pod) string { return summarise(p, now()).status })},
		{"RESTARTS", false, of(func(p *balsav1.Pod) string { return summarise(p, now()).restarts })},
		{"IP", true, of(func(p *balsav1.Pod) string { return p.GetStatus().GetPodIp() })},
		{"NODE", true, of(func(p *balsav1.Pod) string { return p.GetSpec().GetNodeName() })},
	}
}

// podSummary is what a row says of a pod. People know kubectl's columns, so each
// is made by the same rules: the state of the container that matters now, before
// the phase.
type podSummary struct{ ready, status, restarts string }

func summarise(p *balsav1.Pod, now time.Time) podSummary {
	s := podReading{pod: p, status: p.GetStatus().GetPhase(), total: len(p.GetSpec().GetContainers())}
	if reason := p.GetStatus().GetReason(); reason != "" {
		s.status = reason
	}
	if s.sidecars(); !s.initialising() {
		s.main()
	}
	s.lost()
	s.ending()
	return podSummary{fmt.Sprintf("%d/%d", s.ready, s.total), s.status, s.restartText(now)}
}

// podReading is the summary while it is made.
type podReading struct {
	pod          *balsav1.Pod
	status       string
	ready, total int
	restarts     int32
	restarted    time.Time // the end of the run before the last restart
}

func (s *podReading) count(status *balsav1.ContainerStatus) {
	s.restarts += status.GetRestartCount()
	if finished := status.GetLastState().GetTerminated().GetFinishedAt(); finished != nil && finished.AsTime().After(s.restarted) {
		s.restarted = finished.AsTime()
	}
}

// sidecars count as containers: they stay as long as the others.
func (s *podReading) sidecars() {
	for _, c := range s.pod.GetSpec().GetInitContainers() {
		if !object.IsSidecar(c) {
			continue
		}
		s.total++
		status := s.initStatus(c.GetName())
		s.count(status)
		if status.GetStarted() && status.GetReady() {
			s.ready++
		}
	}
}

func (s *podReading) initStatus(name string) *balsav1.ContainerStatus {
	for _, status := range s.pod.GetStatus().GetInitContainerStatuses() {
		if status.GetName() == name {
			return status
		}
	}
	return nil
}

// initialising tells whether init containers are at work, and which is.
func (s *podReading) initialising() bool {
	init := s.pod.GetSpec().GetInitContainers()
	if object.IsConditionTrue(s.pod.GetStatus().GetConditions(), object.ConditionInitialized) || len(s.pod.GetStatus().GetInitContainerStatuses()) == 0 {
		return false
	}
	for i, c := range init {
		status, sidecar := s.initStatus(c.GetName()), object.IsSidecar(c)
		if !sidecar {
			s.count(status)
		}
		if sidecar && status.GetStarted() {
			continue
		}
		terminated, waiting := status.GetState().GetTerminated(), status.GetState().GetWaiting().GetReason()
		switch {
		case terminated != nil && terminated.GetExitCode() == 0 && !sidecar:
			continue
		case terminated != nil:
			s.status = "Init:" + endOf(terminated)
		case waiting != "" && waiting != "PodInitializing":
			s.status = "Init:" + waiting
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(init))
		}
		return true
	}
	return false
}

// endOf is why a container ended, in a word.
func endOf(t *balsav1.ContainerStateTerminated) string {
	switch {
	case t.GetReason() != "":
		return t.GetReason()
	case t.GetSignal() != 0:
		return fmt.Sprintf("Signal:%d", t.GetSignal())
	}
	return fmt.Sprintf("ExitCode:%d", t.GetExitCode())
}

// main reads the main containers: of several, the first that does not run gives
// the status.
func (s *podReading) main() {
	statuses := s.pod.GetStatus().GetContainerStatuses()
	status, running := s.status, false
	for i := len(statuses) - 1; i >= 0; i-- {
		s.count(statuses[i])
		state := statuses[i].GetState()
		switch {
		case state.GetWaiting().GetReason() != "":
			status = state.GetWaiting().GetReason()
		case state.GetTerminated() != nil:
			status = endOf(state.GetTerminated())
		case statuses[i].GetReady() && state.GetRunning() != nil:
			running = true
			s.ready++
		}
	}
	if status == "Completed" && running {
		status = "NotReady"
		if object.PodReady(s.pod) {
			status = object.PodRunning
		}
	}
	// Why a pod was ended, for example Evicted or DeadlineExceeded, says more than
	// how its containers took it.
	if s.pod.GetStatus().GetPhase() != object.PodFailed || s.pod.GetStatus().GetReason() == "" {
		s.status = status
	}
}

// lost: what is recorded of a pod that waits for its node is of before that was
// lost.
func (s *podReading) lost() {
	const reason = "NodeLost"
	ready := object.FindCondition(s.pod.GetStatus().GetConditions(), object.ConditionReady)
	if ready.GetReason() == reason && !object.PodFinished(s.pod) {
		s.status, s.ready = reason, 0
	}
}

func (s *podReading) ending() {
	if object.IsTerminating(s.pod) && !object.PodFinished(s.pod) {
		s.status = "Terminating"
	}
}

func (s *podReading) restartText(now time.Time) string {
	text := count(s.restarts)
	if s.restarts > 0 && !s.restarted.IsZero() {
		text += fmt.Sprintf(" (%s ago)", since(s.restarted, now))
	}
	return text
}
