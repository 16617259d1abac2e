package apiserver

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func says(n *balsav1.Node, kind, status, message string) *balsav1.Node {
	n.Status.Conditions = append(n.Status.Conditions, &balsav1.Condition{Type: kind, Status: status, Reason: "R", Message: message})
	return n
}

// An agent writes the conditions of its resources and no others; what it does not
// speak of stays.
func TestAgentsWriteTheConditionsOfTheirResources(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		register := func(n *balsav1.Node) []*balsav1.Condition {
			res, err := w.agent("n1").nodes.Register(t.Context(), &balsav1.RegisterRequest{Node: n})
			must(t, err)
			return res.GetNode().GetStatus().GetConditions()
		}
		first := register(says(says(newNode("n1"), "DiskPressure", "False", "well"), object.ConditionReady, "True", "mine"))
		if len(first) != 1 || first[0].GetMessage() != "well" || !first[0].GetLastTransitionTime().AsTime().Equal(time.Now()) {
			t.Fatalf("a new node: %v", first)
		}
		began := time.Now()
		<-time.After(time.Minute)
		if got := register(newNode("n1")); len(got) != 1 || got[0].GetStatus() != "False" {
			t.Errorf("an agent that has not measured: %v", got)
		}
		at := w.revision()
		register(says(newNode("n1"), "DiskPressure", "False", "well"))
		if w.revision() != at {
			t.Error("what is known was written again")
		}
		got := register(says(says(newNode("n1"), "DiskPressure", "True", strings.Repeat("x", 5000)), "MemoryPressure", "Maybe", ""))
		c := object.FindCondition(got, "DiskPressure")
		if len(got) != 1 || c.GetStatus() != "True" || len(c.GetMessage()) != maxConditionBytes || !c.GetLastTransitionTime().AsTime().After(began) {
			t.Errorf("under pressure: %v", got)
		}
	})
}

// The taints that a node asks for count when it is new, and never again.
func TestFirstTaints(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		register := func(key string) ([]*balsav1.Taint, error) {
			n := newNode("n1")
			n.Spec = &balsav1.NodeSpec{Taints: []*balsav1.Taint{{Key: key, Value: "db", Effect: object.TaintNoSchedule}}}
			res, err := w.agent("n1").nodes.Register(t.Context(), &balsav1.RegisterRequest{Node: n})
			return res.GetNode().GetSpec().GetTaints(), err
		}
		_, err := register("node.kubernetes.io/not-ready")
		if d := refused(t, err, connect.CodeInvalidArgument, "Invalid"); d.GetViolations()[0].GetField() != "spec.taints[0].key" {
			t.Errorf("a server's taint: %v", d)
		}
		for _, key := range []string{"dedicated", "other"} {
			got, err := register(key)
			must(t, err)
			if len(got) != 1 || got[0].GetKey() != "dedicated" || got[0].GetValue() != "db" {
				t.Errorf("registering with %s: %v", key, got)
			}
		}
	})
}
