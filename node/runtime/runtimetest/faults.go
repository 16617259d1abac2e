package runtimetest

import (
	"context"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
)

func testExitSurvivesAgent(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "out=done", "exit=42"))
	before := h.exited("a", "c", 0)
	h.restart()
	after := h.attempt("a", "c", 0)
	if after.Exit != before.Exit || after.Reason != before.Reason || !after.FinishedAt.Equal(before.FinishedAt) || after.ImageDigest != before.ImageDigest {
		h.Errorf("before the agent's restart %+v, after it %+v", before, after)
	}
	if lines := h.readLog("a", "c", 0, runtime.LogOptions{}); len(lines) != 1 {
		h.Errorf("log after the restart: %q", lines)
	}
	h.run(h.container("c", 0, "out=done", "exit=42")) // must not start it again
	if lines := h.readLog("a", "c", 0, runtime.LogOptions{}); len(lines) != 1 {
		h.Errorf("the attempt ran again after the restart: %q", lines)
	}
}

func testRunningAdopted(h *harness) {
	before := h.runPod("a")
	h.run(h.container("c", 0, "term=6", "out=up", "forever"))
	h.run(h.container("d", 0, "sleep=1s", "exit=8"))
	h.eventually("c is up", func() bool { return len(h.readLog("a", "c", 0, runtime.LogOptions{})) == 1 })
	pid := h.attempt("a", "c", 0).PID
	h.restart()
	if c := h.attempt("a", "c", 0); c.Status != runtime.ContainerRunning || c.PID != pid {
		h.Errorf("after the restart %+v, want running as process %d", c, pid)
	}
	if after := h.runPod("a"); after.NetNS != before.NetNS || after.Sandbox != runtime.SandboxReady {
		h.Errorf("after the restart %+v, before it %+v", after, before)
	}
	if c := h.exited("a", "d", 0); c.Exit.Code != 8 {
		h.Errorf("an exit after the restart reads %+v", c)
	}
	if err := h.Runtime.Signal(h.ctx, "a", "c", 0, runtime.SIGTERM); err != nil {
		h.Fatal(err)
	}
	if c := h.exited("a", "c", 0); c.Exit.Code != 6 {
		h.Errorf("after SIGTERM %+v", c)
	}
}

func testShimLost(h *harness) {
	before := h.runPod("a")
	h.run(h.container("done", 0, "exit=3"))
	h.exited("a", "done", 0)
	h.run(h.container("c", 0, "term=ignore", "forever"))
	h.KillShim("a")
	h.checkLost(before)
}

func testShimLostUnseen(h *harness) {
	before := h.runPod("a")
	h.run(h.container("done", 0, "exit=3"))
	h.exited("a", "done", 0)
	h.run(h.container("c", 0, "term=ignore", "forever"))
	h.KillShim("a")
	h.restart()
	h.checkLost(before)
}

// checkLost: the pod reads lost, what ran reads ShimLost, what was over stays
// as it was, and RunPod makes the pod usable again.
func (h *harness) checkLost(before runtime.PodState) {
	h.Helper()
	h.eventually("the pod to read lost", func() bool { return h.pod("a").Sandbox == runtime.SandboxLost })
	c := h.exited("a", "c", 0)
	if c.Reason != runtime.ReasonShimLost || c.Exit.Code != runtime.LostExitCode || c.Message == "" || c.StartedAt.IsZero() {
		h.Errorf("after the loss of the shim the container reads %+v", c)
	}
	if c := h.attempt("a", "done", 0); c.Exit.Code != 3 || c.Reason != runtime.ReasonError {
		h.Errorf("after the loss of the shim the container that was over reads %+v", c)
	}
	h.wantError(h.Runtime.RunContainer(h.ctx, "a", h.container("c", 1)), runtime.ErrPodLost, "container in a lost pod")
	after := h.runPod("a")
	if after.Sandbox != runtime.SandboxReady || after.NetNS != before.NetNS {
		h.Errorf("revived pod reads %+v, before it was %+v", after, before)
	}
	h.run(h.container("c", 1, "exit=4"))
	if c := h.exited("a", "c", 1); c.Exit.Code != 4 {
		h.Errorf("the next attempt reads %+v", c)
	}
	if c := h.attempt("a", "c", 0); c.Reason != runtime.ReasonShimLost {
		h.Errorf("the lost attempt reads %+v now", c)
	}
}

func testChanges(h *harness) {
	h.runPod("a")
	h.run(h.container("c", 0, "sleep=100ms", "exit=5"))
	seen := make(chan runtime.PodUID)
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	rt := h.Runtime
	go func() {
		for {
			uid, err := rt.NextChange(ctx)
			if err != nil {
				close(seen)
				return
			}
			seen <- uid
		}
	}()
	named := false
	h.eventually("a change that shows the exit", func() bool {
		select {
		case uid := <-seen:
			named = uid == "a" && h.attempt("a", "c", 0).Status == runtime.ContainerExited
		default:
		}
		return named
	})
	cancel()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-seen:
			if !ok {
				return
			}
		case <-deadline:
			h.Fatal("NextChange did not end with its context")
		}
	}
}
