package reconciler

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/reconciler/addresses"
	"github.com/balsa-run/balsa/reconciler/compaction"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/disruption"
	"github.com/balsa-run/balsa/reconciler/draining"
	"github.com/balsa-run/balsa/reconciler/endpoints"
	"github.com/balsa-run/balsa/reconciler/events"
	"github.com/balsa-run/balsa/reconciler/gc"
	"github.com/balsa-run/balsa/reconciler/leases"
	"github.com/balsa-run/balsa/reconciler/namespaces"
	"github.com/balsa-run/balsa/reconciler/nodes"
	"github.com/balsa-run/balsa/reconciler/placement"
	"github.com/balsa-run/balsa/reconciler/policies"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/reconciler/storage"
	"github.com/balsa-run/balsa/reconciler/taints"
	"github.com/balsa-run/balsa/reconciler/workload"
	"github.com/balsa-run/balsa/store"
)

const (
	// watchBuffer is how many revisions the feed may fall behind before it reads
	// on from history.
	watchBuffer = 4096
	// queueLimit bounds the keys that wait in a concern's queue; of more, it looks
	// at everything.
	queueLimit = 20_000
)

// Deps are what Run works with. All are required that do not say otherwise.
type Deps struct {
	Store    *store.Store
	Proposer control.Proposer
	Clock    clock.Clock
	// Rand seeds uids, names and back-offs; read once, at the start.
	Rand   io.Reader
	Logger *slog.Logger
	// Epoch is the raft term in which this member leads. Every command carries it.
	Epoch uint64
	// Leases are made anew for each term, and also given to what takes heartbeats.
	Leases *nodes.Leases
	// EtcdLeases counts down the leases of the etcd space, if not nil; made anew for
	// each term as well.
	EtcdLeases *leases.Lessor
	// Hosts is what gossip knows; nil: nothing.
	Hosts nodes.Hosts
	// Secrets opens and seals what rollouts copy.
	Secrets rollout.Secrets
	// Explanations, if not nil, is where the verdicts on waiting pods can be read.
	Explanations *placement.Explanations
	// Drained, if not nil, hears how long each pod waited until no node sent it new
	// connections, and why that was over.
	Drained draining.Told
}

// Run reconciles until ctx ends or the term is over; then it returns ctx's cause,
// or an error that wraps loop.ErrStop. It is started once a term, when this
// member leads and has applied all that came before.
func Run(ctx context.Context, d Deps) error {
	r, err := newRunner(d)
	if err != nil {
		return err
	}
	return r.run(ctx)
}

func (r *runner) run(ctx context.Context) error {
	watch, err := r.watch(ctx) // before the loops look for the first time
	if err != nil {
		return err
	}
	run := []func(context.Context) error{
		func(ctx context.Context) error { return r.feed(ctx, watch) },
		func(ctx context.Context) error {
			return r.recorder.Run(ctx, r.writer(store.SpaceEvents), r.random())
		},
	}
	if r.EtcdLeases != nil {
		run = append(run, r.EtcdLeases.Run)
	}
	for _, c := range r.concerns {
		run = append(run, func(ctx context.Context) error { return loop.Run(ctx, r.options(c)) })
		if c.Woken != nil {
			run = append(run, func(ctx context.Context) error { return r.wake(ctx, c) })
		}
	}
	return loop.Group(ctx, run...)
}

type runner struct {
	Deps
	space    *store.Space
	seeds    *rand.ChaCha8
	recorder *events.Recorder
	concerns []control.Concern
	queues   map[string]*loop.Queue
}

func newRunner(d Deps) (*runner, error) {
	seeds, err := seedsOf(d)
	if err != nil {
		return nil, err
	}
	r := &runner{
		Deps: d, space: d.Store.Space(store.SpaceObjects), seeds: seeds,
		recorder: events.NewRecorder(d.Clock, d.Logger), queues: map[string]*loop.Queue{},
	}
	if r.space == nil || d.Store.Space(store.SpaceEvents) == nil {
		return nil, fmt.Errorf("reconciler: the store has no space %q or %q", store.SpaceObjects, store.SpaceEvents)
	}
	if d.Secrets == nil {
		return nil, errors.New("reconciler: Deps.Secrets is missing: nothing opens what rollouts copy")
	}
	writers := map[string]*control.Writer{}
	for _, s := range d.Store.Spaces() {
		writers[s.Name()] = r.writer(s.Name())
	}
	r.concerns = []control.Concern{
		nodes.New(r.kit("nodes"), d.Leases, d.Hosts),
		endpoints.New(r.kit("endpoints")),
		disruption.New(r.kit("disruption")),
		draining.New(r.kit("draining"), d.Leases, d.Drained),
		policies.New(r.kit("policies")),
		addresses.New(r.kit("addresses")),
		workload.New(r.kit("workload")),
		rollout.New(r.kit("rollout"), d.Secrets, d.Store.Space(store.SpaceEvents)),
		placement.New(r.kit("placement"), d.Explanations),
		storage.New(r.kit("storage")),
		taints.New(r.kit("taints")),
		gc.New(r.kit("gc")),
		namespaces.New(r.kit("namespaces"), r.writer(store.SpaceEvents)),
		compaction.New(d.Clock, writers, d.Store.Spaces()),
	}
	for _, c := range r.concerns {
		r.queues[c.Name] = loop.NewQueue(d.Clock, queueLimit)
	}
	return r, nil
}

// seedsOf draws the term's source of randomness. The epoch goes into it, so that no
// two terms give out the same uids even if a source of Rand begins anew with each:
// two ReplicaSets of one uid would take the same pods from each other for ever.
func seedsOf(d Deps) (*rand.ChaCha8, error) {
	var drawn [32 + 8]byte
	if _, err := io.ReadFull(d.Rand, drawn[:32]); err != nil {
		return nil, fmt.Errorf("reconciler: draw a seed: %w", err)
	}
	binary.BigEndian.PutUint64(drawn[32:], d.Epoch)
	return rand.NewChaCha8(sha256.Sum256(drawn[:])), nil
}

func (r *runner) writer(space string) *control.Writer {
	return control.NewWriter(r.Proposer, r.Store.Space(space), r.Clock, r.Epoch)
}

// random is a source of its own: they are drawn in a fixed order, and no two
// goroutines share one.
func (r *runner) random() *rand.ChaCha8 {
	var seed [32]byte
	_, _ = r.seeds.Read(seed[:]) // never fails
	return rand.NewChaCha8(seed)
}

func (r *runner) kit(name string) *control.Kit {
	return &control.Kit{
		Writer: r.writer(store.SpaceObjects), Clock: r.Clock, Rand: r.random(),
		Logger: r.Logger.With("concern", name), Events: r.recorder,
	}
}

func (r *runner) options(c control.Concern) loop.Options {
	o := loop.Options{
		Name: c.Name, Queue: r.queues[c.Name], Clock: r.Clock, Rand: rand.New(r.random()),
		Logger: r.Logger, Step: backedOff(c.Step), Settle: c.Settle, Batch: c.Batch,
	}
	if c.List != nil {
		o.List = func() []string { return c.List(r.space.View()) }
	}
	return o
}

// backedOff makes what failed wait for its back-off, whatever else its step asked
// for: a plan that is to go on at once, and whose first part the store refuses,
// would be tried again without a pause.
func backedOff(step func(context.Context, []string) []loop.Again) func(context.Context, []string) []loop.Again {
	return func(ctx context.Context, keys []string) []loop.Again {
		again := step(ctx, keys)
		failed := map[string]bool{}
		for _, a := range again {
			failed[a.Key] = failed[a.Key] || a.Err != nil
		}
		return slices.DeleteFunc(again, func(a loop.Again) bool { return a.Err == nil && failed[a.Key] })
	}
}

func (r *runner) wake(ctx context.Context, c control.Concern) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.Woken:
			r.queues[c.Name].Add("")
		}
	}
}

func (r *runner) watch(ctx context.Context) (*store.Watcher, error) {
	w, err := r.space.Watch(ctx, store.WatchOptions{PrevKV: true, Buffer: watchBuffer})
	if err != nil {
		return nil, fmt.Errorf("reconciler: watch the space of objects: %w", err)
	}
	return w, nil
}

// feed tells every concern what to look at. When the watch was cut, because it
// fell behind or the store was restored, everything is looked at.
func (r *runner) feed(ctx context.Context, w *store.Watcher) error {
	for {
		r.follow(ctx, w)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.Err(); !errors.Is(err, store.ErrCompacted) && !errors.Is(err, store.ErrResync) {
			return fmt.Errorf("reconciler: watch ended: %w", err)
		}
		var err error
		if w, err = r.watch(ctx); err != nil {
			return err
		}
		for _, c := range r.concerns {
			r.queues[c.Name].AddAll()
		}
	}
}

// follow reads a watch to its end. The watch was opened before ctx was made, and
// does not end with it by itself.
func (r *runner) follow(ctx context.Context, w *store.Watcher) {
	release := context.AfterFunc(ctx, w.Stop)
	defer release()
	for batch := range w.Events() {
		r.spread(batch)
	}
}

func (r *runner) spread(batch store.Batch) {
	v := r.space.View()
	for _, ev := range batch.Events {
		for _, c := range r.concerns {
			if c.Keys == nil {
				continue
			}
			if keys := c.Keys(v, ev); len(keys) > 0 {
				r.queues[c.Name].Add(keys...)
			}
		}
	}
}
