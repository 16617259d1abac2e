package placement

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/scheduler"
	"github.com/balsa-run/balsa/store"
)

const (
	// settle gathers the pods of one ReplicaSet, and what a node that joins says of
	// itself.
	settle = 5 * time.Millisecond
	// maxPerChange bounds the pods of one transaction: each takes a write, and a
	// compare for itself and for its node.
	maxPerChange = control.MaxOps / 2
)

// Explanations are the verdicts of the last plan on the pods that wait. They are
// in the leader's memory only; a sentence of each is in the pod's condition.
type Explanations struct {
	mu  sync.Mutex
	why map[string]*scheduler.Explanation // guarded by mu; by the pod's key
}

// Of is why a pod waits; ok is false when it does not, or this server does not
// lead.
func (e *Explanations) Of(podKey string) (why *scheduler.Explanation, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	why, ok = e.why[podKey]
	return why, ok
}

func (e *Explanations) set(why map[string]*scheduler.Explanation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.why = why
}

type concern struct {
	*control.Kit
	explanations *Explanations
	explained    time.Time
	// perChange halves after a conflict and doubles after a success, so that one
	// pod or node that changes all the time holds up few others.
	perChange int
}

// New makes the concern, which has one key: pods are placed together.
// explanations may be nil.
func New(k *control.Kit, explanations *Explanations) control.Concern {
	if explanations == nil {
		explanations = &Explanations{}
	}
	p := &concern{Kit: k, explanations: explanations, perChange: maxPerChange}
	return control.Concern{Name: "placement", Settle: settle, Keys: keys, Step: p.step}
}

// keys: a pod that waits, what makes room, and any change of a node or of what
// pods claim.
func keys(_ store.View, ev store.Event) []string {
	kind, _, _, _ := object.ParseKey(ev.KV.Key)
	switch kind.Name {
	case "Node", "PersistentVolumeClaim", "PersistentVolume":
		return []string{""}
	case "Pod":
		pod, ok := ev.KV.Object.(*balsav1.Pod)
		if !ok || waits(pod) || !object.PodActive(pod) {
			return []string{""}
		}
	}
	return nil
}

func (p *concern) step(ctx context.Context, _ []string) []loop.Again {
	v, err := p.View(ctx)
	if err != nil {
		return []loop.Again{{Err: err}}
	}
	view := p.viewOf(v)
	if !slices.ContainsFunc(view.Pods, waits) {
		p.explanations.set(nil)
		return nil
	}
	now := p.Clock.Now()
	a := Plan(view, now)
	for _, err := range a.Unreadable {
		p.Logger.Error("an object in the store cannot be read and is passed over by placement", "error", err)
	}
	p.explanations.set(a.Explanations)
	if a.Rewritten {
		p.explained = now
	}
	if err := p.commit(ctx, v, a); err != nil {
		return []loop.Again{{Err: err}}
	}
	if a.Again > 0 {
		return []loop.Again{{After: a.Again}}
	}
	return nil
}

func (p *concern) viewOf(v store.View) View {
	nodes, _ := object.KindByName("Node")
	pods, _ := object.KindByName("Pod")
	claims, _ := object.KindByName("PersistentVolumeClaim")
	volumes, _ := object.KindByName("PersistentVolume")
	return View{
		Claims:    control.Collect[*balsav1.PersistentVolumeClaim](v.Prefix(object.Prefix(claims, ""))),
		Volumes:   control.Collect[*balsav1.PersistentVolume](v.Prefix(object.Prefix(volumes, ""))),
		Nodes:     control.Collect[*balsav1.Node](v.Prefix(object.Prefix(nodes, ""))),
		Pods:      control.Collect[*balsav1.Pod](v.Prefix(object.Prefix(pods, ""))),
		Explained: p.explained,
	}
}

// commit writes bindings and explanations. A binding holds only while its pod
// and its node are as they were: nothing is bound to a node that was cordoned or
// lost in between.
func (p *concern) commit(ctx context.Context, v store.View, a Actions) error {
	var changes []*control.Change
	for pods := range slices.Chunk(a.Bind, p.perChange) {
		c := control.NewChange("bind pods")
		for _, pod := range pods {
			if err := c.Update(pod); err != nil {
				return err
			}
			c.Expect(nodeOf(v, pod))
			c.Then(func() {
				p.Events.Record(pod, object.EventNormal, ReasonScheduled, "placed on node "+pod.GetSpec().GetNodeName())
			})
		}
		changes = append(changes, c)
	}
	for pods := range slices.Chunk(a.Explain, p.perChange) {
		c := control.NewChange("explain pods that wait")
		for _, pod := range pods {
			if err := c.Update(pod); err != nil {
				return err
			}
			why := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionPodScheduled).GetMessage()
			c.Then(func() { p.Events.Record(pod, object.EventWarning, ReasonFailed, why) })
		}
		changes = append(changes, c)
	}
	err := errors.Join(p.CommitAll(ctx, changes)...)
	if errors.Is(err, control.ErrConflict) {
		p.perChange = max(1, p.perChange/2)
	} else {
		p.perChange = min(maxPerChange, p.perChange*2)
	}
	return err
}

func nodeOf(v store.View, pod *balsav1.Pod) *balsav1.Node {
	kind, _ := object.KindByName("Node")
	node, _ := control.Get[*balsav1.Node](v, object.Key(kind, "", pod.GetSpec().GetNodeName()))
	return node
}
