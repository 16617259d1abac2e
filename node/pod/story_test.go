package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// story plays a pod's life line by line, and writes down what every step plans.
type story struct {
	t    *testing.T
	v    View
	live *runtime.PodState
	text strings.Builder
	plan Plan
}

func newStory(t *testing.T, spec *balsav1.PodSpec) *story {
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid, Generation: 1}, Spec: spec}
	object.Default(p)
	s := &story{t: t, v: View{Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), UID: uid, Pod: p, Images: map[string]Image{}, Hooks: map[HookKey]HookState{}, Probes: map[ProbeKey]ProbeState{},
		Node: Node{Name: "n1", IP: netip.MustParseAddr("10.0.0.1"), DNS: netip.MustParseAddr("169.254.20.10"), Domain: "cluster.local"}}}
	for _, c := range object.AllContainers(spec) {
		s.v.Images[c.GetName()] = Image{Ready: true, At: s.v.Now.Add(time.Hour), Note: "Container image \"i\" already present on machine"}
	}
	return s
}

// tell says what happens, lets it happen, and looks until nothing is to do.
func (s *story) tell(what string, happens func()) {
	fmt.Fprintf(&s.text, "-- %s\n", what)
	happens()
	for range 20 {
		s.v.Runtime = nil
		if s.live != nil {
			state := *s.live
			state.Containers = append([]runtime.ContainerState{}, s.live.Containers...)
			s.v.Runtime = &state
		}
		s.plan = Step(s.v)
		s.v.Memory = s.plan.Memory
		s.write()
		if len(s.plan.Actions) == 0 {
			return
		}
		for _, a := range s.plan.Actions {
			var events []Event
			s.v.Memory, events = Done(s.v.Memory, a, s.do(a), s.v.Now)
			s.events(events)
		}
	}
	s.t.Fatal("it does not come to rest")
}

func (s *story) write() {
	s.events(s.plan.Events)
	for _, a := range s.plan.Actions {
		fmt.Fprintf(&s.text, "   do %s\n", a)
	}
	if len(s.plan.Actions) > 0 {
		return
	}
	for _, h := range s.plan.Hooks {
		fmt.Fprintf(&s.text, "   hook %s of %s\n", h.Kind, h.Container)
	}
	for _, p := range s.plan.Probes {
		fmt.Fprintf(&s.text, "   ask %s of %s\n", p.Kind, p.Container)
	}
	if s.plan.Removed {
		s.text.WriteString("   removed\n")
		return
	}
	var states []string
	for _, c := range statuses(s.plan.Status) {
		state := "terminated"
		switch {
		case c.GetState().GetWaiting() != nil:
			state = c.GetState().GetWaiting().GetReason()
		case c.GetState().GetRunning() != nil:
			state = "running"
		}
		states = append(states, fmt.Sprintf("%s#%d %s%s%s", c.GetName(), c.GetRestartCount(), state, map[bool]string{true: " started"}[c.GetStarted()], map[bool]string{true: " ready"}[c.GetReady()]))
	}
	fmt.Fprintf(&s.text, "   = %s %s: %s\n", s.plan.Status.GetPhase(), s.plan.Status.GetReason(), strings.Join(states, ", "))
	if s.plan.CountConnections {
		s.text.WriteString("   counts the connections to it\n")
	}
	if !s.plan.Wake.IsZero() {
		fmt.Fprintf(&s.text, "   looks again in %s\n", s.plan.Wake.Sub(s.v.Now))
	}
}

func (s *story) events(events []Event) {
	for _, e := range events {
		fmt.Fprintf(&s.text, "   event %s %s: %s\n", e.Container, e.Reason, e.Message)
	}
}

func (s *story) do(a Action) error {
	switch a := a.(type) {
	case PrepareVolumes:
		s.v.VolumePaths = map[string]string{}
		for _, v := range a.Pod.Volumes {
			s.v.VolumePaths[v.Name] = "/v/" + v.Name
		}
	case CreateSandbox:
		if s.live == nil {
			s.live = &runtime.PodState{UID: uid, NetNS: "/ns", CreatedAt: s.v.Now, Annotations: a.Config.Annotations}
		}
		s.live.Sandbox, s.v.IP = runtime.SandboxReady, netip.Addr{}
	case Connect:
		s.v.IP = netip.MustParseAddr("10.244.0.9")
	case StartContainer:
		s.live.Containers = append(s.live.Containers, runtime.ContainerState{Name: a.Config.Name, Attempt: a.Config.Attempt, Status: runtime.ContainerRunning, StartedAt: s.v.Now})
		runtime.SortContainers(s.live.Containers)
	case Signal:
		if a.Kill {
			s.exit(a.Container, 137)
		}
	case RemovePod:
		s.live = nil
	case RemoveVolumes, Disconnect:
	default:
		return errors.New("unknown")
	}
	return nil
}

func (s *story) exit(name string, code int) {
	if s.live == nil {
		return
	}
	for i, c := range s.live.Containers {
		if c.Name == name && c.Status == runtime.ContainerRunning {
			reason := runtime.ReasonFor(runtime.ExitStatus{Code: code}, 0)
			s.live.Containers[i].Status, s.live.Containers[i].Exit.Code, s.live.Containers[i].Reason, s.live.Containers[i].FinishedAt = runtime.ContainerExited, code, reason, s.v.Now
		}
	}
}

// drained: the servers say so, and so many connections are open.
func (s *story) drained(open int) {
	s.v.Pod = object.Clone(s.v.Pod)
	if s.v.Pod.Status == nil {
		s.v.Pod.Status = &balsav1.PodStatus{}
	}
	s.v.Pod.Status.Conditions, _ = object.SetCondition(s.v.Pod.Status.Conditions, &balsav1.Condition{Type: object.ConditionDrained, Status: object.ConditionTrue}, s.v.Now)
	s.v.Connections = &open
}

func (s *story) later(d time.Duration) { s.v.Now = s.v.Now.Add(d) }

func (s *story) hook(name string, kind HookKind, attempt int) {
	s.v.Hooks[HookKey{name, kind}] = HookState{Attempt: attempt, Done: true}
}

// TestPlansOfAWholeLife is a conversation with the step function about a pod that
// has everything: read its golden file to learn what is done when.
func TestPlansOfAWholeLife(t *testing.T) {
	hook := &balsav1.LifecycleHandler{Exec: &balsav1.ExecAction{Command: []string{"x"}}}
	probe := &balsav1.Probe{Exec: &balsav1.ExecAction{Command: []string{"x"}}, TerminationGracePeriodSeconds: proto.Int64(3)}
	s := newStory(t, &balsav1.PodSpec{
		InitContainers: []*balsav1.Container{{Name: "init", Image: "i"}, {Name: "side", Image: "i", RestartPolicy: "Always", StartupProbe: proto.CloneOf(probe)}, {Name: "late", Image: "i"}},
		Containers: []*balsav1.Container{{Name: "app", Image: "i", Lifecycle: &balsav1.Lifecycle{PostStart: hook, PreStop: hook, StopSignal: "SIGQUIT"}, LivenessProbe: proto.CloneOf(probe),
			ReadinessProbe: proto.CloneOf(probe)}, {Name: "second", Image: "i"}},
		Volumes: []*balsav1.Volume{{Name: "tmp", EmptyDir: &balsav1.EmptyDirVolumeSource{}}},
	})
	s.tell("the pod is assigned", func() {})
	s.tell("the init container fails", func() { s.later(time.Second); s.exit("init", 1) })
	s.tell("and fails again", func() { s.later(time.Second); s.exit("init", 1) })
	s.tell("10 s later", func() { s.later(10 * time.Second) })
	s.tell("it succeeds", func() { s.later(time.Second); s.exit("init", 0) })
	s.tell("the sidecar has started", func() { s.v.Probes[ProbeKey{"side", Startup}] = ProbeState{Ready: true} })
	s.tell("the last init container succeeds", func() { s.exit("late", 0) })
	s.tell("the postStart hook has returned", func() { s.hook("app", PostStart, 0) })
	s.tell("the program answers", func() { s.v.Probes[ProbeKey{"app", Readiness}] = ProbeState{Ready: true} })
	s.tell("the sidecar ends", func() { s.later(time.Second); s.exit("side", 0) })
	s.tell("liveness fails", func() { s.v.Probes[ProbeKey{"app", Liveness}] = ProbeState{Failed: true} })
	s.tell("the preStop hook has returned", func() { s.later(time.Second); s.hook("app", PreStop, 0) })
	s.tell("the container does not end in the probe's grace period", func() { s.later(2 * time.Second) })
	s.tell("the postStart hook of the new run has returned, and the program answers", func() {
		s.hook("app", PostStart, 1)
		s.v.Probes = map[ProbeKey]ProbeState{{"app", Readiness}: {Attempt: 1, Ready: true}, {"side", Startup}: {Attempt: 1, Ready: true}}
	})
	s.tell("the shim dies", func() {
		for _, c := range []string{"app", "second", "side"} {
			s.exit(c, 137)
		}
		s.live.Sandbox = runtime.SandboxLost
	})
	s.tell("all begin again", func() { s.exit("init", 0) })
	s.tell("the sidecar has rested", func() { s.later(10 * time.Second) })
	s.tell("its deletion is asked for", func() {
		s.v.Pod = object.Clone(s.v.Pod)
		s.v.Pod.Metadata.DeletionTimestamp, s.v.Pod.Metadata.DeletionGracePeriodSeconds = timestamppb.New(s.v.Now), proto.Int64(20)
	})
	s.tell("the sidecar ends", func() { s.later(time.Second); s.exit("side", 0) })
	golden(t, "life.golden", s.text.String())
}

func TestPlansOfAStop(t *testing.T) {
	hook := &balsav1.LifecycleHandler{Exec: &balsav1.ExecAction{Command: []string{"x"}}}
	s := newStory(t, &balsav1.PodSpec{
		InitContainers: []*balsav1.Container{{Name: "one", Image: "i", RestartPolicy: "Always", Lifecycle: &balsav1.Lifecycle{PreStop: hook}}, {Name: "two", Image: "i", RestartPolicy: "Always"}},
		Containers:     []*balsav1.Container{{Name: "a", Image: "i", Lifecycle: &balsav1.Lifecycle{PreStop: hook}}, {Name: "b", Image: "i", Lifecycle: &balsav1.Lifecycle{StopSignal: "SIGINT"}}},
	})
	s.tell("the pod runs", func() {})
	s.tell("its deletion is asked for", func() {
		s.v.Pod = object.Clone(s.v.Pod)
		s.v.Pod.Metadata.DeletionTimestamp, s.v.Pod.Metadata.DeletionGracePeriodSeconds = timestamppb.New(s.v.Now), proto.Int64(20)
	})
	s.tell("no node sends it new connections, and none is open", func() { s.later(time.Second); s.drained(0) })
	s.tell("the hook of a has returned", func() { s.later(5 * time.Second); s.hook("a", PreStop, 0) })
	s.tell("a and b end", func() { s.exit("a", 0); s.exit("b", 130) })
	s.tell("the grace period is over", func() { s.later(15 * time.Second) })
	s.tell("and 2 s more", func() { s.later(2 * time.Second) })
	golden(t, "stop.golden", s.text.String())
}

// TestPlansOfADrain is about the time between a deletion and the first signal.
func TestPlansOfADrain(t *testing.T) {
	deleted := func(s *story, grace int64) func() {
		return func() {
			s.v.Pod = object.Clone(s.v.Pod)
			s.v.Pod.Metadata.DeletionTimestamp, s.v.Pod.Metadata.DeletionGracePeriodSeconds = timestamppb.New(s.v.Now), proto.Int64(grace)
		}
	}
	begin := func(what string, text *strings.Builder) *story {
		fmt.Fprintf(text, "== %s\n", what)
		s := newStory(t, &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "a", Image: "i"}}})
		s.tell("the pod runs", func() {})
		s.text.Reset()
		return s
	}
	restart := func(s *story) func() {
		return func() {
			data, err := json.Marshal(s.v.Memory)
			if err != nil {
				t.Fatal(err)
			}
			s.v.Memory, s.v.Connections = Memory{}, nil
			if err := json.Unmarshal(data, &s.v.Memory); err != nil {
				t.Fatal(err)
			}
		}
	}
	var text strings.Builder
	for _, c := range []struct {
		what string
		play func(s *story)
	}{
		{"no server says anything", func(s *story) {
			s.tell("its deletion is asked for", deleted(s, 20))
			s.tell("the agent begins anew after 3 s", func() { s.later(3 * time.Second); restart(s)() })
			s.tell("8 s after the deletion", func() { s.later(5 * time.Second) })
			s.tell("it cannot be told whether connections are open", func() { s.later(2 * time.Second) })
		}},
		{"connections that stay open", func(s *story) {
			s.tell("its deletion is asked for", deleted(s, 20))
			s.tell("no node sends it new connections", func() { s.drained(3) })
			s.tell("the agent begins anew after 1 s", func() { s.later(time.Second); restart(s)() })
			s.tell("2 s after", func() { s.later(time.Second) })
			s.tell("the agent begins anew once the signal was sent", func() { restart(s)(); s.v.Connections = new(int) })
			s.tell("the grace period is over, counted from the signal", func() { s.later(20 * time.Second) })
		}},
		{"connections that may take longer", func(s *story) {
			s.v.Pod.Metadata.Annotations = map[string]string{object.AnnotationDrainConnections: "30s"}
			s.tell("its deletion is asked for", deleted(s, 20))
			s.tell("no node sends it new connections", func() { s.drained(1) })
			s.tell("29 s later", func() { s.later(29 * time.Second) })
			s.tell("and one more", func() { s.later(time.Second) })
		}},
		{"connections that are not waited for", func(s *story) {
			s.v.Pod.Metadata.Annotations = map[string]string{object.AnnotationDrainConnections: "0s"}
			s.tell("its deletion is asked for", deleted(s, 20))
			s.tell("no node sends it new connections", func() { s.drained(1) })
		}},
		{"grace period 0", func(s *story) { s.tell("its deletion is asked for", deleted(s, 0)) }},
		{"the node needs what it uses", func(s *story) {
			grace := 5 * time.Second
			s.tell("it is evicted", func() { s.v.Eviction = &Refusal{Reason: ReasonEvicted, Message: "memory", Grace: &grace} })
		}},
		{"its time is over", func(s *story) {
			s.v.Pod.Spec.ActiveDeadlineSeconds = proto.Int64(60)
			s.tell("the deadline has passed", func() { s.later(time.Minute) })
			s.tell("no node sends it new connections", func() { s.drained(0) })
		}},
		{"it is not assigned any more", func(s *story) { s.tell("its object has gone", func() { s.v.Pod = nil }) }},
		{"its container has ended already", func(s *story) {
			s.tell("its deletion is asked for", deleted(s, 20))
			s.tell("the program ends by itself", func() { s.exit("a", 1) })
		}},
	} {
		s := begin(c.what, &text)
		c.play(s)
		text.WriteString(s.text.String())
	}
	golden(t, "drain.golden", text.String())
}

func TestStopSignalOfContainer(t *testing.T) {
	m, _ := Done(Memory{}, StartContainer{Config: runtime.ContainerConfig{Name: "a", Image: runtime.Image{StopSignal: "SIGQUIT"}}, StopSignal: "SIGUSR1"}, nil, time.Unix(0, 0))
	if got := m.Containers["a"].StopSignal.String(); got != "SIGUSR1" {
		t.Errorf("the stop signal is %s, not the container's own", got)
	}
}
