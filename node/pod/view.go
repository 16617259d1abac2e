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
	// Probes and Hooks are those that this process asks and runs.
	Probes map[ProbeKey]ProbeState
	Hooks  map[HookKey]HookState
	// VolumePaths are those of the last PrepareVolumes of this process, by the
	// volume's name.
	VolumePaths map[string]string
	// Messages are the termination messages of attempts that have exited.
	Messages map[AttemptKey]string
	// FreeUsers is a range of ids that no other pod has, for a pod that needs one.
	FreeUsers *runtime.IDMapping
	// Connections is how many that came from outside the pod are established to
	// it, where Plan.CountConnections was asked for; nil: not counted yet.
	Connections *int
	// Refusal is set when the node has no room for the pod.
	Refusal *Refusal
	// Eviction ends the pod: the node needs what it uses.
	Eviction *Refusal
	// HostsPath is where the agent keeps the pod's hosts file; empty: nowhere.
	HostsPath string
	// MessagePath names the file of an attempt's termination message; nil, or
	// an empty path: there is none.
	MessagePath func(AttemptKey) string
	// HostFiles are files of the node, of those that the pod needs.
	HostFiles HostFiles
	Memory    Memory
}

// AttemptKey names one run of a container.
type AttemptKey struct {
	Container string
	Attempt   int
}

// HostFiles are files of the node.
type HostFiles struct {
	Hosts      []byte
	ResolvConf []byte
	// Seccomp are profiles by name; a name that is not here could not be read, and
	// Problem says why.
	Seccomp map[string][]byte
	Problem string
}

// Node is what pods need to know of where they run.
type Node struct {
	Name   string
	IP     netip.Addr
	DNS    netip.Addr
	Domain string
	// MemoryBytes is what the machine has; Allocatable what pods may use.
	MemoryBytes int64
	Allocatable Capacity
	// PodPids bounds the processes of a pod; 0: not bounded.
	PodPids int64
}

// Sources hold the objects that the pod refers to, by name.
type Sources struct {
	ConfigMaps map[string]*balsav1.ConfigMap
	Secrets    map[string]*balsav1.Secret
	Claims     map[string]*balsav1.PersistentVolumeClaim
	// Volumes are those that this node has.
	Volumes map[string]*balsav1.PersistentVolume
}

// Image is what is known of an image that a container wants.
type Image struct {
	// Ready: Image can be run.
	Ready bool
	Image runtime.Image
	// At is when it was looked for: what the answer means is as old as that.
	At time.Time
	// Note is how it came, for the event Pulled.
	Note string
	// Reason and Message say why it is not ready; empty while nothing has been
	// tried. Last is when that was found out.
	Reason  string
	Message string
	Last    time.Time
	// Progress is not nil while it comes.
	Progress *ImageProgress
}

// ImageProgress is how far a transfer is.
type ImageProgress struct {
	LayersDone, Layers    int
	BytesDone, BytesTotal int64
}

// Refusal is why a pod will never run here, or not any longer.
type Refusal struct {
	Reason  string
	Message string
	// Grace is how long its containers have to end; nil: what the pod says.
	Grace *time.Duration
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
	// Images that containers wait for, Probes that are to be asked and Hooks that
	// are to be run. What is in no later plan is no longer wanted.
	Images []ImageWant
	Probes []Probe
	Hooks  []Hook
	// CountConnections: the end of the pod waits for connections to it to finish.
	CountConnections bool
	// Wake is when to look again if nothing happens; zero: no need.
	Wake time.Time
}

// ImageWant is an image that a container waits for.
type ImageWant struct {
	Container string
	Name      string
	// Policy is Always, IfNotPresent or Never.
	Policy string
	// Credentials are opened .dockerconfigjson values.
	Credentials [][]byte
	// First: the container has never run.
	First bool
	// Fresh: an answer to a question from before does not do.
	Fresh time.Time
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
	// drainWait is how long a stop waits for the condition Drained when no server
	// says anything: more than a server waits for the nodes
	// (draining.DefaultAcknowledge), by what its writing and telling takes.
	drainWait = 8 * time.Second
	// killAgain is when SIGKILL is repeated, giveUpAfter when the pod is
	// removed although a container did not end.
	killAgain   = 5 * time.Second
	giveUpAfter = 20 * time.Second
	// stopLeast is what a container has at least between its stop signal and
	// SIGKILL (kubelet: minimumGracePeriodInSeconds).
	stopLeast = 2 * time.Second
	// pullErrorShown is how long a failure to pull is told as such, before it is
	// told that it will be tried again.
	pullErrorShown = time.Second
	// probeSoon is the period of a readiness probe until its first success.
	probeSoon = time.Second
)
