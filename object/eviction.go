package object

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// AnnotationEvictGrace of a pod whose eviction was asked for is the grace period in
// seconds that it gets in the end; absent: its own.
const AnnotationEvictGrace = "balsa.run/eviction-grace-seconds"

// Reasons of the condition EvictionRequested.
const (
	// EvictionOfNode: the pod's node took no pods when it was asked for. It is
	// withdrawn when the node takes pods again.
	EvictionOfNode = "NodeCordoned"
	// EvictionAsked: somebody asked for it; nothing withdraws it.
	EvictionAsked = "Requested"
	// EvictionWithdrawn: the node takes pods again.
	EvictionWithdrawn = "NodeUncordoned"
)

// ReasonEvictionAPI is the reason of the condition DisruptionTarget of a pod that
// ends by an eviction, as in Kubernetes.
const ReasonEvictionAPI = "EvictionByEvictionAPI"

const (
	// MaxDisruptedPods bounds a budget's status.disruptedPods, as in Kubernetes.
	MaxDisruptedPods = 2000
	// DisruptedPodTimeout is how long a granted eviction counts while the pod's end
	// is not seen, as in Kubernetes (DeletionTimeout of the disruption controller).
	DisruptedPodTimeout = 2 * time.Minute
)

// EvictionRequested tells whether a pod stays only until another is available.
func EvictionRequested(pod *balsav1.Pod) bool {
	return PodActive(pod) && IsConditionTrue(pod.GetStatus().GetConditions(), ConditionEvictionRequested)
}

// EvictionGrace is the grace period with which a pod whose eviction was asked for
// is ended.
func EvictionGrace(pod *balsav1.Pod) int64 {
	if n, err := strconv.ParseInt(pod.GetMetadata().GetAnnotations()[AnnotationEvictGrace], 10, 32); err == nil && n >= 0 {
		return n
	}
	return pod.GetSpec().GetTerminationGracePeriodSeconds()
}

// BudgetError says which budget does not allow an eviction, and with what figures.
type BudgetError struct {
	Budget *balsav1.PodDisruptionBudget
	Why    string
	// Soon: the budget is being counted, so that it may allow it in a moment.
	Soon bool
}

func (e *BudgetError) Error() string { return Describe(e.Budget) + " " + e.Why }

// BudgetsOf are the budgets, of those of its namespace, that select a pod.
func BudgetsOf(pod *balsav1.Pod, budgets []*balsav1.PodDisruptionBudget) ([]*balsav1.PodDisruptionBudget, error) {
	var out []*balsav1.PodDisruptionBudget
	for _, b := range budgets {
		selector, err := SelectorFrom(b.GetSpec().GetSelector())
		if err != nil {
			return nil, fmt.Errorf("%s: spec.selector: %w", Describe(b), err)
		}
		if b.GetMetadata().GetNamespace() == pod.GetMetadata().GetNamespace() && selector.Matches(pod.GetMetadata().GetLabels()) {
			out = append(out, b)
		}
	}
	return out, nil
}

// SpendBudgets takes the end of a pod out of every budget that selects it, or says
// with a *BudgetError which does not allow it. It follows Kubernetes' eviction
// (pkg/registry/core/pod/storage/eviction.go), which refuses pods of more than one
// budget. read are the budgets that the answer hangs on, spent those of them that
// have to be written with it, changed clones.
func SpendBudgets(pod *balsav1.Pod, budgets []*balsav1.PodDisruptionBudget, now time.Time) (read, spent []*balsav1.PodDisruptionBudget, err error) {
	if !PodActive(pod) || pod.GetStatus().GetPhase() == PodPending {
		return nil, nil, nil // it serves nobody
	}
	if read, err = BudgetsOf(pod, budgets); err != nil {
		return nil, nil, err
	}
	var refusals []error
	for _, b := range read {
		next, err := spend(pod, b, now)
		if err != nil {
			refusals = append(refusals, err)
		}
		if next != nil {
			spent = append(spent, next)
		}
	}
	if len(refusals) > 0 {
		return nil, nil, errors.Join(refusals...)
	}
	return read, spent, nil
}

// spend is a budget without one disruption; nil: it need not pay.
func spend(pod *balsav1.Pod, b *balsav1.PodDisruptionBudget, now time.Time) (*balsav1.PodDisruptionBudget, error) {
	s := b.GetStatus()
	if !PodReady(pod) {
		always := b.GetSpec().GetUnhealthyPodEvictionPolicy() == EvictAlwaysAllow
		if always || s.GetCurrentHealthy() >= s.GetDesiredHealthy() && s.GetDesiredHealthy() > 0 {
			return nil, nil
		}
	}
	switch {
	case s.GetObservedGeneration() < b.GetMetadata().GetGeneration():
		return nil, &BudgetError{Budget: b, Why: "has not been counted since it was changed", Soon: true}
	case len(s.GetDisruptedPods()) >= MaxDisruptedPods:
		return nil, &BudgetError{Budget: b, Why: fmt.Sprintf("waits for %d pods whose end was granted (at most %d at once)", len(s.GetDisruptedPods()), MaxDisruptedPods), Soon: true}
	case s.GetDisruptionsAllowed() <= 0:
		return nil, &BudgetError{Budget: b, Why: fmt.Sprintf("needs %d healthy pods and has %d, of %d expected; disruptions allowed: %d",
			s.GetDesiredHealthy(), s.GetCurrentHealthy(), s.GetExpectedPods(), max(0, s.GetDisruptionsAllowed()))}
	}
	next := Clone(b)
	next.Status.DisruptionsAllowed--
	if next.Status.DisruptedPods == nil {
		next.Status.DisruptedPods = map[string]*timestamppb.Timestamp{}
	}
	next.Status.DisruptedPods[pod.GetMetadata().GetName()] = timestamppb.New(now)
	next.Status.Conditions, _ = SetCondition(next.Status.Conditions, DisruptionCondition(next.Status, b.GetMetadata().GetGeneration()), now)
	return next, nil
}

// Reasons of a budget's condition DisruptionAllowed, as in Kubernetes.
const (
	ReasonSufficientPods   = "SufficientPods"
	ReasonInsufficientPods = "InsufficientPods"
	ReasonSyncFailed       = "SyncFailed"
)

// ConditionDisruptionAllowed is True of a budget that allows an eviction now.
const ConditionDisruptionAllowed = "DisruptionAllowed"

// DisruptionCondition is what a budget's figures mean.
func DisruptionCondition(s *balsav1.PodDisruptionBudgetStatus, generation int64) *balsav1.Condition {
	c := &balsav1.Condition{Type: ConditionDisruptionAllowed, Status: ConditionTrue, Reason: ReasonSufficientPods, ObservedGeneration: generation}
	if s.GetDisruptionsAllowed() <= 0 {
		c.Status, c.Reason = ConditionFalse, ReasonInsufficientPods
	}
	return c
}

// RequestEviction is a pod whose eviction is asked for: it stays until another is
// available in its place. grace nil: its own grace period.
func RequestEviction(pod *balsav1.Pod, reason, message string, grace *int64, now time.Time) *balsav1.Pod {
	next := Clone(pod)
	if next.Status == nil {
		next.Status = &balsav1.PodStatus{}
	}
	next.Status.Conditions, _ = SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: ConditionEvictionRequested, Status: ConditionTrue, Reason: reason, Message: message,
	}, now)
	delete(next.Metadata.Annotations, AnnotationEvictGrace)
	if grace != nil {
		if next.Metadata.Annotations == nil {
			next.Metadata.Annotations = map[string]string{}
		}
		next.Metadata.Annotations[AnnotationEvictGrace] = strconv.FormatInt(*grace, 10)
	}
	return next
}

// DisruptionTarget is a pod that an eviction ends.
func DisruptionTarget(pod *balsav1.Pod, why string, now time.Time) *balsav1.Pod {
	next := Clone(pod)
	if next.Status == nil {
		next.Status = &balsav1.PodStatus{}
	}
	next.Status.Conditions, _ = SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: ConditionDisruptionTarget, Status: ConditionTrue, Reason: ReasonEvictionAPI, Message: why,
	}, now)
	return next
}

// ReplaceFirst tells whether a pod of a ReplicaSet is evicted by making another
// first. Not of a Deployment that recreates its pods, nor with a claim: both say
// that there must not be two at a time, or that the other could not run elsewhere.
// A pod that is not ready serves nobody, and need not wait for another.
func ReplaceFirst(pod *balsav1.Pod, rs *balsav1.ReplicaSet, owner *balsav1.Deployment) bool {
	claims := slices.ContainsFunc(pod.GetSpec().GetVolumes(), func(v *balsav1.Volume) bool { return v.GetPersistentVolumeClaim() != nil })
	return rs != nil && !IsTerminating(rs) && IsControlledBy(pod, rs) && rs.GetSpec().GetReplicas() > 0 && PodReady(pod) && !claims &&
		(owner == nil || owner.GetSpec().GetStrategy().GetType() != StrategyRecreate && !IsTerminating(owner))
}
