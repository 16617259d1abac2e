package fake

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/runtimetest"
)

func image() runtime.Image {
	return runtime.Image{Digest: "sha256:0123", Layers: []string{"/fake/layer"}}
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) *runtimetest.Node {
		now := clock.NewFake(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		m := NewMachine(Options{Clock: now})
		// A goroutine between two steps needs real time to be scheduled.
		tick := func() {
			now.Advance(10 * time.Millisecond)
			<-time.NewTimer(100 * time.Microsecond).C
		}
		return &runtimetest.Node{
			Runtime: m.Open(), Image: image(), Tick: tick,
			RestartAgent: func() runtime.Runtime { return m.Open() },
			KillShim: func(uid runtime.PodUID) {
				if err := m.KillShim(uid); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

func start(t *testing.T, r *Runtime, uid runtime.PodUID, steps ...string) {
	t.Helper()
	if _, err := r.RunPod(t.Context(), runtime.PodConfig{UID: uid}); err != nil {
		t.Fatal(err)
	}
	c := runtime.ContainerConfig{Name: "c", Image: image(), Command: append([]string{"sim"}, steps...)}
	if err := r.RunContainer(t.Context(), uid, c); err != nil {
		t.Fatal(err)
	}
}

func TestReadyFollowsTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMachine(Options{Clock: clock.Real{}})
		r := m.Open()
		start(t, r, "a", "sleep=2s", "ready", "sleep=3s", "unready", "sleep=1s", "exit=1")
		begin := time.Now()
		var flips []time.Duration
		was := false
		for time.Since(begin) < 7*time.Second {
			synctest.Wait()
			if is := m.Ready("a", "c"); is != was {
				flips, was = append(flips, time.Since(begin)), is
			}
			<-time.After(500 * time.Millisecond)
		}
		if want := []time.Duration{2 * time.Second, 5 * time.Second}; !slices.Equal(flips, want) {
			t.Errorf("readiness changed at %v, want %v", flips, want)
		}
		state, err := r.Pod(t.Context(), "a")
		if err != nil || state.Containers[0].FinishedAt.Sub(state.Containers[0].StartedAt) != 6*time.Second {
			t.Errorf("state %+v, %v: want a run of exactly 6s", state, err)
		}
	})
}

func TestContainersOutliveTheAgentAndItsShim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMachine(Options{Clock: clock.Real{}})
		r := m.Open()
		start(t, r, "a", "forever")
		r.Close()
		if err := m.KillShim("a"); err != nil {
			t.Fatal(err)
		}
		if got := m.Processes(); got["a/c"] != 1 {
			t.Errorf("without agent and shim: %v, want the container to run on", got)
		}
		r = m.Open()
		if got := m.Processes(); len(got) != 0 {
			t.Errorf("after adoption: %v, want nothing", got)
		}
		state, err := r.Pod(t.Context(), "a")
		if err != nil || state.Containers[0].Reason != runtime.ReasonShimLost {
			t.Errorf("state %+v, %v", state, err)
		}
	})
}

func TestRebootLosesEverythingButTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMachine(Options{Clock: clock.Real{}})
		old := m.Open()
		start(t, old, "a", "forever")
		m.Reboot()
		if _, err := old.Pods(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("the agent's handle after a reboot: %v, want ErrClosed", err)
		}
		r := m.Open()
		state, err := r.Pod(t.Context(), "a")
		if err != nil || state.Sandbox != runtime.SandboxLost || state.Containers[0].Reason != runtime.ReasonNodeRebooted {
			t.Errorf("state %+v, %v", state, err)
		}
	})
}

func TestInjectedErrorsDoNothing(t *testing.T) {
	broken := errors.New("broken")
	m := NewMachine(Options{Clock: clock.Real{}, Inject: func(op Op, _ runtime.PodUID) error {
		if op == OpRunPod {
			return broken
		}
		return nil
	}})
	r := m.Open()
	if _, err := r.RunPod(t.Context(), runtime.PodConfig{UID: "a"}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if pods, err := r.Pods(t.Context()); err != nil || len(pods) != 0 {
		t.Errorf("a failed call made %v, %v", pods, err)
	}
}
