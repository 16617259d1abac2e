package object

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Phases of a pod: Pending -> Running -> Succeeded or Failed. The last two are
// final. Unknown: its node has not been heard of.
const (
	PodPending   = "Pending"
	PodRunning   = "Running"
	PodSucceeded = "Succeeded"
	PodFailed    = "Failed"
	PodUnknown   = "Unknown"
)

// Phases of a PersistentVolumeClaim.
const (
	ClaimPending = "Pending"
	ClaimBound   = "Bound"
	ClaimLost    = "Lost"
)

// Phases of a PersistentVolume.
const (
	VolumeAvailable = "Available"
	VolumeBound     = "Bound"
	VolumeReleased  = "Released"
	VolumeFailed    = "Failed"
)

// Phases of a namespace.
const (
	NamespaceActive      = "Active"
	NamespaceTerminating = "Terminating"
)

// Values of a condition's status.
const (
	ConditionTrue    = "True"
	ConditionFalse   = "False"
	ConditionUnknown = "Unknown"
)

// Types of conditions.
const (
	ConditionPodScheduled = "PodScheduled"
	// ConditionReadyToStart is True once the pod's sandbox and network are there.
	ConditionReadyToStart = "PodReadyToStartContainers"
	// ConditionDisruptionTarget is True of a pod that is evicted or preempted.
	ConditionDisruptionTarget = "DisruptionTarget"
	// ConditionEvictionRequested is True of a pod that stays until another is
	// available in its place.
	ConditionEvictionRequested = "EvictionRequested"
	// ConditionDrained is True of a terminating pod that no node sends new
	// connections to: its containers may be stopped.
	ConditionDrained         = "Drained"
	ConditionInitialized     = "Initialized"
	ConditionContainersReady = "ContainersReady"
	ConditionReady           = "Ready"
	ConditionAvailable       = "Available"
	ConditionProgressing     = "Progressing"
)

// FindCondition returns the condition of a type, nil when there is none.
func FindCondition(conditions []*balsav1.Condition, conditionType string) *balsav1.Condition {
	for _, c := range conditions {
		if c.GetType() == conditionType {
			return c
		}
	}
	return nil
}

// IsConditionTrue tells whether the condition of a type is there and True.
func IsConditionTrue(conditions []*balsav1.Condition, conditionType string) bool {
	return FindCondition(conditions, conditionType).GetStatus() == ConditionTrue
}

// SetCondition returns conditions with c in the place of the one of its type, or
// at the end, and whether that differs from before. lastTransitionTime stays
// when status stays, else it becomes now; what c says of it does not count.
// Neither conditions nor c are changed.
func SetCondition(conditions []*balsav1.Condition, c *balsav1.Condition, now time.Time) (_ []*balsav1.Condition, changed bool) {
	next := proto.CloneOf(c)
	next.LastTransitionTime = timestamppb.New(now)
	out := make([]*balsav1.Condition, 0, len(conditions)+1)
	placed := false
	for _, old := range conditions {
		if old.GetType() != c.GetType() {
			out = append(out, old)
			continue
		}
		placed = true
		if old.GetStatus() == next.Status {
			next.LastTransitionTime = old.GetLastTransitionTime()
		}
		if proto.Equal(old, next) {
			return conditions, false
		}
		out = append(out, next)
	}
	if !placed {
		out = append(out, next)
	}
	return out, true
}

// IsTerminating tells whether the deletion of an object was asked for.
func IsTerminating(m Message) bool { return m.GetMetadata().GetDeletionTimestamp() != nil }

// PodReady tells whether a pod's condition Ready is True.
func PodReady(pod *balsav1.Pod) bool {
	return IsConditionTrue(pod.GetStatus().GetConditions(), ConditionReady)
}

// PodReadySince returns when a ready pod became ready.
func PodReadySince(pod *balsav1.Pod) (time.Time, bool) {
	c := FindCondition(pod.GetStatus().GetConditions(), ConditionReady)
	if c.GetStatus() != ConditionTrue {
		return time.Time{}, false
	}
	return c.GetLastTransitionTime().AsTime(), true
}

// PodAvailable tells whether a pod has been ready for minReadySeconds at now;
// when it is ready but not yet long enough, wait says how much is missing.
func PodAvailable(pod *balsav1.Pod, minReadySeconds int32, now time.Time) (available bool, wait time.Duration) {
	since, ready := PodReadySince(pod)
	if !ready {
		return false, 0
	}
	missing := since.Add(time.Duration(minReadySeconds) * time.Second).Sub(now)
	if minReadySeconds == 0 || missing <= 0 {
		return true, 0
	}
	return false, missing
}

// PodFinished tells whether a pod has ended for good.
func PodFinished(pod *balsav1.Pod) bool { return IsFinalPhase(pod.GetStatus().GetPhase()) }

// IsFinalPhase tells whether a phase never changes again.
func IsFinalPhase(phase string) bool { return phase == PodSucceeded || phase == PodFailed }

// PodActive tells whether a pod counts as a replica: not finished and not about
// to go.
func PodActive(pod *balsav1.Pod) bool { return !PodFinished(pod) && !IsTerminating(pod) }

// NodeReady tells whether a node's condition Ready is True.
func NodeReady(node *balsav1.Node) bool {
	return IsConditionTrue(node.GetStatus().GetConditions(), ConditionReady)
}
