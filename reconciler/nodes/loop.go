package nodes

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// settle gathers what becomes known of several nodes at once.
const settle = 5 * time.Millisecond

type concern struct {
	*control.Kit
	leases *Leases
	hosts  Hosts
	// frozen is the freeze that was told last, in this term.
	frozen string
}

// New makes the concern, which has one key: nodes are judged together. hosts may
// be nil; then no host is ever unreachable.
func New(k *control.Kit, leases *Leases, hosts Hosts) control.Concern {
	n := &concern{Kit: k, leases: leases, hosts: hosts}
	return control.Concern{Name: "nodes", Settle: settle, Keys: keys, Step: n.step, Woken: leases.wake}
}

// keys: any change of a node, and pods that are marked or on no node that exists.
func keys(v store.View, ev store.Event) []string {
	kind, _, _, _ := object.ParseKey(ev.KV.Key)
	if kind.Name == "Node" {
		return []string{""}
	}
	if pod, ok := ev.KV.Object.(*balsav1.Pod); ok && pod.GetSpec().GetNodeName() != "" {
		if node := Get(v, pod.GetSpec().GetNodeName()); node == nil || lost(node) || Marked(pod) {
			return []string{""}
		}
	}
	return nil
}

func (n *concern) step(ctx context.Context, _ []string) []loop.Again {
	v, err := n.View(ctx)
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	now := n.Clock.Now()
	a := Plan(n.viewOf(v), now)
	n.tellFreeze(v, a)
	changes, err := n.changes(v, a, now)
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	for _, err := range n.CommitAll(ctx, changes) {
		if err != nil {
			return []loop.Again{{Err: err}}
		}
	}
	if a.Again > 0 {
		return []loop.Again{{After: a.Again}}
	}
	return nil
}

func (n *concern) viewOf(v store.View) View {
	kind, _ := object.KindByName("Node")
	view := View{Interval: n.leases.interval, Duration: n.leases.duration}
	index := map[string]int{}
	for _, node := range control.Collect[*balsav1.Node](v.Prefix(object.Prefix(kind, ""))) {
		h := Health{Node: node}
		h.Heard, h.Beaten = n.leases.heard(node)
		if n.hosts != nil {
			h.Host = n.hosts.Host(h.name())
		}
		index[h.name()] = len(view.Nodes)
		view.Nodes = append(view.Nodes, h)
	}
	n.leases.forget(func(node string) bool { _, ok := index[node]; return ok })
	pods, _ := object.KindByName("Pod")
	for kv := range v.Prefix(object.Prefix(pods, "")) {
		pod, ok := kv.Object.(*balsav1.Pod)
		if !ok || pod.GetSpec().GetNodeName() == "" {
			continue
		}
		i, exists := index[pod.GetSpec().GetNodeName()]
		switch {
		case Marked(pod):
			view.Marked = append(view.Marked, pod)
		case !exists:
			view.Strays = append(view.Strays, pod)
		case lost(view.Nodes[i].Node) && (!object.PodFinished(pod) || object.IsTerminating(pod)):
			view.Nodes[i].Pods = append(view.Nodes[i].Pods, pod)
		}
	}
	return view
}

// changes puts each node, and the pods in bounded groups, into changes of their
// own: one conflict holds up no other.
func (n *concern) changes(v store.View, a Actions, now time.Time) (changes []*control.Change, err error) {
	for _, node := range a.Nodes {
		c := control.NewChange(object.KeyOf(node))
		if err := c.Update(node); err != nil {
			return nil, err
		}
		c.Then(func() { n.tell(Get(v, node.GetMetadata().GetName()), node) })
		changes = append(changes, c)
	}
	for _, group := range []struct {
		what string
		pods []*balsav1.Pod
		next func(*balsav1.Pod, time.Time) (*balsav1.Pod, string)
	}{
		{"mark pods of lost nodes", a.Mark, failed}, {"say that pods of lost nodes are unknown", a.Unknown, unknown},
	} {
		for pods := range slices.Chunk(group.pods, control.MaxOps/2) {
			c := control.NewChange(group.what)
			for _, pod := range pods {
				next, why := group.next(pod, now)
				if err := c.Update(next); err != nil {
					return nil, err
				}
				// The node may have come back while this was planned.
				c.Expect(Get(v, pod.GetSpec().GetNodeName()))
				c.Then(func() { n.Events.Record(pod, object.EventWarning, ReasonNodeLost, why) })
			}
			changes = append(changes, c)
		}
	}
	for pods := range slices.Chunk(a.Remove, control.MaxOps) {
		c := control.NewChange("remove pods of lost nodes")
		for _, pod := range pods {
			c.Delete(pod)
			if !Marked(pod) {
				c.Then(func() {
					n.Events.Record(pod, object.EventWarning, ReasonNodeDeleted, "node "+pod.GetSpec().GetNodeName()+" does not exist")
				})
			}
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// unknown is a pod that stays with its lost node. Its phase is what was known last,
// as in Kubernetes; it is not ready, so that nothing is sent to it. Its agent says
// how it is when the node is back.
func unknown(pod *balsav1.Pod, now time.Time) (next *balsav1.Pod, why string) {
	next = object.Clone(pod)
	if next.Status == nil {
		next.Status = &balsav1.PodStatus{}
	}
	why = "node " + pod.GetSpec().GetNodeName() + " sent no heartbeat for the time of its lease; no controller would replace the pod, so it waits for its node"
	next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: object.ConditionReady, Status: object.ConditionFalse, Reason: ReasonNodeLost, Message: why,
	}, now)
	return next, why
}

// failed is a pod of a lost node that goes.
func failed(pod *balsav1.Pod, now time.Time) (next *balsav1.Pod, why string) {
	next = object.Clone(pod)
	if next.Status == nil {
		next.Status = &balsav1.PodStatus{}
	}
	why = "node " + pod.GetSpec().GetNodeName() + " sent no heartbeat for the time of its lease"
	next.Status.Phase, next.Status.Reason, next.Status.Message = object.PodFailed, ReasonNodeLost, why
	next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: object.ConditionReady, Status: object.ConditionFalse, Reason: ReasonNodeLost,
	}, now)
	if next.Metadata.DeletionTimestamp == nil {
		next.Metadata.DeletionTimestamp = timestamppb.New(now)
	}
	next.Metadata.DeletionGracePeriodSeconds = proto.Int64(0)
	return next, why
}

// tell records what changed about a node.
func (n *concern) tell(old, node *balsav1.Node) {
	for _, kind := range []string{object.ConditionReady, ConditionHostReachable} {
		was := object.FindCondition(old.GetStatus().GetConditions(), kind)
		is := object.FindCondition(node.GetStatus().GetConditions(), kind)
		if is == nil || was.GetReason() == is.GetReason() {
			continue
		}
		eventType := object.EventWarning
		if is.GetStatus() == object.ConditionTrue {
			eventType = object.EventNormal
		}
		n.Events.Record(node, eventType, is.GetReason(), is.GetMessage())
	}
}

// tellFreeze says once that a freeze begins or ends.
func (n *concern) tellFreeze(v store.View, a Actions) {
	if (a.Frozen == "") == (n.frozen == "") {
		return
	}
	n.frozen = a.Frozen
	if a.Frozen == "" {
		n.Logger.Info("lost nodes are replaced again")
		return
	}
	n.Logger.Error("lost nodes are not replaced", "reason", a.Frozen)
	for _, h := range n.viewOf(v).Nodes {
		n.Events.Record(h.Node, object.EventWarning, ReasonFrozen, a.Frozen)
	}
}
