package rollout

import (
	"cmp"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// Set is a ReplicaSet and the pods that it controls.
type Set struct {
	ReplicaSet *balsav1.ReplicaSet
	Pods       []*balsav1.Pod
}

// counts is what a plan needs to know of a ReplicaSet's pods.
type counts struct {
	rs *balsav1.ReplicaSet
	// spec is what the ReplicaSet asks for; a plan changes it. keepScale: it was not
	// possible to bring it where the Deployment's replicas want it, so the annotations
	// that tell of that stay, and it is tried again.
	spec      int32
	keepScale bool
	// live pods are replicas (see isReplica); ready and available ones are live.
	live, ready, available int32
	// running pods are not finished; they may be about to go.
	running int32
	// wait is when the first pod that is ready becomes available; 0: none waits.
	wait time.Duration
}

// isReplica tells whether a pod counts as one of its ReplicaSet: not one that has
// ended or is about to go, nor one that stays only until another is available in
// its place, which is beyond both bounds.
func isReplica(pod *balsav1.Pod) bool {
	return object.PodActive(pod) && !object.IsConditionTrue(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested)
}

func countSet(s Set, minReadySeconds int32, now time.Time) *counts {
	c := &counts{rs: s.ReplicaSet, spec: s.ReplicaSet.GetSpec().GetReplicas()}
	for _, pod := range s.Pods {
		if !object.PodFinished(pod) {
			c.running++
		}
		if !isReplica(pod) {
			continue
		}
		c.live++
		if object.PodReady(pod) {
			c.ready++
		}
		available, wait := object.PodAvailable(pod, minReadySeconds, now)
		if available {
			c.available++
		} else if wait > 0 && (c.wait == 0 || wait < c.wait) {
			c.wait = wait
		}
	}
	return c
}

// total is how many pods the ReplicaSet has or may make at any time: those that
// it shall end count until they are marked.
func (c *counts) total() int32 { return max(c.spec, c.live) }

// staying is how many available pods are left once the ReplicaSet has what it
// asks for: it ends those that are not available first.
func (c *counts) staying() int32 { return min(c.available, c.spec) }

// unhealthy is how many of the pods that it asks for are not available.
func (c *counts) unhealthy() int32 { return c.spec - c.staying() }

func (c *counts) name() string { return c.rs.GetMetadata().GetName() }

func (c *counts) revision() int64 { return revisions.Of(c.rs) }

func sum(sets []*counts, f func(*counts) int32) (n int32) {
	for _, c := range sets {
		n += f(c)
	}
	return n
}

// oldestFirst orders by revision, creation and name.
func oldestFirst(a, b *counts) int {
	return cmp.Or(
		cmp.Compare(a.revision(), b.revision()),
		a.rs.GetMetadata().GetCreationTimestamp().AsTime().Compare(b.rs.GetMetadata().GetCreationTimestamp().AsTime()),
		compareNames(a.rs, b.rs),
	)
}

func compareNames(a, b object.Message) int {
	return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
}

func countSets(v View, now time.Time) (sets []*counts) {
	for _, s := range v.Sets {
		if !object.IsTerminating(s.ReplicaSet) {
			sets = append(sets, countSet(s, v.Deployment.GetSpec().GetMinReadySeconds(), now))
		}
	}
	slices.SortFunc(sets, oldestFirst)
	return sets
}

// podsOf are the pods of a ReplicaSet, in the order of their names.
func (p *planner) podsOf(c *counts) []*balsav1.Pod {
	for _, s := range p.Sets {
		if s.ReplicaSet == c.rs {
			pods := slices.Clone(s.Pods)
			slices.SortFunc(pods, func(a, b *balsav1.Pod) int { return compareNames(a, b) })
			return pods
		}
	}
	return nil
}
