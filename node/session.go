package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

func (a *Agent) askToRegister() {
	select {
	case a.registerAgain <- struct{}{}:
	default:
	}
}

// registerLoop registers whenever somebody asks for it.
func (a *Agent) registerLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.registerAgain:
		}
		response, err := a.registerUntilDone(ctx)
		if err != nil {
			return err
		}
		facts, err := factsOf(response)
		if err != nil {
			return err
		}
		if facts.ClusterID != a.facts.ClusterID || facts.PodCIDR != a.facts.PodCIDR || facts.ServiceCIDR != a.facts.ServiceCIDR ||
			facts.ClusterCIDR != a.facts.ClusterCIDR || facts.DNSDomain != a.facts.DNSDomain {
			return fmt.Errorf("node %s: cluster %s with pod CIDR %s, was %s with %s: %w", a.cfg.Name, facts.ClusterID, facts.PodCIDR, a.facts.ClusterID, a.facts.PodCIDR, ErrFactsChanged)
		}
	}
}

// registerUntilDone registers, however long it takes, and keeps the answer.
func (a *Agent) registerUntilDone(ctx context.Context) (*balsav1.RegisterResponse, error) {
	pause := a.newRetry()
	for {
		response, err := a.register(ctx)
		if err == nil {
			return response, nil
		}
		a.log.Warn("registering failed; trying again", "node", a.cfg.Name, "error", err)
		if err := pause.pause(ctx); err != nil {
			return nil, err
		}
	}
}

func (a *Agent) register(ctx context.Context) (*balsav1.RegisterResponse, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := a.cfg.API.Register(call, &balsav1.RegisterRequest{Node: a.nodeObject()})
	if err != nil {
		return nil, err
	}
	if _, err := factsOf(response); err != nil {
		return nil, fmt.Errorf("the server's answer cannot be used: %w", err)
	}
	a.leaveOldCluster(response.GetCluster().GetClusterId())
	if err := a.journal.saveCluster(response); err != nil {
		a.log.Warn("what the node knows of its cluster is not on disk: it cannot start without a server", "error", err)
	}
	a.cfg.OnServers(response.GetCluster().GetServers())
	a.takePace(response.GetCluster())
	a.registered.Store(true)
	a.log.Info("registered", "node", a.cfg.Name, "podCIDR", response.GetNode().GetSpec().GetPodCidr())
	return response, nil
}

// leaveOldCluster removes what another cluster has assigned: it means nothing in
// this one.
func (a *Agent) leaveOldCluster(id string) {
	saved, err := a.journal.loadCluster()
	if err != nil || saved == nil || saved.GetCluster().GetClusterId() == id {
		return
	}
	a.log.Warn("this node has joined another cluster; forgetting what the old one assigned", "old", saved.GetCluster().GetClusterId(), "new", id)
	a.abandoned.Store(true)
	if err := a.journal.forgetSet(); err != nil {
		a.log.Error("the assignments of the old cluster cannot be removed", "error", err)
	}
}

func (a *Agent) takePace(c *balsav1.ClusterInfo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ms := c.GetHeartbeatIntervalMs(); ms > 0 {
		a.heartbeat = time.Duration(ms) * time.Millisecond
	}
	if ms := c.GetLeaseDurationMs(); ms > 0 {
		a.lease = time.Duration(ms) * time.Millisecond
	}
}

// hostnameLabel is Kubernetes' name of the label that every node has.
const hostnameLabel = "kubernetes.io/hostname"

// nodeObject is what the node says of itself.
func (a *Agent) nodeObject() *balsav1.Node {
	labels := map[string]string{hostnameLabel: a.cfg.Name, "kubernetes.io/os": a.machine.Info.GetOperatingSystem(), "kubernetes.io/arch": a.machine.Info.GetArchitecture()}
	maps.Copy(labels, a.cfg.Labels)
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	info := object.Clone(&balsav1.Node{Status: &balsav1.NodeStatus{NodeInfo: a.machine.Info}}).Status.NodeInfo
	if info == nil {
		info = &balsav1.NodeSystemInfo{}
	}
	info.KubeletVersion = a.cfg.Version
	room := a.room()
	conditions, images := a.guard.said()
	return &balsav1.Node{
		ApiVersion: "v1", Kind: "Node",
		Metadata: &balsav1.ObjectMeta{Name: a.cfg.Name, Labels: labels},
		Spec:     &balsav1.NodeSpec{Taints: a.cfg.Taints},
		Status: &balsav1.NodeStatus{
			Conditions: conditions, Images: images,
			Capacity:    quantities(pod.Capacity{MilliCPU: a.machine.MilliCPU, MemoryBytes: a.machine.MemoryBytes, EphemeralBytes: a.machine.EphemeralBytes, Pods: a.cfg.MaxPods}),
			Allocatable: quantities(room),
			Addresses: []*balsav1.NodeAddress{
				{Type: "InternalIP", Address: a.cfg.NodeIP.String()}, {Type: "Hostname", Address: a.cfg.Name},
			},
			DaemonEndpoints: &balsav1.NodeDaemonEndpoints{KubeletEndpoint: &balsav1.DaemonEndpoint{Port: int32(a.cfg.AgentPort)}},
			NodeInfo:        info,
		},
	}
}

func quantities(c pod.Capacity) map[string]*balsav1.Quantity {
	cpu := strconv.FormatInt(c.MilliCPU, 10) + "m"
	if c.MilliCPU%1000 == 0 {
		cpu = strconv.FormatInt(c.MilliCPU/1000, 10)
	}
	out := map[string]*balsav1.Quantity{
		object.ResourceCPU: object.NewQuantity(cpu), object.ResourceMemory: object.NewQuantity(strconv.FormatInt(c.MemoryBytes, 10)),
		object.ResourcePods: object.NewQuantity(strconv.Itoa(c.Pods)),
	}
	if c.EphemeralBytes > 0 {
		out[object.ResourceEphemeralStorage] = object.NewQuantity(strconv.FormatInt(c.EphemeralBytes, 10))
	}
	return out
}

// heartbeatLoop keeps the lease. It beats sooner when a revision was applied: a
// rollout may be waiting to hear of it.
func (a *Agent) heartbeatLoop(ctx context.Context) error {
	var sequence uint64
	down, expelled := false, removal{}
	for {
		a.mu.Lock()
		interval, lease := a.heartbeat, a.lease
		a.mu.Unlock()
		sequence++
		err := a.beat(ctx, sequence, max(lease/2, interval, time.Second))
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !down:
			a.log.Warn("no server takes the heartbeat; pods go on without", "error", err)
		case err == nil && down:
			a.log.Info("servers take the heartbeat again")
		}
		down = err != nil
		a.metrics.beat(err)
		if a.removed(ctx, &expelled, err) {
			return a.leave(ctx)
		}
		if err := a.restBetweenBeats(ctx, interval); err != nil {
			return err
		}
	}
}

func (a *Agent) restBetweenBeats(ctx context.Context, interval time.Duration) error {
	least := interval / beatsPerInterval
	if err := sleep(ctx, a.cfg.Clock, least); err != nil {
		return err
	}
	return a.toBeat.wait(ctx, a.cfg.Clock, interval-least)
}

func (a *Agent) beat(ctx context.Context, sequence uint64, timeout time.Duration) error {
	call, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := a.cfg.API.Heartbeat(call, &balsav1.HeartbeatRequest{
		NodeName: a.cfg.Name, BootId: a.machine.Info.GetBootId(), AppliedRevision: a.applied.Load(), Sequence: sequence,
	})
	if err != nil {
		return err
	}
	if len(response.GetServers()) > 0 {
		a.cfg.OnServers(response.GetServers())
	}
	if removed := response.GetRemoved(); removed != nil {
		a.cfg.OnRemoved(removed.GetIdentities())
	}
	if response.GetRegister() {
		a.askToRegister()
	}
	return nil
}

var (
	errSilent = errors.New("the stream of assignments has gone silent")
	errOlder  = errors.New("the server's set is older than ours")
)

// assignLoop follows the assignments, from one server to the next.
func (a *Agent) assignLoop(ctx context.Context) error {
	pause := a.newRetry()
	var older time.Time // when servers began to insist on an older set
	for {
		err := a.follow(ctx, &older, pause)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		a.log.Info("assignments ended; subscribing again", "error", err)
		a.metrics.streams.Inc()
		if err := pause.pause(ctx); err != nil {
			return err
		}
	}
}

// follow reads one stream to its end.
func (a *Agent) follow(ctx context.Context, older *time.Time, pause *retry) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := a.cfg.Clock.NewTimer(streamSilence)
	defer watchdog.Stop()
	go watch(ctx, watchdog, cancel)
	stream, err := a.cfg.API.Assignments(ctx, &balsav1.AssignmentsRequest{NodeName: a.cfg.Name})
	if err != nil {
		return err
	}
	defer func() {
		if err := stream.Close(); err != nil {
			a.log.Debug("closing the stream of assignments", "error", err)
		}
	}()
	next := &step{}
	for {
		message, err := stream.Recv()
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		watchdog.Reset(streamSilence)
		complete, unknown := next.add(message)
		for _, what := range unknown {
			a.log.Warn("a server sent what this agent does not know", "what", what)
		}
		if !complete {
			continue
		}
		if err := a.take(next, older); err != nil {
			return err
		}
		pause.reset()
	}
}

// watch ends the stream when the timer was not put back in time.
func watch(ctx context.Context, timer clock.Timer, cancel context.CancelCauseFunc) {
	select {
	case <-ctx.Done():
	case <-timer.C():
		cancel(errSilent)
	}
}

// take makes a complete step the state and has everybody look at what it changed.
func (a *Agent) take(next *step, older *time.Time) error {
	if a.leaving.Load() {
		return ErrNodeRemoved
	}
	if err := a.refuseOlder(next, older); err != nil {
		return err
	}
	e, err := a.commit(next)
	if err != nil {
		return err
	}
	if len(e.uids) > 0 || e.services {
		a.toSave.raise()
	}
	if len(e.uids) > 0 {
		a.admit()
	}
	a.syncedOnce.Do(func() { close(a.synced) })
	for _, uid := range e.uids {
		a.look(uid)
	}
	if next.full || e.volumes {
		a.toClean.raise()
	}
	a.toSync.raise()
	a.metrics.revision.Set(float64(next.revision))
	return nil
}

// commit makes a step the state, which a server has told. What it takes away or
// changes is on disk before anybody acts on it, so that an agent that is killed
// right after acting on it knows what it acted on. What it adds is on disk before
// a container is started (awaitSaved): until then there is at most an empty
// sandbox, made from a newer set than the one on disk, and that proves nothing
// (startedAfter).
func (a *Agent) commit(next *step) (effect, error) {
	a.saving <- struct{}{}
	release := func() { <-a.saving }
	defer func() { release() }()
	return a.set.commit(next, true, func(draft *set, e effect) {
		if e.changed {
			a.save(a.journal.encodePods(draft))
			return
		}
		release = func() {} // it is up to the writer
		a.saveBeside(a.journal.encodePods(draft))
	})
}

// refuseOlder: a set that is older than ours comes from a server that lags, and
// another will do better. Only when the servers insist, after a restore from a
// backup for example, it is taken.
func (a *Agent) refuseOlder(next *step, older *time.Time) error {
	_, _, have := a.set.known()
	have = max(have, a.acknowledged.Load())
	now := a.cfg.Clock.Now()
	if !next.full || next.revision >= have {
		*older = time.Time{}
		return nil
	}
	if older.IsZero() {
		*older = now
	}
	if now.Sub(*older) < olderPatience {
		return fmt.Errorf("%w: %d, ours is %d", errOlder, next.revision, have)
	}
	a.log.Warn("taking an older set, since the servers insist: were they restored from a backup?", "revision", next.revision, "was", have)
	a.acknowledged.Store(next.revision)
	if err := a.journal.dropChanges(math.MaxInt64); err != nil { // they are of another history
		a.log.Warn("changes that are saved cannot be removed", "error", err)
	}
	*older = time.Time{}
	return nil
}

// saveBeside writes while workers begin to act, and then lets go of a.saving.
func (a *Agent) saveBeside(write func() error) {
	done := make(chan struct{})
	a.mu.Lock()
	a.written = done
	a.mu.Unlock()
	a.running.Go(func() {
		defer func() { <-a.saving }()
		defer close(done)
		a.save(write)
	})
}

// awaitSaved waits until the set that the caller has seen is on disk, or could
// not be written.
func (a *Agent) awaitSaved(ctx context.Context) error {
	a.mu.Lock()
	written := a.written
	a.mu.Unlock()
	if written == nil {
		return nil
	}
	select {
	case <-written:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until the assignments are on disk: %w", context.Cause(ctx))
	}
}

// save writes a part of the set. A full disk does not stop the node: the state
// is in memory, a server knows it, and what is too old on disk is told by its
// revision.
func (a *Agent) save(write func() error) bool {
	if a.abandoned.Load() {
		return true
	}
	err := write()
	a.metrics.saved(err)
	a.mu.Lock()
	was := a.unsaved
	a.unsaved = err != nil
	a.mu.Unlock()
	if err != nil && !was {
		a.log.Error("the assignments cannot be saved; going on with them in memory", "error", err)
		a.toSave.raise()
	}
	return err == nil
}

// saveLoop saves what need not be saved at once, and what could not be: at most
// saveEvery after a change.
func (a *Agent) saveLoop(ctx context.Context) error {
	pause := a.newRetry()
	services := int64(-1) // how often they had changed when they were last saved
	all := func() bool {
		changes, _ := a.set.position()
		ok := a.save(func() error {
			err := a.savePods()
			if changes != services {
				err = errors.Join(err, a.journal.saveServices(a.set))
			}
			return err
		})
		if ok {
			services = changes
		}
		return ok
	}
	defer all()
	for {
		if err := a.toSave.wait(ctx, a.cfg.Clock, 0); err != nil {
			return err
		}
		// Not at once: what comes with a pod would be written while it starts.
		if err := sleep(ctx, a.cfg.Clock, saveEvery); err != nil {
			return err
		}
		if all() {
			pause.reset()
			continue
		}
		a.toSave.raise()
		if err := pause.pause(ctx); err != nil {
			return err
		}
	}
}

func (a *Agent) savePods() error {
	a.saving <- struct{}{}
	defer func() { <-a.saving }()
	return a.journal.savePods(a.set)
}
