package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime"
)

// adopt makes memory agree with the machine when the agent starts.
func (r *Runtime) adopt(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(r.opt.Dir, podsDir))
	if err != nil {
		return err
	}
	var pods []*pod
	for _, e := range entries {
		p := r.newPod(runtime.PodUID(e.Name()))
		pods = append(pods, p)
		r.pods[p.uid] = p
	}
	if err := r.removeStrangers(ctx); err != nil {
		return err
	}
	return adoptEach(ctx, pods)
}

func adoptEach(ctx context.Context, pods []*pod) error {
	errs := make([]error, len(pods))
	slots := make(chan struct{}, maxParallelAdoptions)
	var wg sync.WaitGroup
	for i, p := range pods {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := p.adopt(ctx); err != nil {
				errs[i] = fmt.Errorf("adopt pod %s: %w", p.uid, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// removeStrangers kills and removes cgroups of pods that have no directory.
func (r *Runtime) removeStrangers(ctx context.Context) error {
	names, err := r.cgroups.Children(r.podsCgroup())
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, known := r.pods[runtime.PodUID(name)]; known {
			continue
		}
		path := filepath.Join(r.podsCgroup(), name)
		r.opt.Log.Warn("removing a cgroup that belongs to no pod", "cgroup", path)
		if err := r.cgroups.Kill(ctx, path); err != nil {
			return err
		}
		if err := r.cgroups.Remove(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// adopt takes over one directory: a leftover is removed, a pod with a living
// shim is connected, any other is lost.
func (p *pod) adopt(ctx context.Context) error {
	release, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	var record podRecord
	recordErr := readJSON(filepath.Join(p.dir, podFile), &record)
	_, removing := os.Lstat(filepath.Join(p.dir, removingFile))
	if recordErr != nil || removing == nil || record.Config.UID != p.uid {
		p.rt.opt.Log.Info("removing what is left of a pod", "pod", p.uid, "removalHadBegun", removing == nil, "error", recordErr)
		return p.removeAll(ctx)
	}
	p.mu.Lock()
	p.exists, p.record = true, record
	p.mu.Unlock()
	if err := p.loadContainers(); err != nil {
		return err
	}
	if err := endExecs(filepath.Join(p.dir, execsDir), record.BootID == p.rt.bootID); err != nil {
		p.rt.opt.Log.Warn("what execs of the last agent have left cannot be ended", "pod", p.uid, "error", err)
	}
	p.rt.changes.Add(p.uid)
	return p.adoptShim(ctx, record)
}

func (p *pod) adoptShim(ctx context.Context, record podRecord) error {
	lock, err := lockPath(filepath.Join(p.dir, lockFile))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return p.adoptLiving(ctx)
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if record.BootID != p.rt.bootID {
		return p.lose(ctx, runtime.ReasonNodeRebooted, "the node restarted")
	}
	return p.lose(ctx, runtime.ReasonShimLost, p.whyLost())
}

// adoptLiving: a shim that holds its lock but does not answer leaves its pod
// lost but alone; the agent may remove the pod, or ask again with RunPod.
func (p *pod) adoptLiving(ctx context.Context) error {
	if err := p.reconnectOrLose(ctx); err != nil {
		p.rt.opt.Log.Error("a living shim does not answer", "pod", p.uid, "error", err)
		return nil
	}
	// An agent that died during a start has left the pod without its quota.
	p.mu.Lock()
	cfg := p.record.Config
	p.mu.Unlock()
	return errors.Join(p.settleUnstarted(ctx), p.throttle(cfg))
}

// loadContainers reads every attempt from disk.
func (p *pod) loadContainers() error {
	entries, err := os.ReadDir(filepath.Join(p.dir, containersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(p.dir, containersDir, e.Name())
		a := &attempt{}
		if err := readJSON(filepath.Join(dir, containerFile), &a.record); err != nil {
			// Not begun: clean and discard work by the id alone.
			a.record = containerRecord{}
		}
		a.state = runtime.ContainerState{
			Name: a.record.Name, Attempt: a.record.Attempt, ImageDigest: a.record.ImageDigest, Status: runtime.ContainerCreated,
		}
		for _, file := range []string{startedFile, exitFile} {
			if recorded, ok := readRecord(filepath.Join(dir, file)); ok {
				recorded.ImageDigest = a.record.ImageDigest
				a.state = recorded
			}
		}
		p.containers[e.Name()] = a
	}
	return nil
}

// settleUnstarted discards attempts that the living shim was never asked to
// start: the agent died in between. Their number can be used again.
func (p *pod) settleUnstarted(ctx context.Context) error {
	for _, id := range p.ids() {
		p.mu.Lock()
		state := p.containers[id].state
		shim := p.shim
		p.mu.Unlock()
		if state.Status == runtime.ContainerExited {
			p.rt.background(func(ctx context.Context) { p.tidyInTurn(ctx, id) })
			continue
		}
		if state.Status != runtime.ContainerCreated || shim == nil || p.shimKnows(id) {
			continue
		}
		if err := p.discard(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) shimKnows(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[id]
}
