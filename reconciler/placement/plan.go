// Package placement gives pods their nodes: it shows the scheduler a view,
// writes its bindings many to a transaction, and its explanations into the pods'
// conditions. It refuses to choose: package scheduler does.
package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/scheduler"
)

// Reasons of the condition PodScheduled and of events.
const (
	ReasonUnschedulable = "Unschedulable"
	ReasonScheduled     = "Scheduled"
	ReasonFailed        = "FailedScheduling"
)

// explainEvery is how often the explanations of pods that wait already may be
// written anew. The figures in them change whenever anything is placed or ends;
// thousands of waiting pods must not be rewritten each time.
const explainEvery = 5 * time.Second

// View is what a plan is made from.
type View struct {
	Nodes []*balsav1.Node
	Pods  []*balsav1.Pod
	// Claims and Volumes are all that there are.
	Claims  []*balsav1.PersistentVolumeClaim
	Volumes []*balsav1.PersistentVolume
	// Explained is when explanations were last written anew.
	Explained time.Time
}

// Actions is the outcome of a plan.
type Actions struct {
	// Bind holds pods with their nodes, changed clones; Explain those that wait,
	// with a new condition.
	Bind, Explain []*balsav1.Pod
	// Explanations are those of all pods that wait, by the pod's key.
	Explanations map[string]*scheduler.Explanation
	// Rewritten: Explain holds pods that had an explanation already.
	Rewritten bool
	// Again is when explanations may be written anew; 0: they are up to date.
	Again time.Duration
	// Unreadable are objects that could not be understood, and were passed over.
	Unreadable []error
}

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	for _, p := range a.Bind {
		fmt.Fprintf(&b, "bind %s to %s\n", p.GetMetadata().GetName(), p.GetSpec().GetNodeName())
	}
	for _, p := range a.Explain {
		c := object.FindCondition(p.GetStatus().GetConditions(), object.ConditionPodScheduled)
		fmt.Fprintf(&b, "explain %s: %s\n", p.GetMetadata().GetName(), c.GetMessage())
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// waits tells whether a pod is to be placed.
func waits(pod *balsav1.Pod) bool {
	return pod.GetSpec().GetNodeName() == "" && object.PodActive(pod)
}

// Plan places every pod that waits.
func Plan(v View, now time.Time) Actions {
	a := Actions{Explanations: map[string]*scheduler.Explanation{}}
	pending := map[string]*balsav1.Pod{}
	view := a.viewOf(v, pending)
	d := scheduler.Plan(view)
	for _, b := range d.Bindings {
		a.Bind = append(a.Bind, bound(pending[b.Namespace+"/"+b.Name], b.Node, now))
	}
	rewrite := now.Sub(v.Explained) >= explainEvery
	for _, u := range d.Unplaced {
		pod := pending[u.Namespace+"/"+u.Name]
		a.Explanations[object.KeyOf(pod)] = u.Why
		a.explain(pod, u.Why, rewrite, now)
	}
	if a.Again > 0 {
		a.Again = max(time.Millisecond, v.Explained.Add(explainEvery).Sub(now))
	}
	return a
}

func (a *Actions) viewOf(v View, pending map[string]*balsav1.Pod) (view scheduler.View) {
	for _, node := range v.Nodes {
		n, err := scheduler.FromNode(node)
		if err != nil {
			a.Unreadable = append(a.Unreadable, err)
			continue
		}
		view.Nodes = append(view.Nodes, n)
	}
	claims := newClaims(v)
	for _, pod := range v.Pods {
		if pod.GetSpec().GetNodeName() != "" && !object.PodFinished(pod) {
			claims.take(pod)
		}
	}
	for _, pod := range inOrder(v.Pods) {
		if object.PodFinished(pod) || pod.GetSpec().GetNodeName() == "" && object.IsTerminating(pod) {
			continue
		}
		p, err := scheduler.FromPod(pod)
		if err != nil {
			a.Unreadable = append(a.Unreadable, err)
			continue
		}
		if p.Node != "" {
			view.Placed = append(view.Placed, p)
			continue
		}
		claims.resolve(pod, &p)
		view.Pending = append(view.Pending, p)
		pending[p.Key()] = pod
	}
	return view
}

// inOrder sorts the pods that use claims by age, so that the eldest gets an
// unbound claim; it is the eldest that is placed first. The others keep their
// place: only pods with claims look at one another.
func inOrder(pods []*balsav1.Pod) []*balsav1.Pod {
	if !slices.ContainsFunc(pods, func(p *balsav1.Pod) bool { return len(object.ClaimNames(p.GetSpec())) > 0 }) {
		return pods
	}
	return slices.SortedStableFunc(slices.Values(pods), func(a, b *balsav1.Pod) int {
		if c := cmp.Compare(b.GetSpec().GetPriority(), a.GetSpec().GetPriority()); c != 0 {
			return c
		}
		return a.GetMetadata().GetCreationTimestamp().AsTime().Compare(b.GetMetadata().GetCreationTimestamp().AsTime())
	})
}

func bound(pod *balsav1.Pod, node string, now time.Time) *balsav1.Pod {
	next := object.Clone(pod)
	next.Spec.NodeName = node
	setScheduled(next, &balsav1.Condition{Status: object.ConditionTrue, Reason: ReasonScheduled}, now)
	object.BumpGeneration(pod, next)
	return next
}

// explain writes why a pod waits: at once for one that begins to, later for one
// whose explanation only changes its figures.
func (a *Actions) explain(pod *balsav1.Pod, why *scheduler.Explanation, rewrite bool, now time.Time) {
	old := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionPodScheduled)
	message := why.Message()
	known := old.GetStatus() == object.ConditionFalse
	if known && old.GetMessage() == message {
		return
	}
	if known && !rewrite {
		a.Again = explainEvery
		return
	}
	a.Rewritten = a.Rewritten || known
	next := object.Clone(pod)
	setScheduled(next, &balsav1.Condition{Status: object.ConditionFalse, Reason: ReasonUnschedulable, Message: message}, now)
	a.Explain = append(a.Explain, next)
}

func setScheduled(pod *balsav1.Pod, c *balsav1.Condition, now time.Time) {
	c.Type = object.ConditionPodScheduled
	if pod.Status == nil {
		pod.Status = &balsav1.PodStatus{Phase: object.PodPending}
	}
	pod.Status.Conditions, _ = object.SetCondition(pod.Status.Conditions, c, now)
}
