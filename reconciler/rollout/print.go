package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
)

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	describe := func(verb string, rs *balsav1.ReplicaSet) {
		fmt.Fprintf(&b, "%s %s replicas=%d revision=%d\n", verb, rs.GetMetadata().GetName(), rs.GetSpec().GetReplicas(), revisions.Of(rs))
	}
	if a.Create != nil {
		describe("create", a.Create)
	}
	for _, c := range a.Copies {
		verb := "copy"
		if c.Have != nil {
			verb = "own"
		}
		fmt.Fprintf(&b, "%s %s as %s for %s\n", verb, c.Ref, c.Name, a.Owner.GetMetadata().GetName())
	}
	for _, rs := range a.Update {
		describe("update", rs)
	}
	for _, rs := range a.Delete {
		describe("delete", rs)
	}
	for _, key := range slices.Sorted(maps.Keys(a.Annotations)) {
		fmt.Fprintf(&b, "annotation %s %s\n", key, a.Annotations[key])
	}
	printStatus(&b, a.Status)
	for _, n := range a.Notes {
		fmt.Fprintf(&b, "event %s %s: %s\n", n.Type, n.Reason, n.Message)
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

func printStatus(b *strings.Builder, s *balsav1.DeploymentStatus) {
	if s == nil {
		return
	}
	fmt.Fprintf(b, "status replicas=%d updated=%d ready=%d available=%d unavailable=%d generation=%d\n",
		s.GetReplicas(), s.GetUpdatedReplicas(), s.GetReadyReplicas(), s.GetAvailableReplicas(), s.GetUnavailableReplicas(), s.GetObservedGeneration())
	if n := s.GetCollisionCount(); n > 0 {
		fmt.Fprintf(b, "collisions %d\n", n)
	}
	for _, c := range s.GetConditions() {
		fmt.Fprintf(b, "condition %s=%s %s: %s\n", c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage())
	}
	if f := s.GetFailedRollout(); f != nil {
		fmt.Fprintf(b, "failed %s revision=%d running=%d %s: %s\n", f.GetReplicaSet(), f.GetRevision(), f.GetRunningRevision(), f.GetReason(), f.GetMessage())
	}
}
