package revisions

import (
	"strconv"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Annotated is what has annotations.
type Annotated interface{ GetMetadata() *balsav1.ObjectMeta }

// Of reads the revision of a Deployment or ReplicaSet; 0 without one.
func Of(m Annotated) int64 {
	n, err := strconv.ParseInt(m.GetMetadata().GetAnnotations()[AnnotationRevision], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Failure names one failure of a rollout: a later one of the same ReplicaSet has
// another name.
func Failure(f *balsav1.FailedRollout) string {
	return f.GetReplicaSet() + "@" + f.GetTime().AsTime().UTC().Format(time.RFC3339Nano)
}
