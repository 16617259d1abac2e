package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
)

// Action is one thing to do: PrepareVolumes, CreateSandbox, Connect,
// StartContainer, Signal, RemovePod, RemoveVolumes or Disconnect. All may be
// repeated.
type Action interface {
	fmt.Stringer
	// Key names what fails when the action fails.
	Key() string
}

// PrepareVolumes makes the pod's volumes, or brings their files up to date.
type PrepareVolumes struct {
	Pod volume.Pod
	// Digest names these volumes and what is in them.
	Digest string
}

// CreateSandbox makes, or revives, the pod's sandbox.
type CreateSandbox struct{ Config runtime.PodConfig }

// Connect gives the pod its address.
type Connect struct {
	UID   string
	NetNS string
	// Host: the node's address will do.
	Host bool
	// Hosts makes the hosts file once the address is known.
	Hosts func(netip.Addr) []byte
}

// StartContainer starts one attempt.
type StartContainer struct {
	Config runtime.ContainerConfig
	// StopSignal is the pod's own for the container; empty: the image's.
	StopSignal string
}

// Signal sends a signal to one attempt. Kill marks the last resort, Restart that
// the container alone has to end.
type Signal struct {
	Container string
	Attempt   int
	Signal    runtime.Signal
	Kill      bool
	Restart   bool
	// Grace is how long the container then has, for the event.
	Grace time.Duration
}

// RemovePod removes all that the runtime holds of the pod.
type RemovePod struct{ UID string }

// RemoveVolumes removes the pod's volumes; persistent ones keep their contents.
type RemoveVolumes struct{ UID string }

// Disconnect frees the pod's address.
type Disconnect struct{ UID string }

// Key implements Action.
func (PrepareVolumes) Key() string   { return "volumes" }
func (RemoveVolumes) Key() string    { return "empty" }
func (CreateSandbox) Key() string    { return "sandbox" }
func (Connect) Key() string          { return "network" }
func (a StartContainer) Key() string { return "start/" + a.Config.Name }
func (a Signal) Key() string         { return "signal/" + a.Container }
func (RemovePod) Key() string        { return "remove" }
func (Disconnect) Key() string       { return "free" }

func (a PrepareVolumes) String() string {
	return fmt.Sprintf("prepare %d volumes of pod %s", len(a.Pod.Volumes), a.Pod.UID)
}
func (a RemoveVolumes) String() string { return fmt.Sprintf("remove the volumes of pod %s", a.UID) }
func (a CreateSandbox) String() string { return fmt.Sprintf("create sandbox of pod %s", a.Config.UID) }
func (a Connect) String() string       { return fmt.Sprintf("connect pod %s", a.UID) }
func (a StartContainer) String() string {
	return fmt.Sprintf("start container %s attempt %d", a.Config.Name, a.Config.Attempt)
}
func (a Signal) String() string {
	return fmt.Sprintf("send %s to container %s attempt %d", a.Signal, a.Container, a.Attempt)
}
func (a RemovePod) String() string  { return fmt.Sprintf("remove pod %s", a.UID) }
func (a Disconnect) String() string { return fmt.Sprintf("disconnect pod %s", a.UID) }

// Done is the memory after an action, which failed if err is not nil, and what
// there is to tell about it.
func Done(m Memory, action Action, err error, now time.Time) (Memory, []Event) {
	m = m.clone()
	if err != nil && !harmless(action, err) {
		return m, m.failed(action, err, now)
	}
	delete(m.Failures, action.Key())
	switch a := action.(type) {
	case PrepareVolumes:
		m.Volumes, m.Emptied = a.Digest, false
	case StartContainer:
		delete(m.Killed, a.Config.Name)
		return m, m.started(a, err)
	case Signal:
		return m, m.signalled(a, now)
	case RemoveVolumes:
		m.Volumes, m.Emptied = "", true
	case Disconnect:
		m.Freed = true
	}
	return m, nil
}

// harmless errors say that what was wanted is so, or shows in the runtime.
func harmless(action Action, err error) bool {
	switch action.(type) {
	case StartContainer:
		return errors.Is(err, runtime.ErrStartFailed)
	case Signal:
		return errors.Is(err, runtime.ErrNotRunning) || errors.Is(err, runtime.ErrContainerNotFound) || errors.Is(err, runtime.ErrPodNotFound)
	case RemovePod:
		return errors.Is(err, runtime.ErrPodNotFound)
	}
	return false
}

func (m *Memory) failed(action Action, err error, now time.Time) []Event {
	key := action.Key()
	old := m.Failures[key]
	m.Failures[key] = Failure{Count: old.Count + 1, At: now, Message: err.Error(), Invalid: errors.Is(err, runtime.ErrInvalid)}
	if old.Message == err.Error() {
		return nil
	}
	e := Event{Warning: true, Message: err.Error()}
	switch a := action.(type) {
	case PrepareVolumes:
		e.Reason = ReasonFailedMount
	case CreateSandbox, Connect:
		e.Reason = "FailedCreatePodSandBox"
	case StartContainer:
		e.Reason, e.Container = "Failed", a.Config.Name
	case Signal:
		e.Reason, e.Container = "FailedKill", a.Container
	default:
		e.Reason = "FailedKillPod"
	}
	return []Event{e}
}

func (m *Memory) started(a StartContainer, err error) []Event {
	m.change(a.Config.Name, func(c *ContainerMemory) {
		c.StopSignal = 0
		for _, text := range []string{a.StopSignal, a.Config.Image.StopSignal} {
			if sig, parseErr := runtime.ParseSignal(text); text != "" && parseErr == nil {
				c.StopSignal = sig
				break
			}
		}
	})
	if err != nil {
		return []Event{{Warning: true, Reason: "Failed", Container: a.Config.Name, Message: err.Error()}}
	}
	return []Event{{Reason: "Started", Container: a.Config.Name,
		Message: fmt.Sprintf("Started container %s, attempt %d", a.Config.Name, a.Config.Attempt)}}
}

func (m *Memory) signalled(a Signal, now time.Time) []Event {
	if a.Kill {
		m.Killed[a.Container] = now
		return []Event{{Warning: true, Reason: "Killing", Container: a.Container,
			Message: fmt.Sprintf("Container %s did not end within %s and was killed", a.Container, a.Grace)}}
	}
	m.change(a.Container, func(c *ContainerMemory) { c.Sent, c.SentAt = a.Attempt+1, now })
	if m.StopSentAt.IsZero() && !a.Restart {
		m.StopSentAt = now
	}
	return []Event{{Reason: "Killing", Container: a.Container,
		Message: fmt.Sprintf("Stopping container %s with %s; it has %s to end", a.Container, a.Signal, a.Grace)}}
}
