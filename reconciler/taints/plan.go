// Package taints keeps pods away from nodes that are in trouble: a node that says
// it is under pressure gets Kubernetes' taint for it, and pods that do not
// tolerate a NoExecute taint are ended, after the time that they do tolerate it.
//
// It refuses to judge whether a node is alive; package nodes does.
package taints

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// Conditions of nodes that make a taint.
const (
	ConditionMemoryPressure = "MemoryPressure"
	ConditionDiskPressure   = "DiskPressure"
	ConditionPIDPressure    = "PIDPressure"
)

// ReasonEvicted is that of the event on a pod that is ended.
const ReasonEvicted = "TaintEviction"

// pressure is the taint of a condition.
type pressure struct{ condition, taint string }

func pressures() []pressure {
	return []pressure{
		{ConditionMemoryPressure, "node.kubernetes.io/memory-pressure"},
		{ConditionDiskPressure, "node.kubernetes.io/disk-pressure"},
		{ConditionPIDPressure, "node.kubernetes.io/pid-pressure"},
	}
}

// View is what a plan is made from: nodes, and the pods on those that have a
// NoExecute taint.
type View struct {
	Nodes []*balsav1.Node
	Pods  []*balsav1.Pod
}

// Eviction is a pod that has to go, and why.
type Eviction struct {
	Pod *balsav1.Pod
	Why string
}

// Actions is the outcome of a plan.
type Actions struct {
	// Nodes holds those whose taints change, changed clones.
	Nodes []*balsav1.Node
	Evict []Eviction
	// Again is when the next toleration ends; 0: none does.
	Again time.Duration
}

// String prints the actions one a line.
func (a Actions) String() string {
	var b strings.Builder
	for _, n := range a.Nodes {
		fmt.Fprintf(&b, "node %s", n.GetMetadata().GetName())
		for _, t := range n.GetSpec().GetTaints() {
			fmt.Fprintf(&b, " %s", Describe(t))
		}
		b.WriteByte('\n')
	}
	for _, e := range a.Evict {
		fmt.Fprintf(&b, "evict %s: %s\n", e.Pod.GetMetadata().GetName(), e.Why)
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// Describe is a taint as people write it.
func Describe(t *balsav1.Taint) string {
	if t.GetValue() == "" {
		return t.GetKey() + ":" + t.GetEffect()
	}
	return t.GetKey() + "=" + t.GetValue() + ":" + t.GetEffect()
}

// Plan says which taints and pods have to change at now.
func Plan(v View, now time.Time) (a Actions) {
	nodes := map[string]*balsav1.Node{}
	for _, n := range v.Nodes {
		nodes[n.GetMetadata().GetName()] = n
		if next := tainted(n, now); next != nil {
			a.Nodes = append(a.Nodes, next)
			nodes[n.GetMetadata().GetName()] = next
		}
	}
	for _, pod := range v.Pods {
		node := nodes[pod.GetSpec().GetNodeName()]
		if node != nil && object.PodActive(pod) {
			a.judge(pod, node, now)
		}
	}
	return a
}

// tainted is the node with the taints that its conditions ask for, and with the
// time on every NoExecute taint; nil if it is so.
func tainted(n *balsav1.Node, now time.Time) *balsav1.Node {
	next, changed := object.Clone(n), false
	if next.Spec == nil {
		next.Spec = &balsav1.NodeSpec{}
	}
	for _, p := range pressures() {
		has := slices.ContainsFunc(next.Spec.Taints, p.is)
		wants := object.IsConditionTrue(n.GetStatus().GetConditions(), p.condition)
		switch {
		case wants && !has:
			next.Spec.Taints = append(next.Spec.Taints, &balsav1.Taint{Key: p.taint, Effect: object.TaintNoSchedule})
		case !wants && has:
			next.Spec.Taints = slices.DeleteFunc(next.Spec.Taints, p.is)
		default:
			continue
		}
		changed = true
	}
	for _, t := range next.Spec.Taints {
		if t.GetEffect() == object.TaintNoExecute && t.GetTimeAdded() == nil {
			t.TimeAdded, changed = timestamppb.New(now), true
		}
	}
	if !changed {
		return nil
	}
	return next
}

func (p pressure) is(t *balsav1.Taint) bool {
	return t.GetKey() == p.taint && t.GetEffect() == object.TaintNoSchedule
}

// shortStay is how long a pod at least stays on a node that evicted already when it
// came, because its template names the node or tolerates the taint for a time only:
// the one in its place comes there too, and they would follow each other unbounded.
const shortStay = 10 * time.Second

// leave is how much longer a pod may stay, on a node that got the taint at added.
// A pod that came later has all the time that it tolerates, as in Kubernetes. A
// time in the future, from a clock that was put back since, is taken for now.
func leave(pod *balsav1.Pod, tolerated time.Duration, added, now time.Time) time.Duration {
	came := pod.GetMetadata().GetCreationTimestamp().AsTime()
	if c := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionPodScheduled); c.GetStatus() == object.ConditionTrue && c.GetLastTransitionTime() != nil {
		came = c.GetLastTransitionTime().AsTime()
	}
	if came.After(added) {
		added, tolerated = came, max(tolerated, shortStay)
	}
	return tolerated - max(0, now.Sub(added))
}

// judge evicts a pod if any taint's time is up.
func (a *Actions) judge(pod *balsav1.Pod, node *balsav1.Node, now time.Time) {
	for _, t := range node.GetSpec().GetTaints() {
		if t.GetEffect() != object.TaintNoExecute {
			continue
		}
		tolerated, forEver := object.ToleratesFor(pod.GetSpec().GetTolerations(), t)
		if forEver {
			continue
		}
		if left := leave(pod, tolerated, t.GetTimeAdded().AsTime(), now); left > 0 {
			if a.Again == 0 || left < a.Again {
				a.Again = left
			}
			continue
		}
		why := fmt.Sprintf("node %s has taint %s, which the pod does not tolerate", node.GetMetadata().GetName(), Describe(t))
		if tolerated > 0 {
			why += fmt.Sprintf(" for more than %v", tolerated)
		}
		a.Evict = append(a.Evict, Eviction{pod, why})
		return
	}
}
