package node_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/pod"
	netfake "github.com/balsa-run/balsa/node/podnet/fake"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/fake"
	"github.com/balsa-run/balsa/node/runtime/simprog"
	volumefake "github.com/balsa-run/balsa/node/volume/fake"
	"github.com/balsa-run/balsa/object"
)

// hostFiles are those of a node that has one seccomp profile.
type hostFiles struct{}

func (hostFiles) Hosts() ([]byte, error)      { return []byte("127.0.0.1 localhost n1\n"), nil }
func (hostFiles) ResolvConf() ([]byte, error) { return []byte("nameserver 192.0.2.1\n"), nil }
func (hostFiles) Seccomp(name string) ([]byte, error) {
	if name != "p.json" {
		return nil, errNotExist()
	}
	return []byte("{}"), nil
}

func errNotExist() error { return fs.ErrNotExist }

// lab is one node with everything around it, on virtual time.
type lab struct {
	*testing.T
	server  *server
	machine *fake.Machine
	network *netfake.Network
	kernel  *netproxy.Fake
	images  *imageStore
	disk    *memDisk
	run     *memDisk
	zone    *zone
	open    *openConnections
	prober  *readyProber
	agent   *node.Agent
	stop    func()
	maxPods int
	volumes *volumefake.Volumes
	evict   map[string]*pod.Refusal
	fuse    *fuse       // nil: nothing kills the agent
	store   node.Images // nil: images
	tweak   func(*node.Config)
	mu      sync.Mutex
	configs map[string]runtime.ContainerConfig // guarded by mu; what was started last, by name
	failOps map[string]int                     // how often calls of the runtime fail
	rt      *fake.Runtime
	over    chan struct{} // closed when Run has returned
	err     error         // why
}

type zone struct {
	mu      sync.Mutex
	z       *dns.Zone
	clients *dns.Clients
}

func (z *zone) SetClients(c *dns.Clients) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.clients = c
}

func (z *zone) SetZone(n *dns.Zone) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.z = n
}

func (z *zone) revision() int64 {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.z == nil {
		return 0
	}
	return z.z.Revision()
}

// imageStore holds the images of the cluster and of the node.
type imageStore struct {
	mu      sync.Mutex
	cluster map[string]bool
	local   map[string]bool
	offline bool
	pruned  []string
}

func imageOf(name string) runtime.Image {
	return runtime.Image{Digest: "sha256:" + name, Layers: []string{"/layers/" + name}}
}

func (s *imageStore) Local(_ context.Context, name string) (runtime.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.local[name] {
		return runtime.Image{}, fmt.Errorf("image %s: %w", name, node.ErrImageNotPresent)
	}
	return imageOf(name), nil
}

func (s *imageStore) Pull(ctx context.Context, want node.ImagePull, progress func(node.ImageProgress)) (node.PulledImage, error) {
	s.mu.Lock()
	found := node.PulledImage{SizeBytes: 1}
	switch {
	case want.Policy == object.PullNever: // nobody is asked
	case !s.offline && s.cluster[want.Name]:
		found.Transferred = !s.local[want.Name]
		s.local[want.Name] = true
	case s.offline && !s.local[want.Name]:
		s.mu.Unlock()
		return found, fmt.Errorf("no server can be reached: %w", node.ErrImageUnreachable)
	}
	s.mu.Unlock()
	if found.Transferred {
		progress(node.ImageProgress{Layers: 1})
	}
	var err error
	found.Image, err = s.Local(ctx, want.Name)
	return found, err
}

func (s *imageStore) Prune(_ context.Context, keep func(string) bool) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.local {
		if !keep("sha256:" + name) {
			delete(s.local, name)
			s.pruned = append(s.pruned, name)
		}
	}
	return s.pruned, nil
}

// readyProber asks the simulated program.
type readyProber struct {
	m *fake.Machine
	// failures are to come, whatever the program says.
	failures atomic.Int32
	// slow, unless nil, is called while a question is asked.
	slow func()
}

func (p *readyProber) Probe(_ context.Context, probe pod.Probe) error {
	if p.slow != nil {
		p.slow()
	}
	if p.failures.Add(-1) >= 0 || !p.m.Ready(runtime.PodUID(probe.UID), probe.Container) {
		return errors.New("HTTP status 503")
	}
	return nil
}

func (p *readyProber) Call(context.Context, pod.Question) error { return nil }

type machine struct{}

func (machine) Facts(context.Context) (node.MachineFacts, error) {
	return node.MachineFacts{MilliCPU: 4000, MemoryBytes: 8 << 30, Info: &balsav1.NodeSystemInfo{BootId: "boot-1", OperatingSystem: "linux", Architecture: "amd64"}}, nil
}

func newLab(t *testing.T) *lab {
	network, err := netfake.New(netip.MustParsePrefix("10.244.1.0/24"), "")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{
		T: t, server: newServer(), network: network,
		kernel: &netproxy.Fake{}, images: &imageStore{cluster: map[string]bool{"app:1": true}, local: map[string]bool{}},
		disk: newDisk("/disk"), run: newDisk("/run"), zone: &zone{}, volumes: volumefake.New("/volumes"), evict: map[string]*pod.Refusal{}, configs: map[string]runtime.ContainerConfig{},
	}
	var mu sync.Mutex
	program := func(c runtime.ContainerConfig, argv []string) (simprog.Program, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.configs[c.Name] = c
		return simprog.Parse(argv)
	}
	l.machine = fake.NewMachine(fake.Options{Clock: clock.Real{}, Program: program, Inject: func(op fake.Op, _ runtime.PodUID) error {
		mu.Lock()
		defer mu.Unlock()
		if l.failOps[string(op)] == 0 {
			return nil
		}
		l.failOps[string(op)]--
		return fmt.Errorf("%s: injected", op)
	}})
	l.prober = &readyProber{m: l.machine}
	l.open = &openConnections{to: map[string]int{}}
	return l
}

// start begins a new agent process on the same machine.
func (l *lab) start() {
	l.Helper()
	l.rt = l.machine.Open()
	config := node.Config{
		Name: "n1", NodeIP: netip.MustParseAddr("10.0.0.11"), AgentPort: 7450, Version: "test", MaxPods: l.maxPods,
		Disk: l.disk, RunDisk: l.run, Clock: clock.Real{}, Rand: rand.New(rand.NewPCG(1, 2)), Logger: slog.New(slog.NewTextHandler(l.Output(), nil)),
		API: l.server, Machine: machine{}, Runtime: l.rt, Images: l.images, Prober: l.prober,
		Volumes: l.volumes, HostFiles: hostFiles{}, Eviction: func(uid string) *pod.Refusal { return l.evict[uid] },
		Open: func(context.Context, node.ClusterFacts) (node.Plant, error) {
			return node.Plant{Network: l.fuse.network(l.network), Proxy: l.kernel, Resolver: l.zone, Connections: l.open}, nil
		},
	}
	if l.store != nil {
		config.Images = l.store
	}
	if l.tweak != nil {
		l.tweak(&config)
	}
	l.fuse.wrap(&config)
	agent, err := node.New(config)
	if err != nil {
		l.Fatal(err)
	}
	l.agent = agent
	ctx, cancel := context.WithCancel(context.Background())
	l.fuse.arm(cancel)
	over := make(chan struct{})
	l.over, l.err = over, nil
	go func() {
		l.err = agent.Run(ctx)
		close(over)
	}()
	l.stop = func() {
		cancel()
		<-over
	}
}

// ended tells whether Run has returned.
func (l *lab) ended() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

func (l *lab) restart() {
	l.stop()
	l.start()
}

// onNode runs a test on virtual time with an agent that has started.
func onNode(t *testing.T, test func(l *lab)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.start()
		defer l.end()
		test(l)
	})
}

// end stops everything, so that no goroutine is left.
func (l *lab) end() {
	l.stop()
	if !errors.Is(l.err, context.Canceled) && !errors.Is(l.err, node.ErrFactsChanged) {
		l.Errorf("Run ended with %v", l.err)
	}
	l.machine.Reboot()
}

// newPod is a pod of one container that runs the given steps.
func newPod(name string, steps ...string) *balsav1.Pod {
	p := &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", Generation: 1},
		Spec: &balsav1.PodSpec{NodeName: "n1", Containers: []*balsav1.Container{{
			Name: "c", Image: "app:1", Command: append([]string{"/bin/sim"}, steps...),
		}}},
	}
	object.Default(p)
	return p
}

// within waits on virtual time for a condition.
func (l *lab) within(d time.Duration, what string, condition func() bool) {
	l.Helper()
	deadline := time.Now().Add(d)
	for {
		synctest.Wait()
		if condition() {
			return
		}
		if !time.Now().Before(deadline) {
			l.Fatalf("after %s not so: %s", d, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// always checks a condition for a while.
func (l *lab) always(d time.Duration, what string, condition func() bool) {
	l.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if !condition() {
			l.Fatalf("no longer so: %s", what)
		}
	}
}

func (l *lab) ready(name string) func() bool {
	return func() bool {
		p := l.server.pod(name)
		return p.GetStatus().GetPhase() == "Running" && object.PodReady(p)
	}
}

func (l *lab) status(name string) *balsav1.ContainerStatus {
	l.Helper()
	p := l.server.pod(name)
	if len(p.GetStatus().GetContainerStatuses()) != 1 {
		l.Fatalf("pod %s has the container statuses %v", name, p.GetStatus().GetContainerStatuses())
	}
	return p.GetStatus().GetContainerStatuses()[0]
}

func TestPodRuns(t *testing.T) {
	onNode(t, func(l *lab) {
		p := newPod("a", "out=hello", "sleep=1s", "ready", "forever")
		p.Spec.Containers[0].ReadinessProbe = &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(80)}, PeriodSeconds: proto.Int32(10)}
		l.server.put(p)
		l.within(time.Second, "running", func() bool { return l.server.pod("a").GetStatus().GetPhase() == "Running" })
		if object.PodReady(l.server.pod("a")) {
			l.Error("the pod is ready before its program is")
		}
		l.within(3*time.Second, "ready", l.ready("a"))
		c := l.status("a")
		if !c.GetReady() || c.GetRestartCount() != 0 || c.GetState().GetRunning() == nil || c.GetContainerId() != "balsa://uid-a/c/0" || c.GetImageId() != "sha256:app:1" {
			l.Errorf("container status %v", c)
		}
		s := l.server.pod("a").GetStatus()
		if s.GetHostIp() != "10.0.0.11" || s.GetPodIp() == "" || len(s.GetPodIps()) != 1 || s.GetStartTime() == nil || s.GetObservedGeneration() != 1 {
			l.Errorf("status %v", s)
		}
	})
}
