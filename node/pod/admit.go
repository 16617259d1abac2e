package pod

import (
	"cmp"
	"fmt"
	"slices"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// Capacity is what a node's pods may ask for together.
type Capacity struct {
	MilliCPU    int64
	MemoryBytes int64
	// EphemeralBytes is disk for what lives as long as pods; 0: it is not counted.
	EphemeralBytes int64
	Pods           int
}

// Admit says which of a node's pods it has no room for. Those that are settled
// (they run, or were admitted before) come first, then the oldest. The scheduler
// counts in the same way, so that a refusal means that it knew less: a pod that
// a user bound by hand, or a node that shrank. Ports of the node count too.
func Admit(pods []*balsav1.Pod, settled func(uid string) bool, room Capacity) map[string]Refusal {
	order := slices.Clone(pods)
	slices.SortFunc(order, func(a, b *balsav1.Pod) int {
		return cmp.Or(first(settled(a.GetMetadata().GetUid()), settled(b.GetMetadata().GetUid())),
			a.GetMetadata().GetCreationTimestamp().AsTime().Compare(b.GetMetadata().GetCreationTimestamp().AsTime()),
			cmp.Compare(a.GetMetadata().GetUid(), b.GetMetadata().GetUid()))
	})
	refused := map[string]Refusal{}
	used, ports := Capacity{}, portHolders{}
	for _, p := range order {
		if object.PodFinished(p) {
			continue
		}
		want, err := object.PodRequests(p.GetSpec())
		uid := p.GetMetadata().GetUid()
		why, refuse := refusal(used, want, room)
		if !refuse {
			why, refuse = ports.refuse(p)
		}
		switch {
		case settled(uid):
		case err != nil:
			refused[uid] = Refusal{Reason: "InvalidResources", Message: "the pod was refused: " + err.Error()}
			continue
		case refuse:
			refused[uid] = why
			continue
		}
		ports.take(p)
		used = Capacity{used.MilliCPU + want.MilliCPU, used.MemoryBytes + want.MemoryBytes, used.EphemeralBytes + want.EphemeralBytes, used.Pods + 1}
	}
	return refused
}

// first puts true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// refusal uses the kubelet's reasons.
func refusal(used Capacity, want object.Requests, room Capacity) (Refusal, bool) {
	short := func(reason, what string, wanted, have, all int64, unit string) (Refusal, bool) {
		return Refusal{Reason: reason, Message: fmt.Sprintf("the pod was refused: the node has no room for it: %s: requested %d%s, used %d%s, allocatable %d%s",
			what, wanted, unit, have, unit, all, unit)}, true
	}
	switch {
	case used.Pods+1 > room.Pods:
		return short("OutOfpods", "pods", 1, int64(used.Pods), int64(room.Pods), "")
	case want.MilliCPU > 0 && used.MilliCPU+want.MilliCPU > room.MilliCPU:
		return short("OutOfcpu", "cpu", want.MilliCPU, used.MilliCPU, room.MilliCPU, "m")
	case want.MemoryBytes > 0 && used.MemoryBytes+want.MemoryBytes > room.MemoryBytes:
		return short("OutOfmemory", "memory", want.MemoryBytes, used.MemoryBytes, room.MemoryBytes, " bytes")
	case room.EphemeralBytes > 0 && want.EphemeralBytes > 0 && used.EphemeralBytes+want.EphemeralBytes > room.EphemeralBytes:
		return short("OutOfephemeral-storage", "ephemeral-storage", want.EphemeralBytes, used.EphemeralBytes, room.EphemeralBytes, " bytes")
	}
	return Refusal{}, false
}
