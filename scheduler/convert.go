package scheduler

import (
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// readyCondition is the condition type by which a node, or a pod, is ready.
const readyCondition = "Ready"

// FromNode reads what placement needs of a Node. It keeps the label map, which
// it does not change. An error means an object that was never validated.
func FromNode(n *balsav1.Node) (Node, error) {
	out := Node{
		Name: n.GetMetadata().GetName(), Labels: n.GetMetadata().GetLabels(),
		Cordoned: n.GetSpec().GetUnschedulable() || n.GetMetadata().GetDeletionTimestamp() != nil,
	}
	for _, c := range n.GetStatus().GetConditions() {
		if c.GetType() == readyCondition {
			out.Ready = c.GetStatus() == "True"
		}
	}
	for _, t := range n.GetSpec().GetTaints() {
		out.Taints = append(out.Taints, Taint{t.GetKey(), t.GetValue(), t.GetEffect()})
	}
	have := n.GetStatus().GetAllocatable()
	var err error
	if out.Allocatable.MilliCPU, err = object.MilliCPU(have[object.ResourceCPU]); err != nil {
		return Node{}, fmt.Errorf("node %q: allocatable cpu: %w", out.Name, err)
	}
	if out.Allocatable.Memory, err = object.Bytes(have[object.ResourceMemory]); err != nil {
		return Node{}, fmt.Errorf("node %q: allocatable memory: %w", out.Name, err)
	}
	if out.Allocatable.Storage, err = object.Bytes(have[object.ResourceEphemeralStorage]); err != nil {
		return Node{}, fmt.Errorf("node %q: allocatable ephemeral-storage: %w", out.Name, err)
	}
	if out.Allocatable.Pods, err = object.Bytes(have[object.ResourcePods]); err != nil {
		return Node{}, fmt.Errorf("node %q: allocatable pods: %w", out.Name, err)
	}
	return out, nil
}

// FromPod reads what placement needs of a Pod. It keeps the maps, which it does
// not change. An error means an object that was never validated.
func FromPod(p *balsav1.Pod) (Pod, error) {
	meta := p.GetMetadata()
	out := Pod{
		Namespace: meta.GetNamespace(), Name: meta.GetName(), UID: meta.GetUid(), Labels: meta.GetLabels(),
		Node: p.GetSpec().GetNodeName(), Terminating: meta.GetDeletionTimestamp() != nil,
		NodeSelector: p.GetSpec().GetNodeSelector(), Priority: p.GetSpec().GetPriority(), Created: meta.GetCreationTimestamp().AsTime(),
	}
	for _, o := range meta.GetOwnerReferences() {
		if o.GetController() {
			out.Owner = o.GetUid()
		}
	}
	requests, err := object.PodRequests(p.GetSpec())
	if err != nil {
		return Pod{}, fmt.Errorf("pod %q: requests of %w", out.Key(), err)
	}
	out.Requests = Resources{MilliCPU: requests.MilliCPU, Memory: requests.MemoryBytes, Storage: requests.EphemeralBytes, Pods: 1}
	out.HostPorts = object.HostPorts(p.GetSpec())
	tolerations := p.GetSpec().GetTolerations()
	out.Tolerates = func(t Taint) bool {
		return object.Tolerates(tolerations, &balsav1.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect})
	}
	for _, t := range tolerations {
		out.Tolerations += t.GetKey() + "\x01" + t.GetOperator() + "\x01" + t.GetValue() + "\x01" + t.GetEffect() + "\x02"
	}
	for i, c := range p.GetSpec().GetTopologySpreadConstraints() {
		selector, err := object.SelectorFrom(c.GetLabelSelector())
		if err != nil {
			return Pod{}, fmt.Errorf("pod %q: spec.topologySpreadConstraints[%d]: %w", out.Key(), i, err)
		}
		out.Spread = append(out.Spread, Constraint{
			MaxSkew: int64(c.GetMaxSkew()), TopologyKey: c.GetTopologyKey(), Selector: selector,
			Hard: c.GetWhenUnsatisfiable() != "ScheduleAnyway",
		})
	}
	return out, nil
}
