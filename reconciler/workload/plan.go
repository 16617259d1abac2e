// Package workload keeps as many pods as each ReplicaSet asks for, and the
// ReplicaSet's status. A pod whose eviction was asked for it replaces first: see
// evict.go. It refuses to know Deployments, but for one thing: it ends no available
// pod that a Deployment's rolling update needs.
package workload

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// maxPerStep bounds the pods that one plan begins, ends, adopts and releases
// together; the next plan goes on. They fit one transaction.
const maxPerStep = 100

// Unlimited is the Budget of a ReplicaSet that no rolling update guards.
const Unlimited = int32(1<<31 - 1)

// View is what a plan is made from.
type View struct {
	ReplicaSet *balsav1.ReplicaSet
	// Pods holds those that the ReplicaSet controls, finished and terminating
	// ones too, and those without a controller that its selector matches.
	Pods []*balsav1.Pod
	// Budget is how many available pods may be ended now.
	Budget int32
	// MinReadySeconds is that of the Deployment whose budget it is: the
	// ReplicaSet's own may be older.
	MinReadySeconds int32
	// Closing: the namespace is about to go, so there are no new pods.
	Closing bool
	// Budgets are the PodDisruptionBudgets of the namespace.
	Budgets []*balsav1.PodDisruptionBudget
	// Cordoned tells whether a node takes no new pods.
	Cordoned func(node string) bool
}

// Actions is the outcome of a plan.
type Actions struct {
	// Adopt holds pods that get a controller, Release those that lose theirs.
	Adopt, Release []*balsav1.Pod
	// Create is how many new pods there shall be.
	Create int32
	End    []*balsav1.Pod
	// Evict holds pods that end since their eviction was asked for, Explain those
	// that wait for it and whose condition says so, changed clones, and Withdraw
	// those that stay, changed clones.
	Evict, Explain, Withdraw []*balsav1.Pod
	// Pay are the budgets that Evict takes from, changed clones, and Read those that
	// it hangs on.
	Pay, Read []*balsav1.PodDisruptionBudget
	// Spent is how much of View.Budget End uses.
	Spent int32
	// Held is how many pods stay only because the budget is spent.
	Held int32
	// Status is the ReplicaSet's once all this is done; nil: as it was.
	Status *balsav1.ReplicaSetStatus
	// Again is when to look again although nothing changes; 0: never.
	Again time.Duration
}

// moreToDo is Actions.Again of a plan that maxPerStep cut off.
const moreToDo = time.Nanosecond

// Empty tells whether there is nothing to write.
func (a *Actions) Empty() bool {
	return len(a.Adopt)+len(a.Release)+len(a.End)+len(a.Evict)+len(a.Explain)+len(a.Withdraw) == 0 && a.Create == 0 && a.Status == nil
}

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	list := func(verb string, pods []*balsav1.Pod) {
		for _, p := range pods {
			fmt.Fprintf(&b, "%s %s\n", verb, p.GetMetadata().GetName())
		}
	}
	list("adopt", a.Adopt)
	list("release", a.Release)
	if a.Create > 0 {
		fmt.Fprintf(&b, "create %d\n", a.Create)
	}
	list("end", a.End)
	list("evict", a.Evict)
	for _, pod := range a.Explain {
		fmt.Fprintf(&b, "explain %s: %s\n", pod.GetMetadata().GetName(), object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested).GetMessage())
	}
	list("withdraw eviction of", a.Withdraw)
	for _, budget := range a.Pay {
		fmt.Fprintf(&b, "spend of %s\n", budget.GetMetadata().GetName())
	}
	if a.Held > 0 {
		fmt.Fprintf(&b, "hold %d\n", a.Held)
	}
	if s := a.Status; s != nil {
		fmt.Fprintf(&b, "status replicas=%d labelled=%d ready=%d available=%d generation=%d\n",
			s.GetReplicas(), s.GetFullyLabeledReplicas(), s.GetReadyReplicas(), s.GetAvailableReplicas(), s.GetObservedGeneration())
	}
	if a.Again == moreToDo {
		b.WriteString("go on\n")
	} else if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// Plan decides what a ReplicaSet needs at now.
func Plan(v View, now time.Time) (Actions, error) {
	rs := v.ReplicaSet
	selector, err := object.SelectorFrom(rs.GetSpec().GetSelector())
	if err != nil {
		return Actions{}, fmt.Errorf("%s: spec.selector: %w", object.Describe(rs), err)
	}
	p := planner{View: v, now: now}
	if !object.IsTerminating(rs) {
		p.claim(selector)
		p.withdraw()
		p.count()
		if err := p.evict(); err != nil {
			return Actions{}, fmt.Errorf("%s: %w", object.Describe(rs), err)
		}
	} else {
		p.keep()
	}
	p.status()
	return p.Actions, nil
}

type planner struct {
	View
	Actions
	now time.Time
	// active are the pods that are neither finished nor about to go, in the order of
	// their names; leaving are those of them that others replace.
	active, leaving []*balsav1.Pod
}

func (p *planner) room() int {
	return maxPerStep - len(p.Adopt) - len(p.Release) - int(p.Create) - len(p.End) - len(p.Evict) - len(p.Explain) - len(p.Withdraw) - len(p.Pay) - len(p.Read)
}

// claim sorts out whose pods are whose.
func (p *planner) claim(selector object.Selector) {
	for _, pod := range p.Pods {
		mine := object.IsControlledBy(pod, p.ReplicaSet)
		matches := selector.Matches(pod.GetMetadata().GetLabels())
		switch {
		case mine && !matches && !object.IsTerminating(pod):
			if p.room() > 0 {
				p.Release = append(p.Release, pod)
			}
			continue
		case !mine && (!matches || !object.PodActive(pod) || object.ControllerOf(pod) != nil):
			continue
		case !mine && p.room() == 0:
			p.Again = moreToDo
			continue
		case !mine:
			p.Adopt = append(p.Adopt, pod)
		}
		if object.PodActive(pod) {
			p.active = append(p.active, pod)
		}
	}
	byName(p.active)
}

// keep counts the pods of a ReplicaSet that is about to go, and no more.
func (p *planner) keep() {
	for _, pod := range p.Pods {
		if object.IsControlledBy(pod, p.ReplicaSet) && object.PodActive(pod) {
			p.active = append(p.active, pod)
		}
	}
}

// count begins or ends pods until the number of those that stay is right.
func (p *planner) count() {
	p.leave()
	surplus := len(p.active) - len(p.leaving) - int(p.ReplicaSet.GetSpec().GetReplicas())
	if surplus < 0 && p.Closing {
		return
	}
	if surplus < 0 {
		p.Create = int32(min(-surplus, p.room()))
		if int(p.Create) < -surplus {
			p.Again = moreToDo
		}
		return
	}
	staying := slices.DeleteFunc(slices.Clone(p.active), func(pod *balsav1.Pod) bool { return slices.Contains(p.leaving, pod) })
	for _, pod := range rank(staying) {
		if surplus == 0 {
			break
		}
		if p.room() == 0 {
			p.Again = moreToDo
			break
		}
		surplus--
		// The budget is what may go of the pods that a rolling update counts. Those whose
		// eviction was asked for are none of them.
		if available, _ := object.PodAvailable(pod, p.MinReadySeconds, p.now); available && !object.EvictionRequested(pod) {
			if p.Spent == p.Budget {
				p.Held++
				continue
			}
			p.Spent++
		}
		p.End = append(p.End, pod)
	}
	p.active = slices.DeleteFunc(p.active, func(pod *balsav1.Pod) bool { return slices.Contains(p.End, pod) })
}

func (p *planner) available(pod *balsav1.Pod) (bool, time.Duration) {
	return object.PodAvailable(pod, p.ReplicaSet.GetSpec().GetMinReadySeconds(), p.now)
}

func (p *planner) status() {
	rs := p.ReplicaSet
	next := &balsav1.ReplicaSetStatus{
		Replicas: int32(len(p.active)) + p.Create, FullyLabeledReplicas: p.Create,
		ObservedGeneration: rs.GetMetadata().GetGeneration(), Conditions: rs.GetStatus().GetConditions(),
	}
	labels := object.SelectorFromLabels(rs.GetSpec().GetTemplate().GetMetadata().GetLabels())
	for _, pod := range p.active {
		if labels.Matches(pod.GetMetadata().GetLabels()) {
			next.FullyLabeledReplicas++
		}
		if object.PodReady(pod) {
			next.ReadyReplicas++
		}
		available, wait := p.available(pod)
		if available {
			next.AvailableReplicas++
		} else if wait > 0 && (p.Again == 0 || wait < p.Again) {
			p.Again = wait
		}
	}
	if !proto.Equal(next, rs.GetStatus()) {
		p.Status = next
	}
}

func byName(pods []*balsav1.Pod) {
	slices.SortFunc(pods, func(a, b *balsav1.Pod) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
}
