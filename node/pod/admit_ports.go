package pod

import (
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// ReasonNodePorts: another pod has a port of the node that the pod wants.
const ReasonNodePorts = "NodePorts"

// portHolders are the pods that have ports of the node.
type portHolders map[object.HostPort]string

// refuse tells whether another pod has a port that p wants.
func (h portHolders) refuse(p *balsav1.Pod) (Refusal, bool) {
	for _, port := range object.HostPorts(p.GetSpec()) {
		if holder, taken := h.holder(port); taken {
			return Refusal{Reason: ReasonNodePorts, Message: fmt.Sprintf(
				"the pod was refused: the node has no room for it: port %s of the node is taken by pod %s", port, holder)}, true
		}
	}
	return Refusal{}, false
}

// holder is the pod that has a port: the first by name, where several addresses'
// ports are in the way of one on every address.
func (h portHolders) holder(port object.HostPort) (pod string, taken bool) {
	for held, name := range h {
		if held.Clashes(port) && (!taken || name < pod) {
			pod, taken = name, true
		}
	}
	return pod, taken
}

func (h portHolders) take(p *balsav1.Pod) {
	for _, port := range object.HostPorts(p.GetSpec()) {
		if _, taken := h[port]; !taken {
			h[port] = p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
		}
	}
}
