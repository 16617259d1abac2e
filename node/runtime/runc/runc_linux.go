// Package runc runs pods with the two helper programs: a balsa-shim for each
// pod, which outlives the agent, and balsa-runc, which starts containers with
// libcontainer. See DESIGN.md.
//
// Everything it makes lies below one directory and one cgroup prefix, so that
// several agents share a machine; what it finds there and cannot account for
// when it opens, it removes. It refuses to share its directory with another
// agent, and to decide what should run.
package runc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/helpers"
	"github.com/balsa-run/balsa/internal/hostcgroup"
	"github.com/balsa-run/balsa/node/runtime"
)

// Options say where a node's pods live.
type Options struct {
	// Dir is the absolute directory of this node's pods. It must be on a file
	// system that can be an overlay's upper layer, and not be an overlay itself.
	Dir string
	// CgroupPrefix is the absolute path of this node's cgroups, such as
	// "/balsa/n1", in every hierarchy. Everything below its "pods" is the
	// runtime's.
	CgroupPrefix string
	// Helpers are the helper programs.
	Helpers helpers.Paths
	Log     *slog.Logger
}

// Runtime implements runtime.Runtime. Close it to let go of the directory; the
// pods live on.
type Runtime struct {
	opt     Options
	cgroups *hostcgroup.Tree
	bootID  string
	locks   []*os.File // of the directory and of the cgroup prefix
	changes *runtime.Changes

	// ctx ends with Close; background work of pods runs under it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	warmer warmer

	mu     sync.Mutex
	pods   map[runtime.PodUID]*pod // guarded by mu
	closed bool                    // guarded by mu
}

var _ runtime.Runtime = (*Runtime)(nil)

// maxParallelAdoptions bounds the pods that Open looks at at once.
const maxParallelAdoptions = 8

// ErrInUse: another agent holds the directory or the cgroup prefix.
var ErrInUse = errors.New("in use by another agent")

// Open takes over the directory: it adopts pods that run, marks those that
// lost their shim or were alive before a reboot, and removes what belongs to
// no pod.
func Open(ctx context.Context, opt Options) (*Runtime, error) {
	if !filepath.IsAbs(opt.Dir) || !filepath.IsAbs(opt.CgroupPrefix) || filepath.Clean(opt.CgroupPrefix) == "/" {
		return nil, fmt.Errorf("open runtime: directory %q and cgroup prefix %q: want absolute paths, the prefix not /: %w",
			opt.Dir, opt.CgroupPrefix, runtime.ErrInvalid)
	}
	r, err := prepare(opt)
	if err != nil {
		return nil, fmt.Errorf("open runtime in %s: %w", opt.Dir, err)
	}
	if err := errors.Join(r.adopt(ctx), r.weighPods()); err != nil {
		return nil, errors.Join(fmt.Errorf("open runtime in %s: %w", opt.Dir, err), r.Close())
	}
	return r, nil
}

func prepare(opt Options) (*Runtime, error) {
	if err := os.MkdirAll(filepath.Join(opt.Dir, podsDir), 0o711); err != nil {
		return nil, err
	}
	// Mounts are found again by their real paths.
	dir, err := filepath.EvalSymlinks(opt.Dir)
	if err != nil {
		return nil, err
	}
	opt.Dir = dir
	tree, err := hostcgroup.Discover()
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	locks, err := lockBoth(tree, opt)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Runtime{
		opt: opt, cgroups: tree, bootID: boot, locks: locks, changes: runtime.NewChanges(),
		ctx: ctx, cancel: cancel, pods: map[runtime.PodUID]*pod{},
	}, nil
}

// lockPath opens and locks a file; EWOULDBLOCK when somebody holds it.
func lockPath(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockPatience: an agent that is killed while it forks leaves a child that
// holds its locks until it has executed its program.
const (
	lockPatience = time.Second
	lockLook     = 5 * time.Millisecond
)

// lockBoth keeps out a second agent for the directory, and one that was given
// the same cgroups by mistake: it would take our pods for strangers.
func lockBoth(tree *hostcgroup.Tree, opt Options) ([]*os.File, error) {
	dir, err := patiently(func() (*os.File, error) { return lockPath(filepath.Join(opt.Dir, "agent.lock")) })
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", opt.Dir, err)
	}
	prefix, err := patiently(func() (*os.File, error) { return tree.Lock(opt.CgroupPrefix) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cgroup prefix %s: %w", opt.CgroupPrefix, err), dir.Close())
	}
	return []*os.File{dir, prefix}, nil
}

func patiently(lock func() (*os.File, error)) (*os.File, error) {
	for deadline := time.Now().Add(lockPatience); ; {
		f, err := lock()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		if time.Now().After(deadline) {
			return nil, ErrInUse
		}
		<-time.NewTimer(lockLook).C
	}
}

// Close stops watching the pods and frees the directory. Pods live on.
func (r *Runtime) Close() error {
	r.mu.Lock()
	r.closed = true
	pods := sortedPods(r.pods)
	r.mu.Unlock()
	r.cancel()
	for _, p := range pods {
		p.disconnect()
	}
	r.work.Wait()
	r.cgroups.RemoveIfEmpty(r.podsCgroup())
	var errs []error
	for _, lock := range r.locks {
		errs = append(errs, lock.Close())
	}
	return errors.Join(errs...)
}

// background runs f, which Close waits for; false when the runtime is closed.
func (r *Runtime) background(f func(ctx context.Context)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.work.Go(func() { f(r.ctx) })
	return true
}

func sortedPods(pods map[runtime.PodUID]*pod) []*pod {
	list := make([]*pod, 0, len(pods))
	for _, p := range pods {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *pod) int { return cmp.Compare(a.uid, b.uid) })
	return list
}

// Pods implements runtime.Observer.
func (r *Runtime) Pods(context.Context) ([]runtime.PodState, error) {
	r.mu.Lock()
	pods := sortedPods(r.pods)
	r.mu.Unlock()
	states := make([]runtime.PodState, 0, len(pods))
	for _, p := range pods {
		if state, ok := p.state(); ok {
			states = append(states, state)
		}
	}
	return states, nil
}

// Pod implements runtime.Observer.
func (r *Runtime) Pod(_ context.Context, uid runtime.PodUID) (runtime.PodState, error) {
	if p, ok := r.find(uid); ok {
		if state, ok := p.state(); ok {
			return state, nil
		}
	}
	return runtime.PodState{}, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
}

// NextChange implements runtime.Observer.
func (r *Runtime) NextChange(ctx context.Context) (runtime.PodUID, error) { return r.changes.Next(ctx) }

func (r *Runtime) find(uid runtime.PodUID) (*pod, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.pods[uid]
	return p, ok
}

// findOrNew enters a pod that has nothing on disk yet.
func (r *Runtime) findOrNew(uid runtime.PodUID) *pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.pods[uid]
	if !ok {
		p = r.newPod(uid)
		r.pods[uid] = p
	}
	return p
}

func (r *Runtime) drop(p *pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pods[p.uid] == p {
		delete(r.pods, p.uid)
	}
}

func (r *Runtime) podDir(uid runtime.PodUID) string {
	return filepath.Join(r.opt.Dir, podsDir, string(uid))
}

// weighPods gives the cgroups above the pods the weight of the whole machine.
// A cgroup counts as one process among those beside it, so with the default
// weight all pods together would get as little as one busy process of the node.
func (r *Runtime) weighPods() error {
	if err := r.cgroups.Make(r.podsCgroup()); err != nil {
		return err
	}
	shares := uint64(defaultCPUShares * goruntime.NumCPU())
	for path := r.podsCgroup(); path != "/"; path = filepath.Dir(path) {
		if err := r.cgroups.SetCPUShares(path, shares); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) podsCgroup() string { return filepath.Join(r.opt.CgroupPrefix, podsCgroup) }

// lastLine is the end of a shim's log, for the message of a lost pod.
func lastLine(path string) string {
	const maxTail = 4 << 10
	content, err := os.ReadFile(path)
	if err != nil || len(content) == 0 {
		return ""
	}
	content = content[max(0, len(content)-maxTail):]
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return lines[len(lines)-1]
}
