package node_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// sim is a container that runs the given steps.
func sim(name string, steps ...string) *balsav1.Container {
	return &balsav1.Container{Name: name, Image: "app:1", Command: append([]string{"/bin/sim"}, steps...)}
}

func sidecarOf(c *balsav1.Container) *balsav1.Container {
	c.RestartPolicy = object.RestartAlways
	return c
}

func execOf(steps ...string) *balsav1.ExecAction {
	return &balsav1.ExecAction{Command: append([]string{"/bin/sim"}, steps...)}
}

// put gives a pod its defaults and the node the pod.
func (l *lab) put(p *balsav1.Pod) {
	object.Default(p)
	l.server.put(p)
}

// attempt is the newest run of a container.
func (l *lab) attempt(uid, name string) runtime.ContainerState {
	p, _ := l.state(uid)
	c, _ := p.Container(name)
	return c
}

func (l *lab) isRunning(uid, name string) bool {
	return l.attempt(uid, name).Status == runtime.ContainerRunning
}

func (l *lab) phase(name, phase string) func() bool {
	return func() bool { return l.server.pod(name).GetStatus().GetPhase() == phase }
}

// statusOf is what was reported of any container of a pod.
func (l *lab) statusOf(name, container string) *balsav1.ContainerStatus {
	s := l.server.pod(name).GetStatus()
	for _, list := range [][]*balsav1.ContainerStatus{s.GetInitContainerStatuses(), s.GetContainerStatuses(), s.GetEphemeralContainerStatuses()} {
		for _, c := range list {
			if c.GetName() == container {
				return c
			}
		}
	}
	return nil
}

func (l *lab) condition(name, kind string) *balsav1.Condition {
	return object.FindCondition(l.server.pod(name).GetStatus().GetConditions(), kind)
}

func TestInitContainersRunInOrder(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.InitContainers = []*balsav1.Container{sim("first", "sleep=2s"), sim("second", "sleep=2s")}
		l.put(p)
		l.within(time.Second, "the first runs alone", func() bool {
			return l.isRunning("uid-a", "first") && l.statusOf("a", "second").GetState().GetWaiting().GetReason() == "PodInitializing" && l.phase("a", "Pending")()
		})
		if c := l.condition("a", "Initialized"); c.GetStatus() != "False" || c.GetReason() != "ContainersNotInitialized" || !strings.Contains(c.GetMessage(), "[first second]") {
			l.Errorf("condition %v", c)
		}
		l.within(10*time.Second, "the pod is ready", l.ready("a"))
		first, second, c := l.attempt("uid-a", "first"), l.attempt("uid-a", "second"), l.attempt("uid-a", "c")
		if second.StartedAt.Before(first.FinishedAt) || c.StartedAt.Before(second.FinishedAt) {
			l.Errorf("first %+v, second %+v, then %+v", first, second, c)
		}
		s := l.statusOf("a", "second")
		if !s.GetReady() || s.GetState().GetTerminated().GetReason() != "Completed" || l.condition("a", "Initialized").GetStatus() != "True" {
			l.Errorf("an init container that is done reads %v", s)
		}
	})
}

func TestInitContainerFails(t *testing.T) {
	onNode(t, func(l *lab) {
		never := newPod("never", "forever")
		never.Spec.RestartPolicy = "Never"
		never.Spec.InitContainers = []*balsav1.Container{sidecarOf(sim("side", "term=0", "forever")), sim("first", "sleep=1s", "exit=3")}
		l.put(never)
		again := newPod("again", "forever")
		again.Spec.InitContainers = []*balsav1.Container{sim("first", "sleep=1s", "exit=3")}
		l.put(again)
		l.within(5*time.Second, "with Never the pod has failed, and its sidecar ends", func() bool { return l.phase("never", "Failed")() && !l.isRunning("uid-never", "side") })
		if _, begun := l.state("uid-never"); begun.Name != "" {
			l.Error("the container began although its init container failed")
		}
		l.within(20*time.Second, "else it is run again, with back-off", func() bool {
			return l.statusOf("again", "first").GetState().GetWaiting().GetReason() == "CrashLoopBackOff" && l.attempt("uid-again", "first").Attempt >= 1
		})
		if !l.phase("again", "Pending")() {
			l.Error("a pod that is not initialised is not Pending")
		}
	})
}

func TestInitContainersRunAgainAfterSandboxLoss(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.InitContainers = []*balsav1.Container{sim("first", "sleep=1s"), sidecarOf(sim("side", "forever"))}
		l.put(p)
		l.within(5*time.Second, "it runs", l.ready("a"))
		if err := l.machine.KillShim("uid-a"); err != nil {
			l.Fatal(err)
		}
		l.within(5*time.Second, "everything runs again", func() bool {
			return l.attempt("uid-a", "first").Attempt == 1 && l.attempt("uid-a", "side").Attempt == 1 && l.attempt("uid-a", "c").Attempt == 1 && l.ready("a")()
		})
		if l.attempt("uid-a", "c").StartedAt.Before(l.attempt("uid-a", "first").FinishedAt) {
			l.Error("the container did not wait for the init container")
		}
	})
}

func TestHostReboot(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(&balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"k": "v"}})
		l.put(fullPod())
		l.within(time.Minute, "it runs", l.ready("a"))
		users, _ := l.state("uid-a")
		for n := int32(1); n <= 2; n++ {
			l.within(3*time.Second, "all is told", func() bool { return l.agent.Status().PendingReports == 0 })
			l.stop()
			l.machine.Reboot()
			l.run.files = map[string][]byte{}
			l.start()
			l.within(time.Minute, "after a reboot it runs again", func() bool { return l.ready("a")() && l.statusOf("a", "c").GetRestartCount() == n })
			for _, name := range []string{"first", "side", "second"} {
				if got := l.statusOf("a", name).GetRestartCount(); got != n {
					l.Errorf("after %d reboots %s has the restart count %d", n, name, got)
				}
			}
			if last := l.statusOf("a", "c").GetLastState().GetTerminated(); last.GetReason() != "NodeRebooted" || last.GetExitCode() != 137 {
				l.Errorf("the last state is %v", last)
			}
		}
		if now, _ := l.state("uid-a"); now.Annotations["balsa.run/users"] != users.Annotations["balsa.run/users"] || users.Annotations["balsa.run/users"] == "" {
			l.Error("the pod's user ids have changed")
		}
	})
}

func TestSidecarsStartBeforeAndStopAfter(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "term=0", "forever")
		one := sidecarOf(sim("one", "term=0", "sleep=3s", "ready", "forever"))
		one.StartupProbe = &balsav1.Probe{Exec: execOf("is-ready"), PeriodSeconds: proto.Int32(1), FailureThreshold: proto.Int32(60)}
		p.Spec.InitContainers = []*balsav1.Container{one, sidecarOf(sim("two", "term=ignore", "forever"))}
		l.put(p)
		l.always(2*time.Second, "nothing begins before the sidecar has started", func() bool { return !l.isRunning("uid-a", "two") })
		if s := l.statusOf("a", "one"); s.GetStarted() || s.GetState().GetRunning() == nil {
			l.Errorf("before its startup probe has passed it reads %v", s)
		}
		l.within(10*time.Second, "then all run", l.ready("a"))
		if !l.statusOf("a", "one").GetStarted() || !l.statusOf("a", "one").GetReady() {
			l.Errorf("the sidecar reads %v", l.statusOf("a", "one"))
		}
		l.server.deletePod("a", 10)
		l.within(time.Second, "the container ends first", func() bool { return !l.isRunning("uid-a", "c") })
		l.always(8*time.Second, "the first sidecar waits for the second", func() bool { return l.isRunning("uid-a", "one") && l.isRunning("uid-a", "two") })
		l.within(5*time.Second, "and goes when that was killed", func() bool { return l.server.pod("a") == nil })
	})
}

func TestSidecarIsRestartedAlways(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "sleep=10s", "exit=0")
		p.Spec.RestartPolicy = "Never"
		p.Spec.InitContainers = []*balsav1.Container{sidecarOf(sim("side", "sleep=2s", "exit=7"))}
		l.put(p)
		l.within(6*time.Second, "it is run again", func() bool { return l.attempt("uid-a", "side").Attempt == 1 })
		if l.attempt("uid-a", "c").Attempt != 0 {
			l.Error("its end touched the container")
		}
		l.within(20*time.Second, "its exit code does not fail the pod", l.phase("a", "Succeeded"))
	})
}

func TestPodCompletesAlthoughSidecarsRun(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "sleep=2s", "exit=0")
		p.Spec.RestartPolicy = "OnFailure"
		p.Spec.InitContainers = []*balsav1.Container{sidecarOf(sim("side", "term=5", "forever"))}
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.within(5*time.Second, "it has succeeded", l.phase("a", "Succeeded"))
		if s := l.statusOf("a", "side"); s.GetState().GetTerminated().GetExitCode() != 5 || l.isRunning("uid-a", "side") {
			l.Errorf("the sidecar reads %v", s)
		}
		if c := l.condition("a", "Ready"); c.GetStatus() != "False" || c.GetReason() != "PodCompleted" {
			l.Errorf("condition %v", c)
		}
	})
}

func TestPostStartHoldsBackRunning(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PostStart: &balsav1.LifecycleHandler{Sleep: &balsav1.SleepAction{Seconds: 5}}}
		p.Spec.Containers = append(p.Spec.Containers, sim("next", "forever"))
		l.put(p)
		l.within(time.Second, "the program runs", func() bool { return l.isRunning("uid-a", "c") && l.statusOf("a", "c") != nil })
		l.always(4*time.Second, "and reads waiting; the next container waits, too", func() bool {
			return l.statusOf("a", "c").GetState().GetWaiting() != nil && !l.isRunning("uid-a", "next") && l.phase("a", "Pending")()
		})
		l.within(3*time.Second, "all run when the hook has returned", l.ready("a"))
	})
}

func TestPostStartFailureKillsContainer(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "term=0", "forever")
		p.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PostStart: &balsav1.LifecycleHandler{Exec: execOf("err=oh no", "exit=4")}}
		l.put(p)
		l.within(5*time.Second, "it is run again", func() bool { return l.attempt("uid-a", "c").Attempt >= 1 })
		l.within(time.Second, "an event says what the hook said", func() bool { return l.hasEvent("FailedPostStartHook", "exit code 4: oh no") })
		l.within(5*time.Second, "with back-off", func() bool { return l.statusOf("a", "c").GetState().GetWaiting().GetReason() == "CrashLoopBackOff" })
	})
}

func TestPreStopRunsBeforeTheSignal(t *testing.T) {
	onNode(t, func(l *lab) {
		polite, endless := newPod("polite", "term=0", "forever"), newPod("endless", "term=ignore", "forever")
		polite.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PreStop: &balsav1.LifecycleHandler{Sleep: &balsav1.SleepAction{Seconds: 4}}}
		endless.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PreStop: &balsav1.LifecycleHandler{Exec: execOf("forever")}}
		l.put(polite)
		l.put(endless)
		l.within(2*time.Second, "both run", func() bool { return l.ready("polite")() && l.ready("endless")() })
		l.server.deletePod("polite", 30)
		l.server.deletePod("endless", 6)
		l.always(3500*time.Millisecond, "no signal while the hook runs", func() bool { return l.isRunning("uid-polite", "c") })
		l.within(time.Second, "it ends right after", func() bool { return l.server.pod("polite") == nil })
		l.always(3*time.Second, "a hook that does not return has the grace period, and the container 2 s more", func() bool { return l.isRunning("uid-endless", "c") })
		l.within(1500*time.Millisecond, "then it is killed", func() bool { return l.server.pod("endless") == nil })
	})
}

func TestPreStopFailureIsTold(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "term=0", "forever")
		p.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PreStop: &balsav1.LifecycleHandler{Exec: execOf("exit=2")}}
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.server.deletePod("a", 30)
		l.within(2*time.Second, "it ends all the same", func() bool { return l.server.pod("a") == nil })
		l.within(time.Second, "and the event tells", func() bool { return l.hasEvent("FailedPreStopHook", "exit code 2") })
	})
}

func TestDeletionWithGraceZero(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "term=ignore", "forever")
		p.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PreStop: &balsav1.LifecycleHandler{Exec: execOf("forever")}}
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.server.deletePod("a", 0)
		l.within(time.Second, "it is killed at once", func() bool { return l.server.pod("a") == nil && !l.exists("uid-a") })
	})
}

func TestLivenessFailureRestarts(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "term=ignore", "ready", "sleep=10s", "unready", "forever")
		p.Spec.Containers[0].LivenessProbe = &balsav1.Probe{Exec: execOf("is-ready"), PeriodSeconds: proto.Int32(2), FailureThreshold: proto.Int32(3), TerminationGracePeriodSeconds: proto.Int64(4)}
		p.Spec.Containers[0].Lifecycle = &balsav1.Lifecycle{PreStop: &balsav1.LifecycleHandler{Exec: execOf("exit=1")}}
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.always(12*time.Second, "it runs until the probe has failed three times", func() bool { return l.attempt("uid-a", "c").Attempt == 0 && l.isRunning("uid-a", "c") })
		l.within(5*time.Second, "the failure is told", func() bool {
			return l.hasEvent("Unhealthy", "Liveness probe failed: command ended with exit code 1") && l.hasEvent("Killing", "failed liveness probe, will be restarted")
		})
		l.restart() // which does not lengthen the grace period
		l.within(5*time.Second, "it is killed after the probe's grace period, and run again", func() bool { return l.statusOf("a", "c").GetRestartCount() == 1 && l.ready("a")() })
		if c := l.statusOf("a", "c"); c.GetLastState().GetTerminated().GetExitCode() != 137 || !l.hasEvent("FailedPreStopHook", "") {
			l.Errorf("after the restart it reads %v", c)
		}
	})
}

func TestStartupProbeGatesTheOthers(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("slow", "sleep=15s", "ready", "forever")
		probe := func(threshold int32) *balsav1.Probe {
			return &balsav1.Probe{Exec: execOf("is-ready"), PeriodSeconds: proto.Int32(2), FailureThreshold: proto.Int32(threshold)}
		}
		p.Spec.Containers[0].StartupProbe, p.Spec.Containers[0].LivenessProbe, p.Spec.Containers[0].ReadinessProbe = probe(30), probe(1), probe(1)
		l.put(p)
		dead := newPod("dead", "term=0", "forever")
		dead.Spec.Containers[0].StartupProbe = probe(3)
		l.put(dead)
		l.within(2*time.Second, "it runs", func() bool { return l.statusOf("slow", "c").GetState().GetRunning() != nil })
		l.always(12*time.Second, "it has not started, and liveness is not asked", func() bool {
			c := l.statusOf("slow", "c")
			return !c.GetStarted() && !c.GetReady() && c.GetRestartCount() == 0
		})
		l.within(6*time.Second, "it has", func() bool { return l.statusOf("slow", "c").GetStarted() && l.ready("slow")() })
		l.restart()
		l.always(5*time.Second, "and that survives the agent", func() bool { return l.statusOf("slow", "c").GetStarted() && l.ready("slow")() })
		if l.statusOf("dead", "c").GetRestartCount() == 0 || !l.hasEvent("Killing", "failed startup probe") {
			l.Errorf("what never starts reads %v", l.statusOf("dead", "c"))
		}
	})
}

func TestActiveDeadlineSurvivesRestart(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "term=0", "forever")
		p.Spec.ActiveDeadlineSeconds = proto.Int64(20)
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.always(10*time.Second, "it may", l.ready("a"))
		l.restart()
		l.always(6*time.Second, "it may still", l.ready("a"))
		l.within(4*time.Second, "its time is over, and nobody is sent there", func() bool {
			p := l.server.pod("a")
			return p.GetStatus().GetReason() == "DeadlineExceeded" && !object.PodReady(p) && l.isRunning("uid-a", "c")
		})
		l.server.drain("a")
		l.within(time.Second, "it ends", func() bool {
			s := l.server.pod("a").GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == "DeadlineExceeded"
		})
		if l.isRunning("uid-a", "c") || !l.hasEvent("DeadlineExceeded", "") {
			l.Error("it runs, or nothing was told")
		}
	})
}

func TestEviction(t *testing.T) {
	onNode(t, func(l *lab) {
		l.put(newPod("a", "term=ignore", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		grace := 3 * time.Second
		l.evict["uid-a"] = &pod.Refusal{Reason: pod.ReasonEvicted, Message: "The node was low on resource: memory.", Grace: &grace}
		l.agent.EvictionChanged("uid-a")
		l.always(2*time.Second, "it has the grace that it was given", func() bool { return l.isRunning("uid-a", "c") })
		if object.PodReady(l.server.pod("a")) {
			l.Error("while it ends it is offered to services")
		}
		delete(l.evict, "uid-a")
		l.restart()
		l.within(3*time.Second, "then it has failed, though the pressure has gone", l.phase("a", "Failed"))
		s := l.server.pod("a").GetStatus()
		if c := l.condition("a", "DisruptionTarget"); s.GetReason() != "Evicted" || !strings.Contains(s.GetMessage(), "memory") || c.GetStatus() != "True" {
			l.Errorf("status %v, condition %v", s, c)
		}
	})
}

func TestTerminationMessage(t *testing.T) {
	onNode(t, func(l *lab) {
		file, log := newPod("file", "sleep=1s", "exit=1"), newPod("log", "lines=100", "sleep=1s", "exit=1")
		file.Spec.RestartPolicy, log.Spec.RestartPolicy = "Never", "Never"
		log.Spec.Containers[0].TerminationMessagePolicy = object.MessageFallbackToLogsOnError
		file.Spec.Containers[0].TerminationMessagePath = "/tmp/last"
		l.put(file)
		l.put(log)
		name := "messages/uid-file_c_0"
		l.within(time.Second, "the container has a file to write to", func() bool { _, err := l.run.Read(name); return err == nil })
		l.mu.Lock()
		mounted := slices.Contains(l.configs["c"].Mounts, runtime.Mount{HostPath: "/run/" + name, ContainerPath: "/tmp/last"}) ||
			slices.Contains(l.configs["c"].Mounts, runtime.Mount{HostPath: "/run/messages/uid-log_c_0", ContainerPath: "/dev/termination-log"})
		l.mu.Unlock()
		if err := l.run.Write(name, []byte(strings.Repeat("x", 5000)+"end")); err != nil || !mounted {
			l.Fatal(err, mounted)
		}
		message := func(name string) string {
			return l.statusOf(name, "c").GetState().GetTerminated().GetMessage()
		}
		l.within(3*time.Second, "both have ended", func() bool { return l.phase("file", "Failed")() && l.phase("log", "Failed")() })
		if m := message("file"); len(m) != 4096 || !strings.HasSuffix(m, "xend") {
			l.Errorf("%d bytes: %q", len(m), m)
		}
		if m := message("log"); !strings.HasPrefix(m, "line 20\n") || !strings.HasSuffix(m, "line 99\n") {
			l.Errorf("the log's last 80 lines: %q", m)
		}
		l.run.files = map[string][]byte{}
		l.restart()
		l.always(3*time.Second, "what was said stays said", func() bool { return len(message("file")) == 4096 })
	})
}

func TestEphemeralContainers(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		live := object.Clone(l.server.pod("a"))
		live.Spec.EphemeralContainers = []*balsav1.EphemeralContainer{{Name: "debug", Image: "app:1", Command: []string{"/bin/sim", "sleep=2s", "exit=3"}, TargetContainerName: "c", Stdin: proto.Bool(true), Tty: proto.Bool(true)}}
		l.put(live)
		l.within(time.Second, "the container joins", func() bool { return l.statusOf("a", "debug").GetState().GetRunning() != nil })
		l.mu.Lock()
		if c := l.configs["debug"]; c.TargetContainer != "c" || !c.TTY || !c.Stdin {
			l.Errorf("it was started as %+v", c)
		}
		l.mu.Unlock()
		l.within(5*time.Second, "it ends", func() bool { return l.statusOf("a", "debug").GetState().GetTerminated().GetExitCode() == 3 })
		l.always(time.Minute, "and is not run again, and the pod does not care", func() bool { return l.attempt("uid-a", "debug").Attempt == 0 && l.ready("a")() })
	})
}

func TestVolumesFollowTheirObjects(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.Volumes = []*balsav1.Volume{{Name: "cfg", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "cfg"}}}
		p.Spec.Containers[0].VolumeMounts = []*balsav1.VolumeMount{{Name: "cfg", MountPath: "/cfg"}}
		l.put(p)
		waits := func() bool {
			w := l.statusOf("a", "c").GetState().GetWaiting()
			return w.GetReason() == "CreateContainerConfigError" && strings.Contains(w.GetMessage(), `configmap "default/cfg" not found`)
		}
		l.within(2*time.Second, "it waits for its ConfigMap", waits)
		l.within(time.Second, "and tells", func() bool { return l.hasEvent("FailedMount", `volume "cfg"`) })
		cfg := &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"k": "old"}}
		l.volumes.FailNext(fmt.Errorf("no space left"))
		l.server.put(cfg)
		l.within(time.Second, "a failure is told", func() bool { return l.hasEvent("FailedMount", "no space left") })
		l.within(5*time.Second, "it is tried again", l.ready("a"))
		content := func() string {
			v, _ := l.volumes.Pod("uid-a")
			return string(v.Volumes[0].Files.Files["k"].Data)
		}
		pid := l.running("uid-a")
		cfg.Data["k"] = "new"
		l.server.put(cfg)
		l.within(2*time.Second, "a change reaches the pod", func() bool { return content() == "new" })
		l.server.remove("configmaps/default/cfg")
		n := l.volumes.Prepared()
		l.always(2*time.Minute, "what goes missing changes nothing", func() bool { return content() == "new" && l.running("uid-a") == pid && l.ready("a")() })
		if got := l.volumes.Prepared(); got != n {
			l.Errorf("the volumes were prepared %d times more though nothing changed", got-n)
		}
		if err := l.rt.Signal(context.Background(), "uid-a", "c", 0, runtime.SIGKILL); err != nil {
			l.Fatal(err)
		}
		l.within(2*time.Second, "a restart takes the old files", func() bool { return l.attempt("uid-a", "c").Attempt == 1 && l.isRunning("uid-a", "c") })
		l.server.deletePod("a", 0)
		l.within(2*time.Second, "volumes go with the pod", func() bool { _, there := l.volumes.Pod("uid-a"); return !there && l.server.pod("a") == nil })
	})
}

func TestPersistentVolumeClaims(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "sleep=5s")
		p.Spec.RestartPolicy = "Never"
		p.Spec.Volumes = []*balsav1.Volume{{Name: "data", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}
		l.put(p)
		claim := &balsav1.PersistentVolumeClaim{Metadata: &balsav1.ObjectMeta{Name: "data", Namespace: "default"}, Spec: &balsav1.PersistentVolumeClaimSpec{},
			Status: &balsav1.PersistentVolumeClaimStatus{Phase: "Pending"}}
		l.server.put(claim)
		l.within(2*time.Second, "it waits for the claim", func() bool {
			return strings.Contains(l.statusOf("a", "c").GetState().GetWaiting().GetMessage(), "is not bound to a volume yet")
		})
		l.server.put(&balsav1.PersistentVolume{Metadata: &balsav1.ObjectMeta{Name: "pv-1"}, Spec: &balsav1.PersistentVolumeSpec{Capacity: map[string]*balsav1.Quantity{"storage": object.NewQuantity("1Gi")},
			NodeAffinity: &balsav1.VolumeNodeAffinity{Required: &balsav1.NodeSelector{NodeSelectorTerms: []*balsav1.NodeSelectorTerm{{
				MatchExpressions: []*balsav1.NodeSelectorRequirement{{Key: "kubernetes.io/hostname", Operator: "In", Values: []string{"n1"}}}}}}}}})
		claim.Spec.VolumeName, claim.Status.Phase = "pv-1", "Bound"
		l.server.put(claim)
		l.within(2*time.Second, "it runs when that is bound", l.ready("a"))
		l.within(10*time.Second, "it has succeeded and lets the volume go", func() bool {
			stored, err := l.volumes.Persistent(context.Background())
			return err == nil && l.phase("a", "Succeeded")() && len(stored) == 1 && stored[0].Name == "pv-1" && len(stored[0].UsedBy) == 0
		})
		l.within(5*time.Second, "what the pod needs is saved", func() bool {
			data, err := l.disk.Read("pods.pb")
			return err == nil && strings.Contains(string(data), "pv-1")
		})
	})
}

func TestReleasedVolumesAreReclaimed(t *testing.T) {
	onNode(t, func(l *lab) {
		put := func(name, phase, policy string) {
			l.server.put(&balsav1.PersistentVolume{Metadata: &balsav1.ObjectMeta{Name: name}, Status: &balsav1.PersistentVolumeStatus{Phase: phase},
				Spec: &balsav1.PersistentVolumeSpec{Capacity: map[string]*balsav1.Quantity{"storage": object.NewQuantity("1Gi")}, PersistentVolumeReclaimPolicy: policy,
					NodeAffinity: &balsav1.VolumeNodeAffinity{Required: &balsav1.NodeSelector{NodeSelectorTerms: []*balsav1.NodeSelectorTerm{{
						MatchExpressions: []*balsav1.NodeSelectorRequirement{{Key: "kubernetes.io/hostname", Operator: "In", Values: []string{"n1"}}}}}}}}})
		}
		l.server.put(&balsav1.PersistentVolumeClaim{Metadata: &balsav1.ObjectMeta{Name: "data", Namespace: "default"}, Spec: &balsav1.PersistentVolumeClaimSpec{VolumeName: "used"},
			Status: &balsav1.PersistentVolumeClaimStatus{Phase: "Bound"}})
		put("used", "Bound", "Delete")
		p := newPod("a", "forever")
		p.Spec.Volumes = []*balsav1.Volume{{Name: "data", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.stop()
		l.server.setDown(true)
		put("used", "Released", "Delete")
		put("kept", "Released", "Retain")
		l.start()
		there := func(name string) bool {
			l.server.mu.Lock()
			defer l.server.mu.Unlock()
			return l.server.objects["persistentvolumes/"+name] != nil
		}
		l.server.setDown(false)
		l.always(2*time.Minute, "what a pod uses stays", func() bool { return there("used") })
		l.server.deletePod("a", 0)
		l.within(2*time.Minute, "then it goes, contents first", func() bool { return !there("used") })
		stored, err := l.volumes.Persistent(context.Background())
		if err != nil || len(stored) != 0 || !there("kept") {
			l.Errorf("stored %v %v; the one to be retained is there: %t", stored, err, there("kept"))
		}
	})
}

func TestUserNamespaceRanges(t *testing.T) {
	onNode(t, func(l *lab) {
		users := func(name string) string {
			p, _ := l.state("uid-" + name)
			return p.Annotations["balsa.run/users"]
		}
		for _, name := range []string{"a", "b", "plain"} {
			p := newPod(name, "forever")
			if name != "plain" {
				p.Spec.HostUsers = proto.Bool(false)
			}
			l.put(p)
			l.within(2*time.Second, "it runs", l.ready(name))
		}
		if users("a") != "65536:65536" || users("b") != "131072:65536" || users("plain") != "" {
			l.Fatalf("ranges %q %q %q", users("a"), users("b"), users("plain"))
		}
		l.restart()
		l.within(5*time.Second, "ready after a restart of the agent", l.ready("b"))
		l.server.deletePod("a", 0)
		l.within(2*time.Second, "a goes", func() bool { return l.server.pod("a") == nil })
		c := newPod("c", "forever")
		c.Spec.HostUsers = proto.Bool(false)
		l.put(c)
		l.within(2*time.Second, "c runs", l.ready("c"))
		if users("c") != "65536:65536" || users("b") != "131072:65536" {
			l.Errorf("ranges %q %q: a range that is free again is given, one that is used is not", users("c"), users("b"))
		}
	})
}

func TestHostNetwork(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.HostNetwork = proto.Bool(true)
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		state, _ := l.state("uid-a")
		s := l.server.pod("a").GetStatus()
		if state.NetNS != "" || s.GetPodIp() != "10.0.0.11" || s.GetHostIps()[0].GetIp() != "10.0.0.11" || len(l.network.Pods()) != 0 {
			l.Errorf("network namespace %q, status %v", state.NetNS, s)
		}
		if hosts, err := l.run.Read("hosts/uid-a"); err != nil || !strings.Contains(string(hosts), "localhost n1") {
			l.Errorf("hosts %q %v", hosts, err)
		}
	})
}

func TestQOSAndConditions(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "sleep=5s", "exit=0")
		p.Spec.RestartPolicy = "OnFailure"
		p.Spec.Containers[0].Resources = &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"cpu": object.NewQuantity("1"), "memory": object.NewQuantity("64Mi")}}
		l.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		if q := l.server.pod("a").GetStatus().GetQosClass(); q != "Guaranteed" {
			l.Errorf("QoS class %q", q)
		}
		since := l.condition("a", "Ready").GetLastTransitionTime().AsTime()
		l.always(3*time.Second, "a condition that stays keeps its time", func() bool { return l.condition("a", "Ready").GetLastTransitionTime().AsTime().Equal(since) })
		for _, kind := range []string{"PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"} {
			if c := l.condition("a", kind); c.GetStatus() != "True" {
				l.Errorf("condition %s: %v", kind, c)
			}
		}
		l.within(10*time.Second, "it has succeeded", l.phase("a", "Succeeded"))
		for kind, want := range map[string]string{"Initialized": "True PodCompleted", "ContainersReady": "False PodCompleted", "Ready": "False PodCompleted"} {
			if c := l.condition("a", kind); c.GetStatus()+" "+c.GetReason() != want || kind == "Ready" && !c.GetLastTransitionTime().AsTime().After(since) {
				l.Errorf("condition %s: %v, want %s", kind, c, want)
			}
		}
	})
}
