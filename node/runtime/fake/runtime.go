package fake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/internal/hostcap"
	"github.com/balsa-run/balsa/node/runtime"
)

// ErrClosed: this handle's agent is dead.
var ErrClosed = errors.New("the agent of this handle has ended")

// Runtime is one agent's handle. It implements runtime.Runtime.
type Runtime struct {
	m       *Machine
	changes *runtime.Changes
	done    chan struct{} // closed with the handle
	closed  bool          // guarded by m.mu
}

var _ runtime.Runtime = (*Runtime)(nil)

// Close ends the handle as the end of the agent's process would.
func (r *Runtime) Close() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.closeLocked()
}

func (r *Runtime) closeLocked() {
	if r.closed {
		return
	}
	r.closed = true
	close(r.done)
	if r.m.current == r {
		r.m.current = nil
	}
}

// enter locks the machine for one call; the caller unlocks it unless enter
// failed.
func (r *Runtime) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r.m.mu.Lock()
	if r.closed {
		r.m.mu.Unlock()
		return ErrClosed
	}
	return nil
}

func (r *Runtime) inject(op Op, uid runtime.PodUID) error {
	if r.m.opt.Inject == nil {
		return nil
	}
	return r.m.opt.Inject(op, uid)
}

// RunPod implements runtime.Lifecycle.
func (r *Runtime) RunPod(ctx context.Context, cfg runtime.PodConfig) (runtime.PodState, error) {
	if err := cfg.Validate(); err != nil {
		return runtime.PodState{}, err
	}
	if err := r.inject(OpRunPod, cfg.UID); err != nil {
		return runtime.PodState{}, err
	}
	if err := r.enter(ctx); err != nil {
		return runtime.PodState{}, err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[cfg.UID]
	if !ok {
		p = &pod{config: cfg, createdAt: r.m.opt.Clock.Now().UTC(), containers: map[string]*container{}}
		p.config.Annotations = maps.Clone(cfg.Annotations)
		r.m.pods[cfg.UID] = p
	}
	if p.sandbox != runtime.SandboxReady {
		p.sandbox, p.message, p.shimDead = runtime.SandboxReady, "", false
		r.changes.Add(cfg.UID)
	}
	return p.state(cfg.UID), nil
}

// RunContainer implements runtime.Lifecycle.
func (r *Runtime) RunContainer(ctx context.Context, uid runtime.PodUID, cfg runtime.ContainerConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := r.inject(OpRunContainer, uid); err != nil {
		return err
	}
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	admitted, err := runtime.AdmitAttempt(p.state(uid), cfg)
	if err != nil || !admitted {
		return err
	}
	if p.sandbox != runtime.SandboxReady {
		return fmt.Errorf("pod %s: %w", uid, runtime.ErrPodLost)
	}
	process, err := checkProcess(p.config, cfg)
	if err != nil {
		return err
	}
	if err := cfg.CheckPod(p.config); err != nil {
		return err
	}
	if cfg.TargetContainer != "" {
		if _, err := cfg.CheckTarget(p.state(uid)); err != nil {
			return fmt.Errorf("pod %s: %w", uid, err)
		}
	}
	p.discardOldAttempts(cfg)
	r.changes.Add(uid)
	return r.m.startLocked(uid, p, cfg, process)
}

// checkProcess refuses what package runc finds out from the image.
func checkProcess(pod runtime.PodConfig, cfg runtime.ContainerConfig) (runtime.Process, error) {
	process, err := cfg.Process(pod.Hostname)
	if err != nil {
		return process, err
	}
	if _, err := hostcap.Resolve(cfg.Security.AddCapabilities, cfg.Security.DropCapabilities); err != nil {
		return process, fmt.Errorf("container %s: %w: %w", cfg.Name, err, runtime.ErrInvalid)
	}
	if len(cfg.Image.Layers) == 0 {
		return process, fmt.Errorf("container %s: image %s has no layers: %w", cfg.Name, cfg.Image.Digest, runtime.ErrInvalid)
	}
	user, _, _ := strings.Cut(process.User, ":")
	if cfg.Security.RunAsNonRoot && slices.Contains([]string{"", "0", "root"}, user) {
		return process, fmt.Errorf("container %s: runAsNonRoot is set, but the user is root: %w", cfg.Name, runtime.ErrInvalid)
	}
	return process, nil
}

// discardOldAttempts keeps the one before the new attempt.
func (p *pod) discardOldAttempts(cfg runtime.ContainerConfig) {
	maps.DeleteFunc(p.containers, func(_ string, c *container) bool {
		return c.state.Name == cfg.Name && c.state.Attempt < cfg.Attempt-1
	})
}

// Signal implements runtime.Lifecycle. Signals other than SIGTERM and SIGKILL
// have no effect on a simulated program.
func (r *Runtime) Signal(ctx context.Context, uid runtime.PodUID, name string, attempt int, sig runtime.Signal) error {
	if err := r.inject(OpSignal, uid); err != nil {
		return err
	}
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	c, ok := p.containers[key(name, attempt)]
	if !ok {
		return fmt.Errorf("pod %s: container %s attempt %d: %w", uid, name, attempt, runtime.ErrContainerNotFound)
	}
	if c.state.Status != runtime.ContainerRunning {
		return fmt.Errorf("pod %s: container %s attempt %d is %s: %w", uid, name, attempt, c.state.Status, runtime.ErrNotRunning)
	}
	if sig < 1 || sig > runtime.MaxSignal {
		return fmt.Errorf("signal %d: want 1 to %d: %w", int(sig), runtime.MaxSignal, runtime.ErrInvalid)
	}
	c.signalLocked(sig)
	return nil
}

// RemovePod implements runtime.Lifecycle.
func (r *Runtime) RemovePod(ctx context.Context, uid runtime.PodUID) error {
	if err := runtime.ValidateUID(uid); err != nil {
		return err
	}
	if err := r.inject(OpRemovePod, uid); err != nil {
		return err
	}
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return nil
	}
	for _, c := range p.containers {
		c.stop()
		c.wakeLocked()
	}
	delete(r.m.pods, uid)
	r.changes.Add(uid)
	return nil
}

// Pods implements runtime.Observer.
func (r *Runtime) Pods(ctx context.Context) ([]runtime.PodState, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.m.mu.Unlock()
	states := make([]runtime.PodState, 0, len(r.m.pods))
	for uid, p := range r.m.pods {
		states = append(states, p.state(uid))
	}
	slices.SortFunc(states, func(a, b runtime.PodState) int { return cmp.Compare(a.UID, b.UID) })
	return states, nil
}

// Pod implements runtime.Observer.
func (r *Runtime) Pod(ctx context.Context, uid runtime.PodUID) (runtime.PodState, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.PodState{}, err
	}
	defer r.m.mu.Unlock()
	p, ok := r.m.pods[uid]
	if !ok {
		return runtime.PodState{}, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	return p.state(uid), nil
}

// NextChange implements runtime.Observer.
func (r *Runtime) NextChange(ctx context.Context) (runtime.PodUID, error) {
	ctx, cancel := r.untilClosed(ctx)
	defer cancel(nil)
	return r.changes.Next(ctx)
}

// untilClosed ends the context with the handle.
func (r *Runtime) untilClosed(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-r.done:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
