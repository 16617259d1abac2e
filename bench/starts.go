package bench

import (
	"context"
	"fmt"
	"strconv"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	togetherPods = 20
	burstPods    = 60
)

// podStarts starts pods through the whole system: one at a time, some at once,
// and as many as it takes to see how many a second one node starts.
func (g *PodGround) podStarts(ones, togethers, bursts int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.cluster(ctx, clusterServers, 1, func(s *stage.Stage) error {
			if _, err := s.Balsa(ctx, "image", "import", g.Programs.Echo); err != nil {
				return err
			}
			for _, batch := range []struct {
				name        string
				count, size int
			}{{"pod-start-1", ones, 1}, {"pod-start-20", togethers, togetherPods}, {"pod-starts-per-second", bursts, burstPods}} {
				if err := g.batches(ctx, s, t, batch.name, batch.count, batch.size); err != nil {
					return fmt.Errorf("%s: %w", batch.name, err)
				}
			}
			return nil
		})
	})
	soon := []Target{{Of: Median, Under: 80}, {Of: Median, Under: 50, Aim: true}}
	return []Measure{
		part{t, "pod-start-1", "On three servers and a node that has the image: how long from sending Create of a pod until a watch shows it Running? Scheduler, agent, sandbox, network, container and report are all in it. One pod after the other, each once the one before is gone.", milliseconds(), soon},
		part{t, "pod-start-20", fmt.Sprintf("The same for each of %d pods whose Creates are sent at once, to one node: how long until it is Running? A value is one pod.", togetherPods), milliseconds(), soon},
		part{t, "pod-starts-per-second", fmt.Sprintf("%d pods are created at once for one node: how many a second become Running, from the first Create until the last one is seen Running? A value is a round.", burstPods), starts(), nil},
	}
}

func (g *PodGround) batches(ctx context.Context, s *stage.Stage, t *takings, name string, count, size int) error {
	h, report := s.Agents[0].Host, load.BatchReport{}
	err := g.play(ctx, s.Operator, &report, g.Client, "-config", s.Admin(), "-image", echoImage, "-node", h.Name,
		"-count", strconv.Itoa(count), "-size", strconv.Itoa(size), "pods")
	if err != nil {
		return err
	}
	var acknowledged, bound, all []float64
	for _, batch := range report.Batches {
		if size == burstPods {
			t.add(name, float64(size)*1000/batch.AllMS)
		}
		for _, pod := range batch.Pods {
			if size != burstPods {
				t.add(name, pod.RunningMS)
			}
			acknowledged, bound = append(acknowledged, pod.AcknowledgedMS), append(bound, pod.BoundMS)
		}
		all = append(all, batch.AllMS)
	}
	t.note(name, "the median pod was acknowledged after %.1f ms and was seen bound to a node after %.1f ms", Median.Of(acknowledged), Median.Of(bound))
	if size > 1 {
		t.note(name, "the median round took %.0f ms until the last of its %d pods was Running: %.1f starts a second", Median.Of(all), size, float64(size)*1000/Median.Of(all))
	}
	return nil
}
