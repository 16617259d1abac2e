package node_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// state is what the machine has of a pod's container.
func (l *lab) state(uid string) (runtime.PodState, runtime.ContainerState) {
	l.Helper()
	p, err := l.rt.Pod(context.Background(), runtime.PodUID(uid))
	if err != nil {
		return runtime.PodState{}, runtime.ContainerState{}
	}
	c, _ := p.Container("c")
	return p, c
}

func (l *lab) exists(uid string) bool { p, _ := l.state(uid); return p.UID != "" }

func (l *lab) hasEvent(reason, text string) bool {
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	return slices.ContainsFunc(l.server.events, func(e *balsav1.Event) bool {
		return e.GetReason() == reason && strings.Contains(e.GetMessage(), text)
	})
}

func probed(p *balsav1.Pod) *balsav1.Pod {
	p.Spec.Containers[0].ReadinessProbe = &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(80)}, PeriodSeconds: proto.Int32(5)}
	object.Default(p)
	return p
}

func TestCrashLoop(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "sleep=1s", "exit=3"))
		began := time.Now()
		l.within(3*time.Second, "the first restart is at once", func() bool { _, c := l.state("uid-a"); return c.Attempt == 1 })
		l.within(3*time.Second, "back-off", func() bool {
			return l.status("a").GetState().GetWaiting().GetReason() == "CrashLoopBackOff"
		})
		c := l.status("a")
		if last := c.GetLastState().GetTerminated(); last.GetExitCode() != 3 || last.GetReason() != "Error" || c.GetRestartCount() != 1 || c.GetReady() {
			l.Errorf("in back-off the container reads %v", c)
		}
		if p := l.server.pod("a").GetStatus().GetPhase(); p != "Running" {
			l.Errorf("in back-off the phase is %s, want Running", p)
		}
		l.within(15*time.Second, "the second restart", func() bool { _, c := l.state("uid-a"); return c.Attempt == 2 })
		if d := time.Since(began); d < 12*time.Second || d > 13*time.Second {
			l.Errorf("the second restart came after %s, want 2 runs of 1 s and a back-off of 10 s", d)
		}
		l.within(25*time.Second, "the third restart", func() bool { _, c := l.state("uid-a"); return c.Attempt == 3 })
		if d := time.Since(began); d < 33*time.Second || d > 34*time.Second {
			l.Errorf("the third restart came after %s, want a back-off of 20 s", d)
		}
		if !l.hasEvent("BackOff", "exit code 3") {
			l.Error("no event tells of the back-off")
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	onNode(t, func(l *lab) {
		for name, want := range map[string]struct{ policy, exit, phase string }{
			"never-bad": {"Never", "4", "Failed"}, "never-good": {"Never", "0", "Succeeded"}, "failure-good": {"OnFailure", "0", "Succeeded"},
		} {
			p := newPod(name, "sleep=1s", "exit="+want.exit)
			p.Spec.RestartPolicy = want.policy
			l.server.put(p)
			l.within(5*time.Second, name+" ends as "+want.phase, func() bool { return l.server.pod(name).GetStatus().GetPhase() == want.phase })
			if c := l.status(name); c.GetRestartCount() != 0 || c.GetState().GetTerminated() == nil {
				l.Errorf("%s reads %v", name, c)
			}
		}
		bad := newPod("failure-bad", "sleep=1s", "exit=1")
		bad.Spec.RestartPolicy = "OnFailure"
		l.server.put(bad)
		l.within(5*time.Second, "a failure is run again", func() bool { _, c := l.state("uid-failure-bad"); return c.Attempt == 1 })
		l.within(5*time.Minute, "the address of what has ended is free", func() bool {
			_, held := l.network.Pods()["uid-never-good"]
			return !held
		})
		if !l.exists("uid-never-good") {
			l.Error("the sandbox of a pod that has ended is gone, and its logs with it")
		}
	})
}

func TestDeletion(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("polite", "term=0", "forever"))
		l.server.put(newPod("stubborn", "term=ignore", "forever"))
		l.within(2*time.Second, "both run", func() bool { return l.ready("polite")() && l.ready("stubborn")() })
		l.server.deletePod("polite", 30)
		l.server.deletePod("stubborn", 5)
		l.within(time.Second, "the polite one goes at once", func() bool { return l.server.pod("polite") == nil && !l.exists("uid-polite") })
		l.always(3500*time.Millisecond, "the stubborn one has its grace period", func() bool { _, c := l.state("uid-stubborn"); return c.Status == runtime.ContainerRunning })
		l.within(2*time.Second, "then it is killed", func() bool { return l.server.pod("stubborn") == nil && !l.exists("uid-stubborn") })
		if n := l.network.Pods(); len(n) != 0 {
			l.Errorf("addresses are left: %v", n)
		}
		l.within(time.Second, "no file is left", func() bool { return len(l.files()) == 0 })
		if !l.hasEvent("Killing", "SIGTERM") || !l.hasEvent("Killing", "was killed") {
			l.Error("events do not tell of both ways")
		}
	})
}

// files are those that belong to single pods.
func (l *lab) files() []string {
	l.Helper()
	pods, err := l.disk.List("pods")
	hosts, err2 := l.run.List("hosts")
	messages, err3 := l.run.List("messages")
	if err != nil || err2 != nil || err3 != nil {
		l.Fatal(err, err2, err3)
	}
	return append(append(pods, hosts...), messages...)
}

func TestDeletionBeforeItRan(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "forever")
		p.Spec.Containers[0].Image = "missing:1"
		l.server.put(p)
		l.within(2*time.Second, "it waits", func() bool { return l.server.pod("a").GetStatus().GetPhase() == "Pending" })
		l.server.deletePod("a", 30)
		l.within(2*time.Second, "it goes", func() bool { return l.server.pod("a") == nil && !l.exists("uid-a") })
	})
}

func (s *server) now() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

func TestImages(t *testing.T) {
	onNode(t, func(l *lab) {
		waits := newPod("a", "forever")
		waits.Spec.Containers[0].Image = "late:1"
		never := newPod("b", "forever")
		never.Spec.Containers[0].ImagePullPolicy = "Never"
		l.server.put(waits)
		l.server.put(never)
		reason := func(name, reason string) func() bool {
			return func() bool {
				p := l.server.pod(name)
				return len(p.GetStatus().GetContainerStatuses()) == 1 && l.status(name).GetState().GetWaiting().GetReason() == reason
			}
		}
		l.within(2*time.Second, "the failure is told", reason("a", "ErrImagePull"))
		l.within(2*time.Second, "and that it is tried again", reason("a", "ImagePullBackOff"))
		if m := l.status("a").GetState().GetWaiting().GetMessage(); !strings.Contains(m, `"late:1"`) || !strings.Contains(m, "import") {
			l.Errorf("the message %q does not name the image and what to do", m)
		}
		l.within(2*time.Second, "Never is named", reason("b", "ErrImageNeverPull"))
		l.images.mu.Lock()
		l.images.cluster["late:1"] = true
		l.images.local["app:1"] = true
		l.images.mu.Unlock()
		l.within(20*time.Second, "both run once the images are there", func() bool { return l.ready("a")() && l.ready("b")() })
	})
}

func TestPrune(t *testing.T) {
	onNode(t, func(l *lab) {
		l.images.local["old:1"] = true
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.within(time.Hour, "the unused image goes", func() bool {
			l.images.mu.Lock()
			defer l.images.mu.Unlock()
			return !l.images.local["old:1"]
		})
		if !l.images.local["app:1"] {
			l.Error("the image of a running pod was removed")
		}
	})
}

func TestConfiguration(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "env=COLOUR", "env=TOKEN", "env=URL", "env=IP", "forever")
		p.Spec.Containers[0].Env = []*balsav1.EnvVar{
			{Name: "COLOUR", ValueFrom: &balsav1.EnvVarSource{ConfigMapKeyRef: &balsav1.KeySelector{Name: "cfg", Key: "colour"}}},
			{Name: "TOKEN", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: &balsav1.KeySelector{Name: "sec", Key: "token"}}},
			{Name: "URL", Value: "http://$(COLOUR)/$(NOPE)"},
			{Name: "IP", ValueFrom: &balsav1.EnvVarSource{FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
		}
		l.server.put(p)
		waiting := func(text string) func() bool {
			return func() bool {
				p := l.server.pod("a")
				if len(p.GetStatus().GetContainerStatuses()) != 1 {
					return false
				}
				w := l.status("a").GetState().GetWaiting()
				return w.GetReason() == "CreateContainerConfigError" && strings.Contains(w.GetMessage(), text)
			}
		}
		l.within(2*time.Second, "the missing ConfigMap is named", waiting(`configmap "default/cfg"`))
		cfg := &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"other": "x"}}
		l.server.put(cfg)
		l.within(time.Second, "the missing key is named", waiting(`key "colour" not found in configmap "default/cfg"`))
		cfg.Data["colour"] = "blue"
		l.server.put(cfg)
		l.within(time.Second, "the missing Secret is named", waiting(`secret "default/sec"`))
		l.server.put(&balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: "sec", Namespace: "default"}, Data: map[string][]byte{"token": []byte("hush-hush")}})
		l.within(time.Second, "it runs", l.ready("a"))
		ip := l.server.pod("a").GetStatus().GetPodIp()
		want := []string{"COLOUR=blue", "TOKEN=hush-hush", "URL=http://blue/$(NOPE)", "IP=" + ip}
		if got := l.logs("uid-a"); !slices.Equal(got, want) {
			l.Errorf("environment %q, want %q", got, want)
		}
		l.within(5*time.Second, "the set is saved", func() bool { data, _ := l.run.Read("secrets.pb"); return strings.Contains(string(data), "hush-hush") })
		for name, data := range l.disk.files {
			if strings.Contains(string(data), "hush-hush") {
				l.Errorf("the durable file %s holds a secret in the clear", name)
			}
		}
		if hosts, err := l.run.Read("hosts/uid-a"); err != nil || !strings.Contains(string(hosts), ip+"\ta\n") {
			l.Errorf("hosts file %q %v", hosts, err)
		}
	})
}

func (l *lab) logs(uid string) []string {
	l.Helper()
	r, err := l.rt.OpenLog(context.Background(), runtime.PodUID(uid), "c", 0, runtime.LogOptions{})
	if err != nil {
		l.Fatal(err)
	}
	var out []string
	for {
		line, err := r.Next()
		if err != nil {
			return out
		}
		out = append(out, string(line.Text))
	}
}

func TestNoRoom(t *testing.T) {
	onNode(t, func(l *lab) {
		big := func(name, cpu string) *balsav1.Pod {
			p := newPod(name, "forever")
			p.Spec.Containers[0].Resources = &balsav1.ResourceRequirements{Requests: map[string]*balsav1.Quantity{"cpu": object.NewQuantity(cpu)}}
			return p
		}
		l.server.put(big("first", "3"))
		l.within(2*time.Second, "the first runs", l.ready("first"))
		l.server.put(big("second", "2"))
		l.within(2*time.Second, "the second is refused", func() bool { return l.server.pod("second").GetStatus().GetReason() == "OutOfcpu" })
		s := l.server.pod("second").GetStatus()
		if s.GetPhase() != "Failed" || !strings.Contains(s.GetMessage(), "requested 2000m, used 3000m, allocatable 4000m") || l.exists("uid-second") {
			l.Errorf("refused pod reads %v", s)
		}
		l.restart()
		l.always(3*time.Second, "the first goes on after the agent's restart", l.ready("first"))
	})
}

func TestOutOfMemory(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "sleep=1s", "oom")
		p.Spec.Containers[0].Resources = &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"memory": object.NewQuantity("32Mi")}}
		l.server.put(p)
		l.within(5*time.Second, "the reason is told", func() bool {
			p := l.server.pod("a")
			return len(p.GetStatus().GetContainerStatuses()) == 1 && l.status("a").GetLastState().GetTerminated().GetReason() == "OOMKilled"
		})
	})
}

func TestReadinessFollowsTheProgram(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(probed(newPod("a", "ready", "sleep=20s", "unready", "sleep=60s", "ready", "forever")))
		l.within(2*time.Second, "ready", l.ready("a"))
		l.always(18*time.Second, "ready while it is", l.ready("a"))
		l.within(20*time.Second, "not ready after three failures", func() bool { return !object.PodReady(l.server.pod("a")) })
		if l.status("a").GetRestartCount() != 0 || !l.hasEvent("Unhealthy", "HTTP status 503") {
			l.Error("want no restart, and an event that tells why")
		}
		l.within(60*time.Second, "ready again", l.ready("a"))
	})
}

func TestShimLostAndReboot(t *testing.T) {
	onNode(t, func(l *lab) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		ip := l.server.pod("a").GetStatus().GetPodIp()
		if err := l.machine.KillShim("uid-a"); err != nil {
			l.Fatal(err)
		}
		l.within(2*time.Second, "it is run again", func() bool { _, c := l.state("uid-a"); return c.Attempt == 1 && c.Status == runtime.ContainerRunning })
		l.within(time.Second, "ready again", func() bool { return l.ready("a")() && l.status("a").GetRestartCount() == 1 })
		if now := l.server.pod("a").GetStatus().GetPodIp(); now != ip {
			l.Errorf("the address changed from %s to %s", ip, now)
		}
		if last := l.status("a").GetLastState().GetTerminated(); last.GetReason() != string(runtime.ReasonShimLost) {
			l.Errorf("the last state is %v", last)
		}
		l.server.setDown(true)
		l.images.offline = true
		l.stop()
		l.machine.Reboot()
		l.run.files = map[string][]byte{}
		l.start()
		l.within(time.Minute, "after a reboot it is run again without servers", func() bool { _, c := l.state("uid-a"); return c.Attempt == 2 && c.Status == runtime.ContainerRunning })
	})
}

func TestPodCIDRChanges(t *testing.T) {
	onNode(t, func(l *lab) {
		l.within(time.Second, "registered", func() bool { return l.agent.Status().Registered })
		if n := l.server.objects["nodes/n1"].(*balsav1.Node); n.GetStatus().GetAllocatable()["cpu"].GetString_() != "4" ||
			n.GetStatus().GetAddresses()[0].GetAddress() != "10.0.0.11" || n.GetStatus().GetDaemonEndpoints().GetKubeletEndpoint().GetPort() != 7450 ||
			n.GetMetadata().GetLabels()["kubernetes.io/hostname"] != "n1" {
			l.Errorf("the node says of itself %v", n)
		}
		l.server.mu.Lock()
		l.server.forgetNode = true
		l.server.mu.Unlock()
		l.within(3*time.Second, "it registers again when told to", func() bool { l.server.mu.Lock(); defer l.server.mu.Unlock(); return l.server.registers == 2 })
		other := netip.MustParsePrefix("10.244.9.0/24")
		l.server.remove("nodes/n1")
		l.server.mu.Lock()
		l.server.podCIDR = other.String()
		l.server.mu.Unlock()
		l.within(3*time.Second, "the agent ends when its addresses change", l.ended)
		if !errors.Is(l.err, node.ErrFactsChanged) {
			l.Errorf("Run ended with %v", l.err)
		}
	})
}
