package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/balsa-run/balsa/node/pod"
)

// probeRunner asks containers how they are: a goroutine a probe, a bounded
// number of questions at once.
type probeRunner struct {
	a     *Agent
	slots chan struct{}

	mu   sync.Mutex
	pods map[string]map[pod.ProbeKey]*probing // guarded by mu; by uid
}

type probing struct {
	probe  pod.Probe
	cancel context.CancelFunc
	state  pod.ProbeState // guarded by the runner's mu
}

func newProbeRunner(a *Agent) *probeRunner {
	return &probeRunner{a: a, slots: make(chan struct{}, parallelProbes), pods: map[string]map[pod.ProbeKey]*probing{}}
}

// set makes these the probes of a pod: one that is asked already goes on.
func (r *probeRunner) set(uid string, probes []pod.Probe) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, want := r.pods[uid], map[pod.ProbeKey]*probing{}
	for _, p := range probes {
		if old := have[p.Key()]; old != nil && old.probe.Attempt == p.Attempt && old.probe.URL == p.URL && old.probe.TCP == p.TCP && old.probe.GRPC == p.GRPC {
			want[p.Key()] = old
			continue
		}
		want[p.Key()] = r.beginLocked(uid, p)
	}
	for key, old := range have {
		if want[key] != old {
			old.cancel()
		}
	}
	if len(want) == 0 {
		delete(r.pods, uid)
		return
	}
	r.pods[uid] = want
}

func (r *probeRunner) beginLocked(uid string, p pod.Probe) *probing {
	ctx, cancel := context.WithCancel(r.a.work)
	b := &probing{probe: p, cancel: cancel, state: p.Start()}
	r.a.running.Go(func() {
		defer cancel()
		r.ask(ctx, uid, b)
	})
	return b
}

// states returns what the probes of a pod amount to.
func (r *probeRunner) states(uid string) map[pod.ProbeKey]pod.ProbeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[pod.ProbeKey]pod.ProbeState, len(r.pods[uid]))
	for key, b := range r.pods[uid] {
		out[key] = b.state
	}
	return out
}

// jitter spreads the first questions: many containers are adopted at once when
// the agent starts, and many begin at once when a Deployment does.
func (r *probeRunner) jitter(p pod.Probe) time.Duration {
	most := jitterMax
	if p.Seed || p.StartedAt.Before(r.a.began) {
		most = min(p.Period, adoptJitterMax)
	}
	return most - r.a.random.spread(most)
}

// ask goes on until the probe is no longer wanted, or there is nothing more to
// ask.
func (r *probeRunner) ask(ctx context.Context, uid string, b *probing) {
	if sleep(ctx, r.a.cfg.Clock, r.jitter(b.probe)) != nil {
		return
	}
	for {
		r.mu.Lock()
		state := b.state
		r.mu.Unlock()
		now := r.a.cfg.Clock.Now()
		if b.probe.Over(state) || sleep(ctx, r.a.cfg.Clock, b.probe.Next(state, now).Sub(now)) != nil {
			return
		}
		err := r.once(ctx, b.probe)
		if ctx.Err() != nil {
			return
		}
		r.observe(uid, b, err)
	}
}

func (r *probeRunner) once(ctx context.Context, p pod.Probe) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	call, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	var err error
	if len(p.Exec) > 0 {
		err = r.a.exec(call, p.UID, p.Container, p.Exec)
	} else {
		err = r.a.cfg.Prober.Probe(call, p)
	}
	if err != nil && errors.Is(call.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", p.Timeout)
	}
	r.a.metrics.probed(err)
	return err
}

func (r *probeRunner) observe(uid string, b *probing, err error) {
	r.mu.Lock()
	before := b.state
	state, events := b.probe.Observe(before, err)
	b.state = state
	r.mu.Unlock()
	if p := r.a.set.pod(uid); p != nil {
		for _, e := range events {
			r.a.event(p, e)
		}
	}
	if before.Ready != state.Ready || before.Failed != state.Failed {
		r.a.wakeAll([]string{uid})
	}
}
