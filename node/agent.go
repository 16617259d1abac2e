package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

// ErrFactsChanged ends Run: the node has got another pod CIDR, since its Node
// was deleted and made again, so that network, proxy and resolver have to be
// made anew. Call Run of a new Agent.
var ErrFactsChanged = errors.New("the cluster gave this node other addresses")

// Agent runs the pods of one node.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	random  *lockedRand

	journal  journal
	set      *set
	images   *imageCache
	probes   *probeRunner
	hooks    *hookRunner
	tally    *tally
	rules    *knownPods
	departed *departed
	notices  *notices
	users    *userRanges
	began    time.Time // of Run
	reports  *reporter
	guard    *guard
	orphans  orphans // belongs to cleanLoop
	machine  MachineFacts
	logSlots chan struct{}

	// plant, facts and work, the context that workers end with, are set before
	// anything uses them.
	plant Plant
	facts ClusterFacts
	work  context.Context
	// wires keeps the network from being cleaned up while a pod is connected.
	wires sync.RWMutex

	registerAgain chan struct{}
	synced        chan struct{} // closed with the first whole set
	syncedOnce    sync.Once
	toSync        signal
	toClean       signal
	toSave        signal
	toBeat        signal
	disturbed     signal // of the pod network, by somebody else
	toAnnounce    signal
	announcing    announcing
	// proxyTouched: somebody else may have changed the service rules.
	proxyTouched atomic.Bool

	// running counts workers, probes and fetches.
	running    sync.WaitGroup
	slots      chan struct{} // one for each pod that acts
	registered atomic.Bool
	applied    atomic.Int64
	// acknowledged is the revision of the newest services that servers may have been
	// told of, also by an agent before this one.
	acknowledged atomic.Int64
	abandoned    atomic.Bool // the set is another cluster's
	// behind: the services from disk are older than what was acknowledged; blind: they
	// cannot be read. Both belong to syncLoop once that runs.
	behind, blind bool
	leaving       atomic.Bool // the node was removed: nothing is assigned any more

	// saving holds a token while the pods' part of the set is written, until all
	// see what was written: an older one must not come last.
	saving chan struct{}

	mu        sync.Mutex
	workers   map[string]*worker     // guarded by mu; by uid
	admitted  map[string]bool        // guarded by mu; uids that were given room
	refused   map[string]pod.Refusal // guarded by mu
	heartbeat time.Duration          // guarded by mu
	lease     time.Duration          // guarded by mu
	unsaved   bool                   // guarded by mu; the set could not be saved
	written   chan struct{}          // guarded by mu; closed when the set is on disk, or cannot be; nil: it is
}

// Status is what the agent says of itself.
type Status struct {
	// Registered: a server has taken this node since the start.
	Registered bool
	// Synced: a whole set is known; FromServer: a server has confirmed it.
	Synced     bool
	FromServer bool
	// Revision is that of the set, AppliedRevision what proxy and resolver have
	// both applied.
	Revision        int64
	AppliedRevision int64
	Pods            int
	// PendingReports have not been taken by a server yet.
	PendingReports int
	// Unsaved: the set could not be written to disk.
	Unsaved bool
}

// New makes an agent; it does nothing before Run.
func New(cfg Config) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, metrics: m, random: &lockedRand{r: cfg.Rand},
		journal: journal{cfg.Disk, cfg.RunDisk}, set: newSet(),
		logSlots: make(chan struct{}, cfg.MaxLogStreams), slots: make(chan struct{}, parallelTurns), saving: make(chan struct{}, 1),
		registerAgain: make(chan struct{}, 1), synced: make(chan struct{}),
		toSync: newSignal(), toClean: newSignal(), toSave: newSignal(), toBeat: newSignal(), disturbed: newSignal(), toAnnounce: newSignal(),
		workers: map[string]*worker{}, admitted: map[string]bool{}, refused: map[string]pod.Refusal{},
		heartbeat: heartbeatDefault,
	}
	a.images = newImageCache(a)
	a.probes = newProbeRunner(a)
	a.hooks = newHookRunner(a)
	a.tally = newTally(a)
	a.rules, a.departed = newKnownPods(), newDeparted()
	a.notices = newNotices(a)
	a.users = newUserRanges()
	a.reports = newReporter(a)
	a.guard = newGuard(a)
	if err := a.guard.metrics.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return a, nil
}

// Run works until ctx ends, and returns why; containers go on. It may be called
// once.
func (a *Agent) Run(ctx context.Context) error {
	facts, err := a.cfg.Machine.Facts(ctx)
	if err != nil {
		return fmt.Errorf("node %s: learn what the machine is: %w", a.cfg.Name, err)
	}
	a.machine, a.began = facts, a.cfg.Clock.Now()
	if err := a.settle(ctx); err != nil {
		return err
	}
	if err := a.recover(); err != nil {
		return err
	}
	a.guard.begin(ctx)
	if err := a.learnCluster(ctx); err != nil {
		return err
	}
	if a.plant, err = a.cfg.Open(ctx, a.facts); err != nil {
		return fmt.Errorf("node %s: open the network: %w", a.cfg.Name, err)
	}
	return a.serve(ctx)
}

// recover reads the set from disk. What cannot be read is as good as absent: a
// server tells it again, and nothing is removed meanwhile.
func (a *Agent) recover() error {
	saved, err := a.journal.load()
	if err != nil {
		a.log.Warn("the saved assignments cannot be read whole", "error", err)
	}
	if saved.step == nil {
		return nil
	}
	a.behind, a.blind = saved.behind, saved.blind
	a.acknowledged.Store(saved.acknowledged)
	if _, err := a.set.commit(saved.step, false, func(*set, effect) {}); err != nil {
		return err
	}
	a.syncedOnce.Do(func() { close(a.synced) })
	return nil
}

// settle counts what already runs as admitted, and learns what it has.
func (a *Agent) settle(ctx context.Context) error {
	pods, err := a.cfg.Runtime.Pods(ctx)
	if err != nil {
		return fmt.Errorf("node %s: list what runs: %w", a.cfg.Name, err)
	}
	a.recoverUsers(pods)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range pods {
		a.admitted[string(p.UID)] = true
	}
	return nil
}

// learnCluster takes what is on disk, or registers until a server answers.
func (a *Agent) learnCluster(ctx context.Context) error {
	saved, err := a.journal.loadCluster()
	if err == nil && saved != nil {
		a.facts, err = factsOf(saved)
		if err == nil {
			a.cfg.OnServers(a.facts.Servers)
			a.takePace(saved.GetCluster())
			a.askToRegister()
			return nil
		}
	}
	if err != nil {
		a.log.Warn("what the node knew of its cluster cannot be read; asking a server", "error", err)
	}
	response, err := a.registerUntilDone(ctx)
	if err != nil {
		return err
	}
	a.facts, err = factsOf(response)
	return err
}

// serve runs everything that goes on for as long as the agent does.
func (a *Agent) serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	a.work = ctx
	for _, part := range []func(context.Context) error{
		a.registerLoop, a.heartbeatLoop, a.assignLoop, a.syncLoop, a.cleanLoop, a.saveLoop, a.forgetLoop, a.watchRuntime, a.reports.run, a.pruneLoop,
		a.guard.run, a.guard.surveyLoop, a.tally.run, a.guardNetwork, a.watchNetwork, a.watchProxy, a.announceLoop,
	} {
		group.Go(func() error { return part(ctx) })
	}
	group.Go(func() error {
		a.runWorkers(ctx)
		return context.Cause(ctx)
	})
	err := group.Wait()
	a.running.Wait()
	return err
}

// runWorkers starts looking after the pods that are known from the start.
func (a *Agent) runWorkers(ctx context.Context) {
	select {
	case <-a.synced:
	case <-ctx.Done():
		return
	}
	a.admit()
	for _, p := range a.set.allPods() {
		a.look(p.GetMetadata().GetUid())
	}
	a.toSync.raise()
	a.toClean.raise()
	<-ctx.Done()
}

// admit decides anew which pods there is room for.
func (a *Agent) admit() {
	pods := a.set.allPods()
	a.mu.Lock()
	defer a.mu.Unlock()
	settled := map[string]bool{}
	for _, p := range pods {
		uid := p.GetMetadata().GetUid()
		settled[uid] = a.admitted[uid] || p.GetStatus().GetPhase() == object.PodRunning
	}
	a.refused = pod.Admit(pods, func(uid string) bool { return settled[uid] }, a.room())
	for uid := range settled {
		if _, refused := a.refused[uid]; !refused {
			a.admitted[uid] = true
		}
	}
}

// room is what pods may ask for.
func (a *Agent) room() pod.Capacity {
	return pod.Capacity{
		MilliCPU:       max(a.machine.MilliCPU-a.cfg.ReservedMilliCPU, 0),
		MemoryBytes:    max(a.machine.MemoryBytes-a.cfg.ReservedMemoryBytes-a.cfg.Thresholds.MemoryAvailableBytes, 0),
		EphemeralBytes: max(a.machine.EphemeralBytes-a.cfg.ReservedEphemeralBytes-a.machine.EphemeralBytes*a.cfg.Thresholds.DiskAvailablePercent/100, 0),
		Pods:           a.cfg.MaxPods,
	}
}

// EvictionChanged makes the agent ask Config.Eviction about these pods.
func (a *Agent) EvictionChanged(uids ...string) { a.wakeAll(uids) }

// Handler serves AgentService. The caller mounts it where only servers come in;
// it looks at the identity itself as well.
func (a *Agent) Handler() http.Handler { return newAgentHandler(a) }

// Status tells how far the agent is.
func (a *Agent) Status() Status {
	s := Status{Registered: a.registered.Load(), AppliedRevision: a.applied.Load(), PendingReports: a.reports.pending()}
	s.Synced, s.FromServer, s.Revision = a.set.known()
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Pods, s.Unsaved = len(a.workers), a.unsaved
	return s
}

// Ready tells whether the agent looks after its pods: it knows a whole set.
func (a *Agent) Ready() bool { return a.Status().Synced }

// event tells the user something about a pod.
func (a *Agent) event(p *balsav1.Pod, e pod.Event) {
	meta := p.GetMetadata()
	ref := &balsav1.ObjectReference{ApiVersion: "v1", Kind: "Pod", Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid()}
	if e.Container != "" {
		ref.FieldPath = "spec.containers{" + e.Container + "}"
	}
	a.reports.event(ref, e, a.cfg.Clock.Now())
}

// nodeEvent tells the user something about the node.
func (a *Agent) nodeEvent(e pod.Event) {
	a.reports.event(&balsav1.ObjectReference{ApiVersion: "v1", Kind: "Node", Name: a.cfg.Name}, e, a.cfg.Clock.Now())
}

// sleep waits; it returns the context's error when that ends first.
func sleep(ctx context.Context, c clock.Clock, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := c.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
		return nil
	}
}
