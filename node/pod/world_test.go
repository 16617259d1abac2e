package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

func rank(phase string) int {
	return map[string]int{"": 0, "Pending": 1, "Running": 2, "Succeeded": 3, "Failed": 3}[phase]
}

func (w *world) checkStatus(s *balsav1.PodStatus) {
	if s == nil || !w.endAsked.IsZero() && w.live == nil {
		return // of what has been removed only the removal is reported
	}
	if rank(s.GetPhase()) < rank(w.phase) || rank(w.phase) == 3 && s.GetPhase() != w.phase {
		w.Fatalf("phase %s after %s", s.GetPhase(), w.phase)
	}
	w.phase = s.GetPhase()
	for _, c := range statuses(s) {
		if c.GetRestartCount() < w.restarts[c.GetName()] {
			w.Fatalf("container %s: restart count %d after %d", c.GetName(), c.GetRestartCount(), w.restarts[c.GetName()])
		}
		w.restarts[c.GetName()] = c.GetRestartCount()
		running := false
		if w.live != nil {
			state, _ := w.live.Container(c.GetName())
			running = state.Status == runtime.ContainerRunning
		}
		if role, _ := w.spec(c.GetName()); c.GetReady() && !running && role != object.RoleInit {
			w.Fatalf("container %s is ready and does not run", c.GetName())
		}
	}
	if object.IsConditionTrue(s.GetConditions(), "Ready") && s.GetPhase() != "Running" {
		w.Fatalf("ready in phase %s", s.GetPhase())
	}
}

// do carries an action out, and checks that it was allowed.
func (w *world) do(a Action) error {
	if w.failing && rapid.IntRange(0, 2).Draw(w.T, "fails") == 0 {
		return errors.New("injected")
	}
	switch a := a.(type) {
	case PrepareVolumes:
		w.mayStart(a)
		w.paths, w.prepared = map[string]string{"v": "/v"}, true
	case RemoveVolumes:
		for _, c := range w.containers() {
			if c.Status == runtime.ContainerRunning {
				w.Fatalf("the volumes go while %s runs", c.Name)
			}
		}
		w.paths, w.prepared = nil, false
	case CreateSandbox:
		w.mayStart(a)
		w.initOK, w.began = map[string]bool{}, false
		w.ip = netip.Addr{}
		if w.live == nil {
			w.live = &runtime.PodState{UID: uid, NetNS: "/ns", CreatedAt: w.now, Annotations: a.Config.Annotations}
		}
		w.live.Sandbox = runtime.SandboxReady
	case Connect:
		w.ip, w.wired = netip.MustParseAddr("10.244.0.9"), true
	case StartContainer:
		return w.start(a)
	case Signal:
		return w.signal(a)
	case RemovePod:
		for _, c := range w.live.Containers {
			if c.Status == runtime.ContainerRunning {
				w.mayKill(c.Name, "RemovePod")
			}
		}
		w.live = nil
	case Disconnect:
		w.wired = false
	}
	return nil
}

func (w *world) containers() []runtime.ContainerState {
	if w.live == nil {
		return nil
	}
	return w.live.Containers
}

// mayBegin: init containers one after the other, then the others.
func (w *world) mayBegin(name string) {
	role, _ := w.spec(name)
	for other, c := range object.AllContainers(w.pod.Spec) {
		if c.GetName() == name || other == object.RoleMain || w.began {
			break
		}
		state, _ := w.live.Container(c.GetName())
		running := state.Status == runtime.ContainerRunning
		started := running && (c.StartupProbe == nil || w.passed[c.GetName()] == state.Attempt+1) &&
			(c.GetLifecycle().GetPostStart() == nil || w.hooked[c.GetName()] == state.Attempt+1)
		if other == object.RoleInit && !w.initOK[c.GetName()] || other == object.RoleSidecar && !started {
			w.Fatalf("%s begins before %s is done: %+v", name, c.GetName(), state)
		}
	}
	if role == object.RoleInit && w.began {
		w.Fatalf("init container %s begins after the containers", name)
	}
	if w.prepared != (len(w.pod.Spec.Volumes) > 0) {
		w.Fatalf("%s begins without its volumes", name)
	}
	w.began = w.began || role == object.RoleMain
}

func (w *world) mayStart(a Action) {
	if !w.endAsked.IsZero() || rank(w.phase) == 3 {
		w.Fatalf("%v although the pod's end was asked for", a)
	}
}

func (w *world) start(a StartContainer) error {
	w.mayStart(a)
	start, err := runtime.AdmitAttempt(*w.live, a.Config)
	if err != nil {
		w.Fatalf("%v: %v", a, err)
	}
	if w.live.Sandbox != runtime.SandboxReady {
		w.Fatalf("%v in a lost sandbox", a)
	}
	if !start {
		return nil
	}
	w.mayBegin(a.Config.Name)
	if last, ok := w.live.Container(a.Config.Name); ok {
		w.checkRestart(last, a.Config.Attempt)
	} else if a.Config.Attempt != int(w.restarts[a.Config.Name]) && a.Config.Attempt != int(w.restarts[a.Config.Name])+1 {
		w.Fatalf("%v, but %d restarts were told", a, w.restarts[a.Config.Name])
	}
	var kept []runtime.ContainerState
	for _, c := range w.live.Containers {
		if c.Name != a.Config.Name || c.Attempt >= a.Config.Attempt-1 {
			kept = append(kept, c)
		}
	}
	state := runtime.ContainerState{Name: a.Config.Name, Attempt: a.Config.Attempt, Status: runtime.ContainerRunning, StartedAt: w.now, ImageDigest: "sha256:i"}
	if rapid.IntRange(0, 9).Draw(w.T, "start error") == 0 {
		state.Status, state.Reason, state.Exit.Code, state.StartedAt, state.FinishedAt = runtime.ContainerExited, runtime.ReasonStartError, 128, time.Time{}, w.now
		err = fmt.Errorf("no such program: %w", runtime.ErrStartFailed)
	}
	w.live.Containers = append(kept, state)
	runtime.SortContainers(w.live.Containers)
	delete(w.termAt, a.Config.Name)
	return err
}

// checkRestart: one more attempt, and after two short runs a rest between.
func (w *world) checkRestart(last runtime.ContainerState, attempt int) {
	if attempt != last.Attempt+1 {
		w.Fatalf("attempt %d after %d", attempt, last.Attempt)
	}
	policy := w.pod.GetSpec().GetRestartPolicy()
	switch role, _ := w.spec(last.Name); {
	case role == object.RoleSidecar:
		policy = "Always"
	case role == object.RoleInit && last.Exit.Code == 0:
		return // after the sandbox was lost
	}
	if policy == "Never" || policy == "OnFailure" && last.Exit.Code == 0 {
		w.Fatalf("%s with exit code %d was run again", policy, last.Exit.Code)
	}
	before, ok := w.live.Attempt(last.Name, last.Attempt-1)
	short := func(c runtime.ContainerState) bool {
		return c.Reason != runtime.ReasonNodeRebooted && (c.StartedAt.IsZero() || c.FinishedAt.Sub(c.StartedAt) < restartForgetAfter)
	}
	if ok && short(before) && short(last) && w.now.Sub(last.FinishedAt) < restartDelayMin {
		w.Fatalf("container %s was run again %s after the second short run", last.Name, w.now.Sub(last.FinishedAt))
	}
}

func (w *world) signal(a Signal) error {
	c, ok := w.live.Attempt(a.Container, a.Attempt)
	if !ok || c.Status != runtime.ContainerRunning {
		return runtime.ErrNotRunning
	}
	if a.Kill {
		w.mayKill(a.Container, "SIGKILL")
		w.exit(a.Container, 137, runtime.ReasonError)
		return nil
	}
	w.mayTell(a)
	if w.deaf {
		return errors.New("injected")
	}
	if attempt, again := w.sent[a.Container]; again && attempt == a.Attempt {
		w.Fatalf("%v a second time", a)
	}
	w.sent[a.Container] = a.Attempt
	if w.termAt[a.Container].IsZero() {
		w.termAt[a.Container] = w.now
	}
	if rapid.Bool().Draw(w.T, "polite") {
		w.exit(a.Container, 0, runtime.ReasonCompleted)
	}
	return nil
}

// mayTell: something has to end, its hook has returned, and sidecars wait for the
// others, unless there is no time left.
func (w *world) mayTell(a Signal) {
	if w.doomed(a.Container, a.Attempt) && a.Restart {
		return
	}
	asked := !w.endAsked.IsZero() || rank(w.phase) == 3 || w.mem.End != nil
	role, spec := w.spec(a.Container)
	over := true
	for other, c := range object.AllContainers(w.pod.Spec) {
		state, ok := w.live.Container(c.GetName())
		over = over && (other != object.RoleMain || ok && state.Status == runtime.ContainerExited)
	}
	if initFailed := w.initFailed(); !asked && !over && !initFailed {
		w.Fatalf("%v although nobody asked for the end", a)
	}
	from := w.mem.StopSentAt
	if from.IsZero() {
		from = w.mem.StopDueAt
	}
	if w.mem.StopDueAt.IsZero() {
		w.Fatalf("%v while new connections may still come", a)
	}
	if !w.now.Before(from.Add(w.graceNow())) || w.mem.StopSentAt.IsZero() && w.hookAt.IsZero() && spec.GetLifecycle().GetPreStop() == nil && role != object.RoleSidecar {
		return
	}
	if spec.GetLifecycle().GetPreStop() != nil && w.wanted && w.stopHooked[a.Container] != a.Attempt+1 {
		w.Fatalf("%v before its preStop hook has returned", a)
	}
	if role != object.RoleSidecar {
		return
	}
	later := false
	for other, c := range object.AllContainers(w.pod.Spec) {
		state, _ := w.live.Container(c.GetName())
		if state.Status == runtime.ContainerRunning && c.GetName() != a.Container && (other != object.RoleSidecar || later) {
			w.Fatalf("%v while %s runs", a, c.GetName())
		}
		later = later || c.GetName() == a.Container
	}
}

func (w *world) initFailed() bool {
	for role, c := range object.AllContainers(w.pod.Spec) {
		state, _ := w.live.Container(c.GetName())
		if role == object.RoleInit && state.Status == runtime.ContainerExited && state.Exit.Code != 0 && w.pod.Spec.RestartPolicy == "Never" {
			return true
		}
	}
	return false
}

func (w *world) graceNow() time.Duration {
	if w.wanted && w.endAsked.IsZero() && w.mem.End != nil && w.mem.End.Grace != nil {
		return *w.mem.End.Grace
	}
	return time.Duration(graceSeconds(w.pod)) * time.Second
}

// mayKill checks the grace period: it counts from the first signal that reached
// any container, or, where none could be sent, from when it was due.
func (w *world) mayKill(name, how string) {
	grace := w.graceNow()
	if grace == 0 {
		return
	}
	if c, _ := w.live.Container(name); w.doomed(name, c.Attempt) {
		m := w.mem.Containers[name]
		if how == "SIGKILL" && w.now.Before(m.DoomedAt.Add(m.Grace)) && w.now.Before(w.mem.StopSentAt.Add(grace)) {
			w.Fatalf("SIGKILL for %s before its own grace period of %s is over", name, m.Grace)
		}
		return
	}
	from := w.mem.StopDueAt
	if from.IsZero() {
		w.Fatalf("%s for %s while new connections may still come", how, name)
	}
	if !w.hookAt.IsZero() && w.hookAt.Before(from) {
		from = w.hookAt
	}
	for _, at := range w.termAt {
		if at.Before(from) {
			from = at
		}
	}
	if w.now.Before(from.Add(grace)) {
		w.Fatalf("%s for %s after %s of %s", how, name, w.now.Sub(from), grace)
	}
}

func (w *world) exit(name string, code int, reason runtime.Reason) {
	for i, c := range w.live.Containers {
		if c.Name == name && c.Status == runtime.ContainerRunning {
			w.live.Containers[i].Status, w.live.Containers[i].FinishedAt = runtime.ContainerExited, w.now
			w.live.Containers[i].Exit.Code, w.live.Containers[i].Reason = code, reason
			w.initOK[name] = code == 0
		}
	}
}

func (w *world) lose(reason runtime.Reason) {
	if w.live == nil {
		return
	}
	w.live.Sandbox = runtime.SandboxLost
	defer func() { w.initOK, w.began = map[string]bool{}, false }()
	for _, c := range w.live.Containers {
		w.exit(c.Name, runtime.LostExitCode, reason)
	}
}

// forget is what a restart of the agent does.
func (w *world) forget() {
	w.ip, w.probes, w.mem, w.sent = netip.Addr{}, map[ProbeKey]ProbeState{}, Memory{}, map[string]int{}
	w.hooks, w.paths = map[HookKey]HookState{}, nil
	if w.kept != nil {
		if err := json.Unmarshal(w.kept, &w.mem); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) record() {
	if w.plan.Status != nil {
		said := object.FindCondition(w.pod.GetStatus().GetConditions(), object.ConditionDrained)
		w.pod = object.Clone(w.pod)
		w.pod.Status = proto.CloneOf(w.plan.Status)
		if said != nil {
			w.pod.Status.Conditions = append(w.pod.Status.Conditions, said)
		}
	}
}

// drain is what the servers do once every node has the endpoints without the pod.
func (w *world) drain() {
	if !w.drainedAt.IsZero() || w.endAsked.IsZero() && w.mem.End == nil {
		return
	}
	w.drainedAt = w.now
	w.pod = object.Clone(w.pod)
	if w.pod.Status == nil {
		w.pod.Status = &balsav1.PodStatus{}
	}
	w.pod.Status.Conditions = append(w.pod.Status.Conditions, &balsav1.Condition{Type: object.ConditionDrained, Status: object.ConditionTrue})
}

// checkLetGo: hooks and signals of the whole pod's end begin only when nobody
// sends it new connections and the open ones have finished, or the waits for
// that are over; or at once where nobody is waited for. An agent that is new, and
// that finds no address in the status, counts no connections: nobody was told of
// one either.
func (w *world) checkLetGo(before Memory) {
	if w.mem.StopDueAt.IsZero() || !before.StopDueAt.IsZero() || !w.wanted || w.graceNow() == 0 || rank(w.phase) == 3 {
		return
	}
	node := w.mem.End != nil && w.mem.End.Reason != ReasonDeadlineExceeded
	if over, _ := (&step{v: w.view(), mem: w.mem}).overNow(); node || over {
		return
	}
	drained := w.mem.StopSeenAt.Add(drainWait)
	if !w.drainedAt.IsZero() && w.drainedAt.Before(drained) {
		drained = w.drainedAt
	}
	if w.now.Before(drained) {
		w.Fatalf("it is stopped %s before it is out of service", drained.Sub(w.now))
	}
	told := w.ip.IsValid() || w.pod.GetStatus().GetPodIp() != ""
	if open := w.view().Connections; w.wired && told && (open == nil || *open > 0) && w.now.Before(drained.Add(object.DefaultDrainConnections)) {
		w.Fatalf("it is stopped with connections that are open, %s too early", drained.Add(object.DefaultDrainConnections).Sub(w.now))
	}
}

// overNow is over, of a step that has only been given its view.
func (s *step) overNow() (over, failed bool) {
	s.mem = s.mem.clone()
	s.observe()
	return s.over()
}

func (w *world) remove() {
	if w.endAsked.IsZero() {
		w.endAsked = w.now
		w.pod = object.Clone(w.pod)
		w.pod.Metadata.DeletionTimestamp = timestamppb.New(w.now)
		w.pod.Metadata.DeletionGracePeriodSeconds = w.pod.Spec.TerminationGracePeriodSeconds
	}
}
