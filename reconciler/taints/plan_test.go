package taints

import (
	"flag"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

// A node is "node n1 pressure=MemoryPressure taint:dedicated=NoExecute/1m", with
// the taint's age, or without one for a new taint; a pod is
// "pod p node=n1 tolerates=dedicated/30s".
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		var v View
		for _, l := range lines {
			if l.Kind == "node" {
				v.Nodes = append(v.Nodes, nodeOf(t, l))
				continue
			}
			p := l.Pod(t)
			if key, seconds, limited := strings.Cut(l.Words["tolerates"], "/"); key != "" {
				x := &balsav1.Toleration{Key: key, Operator: object.TolerateExists, Effect: object.TaintNoExecute}
				if limited {
					d, err := time.ParseDuration(seconds)
					if err != nil {
						t.Fatal(err)
					}
					x.TolerationSeconds = proto.Int64(int64(d.Seconds()))
				}
				p.Spec.Tolerations = append(p.Spec.Tolerations, x)
			}
			v.Pods = append(v.Pods, p)
		}
		return Plan(v, rt.Now()).String()
	})
}

func nodeOf(t *testing.T, l rt.Line) *balsav1.Node {
	n := &balsav1.Node{Metadata: l.Meta(t), Spec: &balsav1.NodeSpec{}, Status: &balsav1.NodeStatus{}}
	if l.Has("pressure") {
		n.Status.Conditions = append(n.Status.Conditions, &balsav1.Condition{Type: l.Words["pressure"], Status: object.ConditionTrue})
	}
	for word, value := range l.Words {
		prefix, key, _ := strings.Cut(word, ":")
		if prefix != "taint" {
			continue
		}
		effect, age, aged := strings.Cut(value, "/")
		taint := &balsav1.Taint{Key: key, Effect: effect}
		if aged {
			d, err := time.ParseDuration(age)
			if err != nil {
				t.Fatal(err)
			}
			taint.TimeAdded = timestamppb.New(rt.Now().Add(-d))
		}
		n.Spec.Taints = append(n.Spec.Taints, taint)
	}
	return n
}

func TestPodsLeaveWhenTheirTolerationEnds(t *testing.T) {
	w := rt.New(t)
	c := New(w.Kit())
	w.Put(&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1"}, Spec: &balsav1.NodeSpec{Taints: []*balsav1.Taint{{Key: "repair", Effect: object.TaintNoExecute}}}})
	w.Put(&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: &balsav1.PodSpec{
		NodeName: "n1", TerminationGracePeriodSeconds: proto.Int64(30),
		Tolerations: []*balsav1.Toleration{{Key: "repair", Operator: object.TolerateExists, TolerationSeconds: proto.Int64(60)}},
	}})
	if again := w.Settle(c); again != time.Minute {
		t.Errorf("looks again in %v", again)
	}
	pod := func() *balsav1.Pod { return rt.Get[*balsav1.Pod](w, "pods/default/p") }
	if object.IsTerminating(pod()) {
		t.Fatal("evicted at once")
	}
	w.Clock.Advance(time.Minute)
	w.Settle(c)
	if !object.IsTerminating(pod()) || len(w.Events) != 1 || !strings.Contains(w.Events[0], "repair:NoExecute, which the pod does not tolerate for more than 1m0s") {
		t.Errorf("pod %v, events %v", pod().GetMetadata(), w.Events)
	}
	w.Settle(c)
	if len(w.Events) != 1 {
		t.Errorf("said again: %v", w.Events)
	}
}
