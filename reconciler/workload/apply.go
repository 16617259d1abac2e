package workload

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
)

// change makes one transaction of the actions. It holds only at the ReplicaSet's
// revision, also when that is not written itself.
func (w *concern) change(rs *balsav1.ReplicaSet, a Actions, now time.Time) (*control.Change, error) {
	c := control.NewChange(object.KeyOf(rs))
	c.Expect(rs)
	for _, pod := range a.Adopt {
		next := object.Clone(pod)
		next.Metadata.OwnerReferences = append(next.Metadata.OwnerReferences, object.NewControllerRef(rs))
		if err := c.Update(next); err != nil {
			return nil, err
		}
	}
	for _, pod := range a.Release {
		next := object.Clone(pod)
		next.Metadata.OwnerReferences = slices.DeleteFunc(next.Metadata.OwnerReferences, func(ref *balsav1.OwnerReference) bool {
			return ref.GetUid() == rs.GetMetadata().GetUid()
		})
		if err := c.Update(next); err != nil {
			return nil, err
		}
	}
	for range a.Create {
		pod, err := w.newPod(rs, now)
		if err != nil {
			return nil, err
		}
		if err := c.Create(pod); err != nil {
			return nil, err
		}
	}
	for _, pod := range a.End {
		if err := c.EndPod(pod, now); err != nil {
			return nil, err
		}
	}
	if err := evictions(c, a, now); err != nil {
		return nil, err
	}
	c.Then(func() { w.record(rs, a) })
	if a.Status != nil {
		next := object.Clone(rs)
		next.Status = a.Status
		return c, c.Update(next)
	}
	return c, nil
}

// evictions ends pods that were replaced, and takes them out of their budgets.
func evictions(c *control.Change, a Actions, now time.Time) error {
	for _, pod := range a.Evict {
		grace := object.EvictionGrace(pod)
		if pod.GetSpec().GetNodeName() == "" || object.PodFinished(pod) || grace == 0 {
			c.Delete(pod)
			continue
		}
		why, _, _ := strings.Cut(object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionEvictionRequested).GetMessage(), waitMark)
		next := object.DisruptionTarget(pod, why, now)
		next.Metadata.DeletionTimestamp, next.Metadata.DeletionGracePeriodSeconds = timestamppb.New(now), proto.Int64(grace)
		if err := c.Update(next); err != nil {
			return err
		}
	}
	for _, m := range slices.Concat(a.Explain, a.Withdraw) {
		if err := c.Update(m); err != nil {
			return err
		}
	}
	for _, b := range a.Pay {
		if err := c.Update(b); err != nil {
			return err
		}
	}
	for _, b := range a.Read {
		c.Expect(b)
	}
	return nil
}

// newPod makes a pod of the ReplicaSet's template.
func (w *concern) newPod(rs *balsav1.ReplicaSet, now time.Time) (*balsav1.Pod, error) {
	template := rs.GetSpec().GetTemplate()
	pod := &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{
			GenerateName: rs.GetMetadata().GetName() + "-", Namespace: rs.GetMetadata().GetNamespace(),
			Labels: maps.Clone(template.GetMetadata().GetLabels()), Annotations: maps.Clone(template.GetMetadata().GetAnnotations()),
			OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(rs)},
		},
		Spec: proto.CloneOf(template.GetSpec()),
	}
	if err := control.Stamp(pod, w.Rand, now); err != nil {
		return nil, fmt.Errorf("%s: make a pod: %w", object.Describe(rs), err)
	}
	return pod, nil
}

func (w *concern) record(rs *balsav1.ReplicaSet, a Actions) {
	if a.Create > 0 {
		w.Events.Record(rs, object.EventNormal, "PodsCreated", "created "+control.Counted(a.Create, "pod"))
	}
	for _, pod := range a.End {
		w.Events.Record(rs, object.EventNormal, "PodEnded", "ended pod "+pod.GetMetadata().GetName())
	}
	for _, pod := range a.Evict {
		w.Events.Record(pod, object.EventNormal, "Evicted", "ended, since its eviction was asked for and all replicas are available without it")
	}
	for _, pod := range a.Withdraw {
		w.Events.Record(pod, object.EventNormal, object.EvictionWithdrawn, "its eviction is withdrawn: its node takes pods again")
	}
}
