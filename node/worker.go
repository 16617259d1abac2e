package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

// worker looks after one pod, by uid, for as long as it is assigned or anything
// of it exists. Its fields belong to its goroutine.
type worker struct {
	a      *Agent
	uid    string
	toLook signal
	// since is when the agent began with the pod: images that its containers
	// run for the first time are resolved after it.
	since time.Time

	mem   pod.Memory
	saved pod.Memory
	ip    netip.Addr
	// paths are those of the volumes that were prepared last.
	paths map[string]string
	// said holds the termination messages that were read.
	said map[pod.AttemptKey]string
	// last is the pod's object as last seen, for events after it has gone.
	last *balsav1.Pod
}

// look makes sure that a pod is looked at, by a new worker if it has none.
func (a *Agent) look(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w, ok := a.workers[uid]; ok {
		w.toLook.raise()
		return
	}
	if a.work.Err() != nil {
		return
	}
	if len(a.workers) >= maxWorkers {
		a.log.Error("too many pods to look after; this one has to wait", "uid", uid, "limit", maxWorkers)
		return
	}
	w := &worker{a: a, uid: uid, toLook: newSignal(), since: a.cfg.Clock.Now()}
	a.workers[uid] = w
	a.metrics.pods.Set(float64(len(a.workers)))
	a.running.Go(func() { w.run(a.work) })
}

// wakeAll looks at pods again for which something outside has changed.
func (a *Agent) wakeAll(uids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, uid := range uids {
		if w, ok := a.workers[uid]; ok {
			w.toLook.raise()
		}
	}
}

// retire ends a worker unless the pod has been assigned meanwhile.
func (a *Agent) retire(w *worker) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set.pod(w.uid) != nil {
		return false
	}
	delete(a.workers, w.uid)
	delete(a.admitted, w.uid)
	a.metrics.pods.Set(float64(len(a.workers)))
	return true
}

func (w *worker) run(ctx context.Context) {
	mem, err := w.a.journal.loadMemory(w.uid)
	if err != nil {
		w.a.log.Warn("a pod's memory cannot be read; going on without", "uid", w.uid, "error", err)
	}
	w.mem, w.saved = mem, mem
	for {
		rest, over := w.turn(ctx)
		if over {
			if w.leave() {
				return
			}
			continue
		}
		if err := w.toLook.wait(ctx, w.a.cfg.Clock, rest); err != nil {
			return
		}
	}
}

// leave ends the work on a pod that has gone, or is not ours to touch. Its files
// go with the next cleaning.
func (w *worker) leave() bool {
	if !w.a.retire(w) {
		return false
	}
	w.a.probes.set(w.uid, nil)
	w.a.hooks.set(w.uid, nil)
	w.a.tally.set(w.uid, netip.Addr{}, false)
	w.a.images.release(w.uid)
	w.a.guard.forget(w.uid)
	w.a.users.release(w.uid)
	w.a.reports.forget(w.uid)
	w.a.toClean.raise()
	return true
}

// turn takes steps until the pod has to wait. It returns for how long at most,
// and whether nothing is left to look after.
func (w *worker) turn(ctx context.Context) (rest time.Duration, over bool) {
	select {
	case w.a.slots <- struct{}{}:
		defer func() { <-w.a.slots }()
	case <-ctx.Done():
		return 0, false
	}
	for range stepsPerTurn {
		view, err := w.view(ctx)
		if errors.Is(err, errNotOurs) {
			return 0, true
		}
		if err != nil {
			w.a.log.Warn("a pod cannot be looked at", "uid", w.uid, "error", err)
			return turnPause, false
		}
		plan := pod.Step(view)
		w.adopt(view, plan)
		if len(plan.Actions) == 0 {
			return w.rest(view, plan), plan.Removed && view.Pod == nil
		}
		if !w.act(ctx, view, plan.Actions) {
			return turnPause, false
		}
	}
	return turnPause, false
}

func (w *worker) rest(view pod.View, plan pod.Plan) time.Duration {
	if plan.Wake.IsZero() {
		return resyncEvery
	}
	return min(max(plan.Wake.Sub(view.Now), time.Millisecond), resyncEvery)
}

// errNotOurs: the set does not prove that the pod should go, nor that it should
// stay; it is left alone.
var errNotOurs = errors.New("not assigned, and nothing proves that it should go")

// view gathers what the step looks at.
func (w *worker) view(ctx context.Context) (pod.View, error) {
	a := w.a
	synced, fromServer, revision := a.set.known()
	v := pod.View{
		Now: a.cfg.Clock.Now(), UID: w.uid, Pod: a.set.pod(w.uid), Revision: revision, IP: w.ip, Memory: w.mem,
		Node: pod.Node{Name: a.cfg.Name, IP: a.cfg.NodeIP, DNS: a.cfg.DNSAddress, Domain: a.facts.DNSDomain, MemoryBytes: a.machine.MemoryBytes,
			Allocatable: a.room(), PodPids: a.cfg.PodPids},
		Hooks: a.hooks.states(w.uid), VolumePaths: w.paths,
	}
	state, err := a.cfg.Runtime.Pod(ctx, runtime.PodUID(w.uid))
	switch {
	case err == nil:
		v.Runtime = &state
	case !errors.Is(err, runtime.ErrPodNotFound):
		return v, fmt.Errorf("state of pod %s: %w", w.uid, err)
	}
	if v.Pod == nil {
		if !synced || !fromServer && startedAfter(v.Runtime, revision) {
			return v, errNotOurs
		}
		return v, nil
	}
	w.last = v.Pod
	v.Sources = a.set.sources(v.Pod)
	v.Images = a.images.states(w.uid)
	v.Probes = a.probes.states(w.uid)
	v.Connections = a.tally.state(w.uid)
	v.Messages = w.messages(ctx, v.Pod, v.Runtime)
	v.HostFiles = a.hostFiles(v.Pod)
	v.HostsPath = a.cfg.RunDisk.Path(folderHosts + "/" + w.uid)
	v.MessagePath = func(k pod.AttemptKey) string { return a.cfg.RunDisk.Path(messageFile(w.uid, k)) }
	if users := v.Pod.GetSpec().HostUsers; users != nil && !*users {
		v.FreeUsers = a.users.give(w.uid)
	}
	v.Eviction = a.guard.eviction(w.uid)
	if a.cfg.Eviction != nil && v.Eviction == nil {
		v.Eviction = a.cfg.Eviction(w.uid)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if why, refused := a.refused[w.uid]; refused {
		v.Refusal = &why
	}
	return v, nil
}

// startedAfter tells whether a sandbox was made from a newer set than the one at
// revision, which therefore cannot know of it.
func startedAfter(state *runtime.PodState, revision int64) bool {
	if state == nil {
		return false
	}
	made, err := strconv.ParseInt(state.Annotations[pod.AnnotationRevision], 10, 64)
	return err == nil && made > revision
}

// adopt takes over what a step decided, but for its actions.
func (w *worker) adopt(view pod.View, plan pod.Plan) {
	w.mem = plan.Memory
	w.save()
	for _, e := range plan.Events {
		w.event(e)
	}
	w.a.probes.set(w.uid, plan.Probes)
	w.a.hooks.set(w.uid, plan.Hooks)
	w.connectionsOf(view, plan)
	if view.Pod == nil {
		return
	}
	w.a.guard.note(w.uid, plan, len(view.Pod.GetSpec().GetVolumes()) > 0)
	w.a.images.want(w.uid, plan.Images, w.since)
	w.a.reports.publish(view.Pod, plan.Status, plan.Removed)
}

func (w *worker) event(e pod.Event) {
	if w.last != nil {
		w.a.event(w.last, e)
	}
}

// save writes the part of the memory that is kept. Without it the pod is looked
// after all the same.
func (w *worker) save() {
	if w.mem.SameOnDisk(w.saved) {
		return
	}
	if err := w.a.journal.saveMemory(w.uid, w.mem); err != nil {
		w.a.log.Warn("a pod's memory cannot be saved", "uid", w.uid, "error", err)
		return
	}
	w.saved = w.mem
}

// act carries actions out and remembers how that went. It returns false when
// the context has ended.
func (w *worker) act(ctx context.Context, view pod.View, actions []pod.Action) bool {
	for _, action := range actions {
		began := w.a.cfg.Clock.Now()
		err := w.do(ctx, view, action)
		if ctx.Err() != nil {
			return false
		}
		now := w.a.cfg.Clock.Now()
		w.a.metrics.acted(action, now.Sub(began), err)
		level := w.a.log.Info
		if err != nil {
			level = w.a.log.Warn
		}
		level(action.String(), "pod", w.last.GetMetadata().GetNamespace()+"/"+w.last.GetMetadata().GetName(), "uid", w.uid, "error", err)
		if start, ok := action.(pod.StartContainer); ok && err != nil && !errors.Is(err, runtime.ErrStartFailed) {
			w.a.images.doubt(start.Config.Image.Digest)
		}
		var events []pod.Event
		w.mem, events = pod.Done(w.mem, action, err, now)
		w.save()
		for _, e := range events {
			w.event(e)
		}
	}
	return true
}

func (w *worker) do(ctx context.Context, view pod.View, action pod.Action) error {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	switch action.(type) {
	case pod.CreateSandbox, pod.Connect: // nothing runs in there yet
	default:
		if err := w.a.awaitSaved(ctx); err != nil {
			return err
		}
	}
	uid, rt := runtime.PodUID(w.uid), w.a.cfg.Runtime
	switch action := action.(type) {
	case pod.PrepareVolumes:
		return w.prepare(ctx, action.Pod)
	case pod.CreateSandbox:
		w.ip = netip.Addr{}
		_, err := rt.RunPod(ctx, action.Config)
		return err
	case pod.Connect:
		return w.connect(ctx, view, action)
	case pod.StartContainer:
		if err := w.openMessage(action.Config); err != nil {
			return err
		}
		return rt.RunContainer(ctx, uid, action.Config)
	case pod.Signal:
		return rt.Signal(ctx, uid, action.Container, action.Attempt, action.Signal)
	case pod.RemovePod:
		return rt.RemovePod(ctx, uid)
	case pod.RemoveVolumes:
		w.paths = nil
		if w.a.cfg.Volumes == nil {
			return nil
		}
		return w.a.cfg.Volumes.Remove(ctx, uid)
	case pod.Disconnect:
		err := w.a.plant.Network.Teardown(ctx, w.uid)
		w.a.toSync.raise() // the rules about its address go
		return err
	}
	return fmt.Errorf("pod %s: action %T is not known", w.uid, action)
}

// prepare makes the volumes. What they are is decided; where they are is not.
func (w *worker) prepare(ctx context.Context, want volume.Pod) error {
	if w.a.cfg.Volumes == nil {
		return errors.New("this node makes no volumes")
	}
	paths, err := w.a.cfg.Volumes.Prepare(ctx, want)
	if err != nil {
		return err
	}
	w.paths = paths
	return nil
}

func (w *worker) connect(ctx context.Context, view pod.View, action pod.Connect) error {
	ip := w.a.cfg.NodeIP
	if !action.Host {
		var err error
		if ip, err = w.setUpNetwork(ctx, action.NetNS); err != nil {
			return err
		}
		if err := w.rulesFirst(ctx, view, ip); err != nil {
			return err
		}
	}
	if view.HostsPath != "" {
		if err := w.a.cfg.RunDisk.Show(folderHosts+"/"+w.uid, action.Hosts(ip), hostsMode); err != nil {
			return fmt.Errorf("write the hosts file: %w", err)
		}
	}
	w.ip = ip
	return nil
}

func (w *worker) setUpNetwork(ctx context.Context, netns string) (netip.Addr, error) {
	w.a.wires.RLock()
	defer w.a.wires.RUnlock()
	return w.a.plant.Network.Setup(ctx, w.uid, netns)
}

// hostsMode lets every user of a container read the hosts file.
const hostsMode fs.FileMode = 0o644

// watchRuntime looks at pods whose containers have changed.
func (a *Agent) watchRuntime(ctx context.Context) error {
	pause := a.newRetry()
	for {
		uid, err := a.cfg.Runtime.NextChange(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			a.log.Warn("changes of containers cannot be watched", "error", err)
			if err := pause.pause(ctx); err != nil {
				return err
			}
			continue
		}
		pause.reset()
		a.wakeAll([]string{string(uid)})
	}
}

// cleanLoop looks for what nobody wants: pods that exist and are not assigned,
// networks of pods that do not exist, files of pods that have gone. It begins
// when a whole set is known.
func (a *Agent) cleanLoop(ctx context.Context) error {
	select {
	case <-a.synced:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		if err := a.toClean.wait(ctx, a.cfg.Clock, cleanEvery); err != nil {
			return err
		}
		if err := a.clean(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("cleaning up failed; trying again later", "error", err)
		}
	}
}

func (a *Agent) clean(ctx context.Context) error {
	pods, err := a.cfg.Runtime.Pods(ctx)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	exists := map[string]bool{}
	for _, p := range pods {
		exists[string(p.UID)] = true
		if a.mayLook(p) {
			a.look(string(p.UID))
		}
	}
	return errors.Join(a.cleanNetwork(ctx), a.cleanVolumes(ctx, exists), a.reclaim(ctx), a.cleanFiles(exists))
}

// mayLook tells whether the set says anything about a pod that exists.
func (a *Agent) mayLook(p runtime.PodState) bool {
	synced, fromServer, revision := a.set.known()
	return a.set.pod(string(p.UID)) != nil || synced && (fromServer || !startedAfter(&p, revision))
}

// cleanNetwork frees addresses of pods that are no more. While it runs no pod is
// connected, so that none is taken for one that is not there.
func (a *Agent) cleanNetwork(ctx context.Context) error {
	a.wires.Lock()
	defer a.wires.Unlock()
	pods, err := a.cfg.Runtime.Pods(ctx)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	removed, err := a.plant.Network.Cleanup(ctx, a.living(pods))
	if len(removed) > 0 {
		a.log.Info("freed the network of pods that are no more", "pods", removed)
	}
	return err
}

// living lists the pods whose network must stay: those that were assigned and
// have not ended, and what else exists or still runs.
func (a *Agent) living(existing []runtime.PodState) []string {
	var out []string
	for _, p := range a.set.allPods() {
		if !object.PodFinished(p) {
			out = append(out, p.GetMetadata().GetUid())
		}
	}
	for _, state := range existing {
		if p := a.set.pod(string(state.UID)); p == nil || !object.PodFinished(p) || anyRunning(state) {
			out = append(out, string(state.UID))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func anyRunning(p runtime.PodState) bool {
	return slices.ContainsFunc(p.Containers, func(c runtime.ContainerState) bool { return c.Status == runtime.ContainerRunning })
}

// cleanFiles removes the files of pods that neither exist nor are assigned.
func (a *Agent) cleanFiles(exists map[string]bool) error {
	var errs []error
	for _, of := range []struct {
		disk   Disk
		folder string
	}{{a.cfg.Disk, folderPods}, {a.cfg.RunDisk, folderHosts}, {a.cfg.RunDisk, folderMessages}} {
		names, err := of.disk.List(of.folder)
		errs = append(errs, err)
		for _, name := range names {
			uid, _, _ := strings.Cut(name, "_")
			if !exists[uid] && !a.knows(uid) {
				a.users.release(uid)
				errs = append(errs, of.disk.Remove(of.folder+"/"+name))
			}
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) knows(uid string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, looked := a.workers[uid]
	return looked || a.set.pod(uid) != nil
}
