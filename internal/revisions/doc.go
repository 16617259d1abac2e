// Package revisions knows what a Deployment and its ReplicaSets say of revisions,
// and how a revision holds on to the ConfigMaps and Secrets of its pod template:
// which names a template refers to, how they are replaced, and what the
// annotations say that record it. The reconciler writes them, the command line
// reads them and writes them back.
//
// It is pure, decides nothing, and refuses to touch pull secrets: a node needs
// the credentials of today to pull an image of last year.
package revisions

const (
	// AnnotationRevision counts the versions of a Deployment's template, on its
	// ReplicaSets and on itself. It and the next are Kubernetes'.
	AnnotationRevision = "deployment.kubernetes.io/revision"
	// AnnotationChangeCause is copied from the Deployment to its ReplicaSet, so
	// that the history of versions can say why.
	AnnotationChangeCause = "kubernetes.io/change-cause"
	// AnnotationComplete is on a ReplicaSet that once had all its Deployment's
	// replicas available: a rollout that fails may go back to it.
	AnnotationComplete = "balsa.run/complete"
	// AnnotationRetry is on a Deployment: the failure that a person has seen and
	// wants tried again, see Failure.
	AnnotationRetry = "balsa.run/retry"
	// AnnotationPins is on a ReplicaSet: which copy stands for which object, as JSON
	// {"ConfigMap/web": "web-3fa9d81c07"}. An empty name: the object was required
	// and not there, and the template refers to it by its own name.
	AnnotationPins = "balsa.run/pins"
	// AnnotationPinned is on a Deployment that was undone: which copies are used in
	// the place of the live objects, and until when. See Override.
	AnnotationPinned = "balsa.run/pinned"
	// LabelPinnedFrom is on a copy: the name of what it is a copy of, see LabelValue.
	LabelPinnedFrom = "balsa.run/pinned-from"
)

// Kinds of what can be pinned.
const (
	ConfigMap = "ConfigMap"
	Secret    = "Secret"
)

// hashLength is how many hex digits of a content's hash the name of a copy ends
// with.
const hashLength = 10
