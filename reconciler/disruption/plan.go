// Package disruption counts, for each PodDisruptionBudget, how many of its pods may
// be ended on purpose now. It computes what Kubernetes' disruption controller does
// (pkg/controller/disruption): the pods that are expected follow from the scale of
// their controllers, percentages are rounded up, and a granted eviction whose pod
// does not go is forgotten after two minutes.
//
// The package refuses to end pods: evictions take from what it has counted, in the
// transaction that ends the pod (object.SpendBudgets).
package disruption

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// maxNamed bounds the pods that an event names.
const maxNamed = 5

// View is what a plan is made from.
type View struct {
	Budget *balsav1.PodDisruptionBudget
	// Pods are those that the budget selects.
	Pods []*balsav1.Pod
	// Scale is how many pods the controller of a pod asks for, by what it is known;
	// ok is false for a pod without one.
	Scale func(pod *balsav1.Pod) (controller string, replicas int32, ok bool)
}

// Actions is the outcome of a plan.
type Actions struct {
	// Status is the budget's; nil: as it was.
	Status *balsav1.PodDisruptionBudgetStatus
	// Late are pods whose end was granted and not seen, Unmanaged those that no
	// controller makes, which a percentage cannot count: for events.
	Late, Unmanaged []string
	// Again is when to look again although nothing changes; 0: never.
	Again time.Duration
}

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	if s := a.Status; s != nil {
		fmt.Fprintf(&b, "status allowed=%d healthy=%d desired=%d expected=%d generation=%d\n",
			s.GetDisruptionsAllowed(), s.GetCurrentHealthy(), s.GetDesiredHealthy(), s.GetExpectedPods(), s.GetObservedGeneration())
		for _, name := range slices.Sorted(maps.Keys(s.GetDisruptedPods())) {
			fmt.Fprintf(&b, "disrupted %s\n", name)
		}
		for _, c := range s.GetConditions() {
			fmt.Fprintf(&b, "condition %s=%s %s %s\n", c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage())
		}
	}
	if len(a.Late) > 0 {
		fmt.Fprintf(&b, "late %s\n", strings.Join(a.Late, " "))
	}
	if len(a.Unmanaged) > 0 {
		fmt.Fprintf(&b, "unmanaged %s\n", strings.Join(a.Unmanaged, " "))
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// Plan counts a budget at now.
func Plan(v View, now time.Time) (a Actions) {
	old := v.Budget.GetStatus()
	next := &balsav1.PodDisruptionBudgetStatus{ObservedGeneration: v.Budget.GetMetadata().GetGeneration(), Conditions: old.GetConditions()}
	var condition *balsav1.Condition
	expected, desired, err := a.wanted(v)
	a.disrupted(v, next, now)
	if err != nil {
		// What cannot be counted allows nothing.
		condition = &balsav1.Condition{Type: object.ConditionDisruptionAllowed, Status: object.ConditionFalse, Reason: object.ReasonSyncFailed, Message: err.Error(),
			ObservedGeneration: next.ObservedGeneration}
	} else {
		next.ExpectedPods, next.DesiredHealthy = expected, desired
		for _, pod := range v.Pods {
			if _, going := next.DisruptedPods[pod.GetMetadata().GetName()]; !going && object.PodActive(pod) && object.PodReady(pod) {
				next.CurrentHealthy++
			}
		}
		if expected > 0 {
			next.DisruptionsAllowed = max(0, next.CurrentHealthy-desired)
		}
		condition = object.DisruptionCondition(next, next.ObservedGeneration)
	}
	next.Conditions, _ = object.SetCondition(next.Conditions, condition, now)
	if old == nil || !proto.Equal(old, next) {
		a.Status = next
	}
	return a
}

// wanted is how many pods there should be, and how many must be healthy.
func (a *Actions) wanted(v View) (expected, desired int32, err error) {
	spec := v.Budget.GetSpec()
	if spec.GetMaxUnavailable() != nil {
		expected = a.scale(v)
		most, err := object.ResolveIntOrPercent(spec.GetMaxUnavailable(), expected, true)
		if err != nil {
			return 0, 0, fmt.Errorf("spec.maxUnavailable: %w", err)
		}
		return expected, max(0, expected-most), nil
	}
	if _, percent := spec.GetMinAvailable().GetValue().(*balsav1.IntOrString_String_); percent {
		expected = a.scale(v)
	} else {
		expected = int32(len(v.Pods))
	}
	desired, err = object.ResolveIntOrPercent(spec.GetMinAvailable(), expected, true)
	if err != nil {
		return 0, 0, fmt.Errorf("spec.minAvailable: %w", err)
	}
	return expected, desired, nil
}

// scale adds up what the controllers of the pods ask for, each once.
func (a *Actions) scale(v View) (expected int32) {
	seen := map[string]bool{}
	for _, pod := range v.Pods {
		controller, replicas, ok := v.Scale(pod)
		switch {
		case !ok:
			a.Unmanaged = append(a.Unmanaged, pod.GetMetadata().GetName())
		case !seen[controller]:
			seen[controller] = true
			expected += replicas
		}
	}
	slices.Sort(a.Unmanaged)
	return expected
}

// disrupted keeps the granted evictions whose pods have not begun to end.
func (a *Actions) disrupted(v View, next *balsav1.PodDisruptionBudgetStatus, now time.Time) {
	for _, pod := range v.Pods {
		name := pod.GetMetadata().GetName()
		granted, ok := v.Budget.GetStatus().GetDisruptedPods()[name]
		if !ok || !object.PodActive(pod) {
			continue
		}
		left := granted.AsTime().Add(object.DisruptedPodTimeout).Sub(now)
		if left <= 0 {
			a.Late = append(a.Late, name)
			continue
		}
		if next.DisruptedPods == nil {
			next.DisruptedPods = map[string]*timestamppb.Timestamp{}
		}
		next.DisruptedPods[name] = granted
		if a.Again == 0 || left < a.Again {
			a.Again = left
		}
	}
	slices.Sort(a.Late)
}

func short(names []string) string {
	if len(names) > maxNamed {
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(", %d more", len(names)-maxNamed)
	}
	return strings.Join(names, ", ")
}
