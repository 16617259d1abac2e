// Package nodes judges which nodes are alive, and takes the pods of lost ones
// away so that others replace them. A pod that nobody would replace stays with its
// node, and is only said to be unknown.
//
// Gossip is a hint, the lease is the law. A host that gossip holds for failed,
// that answers nothing and whose heartbeats stay away is marked, and its
// endpoints leave at once; an agent that is down on a living host keeps its
// endpoints. A lapsed lease replaces the node's pods. When more than a third of
// the nodes vanish together nothing of that happens: it is probably us.
//
// The package refuses to keep heartbeats in the store; only changes of health
// are written.
package nodes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// ConditionHostReachable is the mark: False takes the endpoints of the host away.
const ConditionHostReachable = "HostReachable"

// Reasons of conditions and of pods.
const (
	ReasonHeartbeat       = "Heartbeat"
	ReasonNoHeartbeatYet  = "NoHeartbeatYet"
	ReasonLeaseExpired    = "LeaseExpired"
	ReasonFrozen          = "ManyNodesVanished"
	ReasonHostUnreachable = "HostUnreachable"
	ReasonHostBack        = "HostBack"
	ReasonNodeLost        = "NodeLost"
	ReasonNodeDeleted     = "NodeDeleted"
)

const (
	// freezeFraction: when more than one in so many nodes vanish together, nothing
	// is removed or replaced.
	freezeFraction = 3
	// freezeLeast is the least number of vanished nodes that freezes. One node may
	// always be lost, also of two.
	freezeLeast = 2
	// missedBeats that stay away count as refused.
	missedBeats = 3
	// missingNodeGrace is how long a pod that a user bound to a node by name may
	// wait for that node to join, or to come back.
	missingNodeGrace = time.Minute
)

// Host is what is known of a node's machine other than by heartbeats.
type Host struct {
	// GossipFailed: gossip holds the node for failed.
	GossipFailed bool
	// Answers: something on the host answers still, if only by refusing a
	// connection; then only the agent is down.
	Answers bool
}

// Hosts tells what is known of machines. Call Leases.Wake when that changes.
type Hosts interface {
	Host(node string) Host
}

// Health is what a plan knows of one node.
type Health struct {
	Node *balsav1.Node
	// Heard is when it was heard of last; Beaten: by a heartbeat in this term.
	Heard  time.Time
	Beaten bool
	Host   Host
	// Pods are those on the node that are not marked, needed only once its lease
	// lapsed.
	Pods []*balsav1.Pod
}

// View is what a plan is made from.
type View struct {
	Nodes []Health
	// Strays are the pods on nodes that do not exist; Marked those that were on a
	// lost node and are only to be removed yet, also if it came back: Failed is
	// final.
	Strays, Marked     []*balsav1.Pod
	Interval, Duration time.Duration
}

// Actions is the outcome of a plan.
type Actions struct {
	// Nodes holds those whose conditions change, changed clones.
	Nodes []*balsav1.Node
	// Mark holds pods of lost nodes that become Failed; Remove those that go;
	// Unknown those that stay and of which nobody knows how they are.
	Mark, Remove, Unknown []*balsav1.Pod
	// Frozen says why nothing is removed or replaced; "" when it is not so.
	Frozen string
	// Again is when to look again although nothing is heard; 0: never.
	Again time.Duration
}

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	if a.Frozen != "" {
		fmt.Fprintf(&b, "frozen: %s\n", a.Frozen)
	}
	for _, n := range a.Nodes {
		fmt.Fprintf(&b, "node %s", n.GetMetadata().GetName())
		for _, c := range n.GetStatus().GetConditions() {
			fmt.Fprintf(&b, " %s=%s(%s)", c.GetType(), c.GetStatus(), c.GetReason())
		}
		b.WriteByte('\n')
	}
	for _, p := range a.Mark {
		fmt.Fprintf(&b, "mark %s\n", p.GetMetadata().GetName())
	}
	for _, p := range a.Unknown {
		fmt.Fprintf(&b, "unknown %s\n", p.GetMetadata().GetName())
	}
	for _, p := range a.Remove {
		fmt.Fprintf(&b, "remove %s\n", p.GetMetadata().GetName())
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// HostUnreachable tells whether a node's host is marked. A node that does not
// exist is not: its pods go anyway.
func HostUnreachable(n *balsav1.Node) bool {
	return object.FindCondition(n.GetStatus().GetConditions(), ConditionHostReachable).GetStatus() == object.ConditionFalse
}

// Get reads a Node by name, nil when there is none.
func Get(v store.View, name string) *balsav1.Node {
	kind, _ := object.KindByName("Node")
	n, _ := control.Get[*balsav1.Node](v, object.Key(kind, "", name))
	return n
}

// Marked tells whether a pod is one of View.Marked.
func Marked(pod *balsav1.Pod) bool {
	return pod.GetStatus().GetReason() == ReasonNodeLost && object.PodFinished(pod) && object.IsTerminating(pod)
}

// Plan judges every node at now.
func Plan(v View, now time.Time) Actions {
	p := planner{view: v, now: now}
	p.view.Nodes = slices.SortedFunc(slices.Values(v.Nodes), func(a, b Health) int { return cmp.Compare(a.name(), b.name()) })
	p.freeze()
	for _, h := range p.view.Nodes {
		p.judge(h)
		if p.givenUp(h) {
			p.giveUp(h)
		}
	}
	p.Remove = append(p.Remove, v.Marked...)
	p.strays()
	return p.Actions
}

type planner struct {
	Actions
	view View
	now  time.Time
}

func (h Health) name() string { return h.Node.GetMetadata().GetName() }

func (p *planner) silence(h Health) time.Duration { return p.now.Sub(h.Heard) }

func (p *planner) lapsed(h Health) bool { return p.silence(h) >= p.view.Duration }

// unreachable: all three signs speak against the host.
func (p *planner) unreachable(h Health) bool {
	return h.Host.GossipFailed && !h.Host.Answers && p.silence(h) >= missedBeats*p.view.Interval
}

// lost tells whether it is written already that the node's lease lapsed.
func lost(n *balsav1.Node) bool {
	c := object.FindCondition(n.GetStatus().GetConditions(), object.ConditionReady)
	return c.GetReason() == ReasonLeaseExpired && c.GetStatus() != object.ConditionTrue
}

// lostSince is how long ago it was written that the lease lapsed.
func (p *planner) lostSince(n *balsav1.Node) time.Duration {
	c := object.FindCondition(n.GetStatus().GetConditions(), object.ConditionReady)
	return p.now.Sub(c.GetLastTransitionTime().AsTime())
}

// givenUp tells whether a node's pods shall be replaced now: it is written that
// it is lost, and it still is. A freeze also holds for nodes that were lost only
// just before it.
func (p *planner) givenUp(h Health) bool {
	return lost(h.Node) && p.lapsed(h) && (p.Frozen == "" || p.lostSince(h.Node) >= p.view.Duration)
}

// giveUp decides about each pod of a node that is given up. Those that somebody
// replaces are marked: watchers see that, and why, a pod failed before it goes. One
// that nobody would replace would only be lost for good: it stays, and runs on
// when its node is back, unless its deletion was asked for or it said itself for
// how long it puts up with a node that is away.
func (p *planner) giveUp(h Health) {
	for _, pod := range h.Pods {
		if left := p.grace(h, pod); left > 0 {
			p.lookIn(left)
			continue
		}
		patience, bounded := awayFor(pod)
		left := patience - p.lostSince(h.Node)
		switch {
		case object.ControllerOf(pod) != nil, object.IsTerminating(pod), bounded && left <= 0:
			p.Mark = append(p.Mark, pod)
			continue
		case bounded:
			p.lookIn(left)
		}
		if ready := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionReady); ready.GetReason() != ReasonNodeLost {
			p.Unknown = append(p.Unknown, pod)
		}
	}
}

// grace is how much longer a pod is left alone that came to a node after that was
// lost: its template names the node, and so the one in its place would come there
// too, without end.
func (p *planner) grace(h Health, pod *balsav1.Pod) time.Duration {
	age := p.now.Sub(pod.GetMetadata().GetCreationTimestamp().AsTime())
	if object.ControllerOf(pod) == nil || object.IsTerminating(pod) || pod.GetStatus().GetPhase() != object.PodPending || age > p.lostSince(h.Node) {
		return 0
	}
	return missingNodeGrace - age
}

// TaintUnreachable is Kubernetes' taint of a node that is lost. It is not put on
// nodes here; a pod's toleration of it with a time bounds its stay.
const TaintUnreachable = "node.kubernetes.io/unreachable"

// awayFor is for how long a pod wants to stay with a node that is away, if it says
// so.
func awayFor(pod *balsav1.Pod) (patience time.Duration, bounded bool) {
	taint := &balsav1.Taint{Key: TaintUnreachable, Effect: object.TaintNoExecute}
	tolerations := pod.GetSpec().GetTolerations()
	patience, forEver := object.ToleratesFor(tolerations, taint)
	return patience, object.Tolerates(tolerations, taint) && !forEver
}

// freeze decides whether too many nodes vanished together. One has vanished when
// its host is unreachable or half of its lease passed in silence: nodes that
// vanish in one moment are noticed over some seconds, and the first must wait
// for the others. One that was given up a whole lease ago or more does not count
// any more, neither way.
func (p *planner) freeze() {
	vanished, counted := 0, 0
	for _, h := range p.view.Nodes {
		gone := p.unreachable(h) || p.silence(h) >= p.view.Duration/2
		ready := object.FindCondition(h.Node.GetStatus().GetConditions(), object.ConditionReady)
		if lost(h.Node) && p.lostSince(h.Node) >= p.view.Duration {
			continue
		}
		if gone && !h.Beaten && ready.GetReason() == ReasonNoHeartbeatYet {
			continue // it never came
		}
		counted++
		if gone {
			vanished++
		}
	}
	if vanished >= freezeLeast && vanished*freezeFraction > counted {
		p.Frozen = fmt.Sprintf("%d of %d nodes vanished together; no endpoint is removed and no pod replaced until they are back, or their Node objects are deleted", vanished, counted)
	}
}

// judge sets the conditions of a node.
func (p *planner) judge(h Health) {
	conditions := h.Node.GetStatus().GetConditions()
	next, changed := object.SetCondition(conditions, p.readyCondition(h), p.now)
	if mark := p.mark(h); mark != nil {
		var more bool
		next, more = object.SetCondition(next, mark, p.now)
		changed = changed || more
	}
	if changed {
		n := object.Clone(h.Node)
		if n.Status == nil {
			n.Status = &balsav1.NodeStatus{}
		}
		n.Status.Conditions = next
		p.Nodes = append(p.Nodes, n)
	}
	p.nextLook(h)
}

func (p *planner) readyCondition(h Health) *balsav1.Condition {
	c := &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionUnknown}
	old := object.FindCondition(h.Node.GetStatus().GetConditions(), object.ConditionReady)
	switch {
	case !p.lapsed(h) && p.unreachable(h) && p.Frozen == "":
		c.Reason, c.Message = ReasonHostUnreachable, "the host does not answer; its pods are replaced if it stays away for "+p.view.Duration.String()
	case !p.lapsed(h) && (h.Beaten || old.GetStatus() == object.ConditionTrue):
		c.Status, c.Reason, c.Message = object.ConditionTrue, ReasonHeartbeat, "the node's heartbeats arrive"
	case lost(h.Node):
		return old
	case !h.Beaten && (old == nil || old.GetReason() == ReasonNoHeartbeatYet):
		c.Status, c.Reason, c.Message = object.ConditionFalse, ReasonNoHeartbeatYet, "the node is registered; its first heartbeat is awaited"
	case !p.lapsed(h):
		return old // a new leader has not heard of it yet
	case p.Frozen != "":
		c.Reason, c.Message = ReasonFrozen, fmt.Sprintf("no heartbeat for %v; more than a third of the nodes vanished together, so its pods are not replaced", p.view.Duration)
	default:
		c.Reason, c.Message = ReasonLeaseExpired, fmt.Sprintf("no heartbeat for %v; its pods are replaced", p.view.Duration)
	}
	return c
}

// mark is the condition HostReachable; nil where nothing is to be said.
func (p *planner) mark(h Health) *balsav1.Condition {
	c := &balsav1.Condition{Type: ConditionHostReachable}
	switch {
	case p.unreachable(h) && p.Frozen != "":
		c.Status, c.Reason, c.Message = object.ConditionUnknown, ReasonFrozen, "the host does not answer; more than a third of the nodes vanished together, so its endpoints stay"
	case p.unreachable(h):
		c.Status, c.Reason, c.Message = object.ConditionFalse, ReasonHostUnreachable, "gossip lost the host, it answers nothing and its heartbeats stay away; its endpoints are out"
	case object.FindCondition(h.Node.GetStatus().GetConditions(), ConditionHostReachable) == nil:
		return nil
	default:
		c.Status, c.Reason, c.Message = object.ConditionTrue, ReasonHostBack, "the host answers"
	}
	return c
}

// nextLook is when silence alone changes the judgement.
func (p *planner) nextLook(h Health) {
	for _, limit := range []time.Duration{missedBeats * p.view.Interval, p.view.Duration / 2, p.view.Duration} {
		p.lookIn(limit - p.silence(h))
	}
	if lost(h.Node) {
		p.lookIn(p.view.Duration - p.lostSince(h.Node)) // it stops counting for a freeze
	}
}

// lookIn looks again after left, unless that is over or something is due sooner.
func (p *planner) lookIn(left time.Duration) {
	if left > 0 && (p.Again == 0 || left < p.Again) {
		p.Again = left
	}
}

// strays go at once if an agent ever had them, for then their node was deleted.
func (p *planner) strays() {
	for _, pod := range p.view.Strays {
		age := p.now.Sub(pod.GetMetadata().GetCreationTimestamp().AsTime())
		if seen := pod.GetStatus().GetHostIp() != "" || pod.GetStatus().GetPhase() != object.PodPending; seen || age >= missingNodeGrace || object.IsTerminating(pod) {
			p.Remove = append(p.Remove, pod)
		} else {
			p.lookIn(missingNodeGrace - age)
		}
	}
}
