package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	// Follower has the first client talk to a follower instead of the leader.
	Follower bool
}

// Name is "puts-N", or "puts-N-follower".
func (m Puts) Name() string {
	if m.Follower {
		return fmt.Sprintf("puts-%d-follower", m.Clients)
	}
	return fmt.Sprintf("puts-%d", m.Clients)
}

// Question is what is measured.
func (m Puts) Question() string {
	return fmt.Sprintf("How many new ConfigMaps of %d bytes a second do three servers acknowledge to %s? "+
		"Every put is validated, committed by a majority of the disks and answered with the stored object; the servers and the load share this machine. A value is a round of %v.",
		putBytes, m.who(), m.Round)
}

func (m Puts) who() string {
	switch {
	case m.Clients > 1:
		return fmt.Sprintf("%d clients, each with a TLS connection, spread over the servers, who write one after the other", m.Clients)
	case m.Follower:
		return "one client of a follower, who writes one after the other"
	}
	return "one client of the leader, who writes one after the other"
}

// Unit is puts a second.
func (Puts) Unit() Unit { return perSecond() }

// Targets is none: the figure is told.
func (Puts) Targets() []Target { return nil }

// Run puts the load on a new cluster.
func (m Puts) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.cluster(ctx, clusterServers, 0, func(s *stage.Stage) error {
		first, err := m.first(ctx, s)
		if err != nil {
			return err
		}
		report := load.PutReport{}
		if err := m.Ground.load(ctx, s, &report, "puts", "--first", strconv.Itoa(first), "--clients", strconv.Itoa(m.Clients), "--bytes", strconv.Itoa(putBytes),
			"--rounds", strconv.Itoa(m.Rounds), "--round", m.Round.String()); err != nil {
			return err
		}
		samples, err = putSamples(report)
		return err
	})
	return samples, err
}

// first is the number of the server that the first client talks to.
func (m Puts) first(ctx context.Context, s *stage.Stage) (int, error) {
	leader, err := s.Leader(ctx)
	if err != nil {
		return 0, err
	}
	number := slices.Index(s.Servers, leader)
	if m.Follower {
		number++
	}
	return number % len(s.Servers), nil
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
