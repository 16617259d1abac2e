package control

import (
	"context"
	"errors"
	"fmt"
	"sync"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/store"
)

// Proposer puts a command into the replicated log and returns what it came to.
// An error means that it may or may not have been applied. It must neither
// forward a command with an epoch nor let two commands that are proposed one
// after the other overtake each other.
type Proposer interface {
	Propose(ctx context.Context, cmd *internalv1.Command) (*internalv1.CommandResult, error)
}

// maxInFlight bounds the changes of one CommitAll that are proposed at once. The
// log gathers them, so that they share a write to disk.
const maxInFlight = 64

// ErrConflict: something that a change was based on has changed. Plan again.
var ErrConflict = errors.New("conflict")

// Writer commits the changes of one concern in one leadership term.
//
// Invariant: View returns a state in which every change that this writer ever
// proposed is decided. After a commit it waits for the revision; after an error,
// which leaves the outcome open, it first puts a command that changes nothing
// behind the open one. Without that a plan could count twice: pods that were
// ordered and are not there yet would be ordered again.
type Writer struct {
	proposer Proposer
	space    *store.Space
	clock    clock.Clock
	epoch    uint64

	mu      sync.Mutex
	open    bool           // guarded by mu; a command's outcome is not known
	written store.Revision // guarded by mu
}

// NewWriter makes a writer into one space. Its commands carry the epoch.
func NewWriter(p Proposer, s *store.Space, c clock.Clock, epoch uint64) *Writer {
	return &Writer{proposer: p, space: s, clock: c, epoch: epoch}
}

// View is the space as it is now, with everything that this writer wrote.
func (w *Writer) View(ctx context.Context) (store.View, error) {
	w.mu.Lock()
	open := w.open
	w.mu.Unlock()
	if open {
		if err := w.fence(ctx); err != nil {
			return store.View{}, err
		}
	}
	w.mu.Lock()
	written := w.written
	w.mu.Unlock()
	if err := w.space.WaitRevision(ctx, written); err != nil {
		return store.View{}, fmt.Errorf("wait for revision %d of space %q: %w", written, w.space.Name(), err)
	}
	return w.space.View(), nil
}

// fence waits until the open commands are decided.
func (w *Writer) fence(ctx context.Context) error {
	result, err := w.propose(ctx, &internalv1.Command{Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{}}})
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if err := outcomeError(result); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = false
	w.written = max(w.written, store.Revision(result.GetRevision()))
	return nil
}

// Commit proposes a change. It returns nil when it was applied, ErrConflict when
// its basis has passed, loop.ErrStop when the term is over, and other errors
// when it is not known or can not be. An empty change is applied already.
func (w *Writer) Commit(ctx context.Context, c *Change) error {
	if c.Empty() {
		return nil
	}
	txn := &internalv1.Txn{Compares: c.compares, Success: c.ops}
	if err := w.Do(ctx, c.about, &internalv1.Command{Op: &internalv1.Command_Txn{Txn: txn}}); err != nil {
		return err
	}
	for _, f := range c.then {
		f()
	}
	return nil
}

// Do proposes a command, with the errors of Commit.
func (w *Writer) Do(ctx context.Context, about string, cmd *internalv1.Command) error {
	result, err := w.propose(ctx, cmd)
	if err == nil {
		err = outcomeError(result)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", about, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written = max(w.written, store.Revision(result.GetRevision()))
	return nil
}

// CommitAll commits changes that do not depend on one another, several at once.
// The errors stand in the order of the changes.
func (w *Writer) CommitAll(ctx context.Context, changes []*Change) []error {
	errs := make([]error, len(changes))
	slots := make(chan struct{}, maxInFlight)
	var tasks []*loop.Task
	for i, c := range changes {
		if c.Empty() {
			continue
		}
		slots <- struct{}{}
		tasks = append(tasks, loop.Go(func() error {
			defer func() { <-slots }()
			errs[i] = w.Commit(ctx, c)
			return nil
		}))
	}
	for _, t := range tasks {
		_ = t.Wait() // raises a panic; the errors are in errs
	}
	return errs
}

func (w *Writer) propose(ctx context.Context, cmd *internalv1.Command) (*internalv1.CommandResult, error) {
	cmd.Space, cmd.Epoch, cmd.TimeNs = w.space.Name(), w.epoch, w.clock.Now().UnixNano()
	result, err := w.proposer.Propose(ctx, cmd)
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.open = true
	}
	return result, err
}

// outcomeError is nil for a command that was applied.
func outcomeError(r *internalv1.CommandResult) error {
	switch {
	case r.GetOutcome() == internalv1.CommandResult_OUTCOME_STALE_EPOCH:
		return fmt.Errorf("%w: this member's term is over: %s", loop.ErrStop, r.GetMessage())
	case r.GetOutcome() != internalv1.CommandResult_OUTCOME_OK:
		return fmt.Errorf("refused with %s: %s", r.GetOutcome(), r.GetMessage())
	case r.GetTxn() != nil && !r.GetTxn().GetSucceeded():
		found := r.GetTxn().GetFound()
		return fmt.Errorf("%w: compare %d found %q at revision %d", ErrConflict, r.GetTxn().GetFailedCompare(), found.GetKey(), found.GetModRevision())
	}
	return nil
}
