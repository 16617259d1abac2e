package object

import (
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// AnnotationDrainConnections of a pod is how long its end waits for open
// connections to finish, once no new ones come: a duration such as "10s".
const AnnotationDrainConnections = "balsa.run/drain-connections"

const (
	// DefaultDrainConnections is the wait of a pod without the annotation.
	DefaultDrainConnections = 2 * time.Second
	// MaxDrainConnections is the longest wait that the annotation may ask for.
	MaxDrainConnections = time.Minute
)

// DrainConnections is how long the end of a pod waits for open connections.
func DrainConnections(pod *balsav1.Pod) time.Duration {
	text, given := pod.GetMetadata().GetAnnotations()[AnnotationDrainConnections]
	if !given {
		return DefaultDrainConnections
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > MaxDrainConnections {
		return DefaultDrainConnections // written before it was checked
	}
	return d
}

// drainConnections checks the annotation, of a pod or of a template.
func (c *check) drainConnections(path string, meta *balsav1.ObjectMeta) {
	text, given := meta.GetAnnotations()[AnnotationDrainConnections]
	if !given {
		return
	}
	if d, err := time.ParseDuration(text); err != nil || d < 0 || d > MaxDrainConnections {
		c.add(Violation{
			Field: field(path, "annotations["+AnnotationDrainConnections+"]"), Message: "is no duration in range", Found: text,
			Allowed: "0s to " + MaxDrainConnections.String(), Hint: `for example "10s"`,
		})
	}
}

// Annotations that Kubernetes' network plug-ins shape a pod's traffic by. Nothing
// here does, so that they are refused.
var bandwidthAnnotations = []string{"kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"}

// bandwidth is for what users write: a node must be able to report on what was
// stored before this was refused.
func (c *check) bandwidth(path string, meta *balsav1.ObjectMeta) {
	if c.writer != User {
		return
	}
	for _, name := range bandwidthAnnotations {
		if text, given := meta.GetAnnotations()[name]; given {
			c.add(Violation{Field: field(path, "annotations["+name+"]"), Message: "not supported yet: traffic is not shaped", Found: quoted(text), Allowed: "no such annotation", Hint: "remove it"})
		}
	}
}
