// Package runtime is what the agent knows about running pods: one interface,
// its types and the few rules that every implementation shares. A pod is
// addressed by its uid and nothing else; a container by its name within the
// pod and the number of its attempt, so that an attempt runs at most once.
//
// The sub-package runc starts real processes, fake simulates them on an
// injected clock, and runtimetest is the suite that both pass.
//
// The package refuses to decide anything: restart policies, back-off, grace
// periods, probes and images belong to the agent. It never restarts a
// container and never removes a pod by itself. It builds for wasip1.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"
)

// PodUID names a pod on a node. Two pods of the same name have two uids.
type PodUID string

// Errors that callers branch on with errors.Is.
var (
	// ErrPodNotFound: the node holds nothing of this pod.
	ErrPodNotFound = errors.New("pod not found")
	// ErrContainerNotFound: the pod has no such container or attempt.
	ErrContainerNotFound = errors.New("container not found")
	// ErrPodLost: the pod's shim is gone. Its containers have been killed and
	// read as exited with ReasonShimLost; RunPod makes the pod usable again.
	ErrPodLost = errors.New("pod lost its shim")
	// ErrInvalid: the request can never succeed as it is.
	ErrInvalid = errors.New("invalid configuration")
	// ErrStartFailed: the container's process could not be started. The
	// attempt is over and reads as exited with ReasonStartError.
	ErrStartFailed = errors.New("container failed to start")
	// ErrNotRunning: the container has already exited, or has not started.
	ErrNotRunning = errors.New("container is not running")
	// ErrConflict: an older attempt still runs, or a newer one exists.
	ErrConflict = errors.New("another attempt is in the way")
)

// Runtime runs pods. Methods may be called from any goroutine; those that name
// the same pod take turns. A cancelled context stops the wait, and the work
// may or may not have been done: ask Pod, or repeat the call, since all calls
// are idempotent.
type Runtime interface {
	Lifecycle
	Observer
	Streams
}

// Lifecycle changes pods.
type Lifecycle interface {
	// RunPod makes the pod's sandbox: namespaces for network, host name and
	// IPC, its cgroup, its files and its shim. It returns the same state when
	// the pod exists, and revives a lost pod (a network namespace then stays
	// the same one, except after a reboot, so wire the network after every
	// call).
	RunPod(ctx context.Context, pod PodConfig) (PodState, error)
	// RunContainer starts one attempt and returns once its program has been
	// executed. A second call with the same name and attempt starts nothing
	// and reports the outcome of the first. Attempts of one name grow; starting
	// attempt n removes what is left of the attempts before n-1.
	RunContainer(ctx context.Context, uid PodUID, container ContainerConfig) error
	// Signal sends sig to the container's first process. ErrNotRunning when it
	// is over.
	Signal(ctx context.Context, uid PodUID, container string, attempt int, sig Signal) error
	// RemovePod kills what runs and removes everything that RunPod and
	// RunContainer made, logs included. No error when there is nothing left.
	RemovePod(ctx context.Context, uid PodUID) error
}

// Observer tells what exists.
type Observer interface {
	// Pods lists everything that exists on this node, running or dead, sorted
	// by uid: the truth for adoption and for cleaning up orphans.
	Pods(ctx context.Context) ([]PodState, error)
	// Pod returns one pod's state, or ErrPodNotFound.
	Pod(ctx context.Context, uid PodUID) (PodState, error)
	// NextChange waits until the state of some pod may have changed since it
	// was last named here, and names it. Changes of one pod are coalesced:
	// read Pod to learn the state. It ends with the context's error.
	NextChange(ctx context.Context) (PodUID, error)
	// Stats reads what a pod uses now. ErrPodNotFound when there is nothing.
	Stats(ctx context.Context, uid PodUID) (PodStats, error)
}

// Streams are the byte streams of containers.
type Streams interface {
	// Exec runs a further program in a running container and waits for it. The
	// program dies with ctx and with the caller's process.
	Exec(ctx context.Context, uid PodUID, container string, cfg ExecConfig) (ExitStatus, error)
	// Attach joins the streams of a running container's own program until the
	// program ends, its streams close, or ctx ends, which leaves the program as
	// it is. Several may be attached; what they type goes to one input. Output
	// from before the call is not repeated: that is what logs are for.
	Attach(ctx context.Context, uid PodUID, container string, cfg AttachConfig) error
	// Dial connects to a TCP port on the loopback address of the pod's network
	// namespace (of the node's, with HostNetwork).
	Dial(ctx context.Context, uid PodUID, port int) (Conn, error)
	// CopyOut writes a file or folder of a running container as a tar stream.
	// Paths are resolved inside the container's root and never leave it.
	CopyOut(ctx context.Context, uid PodUID, container, path string, w io.Writer) error
	// CopyIn unpacks a tar stream below an existing folder of a running
	// container, with the same care.
	CopyIn(ctx context.Context, uid PodUID, container, path string, r io.Reader) (CopyResult, error)
	// OpenLog reads the log of one attempt.
	OpenLog(ctx context.Context, uid PodUID, container string, attempt int, opt LogOptions) (LogReader, error)
}

// PodConfig is what a sandbox is made from.
type PodConfig struct {
	UID       PodUID
	Namespace string
	Name      string
	// Hostname is the name that the pod's UTS namespace carries.
	Hostname string
	// Hosts and ResolvConf become /etc/hosts and /etc/resolv.conf of every
	// container of the pod.
	Hosts      []byte
	ResolvConf []byte
	// HostNetwork: no network namespace of its own; PodState.NetNS is empty.
	HostNetwork bool
	// HostPID and HostIPC: those namespaces of the node.
	HostPID bool
	HostIPC bool
	// ShareProcessNamespace: one pid namespace for all containers, held by a
	// small init process that outlives them and reaps.
	ShareProcessNamespace bool
	// Users, if not nil, gives the pod a user namespace of its own. Not with
	// HostNetwork, HostPID or HostIPC (ErrInvalid).
	Users *IDMapping
	// Sysctls are set in the pod's namespaces before any container starts.
	Sysctls map[string]string
	// Resources bound the pod as a whole; zero fields leave it unbounded. Of
	// them only CPU, memory and pids count.
	Resources Resources
	// Annotations are kept with the pod and given back in PodState; the
	// runtime does not read them.
	Annotations map[string]string
}

// ContainerConfig is what one attempt is made from.
type ContainerConfig struct {
	Name    string
	Attempt int
	Image   Image
	// Command replaces the image's entrypoint and, as in Kubernetes, also
	// drops the image's Cmd; Args replace the image's Cmd.
	Command []string
	Args    []string
	// Env is appended to the image's; the last value of a name wins.
	Env []EnvVar
	// WorkingDir replaces the image's; empty is the image's, or "/".
	WorkingDir string
	Security   Security
	Resources  Resources
	Mounts     []Mount
	Log        LogLimits
	// Stdin keeps an input open that Attach can write to, else it is /dev/null.
	// StdinOnce closes it when the first attached input has ended.
	Stdin     bool
	StdinOnce bool
	// TTY gives the program a terminal; its output is then all Stdout.
	TTY bool
	// TargetContainer is the running container of the same pod whose pid
	// namespace this one joins; empty: its own, or the pod's.
	TargetContainer string
}

// IDMapping maps ids 0 to Size-1 of a pod to HostID and up on the node, for users
// and groups alike.
type IDMapping struct {
	HostID uint32
	Size   uint32
}

// EnvVar is one variable of a process's environment.
type EnvVar struct {
	Name  string
	Value string
}

// Image is a resolved image: what node/image hands to the runtime.
type Image struct {
	// Digest of the manifest, "sha256:...".
	Digest string
	// Layers are the absolute directories of the unpacked layers, lowest first.
	Layers []string
	// The image's own defaults.
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	// User is "", "uid", "name", "uid:gid" or "name:group".
	User       string
	StopSignal string
}

// Security narrows (or widens) what a container may do. The zero value is the
// default profile: the usual fourteen capabilities, the default seccomp
// filter, masked paths and no new privileges.
type Security struct {
	// RunAsUser and RunAsGroup replace the image's user.
	RunAsUser          *int64
	RunAsGroup         *int64
	SupplementalGroups []int64
	// RunAsNonRoot refuses to start a process as uid 0.
	RunAsNonRoot   bool
	ReadOnlyRootFS bool
	// AddCapabilities and DropCapabilities are names with or without "CAP_";
	// "ALL" stands for all of them. Drops come first.
	AddCapabilities  []string
	DropCapabilities []string
	// AllowPrivilegeEscalation lets set-uid programs gain privileges.
	AllowPrivilegeEscalation bool
	// Privileged: every capability, every device, no seccomp filter, no masked
	// or read-only paths.
	Privileged bool
	// SeccompUnconfined switches the filter off.
	SeccompUnconfined bool
	// SeccompProfile, if not empty, is the filter in the JSON of the OCI runtime
	// specification, instead of the default one.
	SeccompProfile []byte
	// UnmaskedProc leaves /proc as the kernel shows it; only with PodConfig.Users.
	UnmaskedProc bool
	// ImageGroups adds the groups that the image's /etc/group gives the user.
	ImageGroups bool
}

// Resources are the limits of one container. Zero is "no limit".
type Resources struct {
	// CPUShares is the relative weight, 2 to 262144.
	CPUShares uint64
	// CPUQuotaMicros is the CPU time per CPUPeriodMicros (100,000 when zero).
	CPUQuotaMicros  int64
	CPUPeriodMicros uint64
	// MemoryLimitBytes includes swap. At least MinMemoryLimitBytes.
	MemoryLimitBytes int64
	// PidsLimit defaults to DefaultPidsLimit when zero.
	PidsLimit int64
	// OOMScoreAdj is raised to the agent's own value where the kernel does not
	// let the agent go below it.
	OOMScoreAdj int
	// NoFileLimit is RLIMIT_NOFILE; DefaultNoFileLimit when zero, and lowered to
	// the most that the kernel lets the agent give.
	NoFileLimit uint64
}

// Mount binds a directory or file of the node into the container.
type Mount struct {
	HostPath      string
	ContainerPath string
	ReadOnly      bool
	// SubPath is what below HostPath is mounted: relative, resolved without
	// leaving HostPath whatever links lie there, and made as a folder if absent.
	SubPath string
	// Propagation is private when empty.
	Propagation Propagation
	// Mapped: the pod's ids apply to the files as they are on the node (idmapped
	// mount), for pods with PodConfig.Users.
	Mapped bool
}

// Propagation says which later mounts cross a Mount.
type Propagation string

// The ways of propagation.
const (
	// PropagationHostToContainer shows mounts that the node makes below it
	// (rslave), PropagationBidirectional also those of the container (rshared).
	PropagationHostToContainer Propagation = "HostToContainer"
	PropagationBidirectional   Propagation = "Bidirectional"
)

// LogLimits bound the log of one attempt. Zero takes the defaults.
type LogLimits struct {
	// MaxBytes of one file; MaxFiles of them are kept, the current included.
	MaxBytes int64
	MaxFiles int
}

// PodState is what exists of a pod.
type PodState struct {
	UID         PodUID
	Namespace   string
	Name        string
	Annotations map[string]string
	// NetNS is the path of the pinned network namespace, empty with HostNetwork.
	NetNS      string
	CgroupPath string
	CreatedAt  time.Time
	Sandbox    SandboxStatus
	// Message says why the sandbox is lost.
	Message string
	// Containers are sorted by name, then attempt.
	Containers []ContainerState
}

// SandboxStatus tells whether containers can be started in a pod.
type SandboxStatus string

// The sandbox's states.
//
//	RunPod -> Ready -> (shim or node died) -> Lost -> RunPod -> Ready
const (
	SandboxReady SandboxStatus = "Ready"
	SandboxLost  SandboxStatus = "Lost"
)

// ContainerStatus is the phase of one attempt; it only moves forward.
type ContainerStatus string

// The states of an attempt.
const (
	ContainerCreated ContainerStatus = "Created"
	ContainerRunning ContainerStatus = "Running"
	ContainerExited  ContainerStatus = "Exited"
)

// Reason says in one word why a container is over.
type Reason string

// The reasons of an exited container.
const (
	// ReasonCompleted: exit code 0.
	ReasonCompleted Reason = "Completed"
	// ReasonError: another exit code, or a signal.
	ReasonError Reason = "Error"
	// ReasonOOMKilled: the kernel killed a process of the container because of
	// its memory limit, and the container failed.
	ReasonOOMKilled Reason = "OOMKilled"
	// ReasonStartError: the program could not be executed; exit code 128.
	ReasonStartError Reason = "StartError"
	// ReasonShimLost: the pod's shim died; the container was killed, its exit
	// code is unknown and reads 137.
	ReasonShimLost Reason = "ShimLost"
	// ReasonNodeRebooted: the node restarted under the container; code 137.
	ReasonNodeRebooted Reason = "NodeRebooted"
)

// ContainerState is what is known of one attempt.
type ContainerState struct {
	Name        string
	Attempt     int
	ImageDigest string
	Status      ContainerStatus
	// PID on the node while Running, else 0.
	PID int
	// StartedAt is zero when the program was never executed; FinishedAt until
	// the container exits.
	StartedAt  time.Time
	FinishedAt time.Time
	// Exit is set when Status is ContainerExited.
	Exit   ExitStatus
	Reason Reason
	// Message is one line for people, for instance why a start failed.
	Message string
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	// Code is 0 to 255, as a shell shows it: 128 plus Signal when killed.
	Code   int
	Signal Signal
}

// ExecConfig describes a further process in a running container.
type ExecConfig struct {
	Args []string
	// Env is added to the container's; empty WorkingDir is the container's.
	Env        []EnvVar
	WorkingDir string
	// TTY joins the three streams through a terminal: Stderr stays unused.
	TTY    bool
	Resize <-chan TerminalSize
	// Nil streams are /dev/null.
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// AttachConfig says how to join a container's streams. Nil streams are left
// alone.
type AttachConfig struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Resize is for containers with a terminal.
	Resize <-chan TerminalSize
}

// Conn is a connection into a pod.
type Conn interface {
	io.ReadWriteCloser
	// CloseWrite says that no more will be sent.
	CloseWrite() error
}

// CopyResult is what CopyIn wrote.
type CopyResult struct {
	Entries int64
	Bytes   int64
}

// PodStats is what a pod uses at Time.
type PodStats struct {
	Time       time.Time
	Containers []ContainerStats
}

// ContainerStats is what the running attempt of a container uses.
type ContainerStats struct {
	Name    string
	Attempt int
	// CPUNanos is the CPU time since the start.
	CPUNanos int64
	// MemoryBytes is all memory that is charged to the container;
	// WorkingSetBytes leaves out file pages that can be reclaimed at once.
	MemoryBytes      int64
	WorkingSetBytes  int64
	MemoryLimitBytes int64
	Pids             int64
	// WritableBytes is the disk space of the layer that the container writes to,
	// LogBytes that of its logs, over all attempts. They may be up to a minute old.
	WritableBytes int64
	LogBytes      int64
}

// TerminalSize is counted in characters.
type TerminalSize struct {
	Width  uint16
	Height uint16
}

// LogOptions choose which lines OpenLog returns.
type LogOptions struct {
	// Follow waits for further lines until the container exits.
	Follow bool
	// Since drops older lines; zero keeps all.
	Since time.Time
	// TailLines keeps the last n lines that exist when the log is opened;
	// zero or less keeps all.
	TailLines int
}

// LogReader returns lines in the order in which the container wrote them.
type LogReader interface {
	// Next returns io.EOF at the end, and for a follower once the container
	// has exited and every line was read.
	Next() (LogLine, error)
	Close() error
}

// LogLine is one line, or with Partial the beginning of one that is longer
// than MaxLogLineBytes.
type LogLine struct {
	Time    time.Time
	Stream  LogStream
	Partial bool
	Text    []byte
}

// LogStream is the stream that a line was written to.
type LogStream string

// The two streams of a container.
const (
	Stdout LogStream = "stdout"
	Stderr LogStream = "stderr"
)
