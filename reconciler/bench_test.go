package reconciler_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler"
	"github.com/balsa-run/balsa/reconciler/nodes"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
)

// How long from ten Deployments of five hundred replicas to five thousand pods
// bound to a thousand nodes, when the log answers at once?
func BenchmarkFiveThousandPods(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		w := rt.New(b)
		for i := range 1000 {
			node := newNode(fmt.Sprintf("n%04d", i))
			node.Status.Conditions = []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue, Reason: nodes.ReasonHeartbeat, Message: "the node's heartbeats arrive"}}
			w.Put(node)
		}
		ctx, cancel := context.WithCancel(b.Context())
		leader := loop.Go(func() error {
			return reconciler.Run(ctx, reconciler.Deps{
				Store: w.Store, Proposer: w, Clock: clock.Real{}, Rand: rand.NewChaCha8([32]byte{7}), Logger: slog.New(slog.DiscardHandler),
				Epoch: 1, Leases: nodes.NewLeases(clock.Real{}, 0, time.Hour), Secrets: rt.Secrets{},
			})
		})
		b.StartTimer()
		for i := range 10 {
			labels := map[string]string{"app": fmt.Sprint("web", i)}
			w.Put(&balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: labels["app"], Namespace: "default"}, Spec: &balsav1.DeploymentSpec{
				Replicas: proto.Int32(500), Selector: &balsav1.LabelSelector{MatchLabels: labels},
				Template: &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: labels}, Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "web", Image: "web:1"}}}},
			}})
		}
		for {
			changed := w.Store.Space("objects").Changed("pods/")
			bound := 0
			for i := range 1000 {
				for range w.View().ByIndex(object.IndexNode, fmt.Sprintf("n%04d", i)) {
					bound++
				}
			}
			if bound == 5000 {
				break
			}
			select {
			case <-changed:
			case <-time.After(time.Minute):
				b.Fatalf("%d pods are bound after a minute", bound)
			}
		}
		b.StopTimer()
		cancel()
		_ = leader.Wait()
		b.StartTimer()
	}
}
