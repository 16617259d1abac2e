package pod

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// world is a node with one pod on it, as simple as can be: what a history of
// steps is checked against.
type world struct {
	*rapid.T
	now      time.Time
	pod      *balsav1.Pod
	wanted   bool
	live     *runtime.PodState
	wired    bool // the network knows the pod
	ip       netip.Addr
	images   map[string]Image
	config   bool
	probes   map[ProbeKey]ProbeState
	mem      Memory
	kept     []byte // the memory on disk
	termAt   map[string]time.Time
	endAsked time.Time
	phase    string
	restarts map[string]int32
	failing  bool
	deaf     bool           // SIGTERM cannot be sent
	sent     map[string]int // attempts that this agent has sent SIGTERM
	plan     Plan
	hooks    map[HookKey]HookState
	// initOK are the init containers that are done in this sandbox, hooked and
	// passed the attempts whose postStart and startup probe are, stopHooked those
	// whose preStop is.
	initOK     map[string]bool
	hooked     map[string]int
	passed     map[string]int
	stopHooked map[string]int
	// began: a container of the spec has begun in this sandbox.
	began    bool
	paths    map[string]string
	prepared bool
	evicted  bool
	hookAt   time.Time // of the first preStop hook
	// drainedAt is when the servers said that the pod is out of service;
	// connections are those that are open to it, -1: not counted.
	drainedAt   time.Time
	connections int
}

const uid = "uid-1"

func newWorld(t *rapid.T) *world {
	w := &world{T: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), wanted: true, images: map[string]Image{},
		probes: map[ProbeKey]ProbeState{}, termAt: map[string]time.Time{}, restarts: map[string]int32{}, sent: map[string]int{},
		hooks: map[HookKey]HookState{}, initOK: map[string]bool{}, hooked: map[string]int{}, passed: map[string]int{}, stopHooked: map[string]int{}}
	w.pod = &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "default", Uid: uid, Generation: 1, ResourceVersion: "1"},
		Spec: &balsav1.PodSpec{
			RestartPolicy: rapid.SampledFrom([]string{"Always", "OnFailure", "Never"}).Draw(t, "policy"),
			Containers:    []*balsav1.Container{{Name: "a", Image: "i"}, {Name: "b", Image: "i"}},
		},
	}
	w.pod.Spec.TerminationGracePeriodSeconds = proto.Int64(rapid.SampledFrom([]int64{0, 5, 30}).Draw(t, "grace"))
	w.pod.Spec.Containers[0].ReadinessProbe = &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(80)}}
	w.pod.Spec.Containers[1].Env = []*balsav1.EnvVar{{Name: "E", ValueFrom: &balsav1.EnvVarSource{ConfigMapKeyRef: &balsav1.KeySelector{Name: "m", Key: "k"}}}}
	w.furnish(w.pod.Spec)
	object.Default(w.pod)
	return w
}

// furnish adds what a pod may have besides containers.
func (w *world) furnish(spec *balsav1.PodSpec) {
	hook := &balsav1.LifecycleHandler{Exec: &balsav1.ExecAction{Command: []string{"x"}}}
	probe := func() *balsav1.Probe { return &balsav1.Probe{Exec: &balsav1.ExecAction{Command: []string{"x"}}} }
	if rapid.Bool().Draw(w.T, "init containers") {
		spec.InitContainers = []*balsav1.Container{{Name: "i1", Image: "i"}, {Name: "s1", Image: "i", RestartPolicy: "Always"}, {Name: "i2", Image: "i"}, {Name: "s2", Image: "i", RestartPolicy: "Always"}}
		spec.InitContainers[1].StartupProbe = probe()
		spec.InitContainers[3].Lifecycle = &balsav1.Lifecycle{PostStart: hook, PreStop: hook}
	}
	if rapid.Bool().Draw(w.T, "hooks") {
		spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PostStart: hook, PreStop: hook}
	}
	if rapid.Bool().Draw(w.T, "probes") {
		spec.Containers[0].LivenessProbe, spec.Containers[0].StartupProbe = probe(), probe()
		spec.Containers[0].LivenessProbe.TerminationGracePeriodSeconds = proto.Int64(3)
	}
	if rapid.Bool().Draw(w.T, "volumes") {
		spec.Volumes = []*balsav1.Volume{{Name: "v", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "m"}}}
	}
	if rapid.IntRange(0, 3).Draw(w.T, "deadline") == 0 {
		spec.ActiveDeadlineSeconds = proto.Int64(600)
	}
}

// names are those of all containers.
func (w *world) names() []string {
	var names []string
	for _, c := range object.AllContainers(w.pod.Spec) {
		names = append(names, c.GetName())
	}
	return names
}

func (w *world) spec(name string) (object.ContainerRole, *balsav1.Container) {
	for role, c := range object.AllContainers(w.pod.Spec) {
		if c.GetName() == name {
			return role, c
		}
	}
	w.Fatalf("no container %s", name)
	return 0, nil
}

func (w *world) view() View {
	v := View{Now: w.now, UID: uid, Revision: 7, Node: Node{Name: "n", IP: netip.MustParseAddr("10.0.0.1"), DNS: netip.MustParseAddr("169.254.20.10"), Domain: "cluster.local"},
		IP: w.ip, Images: w.images, Probes: w.probes, Hooks: w.hooks, VolumePaths: w.paths, Memory: w.mem}
	if w.evicted {
		none := time.Duration(0)
		v.Eviction = &Refusal{Reason: ReasonEvicted, Message: "memory", Grace: &none}
	}
	if w.wanted {
		v.Pod = w.pod
	}
	if w.connections >= 0 {
		v.Connections = &w.connections
	}
	if w.config {
		v.Sources.ConfigMaps = map[string]*balsav1.ConfigMap{"m": {Data: map[string]string{"k": "v"}}}
	}
	if w.live != nil {
		state := *w.live
		state.Containers = append([]runtime.ContainerState(nil), w.live.Containers...)
		v.Runtime = &state
	}
	return v
}

// settle takes steps until there is nothing to do, checking each.
func (w *world) settle() {
	for range 30 {
		w.step()
		if len(w.plan.Actions) == 0 {
			if again := Step(w.view()); len(again.Actions) != 0 {
				w.Fatalf("a step on an unchanged view has actions: %v", again.Actions)
			}
			return
		}
		for _, a := range w.plan.Actions {
			err := w.do(a)
			w.mem, _ = Done(w.mem, a, err, w.now)
			w.keep()
		}
	}
	w.Fatalf("after 30 steps there is still something to do: %v", w.plan.Actions)
}

func (w *world) keep() {
	data, err := json.Marshal(w.mem)
	if err != nil {
		w.Fatal(err)
	}
	w.kept = data
}

func (w *world) step() {
	before := w.mem
	w.plan = Step(w.view())
	w.mem = w.plan.Memory
	w.keep()
	w.checkLetGo(before)
	w.checkStatus(w.plan.Status)
	for i, p := range w.plan.Probes {
		if c, _ := w.live.Container(p.Container); c.Status != runtime.ContainerRunning || c.Attempt != p.Attempt {
			w.Fatalf("probe %d asks what does not run: %+v", i, p)
		}
		_, spec := w.spec(p.Container)
		if p.Kind != Startup && spec.StartupProbe != nil && w.passed[p.Container] != p.Attempt+1 {
			w.Fatalf("%s is asked before the startup probe has passed", p.Kind)
		}
	}
	w.checkHooks()
}

// checkHooks: hooks run beside their own attempt, once it has begun and not again
// when they have returned; and those that are not wanted any more end.
func (w *world) checkHooks() {
	wanted := map[HookKey]HookState{}
	for _, h := range w.plan.Hooks {
		if c, _ := w.live.Container(h.Container); c.Status != runtime.ContainerRunning || c.Attempt != h.Attempt {
			w.Fatalf("hook of what does not run: %+v", h)
		}
		done := map[HookKind]map[string]int{PostStart: w.hooked, PreStop: w.stopHooked}[h.Kind]
		if done[h.Container] == h.Attempt+1 && w.hooks[h.Key()].Done {
			w.Fatalf("%s hook of %s runs again", h.Kind, h.Container)
		}
		if h.Kind == PreStop && w.hookAt.IsZero() && !w.doomed(h.Container, h.Attempt) {
			w.hookAt = w.now
		}
		wanted[h.Key()] = HookState{Attempt: h.Attempt}
		if old := w.hooks[h.Key()]; old.Attempt == h.Attempt {
			wanted[h.Key()] = old
		}
	}
	w.hooks = wanted
}

func (w *world) doomed(name string, attempt int) bool {
	return w.mem.Containers[name].Doomed == attempt+1
}

// happen makes one thing happen, without a look of the agent in between.
func (w *world) happen() {
	name := rapid.SampledFrom(w.names()).Draw(w.T, "container")
	switch what := rapid.IntRange(0, 33).Draw(w.T, "what"); what {
	default:
		w.happenInside(name, what)
	case 0, 1:
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 40).Draw(w.T, "seconds")) * time.Second)
	case 2:
		w.now = w.now.Add(15 * time.Minute)
	case 3, 4:
		if w.live != nil {
			w.exit(name, rapid.SampledFrom([]int{0, 1}).Draw(w.T, "code"), runtime.ReasonError)
		}
	case 5:
		w.forget()
	case 6:
		w.record()
	case 7:
		w.lose(runtime.ReasonShimLost)
	case 8:
		w.lose(runtime.ReasonNodeRebooted)
		w.forget()
	case 9:
		for _, name := range w.names() {
			w.images[name] = Image{Ready: true}
		}
	case 10:
		w.config = !w.config
	case 11:
		if w.live != nil {
			c, _ := w.live.Container("a")
			w.probes[ProbeKey{"a", Readiness}] = ProbeState{Attempt: c.Attempt, Ready: rapid.Bool().Draw(w.T, "ready")}
		}
	case 12:
		w.failing = !w.failing
	case 17:
		if w.phase == "Running" && rapid.IntRange(0, 3).Draw(w.T, "lost") == 0 {
			w.record()
			w.pod.Status.Phase, w.pod.Status.Reason, w.phase = "Failed", "NodeLost", "Failed"
		}
	case 18:
		w.deaf = !w.deaf
	case 30, 31:
		w.drain()
	case 32, 33:
		w.connections = rapid.IntRange(-1, 2).Draw(w.T, "connections")
	}
}

// happenInside is what happens to the agent, and what hooks and probes do.
func (w *world) happenInside(name string, what int) {
	switch what {
	case 13:
		// The agent dies after an action, before it could remember it.
		before := w.kept
		if plan := Step(w.view()); len(plan.Actions) > 0 {
			w.mem = plan.Memory
			if w.do(plan.Actions[0]) == nil {
				w.kept = before
			}
		}
		w.forget()
	case 14:
		if w.wired && rapid.IntRange(0, 3).Draw(w.T, "delete") == 0 {
			w.remove()
		}
	case 15:
		// The memory on disk is lost.
		if w.endAsked.IsZero() && len(w.termAt) == 0 && w.hookAt.IsZero() && w.mem.End == nil {
			w.record()
			w.kept = nil
			w.forget()
			w.recollect()
		}
	case 16:
		// The node's disk is lost, and all that was on it.
		if w.endAsked.IsZero() && rank(w.phase) != 3 {
			w.record()
			w.live, w.wired, w.kept, w.prepared = nil, false, nil, false
			w.forget()
		}
	case 19, 20:
		w.hookReturns()
	case 21, 22:
		w.startupPasses(name)
	case 23:
		w.probeFails()
	case 24:
		w.evicted = w.evicted || rapid.IntRange(0, 9).Draw(w.T, "evict") == 0
	default:
		w.progress()
	}
}

// hookReturns lets a hook that runs return.
func (w *world) hookReturns() {
	for key, h := range w.hooks {
		if h.Done {
			continue
		}
		h.Done = true
		if rapid.IntRange(0, 4).Draw(w.T, "hook fails") == 0 {
			h.Message = "exit code 1"
		}
		w.hooks[key] = h
		switch {
		case key.Kind == PreStop:
			w.stopHooked[key.Container] = h.Attempt + 1
		case h.Message == "":
			w.hooked[key.Container] = h.Attempt + 1
		}
	}
}

// progress is what happens when all is well.
func (w *world) progress() {
	w.config = true
	for _, name := range w.names() {
		w.images[name] = Image{Ready: true}
		w.startupPasses(name)
		if role, _ := w.spec(name); role == object.RoleInit && w.live != nil {
			w.exit(name, 0, runtime.ReasonCompleted)
		}
	}
	for key, h := range w.hooks {
		if h.Done {
			continue
		}
		w.hooks[key] = HookState{Attempt: h.Attempt, Done: true}
		if key.Kind == PreStop {
			w.stopHooked[key.Container] = h.Attempt + 1
		} else {
			w.hooked[key.Container] = h.Attempt + 1
		}
	}
}

func (w *world) startupPasses(name string) {
	for _, p := range w.plan.Probes {
		if p.Kind == Startup && p.Container == name {
			w.probes[p.Key()] = ProbeState{Attempt: p.Attempt, Ready: true}
			w.passed[name] = p.Attempt + 1
		}
	}
}

func (w *world) probeFails() {
	for _, p := range w.plan.Probes {
		if p.Kind != Readiness {
			w.probes[p.Key()] = ProbeState{Attempt: p.Attempt, Failed: true}
		}
	}
}

// recollect takes note of what an agent that has lost its memory believes: init
// containers that have succeeded are done.
func (w *world) recollect() {
	for _, c := range w.containers() {
		if w.live.Sandbox == runtime.SandboxReady && c.Status == runtime.ContainerExited {
			newest, _ := w.live.Container(c.Name)
			w.initOK[c.Name] = newest.Exit.Code == 0
		}
		if role, _ := w.spec(c.Name); role == object.RoleMain && w.live.Sandbox == runtime.SandboxReady {
			w.began = true
		}
	}
}

// TestHistories checks every promise of DESIGN.md over random histories.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 60).Draw(t, "length") {
			w.happen()
			w.settle()
		}
		w.end()
	})
}

// end: whatever came before, a pod whose end is asked for goes, and in time.
func (w *world) end() {
	w.failing = false
	if rapid.Bool().Draw(w.T, "vanishes") {
		w.endAsked, w.wanted = w.now, false
	} else {
		w.remove()
	}
	from := w.now
	for range 50 {
		w.settle()
		if w.plan.Removed {
			if w.live != nil || w.wired {
				w.Fatalf("reported as removed: %v, on the network: %v", w.live, w.wired)
			}
			most := drainWait + object.DefaultDrainConnections + stopLeast + time.Duration(graceSeconds(w.pod))*time.Second + giveUpAfter + retryDelayMax
			if d := w.now.Sub(from); d > most {
				w.Fatalf("it took %s to go, want at most %s", d, most)
			}
			return
		}
		if w.plan.Wake.IsZero() {
			w.Fatalf("the end waits for nothing")
		}
		w.now = w.plan.Wake
	}
	w.Fatalf("it never goes")
}
