package workload

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// maxWaitText bounds what a pod's condition says of what its eviction waits for.
const maxWaitText = 512

// budgetRetry is when a budget that did not allow an eviction is asked again.
const budgetRetry = time.Second

// waitMark stands between what an eviction was asked for and what it waits for.
const waitMark = "; waits: "

// maxBudgets is how many budgets may select a pod that is evicted: all that it
// reads and writes fits one plan.
const maxBudgets = (maxPerStep - 1) / 2

// evictionSize is how much room an eviction takes at most.
func evictionSize(read, spent []*balsav1.PodDisruptionBudget) int { return 1 + len(read) + len(spent) }

// withdraw takes back evictions that were asked for when the pod's node took no
// pods, and it takes pods again.
func (p *planner) withdraw() {
	for i, pod := range p.active {
		c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested)
		if !object.EvictionRequested(pod) || c.GetReason() != object.EvictionOfNode || p.Cordoned == nil || p.Cordoned(pod.GetSpec().GetNodeName()) || p.room() <= 0 || slices.Contains(p.Adopt, pod) {
			continue
		}
		next := object.Clone(pod)
		next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{
			Type: object.ConditionEvictionRequested, Status: object.ConditionFalse, Reason: object.EvictionWithdrawn, Message: "its node takes pods again",
		}, p.now)
		delete(next.Metadata.Annotations, object.AnnotationEvictGrace)
		p.Withdraw = append(p.Withdraw, next)
		p.active[i] = next
	}
}

// leave finds the pods that do not count for replicas, since others take their
// place first: no more than there are replicas. When there are fewer replicas than
// pods, those whose eviction was asked for simply end.
func (p *planner) leave() {
	replicas := int(p.ReplicaSet.GetSpec().GetReplicas())
	if p.Closing {
		return
	}
	for _, pod := range p.active {
		if object.EvictionRequested(pod) && len(p.leaving) < replicas && !slices.Contains(p.Adopt, pod) {
			p.leaving = append(p.leaving, pod)
		}
	}
}

// evict ends pods that others have replaced: those that are not ready at once,
// others while the ReplicaSet has all its replicas available without them. Budgets
// are asked last, when there are more healthy pods than before. A rolling update
// does not count these pods, so that its bounds hold without them. More is to do at
// once only after a plan that writes something: else the next would be the same.
func (p *planner) evict() error {
	p.Withdraw = slices.DeleteFunc(p.Withdraw, func(pod *balsav1.Pod) bool { return slices.Contains(p.End, pod) })
	spare := -p.ReplicaSet.GetSpec().GetReplicas()
	for _, pod := range p.active {
		if available, _ := p.available(pod); available {
			spare++
		}
	}
	budgets := slices.Clone(p.Budgets)
	for _, pod := range p.leaving {
		if p.room() <= 0 {
			p.Again = moreToDo
			return nil
		}
		available, _ := p.available(pod)
		if available && spare <= 0 || object.PodReady(pod) && spare < 0 {
			p.explain(pod, p.missing())
			continue
		}
		read, spent, err := object.SpendBudgets(pod, budgets, p.now)
		var over *object.BudgetError
		switch {
		case errors.As(err, &over):
			p.explain(pod, err.Error())
			p.soon(budgetRetry)
			continue
		case err != nil:
			return err
		case p.room() < evictionSize(read, spent) && p.room() < maxPerStep:
			p.Again = moreToDo
			return nil
		case p.room() < evictionSize(read, spent): // there never is more room
			p.explain(pod, fmt.Sprintf("it is selected by %d poddisruptionbudgets, at most %d may select an evicted pod: remove some, or delete the pod", len(read), maxBudgets))
			continue
		}
		p.pay(budgets, read, spent)
		p.Evict = append(p.Evict, pod)
		if available {
			spare--
		}
	}
	p.active = slices.DeleteFunc(p.active, func(pod *balsav1.Pod) bool { return slices.Contains(p.Evict, pod) })
	return nil
}

// pay notes what an eviction takes from the budgets, for the next one of the plan
// and for the transaction.
func (p *planner) pay(budgets, read, spent []*balsav1.PodDisruptionBudget) {
	replace := func(list []*balsav1.PodDisruptionBudget, b *balsav1.PodDisruptionBudget) bool {
		i := slices.IndexFunc(list, func(o *balsav1.PodDisruptionBudget) bool {
			return o.GetMetadata().GetUid() == b.GetMetadata().GetUid()
		})
		if i >= 0 {
			list[i] = b
		}
		return i >= 0
	}
	for _, b := range spent {
		replace(budgets, b)
		if !replace(p.Pay, b) {
			p.Pay = append(p.Pay, b)
		}
	}
	for _, b := range read {
		if !slices.ContainsFunc(p.Read, func(o *balsav1.PodDisruptionBudget) bool { return o.GetMetadata().GetUid() == b.GetMetadata().GetUid() }) {
			p.Read = append(p.Read, b)
		}
	}
}

// missing says what a replaced pod waits for: the first of the pods that are not
// available, and why it is not.
func (p *planner) missing() string {
	if p.Create > 0 {
		return "another pod is being made"
	}
	for _, pod := range p.active {
		available, wait := p.available(pod)
		if available || slices.Contains(p.leaving, pod) {
			continue
		}
		text := "pod " + pod.GetMetadata().GetName() + " is not available yet"
		if wait > 0 {
			return fmt.Sprintf("%s: it is ready, for less than minReadySeconds (%d)", text, p.ReplicaSet.GetSpec().GetMinReadySeconds())
		}
		return text + ": " + problemOf(pod)
	}
	return "not all replicas are available"
}

// problemOf is why a pod is not ready.
func problemOf(pod *balsav1.Pod) string {
	if c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionPodScheduled); c.GetStatus() != object.ConditionTrue {
		if c.GetMessage() == "" {
			return "it has no node yet"
		}
		return c.GetMessage()
	}
	for _, c := range pod.GetStatus().GetContainerStatuses() {
		if w := c.GetState().GetWaiting(); w.GetReason() != "" {
			return fmt.Sprintf("container %q: %s %s", c.GetName(), w.GetReason(), w.GetMessage())
		}
	}
	return "it is " + strings.ToLower(pod.GetStatus().GetPhase()) + " and not ready"
}

// soon makes the next look no later than in d.
func (p *planner) soon(d time.Duration) {
	if p.Again == 0 || d < p.Again {
		p.Again = d
	}
}

// explain makes a pod's condition say what its eviction waits for.
func (p *planner) explain(pod *balsav1.Pod, waits string) {
	c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested)
	why, _, _ := strings.Cut(c.GetMessage(), waitMark)
	message := why + waitMark + waits
	if len(message) > maxWaitText {
		message = strings.ToValidUTF8(message[:maxWaitText], "")
	}
	if message == c.GetMessage() {
		return
	}
	next := object.Clone(pod)
	next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: object.ConditionEvictionRequested, Status: object.ConditionTrue, Reason: c.GetReason(), Message: message,
	}, p.now)
	p.Explain = append(p.Explain, next)
}
