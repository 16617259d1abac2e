package pod

import (
	"maps"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// Memory is what a pod's steps hand on to one another. The first fields are kept
// on disk; without them a step is more careful, not wrong. The others live as
// long as the process.
type Memory struct {
	// Containers by name.
	Containers map[string]ContainerMemory `json:"containers,omitempty"`
	// End is why the pod has to end although nobody asked for its deletion.
	End *End `json:"end,omitempty"`
	// StopSeenAt is when a step first saw that the pod has to end.
	StopSeenAt time.Time `json:"stopSeenAt,omitzero"`
	// DrainedAt is when the pod was first seen without new connections, or that was
	// given up; StopDueAt when open ones had finished, or that was: hooks and
	// signals begin. Neither goes back, so a restart lengthens nothing.
	DrainedAt time.Time `json:"drainedAt,omitzero"`
	StopDueAt time.Time `json:"stopDueAt,omitzero"`
	// StopSentAt is when the first container was told, or the first preStop hook
	// began. The grace period counts from here. It is set after the fact: a crash
	// in between tells it twice, never not at all.
	StopSentAt time.Time `json:"stopSentAt,omitzero"`
	// Users is the range of ids of the pod's user namespace.
	Users *runtime.IDMapping `json:"users,omitempty"`

	// Killed is when a container was killed.
	Killed map[string]time.Time `json:"-"`
	// Volumes is the digest of the volumes that were prepared last.
	Volumes string `json:"-"`
	// Emptied: no volume is left. Freed: the network holds nothing of the pod.
	Emptied bool `json:"-"`
	Freed   bool `json:"-"`
	// Failures by Action.Key.
	Failures map[string]Failure `json:"-"`
	// Told holds the last event of a container that a step repeats.
	Told map[string]string `json:"-"`
	// Status is the last one that a step made.
	Status *balsav1.PodStatus `json:"-"`
}

// End is why a pod that nobody deleted has to end.
type End struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Grace is how long its containers have; nil: what the pod says.
	Grace *time.Duration `json:"grace,omitempty"`
}

// ContainerMemory is what is remembered of a container. Attempts are noted as
// one more than their number, so that zero is none.
type ContainerMemory struct {
	// Counted is the last attempt whose end has been taken into account, in
	// Crashes (ends in a row) and DueAt (when to start the next).
	Counted int       `json:"counted,omitempty"`
	Crashes int       `json:"crashes,omitempty"`
	DueAt   time.Time `json:"dueAt,omitzero"`
	// StopSignal is the container's or the image's; 0: SIGTERM.
	StopSignal runtime.Signal `json:"stopSignal,omitempty"`
	// LostAt is when it was found that the runtime knows nothing of a container
	// that had run.
	LostAt time.Time `json:"lostAt,omitzero"`
	// Floor is the first attempt that may count for the sandbox that is there.
	Floor int `json:"floor,omitempty"`
	// Hooked is the attempt whose postStart hook has returned, Passed the one
	// whose startup probe has passed, StopHooked the one whose preStop hook has
	// returned.
	Hooked     int `json:"hooked,omitempty"`
	Passed     int `json:"passed,omitempty"`
	StopHooked int `json:"stopHooked,omitempty"`
	// Ready is the attempt whose readiness probe was last seen to have passed: what
	// is recorded of it may not have come back yet.
	Ready int `json:"ready,omitempty"`
	// Sent is the attempt that was sent its stop signal, at SentAt.
	Sent   int       `json:"sent,omitempty"`
	SentAt time.Time `json:"sentAt,omitzero"`
	// Doomed is the attempt that has to end and be run again, for the reason Why,
	// since DoomedAt, in Grace.
	Doomed   int           `json:"doomed,omitempty"`
	DoomedAt time.Time     `json:"doomedAt,omitzero"`
	Why      string        `json:"why,omitempty"`
	Grace    time.Duration `json:"grace,omitempty"`
}

// Failure is what became of an action that did not succeed.
type Failure struct {
	Count   int
	At      time.Time
	Message string
	// Invalid: what the pod says cannot be done, however often it is tried.
	Invalid bool `json:",omitempty"`
}

// clone makes a memory that can be changed; its maps are never nil.
func (m Memory) clone() Memory {
	m.Containers = clone(m.Containers)
	m.Killed = clone(m.Killed)
	m.Failures = clone(m.Failures)
	m.Told = clone(m.Told)
	return m
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// SameOnDisk tells whether two memories are kept the same.
func (m Memory) SameOnDisk(o Memory) bool {
	return maps.Equal(m.Containers, o.Containers) && m.StopSeenAt.Equal(o.StopSeenAt) && m.DrainedAt.Equal(o.DrainedAt) && m.StopDueAt.Equal(o.StopDueAt) && m.StopSentAt.Equal(o.StopSentAt) &&
		(m.End == nil) == (o.End == nil) && (m.Users == nil) == (o.Users == nil)
}

// change changes what is remembered of a container.
func (m *Memory) change(name string, f func(*ContainerMemory)) {
	c := m.Containers[name]
	f(&c)
	m.Containers[name] = c
}

// retryDelay grows with every failure.
func retryDelay(failures int) time.Duration {
	return doubled(retryDelayMin, retryDelayMax, failures-1)
}

// restartDelay is how long a container rests after so many ends in a row. The
// first restart is at once, as in Kubernetes.
func restartDelay(crashes int) time.Duration {
	if crashes <= 1 {
		return 0
	}
	return doubled(restartDelayMin, restartDelayMax, crashes-2)
}

// doubled is first doubled n times, at most most.
func doubled(first, most time.Duration, n int) time.Duration {
	for d := first; ; d *= 2 {
		if d >= most {
			return most
		}
		if n--; n < 0 {
			return d
		}
	}
}
