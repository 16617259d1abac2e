package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/mutate"
	"github.com/balsa-run/balsa/store"
)

const (
	setUpLimit  = time.Minute
	markEvery   = 5 * time.Second
	restLimit   = time.Minute
	watchBuffer = 1024
)

// scenario is one run.
type scenario struct {
	checked
	world *inside.World
	trace *inside.Trace
	// objects is what clients of the API were told, etcd what those of the etcd
	// space were: each space has revisions of its own.
	objects, etcd *history.Recorder
	judges        *judges
	began         time.Duration // when the clients did
	numbers       atomic.Int64  // that are unique in the run
	delivered     atomic.Int64  // batches of watches

	mu     sync.Mutex
	counts map[string]verdict.Count // guarded by mu; by workload
	faults map[string]int           // guarded by mu; by kind
}

func newScenario(trace *inside.Trace, c checked) (*scenario, error) {
	world, err := inside.New(c.seed, c.servers, trace)
	if err != nil {
		return nil, err
	}
	s := &scenario{checked: c, world: world, trace: trace, counts: map[string]verdict.Count{}, faults: map[string]int{}, judges: newJudges()}
	s.objects = history.NewRecorder(trace.Now, s.judges.object)
	s.etcd = history.NewRecorder(trace.Now, s.judges.key)
	return s, nil
}

// setUp makes a cluster, and plants what is to be found in it.
func (s *scenario) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setUpLimit)
	defer cancel()
	if err := s.world.Form(ctx); err != nil {
		return err
	}
	if len(s.bugs) == 0 {
		return nil
	}
	s.trace.Sayf("", "planted: %v", s.bugs)
	return mutate.Arm(s.bugs)
}

// trouble lets clients work while faults are done, and heals them all.
func (s *scenario) trouble(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	s.began = s.trace.Now()
	var clients sync.WaitGroup
	for _, w := range s.chosen {
		for i := range w.sessions(s.clients) {
			s.start(ctx, &clients, w, i)
		}
	}
	go s.mark(ctx)
	if s.schedule == nil && !s.calm {
		s.schedule = inside.Generate(s.world.Chance("schedule"), s.length)
	}
	s.carryOut(ctx, s.schedule)
	s.trace.Sayf("", "all is healed")
	if err := s.recovered(ctx); err != nil {
		s.world.Wrongf("after everything was healed: %v", err)
	}
	stop()
	clients.Wait()
}

func (s *scenario) start(ctx context.Context, clients *sync.WaitGroup, w workload, i int) {
	if w.work != nil {
		c := s.session(w.name, i)
		clients.Go(func() { w.work(ctx, c) })
		return
	}
	c, err := newWorker(s, i)
	if err != nil {
		s.world.Wrongf("client %d: %v", i, err)
		return
	}
	clients.Go(func() { c.work(ctx) })
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
		if len(s.world.Wrongs()) > 0 {
			s.trace.Sayf("", "something is wrong already: no more faults")
			break
		}
		heal := s.world.Inject(step.Fault, chance) //nolint:contextcheck // what is undone later outlives the schedule
		if heal == nil {
			continue
		}
		over := s.etcd.Fault(step.Fault.String())
		s.mu.Lock()
		s.faults[string(step.Kind)]++
		s.mu.Unlock()
		healed.Go(func() {
			inside.Sleep(ctx, step.For)
			heal()
			over()
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

// atRest is what the members hold in the end.
type atRest struct{ objects, etcd []check.Member }

// rest waits until all members have the same, and returns it.
func (s *scenario) rest(ctx context.Context) (*atRest, error) {
	ctx, cancel := context.WithTimeout(ctx, restLimit)
	defer cancel()
	members := &atRest{}
	err := inside.Await(ctx, func() (bool, string) {
		*members = atRest{}
		said := make([]string, 0, s.servers)
		for _, server := range s.world.Servers() {
			if server.Core() == nil {
				return false, server.Name + " is off"
			}
			if phase := server.Core().Cluster().Phase(); phase != cluster.PhaseRunning {
				return false, fmt.Sprintf("%s is %s", server.Name, phase)
			}
			o, e := memberOf(server, store.SpaceObjects), memberOf(server, store.SpaceEtcd)
			members.objects, members.etcd = append(members.objects, o), append(members.etcd, e)
			said = append(said, fmt.Sprintf("%s revisions %d, %d hashes %016x, %016x", server.Name, o.Revision, e.Revision, o.Hash, e.Hash))
		}
		return level(members.objects) && level(members.etcd) && s.world.Leader() != nil, strings.Join(said, ", ")
	})
	if err != nil {
		return nil, err
	}
	for i, server := range s.world.Servers() {
		err = errors.Join(err,
			changes(ctx, server, store.SpaceObjects, &members.objects[i], objectOf),
			changes(ctx, server, store.SpaceEtcd, &members.etcd[i], func(e store.Event) (history.KV, bool) { return eventOf(e), true }))
	}
	return members, err
}

func memberOf(server *inside.Server, space string) check.Member {
	revision, hash := server.Core().Store().Hash(space)
	return check.Member{Name: server.Name, Revision: int64(revision), Hash: hash}
}

func level(members []check.Member) bool {
	return !slices.ContainsFunc(members, func(m check.Member) bool { return m.Revision != members[0].Revision })
}

// changes reads a member's history of a space, as far back as it goes.
func changes(ctx context.Context, server *inside.Server, name string, m *check.Member, of func(store.Event) (history.KV, bool)) error {
	space := server.Core().Store().Space(name)
	m.First = int64(max(space.View().CompactRevision(), 1))
	watch, err := space.Watch(ctx, store.WatchOptions{From: store.Revision(m.First), Buffer: watchBuffer})
	if err != nil {
		return fmt.Errorf("history of %s: %w", server.Name, err)
	}
	defer watch.Stop()
	if m.Revision < m.First || m.Revision == 1 {
		return nil
	}
	for batch := range watch.Events() {
		for _, event := range batch.Events {
			if kv, ours := of(event); ours {
				m.Changes = append(m.Changes, kv)
			}
		}
		if int64(batch.Revision) >= m.Revision {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("history of %s ended before revision %d", server.Name, m.Revision), watch.Err())
}
