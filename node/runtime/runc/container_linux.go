package runc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

// RunContainer implements runtime.Lifecycle.
func (r *Runtime) RunContainer(ctx context.Context, uid runtime.PodUID, c runtime.ContainerConfig) error {
	if err := c.Validate(); err != nil {
		return err
	}
	p, ok := r.find(uid)
	if !ok {
		return fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	release, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	state, ok := p.state()
	if !ok {
		return fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	admitted, err := runtime.AdmitAttempt(state, c)
	if err != nil {
		return fmt.Errorf("pod %s: %w", uid, err)
	}
	if !admitted {
		return p.awaitStart(ctx, containerID(c.Name, c.Attempt))
	}
	if err := p.runContainer(ctx, c); err != nil {
		return fmt.Errorf("pod %s: container %s attempt %d: %w", uid, c.Name, c.Attempt, err)
	}
	return nil
}

// awaitStart joins a start that an earlier call, or an earlier agent, began
// and whose outcome is not known yet.
func (p *pod) awaitStart(ctx context.Context, id string) error {
	p.mu.Lock()
	a, shim := p.containers[id], p.shim
	p.mu.Unlock()
	if a == nil || a.state.Status != runtime.ContainerCreated {
		return nil
	}
	if shim == nil {
		return runtime.ErrPodLost
	}
	line, err := shim.call(ctx, "start", startKeys(a.record, "", runtime.LogLimits{}))
	return p.started(ctx, id, line, err)
}

func (p *pod) runContainer(ctx context.Context, c runtime.ContainerConfig) error {
	p.mu.Lock()
	shim := p.shim
	cfg := p.record.Config
	p.mu.Unlock()
	if shim == nil {
		return runtime.ErrPodLost
	}
	streams, err := p.streamKeys(c)
	if err != nil {
		return err
	}
	if err := c.CheckPod(cfg); err != nil {
		return err
	}
	if err := p.checkPause(cfg); err != nil {
		return err
	}
	defer p.rt.warm()()
	if err := p.removeOldAttempts(ctx, c); err != nil {
		return err
	}
	a := &attempt{record: containerRecord{Name: c.Name, Attempt: c.Attempt, ImageDigest: c.Image.Digest, CreatedAt: time.Now().UTC(), CPUShares: c.Resources.CPUShares}}
	a.state = runtime.ContainerState{Name: c.Name, Attempt: c.Attempt, ImageDigest: c.Image.Digest, Status: runtime.ContainerCreated}
	id := containerID(c.Name, c.Attempt)
	if err := p.prepare(id, cfg, c, a.record); err != nil {
		// The attempt has not begun: nothing of it may remain.
		return errors.Join(err, p.discard(ctx, id))
	}
	p.mu.Lock()
	p.containers[id] = a
	p.mu.Unlock()
	oomFile := p.rt.cgroups.OOMFile(filepath.Join(p.cgroup, id))
	err = p.unthrottled(cfg, func() error {
		line, err := shim.call(ctx, "start", append(startKeys(a.record, oomFile, c.Log.WithDefaults()), streams...))
		return p.started(ctx, id, line, err)
	})
	if err != nil {
		return err
	}
	return p.weigh()
}

// defaultCPUShares is the kernel's.
const defaultCPUShares = 1024

// weigh gives the pod its own shares, or the sum of its containers': among its
// siblings a container counts only through its pod.
func (p *pod) weigh() error {
	sum := uint64(0)
	p.mu.Lock()
	if own := p.record.Config.Resources.CPUShares; own > 0 {
		p.mu.Unlock()
		return p.rt.cgroups.SetCPUShares(p.cgroup, own)
	}
	for _, a := range p.containers {
		if a.state.Status == runtime.ContainerExited {
			continue
		}
		if a.record.CPUShares == 0 {
			sum += defaultCPUShares
		}
		sum += a.record.CPUShares
	}
	p.mu.Unlock()
	if sum == 0 {
		return nil // it has ended already
	}
	return p.rt.cgroups.SetCPUShares(p.cgroup, sum)
}

func startKeys(r containerRecord, oomFile string, log runtime.LogLimits) [][2]string {
	id := containerID(r.Name, r.Attempt)
	return [][2]string{
		{"name", r.Name}, {"attempt", strconv.Itoa(r.Attempt)}, {"dir", filepath.Join(containersDir, id)},
		{"log", filepath.Join(logsDir, id+".log")}, {"logmax", strconv.FormatInt(log.MaxBytes, 10)},
		{"logfiles", strconv.Itoa(log.MaxFiles)}, {"oomfile", oomFile},
	}
}

// started turns the shim's answer to a start into the outcome.
func (p *pod) started(ctx context.Context, id string, line shimLine, err error) error {
	var refused *shimError
	switch {
	case refusedWith(err, "start-failed"):
		err = fmt.Errorf("%s: %w", line.keys["msg"], runtime.ErrStartFailed)
	case errors.As(err, &refused):
		// The shim has not begun: nothing of the attempt may remain.
		return errors.Join(err, p.discard(ctx, id))
	case errors.Is(err, errShimGone):
		return fmt.Errorf("%w: %w", err, runtime.ErrPodLost)
	case err != nil:
		return err
	}
	state, parseErr := parseContainer(line.keys)
	if parseErr != nil {
		return errors.Join(err, parseErr)
	}
	p.observe(state)
	return err
}

// prepare makes the attempt's directory, its root file system and its
// configuration.
func (p *pod) prepare(id string, cfg runtime.PodConfig, c runtime.ContainerConfig, record containerRecord) error {
	dir := filepath.Join(p.dir, containersDir, id)
	process, err := c.Process(cfg.Hostname)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, containerFile), record); err != nil {
		return err
	}
	in := specInput{container: c, process: process, pod: cfg, podDir: p.dir, cgroupPath: filepath.Join(p.cgroup, id), unified: p.rt.cgroups.Unified()}
	if in.pidNS, err = p.pidNamespace(id, cfg, c); err != nil {
		return err
	}
	if in.rootFS, err = p.mountRootFS(dir, cfg, c.Image); err != nil {
		return err
	}
	if in.user, err = resolveUser(in.rootFS, process, c.Security); err != nil {
		return err
	}
	if err := checkIDs(cfg, append([]uint32{in.user.UID, in.user.GID}, in.user.AdditionalGids...)...); err != nil {
		return err
	}
	if in.mounts, err = p.stageVolumes(id, c.Mounts); err != nil {
		return err
	}
	if c.Security.Privileged {
		if in.devices, err = hostDevices(); err != nil {
			return err
		}
	}
	spec, err := buildSpec(in)
	if err != nil {
		return fmt.Errorf("%w: %w", err, runtime.ErrInvalid)
	}
	return writeJSON(filepath.Join(dir, runcwire.SpecFile), spec)
}

func (p *pod) mountRootFS(dir string, cfg runtime.PodConfig, image runtime.Image) (string, error) {
	paths := map[string]string{}
	for _, name := range []string{upperDir, workDir, rootFSDir} {
		paths[name] = filepath.Join(dir, name)
		if err := os.Mkdir(paths[name], 0o755); err != nil {
			return "", err
		}
	}
	overlay := hostmount.Overlay{
		Layers: image.Layers, Upper: paths[upperDir], Work: paths[workDir], Target: paths[rootFSDir], Stage: filepath.Join(dir, layersDir),
	}
	if len(overlay.Layers) == 0 {
		return "", fmt.Errorf("image %s has no layers: %w", image.Digest, runtime.ErrInvalid)
	}
	if cfg.Users != nil {
		overlay.UserNS = p.nsFile("user")
		if err := os.Lchown(overlay.Upper, int(rootID(cfg)), int(rootID(cfg))); err != nil {
			return "", err
		}
	}
	return paths[rootFSDir], overlay.Mount()
}

// removeOldAttempts keeps the attempt before the new one, for its exit code
// and its log, and discards those before.
func (p *pod) removeOldAttempts(ctx context.Context, c runtime.ContainerConfig) error {
	for _, id := range p.ids() {
		p.mu.Lock()
		a := p.containers[id]
		old := a.record.Name == c.Name && a.record.Attempt < c.Attempt-1
		shim := p.shim
		p.mu.Unlock()
		if !old {
			continue
		}
		if shim != nil {
			_, err := shim.call(ctx, "forget", [][2]string{{"name", a.record.Name}, {"attempt", strconv.Itoa(a.record.Attempt)}})
			if err != nil && !refusedWith(err, "not-found") {
				return err
			}
		}
		if err := p.discard(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// ids lists the attempts, oldest names first, in a stable order.
func (p *pod) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.containers))
}

// discard removes every trace of an attempt that does not run.
func (p *pod) discard(ctx context.Context, id string) error {
	if err := p.clean(ctx, id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(p.dir, containersDir, id)); err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(p.dir, logsDir, id+".log*"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	p.disk.forget(id)
	p.mu.Lock()
	delete(p.containers, id)
	p.mu.Unlock()
	return nil
}

// tidyInTurn frees what an exited container still holds.
func (p *pod) tidyInTurn(ctx context.Context, id string) {
	release, err := p.take(ctx)
	if err != nil {
		return
	}
	defer release()
	if err := p.tidy(ctx, id); err != nil {
		p.rt.opt.Log.Error("cannot tidy up after a container", "pod", p.uid, "container", id, "error", err)
	}
}

// tidy keeps the records and the log of the attempt, and frees the rest.
func (p *pod) tidy(ctx context.Context, id string) error {
	p.mu.Lock()
	a, ok := p.containers[id]
	due := ok && !a.tidied && a.state.Status == runtime.ContainerExited
	p.mu.Unlock()
	if !due {
		return nil
	}
	if err := p.clean(ctx, id); err != nil {
		return err
	}
	p.mu.Lock()
	a.tidied = true
	p.mu.Unlock()
	return nil
}

// clean does what libcontainer's Destroy would, without starting the helper:
// kill what is left in the cgroup, remove it, the root file system and the
// state.
func (p *pod) clean(ctx context.Context, id string) error {
	cgroup := filepath.Join(p.cgroup, id)
	if err := p.rt.cgroups.Kill(ctx, cgroup); err != nil {
		return err
	}
	if err := p.rt.cgroups.Remove(ctx, cgroup); err != nil {
		return err
	}
	dir := filepath.Join(p.dir, containersDir, id)
	if err := hostmount.UnmountUnder(dir); err != nil {
		return err
	}
	gone := []string{filepath.Join(p.dir, runcwire.StateRoot, id)}
	for _, name := range []string{upperDir, workDir, rootFSDir, volumesDir, layersDir, targetFile} {
		gone = append(gone, filepath.Join(dir, name))
	}
	for _, path := range gone {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// Signal implements runtime.Lifecycle. It does not wait for the pod's turn: a
// container can be signalled while another starts.
func (r *Runtime) Signal(ctx context.Context, uid runtime.PodUID, name string, attempt int, sig runtime.Signal) error {
	a, p, err := r.running(uid, name, attempt)
	if err != nil {
		return err
	}
	p.mu.Lock()
	shim := p.shim
	p.mu.Unlock()
	if shim == nil {
		return fmt.Errorf("pod %s: %w", uid, runtime.ErrPodLost)
	}
	if sig < 1 || sig > runtime.MaxSignal {
		return fmt.Errorf("signal %d: want 1 to %d: %w", int(sig), runtime.MaxSignal, runtime.ErrInvalid)
	}
	keys := [][2]string{{"name", a.Name}, {"attempt", strconv.Itoa(a.Attempt)}, {"sig", strconv.Itoa(int(sig))}}
	_, err = shim.call(ctx, "signal", keys)
	switch {
	case refusedWith(err, "not-running"):
		return fmt.Errorf("pod %s: container %s: %w", uid, name, runtime.ErrNotRunning)
	case errors.Is(err, errShimGone):
		return fmt.Errorf("pod %s: %w: %w", uid, err, runtime.ErrPodLost)
	}
	return err
}

// running finds an attempt that runs.
func (r *Runtime) running(uid runtime.PodUID, name string, attempt int) (runtime.ContainerState, *pod, error) {
	p, ok := r.find(uid)
	if !ok {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	state, ok := p.state()
	if !ok {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	c, ok := state.Attempt(name, attempt)
	if !ok {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: container %s attempt %d: %w", uid, name, attempt, runtime.ErrContainerNotFound)
	}
	if c.Status != runtime.ContainerRunning {
		return runtime.ContainerState{}, nil, fmt.Errorf("pod %s: container %s attempt %d is %s: %w", uid, name, attempt, c.Status, runtime.ErrNotRunning)
	}
	return c, p, nil
}
