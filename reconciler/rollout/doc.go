// Package rollout turns a Deployment into ReplicaSets, one a version of its pod
// template and of the ConfigMaps and Secrets that this refers to, and moves the
// replicas from the old ones to the new one. A rollout that makes no progress is
// taken back, or left as it is, as the Deployment says.
//
// It promises, at every step and not only at the end: pods that are not about
// to go number at most replicas + maxSurge, and none that is available is ended
// while that would leave fewer than replicas - maxUnavailable available. The
// pods of one revision see the same bytes, whenever they start. It refuses to
// touch pods itself; reconciler/workload does, and asks Budget first. It never
// writes an object that a user made, but for the Deployment's annotations and
// status.
package rollout

import "github.com/balsa-run/balsa/internal/revisions"

// Annotations that others read as well.
const (
	AnnotationRevision    = revisions.AnnotationRevision
	AnnotationChangeCause = revisions.AnnotationChangeCause
)

const (
	// annotationDesired and annotationMax are Kubernetes': for how many replicas,
	// and for how many pods with surge, an active ReplicaSet was scaled.
	annotationDesired = "deployment.kubernetes.io/desired-replicas"
	annotationMax     = "deployment.kubernetes.io/max-replicas"
	// annotationProgress is on a Deployment: the best that its rollout has come to,
	// see mark.
	annotationProgress = "balsa.run/progress"
)

// Reasons of the conditions.
const (
	ReasonAvailable        = "MinimumReplicasAvailable"
	ReasonUnavailable      = "MinimumReplicasUnavailable"
	ReasonNewReplicaSet    = "NewReplicaSetCreated"
	ReasonFoundReplicaSet  = "FoundNewReplicaSet"
	ReasonUpdated          = "ReplicaSetUpdated"
	ReasonComplete         = "NewReplicaSetAvailable"
	ReasonDeadlineExceeded = "ProgressDeadlineExceeded"
	ReasonPaused           = "DeploymentPaused"
	ReasonResumed          = "DeploymentResumed"
	// ReasonRollingBack and ReasonRolledBack: the rollout failed, and an earlier
	// revision is about to run again, or does.
	ReasonRollingBack = "RollingBack"
	ReasonRolledBack  = "RolledBack"
	// ReasonRetried: a person had a failed rollout tried again.
	ReasonRetried = "RolloutRetried"
	// ReasonNotPinned: what the template refers to cannot be pinned, so that nothing
	// is rolled out.
	ReasonNotPinned = "ContentsNotPinned"
)
