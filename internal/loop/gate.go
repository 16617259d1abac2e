package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
)

// Term is what a member knows of its leadership.
type Term struct {
	// Leader is true once this member leads and has applied what came before.
	Leader bool
	// Epoch is the raft term; it grows.
	Epoch uint64
}

// gateBackoff is how long Gate waits before it starts a function again that
// returned while its term went on.
const gateBackoff = time.Second

// Gate runs the function while this member leads: between a Term with Leader and
// the next Term. Each start has the epoch of its term, and never overlaps with
// the one before: Gate waits until that has returned. When terms is closed or
// ctx ends, Gate ends the function and returns.
//
// A function that returns ErrStop knows that its term is over before Gate does;
// it is not started again in that term. After any other error it is.
func Gate(ctx context.Context, terms <-chan Term, c clock.Clock, logger *slog.Logger, run func(ctx context.Context, epoch uint64) error) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case term, open := <-terms:
			if !open {
				return nil
			}
			for ok := true; ok && term.Leader; {
				term, ok = holdTerm(ctx, term.Epoch, terms, c, logger, run)
			}
		}
	}
}

// holdTerm runs the function until the next term, which it returns. ok is false
// when there is none: ctx has ended or terms is closed.
func holdTerm(ctx context.Context, epoch uint64, terms <-chan Term, c clock.Clock, logger *slog.Logger, run func(context.Context, uint64) error) (next Term, ok bool) {
	leading, cancel := context.WithCancel(ctx)
	done := Go(func() error { return keepRunning(leading, epoch, c, logger, run) })
	defer func() {
		cancel()
		_ = done.Wait() // what it returns only says that the term is over
	}()
	logger.Info("leading", "epoch", epoch)
	defer logger.Info("no longer leading", "epoch", epoch)
	for {
		select {
		case <-ctx.Done():
			return Term{}, false
		case <-done.Panicked():
			return Term{}, false // the deferred Wait raises it
		case next, ok = <-terms:
			if next.Leader && next.Epoch == epoch && ok {
				continue // said twice
			}
			return next, ok
		}
	}
}

func keepRunning(ctx context.Context, epoch uint64, c clock.Clock, logger *slog.Logger, run func(context.Context, uint64) error) error {
	for {
		err := run(ctx, epoch)
		if ctx.Err() != nil || errors.Is(err, ErrStop) {
			return err
		}
		logger.Error("leader's work ended, starting it again", "epoch", epoch, "error", err, "delay", gateBackoff)
		timer := c.NewTimer(gateBackoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C():
		}
	}
}

// Task is a function that runs on a goroutine of its own.
type Task struct {
	done     chan struct{}
	panicked chan struct{}
	err      error
	panic    any
}

// PanicError is what Wait panics with: the panic of the task, and where it was.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string { return fmt.Sprintf("panic: %v\n\n%s", p.Value, p.Stack) }

// Go starts a task.
func Go(run func() error) *Task {
	t := &Task{done: make(chan struct{}), panicked: make(chan struct{})}
	go func() {
		defer close(t.done)
		defer func() {
			if v := recover(); v != nil {
				t.panic = &PanicError{Value: v, Stack: debug.Stack()}
				close(t.panicked)
			}
		}()
		t.err = run()
	}()
	return t
}

// Panicked is closed when the task panicked; then call Wait.
func (t *Task) Panicked() <-chan struct{} { return t.panicked }

// Wait waits for the task and returns its error. If the task panicked, so does
// Wait, on the goroutine of its caller.
func (t *Task) Wait() error {
	<-t.done
	if t.panic != nil {
		panic(t.panic)
	}
	return t.err
}

// Group runs the functions together. When one returns, or panics, it cancels
// the others, waits for them, and returns the first error, or raises the panic.
func Group(ctx context.Context, run ...func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var first error
	var once sync.Once
	tasks := make([]*Task, len(run))
	for i, f := range run {
		tasks[i] = Go(func() error {
			defer cancel()
			err := f(ctx)
			once.Do(func() { first = err })
			return err
		})
	}
	var raised any
	for _, t := range tasks {
		<-t.done
		if raised == nil {
			raised = t.panic
		}
	}
	if raised != nil {
		panic(raised)
	}
	return first
}
