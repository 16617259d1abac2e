package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Reports and events that go into one transaction; the store bounds its ops.
const (
	podsPerTxn   = 60
	eventsPerTxn = 60
)

// Why a report was not taken.
const (
	rejectGone     = "NotFound"         // the pod does not exist; clean up
	rejectOther    = "OtherPod"         // another pod has the name now
	rejectNode     = "OtherNode"        // the pod is not of this node
	rejectOlder    = "Older"            // a newer report is recorded
	rejectFinal    = "Final"            // the pod has ended; its phase stays
	rejectKept     = "DeletionNotAsked" // removed, but nobody asked for that
	rejectNoStatus = "NoStatus"
	rejectInvalid  = "Invalid"
)

// ReportStatus writes what a node says about its pods. It never makes a pod: a
// report about one that is gone changes nothing.
func (n nodeService) ReportStatus(ctx context.Context, req *balsav1.ReportStatusRequest) (*balsav1.ReportStatusResponse, error) {
	if err := ownNode(ctx, req.GetNodeName()); err != nil {
		return nil, err
	}
	if len(req.GetPods()) > n.limits.ReportPods {
		return nil, overLimit("ReportPods", n.limits.ReportPods, "report in parts", "%d pods in one report", len(req.GetPods()))
	}
	if len(req.GetEvents()) > n.limits.ReportEvents {
		return nil, overLimit("ReportEvents", n.limits.ReportEvents, "report in parts", "%d events in one report", len(req.GetEvents()))
	}
	if len(req.GetDeletedVolumes()) > n.limits.ReportPods {
		return nil, overLimit("ReportPods", n.limits.ReportPods, "report in parts", "%d volumes in one report", len(req.GetDeletedVolumes()))
	}
	res := &balsav1.ReportStatusResponse{}
	// Events first: afterwards their pod may be gone.
	for part := range slices.Chunk(req.GetEvents(), eventsPerTxn) {
		rejected, err := n.recordEvents(ctx, req.GetNodeName(), part)
		if err != nil {
			return nil, err
		}
		res.Rejected = append(res.Rejected, rejected...)
	}
	for part := range slices.Chunk(req.GetPods(), podsPerTxn) {
		rejected, err := n.recordPods(ctx, req.GetNodeName(), part)
		if err != nil {
			return nil, err
		}
		res.Rejected = append(res.Rejected, rejected...)
	}
	return res, n.removeVolumes(ctx, req.GetNodeName(), req.GetDeletedVolumes())
}

// removeVolumes takes away volumes whose contents their node has removed, as it
// was asked to. Anything else it says of a volume changes nothing.
func (n nodeService) removeVolumes(ctx context.Context, node string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	kind, _ := object.KindByName("PersistentVolume")
	for part := range slices.Chunk(names, podsPerTxn) {
		_, err := n.write(ctx, store.SpaceObjects, false, func(view store.View, _ time.Time) (*change, error) {
			c := &change{space: store.SpaceObjects}
			seen := map[string]bool{}
			for _, name := range part {
				kv, _ := view.Get(object.Key(kind, "", name))
				live, ok := kv.Object.(*balsav1.PersistentVolume)
				if ok && !seen[name] && reclaimed(live, node) {
					c.expect(kv.Key, kv.ModRevision)
					c.remove(kv.Key)
				}
				seen[name] = true
			}
			return c, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// reclaimed tells whether a node was to remove a volume's contents.
func reclaimed(v *balsav1.PersistentVolume, node string) bool {
	return object.VolumeNode(v.GetSpec()) == node && v.GetStatus().GetPhase() == object.VolumeReleased &&
		v.GetSpec().GetPersistentVolumeReclaimPolicy() == object.ReclaimDelete
}

func (n nodeService) recordPods(ctx context.Context, node string, reports []*balsav1.PodReport) ([]*balsav1.RejectedReport, error) {
	var rejected []*balsav1.RejectedReport
	_, err := n.write(ctx, store.SpaceObjects, false, func(view store.View, _ time.Time) (*change, error) {
		c := &change{space: store.SpaceObjects}
		rejected = nil
		seen := map[string]bool{}
		for _, r := range reports {
			reason := rejectOlder // a pod is reported once a request
			if !seen[r.GetUid()] {
				seen[r.GetUid()] = true
				var err error
				if reason, err = n.planReport(c, view, node, r); err != nil {
					return nil, err
				}
			}
			if reason != "" {
				rejected = append(rejected, &balsav1.RejectedReport{Uid: r.GetUid(), Reason: reason})
			}
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	for _, r := range reports {
		n.reports.took(node, r)
	}
	return rejected, nil
}

// planReport adds one report to a change, or says why it is not taken.
func (n nodeService) planReport(c *change, view store.View, node string, r *balsav1.PodReport) (reason string, err error) {
	kind, _ := object.KindByName("Pod")
	kv, there := view.Get(object.Key(kind, r.GetNamespace(), r.GetName()))
	live, _ := kv.Object.(*balsav1.Pod)
	gone := !there || live.GetMetadata().GetUid() != r.GetUid()
	switch {
	case gone && r.GetRemoved():
		return "", nil // as it should be
	case !there:
		return rejectGone, nil
	case gone:
		return rejectOther, nil
	case live.GetSpec().GetNodeName() != node:
		return rejectNode, nil
	case r.GetRemoved() && !object.IsTerminating(live):
		return rejectKept, nil
	case r.GetRemoved():
		c.expect(kv.Key, kv.ModRevision)
		c.remove(kv.Key)
		return "", nil
	}
	if reason := n.stale(node, live, r); reason != "" {
		return reason, nil
	}
	return n.planStatusReport(c, kv, live, r)
}

// stale refuses what would take a pod's status back in time.
func (n nodeService) stale(node string, live *balsav1.Pod, r *balsav1.PodReport) string {
	said, have := r.GetStatus(), live.GetStatus()
	switch {
	case said == nil:
		return rejectNoStatus
	case n.reports.older(node, r), said.GetObservedGeneration() < have.GetObservedGeneration():
		return rejectOlder
	case object.PodFinished(live) && said.GetPhase() != have.GetPhase():
		return rejectFinal
	}
	return ""
}

func (n nodeService) planStatusReport(c *change, kv store.KV, live *balsav1.Pod, r *balsav1.PodReport) (string, error) {
	next := object.Clone(live)
	next.Status = proto.CloneOf(r.GetStatus())
	for _, condition := range live.GetStatus().GetConditions() {
		// Those that the node does not speak of have other writers.
		if object.FindCondition(next.Status.Conditions, condition.GetType()) == nil {
			next.Status.Conditions = append(next.Status.Conditions, condition)
		}
	}
	if object.Same(live, next) {
		return "", nil
	}
	if violations := object.ValidateUpdate(live, next, object.System); len(violations) > 0 {
		return rejectInvalid + ": " + violations[0].String(), nil
	}
	c.expect(kv.Key, kv.ModRevision)
	return "", n.putObject(c, next)
}

// reportOrder remembers, in this server's memory, which revision of a pod the
// newest report speaks of, so that one that was under way for long does not
// overwrite it. It is a hint: the store's preconditions, the generation and the
// final phases guard what must not happen, and an agent that sees an old status
// reports again.
type reportOrder struct {
	mu   sync.Mutex
	seen map[reported]int64 // guarded by mu
}

// reported is a pod as one node speaks of it: no node can age another's reports.
type reported struct{ node, uid string }

// reportOrderMax bounds the memory; beyond it everything is forgotten.
const reportOrderMax = 100_000

func newReportOrder() *reportOrder { return &reportOrder{seen: map[reported]int64{}} }

func (o *reportOrder) older(node string, r *balsav1.PodReport) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return r.GetObservedRevision() < o.seen[reported{node, r.GetUid()}]
}

func (o *reportOrder) took(node string, r *balsav1.PodReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := reported{node, r.GetUid()}
	if r.GetRemoved() {
		delete(o.seen, key)
		return
	}
	if len(o.seen) >= reportOrderMax {
		clear(o.seen)
	}
	o.seen[key] = max(o.seen[key], r.GetObservedRevision())
}

// recordEvents counts events that say the same into one.
func (n nodeService) recordEvents(ctx context.Context, node string, said []*balsav1.Event) ([]*balsav1.RejectedReport, error) {
	var rejected []*balsav1.RejectedReport
	var events []*balsav1.Event
	byName := map[string]*balsav1.Event{}
	for _, e := range said {
		if reason := n.eventOfNode(node, e); reason != "" {
			rejected = append(rejected, &balsav1.RejectedReport{Uid: e.GetInvolvedObject().GetUid(), Reason: reason})
			continue
		}
		e = named(node, e)
		key := object.KeyOf(e)
		if first := byName[key]; first != nil {
			first.Count += e.GetCount()
			continue
		}
		byName[key] = e
		events = append(events, e)
	}
	var invalid []*balsav1.RejectedReport
	_, err := n.write(ctx, store.SpaceEvents, false, func(view store.View, now time.Time) (*change, error) {
		c := &change{space: store.SpaceEvents}
		invalid = nil
		for _, e := range events {
			reason, err := n.planEvent(c, view, e, now)
			if err != nil {
				return nil, err
			}
			if reason != "" {
				invalid = append(invalid, &balsav1.RejectedReport{Uid: e.GetInvolvedObject().GetUid(), Reason: reason})
			}
		}
		return c, nil
	})
	return append(rejected, invalid...), err
}

// eventOfNode takes events about the node itself and about its pods.
func (n nodeService) eventOfNode(node string, e *balsav1.Event) string {
	about := e.GetInvolvedObject()
	switch about.GetKind() {
	case "Node":
		if about.GetName() == node {
			return ""
		}
	case "Pod":
		kind, _ := object.KindByName("Pod")
		kv, ok := n.store.Space(kind.Space).View().Get(object.Key(kind, about.GetNamespace(), about.GetName()))
		if !ok {
			return rejectGone
		}
		if pod, _ := kv.Object.(*balsav1.Pod); pod.GetSpec().GetNodeName() == node {
			return ""
		}
	}
	return rejectNode
}

// named gives an event the name that all events saying the same have.
func named(node string, e *balsav1.Event) *balsav1.Event {
	e = object.Clone(e)
	about := e.GetInvolvedObject()
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q %q %q", node, about.GetKind(), about.GetUid(), about.GetFieldPath(), e.GetReason(), e.GetType(), e.GetMessage()))
	const longest = 200
	name := about.GetName()
	if len(name) > longest {
		name = name[:longest]
	}
	e.Metadata = &balsav1.ObjectMeta{Name: name + "." + hex.EncodeToString(sum[:8]), Namespace: about.GetNamespace()}
	if e.Metadata.Namespace == "" {
		e.Metadata.Namespace = object.DefaultNamespace
	}
	if e.Source == nil {
		e.Source = &balsav1.EventSource{Component: "agent"}
	}
	e.Source.Host = node
	e.Count = max(e.GetCount(), 1)
	return e
}

func (n nodeService) planEvent(c *change, view store.View, e *balsav1.Event, now time.Time) (reason string, err error) {
	kv, again := view.Get(object.KeyOf(e))
	next := object.Clone(e)
	if next.LastTimestamp == nil {
		next.LastTimestamp = timestamppb.New(now)
	}
	if next.FirstTimestamp == nil {
		next.FirstTimestamp = next.LastTimestamp
	}
	object.Default(next)
	if live, ok := kv.Object.(*balsav1.Event); again && ok {
		next.Metadata = object.Clone(live).Metadata
		next.Count = live.GetCount() + e.GetCount()
		next.FirstTimestamp = live.GetFirstTimestamp()
	} else {
		uid, err := object.NewUID(rand.Reader)
		if err != nil {
			return "", err
		}
		object.Stamp(next, uid, now)
	}
	if violations := object.Validate(next, object.System); len(violations) > 0 {
		return rejectInvalid + ": " + violations[0].String(), nil
	}
	c.expect(object.KeyOf(next), kv.ModRevision)
	return "", n.putObject(c, next)
}
