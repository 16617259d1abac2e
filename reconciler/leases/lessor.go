package leases

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

const (
	// RevokesPerSecond bounds the leases that a leader revokes; etcd's figure.
	RevokesPerSecond = 1000
	// maxInFlight bounds the revocations that are proposed at once. The log gathers
	// them, so that they share a write to disk.
	maxInFlight = 128
	// lookEvery is how often the loop looks at the clock while there are leases; far
	// below maxStep.
	lookEvery = 250 * time.Millisecond
	// settle is how long the loop waits after leases have come or gone, for more, so
	// that many that come at once cost one look.
	settle = 20 * time.Millisecond
	// retryAfter is the wait before a revocation of unknown outcome is tried again.
	retryAfter = 250 * time.Millisecond
	// leastPause keeps what is left of a rest from being slept in many small parts.
	leastPause = time.Millisecond
	// idle is the wait while there are no leases, turn while some are over and others
	// are being revoked.
	idle = time.Hour
	turn = 10 * time.Millisecond
)

// Options make a Lessor. All fields are required.
type Options struct {
	// Space is the one whose leases count.
	Space    *store.Space
	Proposer control.Proposer
	Clock    clock.Clock
	Logger   *slog.Logger
	// Epoch is the raft term in which this member leads.
	Epoch uint64
	// Confirm returns once this member's store is as new as every write that was
	// acknowledged before the call, and this member has still led in Epoch after the
	// call began.
	Confirm func(ctx context.Context) error
}

// ErrNotCounting: the term has just begun, or is over.
var ErrNotCounting = errors.New("leases are not counted here at this moment")

// Lessor counts the leases of one term. Make a new one for each. Its methods may be
// called from any goroutine.
type Lessor struct {
	Options

	mu    sync.Mutex
	watch stopwatch     // guarded by mu
	table *table        // guarded by mu
	rate  allowance     // guarded by mu
	quiet time.Duration // guarded by mu; until when the loop leaves new leases be
	// seen is the leases that the table has followed; guarded by mu. It has these, in the
	// same state, but for those of unsure.
	seen store.LeaseSet
	// unsure are leases that came into the table, or left it, by another way than the
	// difference between two sets, which may therefore not tell of them; guarded by mu.
	unsure map[int64]struct{}

	slots chan struct{} // one for each revocation on its way
	// sooner is raised when a lease may be over earlier than the loop believes.
	sooner chan struct{}
	// ready is closed when the count begins, over when it ends.
	ready, over chan struct{}
}

// New makes a lessor that counts once it runs.
func New(o Options) *Lessor {
	return &Lessor{
		Options: o, watch: newStopwatch(o.Clock), table: newTable(), unsure: map[int64]struct{}{},
		rate:  allowance{perSecond: RevokesPerSecond, most: RevokesPerSecond / 4, tokens: RevokesPerSecond / 4},
		slots: make(chan struct{}, maxInFlight), sooner: make(chan struct{}, 1),
		ready: make(chan struct{}), over: make(chan struct{}),
	}
}

// LeaseTime tells how much time a lease has left, and renews it when that is asked
// for. The answer is given after this member has made sure that it led when the
// lease was renewed: a later leader gives it its full time from a later moment.
func (l *Lessor) LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	if err := l.counting(ctx); err != nil {
		return nil, err
	}
	granted, known, held := l.meet(req.GetId(), req.GetRenew())
	if !known {
		// It may have been granted where it was applied already, and not yet be here.
		if err := l.Confirm(ctx); err != nil {
			return nil, err
		}
		if granted, known, held = l.meet(req.GetId(), req.GetRenew()); !known {
			return &internalv1.LeaseTimeResponse{}, nil
		}
	}
	if err := l.Confirm(ctx); err != nil {
		return nil, err
	}
	// It may have been revoked where this member had not heard of it.
	_, still := l.Space.View().Lease(req.GetId())
	left, lives := l.left(req.GetId())
	if !held || !still || !lives {
		return &internalv1.LeaseTimeResponse{}, nil
	}
	return &internalv1.LeaseTimeResponse{Found: true, GrantedSeconds: granted.TTLSeconds, RemainingMs: left.Milliseconds()}, nil
}

// counting waits for the count to begin.
func (l *Lessor) counting(ctx context.Context) error {
	select {
	case <-l.over:
		return ErrNotCounting
	default:
	}
	select {
	case <-l.ready:
		return nil
	case <-l.over:
		return ErrNotCounting
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNotCounting, context.Cause(ctx))
	}
}

// meet makes sure that a lease of the space is in the table, and renews it.
func (l *Lessor) meet(id int64, renew bool) (granted store.Lease, known, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.watch.now()
	if granted, known = l.putLocked(id, now); !known {
		return granted, false, false
	}
	return granted, true, !renew || l.table.renew(id, now)
}

// putLocked puts a lease into the table if the space has it. The space is looked at with mu
// held, so that what is put is never older than what the table has followed.
func (l *Lessor) putLocked(id int64, now time.Duration) (granted store.Lease, known bool) {
	granted, known = l.Space.View().Lease(id)
	if !known {
		return granted, false
	}
	before, had := l.table.next()
	if l.table.put(granted, now) {
		l.unsure[id] = struct{}{}
	}
	if next, _ := l.table.next(); !had || next < before {
		raise(l.sooner)
	}
	return granted, true
}

func (l *Lessor) left(id int64) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.left(id, l.watch.now())
}

// Run gives every lease its full time and revokes what is over, until ctx ends or
// the term does: then it returns ctx's cause, or an error that wraps loop.ErrStop.
// It runs once.
func (l *Lessor) Run(ctx context.Context) error {
	defer close(l.over)
	if err := l.fence(ctx); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var revoking sync.WaitGroup
	defer revoking.Wait()
	changed := l.Space.LeasesChanged()
	l.sync() // behind the channel: nothing is missed
	close(l.ready)
	for {
		for _, id := range l.expire() {
			revoking.Go(func() { l.revoke(ctx, id, stop) })
		}
		pause, resting := l.pause()
		look := changed
		if resting {
			look = nil
		}
		timer := l.Clock.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-l.sooner:
		case <-timer.C():
		case <-look:
			changed = l.Space.LeasesChanged()
			l.sync()
		}
		timer.Stop()
	}
}

// fence returns when everything that this member proposed in this term before has
// come to its end. A lessor that ran in the same term and was started anew may have
// left revocations behind, and no lease may be kept alive in front of one.
func (l *Lessor) fence(ctx context.Context) error {
	for {
		result, err := l.Proposer.Propose(ctx, &internalv1.Command{
			Space: l.Space.Name(), Epoch: l.Epoch, Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{}},
		})
		if err == nil {
			return outcomeError(result)
		}
		l.Logger.Debug("leases are not counted yet", "error", err)
		if err := l.wait(ctx, retryAfter); err != nil {
			return err
		}
	}
}

// sync brings the table up to date with the space, at the price of what has changed.
func (l *Lessor) sync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	view, now := l.Space.View(), l.watch.now()
	set := view.LeaseSet()
	l.table.follow(set.Since(l.seen), now)
	for id := range l.unsure {
		if granted, there := view.Lease(id); there {
			l.table.put(granted, now)
		} else {
			l.table.drop(id)
		}
	}
	clear(l.unsure)
	l.seen = set
	l.quiet = after(now, settle)
}

// expire takes the leases that are over and that there is room to revoke.
func (l *Lessor) expire() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.watch.now()
	room := min(l.rate.at(now), cap(l.slots)-len(l.slots))
	over := l.table.expire(now, room)
	l.rate.take(len(over))
	for range over {
		l.slots <- struct{}{} // has room: only this loop fills it
	}
	return over
}

// pause is how long the loop may sleep, and whether it must leave new leases be
// until then.
func (l *Lessor) pause() (pause time.Duration, resting bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.watch.now()
	pause = idle
	if next, ok := l.table.next(); ok {
		// One that is over already waits for its turn.
		pause = min(lookEvery, max(next-now, turn))
	}
	if l.quiet > now {
		return min(pause, max(l.quiet-now, leastPause)), true
	}
	return pause, false
}

// revoke proposes until the outcome is known: a lease must not be granted anew, and
// be taken for good, under the id of one whose revocation may still take effect.
func (l *Lessor) revoke(ctx context.Context, id int64, stop context.CancelCauseFunc) {
	defer func() { <-l.slots }()
	for {
		result, err := l.Proposer.Propose(ctx, &internalv1.Command{
			Space: l.Space.Name(), Epoch: l.Epoch,
			Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: id}},
		})
		if err == nil {
			l.settle(id, result, stop)
			return
		}
		if ctx.Err() != nil {
			return
		}
		l.Logger.Warn("a lease that is over could not be revoked; trying again", "lease", fmt.Sprintf("%x", id), "error", err)
		if l.wait(ctx, retryAfter) != nil {
			return
		}
	}
}

func (l *Lessor) wait(ctx context.Context, pause time.Duration) error {
	timer := l.Clock.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
		return nil
	}
}

func (l *Lessor) settle(id int64, result *internalv1.CommandResult, stop context.CancelCauseFunc) {
	if result.GetOutcome() != internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND {
		if err := outcomeError(result); err != nil {
			stop(err)
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.settled(id)
	// It may have been granted anew meanwhile, or be granted before the next look: then
	// both sets have it, and their difference does not tell.
	l.unsure[id] = struct{}{}
	l.putLocked(id, l.watch.now())
}

func outcomeError(result *internalv1.CommandResult) error {
	switch result.GetOutcome() {
	case internalv1.CommandResult_OUTCOME_OK:
		return nil
	case internalv1.CommandResult_OUTCOME_STALE_EPOCH:
		return fmt.Errorf("%w: this member's term is over: %s", loop.ErrStop, result.GetMessage())
	}
	return fmt.Errorf("leases: refused with %s: %s", result.GetOutcome(), result.GetMessage())
}

func raise(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}
