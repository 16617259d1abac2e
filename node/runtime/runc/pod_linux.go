package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
)

// pod is what this agent knows of one pod.
type pod struct {
	rt     *Runtime
	uid    runtime.PodUID
	dir    string
	cgroup string
	// turn holds one token: whoever takes it may change the pod.
	turn chan struct{}
	disk diskCache

	mu         sync.Mutex
	exists     bool                  // guarded by mu; pod.json is written
	record     podRecord             // guarded by mu
	sandbox    runtime.SandboxStatus // guarded by mu
	message    string                // guarded by mu
	containers map[string]*attempt   // guarded by mu; by container id
	shim       *shimClient           // guarded by mu; nil without a connection
	known      map[string]bool       // guarded by mu; ids that the shim held when it was connected
	closing    bool                  // guarded by mu; the connection's end is wanted
	removing   bool                  // guarded by mu; RemovePod has begun and must be finished
}

type attempt struct {
	record containerRecord
	state  runtime.ContainerState
	tidied bool // mounts, cgroup and libcontainer's state are gone
}

func (r *Runtime) newPod(uid runtime.PodUID) *pod {
	return &pod{
		rt: r, uid: uid, dir: r.podDir(uid), cgroup: filepath.Join(r.podsCgroup(), string(uid)),
		turn: make(chan struct{}, 1), containers: map[string]*attempt{}, sandbox: runtime.SandboxLost,
	}
}

// take waits for the pod's turn; the caller calls the returned function.
func (p *pod) take(ctx context.Context) (release func(), err error) {
	select {
	case p.turn <- struct{}{}:
		return func() { <-p.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("pod %s: wait for its turn: %w", p.uid, context.Cause(ctx))
	}
}

// state returns false for a pod that is not made yet, or not any more.
func (p *pod) state() (runtime.PodState, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.exists {
		return runtime.PodState{}, false
	}
	c := p.record.Config
	s := runtime.PodState{
		UID: p.uid, Namespace: c.Namespace, Name: c.Name, Annotations: c.Annotations, CgroupPath: p.cgroup,
		CreatedAt: p.record.CreatedAt, Sandbox: p.sandbox, Message: p.message,
	}
	if !c.HostNetwork {
		s.NetNS = filepath.Join(p.dir, nsDir, "net")
	}
	for _, a := range p.containers {
		s.Containers = append(s.Containers, a.state)
	}
	runtime.SortContainers(s.Containers)
	return s, true
}

// RunPod implements runtime.Lifecycle.
func (r *Runtime) RunPod(ctx context.Context, cfg runtime.PodConfig) (runtime.PodState, error) {
	if err := cfg.Validate(); err != nil {
		return runtime.PodState{}, err
	}
	for {
		p := r.findOrNew(cfg.UID)
		release, err := p.take(ctx)
		if err != nil {
			return runtime.PodState{}, err
		}
		gone, err := p.finishRemoval(ctx)
		if err == nil && !gone {
			defer release()
			return p.run(ctx, cfg)
		}
		release()
		if err != nil {
			return runtime.PodState{}, fmt.Errorf("run pod %s: %w", cfg.UID, err)
		}
	}
}

// finishRemoval tells whether the pod that we waited for has been removed, and
// completes a removal that failed half way.
func (p *pod) finishRemoval(ctx context.Context) (gone bool, err error) {
	p.mu.Lock()
	removing := p.removing
	p.mu.Unlock()
	if removing {
		if err := p.removeAll(ctx); err != nil {
			return false, err
		}
	}
	again, ok := p.rt.find(p.uid)
	return !ok || again != p, nil
}

// run makes or revives the sandbox. A pod that could not be made leaves nothing.
func (p *pod) run(ctx context.Context, cfg runtime.PodConfig) (runtime.PodState, error) {
	state, existed := p.state()
	if existed && state.Sandbox == runtime.SandboxReady {
		return state, nil
	}
	err := p.makeSandbox(ctx, cfg, existed)
	if err != nil && !existed {
		undo, cancel := context.WithTimeout(p.rt.ctx, undoTimeout)
		defer cancel()
		err = errors.Join(err, p.removeAll(undo))
	}
	if err != nil {
		return runtime.PodState{}, fmt.Errorf("run pod %s: %w", p.uid, err)
	}
	p.rt.changes.Add(p.uid)
	state, _ = p.state()
	return state, nil
}

// undoTimeout bounds the cleaning up after a failure, whose cause is often
// that the caller's own context has ended.
const undoTimeout = 30 * time.Second

func (p *pod) makeSandbox(ctx context.Context, cfg runtime.PodConfig, existed bool) error {
	record := podRecord{Config: cfg, CreatedAt: time.Now().UTC(), BootID: p.rt.bootID}
	if existed {
		p.mu.Lock()
		record = p.record
		p.mu.Unlock()
		record.BootID = p.rt.bootID
		if err := p.writeRecord(record); err != nil {
			return err
		}
	}
	fresh, err := p.makeFiles(record.Config)
	if err != nil {
		return err
	}
	// A pod that is made is not seen before it is complete, so its two halves
	// can be made at once; one that is revived must not read ready too early.
	mounted := make(chan error, 1)
	mount := func() { mounted <- p.makeMounts(ctx, record.Config, fresh) }
	if existed {
		mount()
		if err := <-mounted; err != nil {
			return err
		}
		mounted <- nil
	} else {
		go mount()
	}
	if err := errors.Join(p.makeShim(ctx, record.Config), <-mounted); err != nil {
		return err
	}
	if !existed {
		// Last: a directory without it is a leftover. A shim that lives says nothing
		// of the name spaces, which an agent that died may not have pinned.
		if err := p.writeRecord(record); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exists, p.record = true, record
	return nil
}

func (p *pod) makeShim(ctx context.Context, cfg runtime.PodConfig) error {
	if err := p.rt.cgroups.Make(filepath.Join(p.cgroup, shimCgroup)); err != nil {
		return err
	}
	if err := p.limitPod(cfg); err != nil {
		return err
	}
	return p.startShim(ctx)
}

func (p *pod) writeRecord(record podRecord) error {
	return writeJSON(filepath.Join(p.dir, podFile), record)
}

// makeFiles tells whether the pod's directory is new.
func (p *pod) makeFiles(cfg runtime.PodConfig) (fresh bool, err error) {
	err = os.Mkdir(p.dir, 0o711)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	fresh = err == nil
	for _, dir := range []string{nsDir, etcDir, shmDir, logsDir, containersDir} {
		if err := os.Mkdir(filepath.Join(p.dir, dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fresh, err
		}
	}
	for name, content := range map[string][]byte{
		"hosts": cfg.Hosts, "resolv.conf": cfg.ResolvConf, "hostname": []byte(cfg.Hostname + "\n"),
	} {
		path, owner := filepath.Join(p.dir, etcDir, name), int(rootID(cfg))
		if err := errors.Join(os.WriteFile(path, content, 0o644), os.Lchown(path, owner, owner)); err != nil {
			return fresh, err
		}
	}
	return fresh, nil
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// RemovePod implements runtime.Lifecycle.
func (r *Runtime) RemovePod(ctx context.Context, uid runtime.PodUID) error {
	if err := runtime.ValidateUID(uid); err != nil {
		return err
	}
	p, ok := r.find(uid)
	if !ok {
		return nil
	}
	release, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := p.removeAll(ctx); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	r.changes.Add(uid)
	return nil
}

// removeAll takes away everything of the pod, whatever state it is in. The
// marker lets a restarted agent finish what this one began.
func (p *pod) removeAll(ctx context.Context) error {
	p.mu.Lock()
	p.removing, p.sandbox, p.message = true, runtime.SandboxLost, "the pod is being removed"
	p.mu.Unlock()
	if err := touch(filepath.Join(p.dir, removingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := p.stopAll(ctx); err != nil {
		return err
	}
	if err := hostmount.UnmountUnder(p.dir); err != nil {
		return err
	}
	if err := p.rt.cgroups.Remove(ctx, p.cgroup); err != nil {
		return err
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return err
	}
	p.mu.Lock()
	p.exists, p.removing, p.containers = false, false, map[string]*attempt{}
	p.mu.Unlock()
	p.rt.drop(p)
	return nil
}

// stopAll kills the containers, lets the shim reap them and leave, and then
// kills whatever is left in the pod's cgroup.
func (p *pod) stopAll(ctx context.Context) error {
	children, err := p.rt.cgroups.Children(p.cgroup)
	if err != nil {
		return err
	}
	for _, child := range children {
		if child == shimCgroup {
			continue
		}
		if err := p.rt.cgroups.Kill(ctx, filepath.Join(p.cgroup, child)); err != nil {
			return err
		}
	}
	p.dismissShim(ctx)
	return p.rt.cgroups.Kill(ctx, p.cgroup)
}

// dismissShim asks the shim to quit; it refuses until it has reaped its
// containers. Patience is bounded: the kill that follows does the same.
func (p *pod) dismissShim(ctx context.Context) {
	const patience, look = 500 * time.Millisecond, 2 * time.Millisecond
	p.mu.Lock()
	shim := p.shim
	p.closing = true
	p.mu.Unlock()
	if shim == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		_, err := shim.call(ctx, "quit", nil)
		if !refusedWith(err, "busy") {
			break
		}
		select {
		case <-ctx.Done():
			p.disconnect()
			return
		case <-ticker.C:
		}
	}
	p.waitUnlocked(ctx)
	p.disconnect()
}

// waitUnlocked waits until the shim has gone, by its lock.
func (p *pod) waitUnlocked(ctx context.Context) {
	const look = time.Millisecond
	for {
		lock, err := lockPath(filepath.Join(p.dir, lockFile))
		if err == nil {
			_ = lock.Close()
			return
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return
		}
		timer := time.NewTimer(look)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// disconnect closes the connection to the shim on purpose.
func (p *pod) disconnect() {
	p.mu.Lock()
	shim := p.shim
	p.closing, p.shim = true, nil
	p.mu.Unlock()
	if shim != nil {
		shim.close()
	}
}
