// Package runtimetest is the one suite that every implementation of
// runtime.Runtime passes: what the agent may rely on, as tests. The programs in
// it are written in package simprog's language, so that the same container
// does the same on a simulated clock and for real.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// Node is one machine under test.
type Node struct {
	// Runtime is the agent's handle.
	Runtime runtime.Runtime
	// Image holds the program /bin/sim.
	Image runtime.Image
	// RestartAgent ends the handle as a crash would and opens another.
	RestartAgent func() runtime.Runtime
	// KillShim kills the pod's shim with SIGKILL.
	KillShim func(runtime.PodUID)
	// Tick lets a little time pass.
	Tick func()
}

// patience bounds every wait of the suite, in real time.
const patience = 30 * time.Second

// Run runs the suite; open returns a fresh node for each test.
func Run(t *testing.T, open func(t *testing.T) *Node) {
	for _, c := range []struct {
		name string
		test func(*harness)
	}{
		{"PodIsListedOnceMade", testPodIsListed},
		{"RunPodIsIdempotent", testRunPodIdempotent},
		{"ContainerRunsAndExits", testContainerExits},
		{"AttemptRunsOnce", testAttemptRunsOnce},
		{"AttemptsOnlyGrow", testAttemptsGrow},
		{"OldAttemptsAreDiscarded", testOldAttemptsDiscarded},
		{"TermAndKill", testSignals},
		{"RemovePodLeavesNothing", testRemovePod},
		{"RemovePodThenSameUID", testRemoveThenRun},
		{"StartErrorIsAnExit", testStartError},
		{"InvalidIsRefused", testInvalid},
		{"UnknownIsNotFound", testNotFound},
		{"OutOfMemoryIsTheReason", testOOM},
		{"OutOfMemoryOfAChildIsTheReason", testOOMOfChild},
		{"UnsafePodIsRefused", testUnsafePod},
		{"UnsafeContainerIsRefused", testUnsafeContainer},
		{"TargetContainerMustRun", testTarget},
		{"SharedProcessesSurviveAgentAndShim", testSharedProcesses},
		{"UsersAreTaken", testUsers},
		{"EnvironmentIsMerged", testEnvironment},
		{"LogKeepsOrderAndStreams", testLog},
		{"LogFollowEndsWithContainer", testLogFollow},
		{"LogFollowCrossesRotations", testLogFollowRotation},
		{"LogTailAndSince", testLogTail},
		{"LogIsBounded", testLogBounded},
		{"ExecRuns", testExec},
		{"ExecSeesReadiness", testReadiness},
		{"ExecHasStreamsAndTerminal", testExecStreams},
		{"ExecOutputIsWhole", testExecSlowReader},
		{"AttachFansOut", testAttach},
		{"AttachLeavesTheProgram", testAttachLeaves},
		{"AttachSurvivesAgent", testAttachSurvivesAgent},
		{"AttachHasTheTerminal", testAttachTerminal},
		{"AttachSlowReaderHoldsUpNobody", testAttachSlow},
		{"AttachIsRefused", testAttachRefusals},
		{"DialReachesThePod", testDial},
		{"CopyInAndOut", testCopy},
		{"CopyIsRefused", testCopyRefusals},
		{"StatsAreRead", testStats},
		{"ExitSurvivesAgent", testExitSurvivesAgent},
		{"RunningIsAdopted", testRunningAdopted},
		{"ShimLostIsReported", testShimLost},
		{"ShimLostWhileAgentIsDown", testShimLostUnseen},
		{"ChangesNameThePod", testChanges},
		{"PodsDoNotDisturbEachOther", testManyPods},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c.test(&harness{T: t, Node: open(t), ctx: ctx})
		})
	}
}

type harness struct {
	*testing.T
	*Node
	ctx context.Context
}

func (h *harness) restart() { h.Runtime = h.RestartAgent() }

func (h *harness) runPod(uid runtime.PodUID) runtime.PodState {
	h.Helper()
	state, err := h.Runtime.RunPod(h.ctx, podConfig(uid))
	if err != nil {
		h.Fatalf("RunPod %s: %v", uid, err)
	}
	return state
}

func podConfig(uid runtime.PodUID) runtime.PodConfig {
	return runtime.PodConfig{
		UID: uid, Namespace: "default", Name: "pod-" + string(uid), Hostname: "host-" + string(uid),
		Hosts: []byte("127.0.0.1 localhost\n"), ResolvConf: []byte("nameserver 127.0.0.1\n"),
		Annotations: map[string]string{"hash": "abc"},
	}
}

// container is one that runs the given steps.
func (h *harness) container(name string, attempt int, steps ...string) runtime.ContainerConfig {
	return runtime.ContainerConfig{
		Name: name, Attempt: attempt, Image: h.Image, Command: append([]string{"/bin/" + simprog.Name}, steps...),
	}
}

// run starts a container of pod a.
func (h *harness) run(c runtime.ContainerConfig) {
	h.Helper()
	if err := h.Runtime.RunContainer(h.ctx, "a", c); err != nil {
		h.Fatalf("RunContainer a/%s: %v", c.Name, err)
	}
}

func (h *harness) pod(uid runtime.PodUID) runtime.PodState {
	h.Helper()
	state, err := h.Runtime.Pod(h.ctx, uid)
	if err != nil {
		h.Fatalf("Pod %s: %v", uid, err)
	}
	return state
}

func (h *harness) attempt(uid runtime.PodUID, name string, attempt int) runtime.ContainerState {
	h.Helper()
	pod := h.pod(uid)
	c, ok := pod.Attempt(name, attempt)
	if !ok {
		h.Fatalf("pod %s has no container %s attempt %d: %+v", uid, name, attempt, pod)
	}
	return c
}

// eventually polls a condition; message says what was waited for.
func (h *harness) eventually(message string, condition func() bool) {
	h.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			pods, err := h.Runtime.Pods(h.ctx)
			h.Fatalf("waited %v for: %s\npods: %+v %v", patience, message, pods, err)
		}
		h.Tick()
	}
}

func (h *harness) exited(uid runtime.PodUID, name string, attempt int) runtime.ContainerState {
	h.Helper()
	var c runtime.ContainerState
	h.eventually(fmt.Sprintf("exit of %s/%s attempt %d", uid, name, attempt), func() bool {
		c = h.attempt(uid, name, attempt)
		return c.Status == runtime.ContainerExited
	})
	return c
}

func (h *harness) wantError(err, want error, doing string) {
	h.Helper()
	if !errors.Is(err, want) {
		h.Errorf("%s: got error %v, want %v", doing, err, want)
	}
}

func (h *harness) uids() []runtime.PodUID {
	h.Helper()
	pods, err := h.Runtime.Pods(h.ctx)
	if err != nil {
		h.Fatal(err)
	}
	var uids []runtime.PodUID
	for _, p := range pods {
		uids = append(uids, p.UID)
	}
	return uids
}

func (h *harness) wantPods(want ...runtime.PodUID) {
	h.Helper()
	if got := h.uids(); !slices.Equal(got, want) {
		h.Errorf("pods %v, want %v", got, want)
	}
}
