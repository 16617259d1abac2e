package runtimetest

import (
	"fmt"
	"sync"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

func testPodIsListed(h *harness) {
	h.wantPods()
	state := h.runPod("b")
	h.runPod("a")
	h.wantPods("a", "b")
	if state.UID != "b" || state.Name != "pod-b" || state.Namespace != "default" || state.Annotations["hash"] != "abc" {
		h.Errorf("state %+v does not give back what the pod was made from", state)
	}
	if state.Sandbox != runtime.SandboxReady || state.NetNS == "" || state.CgroupPath == "" || state.CreatedAt.IsZero() {
		h.Errorf("state %+v: want a ready sandbox with a network namespace, a cgroup and a time", state)
	}
}

func testRunPodIdempotent(h *harness) {
	first, second := h.runPod("a"), h.runPod("a")
	if first.NetNS != second.NetNS || !first.CreatedAt.Equal(second.CreatedAt) {
		h.Errorf("second call made another pod: %+v, then %+v", first, second)
	}
	h.wantPods("a")
}

func testContainerExits(h *harness) {
	h.runPod("a")
	h.run(h.container("good", 0, "sleep=300ms", "exit=0"))
	h.run(h.container("bad", 0, "sleep=300ms", "exit=7"))
	h.run(h.container("stays", 0, "forever"))
	running := h.attempt("a", "stays", 0)
	if running.Status != runtime.ContainerRunning || running.PID <= 0 || running.StartedAt.IsZero() || running.ImageDigest != h.Image.Digest {
		h.Errorf("running container reads %+v", running)
	}
	for _, want := range []struct {
		name   string
		code   int
		reason runtime.Reason
	}{{"good", 0, runtime.ReasonCompleted}, {"bad", 7, runtime.ReasonError}} {
		c := h.exited("a", want.name, 0)
		if c.Exit != (runtime.ExitStatus{Code: want.code}) || c.Reason != want.reason || c.PID != 0 {
			h.Errorf("%s: %+v, want code %d and reason %s", want.name, c, want.code, want.reason)
		}
		if c.FinishedAt.Sub(c.StartedAt) < 250*time.Millisecond {
			h.Errorf("%s: ran from %v to %v, want about 300 ms", want.name, c.StartedAt, c.FinishedAt)
		}
	}
	if c := h.attempt("a", "stays", 0); c.Status != runtime.ContainerRunning {
		h.Errorf("the third container reads %+v", c)
	}
}

func testAttemptRunsOnce(h *harness) {
	h.runPod("a")
	c := h.container("c", 0, "out=started", "sleep=100ms")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := h.Runtime.RunContainer(h.ctx, "a", c); err != nil {
				h.Errorf("RunContainer: %v", err)
			}
		})
	}
	wg.Wait()
	h.exited("a", "c", 0)
	h.run(c)
	if lines := h.readLog("a", "c", 0, runtime.LogOptions{}); len(lines) != 1 {
		h.Errorf("the attempt was started %d times: %v", len(lines), lines)
	}
}

func testAttemptsGrow(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 1, "forever"))
	err := h.Runtime.RunContainer(h.ctx, "a", h.container("c", 2))
	h.wantError(err, runtime.ErrConflict, "attempt 2 while 1 runs")
	err = h.Runtime.RunContainer(h.ctx, "a", h.container("c", 0))
	h.wantError(err, runtime.ErrConflict, "attempt 0 after 1")
	if pod := h.pod("a"); len(pod.Containers) != 1 {
		h.Errorf("refused attempts are listed: %+v", pod.Containers)
	}
}

func testOldAttemptsDiscarded(h *harness) {
	h.runPod("a")
	for attempt := range 4 {
		h.run(h.container("c", attempt, fmt.Sprintf("out=attempt %d", attempt), fmt.Sprintf("exit=%d", attempt)))
		h.exited("a", "c", attempt)
	}
	pod := h.pod("a")
	if len(pod.Containers) != 2 || pod.Containers[0].Attempt != 2 || pod.Containers[1].Attempt != 3 {
		h.Errorf("want attempts 2 and 3, found %+v", pod.Containers)
	}
	if lines := h.readLog("a", "c", 2, runtime.LogOptions{}); len(lines) != 1 || lines[0] != "stdout attempt 2" {
		h.Errorf("log of the attempt before: %q", lines)
	}
	_, err := h.Runtime.OpenLog(h.ctx, "a", "c", 1, runtime.LogOptions{})
	h.wantError(err, runtime.ErrContainerNotFound, "log of a discarded attempt")
}

func testSignals(h *harness) {
	h.runPod("a")
	// Each says when its handler is in place.
	h.run(h.container("polite", 0, "term=5", "out=up", "forever"))
	h.run(h.container("stubborn", 0, "term=ignore", "out=up", "forever"))
	for _, name := range []string{"polite", "stubborn"} {
		h.eventually(name+" is up", func() bool { return len(h.readLog("a", name, 0, runtime.LogOptions{})) == 1 })
		if err := h.Runtime.Signal(h.ctx, "a", name, 0, runtime.SIGTERM); err != nil {
			h.Fatal(err)
		}
	}
	if c := h.exited("a", "polite", 0); c.Exit != (runtime.ExitStatus{Code: 5}) {
		h.Errorf("after SIGTERM: %+v, want code 5", c)
	}
	if c := h.attempt("a", "stubborn", 0); c.Status != runtime.ContainerRunning {
		h.Errorf("a program that ignores SIGTERM reads %+v", c)
	}
	if err := h.Runtime.Signal(h.ctx, "a", "stubborn", 0, runtime.SIGKILL); err != nil {
		h.Fatal(err)
	}
	c := h.exited("a", "stubborn", 0)
	if c.Exit != (runtime.ExitStatus{Code: 137, Signal: runtime.SIGKILL}) || c.Reason != runtime.ReasonError {
		h.Errorf("after SIGKILL: %+v, want signal 9 and code 137", c)
	}
	h.wantError(h.Runtime.Signal(h.ctx, "a", "stubborn", 0, runtime.SIGTERM), runtime.ErrNotRunning, "signal to an exited container")
}

func testRemovePod(h *harness) {
	h.runPod("a")
	h.runPod("b")
	h.run(h.container("c", 0, "term=ignore", "forever"))
	h.run(h.container("d", 0, "exit=1"))
	for range 2 {
		if err := h.Runtime.RemovePod(h.ctx, "a"); err != nil {
			h.Fatal(err)
		}
	}
	h.wantPods("b")
	_, err := h.Runtime.Pod(h.ctx, "a")
	h.wantError(err, runtime.ErrPodNotFound, "state of a removed pod")
	h.wantError(h.Runtime.RunContainer(h.ctx, "a", h.container("c", 0)), runtime.ErrPodNotFound, "container in a removed pod")
	h.restart()
	h.wantPods("b")
}

func testRemoveThenRun(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "exit=3"))
	h.exited("a", "c", 0)
	if err := h.Runtime.RemovePod(h.ctx, "a"); err != nil {
		h.Fatal(err)
	}
	if state := h.runPod("a"); len(state.Containers) != 0 {
		h.Errorf("the new pod has the old one's containers: %+v", state.Containers)
	}
	h.run(h.container("c", 0, "exit=4"))
	if c := h.exited("a", "c", 0); c.Exit.Code != 4 {
		h.Errorf("the new pod's container reads %+v", c)
	}
}

func testStartError(h *harness) {
	h.runPod("a")
	c := h.container("c", 0)
	c.Command = []string{"/bin/no-such-program"}
	for range 2 {
		err := h.Runtime.RunContainer(h.ctx, "a", c)
		h.wantError(err, runtime.ErrStartFailed, "start of a program that is not there")
	}
	state := h.attempt("a", "c", 0)
	if state.Status != runtime.ContainerExited || state.Exit.Code != runtime.StartErrorExitCode ||
		state.Reason != runtime.ReasonStartError || state.Message == "" || !state.StartedAt.IsZero() {
		h.Errorf("a container that did not start reads %+v", state)
	}
	h.run(h.container("c", 1, "exit=0"))
	h.exited("a", "c", 1)
}

func testInvalid(h *harness) {
	_, err := h.Runtime.RunPod(h.ctx, runtime.PodConfig{UID: "../a"})
	h.wantError(err, runtime.ErrInvalid, "uid ../a")
	h.wantError(h.Runtime.RemovePod(h.ctx, "../a"), runtime.ErrInvalid, "removal of ../a")
	h.runPod("a")
	for name, change := range map[string]func(*runtime.ContainerConfig){
		"name ../c":             func(c *runtime.ContainerConfig) { c.Name = "../c" },
		"a negative attempt":    func(c *runtime.ContainerConfig) { c.Attempt = -1 },
		"a tiny memory limit":   func(c *runtime.ContainerConfig) { c.Resources.MemoryLimitBytes = 1 << 20 },
		"a tiny quota":          func(c *runtime.ContainerConfig) { c.Resources.CPUQuotaMicros = 10 },
		"a relative mount":      func(c *runtime.ContainerConfig) { c.Mounts = []runtime.Mount{{HostPath: "x", ContainerPath: "/y"}} },
		"a mount over the root": func(c *runtime.ContainerConfig) { c.Mounts = []runtime.Mount{{HostPath: "/x", ContainerPath: "/."}} },
		"no command": func(c *runtime.ContainerConfig) {
			c.Command, c.Image.Entrypoint, c.Image.Cmd = nil, nil, nil
		},
		"an unknown capability": func(c *runtime.ContainerConfig) { c.Security.AddCapabilities = []string{"NOPE"} },
		"root by mistake":       func(c *runtime.ContainerConfig) { c.Security.RunAsNonRoot = true },
		"an image of no layers": func(c *runtime.ContainerConfig) { c.Image.Layers = nil },
	} {
		c := h.container("c", 0, "exit=0")
		change(&c)
		h.wantError(h.Runtime.RunContainer(h.ctx, "a", c), runtime.ErrInvalid, name)
	}
	if pod := h.pod("a"); len(pod.Containers) != 0 {
		h.Errorf("refused containers are listed: %+v", pod.Containers)
	}
	h.run(h.container("c", 0, "exit=0"))
	h.exited("a", "c", 0)
}

func testNotFound(h *harness) {
	_, err := h.Runtime.Pod(h.ctx, "a")
	h.wantError(err, runtime.ErrPodNotFound, "Pod")
	h.wantError(h.Runtime.RunContainer(h.ctx, "a", h.container("c", 0)), runtime.ErrPodNotFound, "RunContainer")
	h.wantError(h.Runtime.Signal(h.ctx, "a", "c", 0, runtime.SIGTERM), runtime.ErrPodNotFound, "Signal")
	if err := h.Runtime.RemovePod(h.ctx, "a"); err != nil {
		h.Errorf("RemovePod of nothing: %v", err)
	}
	h.runPod("a")
	h.wantError(h.Runtime.Signal(h.ctx, "a", "c", 0, runtime.SIGTERM), runtime.ErrContainerNotFound, "Signal")
	_, err = h.Runtime.OpenLog(h.ctx, "a", "c", 0, runtime.LogOptions{})
	h.wantError(err, runtime.ErrContainerNotFound, "OpenLog")
	_, err = h.Runtime.Exec(h.ctx, "a", "c", runtime.ExecConfig{Args: []string{"/bin/sim"}})
	h.wantError(err, runtime.ErrContainerNotFound, "Exec")
}

func testOOM(h *harness) {
	h.runPod("a")
	c := h.container("c", 0, "oom", "exit=0")
	c.Resources.MemoryLimitBytes = 32 << 20
	h.run(c)
	state := h.exited("a", "c", 0)
	if state.Reason != runtime.ReasonOOMKilled || state.Exit.Signal != runtime.SIGKILL {
		h.Errorf("a container beyond its memory limit reads %+v, want %s", state, runtime.ReasonOOMKilled)
	}
}

func testManyPods(h *harness) {
	const pods, containers = 4, 2
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			uid := runtime.PodUID(fmt.Sprintf("p%d", i))
			if _, err := h.Runtime.RunPod(h.ctx, podConfig(uid)); err != nil {
				h.Errorf("RunPod: %v", err)
				return
			}
			for k := range containers {
				c := h.container(fmt.Sprintf("c%d", k), 0, fmt.Sprintf("out=%d-%d", i, k), fmt.Sprintf("exit=%d", 10*i+k))
				if err := h.Runtime.RunContainer(h.ctx, uid, c); err != nil {
					h.Errorf("RunContainer: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i := range pods {
		for k := range containers {
			uid, name := runtime.PodUID(fmt.Sprintf("p%d", i)), fmt.Sprintf("c%d", k)
			if c := h.exited(uid, name, 0); c.Exit.Code != 10*i+k {
				h.Errorf("%s/%s: %+v, want code %d", uid, name, c, 10*i+k)
			}
			if lines := h.readLog(uid, name, 0, runtime.LogOptions{}); len(lines) != 1 || lines[0] != fmt.Sprintf("stdout %d-%d", i, k) {
				h.Errorf("%s/%s: log %q", uid, name, lines)
			}
		}
	}
}
