package node_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node"
	netfake "github.com/balsa-run/balsa/node/podnet/fake"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

// fuse kills the agent at its nth act on the world: before it, or after it and
// before it can remember. Acts are calls that change pods, networks or volumes,
// and writes to disk. Nothing that the dead agent does has any effect. A nil fuse
// never blows.
type fuse struct {
	mu    sync.Mutex
	at    int
	after bool
	acts  []string // guarded by mu
	blown bool     // guarded by mu
	kill  context.CancelFunc
}

var errDead = errors.New("the agent is dead")

func (f *fuse) arm(kill context.CancelFunc) {
	if f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.kill, f.blown = kill, false
	}
}

// around does an act unless the agent is dead, or dies of it.
func (f *fuse) around(what string, act func() error) error {
	if f == nil {
		return act()
	}
	f.mu.Lock()
	if f.blown {
		f.mu.Unlock()
		return errDead
	}
	f.acts = append(f.acts, what)
	here := len(f.acts) == f.at
	if here && !f.after {
		f.blowLocked()
		f.mu.Unlock()
		return errDead
	}
	f.mu.Unlock()
	err := act()
	if here {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.blowLocked()
		return errDead
	}
	return err
}

func (f *fuse) blowLocked() {
	f.blown = true
	f.kill()
}

func (f *fuse) wrap(c *node.Config) {
	if f == nil {
		return
	}
	c.Runtime = fusedRuntime{c.Runtime, f}
	c.Volumes = fusedVolumes{c.Volumes, f}
	c.Disk, c.RunDisk = fusedDisk{c.Disk, f}, fusedDisk{c.RunDisk, f}
	c.API = fusedAPI{c.API, f}
}

func (f *fuse) network(n *netfake.Network) node.Network {
	if f == nil {
		return n
	}
	return fusedNetwork{n, f}
}

type fusedRuntime struct {
	node.Runtime
	f *fuse
}

func (r fusedRuntime) RunPod(ctx context.Context, c runtime.PodConfig) (s runtime.PodState, err error) {
	err = r.f.around("RunPod", func() (err error) { s, err = r.Runtime.RunPod(ctx, c); return err })
	return s, err
}

func (r fusedRuntime) RunContainer(ctx context.Context, uid runtime.PodUID, c runtime.ContainerConfig) error {
	return r.f.around("RunContainer "+c.Name, func() error { return r.Runtime.RunContainer(ctx, uid, c) })
}

func (r fusedRuntime) Signal(ctx context.Context, uid runtime.PodUID, name string, attempt int, sig runtime.Signal) error {
	return r.f.around(fmt.Sprint("Signal ", name, sig), func() error { return r.Runtime.Signal(ctx, uid, name, attempt, sig) })
}

func (r fusedRuntime) RemovePod(ctx context.Context, uid runtime.PodUID) error {
	return r.f.around("RemovePod", func() error { return r.Runtime.RemovePod(ctx, uid) })
}

func (r fusedRuntime) Exec(ctx context.Context, uid runtime.PodUID, name string, c runtime.ExecConfig) (s runtime.ExitStatus, err error) {
	err = r.f.around("Exec "+strings.Join(c.Args, " "), func() (err error) { s, err = r.Runtime.Exec(ctx, uid, name, c); return err })
	return s, err
}

type fusedVolumes struct {
	volume.Volumes
	f *fuse
}

func (v fusedVolumes) Prepare(ctx context.Context, p volume.Pod) (paths map[string]string, err error) {
	err = v.f.around("Prepare", func() (err error) { paths, err = v.Volumes.Prepare(ctx, p); return err })
	return paths, err
}

func (v fusedVolumes) Remove(ctx context.Context, uid runtime.PodUID) error {
	return v.f.around("Remove", func() error { return v.Volumes.Remove(ctx, uid) })
}

type fusedDisk struct {
	node.Disk
	f *fuse
}

func (d fusedDisk) Write(name string, data []byte) error {
	return d.f.around("Write "+name, func() error { return d.Disk.Write(name, data) })
}

func (d fusedDisk) Remove(name string) error {
	return d.f.around("RemoveFile "+name, func() error { return d.Disk.Remove(name) })
}

type fusedNetwork struct {
	*netfake.Network
	f *fuse
}

func (n fusedNetwork) Setup(ctx context.Context, uid, path string) (ip netip.Addr, err error) {
	err = n.f.around("Setup", func() (err error) { ip, err = n.Network.Setup(ctx, uid, path); return err })
	return ip, err
}

func (n fusedNetwork) Teardown(ctx context.Context, uid string) error {
	return n.f.around("Teardown", func() error { return n.Network.Teardown(ctx, uid) })
}

type fusedAPI struct {
	node.API
	f *fuse
}

func (a fusedAPI) ReportStatus(ctx context.Context, r *balsav1.ReportStatusRequest) (s *balsav1.ReportStatusResponse, err error) {
	err = a.f.around("ReportStatus", func() (err error) { s, err = a.API.ReportStatus(ctx, r); return err })
	return s, err
}

// fullPod has a bit of everything.
func fullPod() *balsav1.Pod {
	sim := func(steps ...string) *balsav1.ExecAction {
		return &balsav1.ExecAction{Command: append([]string{"/bin/sim"}, steps...)}
	}
	p := newPod("a", "term=0", "sleep=300ms", "ready", "forever")
	p.Spec.Volumes = []*balsav1.Volume{{Name: "cfg", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "cfg"}}, {Name: "tmp", EmptyDir: &balsav1.EmptyDirVolumeSource{}}}
	p.Spec.HostUsers = proto.Bool(false)
	p.Spec.InitContainers = []*balsav1.Container{
		{Name: "first", Image: "app:1", Command: []string{"/bin/sim", "sleep=200ms"}},
		{Name: "side", Image: "app:1", Command: []string{"/bin/sim", "term=0", "sleep=200ms", "ready", "forever"}, RestartPolicy: "Always",
			StartupProbe: &balsav1.Probe{Exec: sim("is-ready"), PeriodSeconds: proto.Int32(1), FailureThreshold: proto.Int32(30)}},
		{Name: "second", Image: "app:1", Command: []string{"/bin/sim", "sleep=200ms"}},
	}
	c := p.Spec.Containers[0]
	c.VolumeMounts = []*balsav1.VolumeMount{{Name: "cfg", MountPath: "/cfg"}}
	c.Lifecycle = &balsav1.Lifecycle{PostStart: &balsav1.LifecycleHandler{Exec: sim("sleep=400ms")}, PreStop: &balsav1.LifecycleHandler{Exec: sim("sleep=500ms", "exit=0")}}
	c.LivenessProbe = &balsav1.Probe{Exec: sim("exit=0"), PeriodSeconds: proto.Int32(1)}
	c.ReadinessProbe = &balsav1.Probe{Exec: sim("is-ready"), PeriodSeconds: proto.Int32(1)}
	object.Default(p)
	return p
}

// until waits as within does, and starts the agent again when it has been killed.
func (l *lab) until(d time.Duration, what string, condition func() bool) {
	l.Helper()
	l.within(d, what, func() bool {
		if l.ended() && errors.Is(l.err, context.Canceled) {
			l.start()
			synctest.Wait()
		}
		return condition()
	})
}

// crashLife is a life that is led many times.
type crashLife struct {
	pod func() *balsav1.Pod
	// settled: the first half is over.
	settled func(l *lab) bool
}

// lead leads a whole life. It returns the end states of its two halves.
func (c crashLife) lead(l *lab) (settled, gone string) {
	l.Helper()
	l.server.put(&balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"k": "v"}})
	l.server.put(c.pod())
	l.until(time.Minute, "the first half is over", func() bool { return !l.ended() && c.settled(l) })
	l.until(3*time.Second, "reports are out", func() bool { return !l.ended() && l.agent.Status().PendingReports == 0 })
	settled = l.dump()
	for name, n := range l.machine.Processes() {
		if n > 1 {
			l.Errorf("%s runs %d times", name, n)
		}
	}
	l.server.deletePod("a", 10)
	l.until(time.Minute, "the pod is gone", func() bool { return !l.ended() && l.server.pod("a") == nil && !l.exists("uid-a") })
	left := func() string {
		volumes, err := l.volumes.Pods(context.Background())
		return fmt.Sprint(l.network.Pods(), volumes, err, l.files(), l.machine.Processes())
	}
	l.until(3*time.Minute, "nothing is left", func() bool { return !l.ended() && left() == "map[] [] <nil> [] map[]" })
	return settled, left()
}

// dump is what the pod amounts to, without times.
func (l *lab) dump() string {
	l.Helper()
	p := l.server.pod("a")
	status := proto.CloneOf(p.GetStatus())
	status.StartTime = nil
	for _, c := range status.Conditions {
		c.LastTransitionTime = nil
	}
	var all []*balsav1.ContainerStatus
	all = append(append(all, status.InitContainerStatuses...), status.ContainerStatuses...)
	for _, c := range all {
		if c.GetState().GetRunning() != nil {
			c.State.Running.StartedAt = nil
		}
		if t := c.GetState().GetTerminated(); t != nil {
			t.StartedAt, t.FinishedAt = nil, nil
		}
	}
	state, _ := l.state("uid-a")
	text := strings.ReplaceAll(status.String(), "  ", " ") + "\n"
	for _, c := range state.Containers {
		text += fmt.Sprintln(c.Name, c.Attempt, c.Status, c.Exit.Code, c.Reason)
	}
	prepared, _ := l.volumes.Pod("uid-a")
	return text + fmt.Sprintln(len(prepared.Volumes), prepared.Users, state.Annotations["balsa.run/users"])
}

// TestAgentIsKilledAtEveryStep kills the agent before and after every act of
// whole lives of pods: the end states are those of an undisturbed life.
func TestAgentIsKilledAtEveryStep(t *testing.T) {
	for name, c := range map[string]crashLife{
		"healthy": {fullPod, func(l *lab) bool { return l.ready("a")() }},
		// Its probe fails and its hook does not return, so that it is killed in the end.
		"unhealthy": {func() *balsav1.Pod {
			p := fullPod()
			p.Spec.RestartPolicy, p.Spec.TerminationGracePeriodSeconds = "Never", proto.Int64(3)
			p.Spec.Containers[0].Command = []string{"/bin/sim", "term=ignore", "ready", "sleep=2s", "unready", "forever"}
			p.Spec.Containers[0].LivenessProbe = &balsav1.Probe{Exec: execOf("is-ready"), PeriodSeconds: proto.Int32(1), FailureThreshold: proto.Int32(2)}
			p.Spec.Containers[0].Lifecycle.PreStop.Exec = execOf("forever")
			object.Default(p)
			return p
		}, func(l *lab) bool { return l.phase("a", "Failed")() && !l.isRunning("uid-a", "side") }},
		// Its time is over before it has ended.
		"late": {func() *balsav1.Pod {
			p := fullPod()
			p.Spec.ActiveDeadlineSeconds = proto.Int64(8)
			object.Default(p)
			return p
		}, func(l *lab) bool { return l.phase("a", "Failed")() && !l.isRunning("uid-a", "side") }},
	} {
		t.Run(name, func(t *testing.T) { c.everywhere(t) })
	}
}

func (c crashLife) everywhere(t *testing.T) {
	once := func(at int, after bool) (settled, gone string, acts []string) {
		f := &fuse{at: at, after: after}
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			l.fuse = f
			l.start()
			defer l.end()
			settled, gone = c.lead(l)
		})
		return settled, gone, f.acts
	}
	settled, gone, acts := once(0, false)
	if len(acts) < 20 || !strings.Contains(settled, "restart_count:0") {
		t.Fatalf("the undisturbed life has only the acts %q and becomes %s", acts, settled)
	}
	t.Logf("%d acts", len(acts))
	for at := 1; at <= len(acts); at++ {
		for _, after := range []bool{false, true} {
			what := fmt.Sprintf("act %d (%s), after %t", at, acts[at-1], after)
			s, g, _ := once(at, after)
			if diff := cmp.Diff(strings.Split(settled, "\n"), strings.Split(s, "\n")); diff != "" {
				t.Errorf("killed at %s the pod differs: %s", what, diff)
			}
			if g != gone {
				t.Errorf("killed at %s there is left %s", what, g)
			}
		}
	}
}
