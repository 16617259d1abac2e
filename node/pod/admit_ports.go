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
		if holder, taken := h[port]; taken {
			return Refusal{Reason: ReasonNodePorts, Message: fmt.Sprintf(
				"the pod was refused: the node has no room for it: port %d/%s of the node is taken by pod %s", port.Port, port.Protocol, holder)}, true
		}
	}
	return Refusal{}, false
}

func (h portHolders) take(p *balsav1.Pod) {
	for _, port := range object.HostPorts(p.GetSpec()) {
		if _, taken := h[port]; !taken {
			h[port] = p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
		}
	}
}
