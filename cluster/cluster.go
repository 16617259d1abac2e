package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/internal/mutate"
)

// Phase is where a member stands in its life.
//
//	Uninitialised --Bootstrap or Join--> Running --Shutdown--> Stopped
//	WaitingForSpace --room again------->   |
//	                                       +--write error, divergence, removal--> Failed
type Phase string

const (
	// PhaseUninitialised: an empty disk. The member takes part in nothing: a
	// server that forgot its votes must not vote again under the same id.
	PhaseUninitialised Phase = "Uninitialised"
	// PhaseWaitingForSpace: the disk is full. It would break a promise at the
	// next write, so it does not vote and stores nothing until there is room.
	PhaseWaitingForSpace Phase = "WaitingForSpace"
	PhaseRunning         Phase = "Running"
	PhaseFailed          Phase = "Failed"
	PhaseStopped         Phase = "Stopped"
)

// Cluster is one member. Its methods may be called from any goroutine.
type Cluster struct {
	cfg Config
	log *slog.Logger

	disk *diskWatch
	logs *guardedLog
	// continued is logs as the library sees them; nil before it starts.
	continued *continuedLog
	stable    *guardedStable
	snaps     *guardedSnapshots
	machine   *fsm
	queue     *queue // to the log
	forwards  *queue // to the leader
	reads     *rounds
	lead      *leadership
	monitor   *monitor

	raft     atomic.Pointer[raft.Raft] // nil until the member takes part
	gate     *gate                     // set before raft is
	settings sync.Mutex                // orders changes of raft's settings

	ctx    context.Context // ends when the member stops
	cancel context.CancelFunc
	failed chan struct{} // closed by fail
	ended  chan struct{} // closed once the library's goroutines have ended; see endsWith
	end    sync.Once
	tasks  sync.WaitGroup

	mu       sync.Mutex
	phase    Phase  // guarded by mu
	failure  error  // guarded by mu; set once
	lowSpace bool   // guarded by mu
	free     uint64 // guarded by mu; bytes left when last asked
}

// New opens the member's stores. A member that has state starts to take part at
// once; one with an empty disk waits for Bootstrap or Join.
func New(cfg Config) (*Cluster, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := raft.ValidateConfig(cfg.raftConfig()); err != nil {
		return nil, fmt.Errorf("cluster: timing and limits: %w", err)
	}
	c := &Cluster{cfg: cfg, log: cfg.Logger.With("member", cfg.ID), phase: PhaseUninitialised, failed: make(chan struct{}), ended: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.disk = newDiskWatch(cfg.Clock)
	c.logs = &guardedLog{inner: cfg.LogStore, disk: c.disk, c: c}
	c.stable = &guardedStable{inner: cfg.StableStore, c: c, write: make(chan struct{}, 1)}
	c.snaps = &guardedSnapshots{inner: cfg.SnapshotStore, c: c}
	c.machine = &fsm{machine: cfg.Machine, c: c}
	c.queue = newQueue(cfg.Limits, cfg.Limits.BatchesInFlight)
	c.forwards = newQueue(cfg.Limits, cfg.Limits.ForwardsInFlight)
	c.reads = newRounds(cfg.Limits.Reads, c.readRound)
	c.lead = newLeadership(c)
	c.monitor = newMonitor(c)
	if err := c.open(); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// open decides what the disk allows.
func (c *Cluster) open() error {
	if err := c.stable.load(); err != nil {
		return err
	}
	if err := c.stable.refusal(); err != nil {
		return err
	}
	state, err := raft.HasExistingState(c.logs, c.stable, c.snaps)
	if err != nil {
		return fmt.Errorf("cluster: read the state of member %s: %w", c.cfg.ID, err)
	}
	admitted, err := c.stable.admitted()
	if err != nil {
		return err
	}
	if !state && !admitted && !mutate.On(mutate.AmnesiacVotes) {
		c.log.Info("empty disk: waiting to bootstrap or join")
		return nil
	}
	return c.takePart()
}

// takePart starts raft, or a wait for room to do so.
func (c *Cluster) takePart() error {
	if !c.roomToStart() {
		c.setPhase(PhaseWaitingForSpace)
		c.log.Error("disk full: not voting until there is room", "want", c.cfg.Disk.RoomToStart)
		c.goTask(c.waitForRoom)
		return nil
	}
	return c.start()
}

func (c *Cluster) start() error {
	if err := c.checkLogMeetsSnapshot(); err != nil {
		return err
	}
	c.gate = newGate(c)
	r, err := c.newRaft(c.gate)
	if err != nil {
		return errors.Join(fmt.Errorf("cluster: start member %s: %w", c.cfg.ID, err), c.gate.Close())
	}
	c.raft.Store(r)
	c.setPhase(PhaseRunning)
	for _, task := range []func(){c.sendBatches, c.sendForwards, c.lead.run, c.watchLeader, c.watchDisk, c.watchSpace, c.watchLogSize, c.monitor.run} {
		c.goTask(task)
	}
	return nil
}

// newRaft turns the library's panics about an unreadable log into an error.
func (c *Cluster) newRaft(gate *gate) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the log cannot be read: %v", p)
		}
	}()
	cache, err := raft.NewLogCache(c.cfg.Limits.CachedEntries, c.logs)
	if err != nil {
		return nil, fmt.Errorf("log cache: %w", err)
	}
	c.continued = &continuedLog{LogStore: cache}
	return raft.NewRaft(c.cfg.raftConfig(), c.machine, c.continued, c.stable, c.snaps, gate)
}

// checkLogMeetsSnapshot refuses a log that begins after the snapshot ends: the
// entries between are lost, and so is every write in them. It ends what a kill has
// interrupted: a log that contradicts the snapshot.
func (c *Cluster) checkLogMeetsSnapshot() error {
	first, err := c.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("cluster: first index of the log: %w", err)
	}
	list, err := c.snaps.List()
	if err != nil {
		return fmt.Errorf("cluster: list snapshots: %w", err)
	}
	var newest uint64
	if len(list) > 0 {
		newest = list[0].Index
		if err := follow(c.logs, list[0]); err != nil {
			return err
		}
	}
	if first > newest+1 {
		return fmt.Errorf("cluster: the log begins at %d but the newest snapshot ends at %d: entries are missing; empty this disk and join under a new id", first, newest)
	}
	return nil
}

// Bootstrap makes this server the first and only member of a new cluster. It
// can be done once: a disk with state is refused with ErrHasState.
func (c *Cluster) Bootstrap() error {
	if phase := c.Phase(); phase != PhaseUninitialised {
		return fmt.Errorf("cluster: bootstrap member %s in phase %s: %w", c.cfg.ID, phase, ErrHasState)
	}
	only := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(c.cfg.ID), Address: raft.ServerAddress(c.cfg.Address),
	}}}
	// One write decides: a crash before it leaves an empty disk, one after it a
	// cluster of one. (The library's own way stores the term first, and a crash
	// then leaves a disk that can neither bootstrap nor run.)
	first := &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(only)}
	if err := c.logs.StoreLogs([]*raft.Log{first}); err != nil {
		return fmt.Errorf("cluster: store the first configuration: %w", err)
	}
	c.log.Info("cluster created")
	return c.takePart()
}

// Join makes this server a member of an existing cluster. Ask reaches the leader
// (JoinService, then AddNonvoter there); it is refused when the cluster already
// knows this id, since a known server with an empty disk has forgotten its
// votes. Only after it agreed does this member answer raft.
func (c *Cluster) Join(ctx context.Context, ask func(ctx context.Context) error) error {
	if phase := c.Phase(); phase != PhaseUninitialised {
		return fmt.Errorf("cluster: join as member %s in phase %s: %w", c.cfg.ID, phase, ErrHasState)
	}
	if err := ask(ctx); err != nil {
		return fmt.Errorf("cluster: join as member %s: %w", c.cfg.ID, err)
	}
	if err := c.stable.admit(); err != nil {
		return err
	}
	return c.takePart()
}

// Phase tells where the member stands.
func (c *Cluster) Phase() Phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase
}

func (c *Cluster) setPhase(p Phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != PhaseFailed && c.phase != PhaseStopped {
		c.phase = p
	}
}

// fail stops this member from acknowledging anything and says why, once.
func (c *Cluster) fail(reason error) {
	c.mu.Lock()
	if c.failure != nil || c.phase == PhaseStopped {
		c.mu.Unlock()
		return
	}
	c.failure, c.phase = reason, PhaseFailed
	c.mu.Unlock()
	c.log.Error("member stops", "reason", reason)
	c.cfg.Metrics.Add("cluster_member_failed", 1)
	close(c.failed)
	go c.cfg.Fatal(reason)
}

// halt is fail for a goroutine of the library that must neither go on as if all
// were well nor be told an error it would panic about: it ends here.
func (c *Cluster) halt(reason error) {
	c.fail(reason)
	<-c.ctx.Done()
	runtime.Goexit()
}

func (c *Cluster) failureReason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// running returns raft, or why this member does nothing.
func (c *Cluster) running() (*raft.Raft, *Error) {
	c.mu.Lock()
	phase, failure := c.phase, c.failure
	c.mu.Unlock()
	switch phase {
	case PhaseRunning:
		return c.raft.Load(), nil
	case PhaseFailed:
		return nil, refused(ReasonFailed, "member %s has stopped: %w", c.cfg.ID, failure)
	case PhaseStopped:
		return nil, refused(ReasonStopped, "member %s is shutting down", c.cfg.ID)
	}
	return nil, refused(ReasonNotInitialised, "member %s is not part of a cluster yet (%s)", c.cfg.ID, phase)
}

func (c *Cluster) goTask(task func()) {
	c.tasks.Add(1)
	go func() {
		defer c.tasks.Done()
		task()
	}()
}

// tryTask is goTask for callers that are no task themselves; false when the
// member stops.
func (c *Cluster) tryTask(task func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != PhaseRunning {
		return false
	}
	c.goTask(task)
	return true
}

// pause waits on the injected clock; false when the member stops.
func (c *Cluster) pause(ctx context.Context, t time.Duration) bool {
	timer := c.cfg.Clock.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	return false
}

// Shutdown hands over leadership, if it has it, and stops. It returns when every
// goroutine has ended or ctx has.
func (c *Cluster) Shutdown(ctx context.Context) error {
	c.handOver(ctx)
	c.mu.Lock()
	c.phase = PhaseStopped
	c.mu.Unlock()
	for _, q := range []*queue{c.queue, c.forwards} {
		q.close(refused(ReasonStopped, "member %s is shutting down", c.cfg.ID))
	}
	c.cancel()
	done := make(chan error, 1)
	go func() {
		err := c.stopRaft()
		c.tasks.Wait()
		done <- errors.Join(err, c.stopRaft()) // a wait for room may just have ended
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("cluster: member %s did not stop in time: %w", c.cfg.ID, ctx.Err())
	}
}

func (c *Cluster) stopRaft() error {
	r := c.raft.Load()
	if r == nil {
		return nil
	}
	err := r.Shutdown().Error()
	c.end.Do(func() { close(c.ended) })
	return err
}

func (c *Cluster) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Shutdown)
	defer cancel()
	if r, err := c.running(); err != nil || r.State() != raft.Leader || c.otherVoters(r) == 0 {
		return
	}
	if err := c.TransferLeadership(ctx, ""); err != nil {
		c.log.Warn("stopping without handing over leadership", "error", err)
	}
}
