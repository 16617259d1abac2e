package workload

import (
	"cmp"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// rank orders pods by who shall end first: those whose eviction was asked for, and
// then as Kubernetes does: not bound to a
// node; pending, then unknown, then running; not ready; on the node with most of
// the ReplicaSet's pods; ready for the shortest time; restarted most often;
// youngest. The name settles the rest.
func rank(pods []*balsav1.Pod) []*balsav1.Pod {
	onNode := map[string]int{}
	for _, p := range pods {
		onNode[p.GetSpec().GetNodeName()]++
	}
	out := slices.Clone(pods)
	slices.SortFunc(out, func(a, b *balsav1.Pod) int {
		return cmp.Or(
			before(object.EvictionRequested(a), object.EvictionRequested(b)),
			before(a.GetSpec().GetNodeName() == "", b.GetSpec().GetNodeName() == ""),
			cmp.Compare(phaseRank(a), phaseRank(b)),
			before(!object.PodReady(a), !object.PodReady(b)),
			cmp.Compare(onNode[b.GetSpec().GetNodeName()], onNode[a.GetSpec().GetNodeName()]),
			compareReadySince(a, b),
			cmp.Compare(restarts(b), restarts(a)),
			b.GetMetadata().GetCreationTimestamp().AsTime().Compare(a.GetMetadata().GetCreationTimestamp().AsTime()),
			strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName()),
		)
	})
	return out
}

// before puts the one that is so first.
func before(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

func phaseRank(p *balsav1.Pod) int {
	switch p.GetStatus().GetPhase() {
	case object.PodRunning:
		return 2
	case object.PodUnknown:
		return 1
	default:
		return 0
	}
}

// compareReadySince puts the pod that became ready last first.
func compareReadySince(a, b *balsav1.Pod) int {
	x, readyX := object.PodReadySince(a)
	y, readyY := object.PodReadySince(b)
	if !readyX || !readyY {
		return 0
	}
	return y.Compare(x)
}

func restarts(p *balsav1.Pod) (most int32) {
	for _, c := range p.GetStatus().GetContainerStatuses() {
		most = max(most, c.GetRestartCount())
	}
	return most
}
