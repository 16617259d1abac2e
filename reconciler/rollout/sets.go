package rollout

import (
	"slices"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
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
	// spec is what the ReplicaSet asks for; a plan changes it.
	spec int32
	// live pods are neither finished nor about to go; ready and available ones
	// are live.
	live, ready, available int32
	// running pods are not finished; they may be about to go.
	running int32
	// wait is when the first pod that is ready becomes available; 0: none waits.
	wait time.Duration
}

func countSet(s Set, minReadySeconds int32, now time.Time) *counts {
	c := &counts{rs: s.ReplicaSet, spec: s.ReplicaSet.GetSpec().GetReplicas()}
	for _, pod := range s.Pods {
		if !object.PodFinished(pod) {
			c.running++
		}
		if !object.PodActive(pod) {
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

func (c *counts) revision() int64 { return revisionOf(c.rs) }

// revisionOf reads the revision annotation; 0 without one.
func revisionOf(m object.Message) int64 {
	n, err := strconv.ParseInt(m.GetMetadata().GetAnnotations()[AnnotationRevision], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func sum(sets []*counts, f func(*counts) int32) (n int32) {
	for _, c := range sets {
		n += f(c)
	}
	return n
}

// oldestFirst orders by revision, creation and name.
func oldestFirst(a, b *counts) int {
	if a.revision() != b.revision() {
		if a.revision() < b.revision() {
			return -1
		}
		return 1
	}
	x, y := a.rs.GetMetadata(), b.rs.GetMetadata()
	if c := x.GetCreationTimestamp().AsTime().Compare(y.GetCreationTimestamp().AsTime()); c != 0 {
		return c
	}
	return strings.Compare(x.GetName(), y.GetName())
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
