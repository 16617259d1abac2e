package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/nodes"
	"github.com/balsa-run/balsa/reconciler/placement"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

// cluster is a world with agents that do what they shall, one second late.
type cluster struct {
	*rt.World
	t       *testing.T
	leader  *loop.Task
	leases  *nodes.Leases
	explain *placement.Explanations
	mu      sync.Mutex
	down    map[string]bool // guarded by mu
	ips     int             // guarded by mu
	steps   map[string]int  // guarded by mu; of all leaders, by concern
	stuck   map[string]bool // guarded by mu; pods, by name, whose agent cannot end them
	broken  string          // guarded by mu; the image whose containers are never ready
	hosts   hostStates
}

type hostStates struct {
	mu   sync.Mutex
	dead map[string]bool // guarded by mu
}

func (h *hostStates) Host(name string) nodes.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return nodes.Host{GossipFailed: h.dead[name]}
}

// inCluster runs a test in a bubble of virtual time, on a cluster of nodes whose
// leader is led by epoch 1.
func inCluster(t *testing.T, names []string, test func(c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := &cluster{World: rt.NewInBubble(t), t: t, down: map[string]bool{}, steps: map[string]int{}, stuck: map[string]bool{}, explain: &placement.Explanations{}}
		c.hosts.dead = map[string]bool{}
		c.leases = nodes.NewLeases(clock.Real{}, 0, 0)
		c.Put(&balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: "default"}})
		var tasks []*loop.Task
		for _, name := range names {
			c.Put(newNode(name))
			tasks = append(tasks, loop.Go(func() error { return c.agent(ctx, name) }))
		}
		deps := c.deps() // of this term, whenever the leader begins
		c.leader = loop.Go(func() error { return reconciler.RunCounted(ctx, deps, c.count) })
		tasks = append(tasks, c.leader)
		test(c)
		cancel()
		for _, task := range tasks {
			if err := task.Wait(); err != nil && !errors.Is(err, context.Canceled) && !(errors.Is(err, loop.ErrStop) && c.Term > 1) {
				t.Errorf("ended with %v", err)
			}
		}
	})
}

func (c *cluster) deps() reconciler.Deps {
	return reconciler.Deps{
		Store: c.Store, Proposer: c.World, Clock: clock.Real{}, Rand: rand.NewChaCha8([32]byte{7}),
		Logger: slog.New(slog.DiscardHandler), Epoch: c.Term, Leases: c.leases, Hosts: &c.hosts, Secrets: rt.Secrets{}, Explanations: c.explain,
	}
}

// busy is more steps of one concern in one test than any has a reason for.
const busy = 20_000

func (c *cluster) count(concern string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steps[concern]++; c.steps[concern] > busy {
		c.t.Errorf("%s is busy: %d steps until %v", concern, c.steps[concern], time.Now())
		panic(concern + " is busy")
	}
}

// taken are the steps of each concern so far.
func (c *cluster) taken() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.steps)
}

func newNode(name string) *balsav1.Node {
	return &balsav1.Node{
		Metadata: &balsav1.ObjectMeta{Name: name},
		Status: &balsav1.NodeStatus{Allocatable: map[string]*balsav1.Quantity{
			"cpu": object.NewQuantity("4"), "memory": object.NewQuantity("8Gi"), "pods": object.NewQuantity("20"),
		}},
	}
}

// agent plays a node: every second it beats, starts what is new and ends what
// shall end.
func (c *cluster) agent(ctx context.Context, name string) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		c.mu.Lock()
		down := c.down[name]
		c.mu.Unlock()
		if down {
			continue
		}
		if _, err := c.leases.Beat(ctx, &balsav1.HeartbeatRequest{NodeName: name, BootId: name}); err != nil {
			return err
		}
		for kv := range c.View().ByIndex(object.IndexNode, name) {
			if err := c.act(ctx, kv.Object.(*balsav1.Pod)); err != nil {
				return err
			}
		}
	}
}

func (c *cluster) act(ctx context.Context, pod *balsav1.Pod) error {
	change := control.NewChange("agent")
	c.mu.Lock()
	stuck, broken := c.stuck[pod.GetMetadata().GetName()], c.broken != "" && pod.GetSpec().GetContainers()[0].GetImage() == c.broken
	c.mu.Unlock()
	switch {
	case stuck && object.IsTerminating(pod), broken && !object.IsTerminating(pod):
		return nil
	case object.IsTerminating(pod):
		change.Delete(pod)
	case pod.GetStatus().GetPhase() == object.PodPending:
		next := object.Clone(pod)
		c.mu.Lock()
		c.ips++
		next.Status.PodIp, next.Status.HostIp = fmt.Sprintf("10.244.0.%d", c.ips), "192.0.2.1"
		c.mu.Unlock()
		next.Status.Phase = object.PodRunning
		next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionTrue}, time.Now())
		if err := change.Update(next); err != nil {
			return err
		}
	case object.PodActive(pod) && !object.PodReady(pod): // somebody thought otherwise
		next := object.Clone(pod)
		next.Status.Conditions, _ = object.SetCondition(next.Status.Conditions, &balsav1.Condition{Type: object.ConditionReady, Status: object.ConditionTrue}, time.Now())
		if err := change.Update(next); err != nil {
			return err
		}
	}
	err := control.NewWriter(c.World, c.Store.Space(store.SpaceObjects), clock.Real{}, 0).Commit(ctx, change)
	if errors.Is(err, control.ErrConflict) {
		return nil
	}
	return err
}

func (c *cluster) setDown(name string, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[name] = down
}

// within waits, in virtual time, until ok.
func (c *cluster) within(d time.Duration, what string, ok func() bool) time.Duration {
	c.t.Helper()
	start := time.Now()
	for time.Since(start) <= d {
		synctest.Wait()
		if ok() {
			return time.Since(start)
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%s did not happen within %v", what, d)
	return 0
}

func (c *cluster) pods() []*balsav1.Pod { return rt.All[*balsav1.Pod](c.World, "Pod") }

func (c *cluster) readyOn(name string) (n int) {
	for _, p := range c.pods() {
		if object.PodReady(p) && object.PodActive(p) && (name == "" || p.GetSpec().GetNodeName() == name) {
			n++
		}
	}
	return n
}

// endpoints counts the ready endpoints of the service web.
func (c *cluster) endpoints() (n int) {
	slice, ok := control.Get[*balsav1.EndpointSlice](c.View(), "endpointslices/default/web")
	for _, e := range slice.GetEndpoints() {
		if ok && e.GetConditions().GetReady() {
			n++
		}
	}
	return n
}

func (c *cluster) web(replicas int32, image string) {
	labels := map[string]string{"app": "web"}
	c.Put(&balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: &balsav1.ServiceSpec{
		Selector: labels, Ports: []*balsav1.ServicePort{{Port: 80}},
	}})
	c.Put(&balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: &balsav1.DeploymentSpec{
		Replicas: proto.Int32(replicas), Selector: &balsav1.LabelSelector{MatchLabels: labels},
		Template: &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: labels}, Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{
			Name: "web", Image: image,
			Resources: &balsav1.ResourceRequirements{Requests: map[string]*balsav1.Quantity{"cpu": object.NewQuantity("500m")}},
		}}}},
	}})
}

func TestFromDeploymentToEndpointsAndBackToNothing(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(c *cluster) {
		c.web(6, "web:1")
		c.within(5*time.Second, "six endpoints", func() bool { return c.endpoints() == 6 })
		for _, name := range []string{"n1", "n2", "n3"} {
			if n := c.readyOn(name); n != 2 {
				t.Errorf("%d pods on %s, want 2", n, name)
			}
		}
		rt.Edit(c.World, "deployments/default/web", func(d *balsav1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "web:2" })
		c.within(time.Minute, "the update", func() bool {
			if n := c.endpoints(); n < 5 { // 6 less 25 per cent, rounded down
				t.Fatalf("%d endpoints during the update", n)
			}
			d := rt.Get[*balsav1.Deployment](c.World, "deployments/default/web")
			return d.GetStatus().GetObservedGeneration() == 2 && d.GetStatus().GetUpdatedReplicas() == 6 && d.GetStatus().GetReplicas() == 6 && d.GetStatus().GetAvailableReplicas() == 6
		})
		for _, p := range c.pods() {
			if image := p.GetSpec().GetContainers()[0].GetImage(); image != "web:2" && !object.IsTerminating(p) {
				t.Errorf("a pod runs %s", image)
			}
		}
		c.quiet("the update")
		c.Delete(rt.Get[*balsav1.Deployment](c.World, "deployments/default/web"))
		c.Delete(rt.Get[*balsav1.Service](c.World, "services/default/web"))
		c.within(5*time.Second, "the end of everything", func() bool {
			return len(c.pods()) == 0 && c.View().CountPrefix("replicasets/")+c.View().CountPrefix("endpointslices/") == 0
		})
		c.checkEvents("NewReplicaSet", "ScalingReplicaSet", "PodsCreated", "Scheduled", nodes.ReasonHeartbeat)
		c.quiet("the end of everything")
	})
}

// quietSteps bounds the steps of a concern in an hour in which nothing happens: a
// look at everything every five minutes, and a few looks at what is waited for. Of
// nodes it bounds those that wait for the next heartbeat.
func quietSteps(concern string) int {
	switch concern {
	case "nodes":
		return 60 * 40
	case "compaction":
		return 60 * 7 // its interval
	}
	return 60 * 3
}

// quiet checks that nobody writes objects, and no concern looks all the time, while
// nothing happens.
func (c *cluster) quiet(after string) {
	c.t.Helper()
	time.Sleep(5 * time.Second)
	synctest.Wait()
	before, steps := c.View().Revision(), c.taken()
	time.Sleep(time.Hour)
	synctest.Wait()
	for concern, n := range c.taken() {
		if n -= steps[concern]; n > quietSteps(concern) {
			c.t.Errorf("after %s concern %s takes %d steps in an hour, want at most %d", after, concern, n, quietSteps(concern))
		}
	}
	if now := c.View().Revision(); now != before {
		c.t.Errorf("after %s the revision goes on from %d to %d", after, before, now)
	}
}

func (c *cluster) checkEvents(reasons ...string) {
	c.t.Helper()
	got := map[string]bool{}
	for kv := range c.Store.Space(store.SpaceEvents).View().Prefix("events/") {
		got[kv.Object.(*balsav1.Event).GetReason()] = true
	}
	for _, reason := range reasons {
		if !got[reason] {
			c.t.Errorf("no event says %s; there are %v", reason, got)
		}
	}
}

func TestALostNodeIsReplacedAndADownAgentKeepsItsEndpoints(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3", "n4"}, func(c *cluster) {
		c.web(8, "web:1")
		c.within(10*time.Second, "eight endpoints", func() bool { return c.endpoints() == 8 })
		// The agent is upgraded: it is silent for less than its lease. Gossip may
		// lose it too, the host answers still.
		c.setDown("n2", true)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := c.endpoints(); n != 8 {
			t.Errorf("%d endpoints while an agent is down, want 8", n)
		}
		c.setDown("n2", false)
		time.Sleep(2 * time.Second)
		// The host is gone.
		c.setDown("n1", true)
		c.hosts.mu.Lock()
		c.hosts.dead["n1"] = true
		c.hosts.mu.Unlock()
		c.leases.Wake()
		if d := c.within(5*time.Second, "removal of its endpoints", func() bool { return c.endpoints() == 6 }); d < 2*time.Second {
			t.Errorf("endpoints left after %v, when heartbeats were hardly missed", d)
		}
		if n := c.readyOn("n1"); n != 2 {
			t.Errorf("%d pods are left on n1, want 2: its lease holds", n)
		}
		c.within(nodes.DefaultDuration+3*time.Second, "replacement", func() bool { return c.endpoints() == 8 && c.readyOn("n1") == 0 })
		c.checkEvents(nodes.ReasonHostUnreachable, nodes.ReasonLeaseExpired, nodes.ReasonNodeLost)
		c.quiet("the replacement")
	})
}

// TestAPodWithoutAControllerWaitsForItsNode: nobody would replace it. It is not
// ready while the node is away, and goes only when it wants to, or the node went
// for good.
func TestAPodWithoutAControllerWaitsForItsNode(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(c *cluster) {
		bare := func(name string, tolerations ...*balsav1.Toleration) {
			c.Put(&balsav1.Pod{
				Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", Uid: name, CreationTimestamp: timestamppb.Now(), Labels: map[string]string{"app": "web"}},
				Spec:     &balsav1.PodSpec{NodeName: "n1", Containers: []*balsav1.Container{{Name: "c"}}, Tolerations: tolerations},
				Status:   &balsav1.PodStatus{Phase: object.PodPending},
			})
		}
		seconds := int64(120)
		bare("alone")
		bare("impatient", &balsav1.Toleration{Key: nodes.TaintUnreachable, Operator: object.TolerateExists, Effect: object.TaintNoExecute, TolerationSeconds: &seconds})
		c.web(2, "web:1")
		c.within(10*time.Second, "all of them ready", func() bool { return c.readyOn("") == 4 && c.endpoints() == 4 })
		c.setDown("n1", true)
		went := time.Now()
		c.within(nodes.DefaultDuration+3*time.Second, "the replacement of what is replaced", func() bool {
			return c.readyOn("n1") == 0 && c.readyOn("n2") == 2 && c.endpoints() == 2
		})
		ready := func(name string) *balsav1.Condition {
			pod, ok := control.Get[*balsav1.Pod](c.View(), "pods/default/"+name)
			if !ok || pod.GetSpec().GetNodeName() != "n1" || pod.GetStatus().GetPhase() != object.PodRunning {
				return nil
			}
			return object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionReady)
		}
		for _, name := range []string{"alone", "impatient"} {
			if r := ready(name); r.GetStatus() != object.ConditionFalse || r.GetReason() != nodes.ReasonNodeLost {
				t.Errorf("while its node is lost pod %s has the condition %v", name, r)
			}
		}
		c.within(3*time.Minute, "the end of the impatient one", func() bool { return ready("impatient") == nil })
		if d := time.Since(went); d < 2*time.Minute+nodes.DefaultDuration {
			t.Errorf("it went after %v, with tolerationSeconds 120", d)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if ready("alone") == nil {
			t.Fatal("the pod that nobody replaces is gone after an hour")
		}
		c.checkEvents(nodes.ReasonNodeLost)
		c.setDown("n1", false)
		c.within(10*time.Second, "its return", func() bool { return ready("alone").GetStatus() == object.ConditionTrue && c.endpoints() == 3 })
		c.setDown("n1", true)
		c.within(30*time.Second, "the loss of its node", func() bool { return ready("alone").GetReason() == nodes.ReasonNodeLost })
		c.Delete(rt.Get[*balsav1.Node](c.World, "nodes/n1"))
		c.within(10*time.Second, "its end with the node", func() bool { return ready("alone") == nil })
	})
}

func TestNothingIsReplacedWhenManyNodesVanishTogether(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(c *cluster) {
		c.web(6, "web:1")
		c.within(10*time.Second, "six endpoints", func() bool { return c.endpoints() == 6 })
		c.setDown("n1", true)
		time.Sleep(4 * time.Second) // not in one moment
		c.setDown("n2", true)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if c.endpoints() != 6 || c.readyOn("n1") != 2 || c.readyOn("n2") != 2 {
			t.Errorf("%d endpoints, %d and %d pods on the nodes that vanished", c.endpoints(), c.readyOn("n1"), c.readyOn("n2"))
		}
		node := rt.Get[*balsav1.Node](c.World, "nodes/n1")
		if reason := object.FindCondition(node.GetStatus().GetConditions(), object.ConditionReady).GetReason(); reason != nodes.ReasonFrozen {
			t.Errorf("n1 is not ready for the reason %s", reason)
		}
		c.checkEvents(nodes.ReasonFrozen)
		// Someone who knows better deletes one of the nodes.
		c.Delete(rt.Get[*balsav1.Node](c.World, "nodes/n2"))
		c.within(10*time.Second, "replacement of the pods of n2 and n1", func() bool { return c.readyOn("n3") == 6 && c.endpoints() == 6 })
	})
}

func TestAPodThatFitsNowhereIsExplainedAndPlacedOnceItFits(t *testing.T) {
	inCluster(t, []string{"n1"}, func(c *cluster) {
		c.web(9, "web:1") // eight fit
		c.within(10*time.Second, "an explanation", func() bool {
			_, ok := c.explain.Of(c.waiting())
			return ok && c.readyOn("") == 8
		})
		pod := rt.Get[*balsav1.Pod](c.World, c.waiting())
		message := object.FindCondition(pod.GetStatus().GetConditions(), object.ConditionPodScheduled).GetMessage()
		if want := "0 of 1 nodes fit: 1 too little cpu (short by 500m at best); nearest is n1 (500m cpu short)"; message != want {
			t.Errorf("message %q, want %q", message, want)
		}
		c.checkEvents(placement.ReasonFailed)
		rt.Edit(c.World, "nodes/n1", func(n *balsav1.Node) { n.Status.Allocatable["cpu"] = object.NewQuantity("5") })
		c.within(10*time.Second, "the ninth pod", func() bool { return c.readyOn("") == 9 })
	})
}

// waiting is the key of a pod without a node, or "".
func (c *cluster) waiting() string {
	for _, p := range c.pods() {
		if p.GetSpec().GetNodeName() == "" {
			return object.KeyOf(p)
		}
	}
	return ""
}

func TestANamespaceEmptiesAndGoes(t *testing.T) {
	inCluster(t, []string{"n1"}, func(c *cluster) {
		c.web(4, "web:1")
		c.Put(&balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: "settings", Namespace: "default"}})
		c.within(10*time.Second, "four endpoints", func() bool { return c.endpoints() == 4 })
		rt.Edit(c.World, "namespaces/default", func(ns *balsav1.Namespace) { ns.Metadata.DeletionTimestamp = timestamppb.Now() })
		c.within(10*time.Second, "the end of the namespace", func() bool { return c.View().CountPrefix("namespaces/") == 0 })
		for _, prefix := range []string{"deployments/", "replicasets/", "pods/", "services/", "endpointslices/", "configmaps/"} {
			if n := c.View().CountPrefix(prefix); n != 0 {
				t.Errorf("%d keys are left under %s", n, prefix)
			}
		}
	})
}

func TestADeposedLeaderStops(t *testing.T) {
	inCluster(t, []string{"n1"}, func(c *cluster) {
		c.web(2, "web:1")
		c.within(10*time.Second, "two endpoints", func() bool { return c.endpoints() == 2 })
		synctest.Wait()
		c.SetTerm(2)
		rt.Edit(c.World, "deployments/default/web", func(d *balsav1.Deployment) { d.Spec.Replicas = proto.Int32(3) })
		if err := c.leader.Wait(); !errors.Is(err, loop.ErrStop) {
			t.Errorf("the old leader ended with %v", err)
		}
		if rs := rt.All[*balsav1.ReplicaSet](c.World, "ReplicaSet"); rs[0].GetSpec().GetReplicas() != 2 {
			t.Errorf("a deposed leader scaled to %d", rs[0].GetSpec().GetReplicas())
		}
		ctx, cancel := context.WithCancel(c.t.Context())
		next := loop.Go(func() error { return reconciler.Run(ctx, c.deps()) })
		c.within(10*time.Second, "three endpoints under the new leader", func() bool { return c.endpoints() == 3 })
		cancel()
		if err := next.Wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("the new leader ended with %v", err)
		}
	})
}
