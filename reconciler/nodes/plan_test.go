package nodes

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

var _ = flag.Bool("update", false, "rewrite the golden files")

// A node is "node n1 heard=3s new was=Heartbeat:60s gossipfailed answers": new: no
// heartbeat in this term; was: reason and age of its condition Ready, mark: those
// of HostReachable.
func TestGolden(t *testing.T) {
	rt.Golden(t, func(t *testing.T, lines []rt.Line) string {
		v := View{Interval: time.Second, Duration: 15 * time.Second}
		for _, l := range lines {
			if l.Kind == "node" {
				v.Nodes = append(v.Nodes, parseHealth(t, l))
				continue
			}
			pod := parsePod(t, l)
			switch last := len(v.Nodes) - 1; {
			case Marked(pod):
				v.Marked = append(v.Marked, pod)
			case l.Kind == "stray":
				v.Strays = append(v.Strays, pod)
			default:
				v.Nodes[last].Pods = append(v.Nodes[last].Pods, pod)
			}
		}
		a := Plan(v, rt.Now())
		return a.String()
	})
}

// parsePod reads, beside what every pod has, why= of its condition Ready,
// owner= of a ReplicaSet and tolerates=KEY:SECONDS of node.kubernetes.io/KEY.
func parsePod(t *testing.T, l rt.Line) *balsav1.Pod {
	pod := l.Pod(t)
	if c := object.FindCondition(pod.Status.Conditions, object.ConditionReady); c != nil {
		c.Reason = l.Words["why"]
	}
	if l.Has("owner") {
		pod.Metadata.OwnerReferences = []*balsav1.OwnerReference{{Kind: "ReplicaSet", Name: l.Words["owner"], Uid: "u", Controller: proto.Bool(true)}}
	}
	if l.Has("tolerates") {
		key, seconds, bounded := strings.Cut(l.Words["tolerates"], ":")
		toleration := &balsav1.Toleration{Operator: object.TolerateExists, Effect: object.TaintNoExecute}
		if key != "" {
			toleration.Key = "node.kubernetes.io/" + key
		}
		if bounded {
			n, err := strconv.ParseInt(seconds, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			toleration.TolerationSeconds = &n
		}
		pod.Spec.Tolerations = []*balsav1.Toleration{toleration}
	}
	return pod
}

func parseHealth(t *testing.T, l rt.Line) Health {
	h := Health{Node: &balsav1.Node{Metadata: l.Meta(t)}, Heard: l.Ago(t, "heard"), Beaten: !l.Has("new")}
	h.Node.Metadata.Namespace = ""
	h.Host = Host{GossipFailed: l.Has("gossipfailed"), Answers: l.Has("answers")}
	if l.Has("was") {
		setCondition(t, h.Node, object.ConditionReady, l.Words["was"])
	}
	if l.Has("mark") {
		setCondition(t, h.Node, ConditionHostReachable, l.Words["mark"])
	}
	return h
}

// setCondition reads "reason:age"; the reason tells the status.
func setCondition(t *testing.T, node *balsav1.Node, kind, text string) {
	reason, age := text[:len(text)-len(afterColon(text))-1], afterColon(text)
	d, err := time.ParseDuration(age)
	if err != nil {
		t.Fatal(err)
	}
	if node.Status == nil {
		node.Status = &balsav1.NodeStatus{}
	}
	node.Status.Conditions, _ = object.SetCondition(node.Status.Conditions, condition(kind, reason), rt.Now().Add(-d))
}

func afterColon(text string) string {
	for i := range text {
		if text[i] == ':' {
			return text[i+1:]
		}
	}
	return ""
}

func condition(kind, reason string) *balsav1.Condition {
	status := map[string]string{
		ReasonHeartbeat: object.ConditionTrue, ReasonHostBack: object.ConditionTrue, ReasonNoHeartbeatYet: object.ConditionFalse,
	}[reason]
	if status == "" {
		status = object.ConditionUnknown
	}
	if kind == ConditionHostReachable && reason == ReasonHostUnreachable {
		status = object.ConditionFalse
	}
	c := &balsav1.Condition{Type: kind, Status: status, Reason: reason}
	if kind == object.ConditionReady && reason == ReasonHeartbeat {
		c.Message = "the node's heartbeats arrive"
	}
	return c
}

// simNode is a node of the simulation: whether its host and its agent run.
type simNode struct{ host, agent bool }

// TestHealthFollowsTheTruth plays random failures over the plan's own written
// conditions. It checks at every step: no endpoint of a host that answers is ever
// taken away, no pod of a node is given up before its lease lapsed, and nothing is
// while it is frozen. At the end everything returns, and all must be well again.
func TestHealthFollowsTheTruth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newNodeSim(t)
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			n := s.nodes[rapid.IntRange(0, len(s.nodes)-1).Draw(t, "node")]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				n.host = !n.host
			case 1:
				n.agent = !n.agent
			}
			s.pass(t, time.Duration(rapid.IntRange(1, 8).Draw(t, "seconds"))*time.Second)
		}
		for _, n := range s.nodes {
			*n = simNode{true, true}
		}
		for range 3 {
			s.pass(t, time.Second)
		}
		for _, node := range s.objects {
			if !object.NodeReady(node) || HostUnreachable(node) {
				t.Fatalf("all is well, but %v", node.GetStatus().GetConditions())
			}
		}
		if a := Plan(s.view(), s.now); len(a.Nodes) > 0 || len(a.Mark) > 0 {
			t.Fatalf("all is well, but the plan goes on:\n%s", a.String())
		}
	})
}

type nodeSim struct {
	now     time.Time
	nodes   []*simNode
	objects []*balsav1.Node
	heard   []time.Time
	// dead is since when a host is; gossip needs two seconds to notice.
	dead []time.Time
}

func newNodeSim(t *rapid.T) *nodeSim {
	s := &nodeSim{now: rt.Now()}
	for i := range rapid.IntRange(1, 7).Draw(t, "nodes") {
		s.nodes = append(s.nodes, &simNode{true, true})
		node := &balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: fmt.Sprintf("n%d", i), CreationTimestamp: timestamppb.New(s.now)}}
		s.objects = append(s.objects, node)
		s.heard, s.dead = append(s.heard, s.now), append(s.dead, time.Time{})
	}
	return s
}

func (s *nodeSim) view() View {
	v := View{Interval: time.Second, Duration: 15 * time.Second}
	for i, node := range s.objects {
		h := Health{Node: node, Heard: s.heard[i], Beaten: true}
		h.Host = Host{GossipFailed: !s.dead[i].IsZero() && s.now.Sub(s.dead[i]) >= 2*time.Second || !s.nodes[i].agent, Answers: s.nodes[i].host}
		for _, name := range []string{"owned", "alone"} {
			pod := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: name}, Spec: &balsav1.PodSpec{NodeName: node.GetMetadata().GetName()}}
			if name == "owned" {
				pod.Metadata.OwnerReferences = []*balsav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", Uid: "u", Controller: proto.Bool(true)}}
			}
			h.Pods = append(h.Pods, pod)
		}
		v.Nodes = append(v.Nodes, h)
	}
	return v
}

// pass lets time go by, a second a plan, and applies what is planned.
func (s *nodeSim) pass(t *rapid.T, d time.Duration) {
	for range int(d / time.Second) {
		s.now = s.now.Add(time.Second)
		for i, n := range s.nodes {
			if n.host && n.agent {
				s.heard[i] = s.now
			}
			if n.host {
				s.dead[i] = time.Time{}
			} else if s.dead[i].IsZero() {
				s.dead[i] = s.now
			}
		}
		s.step(t)
	}
}

func (s *nodeSim) step(t *rapid.T) {
	a := Plan(s.view(), s.now)
	silent := 0
	for i := range s.nodes {
		if s.now.Sub(s.heard[i]) >= 8*time.Second || !s.nodes[i].host {
			silent++
		}
	}
	if a.Frozen != "" && silent < 2 {
		t.Fatalf("frozen with %d silent nodes", silent)
	}
	for i, node := range s.objects {
		before := object.NodeReady(node)
		for _, next := range a.Nodes {
			if next.GetMetadata().GetName() == node.GetMetadata().GetName() {
				s.objects[i] = next
			}
		}
		s.check(t, i, before, a)
	}
}

func (s *nodeSim) check(t *rapid.T, i int, wasReady bool, a Actions) {
	node, silence := s.objects[i], s.now.Sub(s.heard[i])
	if HostUnreachable(node) && s.nodes[i].host {
		t.Fatalf("%s is marked, its host answers", node.GetMetadata().GetName())
	}
	if a.Frozen != "" && HostUnreachable(node) {
		t.Fatalf("%s is marked in a freeze", node.GetMetadata().GetName())
	}
	if wasReady && lost(node) && (silence < 15*time.Second || a.Frozen != "") {
		t.Fatalf("%s is given up after %v; frozen: %q", node.GetMetadata().GetName(), silence, a.Frozen)
	}
	if !object.NodeReady(node) && silence == 0 {
		t.Fatalf("%s beats and is not ready", node.GetMetadata().GetName())
	}
	for _, pod := range slices.Concat(a.Mark, a.Unknown) {
		if pod.GetSpec().GetNodeName() == node.GetMetadata().GetName() && !lost(node) {
			t.Fatalf("%s is given up, its node is not lost", pod.GetMetadata().GetName())
		}
	}
	for _, pod := range a.Mark {
		if pod.GetMetadata().GetName() == "alone" {
			t.Fatal("a pod that nobody replaces is lost for good")
		}
	}
}

func TestLeases(t *testing.T) {
	w := rt.New(t)
	l := NewLeases(w.Clock, time.Second, 10*time.Second)
	beat := func(boot string, applied int64) {
		t.Helper()
		res, err := l.Beat(t.Context(), &balsav1.HeartbeatRequest{NodeName: "n1", BootId: boot, AppliedRevision: applied})
		if err != nil || res.GetLeaseDurationMs() != 10_000 {
			t.Fatalf("%v, %v", res, err)
		}
	}
	node := &balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1", CreationTimestamp: timestamppb.New(w.Clock.Now().Add(-time.Hour))}}
	if at, ok := l.heard(node); ok || at != w.Clock.Now() {
		t.Errorf("a new leader heard of the node at %v, %v", at, ok)
	}
	beat("a", 7)
	beat("a", 5) // came late
	if revision, ok := l.Applied("n1"); revision != 7 || !ok {
		t.Errorf("applied %d, %v", revision, ok)
	}
	beat("b", 3) // after a reboot
	if revision, _ := l.Applied("n1"); revision != 3 {
		t.Errorf("applied %d after a reboot", revision)
	}
	w.Clock.Advance(10 * time.Second)
	if _, ok := l.Applied("n1"); ok {
		t.Error("applied without a lease")
	}
	<-l.wake // of the first heartbeat
	beat("b", 3)
	select {
	case <-l.wake:
	default:
		t.Error("a node that comes back wakes nobody")
	}
	l.forget(func(string) bool { return false })
	if _, ok := l.heard(node); ok {
		t.Error("the lease of a removed node is kept")
	}
}

func TestPodsBoundByNameWaitForTheirNode(t *testing.T) {
	w := rt.New(t)
	c := New(w.Kit(), NewLeases(w.Clock, 0, 0), nil)
	w.Put(&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "early", Namespace: "default"}, Spec: &balsav1.PodSpec{NodeName: "n1"}})
	if again := w.Settle(c); again != missingNodeGrace {
		t.Errorf("looks again in %v, want %v", again, missingNodeGrace)
	}
	if _, ok := control.Get[*balsav1.Pod](w.View(), "pods/default/early"); !ok {
		t.Fatal("the pod is gone before its node could join")
	}
	w.Clock.Advance(missingNodeGrace)
	w.Settle(c)
	if _, ok := control.Get[*balsav1.Pod](w.View(), "pods/default/early"); ok {
		t.Error("the pod waits for a node that does not join")
	}
}
