package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/pressure"
	"github.com/balsa-run/balsa/node/volume"
)

// Config says who the agent is and what it acts through. Name, NodeIP, Disk,
// RunDisk, Clock, Rand, Logger, API, Machine, Runtime, Images and Open are
// required.
type Config struct {
	// Name of the node, as in the agent's certificate.
	Name string
	// NodeIP is where other nodes and the servers reach this one.
	NodeIP netip.Addr
	// AgentPort is where Handler is served.
	AgentPort int
	Labels    map[string]string
	// Version of the program, for the Node's status.
	Version string

	// Disk survives a reboot; RunDisk need not, and is the place of opened
	// secrets: put it on a tmpfs.
	Disk    Disk
	RunDisk Disk

	Clock  clock.Clock
	Rand   *rand.Rand
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer

	API     API
	Machine Machine
	Runtime Runtime
	Images  Images
	// Volumes makes pods' volumes; nil: pods with volumes wait.
	Volumes volume.Volumes
	// Prober asks over the network; nil: NetProber.
	Prober Prober
	// HostFiles are files of the node; nil: HostPaths in the usual places, without
	// seccomp profiles.
	HostFiles HostFiles
	// Eviction tells whether a pod has to make room, and why; nil: none has to. It
	// is asked at every look; EvictionChanged makes the agent look.
	Eviction func(uid string) *pod.Refusal
	// Open makes network, proxy and resolver. It is called once in each Run,
	// when the cluster is known, from a server or from disk.
	Open func(ctx context.Context, facts ClusterFacts) (Plant, error)
	// OnServers hears of the servers' addresses, for instance to give them to
	// the client; it may be nil.
	OnServers func(addresses []string)
	// OnRemoved hears, with each heartbeat, whose certificates are refused although
	// they have not expired; it may be nil. It keeps what it needs.
	OnRemoved func(removed []*balsav1.RemovedIdentity)
	// AskRemoved asks a server of the cluster whether this node's own identity was
	// removed. It is asked when servers do not take the node's certificate. true
	// needs a server's word, which had to show its own certificate; that nobody
	// answers is an error. nil: the node never takes itself for removed.
	AskRemoved func(ctx context.Context) (bool, error)

	// DNSAddress is the name server of the pods; DefaultDNSAddress if not given.
	DNSAddress netip.Addr
	// ReservedMilliCPU and the others are kept from pods.
	ReservedMilliCPU       int64
	ReservedMemoryBytes    int64
	ReservedEphemeralBytes int64
	// Thresholds say when the node is under pressure, if Machine is a Meter; pods
	// cannot ask for what they keep free. Zero: it never is.
	Thresholds pressure.Thresholds
	// Taints are those of a node that registers for the first time.
	Taints []*balsav1.Taint
	// PodPids bounds the processes of a pod; 0: not bounded.
	PodPids int64
	// MaxPods bounds the pods that have not ended; DefaultMaxPods if 0.
	MaxPods int
	// MaxContainerLogs bounds open log streams; DefaultLogStreams if 0.
	MaxLogStreams int
}

// Defaults of a Config.
const (
	DefaultMaxPods    = 110
	DefaultLogStreams = 64
)

// Limits and paces of the agent.
const (
	// maxWorkers bounds the pods that are looked after at once, ended and
	// orphaned ones included.
	maxWorkers = 4096
	// parallelTurns bounds the pods that act on the runtime at once.
	parallelTurns = 16
	// parallelProbes and parallelFetches bound those.
	parallelProbes  = 32
	parallelFetches = 2
	// jitterMax spreads the first questions of probes, adoptJitterMax those of
	// containers that the agent found.
	jitterMax      = 100 * time.Millisecond
	adoptJitterMax = 10 * time.Second
	// progressEvery is how often pods say how far their image is.
	progressEvery = 5 * time.Second
	// stepsPerTurn bounds the steps that a pod takes without a pause.
	stepsPerTurn = 16
	turnPause    = time.Second
	// actionTimeout bounds one call of the runtime or the network.
	actionTimeout = 2 * time.Minute
	// fetchTimeout bounds the transfer of one image.
	fetchTimeout = 30 * time.Minute
	// resyncEvery is how often a pod is looked at without a reason.
	resyncEvery = time.Minute

	// reportSettle is the least time from one report to the next, and how long an
	// event waits for a status; reportPods and reportEvents are how many go
	// together, maxEvents how many wait.
	reportSettle = 10 * time.Millisecond
	reportPods   = 200
	reportEvents = 100
	maxEvents    = 1000
	// reportAgain is when a report that was taken, but does not show in the
	// assignments, is sent again.
	reportAgain = 15 * time.Second

	// retryMin and retryMax bound the pause after a failure of a loop.
	retryMin = 200 * time.Millisecond
	retryMax = 10 * time.Second
	// callTimeout bounds one unary call of the API.
	callTimeout = 20 * time.Second
	// streamSilence is how long a stream of assignments may be silent: servers
	// tell their progress every second or so.
	streamSilence = 30 * time.Second
	// olderPatience is how long servers must insist on a set that is older than
	// ours: only a cluster that was restored from a backup does that.
	olderPatience = time.Minute

	// removedPatience is how long servers must say that the node was removed before
	// it ends its pods, and leavePatience how long it waits for their end.
	removedPatience = 5 * time.Second
	leavePatience   = 10 * time.Minute

	// syncSettle is how long proxy and resolver wait for further changes.
	syncSettle = 20 * time.Millisecond
	scrubEvery = time.Minute
	// cleanEvery is how often leftovers are looked for.
	cleanEvery = time.Minute
	// imagesEvery is how often unused images are removed.
	imagesEvery = 30 * time.Minute
	// saveEvery bounds how often services are saved: pods are saved at once.
	saveEvery = time.Second

	// heartbeatDefault is the pace until a server says another, and
	// beatsPerInterval how much faster it gets when a revision was applied.
	heartbeatDefault = time.Second
	beatsPerInterval = 5
)

// DefaultDNSAddress is the resolver's link-local address on every node.
func DefaultDNSAddress() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 20, 10}) }

func (c Config) withDefaults() Config {
	if c.MaxPods == 0 {
		c.MaxPods = DefaultMaxPods
	}
	if c.MaxLogStreams == 0 {
		c.MaxLogStreams = DefaultLogStreams
	}
	if !c.DNSAddress.IsValid() {
		c.DNSAddress = DefaultDNSAddress()
	}
	if c.Prober == nil {
		c.Prober = NetProber{}
	}
	if c.HostFiles == nil {
		c.HostFiles = HostPaths{}
	}
	if c.OnServers == nil {
		c.OnServers = func([]string) {}
	}
	if c.OnRemoved == nil {
		c.OnRemoved = func([]*balsav1.RemovedIdentity) {}
	}
	return c
}

func (c Config) check() error {
	missing := func(name string, absent bool) error {
		if absent {
			return fmt.Errorf("node: Config.%s is required", name)
		}
		return nil
	}
	return errors.Join(
		missing("Name", c.Name == ""), missing("NodeIP", !c.NodeIP.Is4()), missing("Disk", c.Disk == nil),
		missing("RunDisk", c.RunDisk == nil), missing("Clock", c.Clock == nil), missing("Rand", c.Rand == nil),
		missing("Logger", c.Logger == nil), missing("API", c.API == nil), missing("Machine", c.Machine == nil),
		missing("Runtime", c.Runtime == nil), missing("Images", c.Images == nil), missing("Open", c.Open == nil))
}
