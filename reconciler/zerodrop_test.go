package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/nodes"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

// traffic is a cluster whose nodes have proxies, which are late, and whose users
// send requests through each of them all the time.
type traffic struct {
	*cluster
	rand  *rand.Rand
	waits bool // agents wait for Drained

	mu       sync.Mutex
	proxies  map[string]map[string]bool // guarded by mu; by node, uids of pods that the service web has there
	running  map[string]bool            // guarded by mu; uids of pods that answer
	requests int                        // guarded by mu
	failed   []string                   // guarded by mu
	open     bool                       // guarded by mu; requests are sent
}

// node plays an agent: it applies what the slices say, some time later, and says
// so with a heartbeat; it starts pods, and stops them when it may.
func (c *traffic) node(ctx context.Context, name string, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	asked := map[string]time.Time{}
	for {
		// Now and then the agent pauses, for less than a leader waits.
		pause := time.Duration(5+r.IntN(60)) * time.Millisecond
		if r.IntN(200) == 0 {
			pause = time.Duration(r.IntN(2000)) * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		revision := int64(c.View().Revision())
		c.apply(name)
		if _, err := c.currentLeases().Beat(ctx, &balsav1.HeartbeatRequest{NodeName: name, BootId: name, AppliedRevision: revision}); err != nil {
			return err
		}
		for kv := range c.View().ByIndex(object.IndexNode, name) {
			pod := kv.Object.(*balsav1.Pod)
			if object.IsTerminating(pod) {
				uid := pod.GetMetadata().GetUid()
				if asked[uid].IsZero() {
					asked[uid] = time.Now()
				}
				drained := object.IsConditionTrue(pod.GetStatus().GetConditions(), object.ConditionDrained)
				if c.waits && !drained && time.Since(asked[uid]) < 8*time.Second {
					continue
				}
				c.answer(uid, false)
			} else if pod.GetStatus().GetPhase() == object.PodPending {
				c.answer(pod.GetMetadata().GetUid(), true)
			}
			if err := c.act(ctx, pod); err != nil {
				return err
			}
		}
	}
}

func (c *traffic) currentLeases() *nodes.Leases {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leases
}

func (c *traffic) answer(uid string, runs bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[uid] = runs
}

// apply makes a node's proxy what the slices say now.
func (c *traffic) apply(name string) {
	targets := map[string]bool{}
	slice, _ := control.Get[*balsav1.EndpointSlice](c.View(), "endpointslices/default/web")
	for _, e := range slice.GetEndpoints() {
		if e.GetConditions().GetReady() {
			targets[e.GetTargetRef().GetUid()] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proxies[name] = targets
}

// load sends a request through every proxy to each of its targets, all the time.
func (c *traffic) load(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(7 * time.Millisecond):
		}
		c.mu.Lock()
		for name, targets := range c.proxies {
			if !c.open {
				continue
			}
			c.requests++
			if len(targets) == 0 {
				c.failed = append(c.failed, fmt.Sprintf("%v: on %s nothing answers for the service", time.Now(), name))
			}
			for uid := range targets {
				c.requests++
				if !c.running[uid] {
					c.failed = append(c.failed, fmt.Sprintf("%v: %s sends to a pod that has stopped", time.Now(), name))
				}
			}
		}
		c.mu.Unlock()
	}
}

func (c *traffic) outcome() (requests int, failed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests, c.failed
}

// killLeader begins another term, in which nobody has been heard of.
func (c *traffic) killLeader(ctx context.Context) *loop.Task {
	c.SetTerm(c.Term + 1)
	c.mu.Lock()
	c.leases = nodes.NewLeases(clock.Real{}, 0, 0)
	c.mu.Unlock()
	deps := c.deps()
	deps.Rand = rand.NewChaCha8([32]byte{byte(c.Term)}) // else it would give out the uids of the one before
	return loop.Go(func() error { return reconciler.Run(ctx, deps) })
}

// drain moves the only replica off its node, as balsa node drain does.
func (c *traffic) drain() {
	var pod *balsav1.Pod
	for _, p := range c.pods() {
		if object.PodActive(p) && object.PodReady(p) {
			pod = p
		}
	}
	if pod == nil {
		c.t.Fatal("no pod is ready")
	}
	node := pod.GetSpec().GetNodeName()
	cordon := func(yes bool) {
		rt.Edit(c.World, "nodes/"+node, func(n *balsav1.Node) {
			if n.Spec == nil {
				n.Spec = &balsav1.NodeSpec{}
			}
			n.Spec.Unschedulable = proto.Bool(yes)
		})
	}
	cordon(true)
	rt.Edit(c.World, object.KeyOf(pod), func(p *balsav1.Pod) {
		p.Status = object.RequestEviction(p, object.EvictionOfNode, "drain of node "+node, nil, time.Now()).Status
	})
	c.within(time.Minute, "the pod has left", func() bool {
		for _, p := range c.pods() {
			if p.GetMetadata().GetUid() == pod.GetMetadata().GetUid() {
				return false
			}
		}
		return true
	})
	cordon(false)
}

func (c *traffic) update(i int) {
	c.tryEdit(fmt.Sprintf("web:%d", i))
	c.within(time.Minute, "the update", func() bool {
		d := rt.Get[*balsav1.Deployment](c.World, "deployments/default/web")
		st := d.GetStatus()
		return st.GetObservedGeneration() == d.GetMetadata().GetGeneration() && st.GetUpdatedReplicas() == 1 && st.GetReplicas() == 1 && st.GetAvailableReplicas() == 1
	})
}

func underLoad(t *testing.T, waits bool, play func(c *traffic, kill func())) (requests int, failed []string) {
	inCluster(t, nil, func(base *cluster) {
		ctx, cancel := context.WithCancel(base.t.Context())
		c := &traffic{cluster: base, rand: rand.New(rand.NewPCG(3, 4)), waits: waits, proxies: map[string]map[string]bool{}, running: map[string]bool{}}
		var tasks []*loop.Task
		for i, name := range []string{"n1", "n2", "n3"} {
			c.Put(newNode(name))
			tasks = append(tasks, loop.Go(func() error { return c.node(ctx, name, uint64(i)) }))
		}
		tasks = append(tasks, loop.Go(func() error { return c.load(ctx) }))
		c.web(1, "web:0")
		c.within(time.Minute, "the first pod", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			ready := len(c.proxies) == 3
			for _, targets := range c.proxies {
				ready = ready && len(targets) == 1
			}
			c.open = ready
			return ready
		})
		play(c, func() { tasks = append(tasks, c.killLeader(ctx)) })
		cancel()
		for _, task := range tasks {
			if err := task.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, loop.ErrStop) {
				base.t.Error(err)
			}
		}
		requests, failed = c.outcome()
	})
	return requests, failed
}

// TestNoRequestIsDropped drains the node of a single replica, updates it and kills
// leaders, again and again, while requests go through late proxies.
func TestNoRequestIsDropped(t *testing.T) {
	requests, failed := underLoad(t, true, func(c *traffic, kill func()) {
		for i := range 60 {
			switch {
			case i%3 == 0:
				c.update(i + 1)
			default:
				c.drain()
			}
			if i%7 == 0 {
				kill()
			}
		}
	})
	t.Logf("%d requests, %d failed", requests, len(failed))
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(failed), requests, failed[0])
	}
}

// TestRequestsAreDroppedWithoutAcknowledgement shows that the test above can fail.
func TestRequestsAreDroppedWithoutAcknowledgement(t *testing.T) {
	requests, failed := underLoad(t, false, func(c *traffic, _ func()) {
		for range 10 {
			c.drain()
		}
	})
	if len(failed) == 0 {
		t.Errorf("agents do not wait, and none of %d requests failed", requests)
	}
}
