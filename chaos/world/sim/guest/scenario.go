package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim/history"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/store"
)

const (
	servers     = 3
	setUpLimit  = time.Minute
	markEvery   = 5 * time.Second
	restLimit   = time.Minute
	watchBuffer = 1024

	// What a run has to do to count.
	minCommits   = 60
	minReads     = 20
	minFailovers = 1
)

// scenario is one run.
type scenario struct {
	options
	world    *inside.World
	trace    *inside.Trace
	history  *history.Recorder
	began    time.Duration // when the clients did
	injected int
}

func newScenario(trace *inside.Trace, o options) (*scenario, error) {
	if o.plant != "" && !slices.Contains(plants(), o.plant) {
		return nil, fmt.Errorf("no lie %q; there are %v", o.plant, plants())
	}
	world, err := inside.New(o.seed, servers, trace)
	if err != nil {
		return nil, err
	}
	return &scenario{options: o, world: world, trace: trace, history: &history.Recorder{}}, nil
}

// setUp makes a cluster.
func (s *scenario) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setUpLimit)
	defer cancel()
	return s.world.Form(ctx)
}

// trouble lets clients work while faults are done, and heals them all.
func (s *scenario) trouble(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	s.began = s.trace.Now()
	var clients sync.WaitGroup
	for i := range s.clients {
		c, err := newWorker(s, i)
		if err != nil {
			s.world.Wrongf("client %d: %v", i, err)
			continue
		}
		clients.Go(func() { c.work(ctx) })
	}
	go s.mark(ctx)
	var schedule inside.Schedule
	if !s.calm {
		schedule = inside.Generate(s.world.Chance("schedule"), s.length)
	}
	s.carryOut(ctx, schedule)
	s.trace.Sayf("", "all is healed")
	if err := s.recovered(ctx); err != nil {
		s.world.Wrongf("after everything was healed: %v", err)
	}
	stop()
	clients.Wait()
}

func (s *scenario) mark(ctx context.Context) {
	for inside.Sleep(ctx, markEvery) {
		s.trace.Mark()
	}
}

// carryOut returns when the schedule is over and everything is healed.
func (s *scenario) carryOut(ctx context.Context, schedule inside.Schedule) {
	chance := s.world.Chance("targets")
	start := s.trace.Now()
	var healed sync.WaitGroup
	for _, step := range schedule {
		inside.Sleep(ctx, step.At-(s.trace.Now()-start))
		heal := s.world.Inject(step.Fault, chance) //nolint:contextcheck // what is undone later outlives the schedule
		if heal == nil {
			continue
		}
		s.injected++
		healed.Go(func() {
			inside.Sleep(ctx, step.For)
			heal()
		})
	}
	inside.Sleep(ctx, s.length-(s.trace.Now()-start))
	healed.Wait()
}

// recovered asks for a write through each server.
func (s *scenario) recovered(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restLimit)
	defer cancel()
	for i, address := range s.world.Addresses() {
		w, err := newWorkerAt(s, fmt.Sprintf("r%d", i+1), []string{address})
		if err != nil {
			return err
		}
		for w.create(ctx) != history.OK {
			if !inside.Sleep(ctx, 100*time.Millisecond) {
				return fmt.Errorf("no write goes through %s", address)
			}
		}
	}
	return nil
}

// rest waits until all members have the same, and returns it.
func (s *scenario) rest(ctx context.Context) ([]history.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, restLimit)
	defer cancel()
	var members []history.Member
	err := inside.Await(ctx, func() (bool, string) {
		members = nil
		said := make([]string, 0, servers)
		for _, server := range s.world.Servers() {
			if server.Core() == nil {
				return false, server.Name + " is off"
			}
			if phase := server.Core().Cluster().Phase(); phase != cluster.PhaseRunning {
				return false, fmt.Sprintf("%s is %s", server.Name, phase)
			}
			revision, hash := server.Core().Store().Hash(store.SpaceObjects)
			members = append(members, history.Member{Name: server.Name, Revision: int64(revision), Hash: hash})
			said = append(said, fmt.Sprintf("%s revision %d hash %016x", server.Name, revision, hash))
		}
		same := !slices.ContainsFunc(members, func(m history.Member) bool { return m.Revision != members[0].Revision })
		return same && s.world.Leader() != nil, strings.Join(said, ", ")
	})
	if err != nil {
		return nil, err
	}
	for i, server := range s.world.Servers() {
		if members[i].Changes, err = changes(ctx, server); err != nil {
			return nil, err
		}
	}
	return members, nil
}

// changes reads a member's history of the keys that the clients used.
func changes(ctx context.Context, server *inside.Server) ([]history.Change, error) {
	space := server.Core().Store().Space(store.SpaceObjects)
	var last store.Revision
	for kv := range space.View().Prefix(keyPrefix) {
		last = max(last, kv.ModRevision)
	}
	watch, err := space.Watch(ctx, store.WatchOptions{Prefix: keyPrefix, From: 1, Buffer: watchBuffer})
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", server.Name, err)
	}
	defer watch.Stop()
	var out []history.Change
	for batch := range watch.Events() {
		for _, event := range batch.Events {
			out = append(out, changeOf(event))
		}
		if batch.Revision >= last {
			return out, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("history of %s ended before revision %d", server.Name, last), watch.Err())
}

// judge prints the verdict.
func (s *scenario) judge(members []history.Member) (code int) {
	ops := s.history.Ops()
	count := history.Count(ops)
	failovers := 0
	for _, e := range s.world.Elections() {
		if e.At > s.began {
			failovers++
		}
	}
	s.trace.Sayf("", "%+v, %d faults, %d failovers", count, s.injected, failovers)
	s.coverage()
	for _, m := range members {
		s.trace.Sayf(m.Name, "ends at revision %d, hash %016x, %d changes", m.Revision, m.Hash, len(m.Changes))
	}
	if members != nil {
		for _, finding := range history.Check(ops, members) {
			s.world.Wrongf("%s", finding)
		}
	}
	switch {
	case len(s.world.Wrongs()) > 0:
		return exitBroken
	case count.Commits < minCommits || count.Reads < minReads || failovers < minFailovers && !s.calm:
		s.trace.Sayf("", "too little was done: %d commits, %d reads and %d failovers are needed", minCommits, minReads, minFailovers)
		return exitTooLittle
	}
	s.trace.Sayf("", "nothing is wrong")
	return 0
}

// coverage tells which of the states that are worth a visit the run has seen, by
// what the servers log there.
func (s *scenario) coverage() {
	for _, message := range []string{
		"election won", "failed to contact quorum of nodes, stepping down", "rejecting pre-vote request since we have a leader",
		"clearing log suffix", "snapshot complete up to", "Installed remote snapshot",
	} {
		s.trace.Sayf("", "seen %d times: %s", s.trace.Seen(message), message)
	}
}
