package rollout

import (
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// Budget is how many available pods of a Deployment may be ended at a view, over
// all its ReplicaSets. A plan's decision to shrink one may be late: a pod that
// was available then may have crashed since. guarded is false where nothing
// limits it: the Deployment recreates its pods, or is about to go.
func Budget(v store.View, d *balsav1.Deployment, now time.Time) (budget int32, guarded bool) {
	if d.GetSpec().GetStrategy().GetType() == object.StrategyRecreate || object.IsTerminating(d) {
		return 0, false
	}
	_, unavailable, err := object.RolloutBounds(d)
	if err != nil {
		return 0, false
	}
	available := int32(0)
	for _, s := range owned(v, d) {
		available += countSet(s, d.GetSpec().GetMinReadySeconds(), now).available
	}
	return max(0, available-(d.GetSpec().GetReplicas()-unavailable)), true
}

// owned reads the ReplicaSets that a Deployment controls, with their pods.
func owned(v store.View, d *balsav1.Deployment) (sets []Set) {
	for _, rs := range control.Collect[*balsav1.ReplicaSet](v.ByIndex(object.IndexOwner, d.GetMetadata().GetUid())) {
		if object.IsControlledBy(rs, d) {
			sets = append(sets, Set{ReplicaSet: rs, Pods: podsOf(v, rs)})
		}
	}
	return sets
}

func podsOf(v store.View, rs *balsav1.ReplicaSet) (pods []*balsav1.Pod) {
	for _, pod := range control.Collect[*balsav1.Pod](v.ByIndex(object.IndexOwner, rs.GetMetadata().GetUid())) {
		if object.IsControlledBy(pod, rs) {
			pods = append(pods, pod)
		}
	}
	return pods
}
