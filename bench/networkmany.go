package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
)

// manySizes say how much is done with many services.
type manySizes struct{ services, flips, readings, deletions int }

// created is what the client reports of the services that it made.
type created struct {
	CreatedMS   float64 `json:"createdMS"`
	EndpointsMS float64 `json:"endpointsMS"`
}

// many measures a cluster with many services: its agents' memory, a change's way,
// and what becomes of rules that somebody deletes.
func (g *NetworkGround) many(sizes manySizes) []Measure {
	name := func(what string) string { return fmt.Sprintf("%s-%d", what, sizes.services) }
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.wayCluster(ctx, func(s *stage.Stage, _ string) error {
			if err := g.fill(ctx, s, t, name("agent-rss"), sizes.services); err != nil {
				return err
			}
			marker, err := g.mark(ctx, s, "marker")
			if err != nil {
				return err
			}
			if err := g.memory(ctx, s, t, name("agent-rss"), sizes.readings); err != nil {
				return err
			}
			if err := g.flips(ctx, s, t, name("api-to-packet"), sizes.flips); err != nil {
				return err
			}
			if err := g.deletions(ctx, s, t, name("scrub"), marker, sizes.deletions); err != nil {
				return err
			}
			if err := g.restart(ctx, s); err != nil {
				return err
			}
			return g.memory(ctx, s, t, name("agent-rss-restarted"), sizes.readings)
		})
	})
	where := fmt.Sprintf("three servers and two nodes with %d services of %d endpoints", sizes.services, endpointsEach)
	return []Measure{
		part{t, name("agent-rss"), fmt.Sprintf("On %s: how much resident memory (RSS) has each agent, %v after both had the last service? All services select the same three pods, so each has an EndpointSlice of three endpoints. A value is one reading of one agent.", where, idleFor), megabytes(), nil},
		part{t, name("agent-rss-restarted"), "The same, after the agents were stopped and started again, so that they learned all services at once.", megabytes(), nil},
		part{t, name("api-to-packet"), flipQuestion(where), milliseconds(), nil},
		part{t, name("scrub"), "On " + where + ": somebody runs `nft delete table ip balsa` on a node; how long lie between the last datagram to a service before that was answered and the first one after? They are sent every 2 ms, each from a new socket.", milliseconds(), nil},
	}
}

// fill makes the services.
func (g *NetworkGround) fill(ctx context.Context, s *stage.Stage, t *takings, measure string, services int) error {
	var report created
	err := g.ask(ctx, s.Operator, &report, "-config", s.Admin(), "-services", strconv.Itoa(services), "-endpoints", strconv.Itoa(endpointsEach), "create")
	if err != nil {
		return err
	}
	t.note(measure, "32 clients made the services in %.1f s; %.1f s after the first was sent, each had its EndpointSlice", report.CreatedMS/1000, report.EndpointsMS/1000)
	return nil
}

// mark makes one more service and returns its address when both agents have it,
// and so all that were made before.
func (g *NetworkGround) mark(ctx context.Context, s *stage.Stage, name string) (string, error) {
	var marker struct {
		Address string `json:"address"`
	}
	if err := g.ask(ctx, s.Operator, &marker, "-config", s.Admin(), "-service", name, "mark"); err != nil {
		return "", err
	}
	for _, agent := range s.Agents {
		if err := g.ask(ctx, agent.Host, &struct{}{}, "-address", marker.Address, "await"); err != nil {
			return "", fmt.Errorf("agent %s has not all services: %w", agent.Host.Name, err)
		}
	}
	return marker.Address, nil
}

func (g *NetworkGround) memory(ctx context.Context, s *stage.Stage, t *takings, name string, readings int) error {
	memory, err := readIdle(ctx, s.Agents, readings)
	t.add(name, memory.Values...)
	for _, note := range memory.Notes {
		t.note(name, "%s", note)
	}
	return err
}

// agentStop is what an agent has to end; its pods go on.
const agentStop = 20 * time.Second

// restart returns when the agents, started again, have all services.
func (g *NetworkGround) restart(ctx context.Context, s *stage.Stage) error {
	for _, agent := range s.Agents {
		if err := errors.Join(agent.Process.Stop(agentStop), agent.Restart()); err != nil {
			return err
		}
	}
	_, err := g.mark(ctx, s, "marker2")
	return err
}

// repaired is what an agent says of rules that it found changed.
const repaired = "the kernel's service rules had changed"

// deletions has the table of the first node deleted.
func (g *NetworkGround) deletions(ctx context.Context, s *stage.Stage, t *takings, name, marker string, count int) error {
	var report struct {
		OutageMS   []float64 `json:"outageMS"`
		Unanswered []int     `json:"unanswered"`
	}
	agent := s.Agents[0]
	before, err := repairs(agent.Process.LogPath)
	if err != nil {
		return err
	}
	if err := g.ask(ctx, agent.Host, &report, "-address", marker, "-count", strconv.Itoa(count), "deletions"); err != nil {
		return err
	}
	after, err := repairs(agent.Process.LogPath)
	if err != nil {
		return err
	}
	if len(after)-len(before) < count {
		return fmt.Errorf("%d tables were deleted, and the agent told of %d: it says %v", count, len(after)-len(before), after)
	}
	t.add(name, report.OutageMS...)
	missed := 0
	for _, n := range report.Unanswered {
		missed += n
	}
	t.note(name, "%d datagrams of all were not answered", missed)
	t.note(name, "the agent's log says: `%s`", after[len(after)-1])
	return nil
}

// repairs are what an agent's log says of rules that it found changed.
func repairs(path string) (lines []string, err error) {
	log, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(log) == 0 {
		return nil, errors.New(path + " is empty")
	}
	for line := range strings.Lines(string(log)) {
		if at := strings.Index(line, repaired); at >= 0 {
			lines = append(lines, strings.TrimSpace(line[at:]))
		}
	}
	return lines, nil
}
