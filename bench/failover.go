package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	failoverSettle   = time.Second // of writes before and after a kill
	failoverPatience = 60 * time.Second
)

// Failover times the way from a leader's death to the next acknowledged write.
type Failover struct {
	Ground *Ground
	Kills  int
}

// Name is "failover".
func (Failover) Name() string { return "failover" }

// Question is what is measured.
func (Failover) Question() string {
	return "A client that knows all three servers writes one ConfigMap after the other; the leader gets SIGKILL. How long from the signal to the first acknowledgement of a write that began after it? " +
		"No acknowledged write may be missing afterwards."
}

// Unit is milliseconds.
func (Failover) Unit() Unit { return milliseconds() }

// Targets are the promises.
func (Failover) Targets() []Target {
	return []Target{{Of: Median, Under: 700}, {Of: Maximum, Under: 1500}}
}

// Run kills one leader after the other; each comes back before the next dies.
func (m Failover) Run(ctx context.Context) (samples Samples, err error) {
	var asked, others, elected []float64
	err = m.Ground.cluster(ctx, clusterServers, 0, func(s *stage.Stage) error {
		for i := range m.Kills {
			k, err := m.kill(ctx, s, fmt.Sprintf("k%d", i))
			if err != nil {
				return fmt.Errorf("kill %d: %w", i+1, err)
			}
			samples.Values = append(samples.Values, k.outageMS)
			elected = append(elected, k.electedMS)
			if k.asked {
				asked = append(asked, k.outageMS)
			} else {
				others = append(others, k.outageMS)
			}
		}
		return nil
	})
	if len(elected) > 0 {
		samples.Notes = append(samples.Notes, fmt.Sprintf("of this, the median kill took %.0f ms until another server said that it leads, the longest %.0f ms",
			Median.Of(elected), Maximum.Of(elected)))
	}
	samples.Notes = append(samples.Notes, splitNote("the client's own server was the leader", asked)...)
	samples.Notes = append(samples.Notes, splitNote("the client's own server was a follower", others)...)
	return samples, err
}

func splitNote(when string, values []float64) []string {
	if len(values) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("when %s: median %.0f ms, max %.0f ms (%d kills)", when, Median.Of(values), Maximum.Of(values), len(values))}
}

// killed is one leader's death.
type killed struct {
	outageMS  float64
	electedMS float64 // until another server leads, as it says itself
	asked     bool    // the client wrote to the leader itself
}

func (m Failover) kill(ctx context.Context, s *stage.Stage, prefix string) (killed, error) {
	writes, err := s.StartWrites(m.Ground.Programs.Chaos, "default", prefix)
	if err != nil {
		return killed{}, err
	}
	if err := pause(ctx, failoverSettle); err != nil {
		return killed{}, err
	}
	leader, err := s.Leader(ctx)
	if err != nil {
		return killed{}, err
	}
	at := time.Now()
	if err := leader.Process.Kill(); err != nil {
		return killed{}, err
	}
	if err := m.otherLeader(ctx, s, leader); err != nil {
		return killed{}, err
	}
	if err := pause(ctx, failoverSettle); err != nil {
		return killed{}, err
	}
	report, err := writes.Stop()
	if err != nil {
		return killed{}, err
	}
	outage, err := outage(report.Spans, at)
	if err != nil {
		return killed{}, err
	}
	elected, err := leads(s.Servers, at)
	if err != nil {
		return killed{}, err
	}
	// A client begins with the first server it knows.
	return killed{outageMS: outage, electedMS: elected, asked: leader == s.Servers[0]}, m.mend(ctx, s, leader)
}

func (m Failover) otherLeader(ctx context.Context, s *stage.Stage, gone *stage.Member) error {
	return s.Until(ctx, failoverPatience, "another leader", func(ctx context.Context) error {
		leader, err := s.Leader(ctx)
		if err == nil && leader == gone {
			err = errors.New("the dead one is still named")
		}
		return err
	})
}

// mend starts the dead server again and waits until all three agree.
func (m Failover) mend(ctx context.Context, s *stage.Stage, dead *stage.Member) error {
	if err := dead.Restart(); err != nil {
		return err
	}
	return s.Until(ctx, failoverPatience, "three servers that agree", func(ctx context.Context) error {
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		return errors.Join(status.Whole(clusterServers), status.Agreed())
	})
}

// outage is the time, in milliseconds, from the kill to the first
// acknowledgement of a write that began after it.
func outage(spans []load.Span, killed time.Time) (float64, error) {
	at := killed.UnixMicro()
	for _, span := range spans {
		if span.BeganUS >= at {
			return float64(span.EndedUS-at) / 1000, nil
		}
	}
	return 0, fmt.Errorf("none of %d acknowledged writes began after the kill", len(spans))
}

// leads is the time, in milliseconds, from the kill to the first line in a
// server's log that says it leads.
func leads(servers []*stage.Member, killed time.Time) (float64, error) {
	var first time.Time
	for _, server := range servers {
		text, err := os.ReadFile(server.Process.LogPath)
		if err != nil {
			return 0, err
		}
		if at, found := leadsAfter(string(text), killed); found && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return 0, errors.New("no server's log says that it leads")
	}
	return float64(first.Sub(killed)) / float64(time.Millisecond), nil
}

// leadsAfter finds the line in a log of slog's text form.
func leadsAfter(log string, killed time.Time) (time.Time, bool) {
	for line := range strings.Lines(log) {
		if !strings.Contains(line, " msg=leading ") {
			continue
		}
		stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && at.After(killed) {
			return at, true
		}
	}
	return time.Time{}, false
}
