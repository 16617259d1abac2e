// Package rollout turns a Deployment into ReplicaSets, one a version of its pod
// template, and moves the replicas from the old ones to the new one.
//
// It promises, at every step and not only at the end: pods that are not about
// to go number at most replicas + maxSurge, and none that is available is ended
// while that would leave fewer than replicas - maxUnavailable available. It
// refuses to touch pods itself; reconciler/workload does, and asks Budget first.
package rollout

// Annotations and their writers are Kubernetes'.
const (
	// AnnotationRevision counts the versions of a Deployment's template, on its
	// ReplicaSets and on itself.
	AnnotationRevision = "deployment.kubernetes.io/revision"
	// AnnotationChangeCause is copied from the Deployment to its ReplicaSet, so
	// that the history of versions can say why.
	AnnotationChangeCause = "kubernetes.io/change-cause"
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
)
