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
	// StopSeenAt is when a step first saw that the pod has to end.
	StopSeenAt time.Time `json:"stopSeenAt,omitzero"`
	// StopSentAt is when the first container was told. The grace period counts
	// from here. It is set after the fact: a crash in between tells it twice,
	// never not at all.
	StopSentAt time.Time `json:"stopSentAt,omitzero"`

	// Sent holds the attempts that this process has told to stop, Killed when a
	// container was killed.
	Sent   map[string]int       `json:"-"`
	Killed map[string]time.Time `json:"-"`
	// OutOfServiceAt is when the pod was first seen without connections, after
	// it had been seen with them while it had to end.
	WasInService   bool      `json:"-"`
	OutOfServiceAt time.Time `json:"-"`
	// Freed: the network holds nothing of the pod.
	Freed bool `json:"-"`
	// Failures by Action.Key.
	Failures map[string]Failure `json:"-"`
	// Told holds the last event of a container that a step repeats.
	Told map[string]string `json:"-"`
	// Status is the last one that a step made.
	Status *balsav1.PodStatus `json:"-"`
}

// ContainerMemory is what is remembered of a container.
type ContainerMemory struct {
	// Counted is one more than the last attempt whose end has been taken into
	// account, in Crashes (ends in a row) and DueAt (when to start the next).
	Counted int       `json:"counted,omitempty"`
	Crashes int       `json:"crashes,omitempty"`
	DueAt   time.Time `json:"dueAt,omitzero"`
	// StopSignal is the image's; 0: SIGTERM.
	StopSignal runtime.Signal `json:"stopSignal,omitempty"`
	// LostAt is when it was found that the runtime knows nothing of a container
	// that had run.
	LostAt time.Time `json:"lostAt,omitzero"`
}

// Failure is what became of an action that did not succeed.
type Failure struct {
	Count   int
	At      time.Time
	Message string
}

// clone makes a memory that can be changed; its maps are never nil.
func (m Memory) clone() Memory {
	m.Containers = clone(m.Containers)
	m.Sent = clone(m.Sent)
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
	return maps.Equal(m.Containers, o.Containers) && m.StopSeenAt.Equal(o.StopSeenAt) && m.StopSentAt.Equal(o.StopSentAt)
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
