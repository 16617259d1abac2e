package pod

import (
	"net/netip"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// View is all that a step looks at. What it points to is shared and frozen.
type View struct {
	Now time.Time
	UID string
	// Pod is as assigned; nil: nobody wants it (any more), but the node holds
	// something of it.
	Pod *balsav1.Pod
	// Revision of the set that the pod, or its absence, was read from.
	Revision int64
	Node     Node
	Sources  Sources
	// Runtime is nil when nothing of the pod exists.
	Runtime *runtime.PodState
	// IP is the pod's address once this process has connected it.
	IP netip.Addr
	// Images by the container that wants them.
	Images map[string]Image
	// Probes by container.
	Probes map[string]ProbeState
	// InService: connections to a service may still be sent to the pod.
	InService bool
	// Refusal is set when the node has no room for the pod.
	Refusal *Refusal
	// HostsPath is where the agent keeps the pod's hosts file; empty: nowhere.
	HostsPath string
	Memory    Memory
}

// Node is what pods need to know of where they run.
type Node struct {
	Name        string
	IP          netip.Addr
	DNS         netip.Addr
	Domain      string
	MemoryBytes int64
}

// Sources hold the ConfigMaps and Secrets of the pod's namespace by name.
type Sources struct {
	ConfigMaps map[string]*balsav1.ConfigMap
	Secrets    map[string]*balsav1.Secret
}

// Image is what is known of an image that a container wants.
type Image struct {
	// Ready: Image can be run.
	Ready bool
	Image runtime.Image
	// Reason and Message say why it is not; empty while nothing has been tried.
	Reason  string
	Message string
}

// Refusal is why a pod will never run here.
type Refusal struct {
	Reason  string
	Message string
}

// Plan is the outcome of a step.
type Plan struct {
	// Actions are to be carried out in order. None: the pod waits for
	// something outside, or for Wake.
	Actions []Action
	// Status is what to report; nil when there is no pod to report on.
	Status *balsav1.PodStatus
	// Removed: nothing of the pod is left, and its end was asked for.
	Removed bool
	// Memory replaces that of the view.
	Memory Memory
	Events []Event
	// Images that containers wait for, and Probes that are to be asked.
	Images []ImageWant
	Probes []Probe
	// Wake is when to look again if nothing happens; zero: no need.
	Wake time.Time
}

// ImageWant is an image that a container waits for.
type ImageWant struct {
	Name string
	// LocalOnly: the servers must not be asked.
	LocalOnly bool
	// First: the container has never run.
	First bool
}

// Event is something worth telling the user.
type Event struct {
	Warning bool
	Reason  string
	Message string
	// Container is the name of the one that it is about, or empty.
	Container string
}

// Paces of a pod's life; those of restarts are Kubernetes'
// (kubelet: initialContainerBackoff, MaxContainerBackOff).
const (
	restartDelayMin = 10 * time.Second
	restartDelayMax = 5 * time.Minute
	// restartForgetAfter is how long a container must run for its earlier
	// crashes to be forgotten.
	restartForgetAfter = 10 * time.Minute
	retryDelayMin      = time.Second
	retryDelayMax      = time.Minute
	// drainMax is how long a stop waits for the endpoints to go; drainLinger
	// how long it gives other nodes when they have.
	drainMax    = 5 * time.Second
	drainLinger = 250 * time.Millisecond
	// killAgain is when SIGKILL is repeated, giveUpAfter when the pod is
	// removed although a container did not end.
	killAgain   = 5 * time.Second
	giveUpAfter = 20 * time.Second
	// probeSoon is the period of a probe until its first success.
	probeSoon = time.Second
)
