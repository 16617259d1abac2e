package reconciler_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/store"
)

// TestConfigRolloutsThroughLostAnswers edits a ConfigMap and the
// Deployment again and again over a log that answers badly.
// Both bounds hold at every revision, in the end the pods refer to what is there
// now, and no copy is left that no ReplicaSet owns.
func TestConfigRolloutsThroughLostAnswers(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inCluster(t, []string{"n1", "n2", "n3"}, func(c *cluster) {
				log := &faultyLog{w: c.World, rand: rand.New(rand.NewPCG(seed, 1))}
				user := rand.New(rand.NewPCG(seed, 2))
				m := &monitor{most: 10, least: 6, pods: map[string]*balsav1.Pod{}}
				ctx, cancel := context.WithCancel(c.t.Context())
				defer cancel()
				watch, err := c.Store.Space(store.SpaceObjects).Watch(ctx, store.WatchOptions{Prefix: "pods/"})
				if err != nil {
					t.Fatal(err)
				}
				seen := loop.Go(func() error {
					for batch := range watch.Events() {
						m.see(batch)
					}
					return nil
				})
				c.setting("0")
				c.web(8, "web:0")
				rt.Edit(c.World, "deployments/default/web", func(d *balsav1.Deployment) {
					d.Spec.RevisionHistoryLimit = proto.Int32(2)
					d.Spec.Template.Spec.Containers[0].EnvFrom = []*balsav1.EnvFromSource{{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "settings"}}}
				})
				c.SetBefore(log.before)
				for i := range 6 {
					time.Sleep(time.Duration(user.IntN(6000)) * time.Millisecond)
					if c.setting(fmt.Sprint(i + 1)); i%2 == 0 {
						c.tryEdit(fmt.Sprintf("web:%d", i))
					}
				}
				c.SetBefore(nil)
				c.within(20*time.Minute, "the last contents", func() bool { return c.rolledOut("6") })
				c.within(10*time.Minute, "the copies' owners", c.noLeak)
				synctest.Wait()
				cancel()
				_ = seen.Wait()
				if len(m.violations) > 0 || log.faults == 0 {
					t.Errorf("%d faults; violations %v", log.faults, m.violations)
				}
			})
		})
	}
}

func (c *cluster) setting(level string) {
	c.t.Helper()
	c.Put(&balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: "settings", Namespace: "default"}, Data: map[string]string{"level": level}})
}

// rolledOut tells whether every pod refers to a copy that says level, and the
// status says that all is done.
func (c *cluster) rolledOut(level string) bool {
	d := rt.Get[*balsav1.Deployment](c.World, "deployments/default/web")
	if object.FindCondition(d.GetStatus().GetConditions(), object.ConditionProgressing).GetReason() != rollout.ReasonComplete {
		return false
	}
	levels := map[string]string{}
	for _, m := range rt.All[*balsav1.ConfigMap](c.World, "ConfigMap") {
		levels[m.GetMetadata().GetName()] = m.GetData()["level"]
	}
	pods := rt.All[*balsav1.Pod](c.World, "Pod")
	for _, pod := range pods {
		if name := pod.GetSpec().GetContainers()[0].GetEnvFrom()[0].GetConfigMapRef().GetName(); name == "settings" || levels[name] != level {
			return false
		}
	}
	return len(pods) == 8
}

func (c *cluster) noLeak() bool {
	owners := map[string]bool{}
	for _, rs := range rt.All[*balsav1.ReplicaSet](c.World, "ReplicaSet") {
		owners[rs.GetMetadata().GetUid()] = true
	}
	for _, m := range rt.All[*balsav1.ConfigMap](c.World, "ConfigMap") {
		if m.GetMetadata().GetLabels()[revisions.LabelPinnedFrom] == "" {
			continue
		}
		for _, ref := range m.GetMetadata().GetOwnerReferences() {
			if !owners[ref.GetUid()] {
				return false
			}
		}
	}
	return len(owners) <= 3
}
