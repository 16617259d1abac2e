// Package faults plays faults on clusters of real processes: servers and agents
// are killed, cut off and wiped while writes and requests go on. Nothing
// acknowledged may be lost, and everything must come right again.
//
//balsa:real-processes
package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	buildTimeout = 10 * time.Minute
	converge     = 120 * time.Second
	settle       = 1500 * time.Millisecond
)

// up puts a cluster on the stage and takes it down with the test.
func up(t *testing.T, prefix string, servers, agents int) (*stage.Stage, stage.Programs) {
	t.Helper()
	building, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	programs, err := stage.Build(building, "../..")
	if err != nil {
		t.Fatal(err)
	}
	s, err := stage.Up(t.Context(), stage.Options{
		Prefix: prefix, Dir: t.TempDir(), Binary: programs.Balsa, Servers: servers, Agents: agents,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Logs(25))
		}
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	return s, programs
}

// pause lets a load run for a while.
func pause(t *testing.T, length time.Duration) {
	t.Helper()
	select {
	case <-time.After(length):
	case <-t.Context().Done():
		t.Fatal(context.Cause(t.Context()))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startWrites begins a load of writes and returns what ends and judges it.
func startWrites(t *testing.T, s *stage.Stage, programs stage.Programs, prefix string) (stop func()) {
	t.Helper()
	writes, err := s.StartWrites(programs.Chaos, "default", prefix)
	must(t, err)
	pause(t, settle)
	return func() {
		t.Helper()
		report, err := writes.Stop()
		must(t, err)
		t.Logf("%s: %d acknowledged, %d unknown, longest gap %d ms", prefix, report.Acknowledged, report.Unknown, report.LongestGapMS)
	}
}

// otherLeader waits until a server leads that is none of those that are gone.
func otherLeader(t *testing.T, s *stage.Stage, gone ...*stage.Member) *stage.Member {
	t.Helper()
	var leader *stage.Member
	must(t, s.Until(t.Context(), converge, "another leader", func(ctx context.Context) error {
		var err error
		if leader, err = s.Leader(ctx); err != nil {
			return err
		}
		for _, member := range gone {
			if member == leader {
				return fmt.Errorf("%s is still named", leader.Host.Name)
			}
		}
		return nil
	}))
	return leader
}

// whole waits until all servers vote and answer.
func whole(t *testing.T, s *stage.Stage, servers int) {
	t.Helper()
	until(t, s, fmt.Sprintf("%d servers to vote", servers), func(status *stage.Status) error { return status.Whole(servers) })
}

// converged waits, with no load on the cluster, until all servers also have the
// same state.
func converged(t *testing.T, s *stage.Stage, servers int) {
	t.Helper()
	until(t, s, fmt.Sprintf("%d servers to agree", servers), func(status *stage.Status) error {
		return errors.Join(status.Whole(servers), status.Agreed())
	})
}

func until(t *testing.T, s *stage.Stage, what string, holds func(*stage.Status) error) {
	t.Helper()
	started := time.Now()
	must(t, s.Until(t.Context(), converge, what, func(ctx context.Context) error {
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		return holds(status)
	}))
	t.Logf("waited %v for %s", time.Since(started).Round(time.Millisecond), what)
}

// othersThan are the hosts of all servers but one.
func othersThan(s *stage.Stage, one *stage.Member) []*host.Host {
	var others []*host.Host
	for _, server := range s.Servers {
		if server != one {
			others = append(others, server.Host)
		}
	}
	return others
}

func TestLeaderKilled(t *testing.T) {
	s, programs := up(t, "fk", 3, 0)
	stop := startWrites(t, s, programs, "leader")
	leader := otherLeader(t, s)
	must(t, leader.Process.Kill())
	otherLeader(t, s, leader)
	pause(t, settle)
	stop()
	must(t, leader.Restart())
	converged(t, s, 3)
}

func TestFollowerKilled(t *testing.T) {
	s, programs := up(t, "ff", 3, 0)
	stop := startWrites(t, s, programs, "follower")
	leader := otherLeader(t, s)
	for _, server := range s.Servers {
		if server == leader {
			continue
		}
		must(t, server.Process.Kill())
		pause(t, settle)
		must(t, server.Restart())
		whole(t, s, 3)
	}
	stop()
	converged(t, s, 3)
}

func TestLeaderCutOff(t *testing.T) {
	s, programs := up(t, "fp", 3, 0)
	stop := startWrites(t, s, programs, "cut")
	leader := otherLeader(t, s)
	must(t, s.Lab.Partition([]*host.Host{leader.Host}, append(othersThan(s, leader), s.Operator)))
	otherLeader(t, s, leader)
	pause(t, settle)
	must(t, s.Lab.Heal())
	whole(t, s, 3)
	stop()
	converged(t, s, 3)
}

// TestLeaderCutOffFromPeersOnly leaves clients on the side of the old leader: it
// must neither acknowledge nor answer from its memory.
func TestLeaderCutOffFromPeersOnly(t *testing.T) {
	s, programs := up(t, "fo", 3, 0)
	stop := startWrites(t, s, programs, "peers")
	leader := otherLeader(t, s)
	must(t, s.Lab.Partition([]*host.Host{leader.Host}, othersThan(s, leader)))
	otherLeader(t, s, leader)
	pause(t, settle)
	must(t, s.Lab.Heal())
	whole(t, s, 3)
	stop()
	converged(t, s, 3)
}

// TestDiskWiped loses a server's disk. Under its old id it is refused for good;
// it comes back under a new one.
func TestDiskWiped(t *testing.T) {
	s, programs := up(t, "fw", 3, 0)
	stop := startWrites(t, s, programs, "wiped")
	leader := otherLeader(t, s)
	victim := s.Servers[1]
	if victim == leader {
		victim = s.Servers[2]
	}
	must(t, victim.Process.Kill())
	must(t, os.RemoveAll(filepath.Join(victim.Host.Dir, "data")))
	_, err := s.Balsa(t.Context(), "user", "remove", victim.Host.Name, "--role", "server")
	must(t, err)
	must(t, s.Rejoin(t.Context(), victim))
	whole(t, s, 3)
	stop()
	converged(t, s, 3)
}

// TestServerStoppedForAWhile stops a server as an operator does, for longer than
// gossip takes to notice: it is a member still, and comes back as one.
func TestServerStoppedForAWhile(t *testing.T) {
	s, programs := up(t, "ft", 3, 0)
	stop := startWrites(t, s, programs, "stopped")
	leader := otherLeader(t, s)
	must(t, leader.Process.Stop(converge))
	otherLeader(t, s, leader)
	pause(t, 10*time.Second)
	must(t, leader.Restart())
	whole(t, s, 3)
	stop()
	converged(t, s, 3)
}
