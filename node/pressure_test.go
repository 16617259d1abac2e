package node_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/pressure"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/fake"
	"github.com/balsa-run/balsa/node/volume"
	volumefake "github.com/balsa-run/balsa/node/volume/fake"
	"github.com/balsa-run/balsa/object"
)

const mib, gib = 1 << 20, 1 << 30

// scales are what the machine, the pods and their volumes weigh, for an agent
// that is told so.
type scales struct {
	*lab
	mu       sync.Mutex
	usage    node.MachineUsage
	err      error
	memory   map[string]int64
	writable map[string]int64
	volumes  map[string]map[string]int64
	walks    map[string]int
	slow     time.Duration // a walk takes
	frees    int64         // what images give back
	reclaims int
	kept     []string // images in use at the last reclaim
	cleared  []string // pods whose logs went
	stalled  string   // an image that cannot be pulled
	orphaned prometheus.Gatherer
}

func well() node.MachineUsage {
	return node.MachineUsage{
		MemoryBytes: 8 * gib, MemoryAvailable: 4 * gib, DiskBytes: 100 * gib, DiskAvailable: 50 * gib, Inodes: 1000, InodesAvailable: 900,
		Pids: 32768, PidsAvailable: 30000,
	}
}

type weighedMachine struct {
	machine
	s *scales
}

func (m weighedMachine) Usage(context.Context) (node.MachineUsage, error) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return m.s.usage, m.s.err
}

type weighedRuntime struct {
	*fake.Runtime
	s *scales
}

func (r weighedRuntime) Stats(ctx context.Context, uid runtime.PodUID) (runtime.PodStats, error) {
	stats, err := r.Runtime.Stats(ctx, uid)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for i := range stats.Containers {
		stats.Containers[i].WorkingSetBytes, stats.Containers[i].WritableBytes, stats.Containers[i].LogBytes = r.s.memory[string(uid)], r.s.writable[string(uid)], 0
	}
	return stats, err
}

func (r weighedRuntime) ReclaimLogs(_ context.Context, uid runtime.PodUID, ended bool) (int64, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	what := "rotated logs of "
	if ended {
		what = "logs of "
	}
	r.s.cleared = append(r.s.cleared, what+string(uid))
	return 1, nil
}

type weighedVolumes struct {
	*volumefake.Volumes
	s *scales
}

func (v weighedVolumes) Usage(ctx context.Context, uid runtime.PodUID) (map[string]volume.Usage, error) {
	out, err := v.Volumes.Usage(ctx, uid)
	v.s.mu.Lock()
	slow := v.s.slow
	for name, n := range v.s.volumes[string(uid)] {
		u := out[name]
		u.UsedBytes = n
		out[name] = u
	}
	v.s.walks[string(uid)]++
	v.s.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return out, err
}

type weighedImages struct {
	*imageStore
	s *scales
}

func (i weighedImages) Reclaim(_ context.Context, _ int64, inUse func(string) bool) (int64, []string, error) {
	i.imageStore.mu.Lock()
	names := make([]string, 0, len(i.local))
	for name := range i.local {
		names = append(names, name)
	}
	i.imageStore.mu.Unlock()
	slices.Sort(names)
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	i.s.reclaims++
	i.s.kept = nil
	for _, name := range names {
		if inUse("sha256:" + name) {
			i.s.kept = append(i.s.kept, name)
		}
	}
	return i.s.frees, nil, nil
}

func (i weighedImages) Pull(ctx context.Context, want node.ImagePull, progress func(node.ImageProgress)) (node.PulledImage, error) {
	i.s.mu.Lock()
	stalled := i.s.stalled == want.Name
	i.s.mu.Unlock()
	if stalled {
		return node.PulledImage{}, errors.New("the registry stalls")
	}
	return i.imageStore.Pull(ctx, want, progress)
}

func (i weighedImages) Status() ([]*balsav1.ContainerImage, error) {
	i.imageStore.mu.Lock()
	defer i.imageStore.mu.Unlock()
	var out []*balsav1.ContainerImage
	for name := range i.local {
		out = append(out, &balsav1.ContainerImage{Names: []string{name}, SizeBytes: 1})
	}
	return out, nil
}

// onScales runs a test on a node that can be measured.
func onScales(t *testing.T, test func(s *scales)) {
	synctest.Test(t, func(t *testing.T) {
		s := &scales{lab: newLab(t), usage: well(), memory: map[string]int64{}, writable: map[string]int64{}, volumes: map[string]map[string]int64{}, walks: map[string]int{}}
		s.tweak = func(c *node.Config) {
			registry := prometheus.NewRegistry()
			c.Machine, c.Runtime, c.Volumes = weighedMachine{s: s}, weighedRuntime{s.rt, s}, weighedVolumes{s.lab.volumes, s}
			c.Images, c.Thresholds, c.Metrics, s.orphaned = weighedImages{s.images, s}, pressure.Defaults(), registry, registry
		}
		s.start()
		defer s.end()
		test(s)
	})
}

func (s *scales) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *scales) nodeCondition(kind string) *balsav1.Condition {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	n, _ := s.server.objects["nodes/n1"].(*balsav1.Node)
	return object.FindCondition(n.GetStatus().GetConditions(), kind)
}

func (s *scales) holds(kind, status string) func() bool {
	return func() bool { return s.nodeCondition(kind).GetStatus() == status }
}

func (s *scales) registers() int {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	return s.server.registers
}

// run puts a pod that asks for so much memory.
func (s *scales) run(name, memory string, priority int32, volumes ...*balsav1.Volume) {
	s.Helper()
	p := newPod(name, "term=ignore", "forever")
	if memory != "" {
		p.Spec.Containers[0].Resources = &balsav1.ResourceRequirements{Requests: map[string]*balsav1.Quantity{"memory": object.NewQuantity(memory)}}
	}
	p.Spec.Priority, p.Spec.Volumes = &priority, volumes
	s.put(p)
	s.within(2*time.Second, name+" runs", s.ready(name))
}

func (s *scales) evicted(name, message string) func() bool {
	return func() bool {
		status := s.server.pod(name).GetStatus()
		return status.GetPhase() == "Failed" && status.GetReason() == "Evicted" && strings.Contains(status.GetMessage(), message)
	}
}

func TestMemoryPressure(t *testing.T) {
	onScales(t, func(s *scales) {
		s.run("greedy", "1Gi", 0)
		s.run("modest", "4Gi", 0)
		s.run("second", "", 5)
		if c := s.nodeCondition("MemoryPressure"); c.GetStatus() != "False" || c.GetReason() != "KubeletHasSufficientMemory" {
			t.Fatalf("a node that is well says %v", c)
		}
		before := s.registers()
		s.always(3*time.Minute, "a node that is well registers once", func() bool { return s.registers() <= before+1 })
		s.set(func() {
			s.memory = map[string]int64{"uid-greedy": 3 * gib, "uid-modest": 4 * gib, "uid-second": gib}
			s.usage.MemoryAvailable = 50 * mib
		})
		s.within(10500*time.Millisecond, "the condition reaches the servers", s.holds("MemoryPressure", "True"))
		s.within(time.Second, "the greedy one goes at once", s.evicted("greedy",
			"50.0 MiB of memory are available, of 8.0 GiB; the least is 100.0 MiB; the pod used 3.0 GiB of memory and asked for 1.0 GiB"))
		s.set(func() { s.usage.MemoryAvailable = 3 * gib })
		if c := s.condition("greedy", "DisruptionTarget"); c.GetStatus() != "True" || c.GetReason() != "TerminationByKubelet" || !s.hasEvent("Evicted", "the pod used 3.0 GiB") {
			t.Errorf("condition %v, events %v", c, s.server.events)
		}
		if !s.hasEvent("KubeletHasInsufficientMemory", "50.0 MiB") {
			t.Error("nothing was told of the node")
		}
		again := s.registers()
		s.always(4*time.Minute, "it stays until it is calm, and nobody else goes", func() bool {
			return s.holds("MemoryPressure", "True")() && s.ready("modest")() && s.ready("second")() && s.registers() <= again+1
		})
		s.within(90*time.Second, "then it ends", s.holds("MemoryPressure", "False"))
	})
}

// While a pod is on its way out no other is asked to go; one that does not go
// does not keep the others for ever.
func TestOneEvictionAtATime(t *testing.T) {
	onScales(t, func(s *scales) {
		s.run("a", "", 0)
		s.run("b", "", 1)
		s.set(func() {
			s.memory = map[string]int64{"uid-a": gib, "uid-b": gib}
			s.usage.PidsAvailable = 5
		})
		s.server.deletePod("a", 3600)
		s.always(25*time.Second, "b stays while a ends", s.ready("b"))
		s.within(30*time.Second, "a takes too long", s.evicted("b", "5 process ids are available, of 32768"))
	})
}

func TestEvictionSurvivesTheAgent(t *testing.T) {
	onScales(t, func(s *scales) {
		limit := &balsav1.Volume{Name: "cache", EmptyDir: &balsav1.EmptyDirVolumeSource{SizeLimit: object.NewQuantity("10Mi")}}
		s.run("a", "", 0, limit)
		s.set(func() { s.volumes["uid-a"] = map[string]int64{"cache": 11 * mib} })
		// It has been decided, and the pod has its second: SIGTERM does not end it.
		s.within(70*time.Second, "decided", func() bool { return s.server.pod("a").GetStatus().GetReason() == "Evicted" })
		if !s.isRunning("uid-a", "c") {
			t.Fatal("it has no grace")
		}
		s.set(func() { s.volumes["uid-a"] = nil })
		s.restart()
		s.within(10*time.Second, "it ends all the same", s.evicted("a", `volume "cache" uses 11.0 MiB of ephemeral storage; its limit is 10.0 MiB`))
		s.within(time.Second, "its files go", func() bool {
			pods, err := s.lab.volumes.Pods(t.Context())
			return err == nil && len(pods) == 0
		})
	})
}

func TestDiskLimits(t *testing.T) {
	onScales(t, func(s *scales) {
		limited := func(name string) *balsav1.Pod {
			p := newPod(name, "forever")
			p.Spec.Containers[0].Resources = &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"ephemeral-storage": object.NewQuantity("10Mi")}}
			p.Spec.Volumes = []*balsav1.Volume{{Name: "tmp", EmptyDir: &balsav1.EmptyDirVolumeSource{}}, {Name: "ram", EmptyDir: &balsav1.EmptyDirVolumeSource{Medium: "Memory", SizeLimit: object.NewQuantity("1Mi")}}}
			s.put(p)
			s.within(2*time.Second, "it runs", s.ready(name))
			return p
		}
		limited("layer")
		limited("sum")
		limited("within")
		s.set(func() {
			s.writable = map[string]int64{"uid-layer": 11 * mib, "uid-sum": 6 * mib, "uid-within": 6 * mib}
			s.volumes = map[string]map[string]int64{"uid-sum": {"tmp": 6 * mib}, "uid-within": {"tmp": 4 * mib, "ram": 2 * mib}}
		})
		s.within(3*time.Minute, "its layer and logs", s.evicted("layer", `container "c" uses 11.0 MiB of ephemeral storage; its limit is 10.0 MiB`))
		s.within(3*time.Minute, "the pod as a whole", s.evicted("sum", "the pod uses 12.0 MiB of ephemeral storage; its containers' limits are 10.0 MiB together"))
		s.always(130*time.Second, "who keeps to it stays", s.ready("within"))
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := s.walks["uid-within"]; n < 3 || n > 9 {
			t.Errorf("walked through its volumes %d times in up to 8 minutes", n)
		}
	})
}

// Walks that take long are rare, and keep nothing else waiting.
func TestSlowDisks(t *testing.T) {
	onScales(t, func(s *scales) {
		s.run("a", "", 0, &balsav1.Volume{Name: "tmp", EmptyDir: &balsav1.EmptyDirVolumeSource{}})
		s.set(func() { s.slow = time.Hour })
		s.within(time.Minute, "a walk has begun", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.walks["uid-a"] >= 1 })
		s.set(func() { s.usage.MemoryAvailable = 0 })
		s.within(10500*time.Millisecond, "the machine is still watched", s.holds("MemoryPressure", "True"))
		s.always(7*time.Minute, "10 s of walking in 500 s", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.walks["uid-a"] <= 2 })
	})
}

func TestDiskPressureGivesBackBeforeItEvicts(t *testing.T) {
	onScales(t, func(s *scales) {
		s.images.local["old:1"] = true
		s.run("a", "", 0, &balsav1.Volume{Name: "tmp", EmptyDir: &balsav1.EmptyDirVolumeSource{}})
		ended := newPod("done", "exit=0")
		ended.Spec.RestartPolicy = "Never"
		s.put(ended)
		s.within(2*time.Second, "one has ended", s.phase("done", "Succeeded"))
		s.set(func() { s.usage.DiskAvailable, s.frees = 14*gib, 6*gib })
		s.within(11*time.Second, "images go", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.reclaims == 1 })
		s.set(func() {
			if !slices.Equal(s.kept, []string{"app:1"}) || len(s.cleared) > 0 {
				t.Errorf("images in use %v, logs removed %v", s.kept, s.cleared)
			}
			s.usage.DiskAvailable = 50 * gib
		})
		s.always(2*time.Minute, "no condition", s.holds("DiskPressure", "False"))
		s.set(func() {
			s.usage.DiskAvailable, s.frees = 5*gib, 1
			s.volumes["uid-a"] = map[string]int64{"tmp": 30 * gib}
		})
		s.within(11*time.Second, "the condition", s.holds("DiskPressure", "True"))
		// What it holds is known a minute later at most.
		s.within(80*time.Second, "when nothing else is left, the pod", s.evicted("a", "5.0 GiB of disk are available, of 100.0 GiB; the least is 10%"))
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.reclaims < 2 || !slices.Contains(s.cleared, "logs of uid-done") || !slices.Contains(s.cleared, "rotated logs of uid-a") || !s.hasEvent("FreeDiskSpaceFailed", "") {
			t.Errorf("%d reclaims, logs removed %v, events %v", s.reclaims, s.cleared, s.server.events)
		}
	})
}

// An image that a pod names is in use although it cannot be asked for now: it may
// be what the pod starts from in the end.
func TestImagesOfPodsThatWaitAreKept(t *testing.T) {
	onScales(t, func(s *scales) {
		s.images.local["later:1"], s.images.local["old:1"] = true, true
		s.set(func() { s.stalled = "later:1" })
		s.run("a", "", 0)
		p := newPod("b", "forever")
		p.Spec.Containers[0].Image = "later:1"
		s.put(p)
		s.set(func() { s.usage.DiskAvailable = 5 * gib })
		s.within(15*time.Second, "images go", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.reclaims > 0 })
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Equal(s.kept, []string{"app:1", "later:1"}) {
			t.Errorf("in use: %v", s.kept)
		}
	})
}

// A condition outlives the agent, a blind spell, and servers that are gone.
func TestConditionsLast(t *testing.T) {
	onScales(t, func(s *scales) {
		s.set(func() { s.usage.InodesAvailable = 1 })
		s.within(11*time.Second, "it holds", s.holds("DiskPressure", "True"))
		s.set(func() { s.usage.InodesAvailable = 900 })
		s.within(time.Second, "the set has it", func() bool { return s.agent.Status().Synced })
		s.restart()
		s.always(time.Minute, "the next agent does not end it early", s.holds("DiskPressure", "True"))
		s.set(func() { s.err = errors.New("no /proc") })
		s.always(10*time.Minute, "what cannot be measured does not change", s.holds("DiskPressure", "True"))
		s.server.setDown(true)
		s.set(func() { s.err = nil })
		s.always(time.Minute, "nobody can be told", s.holds("DiskPressure", "True"))
		s.server.setDown(false)
		s.within(15*time.Second, "then they are", s.holds("DiskPressure", "False"))
		// A server that lost it is told again.
		s.server.mu.Lock()
		n := object.Clone(s.server.objects["nodes/n1"].(*balsav1.Node))
		n.Status.Conditions = nil
		s.server.putLocked(n)
		s.server.mu.Unlock()
		s.within(75*time.Second, "told again", s.holds("DiskPressure", "False"))
	})
}

func TestImagesShowInTheNode(t *testing.T) {
	onScales(t, func(s *scales) {
		s.run("a", "", 0)
		s.within(2*time.Minute, "the node's images", func() bool {
			s.server.mu.Lock()
			defer s.server.mu.Unlock()
			n, _ := s.server.objects["nodes/n1"].(*balsav1.Node)
			return len(n.GetStatus().GetImages()) == 1 && n.GetStatus().GetImages()[0].GetNames()[0] == "app:1"
		})
	})
}

// The volumes of a pod that a stale set lacks stay until a server has spoken.
func TestVolumesGoOnAServersWord(t *testing.T) {
	onScales(t, func(s *scales) {
		s.run("before", "", 0)
		s.disk.setFull(true)
		s.run("a", "", 0, &balsav1.Volume{Name: "tmp", EmptyDir: &balsav1.EmptyDirVolumeSource{}})
		s.stop()
		// The machine starts again, and what lay in memory is gone.
		s.machine.Reboot()
		if err := s.machine.Open().RemovePod(t.Context(), "uid-a"); err != nil {
			t.Fatal(err)
		}
		s.server.setDown(true)
		s.start()
		there := func() bool {
			pods, err := s.lab.volumes.Pods(t.Context())
			return err == nil && len(pods) == 1
		}
		s.always(3*time.Minute, "the set on disk is older than the pod", there)
		s.disk.setFull(false)
		s.server.remove("pods/default/a")
		s.server.setDown(false)
		s.within(2*time.Minute, "gone on a server's word", func() bool { return !there() })
	})
}

func TestOrphanedContentsAreToldOf(t *testing.T) {
	onScales(t, func(s *scales) {
		if _, err := s.lab.volumes.Prepare(t.Context(), volume.Pod{UID: "x", Volumes: []volume.Volume{{Name: "v", Persistent: &volume.Persistent{Name: "lost"}}}}); err != nil {
			t.Fatal(err)
		}
		s.within(time.Second, "synced", s.agent.Ready)
		orphans := func() float64 {
			families, err := s.orphaned.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "balsa_agent_orphaned_volumes" {
					return f.GetMetric()[0].GetGauge().GetValue()
				}
			}
			return -1
		}
		s.always(9*time.Minute, "not at once", func() bool { return orphans() == 0 })
		s.within(3*time.Minute, "then it counts", func() bool { return orphans() == 1 })
		if stored, err := s.lab.volumes.Persistent(t.Context()); err != nil || len(stored) != 1 {
			t.Errorf("its contents: %v %v", stored, err)
		}
	})
}
