package runtime

import (
	"cmp"
	"fmt"
	"slices"
)

// Container returns the newest attempt of a name.
func (p PodState) Container(name string) (ContainerState, bool) {
	var found ContainerState
	ok := false
	for _, c := range p.Containers {
		if c.Name == name && (!ok || c.Attempt > found.Attempt) {
			found, ok = c, true
		}
	}
	return found, ok
}

// Attempt returns one attempt of a name.
func (p PodState) Attempt(name string, attempt int) (ContainerState, bool) {
	for _, c := range p.Containers {
		if c.Name == name && c.Attempt == attempt {
			return c, true
		}
	}
	return ContainerState{}, false
}

// SortContainers puts states in the order that PodState promises.
func SortContainers(states []ContainerState) {
	slices.SortFunc(states, func(a, b ContainerState) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Attempt, b.Attempt))
	})
}

// ReasonFor is the reason of a process that ended by itself or by a signal.
func ReasonFor(exit ExitStatus, oomKills int64) Reason {
	switch {
	case exit.Code == 0:
		return ReasonCompleted
	case oomKills > 0:
		return ReasonOOMKilled
	default:
		return ReasonError
	}
}

// AdmitAttempt decides whether an attempt may start, given the pod's other
// attempts: start it, report the outcome of an earlier call, or refuse.
func AdmitAttempt(pod PodState, c ContainerConfig) (start bool, err error) {
	names := map[string]bool{c.Name: true}
	for _, have := range pod.Containers {
		names[have.Name] = true
		if have.Name != c.Name {
			continue
		}
		switch {
		case have.Attempt == c.Attempt:
			return false, outcome(have)
		case have.Attempt > c.Attempt:
			return false, c.refuse("attempt %d: attempt %d exists already", c.Attempt, have.Attempt)
		case have.Status == ContainerRunning:
			return false, c.refuse("attempt %d: attempt %d still runs (pid %d): signal it and wait", c.Attempt, have.Attempt, have.PID)
		}
	}
	if len(names) > MaxContainersPerPod {
		return false, c.invalid("the pod has %d container names, at most %d are allowed", len(names), MaxContainersPerPod)
	}
	return true, nil
}

func outcome(c ContainerState) error {
	if c.Reason == ReasonStartError {
		return fmt.Errorf("container %s attempt %d: %s: %w", c.Name, c.Attempt, c.Message, ErrStartFailed)
	}
	return nil
}

func (c ContainerConfig) refuse(format string, args ...any) error {
	return fmt.Errorf("container %s: %s: %w", c.Name, fmt.Sprintf(format, args...), ErrConflict)
}
