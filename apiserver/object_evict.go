package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// maxEvictReason bounds what a caller says of why a pod is evicted.
const maxEvictReason = 256

// outcomeReplacing: the pod stays until another is available.
const outcomeReplacing = "marked for replacement"

// Evict ends a pod on purpose. One that serves and can be replaced first is only
// marked: reconciler/workload makes another, and ends this one within its budgets
// when that is available. Any other ends now, if its budgets allow it: what they
// allow is taken out of them in the transaction that ends the pod, so that
// evictions that come together never overshoot.
func (o objectService) Evict(ctx context.Context, req *balsav1.EvictRequest) (*balsav1.EvictResponse, error) {
	kind, namespace, err := target("Pod", req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	about(ctx, keyOf(kind, namespace, req.GetName()))
	if g := req.GracePeriodSeconds; g != nil && (*g < 0 || *g > maxEvictGrace) {
		return nil, invalid("gracePeriodSeconds", "leave it out for the pod's own", "found %d, allowed: 0 to %d", *g, int64(maxEvictGrace))
	}
	if len(req.GetReason()) > maxEvictReason {
		return nil, invalid("reason", "say it in fewer words", "it has %d bytes, at most %d are allowed", len(req.GetReason()), maxEvictReason)
	}
	c, err := o.write(ctx, kind.Space, req.GetDryRun(), func(view store.View, now time.Time) (*change, error) {
		return o.planEvict(view, namespace, req, now)
	})
	if err != nil {
		return nil, err
	}
	o.finishWrite(ctx, c, req.GetDryRun())
	pod, ok := c.result.(*balsav1.Pod)
	if !ok {
		return nil, fmt.Errorf("evict %s/%s: it is a %T", namespace, req.GetName(), c.result)
	}
	return &balsav1.EvictResponse{Pod: pod, Replacing: c.outcome == outcomeReplacing}, nil
}

// maxEvictGrace is the longest grace period that a pod's spec may name, a year.
const maxEvictGrace = 365 * 24 * 3600

func (s *Server) planEvict(view store.View, namespace string, req *balsav1.EvictRequest, now time.Time) (*change, error) {
	kind, _ := object.KindByName("Pod")
	live, kv, err := lookup(view, kind, namespace, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := precondition(live, req.GetUid(), ""); err != nil {
		return nil, err
	}
	pod, ok := live.(*balsav1.Pod)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T", kv.Key, live)
	}
	c := &change{space: kind.Space}
	c.expect(kv.Key, kv.ModRevision)
	if !object.IsTerminating(pod) && s.replaceFirst(view, pod) {
		return s.requestEviction(c, view, pod, req, now)
	}
	if err := s.spendBudgets(c, view, pod, now); err != nil {
		return nil, err
	}
	return s.evictNow(c, view, pod, req, now)
}

// replaceFirst tells whether another pod can be made before this one ends.
func (s *Server) replaceFirst(view store.View, pod *balsav1.Pod) bool {
	ns, _ := object.KindByName("Namespace")
	if m, _, err := lookup(view, ns, "", pod.GetMetadata().GetNamespace()); err != nil || object.IsTerminating(m) {
		return false
	}
	rs := controllerOf[*balsav1.ReplicaSet](view, pod, "ReplicaSet")
	if rs == nil {
		return false
	}
	return object.ReplaceFirst(pod, rs, controllerOf[*balsav1.Deployment](view, rs, "Deployment"))
}

// controllerOf is what controls an object, if it is of a kind; else nil.
func controllerOf[M object.Message](view store.View, m object.Message, kindName string) (none M) {
	ref := object.ControllerOf(m)
	if ref.GetKind() != kindName {
		return none
	}
	kind, _ := object.KindByName(kindName)
	found, _, err := lookup(view, kind, m.GetMetadata().GetNamespace(), ref.GetName())
	owner, ok := found.(M)
	if err != nil || !ok || found.GetMetadata().GetUid() != ref.GetUid() {
		return none
	}
	return owner
}

func (s *Server) requestEviction(c *change, view store.View, pod *balsav1.Pod, req *balsav1.EvictRequest, now time.Time) (*change, error) {
	reason, message := object.EvictionAsked, "asked for by a user"
	nodes, _ := object.KindByName("Node")
	if m, _, err := lookup(view, nodes, "", pod.GetSpec().GetNodeName()); err == nil {
		if node, ok := m.(*balsav1.Node); ok && node.GetSpec().GetUnschedulable() {
			reason = object.EvictionOfNode
		}
	}
	if req.GetReason() != "" {
		message = req.GetReason()
	}
	next := object.RequestEviction(pod, reason, message, req.GracePeriodSeconds, now)
	c.result, c.outcome = next, outcomeReplacing
	if had := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested); had.GetStatus() == object.ConditionTrue &&
		object.EvictionGrace(pod) == object.EvictionGrace(next) && had.GetReason() == reason {
		// Asked for again: what is waited for may stand in the message by now.
		c.result, c.compares = object.Clone(pod), nil
		return c, nil
	}
	return c, s.putObject(c, next)
}

// spendBudgets makes the change pay for the pod's end, or refuses it.
func (s *Server) spendBudgets(c *change, view store.View, pod *balsav1.Pod, now time.Time) error {
	kind, _ := object.KindByName("PodDisruptionBudget")
	var budgets []*balsav1.PodDisruptionBudget
	revisions := map[string]store.Revision{}
	for kv := range view.Prefix(object.Prefix(kind, pod.GetMetadata().GetNamespace())) {
		if b, ok := kv.Object.(*balsav1.PodDisruptionBudget); ok {
			budgets = append(budgets, b)
			revisions[kv.Key] = kv.ModRevision
		}
	}
	read, spent, err := object.SpendBudgets(pod, budgets, now)
	if err != nil {
		return overBudget(pod, err)
	}
	for _, b := range read {
		c.expect(object.KeyOf(b), revisions[object.KeyOf(b)])
	}
	for _, b := range spent {
		if err := s.putObject(c, b); err != nil {
			return err
		}
	}
	return nil
}

// overBudget is the refusal that Kubernetes gives with the status 429, as Connect
// does for this code.
func overBudget(pod *balsav1.Pod, err error) error {
	var budget *object.BudgetError
	if !errors.As(err, &budget) {
		return err
	}
	p := &problem{
		code: connect.CodeResourceExhausted, reason: "DisruptionBudget", applied: notApplied, object: keyOfMessage(budget.Budget),
		hint: "try again in 10 s, make more pods of it ready, or relax the budget; deleting the pod passes budgets by",
		err:  fmt.Errorf("%s cannot be evicted now: %w", object.Describe(pod), err),
	}
	if budget.Soon {
		p.hint = "try again in a second"
	}
	return p
}

// evictNow ends the pod as a deletion does.
func (s *Server) evictNow(c *change, view store.View, pod *balsav1.Pod, req *balsav1.EvictRequest, now time.Time) (*change, error) {
	waits, grace := podWaits(view, pod, &balsav1.DeleteRequest{GracePeriodSeconds: req.GracePeriodSeconds})
	if !waits {
		c.remove(object.KeyOf(pod))
		c.result, c.outcome = object.Clone(pod), outcomeDeleted
		return c, nil
	}
	why := req.GetReason()
	if why == "" {
		why = "evicted by a user"
	}
	if !object.IsTerminating(pod) {
		pod = object.DisruptionTarget(pod, why, now)
	}
	return s.markPod(c, pod, grace, now)
}
