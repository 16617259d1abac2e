package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

// TestServerRemovedWhileItRuns has the agents on one server, cuts it off from the
// others and removes it. The agents must not stay with what it remembers, and it
// must notice and end as soon as anybody can tell it.
func TestServerRemovedWhileItRuns(t *testing.T) {
	s, _ := withApp(t, "fx", 3, 2)
	leader := otherLeader(t, s)
	victim := s.Servers[1]
	if victim == leader {
		victim = s.Servers[2]
	}
	agents := []*host.Host{s.Agents[0].Host, s.Agents[1].Host}
	must(t, s.Lab.Partition(agents, othersThan(s, victim)))
	scale(t, s, 4) // it takes the agents' streams of the one that they reach
	must(t, s.Lab.Heal())
	must(t, s.Lab.Partition([]*host.Host{victim.Host}, othersThan(s, victim)))
	scale(t, s, 5)
	remove(t, s, victim)
	removed := time.Now()
	for _, agent := range s.Agents {
		must(t, s.Until(t.Context(), converge, "agent "+agent.Host.Name+" to refuse the removed server", func(context.Context) error {
			list, err := os.ReadFile(filepath.Join(agent.Host.Dir, "data", "agent", "removed.json"))
			if err == nil && !strings.Contains(string(list), `"`+victim.Host.Name+`"`) {
				err = errors.New(string(list))
			}
			return err
		}))
	}
	if took := time.Since(removed); took > 5*time.Second {
		t.Errorf("the agents refuse the removed server after %v", took)
	}
	if !victim.Process.Running() {
		t.Errorf("nobody could have told it, but it ended:\n%s", victim.Process.Tail(5))
	}
	must(t, s.Lab.Heal())
	ends(t, victim, "was removed from the cluster")
	must(t, victim.Restart())
	ends(t, victim, "was removed from the cluster")
	scale(t, s, 3)
}

// TestServerRemovedInContact is told by the leader, and its disk is marked.
func TestServerRemovedInContact(t *testing.T) {
	s, _ := up(t, "fy", 3, 0)
	leader := otherLeader(t, s)
	victim := s.Servers[1]
	if victim == leader {
		victim = s.Servers[2]
	}
	remove(t, s, victim)
	ends(t, victim, "was removed from the cluster")
	whole(t, s, 2)
	must(t, s.Rejoin(t.Context(), victim))
	ends(t, victim, "this disk must not take part again")
}

func scale(t *testing.T, s *stage.Stage, replicas int) {
	t.Helper()
	if _, err := s.Balsa(t.Context(), "scale", "deployment/hello", "-n", namespace, "--replicas", fmt.Sprint(replicas)); err != nil {
		t.Fatal(err)
	}
	_, err := s.WaitReady(t.Context(), namespace, replicas, converge)
	must(t, err)
}

// remove takes a server out of the group by its name.
func remove(t *testing.T, s *stage.Stage, victim *stage.Member) {
	t.Helper()
	must(t, s.Until(t.Context(), converge, "the member to be removed", func(ctx context.Context) error {
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		for _, member := range status.Members {
			if strings.HasPrefix(member.ID, victim.Host.Name+"-") {
				_, err := s.Balsa(ctx, "cluster", "remove", member.ID)
				return errors.Join(err, errStillThere)
			}
		}
		return nil
	}))
}

var errStillThere = errors.New("it is a member still")

// ends waits until a server ends by itself, and says why.
func ends(t *testing.T, m *stage.Member, why string) {
	t.Helper()
	select {
	case <-m.Process.Done():
	case <-time.After(converge):
		t.Fatalf("%s still runs:\n%s", m.Host.Name, m.Process.Tail(20))
	}
	if said := m.Process.Tail(3); !strings.Contains(said, why) {
		t.Errorf("%s ends without saying %q:\n%s", m.Host.Name, why, said)
	}
}
