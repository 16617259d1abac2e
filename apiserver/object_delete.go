package apiserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Values of DeleteRequest.propagation_policy.
const (
	propagationBackground = "Background"
	propagationOrphan     = "Orphan"
)

// Delete removes an object. A pod that runs is marked and goes once its node has
// ended it; a namespace is marked and goes once it is empty; so is a claim, or a
// volume, and goes once nothing uses it.
func (o objectService) Delete(ctx context.Context, req *balsav1.DeleteRequest) (*balsav1.DeleteResponse, error) {
	kind, namespace, err := target(req.GetKind(), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	about(ctx, keyOf(kind, namespace, req.GetName()))
	if err := checkDelete(kind, req); err != nil {
		return nil, err
	}
	id, _ := pki.IdentityFrom(ctx)
	if err := mayWrite(id, kind); err != nil {
		return nil, err
	}
	c, err := o.write(ctx, kind.Space, req.GetDryRun(), func(view store.View, now time.Time) (*change, error) {
		return o.planDelete(view, kind, namespace, req, now)
	})
	if err != nil {
		return nil, err
	}
	o.finishWrite(ctx, c, req.GetDryRun())
	res := &balsav1.DeleteResponse{Deleted: c.outcome == outcomeDeleted}
	if res.Object, err = o.shown(ctx, c.result); err != nil {
		// A Secret that cannot be opened can be deleted all the same.
		if secret, ok := c.result.(*balsav1.Secret); ok {
			res.Object, err = object.Wrap(withheld(secret)), nil
		}
	}
	return res, err
}

func checkDelete(kind object.Kind, req *balsav1.DeleteRequest) error {
	if kind.Name == "Namespace" && req.GetName() == object.DefaultNamespace {
		return &problem{
			code: connect.CodeFailedPrecondition, reason: "Protected", applied: notApplied, object: keyOf(kind, "", req.GetName()),
			hint: "delete what is in it instead",
			err:  fmt.Errorf("namespace %q cannot be deleted: it is where objects go that name none", req.GetName()),
		}
	}
	if g := req.GracePeriodSeconds; g != nil && (*g < 0 || kind.Name != "Pod") {
		return invalid("gracePeriodSeconds", "leave it out", "found %d for a %s: only pods have a grace period, of 0 seconds or more", *g, kind.Singular)
	}
	if p := req.GetPropagationPolicy(); p != "" && p != propagationBackground && p != propagationOrphan {
		return invalid("propagationPolicy", "use Background or Orphan", "found %q", clip(p))
	}
	return nil
}

func (s *Server) planDelete(view store.View, kind object.Kind, namespace string, req *balsav1.DeleteRequest, now time.Time) (*change, error) {
	live, kv, err := lookup(view, kind, namespace, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := precondition(live, req.GetUid(), req.GetResourceVersion()); err != nil {
		return nil, err
	}
	c := &change{space: kind.Space}
	c.expect(kv.Key, kv.ModRevision)
	switch m := live.(type) {
	case *balsav1.Pod:
		if waits, grace := podWaits(view, m, req); waits {
			return s.markPod(c, m, grace, now)
		}
	case *balsav1.Namespace:
		return s.markNamespace(c, m, now)
	case *balsav1.PersistentVolumeClaim, *balsav1.PersistentVolume:
		return s.markStorage(c, live, now)
	case *balsav1.Service:
		releaseService(c, m, nil)
	case *balsav1.Node:
		err = releasePodCIDR(c, m.GetSpec().GetPodCidr())
	}
	if err == nil && req.GetPropagationPolicy() == propagationOrphan {
		err = s.orphan(c, view, live)
	}
	if err != nil {
		return nil, err
	}
	c.remove(kv.Key)
	c.result, c.outcome = object.Clone(live), outcomeDeleted
	return c, nil
}

// podWaits tells whether a pod must be ended by its node first, and how long
// that may take. Who waits for nothing goes at once: a pod that is on no node,
// or on one that is gone, or has ended.
func podWaits(view store.View, pod *balsav1.Pod, req *balsav1.DeleteRequest) (bool, int64) {
	grace := pod.GetSpec().GetTerminationGracePeriodSeconds()
	if req.GracePeriodSeconds != nil {
		grace = req.GetGracePeriodSeconds()
	}
	node := pod.GetSpec().GetNodeName()
	if grace == 0 || node == "" || object.PodFinished(pod) {
		return false, 0
	}
	nodeKind, _ := object.KindByName("Node")
	_, there := view.Get(object.Key(nodeKind, "", node))
	return there, grace
}

// markPod asks the node to end the pod. A second deletion may only shorten the
// time that the first one gave.
func (s *Server) markPod(c *change, live *balsav1.Pod, grace int64, now time.Time) (*change, error) {
	next := object.Clone(live)
	c.result, c.outcome = next, outcomeMarked
	meta := next.GetMetadata()
	if object.IsTerminating(live) && meta.GetDeletionGracePeriodSeconds() <= grace {
		c.compares = nil
		return c, nil
	}
	if meta.DeletionTimestamp == nil {
		meta.DeletionTimestamp = timestamppb.New(now)
	}
	meta.DeletionGracePeriodSeconds = &grace
	return c, s.putObject(c, next)
}

// markNamespace lets nothing new in; the servers delete what is in it, and then
// the namespace itself.
func (s *Server) markNamespace(c *change, live *balsav1.Namespace, now time.Time) (*change, error) {
	next := object.Clone(live)
	c.result, c.outcome = next, outcomeMarked
	if object.IsTerminating(live) {
		c.compares = nil
		return c, nil
	}
	next.GetMetadata().DeletionTimestamp = timestamppb.New(now)
	if next.Status == nil {
		next.Status = &balsav1.NamespaceStatus{}
	}
	next.Status.Phase = object.NamespaceTerminating
	return c, s.putObject(c, next)
}

// markStorage lets the servers delete a claim or a volume once nothing uses it.
func (s *Server) markStorage(c *change, live object.Message, now time.Time) (*change, error) {
	next := object.Clone(live)
	c.result, c.outcome = next, outcomeMarked
	if object.IsTerminating(live) {
		c.compares = nil
		return c, nil
	}
	next.GetMetadata().DeletionTimestamp = timestamppb.New(now)
	return c, s.putObject(c, next)
}

// orphan takes the owner out of what it owns, in the transaction that deletes
// it, so that nothing of it is collected.
func (s *Server) orphan(c *change, view store.View, owner object.Message) error {
	children := 0
	for kv := range view.ByIndex(object.IndexOwner, owner.GetMetadata().GetUid()) {
		if children++; children > s.limits.OrphanChildren {
			return overLimit("OrphanChildren", s.limits.OrphanChildren, "scale it down first, or delete with propagation Background",
				"%s owns more objects than one deletion can set free", object.Describe(owner))
		}
		child, err := messageOf(kv)
		if err != nil {
			return err
		}
		value, err := withoutOwner(child, owner)
		if err != nil {
			return err
		}
		c.expect(kv.Key, kv.ModRevision)
		c.put(kv.Key, value)
	}
	return nil
}

// withoutOwner does not open sealed values: nothing but metadata changes.
func withoutOwner(child, owner object.Message) ([]byte, error) {
	next := object.Clone(child)
	meta := next.GetMetadata()
	meta.OwnerReferences = slices.DeleteFunc(meta.OwnerReferences, func(r *balsav1.OwnerReference) bool {
		return r.GetUid() == owner.GetMetadata().GetUid()
	})
	return object.Encode(next)
}
