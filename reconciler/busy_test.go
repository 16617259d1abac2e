package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/reconciler/rollout"
)

// TestOverlappingLeadersDoNotKeepEachOtherBusy begins terms while the leaders of
// those before still run, while contents and images change, pods are evicted and the
// log answers badly. All leaders draw from sources that begin alike.
func TestOverlappingLeadersDoNotKeepEachOtherBusy(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inCluster(t, []string{"n1", "n2", "n3"}, func(c *cluster) {
				ctx, cancel := context.WithCancel(c.t.Context())
				log := &faultyLog{w: c.World, rand: rand.New(rand.NewPCG(seed, 1))}
				user := rand.New(rand.NewPCG(seed, 2))
				c.setting("0")
				c.web(8, "web:0")
				rt.Edit(c.World, "deployments/default/web", func(d *balsav1.Deployment) {
					d.Spec.RevisionHistoryLimit = proto.Int32(2)
					d.Spec.Template.Spec.Containers[0].EnvFrom = []*balsav1.EnvFromSource{{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "settings"}}}
				})
				c.budget("web", map[string]string{"app": "web"}, 1)
				c.SetBefore(log.before)
				leaders := []*loop.Task{c.overlap(ctx)}
				for i := range 12 {
					time.Sleep(time.Duration(user.IntN(4000)) * time.Millisecond)
					switch user.IntN(4) {
					case 0:
						c.setting(fmt.Sprint(i + 1))
					case 1:
						c.tryEdit(fmt.Sprintf("web:%d", i))
					case 2:
						c.evictOne(user)
					default:
						leaders = append(leaders, c.overlap(ctx))
					}
				}
				c.SetBefore(nil)
				c.distinctUIDs()
				c.setting("last")
				c.within(20*time.Minute, "the last contents", func() bool { return c.rolledOut("last") })
				c.distinctUIDs()
				c.quiet("the overlapping terms")
				cancel()
				for _, task := range leaders {
					if err := task.Wait(); !errors.Is(err, context.Canceled) && !errors.Is(err, loop.ErrStop) {
						t.Error(err)
					}
				}
			})
		})
	}
}

// overlap begins another term. Nobody tells the leader of the one before.
func (c *cluster) overlap(ctx context.Context) *loop.Task {
	c.SetTerm(c.Term + 1)
	deps := c.deps()
	return loop.Go(func() error { return reconciler.RunCounted(ctx, deps, c.count) })
}

func (c *cluster) budget(name string, labels map[string]string, unavailable int32) {
	c.Put(&balsav1.PodDisruptionBudget{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: &balsav1.PodDisruptionBudgetSpec{
		Selector: &balsav1.LabelSelector{MatchLabels: labels}, MaxUnavailable: object.IntValue(unavailable),
	}})
}

func (c *cluster) evict(pod *balsav1.Pod) {
	if _, ok := control.Get[*balsav1.Pod](c.View(), object.KeyOf(pod)); ok {
		rt.Edit(c.World, object.KeyOf(pod), func(p *balsav1.Pod) {
			p.Status = object.RequestEviction(p, "Test", "by a test", nil, time.Now()).Status
		})
	}
}

func (c *cluster) evictOne(user *rand.Rand) {
	synctest.Wait()
	if pods := c.pods(); len(pods) > 0 {
		c.evict(pods[user.IntN(len(pods))])
	}
}

// distinctUIDs checks that no two objects are taken for one.
func (c *cluster) distinctUIDs() {
	c.t.Helper()
	by := map[string]string{}
	for kv := range c.View().Prefix("") {
		if m := control.Object(kv); m != nil && m.GetMetadata().GetUid() != "" {
			if other, taken := by[m.GetMetadata().GetUid()]; taken {
				c.t.Errorf("%s and %s have the same uid", other, kv.Key)
			}
			by[m.GetMetadata().GetUid()] = kv.Key
		}
	}
}

// TestAnHourOverTroublesThatNobodyMends lets an hour pass over all that is waited
// for: nobody writes, and nobody looks all the time.
func TestAnHourOverTroublesThatNobodyMends(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(c *cluster) {
		c.mu.Lock()
		c.broken = "web:broken"
		c.mu.Unlock()
		c.web(4, "web:1")
		c.app("paused", 1)
		c.app("single", 1)
		c.app("stuck", 1)
		c.app("broken", 1)
		c.within(20*time.Second, "all pods", func() bool { return c.readyOn("") == 8 })

		c.budget("web", map[string]string{"app": "web"}, 0)
		for _, pod := range c.podsOf("web")[:2] {
			c.evict(pod) // goes once others are available in its place
		}
		for i := range 120 { // more than a plan holds, of which none selects the pod
			c.budget(fmt.Sprint("other-", i), map[string]string{"app": fmt.Sprint(i)}, 0)
		}
		rt.Edit(c.World, "deployments/default/paused", func(d *balsav1.Deployment) {
			d.Spec.Paused, d.Spec.Template.Spec.Containers[0].Image = proto.Bool(true), "paused:2"
		})
		rt.Edit(c.World, "deployments/default/broken", func(d *balsav1.Deployment) {
			d.Spec.ProgressDeadlineSeconds, d.Spec.OnFailure = proto.Int32(60), "pause"
			d.Spec.Template.Spec.Containers[0].Image = "web:broken"
		})
		stuck := c.podsOf("stuck")[0]
		c.mu.Lock()
		c.stuck[stuck.GetMetadata().GetName()] = true
		c.mu.Unlock()
		rt.Edit(c.World, object.KeyOf(stuck), func(p *balsav1.Pod) {
			p.Metadata.DeletionTimestamp, p.Metadata.DeletionGracePeriodSeconds = timestamppb.Now(), proto.Int64(30)
		})
		c.exhaustedPool()
		c.restlessPolicy()
		c.within(10*time.Minute, "the failure of the rollout", func() bool {
			d := rt.Get[*balsav1.Deployment](c.World, "deployments/default/broken")
			return object.FindCondition(d.GetStatus().GetConditions(), object.ConditionProgressing).GetReason() == rollout.ReasonDeadlineExceeded
		})
		// No node takes the pod in whose place another has to come.
		for _, name := range []string{"n1", "n2"} {
			rt.Edit(c.World, "nodes/"+name, func(n *balsav1.Node) {
				n.Spec = &balsav1.NodeSpec{Unschedulable: proto.Bool(true)}
			})
		}
		single := c.podsOf("single")[0]
		c.evict(single)
		c.within(10*time.Second, "what the eviction waits for", func() bool { return c.waiting() != "" })
		time.Sleep(5 * time.Minute)
		c.quiet("all the troubles")
		if len(c.podsOf("web")) < 4 || !object.PodReady(rt.Get[*balsav1.Pod](c.World, object.KeyOf(single))) || !object.IsTerminating(rt.Get[*balsav1.Pod](c.World, object.KeyOf(stuck))) {
			t.Error("a trouble is gone, which nobody mended")
		}
	})
}

// app is a Deployment without a Service.
func (c *cluster) app(name string, replicas int32) {
	labels := map[string]string{"app": name}
	c.Put(&balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: &balsav1.DeploymentSpec{
		Replicas: proto.Int32(replicas), Selector: &balsav1.LabelSelector{MatchLabels: labels},
		Template: &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: labels}, Spec: &balsav1.PodSpec{
			Containers: []*balsav1.Container{{Name: "c", Image: name + ":1"}},
		}},
	}})
}

func (c *cluster) podsOf(app string) (out []*balsav1.Pod) {
	for _, p := range c.pods() {
		if p.GetMetadata().GetLabels()["app"] == app {
			out = append(out, p)
		}
	}
	return out
}

// exhaustedPool has one address for two Services.
func (c *cluster) exhaustedPool() {
	c.Put(&balsav1.AddressPool{Metadata: &balsav1.ObjectMeta{Name: "small"}, Spec: &balsav1.AddressPoolSpec{Addresses: []string{"192.0.2.1/32"}}})
	for _, name := range []string{"first", "second"} {
		c.Put(&balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: &balsav1.ServiceSpec{
			Type: object.ServiceLoadBalancer, Selector: map[string]string{"app": "web"}, Ports: []*balsav1.ServicePort{{Port: 80}},
		}})
	}
}

// restlessPolicy has more peers than a slice holds.
func (c *cluster) restlessPolicy() {
	all := func() *balsav1.NetworkPolicyPeer {
		return &balsav1.NetworkPolicyPeer{NamespaceSelector: &balsav1.LabelSelector{}, PodSelector: &balsav1.LabelSelector{}}
	}
	var peers []*balsav1.NetworkPolicyPeer
	for range 800 { // of eight pods each
		peers = append(peers, all())
	}
	c.Put(&balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Name: "wide", Namespace: "default"}, Spec: &balsav1.NetworkPolicySpec{
		PodSelector: &balsav1.LabelSelector{}, Ingress: []*balsav1.NetworkPolicyIngressRule{{From: peers}},
	}})
}

// TestPodsThatComeToANodeThatEvictsDoNotStorm: the scheduler sends the replacements
// where their predecessors were evicted.
func TestPodsThatComeToANodeThatEvictsDoNotStorm(t *testing.T) {
	inCluster(t, []string{"n1"}, func(c *cluster) {
		rt.Edit(c.World, "nodes/n1", func(n *balsav1.Node) {
			n.Spec = &balsav1.NodeSpec{Taints: []*balsav1.Taint{{Key: "repair", Effect: object.TaintNoExecute, TimeAdded: timestamppb.Now()}}}
		})
		time.Sleep(10 * time.Minute)
		c.web(2, "web:1")
		rt.Edit(c.World, "deployments/default/web", func(d *balsav1.Deployment) {
			d.Spec.Template.Spec.Tolerations = []*balsav1.Toleration{{Key: "repair", Operator: object.TolerateExists, Effect: object.TaintNoExecute, TolerationSeconds: proto.Int64(0)}}
		})
		c.app("bound", 2)
		rt.Edit(c.World, "deployments/default/bound", func(d *balsav1.Deployment) { d.Spec.Template.Spec.NodeName = "n1" })
		synctest.Wait()
		before := c.taken()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := c.taken()["workload"] - before["workload"]; n > 5*6*40 { // forty for each time that four pods are replaced
			t.Errorf("workload took %d steps in five minutes, want at most %d", n, 5*6*40)
		}
		if n := len(c.pods()); n > 8 {
			t.Errorf("%d pods are there, want at most 8: four, and those that end", n)
		}
	})
}

// TestPodsBoundToALostNodeDoNotStorm: the template names the node, so replacements
// come to the lost node as well.
func TestPodsBoundToALostNodeDoNotStorm(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(c *cluster) {
		c.app("bound", 2)
		rt.Edit(c.World, "deployments/default/bound", func(d *balsav1.Deployment) { d.Spec.Template.Spec.NodeName = "n1" })
		c.within(time.Minute, "the pods", func() bool { return c.readyOn("n1") == 2 })
		c.setDown("n1", true)
		time.Sleep(time.Minute)
		synctest.Wait()
		before := c.taken()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := c.taken()["workload"] - before["workload"]; n > 400 {
			t.Errorf("workload took %d steps in five minutes, want at most 400", n)
		}
		c.setDown("n1", false)
		c.within(2*time.Minute, "the pods on the node that came back", func() bool { return c.readyOn("n1") == 2 })
	})
}

// TestWhatFailsWaitsAlsoWhenMoreIsToDo: the first part of a long plan is refused.
func TestWhatFailsWaitsAlsoWhenMoreIsToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		refused, steps := errors.New("refused"), 0
		step := func(_ context.Context, keys []string) (again []loop.Again) {
			if steps++; steps > 1000 {
				cancel()
			}
			for _, key := range keys {
				again = append(again, loop.Again{Key: key, After: time.Nanosecond}, loop.Again{Key: key, Err: refused})
			}
			return again
		}
		_ = loop.Run(ctx, loop.Options{
			Name: "test", Queue: loop.NewQueue(clock.Real{}, 0), Clock: clock.Real{}, Rand: rand.New(rand.NewPCG(1, 2)),
			Logger: slog.New(slog.DiscardHandler), Step: reconciler.BackedOff(step),
		})
		if steps > 20 {
			t.Errorf("%d steps in a minute in which all was refused, want at most 20", steps)
		}
	})
}
