package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
)

const putBytes = 256

// Puts counts writes through the API.
type Puts struct {
	Ground  *Ground
	Clients int
	Rounds  int
	Round   time.Duration
}

// Name is "puts-N".
func (m Puts) Name() string { return fmt.Sprintf("puts-%d", m.Clients) }

// Question is what is measured.
func (m Puts) Question() string {
	return fmt.Sprintf("How many new ConfigMaps of %d bytes a second do three servers acknowledge to %s, spread over the servers, who write one after the other? "+
		"Every put is validated, committed by a majority of the disks and answered with the stored object; the servers and the load share this machine. A value is a round of %v.",
		putBytes, clients(m.Clients), m.Round)
}

func clients(count int) string {
	if count == 1 {
		return "one client"
	}
	return fmt.Sprintf("%d clients, a TLS connection each", count)
}

// Unit is puts a second.
func (Puts) Unit() Unit { return perSecond() }

// Targets is none: the figure is told.
func (Puts) Targets() []Target { return nil }

// Run puts the load on a new cluster.
func (m Puts) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.cluster(ctx, clusterServers, 0, func(s *stage.Stage) error {
		report := load.PutReport{}
		if err := m.Ground.load(ctx, s, &report, "puts", "--clients", strconv.Itoa(m.Clients), "--bytes", strconv.Itoa(putBytes),
			"--rounds", strconv.Itoa(m.Rounds), "--round", m.Round.String()); err != nil {
			return err
		}
		samples, err = putSamples(report)
		return err
	})
	return samples, err
}

func putSamples(report load.PutReport) (Samples, error) {
	samples, p50, p99, failed := Samples{}, []float64{}, []float64{}, 0
	var failures []string
	for _, round := range report.Rounds {
		samples.Values = append(samples.Values, float64(round.Acknowledged)/round.Seconds)
		p50, p99 = append(p50, round.P50MS), append(p99, round.P99MS)
		failed += round.Failed
		failures = append(failures, round.Errors...)
	}
	if len(report.Rounds) == 0 {
		return samples, errors.New("the load reports no round")
	}
	samples.Notes = append(samples.Notes, fmt.Sprintf("one put took %.1f ms (p50) and %.1f ms (p99) in the median round", Median.Of(p50), Median.Of(p99)))
	if failed > 0 {
		samples.Notes = append(samples.Notes, fmt.Sprintf("%d puts failed, the first with: %s", failed, failures[0]))
	}
	return samples, nil
}
