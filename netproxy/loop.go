package netproxy

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
)

const (
	// settle is how long the first change waits for others: rollouts change
	// several endpoints within milliseconds of each other.
	settle = 5 * time.Millisecond
	// scrubInterval is how often the kernel is compared with the plan.
	scrubInterval = 5 * time.Minute
)

// Proxy keeps a kernel at the newest view: collect, settle, plan, sync, and now
// and then scrub.
type Proxy struct {
	kernel  Kernel
	clock   clock.Clock
	log     *slog.Logger
	rand    *rand.Rand
	queue   *loop.Queue
	view    atomic.Pointer[View]
	applied atomic.Int64
	// onApplied is told the revision after each successful sync.
	onApplied func(revision int64)

	// The rest belongs to the loop.
	problems  []Problem
	nextScrub time.Time
}

// ProxyOptions: Kernel, Clock, Logger and Rand are required.
type ProxyOptions struct {
	Kernel Kernel
	Clock  clock.Clock
	Logger *slog.Logger
	Rand   *rand.Rand
	// Applied, if not nil, is called by the loop with the revision the kernel
	// has just reached. No packet follows older rules then.
	Applied func(revision int64)
}

// NewProxy makes a proxy that waits for its first view.
func NewProxy(o ProxyOptions) *Proxy {
	return &Proxy{kernel: o.Kernel, clock: o.Clock, log: o.Logger, rand: o.Rand, onApplied: o.Applied, queue: loop.NewQueue(o.Clock, 1)}
}

// Update hands over a newer view; it never waits. Views in between that the
// loop has not come to are skipped.
func (p *Proxy) Update(v View) {
	p.view.Store(&v)
	p.queue.Add("")
}

// Applied is the newest revision the kernel has reached.
func (p *Proxy) Applied() int64 { return p.applied.Load() }

// Run works until ctx is done and returns its cause.
func (p *Proxy) Run(ctx context.Context) error {
	p.nextScrub = p.clock.Now().Add(scrubInterval)
	return loop.Run(ctx, loop.Options{Name: "netproxy", Queue: p.queue, Clock: p.clock, Rand: p.rand, Logger: p.log,
		Settle: settle, Resync: scrubInterval, Step: p.step})
}

func (p *Proxy) step(ctx context.Context, _ []string) []loop.Again {
	v := p.view.Load()
	if v == nil {
		return nil
	}
	if err := errors.Join(p.sync(ctx, *v), p.scrub(ctx)); err != nil {
		return []loop.Again{{Err: err}}
	}
	return nil
}

func (p *Proxy) sync(ctx context.Context, v View) error {
	r := Plan(v)
	if !slices.Equal(p.problems, r.Problems) {
		for _, problem := range r.Problems {
			p.log.Warn("service cannot be translated as it is", "object", problem.Object, "reason", problem.Reason)
		}
		p.problems = r.Problems
	}
	result, err := p.kernel.Sync(ctx, r)
	if err != nil {
		return err
	}
	p.log.Debug("services synced", "revision", r.Revision, "elements", result.Elements, "replaced", result.Replaced, "forgottenFlows", result.ForgottenFlows)
	p.applied.Store(r.Revision)
	if p.onApplied != nil {
		p.onApplied(r.Revision)
	}
	return nil
}

func (p *Proxy) scrub(ctx context.Context) error {
	if p.clock.Now().Before(p.nextScrub) {
		return nil
	}
	report, err := p.kernel.Scrub(ctx)
	if err != nil {
		return err
	}
	p.nextScrub = p.clock.Now().Add(scrubInterval)
	if report.Repaired {
		p.log.Warn("services in the kernel were not as planned; repaired", "findings", report.Findings, "omitted", report.Omitted)
	}
	return nil
}
