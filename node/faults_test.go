package node_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// running tells which process runs in a pod; 0: none.
func (l *lab) running(uid string) int { _, c := l.state(uid); return c.PID }

func TestServersAwayForAnHour(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(probed(newPod("steady", "ready", "forever")))
		l.server.put(newPod("crashes", "sleep=20m", "exit=1"))
		l.within(3*time.Second, "both run", func() bool { return l.ready("steady")() && l.ready("crashes")() })
		pid := l.running("uid-steady")
		l.server.setDown(true)
		l.always(time.Hour, "the steady one runs on", func() bool { return l.running("uid-steady") == pid })
		if _, c := l.state("uid-crashes"); c.Attempt < 2 {
			l.Errorf("what crashed was not run again: attempt %d", c.Attempt)
		}
		beats := len(l.server.beats)
		l.server.setDown(false)
		l.within(15*time.Second, "the servers learn what happened", func() bool {
			_, c := l.state("uid-crashes")
			return l.status("crashes").GetRestartCount() == int32(c.Attempt) && len(l.server.beats) > beats
		})
		if l.running("uid-steady") != pid || !l.ready("steady")() {
			l.Error("the steady one was touched when the servers came back")
		}
	})
}

func TestAgentRestartAdopts(t *testing.T) {
	onNode(t, func(l *lab) {
		for i := range 5 {
			l.server.put(probed(newPod(fmt.Sprintf("p%d", i), "ready", "forever")))
		}
		all := func(check func(name string) bool) func() bool {
			return func() bool {
				for i := range 5 {
					if !check(fmt.Sprintf("p%d", i)) {
						return false
					}
				}
				return true
			}
		}
		l.within(3*time.Second, "all run", all(func(name string) bool { return l.ready(name)() }))
		l.always(2*time.Second, "and are saved", func() bool { return true })
		pids := map[string]int{}
		for i := range 5 {
			uid := fmt.Sprintf("uid-p%d", i)
			pids[uid] = l.running(uid)
		}
		adopted := func() bool {
			return all(func(name string) bool { return l.ready(name)() && l.running("uid-"+name) == pids["uid-"+name] })()
		}
		for range 3 {
			l.restart()
			l.always(7*time.Second, "the same processes, ready all the time", adopted)
		}
		l.stop()
		l.server.setDown(true)
		l.start()
		l.always(time.Minute, "also when no server is there", adopted)
		l.server.setDown(false)
		l.always(time.Minute, "and when they are back", adopted)
	})
}

// TestRestartAnywhere restarts the agent in the middle of everything, again and
// again: nothing runs twice, nothing is forgotten.
func TestRestartAnywhere(t *testing.T) {
	onNode(t, func(l *lab) {
		for i := range 4 {
			l.server.put(probed(newPod(fmt.Sprintf("p%d", i), "term=0", "sleep=500ms", "ready", "forever")))
		}
		for i := range 40 {
			time.Sleep(time.Duration(i) * 7 * time.Millisecond)
			if i == 20 {
				l.server.deletePod("p3", 30)
			}
			l.restart()
			for name, n := range l.machine.Processes() {
				if n > 1 {
					l.Fatalf("%s runs %d times", name, n)
				}
			}
		}
		l.within(10*time.Second, "all is as it should be", func() bool {
			return l.ready("p0")() && l.ready("p1")() && l.ready("p2")() && l.server.pod("p3") == nil && !l.exists("uid-p3")
		})
		for i := range 3 {
			if n := l.status(fmt.Sprintf("p%d", i)).GetRestartCount(); n != 0 {
				l.Errorf("p%d was run again %d times", i, n)
			}
		}
	})
}

func TestGraceSurvivesRestart(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "term=ignore", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.server.deletePod("a", 30)
		for range 5 {
			time.Sleep(5 * time.Second)
			l.restart()
		}
		if l.running("uid-a") == 0 {
			l.Error("it was killed before its grace period was over")
		}
		l.within(6*time.Second, "it goes 30 seconds after the first signal, not after the last", func() bool { return l.server.pod("a") == nil })
	})
}

func TestDeletedWhileAgentWasAway(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("gone", "term=0", "forever"))
		l.server.put(newPod("stays", "forever"))
		l.within(2*time.Second, "both run", func() bool { return l.ready("gone")() && l.ready("stays")() })
		pid := l.running("uid-stays")
		l.stop()
		l.server.remove("pods/default/gone")
		l.server.setDown(true)
		l.start()
		l.always(5*time.Minute, "nobody goes before a server says so", func() bool { return l.running("uid-gone") != 0 && l.running("uid-stays") == pid })
		l.server.setDown(false)
		l.within(30*time.Second, "the orphan goes", func() bool { return !l.exists("uid-gone") && len(l.network.Pods()) == 1 })
		l.within(2*time.Minute, "with its files", func() bool { return !slices.Contains(l.files(), "uid-gone") })
		if l.running("uid-stays") != pid {
			l.Error("the other one was touched")
		}
	})
}

// TestOrphanKnownFromDisk: a saved set that is newer than a pod, and lacks it,
// proves that it was deleted: no server is needed to end it.
func TestOrphanKnownFromDisk(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.stop()
		l.server.remove("pods/default/a")
		l.server.mu.Lock()
		empty, revision := &balsav1.AssignmentsResponse{Full: true, Synced: true}, l.server.revision
		l.server.mu.Unlock()
		l.server.setDown(true)
		empty.Revision = 1 // older than the pod: proves nothing
		l.savePods(empty)
		l.start()
		l.always(3*time.Minute, "an older set proves nothing", func() bool { return l.running("uid-a") != 0 })
		l.stop()
		empty.Revision = revision
		l.savePods(empty)
		l.start()
		l.within(time.Minute, "a newer one does", func() bool { return !l.exists("uid-a") })
	})
}

func (l *lab) savePods(set *balsav1.AssignmentsResponse) {
	l.Helper()
	data, err := proto.Marshal(set)
	if err != nil {
		l.Fatal(err)
	}
	if err := l.disk.Write("pods.pb", data); err != nil {
		l.Fatal(err)
	}
}

func TestResyncAfterCompaction(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.server.put(newPod("b", "term=0", "forever"))
		l.within(2*time.Second, "both run", func() bool { return l.ready("a")() && l.ready("b")() })
		pid := l.running("uid-a")
		l.server.mu.Lock()
		delete(l.server.objects, "pods/default/b")
		l.server.revision++
		l.server.resync++
		l.server.wakeLocked()
		l.server.mu.Unlock()
		l.server.put(newPod("c", "forever"))
		l.within(5*time.Second, "what a full set lacks goes, what is new comes", func() bool { return !l.exists("uid-b") && l.ready("c")() })
		for range 10 {
			l.server.compact()
			time.Sleep(100 * time.Millisecond)
		}
		if l.running("uid-a") != pid || l.status("a").GetRestartCount() != 0 {
			l.Error("a full set that repeats what is known touched a pod")
		}
	})
}

func TestAnswersAreLost(t *testing.T) {
	onNode(t, func(l *lab) {
		l.within(time.Second, "registered", func() bool { return l.agent.Status().Registered })
		l.server.mu.Lock()
		l.server.loseAnswers = true
		l.server.mu.Unlock()
		l.server.put(probed(newPod("a", "ready", "forever")))
		l.within(5*time.Second, "the report arrives although its answer does not", l.ready("a"))
		time.Sleep(30 * time.Second)
		l.server.mu.Lock()
		l.server.loseAnswers = false
		l.server.mu.Unlock()
		l.within(20*time.Second, "nothing is left to report", func() bool { return l.agent.Status().PendingReports == 0 })
		time.Sleep(30 * time.Second)
		quiet := l.reports()
		l.always(2*time.Minute, "a quiet node reports nothing", func() bool { return l.reports() == quiet })
		// A report that was long under way arrives late.
		late := &balsav1.PodReport{Namespace: "default", Name: "a", Uid: "uid-a", Status: &balsav1.PodStatus{Phase: "Pending"}}
		l.server.mu.Lock()
		l.server.reportLocked(late)
		l.server.mu.Unlock()
		if l.ready("a")() {
			l.Fatal("the late report was not taken by the test's server")
		}
		l.within(2*time.Second, "what a late report has overwritten is reported again", l.ready("a"))
	})
}

func (l *lab) reports() int {
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	return len(l.server.reports)
}

// TestReportIsRepeated: a report that was taken and never shows is sent again.
func TestReportIsRepeated(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.dropReports = true
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it was reported", func() bool { return l.reports() > 0 && l.running("uid-a") != 0 })
		time.Sleep(time.Second)
		l.server.mu.Lock()
		l.server.dropReports = false
		l.server.mu.Unlock()
		l.within(90*time.Second, "it is reported again", l.ready("a"))
	})
}

// TestAdoptionIsPatient: what was ready when the agent went stays so until its
// probe has failed as often as it may.
func TestAdoptionIsPatient(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(probed(newPod("a", "ready", "forever")))
		l.within(2*time.Second, "it is ready", l.ready("a"))
		l.stop()
		l.prober.failures.Store(2)
		l.start()
		l.always(30*time.Second, "two failures are not three", l.ready("a"))
		l.prober.failures.Store(1000)
		l.within(20*time.Second, "three are", func() bool { return !object.PodReady(l.server.pod("a")) })
	})
}

// TestSecretsWithoutServers: opened secrets outlive the agent, not the machine.
func TestSecretsWithoutServers(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "env=TOKEN", "sleep=30s", "exit=1")
		p.Spec.Containers[0].Env = []*balsav1.EnvVar{{Name: "TOKEN", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: &balsav1.KeySelector{Name: "sec", Key: "token"}}}}
		l.server.put(&balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: "sec", Namespace: "default"}, Data: map[string][]byte{"token": []byte("x")}})
		l.server.put(p)
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.server.setDown(true)
		l.restart()
		l.within(time.Minute, "it runs again with its secret", func() bool { _, c := l.state("uid-a"); return c.Attempt == 1 && c.PID != 0 })
		l.stop()
		l.machine.Reboot()
		l.run.files = map[string][]byte{}
		l.start()
		l.always(5*time.Minute, "after a reboot it waits", func() bool { return l.running("uid-a") == 0 })
		l.server.setDown(false)
		l.within(30*time.Second, "until a server opens the secret", l.ready("a"))
	})
}

func TestReportsAreBatched(t *testing.T) {
	onNode(t, func(l *lab) {
		for i := range 50 {
			l.server.put(newPod(fmt.Sprintf("p%02d", i), "forever"))
		}
		l.within(5*time.Second, "all run", func() bool {
			for i := range 50 {
				if !l.ready(fmt.Sprintf("p%02d", i))() {
					return false
				}
			}
			return true
		})
		if n := l.reports(); n > 10 {
			l.Errorf("50 pods were reported in %d calls", n)
		}
	})
}

func TestDiskIsFull(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("old", "forever"))
		l.within(2*time.Second, "it runs", l.ready("old"))
		l.disk.setFull(true)
		l.server.put(newPod("new", "forever"))
		l.within(2*time.Second, "a pod runs although the set cannot be saved", l.ready("new"))
		if !l.agent.Status().Unsaved {
			l.Error("the agent does not say that its set is not saved")
		}
		old, fresh := l.running("uid-old"), l.running("uid-new")
		unharmed := func() bool { return l.running("uid-old") == old && l.running("uid-new") == fresh }
		l.stop()
		l.server.setDown(true)
		l.start()
		l.always(3*time.Minute, "a stale set on disk ends nothing", unharmed)
		l.server.setDown(false)
		l.always(time.Minute, "nor does the return of the servers", unharmed)
		l.disk.setFull(false)
		l.within(15*time.Second, "the set is saved when there is room", func() bool {
			data, err := l.disk.Read("pods.pb")
			return err == nil && strings.Contains(string(data), "uid-new") && !l.agent.Status().Unsaved
		})
		l.server.deletePod("new", 1)
		l.within(5*time.Second, "and life goes on", func() bool { return l.server.pod("new") == nil })
	})
}

func TestDamagedFiles(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		pid := l.running("uid-a")
		l.stop()
		for _, name := range keys(l.disk.files) {
			l.disk.files[name] = []byte("\x01garbage")
		}
		l.start()
		l.always(time.Minute, "a server tells anew what the disk has lost", func() bool { return l.running("uid-a") == pid })
		if !l.ready("a")() || !l.agent.Status().FromServer {
			l.Error("the agent did not recover")
		}
	})
}

func TestRuntimeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.failOps = map[string]int{"RunPod": 3, "RunContainer": 3, "RemovePod": 3, "Signal": 2}
		l.start()
		defer l.end()
		l.server.put(newPod("a", "term=0", "forever"))
		l.within(3*time.Second, "the failure is told", func() bool { return l.hasEvent("FailedCreatePodSandBox", "injected") })
		l.within(time.Minute, "it runs in the end", l.ready("a"))
		if n := l.status("a").GetRestartCount(); n != 0 {
			l.Errorf("a start that failed before it began counts as a restart: %d", n)
		}
		l.network.FailNext(fmt.Errorf("injected"))
		l.server.deletePod("a", 5)
		l.within(time.Minute, "it goes in the end", func() bool { return l.server.pod("a") == nil && len(l.network.Pods()) == 0 })
	})
}

func TestServices(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n2"}, Spec: &balsav1.NodeSpec{PodCidr: "10.244.2.0/24"},
			Status: &balsav1.NodeStatus{Addresses: []*balsav1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.12"}}}})
		svc := &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.10", Ports: []*balsav1.ServicePort{{Port: 80}}}}
		object.Default(svc)
		l.server.put(svc)
		slice := &balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Name: "web-1", Namespace: "default", Labels: map[string]string{object.LabelServiceName: "web"}},
			AddressType: "IPv4", Ports: []*balsav1.EndpointPort{{Port: 8080, Protocol: "TCP"}}, Endpoints: []*balsav1.Endpoint{{Addresses: []string{"10.244.2.7"}}}}
		l.server.put(slice)
		key := netproxy.Key{VIP: netip.MustParseAddr("10.96.0.10"), Protocol: netproxy.TCP, Port: 80}
		l.within(time.Second, "proxy, resolver and routes are there", func() bool {
			targets, _ := l.kernel.Lookup(key)
			return len(targets) == 1 && l.zone.revision() > 0 && l.network.Routes()[netip.MustParsePrefix("10.244.2.0/24")] == netip.MustParseAddr("10.0.0.12")
		})
		l.within(time.Second, "the revision is told soon", func() bool { return l.lastBeat().GetAppliedRevision() >= l.server.now() })

		before := l.lastBeat().GetAppliedRevision()
		l.kernel.FailNext(fmt.Errorf("injected"))
		slice.Endpoints = append(slice.Endpoints, &balsav1.Endpoint{Addresses: []string{"10.244.2.8"}})
		now := l.server.put(slice)
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		if got := l.agent.Status().AppliedRevision; got != before {
			l.Errorf("revision %d is told as applied although the proxy failed", got)
		}
		l.within(5*time.Second, "it is tried again", func() bool {
			targets, _ := l.kernel.Lookup(key)
			return len(targets) == 2 && l.lastBeat().GetAppliedRevision() >= now
		})

		l.stop()
		l.server.setDown(true)
		l.kernel = &netproxy.Fake{}
		l.start()
		l.within(5*time.Second, "without servers, services come from disk", func() bool { targets, _ := l.kernel.Lookup(key); return len(targets) == 2 })
	})
}

func (l *lab) lastBeat() *balsav1.HeartbeatRequest {
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	if len(l.server.beats) == 0 {
		return nil
	}
	return l.server.beats[len(l.server.beats)-1]
}

func TestHeartbeats(t *testing.T) {
	onNode(t, func(l *lab) {
		time.Sleep(30 * time.Second)
		synctest.Wait()
		n := len(l.server.beats)
		if n < 29 || n > 33 {
			l.Errorf("%d heartbeats in 30 seconds, want one a second", n)
		}
		for i, b := range l.server.beats {
			if b.GetSequence() != uint64(i+1) || b.GetNodeName() != "n1" || b.GetBootId() != "boot-1" {
				l.Fatalf("heartbeat %d reads %v", i, b)
			}
		}
	})
}

func TestOlderServers(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		pid := l.running("uid-a")
		l.server.mu.Lock()
		l.server.revision = 50 // restored from a backup that knows nothing of a
		delete(l.server.objects, "pods/default/a")
		l.server.down = true
		l.server.wakeLocked()
		l.server.mu.Unlock()
		l.server.setDown(false)
		l.always(50*time.Second, "a server that is behind is not followed", func() bool { return l.running("uid-a") == pid })
		l.within(time.Minute, "servers that insist are", func() bool { return !l.exists("uid-a") })
		if r := l.agent.Status().Revision; r >= 100 {
			l.Errorf("the revision is %d", r)
		}
	})
}

// TestAnotherCluster: what the old cluster assigned is not kept, and its pods go
// once the new one has said what it wants.
func TestAnotherCluster(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.stop()
		l.server = newServer()
		l.server.clusterID = "other"
		l.server.put(newPod("b", "forever"))
		l.start()
		l.within(10*time.Second, "the agent ends", l.ended)
		if !errors.Is(l.err, node.ErrFactsChanged) || l.running("uid-a") == 0 {
			l.Errorf("it ended with %v; a runs: %v", l.err, l.running("uid-a") != 0)
		}
		l.start()
		l.within(10*time.Second, "only what the new cluster assigned runs", func() bool { return l.ready("b")() && !l.exists("uid-a") })
	})
}

// TestMemoryIsKept: a pod of which the saved set knows nothing keeps its files
// for as long as it exists.
func TestMemoryIsKept(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "sleep=1s", "exit=1"))
		l.within(20*time.Second, "it has crashed", func() bool { _, c := l.state("uid-a"); return c.Attempt == 2 })
		l.stop()
		l.server.setDown(true)
		l.savePods(&balsav1.AssignmentsResponse{Full: true, Synced: true, Revision: 1})
		l.start()
		l.always(5*time.Minute, "its files stay", func() bool { return len(l.files()) == 4 })
		if l.agent.Status().Pods != 0 {
			l.Error("a pod that the set says nothing about is looked after")
		}
	})
}

func TestServerEndsPod(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "term=0", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.server.mu.Lock()
		p := object.Clone(l.server.objects["pods/default/a"].(*balsav1.Pod))
		p.Status.Phase, p.Status.Reason = "Failed", "NodeLost"
		l.server.putLocked(p)
		l.server.mu.Unlock()
		l.within(10*time.Second, "what is recorded as ended runs no more", func() bool { return l.exists("uid-a") && l.running("uid-a") == 0 })
		l.always(time.Minute, "and its end stays", func() bool {
			s := l.server.pod("a").GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == "NodeLost" && l.running("uid-a") == 0
		})
	})
}

// TestAgentSpeaksForAPodThatWasUnknown: the servers took it out while the node was
// away; it never stopped.
func TestAgentSpeaksForAPodThatWasUnknown(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		_, before := l.state("uid-a")
		l.server.setDown(true)
		time.Sleep(time.Minute)
		l.server.mu.Lock()
		p := object.Clone(l.server.objects["pods/default/a"].(*balsav1.Pod))
		p.Status.Conditions, _ = object.SetCondition(p.Status.Conditions, &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionFalse, Reason: "NodeLost"}, time.Now())
		l.server.putLocked(p)
		l.server.mu.Unlock()
		l.server.setDown(false)
		l.within(20*time.Second, "its agent says how it is", func() bool {
			ready := l.condition("a", object.ConditionReady)
			return ready.GetStatus() == object.ConditionTrue && ready.GetReason() == ""
		})
		if _, now := l.state("uid-a"); now.PID != before.PID || l.statusOf("a", "c").GetRestartCount() != 0 {
			l.Errorf("it was restarted: %v, was %v", now, before)
		}
	})
}

func TestAnnotationsOfSandbox(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		p, _ := l.state("uid-a")
		if p.Annotations[pod.AnnotationGrace] != "30" || p.Annotations[pod.AnnotationRevision] == "" || p.Sandbox != runtime.SandboxReady {
			l.Errorf("sandbox %+v", p)
		}
	})
}
