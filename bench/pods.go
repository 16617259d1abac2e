package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
)

// The cluster of every measure that does not say otherwise.
const (
	clusterServers = 3
	clusterAgents  = 2
)

// PodStart times a pod's way from its creation to Running.
type PodStart struct {
	Ground *Ground
	Count  int
}

// Name is "pod-start".
func (PodStart) Name() string { return "pod-start" }

// Question is what is measured.
func (PodStart) Question() string {
	return "On three servers and two nodes that have the image: how long from sending Create of a pod until a watch shows it Running? One pod after the other, each once the one before is gone."
}

// Unit is milliseconds.
func (PodStart) Unit() Unit { return milliseconds() }

// Targets is the promise.
func (PodStart) Targets() []Target { return []Target{{Of: Median, Under: 150}} }

// Run starts the pods.
func (m PodStart) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.cluster(ctx, clusterServers, clusterAgents, func(s *stage.Stage) error {
		if _, err := s.Balsa(ctx, "image", "import", m.Ground.Programs.Echo); err != nil {
			return err
		}
		var nodes []string
		for _, agent := range s.Agents {
			nodes = append(nodes, agent.Host.Name)
		}
		report := load.PodReport{}
		if err := m.Ground.load(ctx, s, &report, "pods", "--count", strconv.Itoa(m.Count), "--nodes", strings.Join(nodes, ",")); err != nil {
			return err
		}
		samples = podSamples(report)
		return nil
	})
	return samples, err
}

func podSamples(report load.PodReport) Samples {
	samples, acknowledged, bound, placed := Samples{}, []float64{}, []float64{}, map[string]int{}
	for _, pod := range report.Pods {
		samples.Values = append(samples.Values, pod.RunningMS)
		acknowledged, bound = append(acknowledged, pod.AcknowledgedMS), append(bound, pod.BoundMS)
		placed[pod.Node]++
	}
	if len(report.Pods) > 0 {
		samples.Notes = append(samples.Notes,
			fmt.Sprintf("of this, the median pod was acknowledged after %.1f ms and was seen bound to a node after %.1f ms", Median.Of(acknowledged), Median.Of(bound)),
			fmt.Sprintf("p99 %.0f ms; %d nodes ran them", P99.Of(samples.Values), len(placed)))
	}
	return samples
}
