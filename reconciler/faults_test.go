package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

// faultyLog answers a part of the reconciler's proposals with an error. What
// then became of a command is, by chance: it was lost, it was applied, or it is
// applied when the next one comes.
type faultyLog struct {
	w      *rt.World
	rand   *rand.Rand
	held   *internalv1.Command
	faults int
}

var errNoAnswer = errors.New("no answer")

func (f *faultyLog) before(cmd *internalv1.Command) (apply bool, err error) {
	if f.held != nil {
		f.w.ApplyLocked(f.held)
		f.held = nil
	}
	if cmd.GetEpoch() == 0 || f.rand.IntN(4) > 0 {
		return true, nil
	}
	f.faults++
	switch f.rand.IntN(3) {
	case 0:
		return false, errNoAnswer
	case 1:
		return true, errNoAnswer
	default:
		f.held = cmd
		return false, errNoAnswer
	}
}

// monitor checks every revision of a Deployment's pods against its bounds.
type monitor struct {
	most, least int
	pods        map[string]*balsav1.Pod
	complete    bool
	violations  []string
}

func (m *monitor) see(batch store.Batch) {
	for _, ev := range batch.Events {
		if pod, ok := ev.KV.Object.(*balsav1.Pod); ok {
			m.pods[ev.KV.Key] = pod
		} else {
			delete(m.pods, ev.KV.Key)
		}
	}
	live, available := 0, 0
	for _, pod := range m.pods {
		if object.PodActive(pod) {
			live++
			if object.PodReady(pod) {
				available++
			}
		}
	}
	if live > m.most {
		m.violations = append(m.violations, fmt.Sprintf("revision %d: %d pods, at most %d may be", batch.Revision, live, m.most))
	}
	m.complete = m.complete || available == m.most-2
	if m.complete && available < m.least {
		m.violations = append(m.violations, fmt.Sprintf("revision %d: %d available, at least %d must be", batch.Revision, available, m.least))
	}
}

// TestUnknownOutcomesNeverBreakTheBounds updates a Deployment of eight pods (two
// more, two fewer allowed) again and again over a log that answers badly.
func TestUnknownOutcomesNeverBreakTheBounds(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inCluster(t, []string{"n1", "n2", "n3"}, func(c *cluster) {
				log := &faultyLog{w: c.World, rand: rand.New(rand.NewPCG(seed, 1))}
				user := rand.New(rand.NewPCG(seed, 2))
				m := &monitor{most: 10, least: 6, pods: map[string]*balsav1.Pod{}}
				c.SetBefore(log.before)
				ctx, cancel := context.WithCancel(c.t.Context())
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
				c.web(8, "web:0")
				for i := range 4 {
					time.Sleep(time.Duration(user.IntN(4000)) * time.Millisecond)
					c.tryEdit(fmt.Sprintf("web:%d", i+1))
				}
				c.within(10*time.Minute, "the last update", func() bool {
					st := rt.Get[*balsav1.Deployment](c.World, "deployments/default/web").GetStatus()
					return st.GetObservedGeneration() == 5 && st.GetUpdatedReplicas() == 8 && st.GetReplicas() == 8 && st.GetAvailableReplicas() == 8
				})
				synctest.Wait()
				cancel()
				_ = seen.Wait()
				if len(m.violations) > 0 || log.faults == 0 {
					t.Errorf("%d faults; violations %v", log.faults, m.violations)
				}
				c.SetBefore(nil)
			})
		})
	}
}

// tryEdit is a user who edits the image against all conflicts.
func (c *cluster) tryEdit(image string) {
	c.t.Helper()
	rt.Edit(c.World, "deployments/default/web", func(d *balsav1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
}
