package apiserver

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// The parts of a Node that its agent alone knows, beside the status: the
// conditions of its resources, which come with every Register, and the taints
// that it begins with, which count once.

// agentConditions are the conditions that an agent writes; servers write all
// others.
func agentConditions() []string { return []string{"MemoryPressure", "DiskPressure", "PIDPressure"} }

// maxConditionBytes bounds what an agent says of a condition.
const maxConditionBytes = 1024

// mergeConditions is what is recorded, with what the agent says of its own. What
// it does not speak of stays: it has not measured yet.
func mergeConditions(live, said []*balsav1.Condition, now time.Time) []*balsav1.Condition {
	out := live
	for _, kind := range agentConditions() {
		c := object.FindCondition(said, kind)
		if s := c.GetStatus(); s != object.ConditionTrue && s != object.ConditionFalse {
			continue
		}
		out, _ = object.SetCondition(out, &balsav1.Condition{
			Type: kind, Status: c.GetStatus(), Reason: short(c.GetReason()), Message: short(c.GetMessage()),
		}, now)
	}
	return out
}

func short(text string) string {
	if len(text) > maxConditionBytes {
		return strings.ToValidUTF8(text[:maxConditionBytes], "")
	}
	return text
}

// firstTaints are those that a new node asks for. Those of node.kubernetes.io
// are the servers' to set, and so is the time of one.
func firstTaints(said []*balsav1.Taint) ([]*balsav1.Taint, error) {
	var out []*balsav1.Taint
	for i, t := range said {
		if strings.HasPrefix(t.GetKey(), "node.kubernetes.io/") {
			return nil, invalid(fmt.Sprintf("spec.taints[%d].key", i), "leave it out of --taints", "%q is a taint that servers set", clip(t.GetKey()))
		}
		t = proto.CloneOf(t)
		t.TimeAdded = nil
		out = append(out, t)
	}
	return out, nil
}
