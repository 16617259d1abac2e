package sim

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"sync"
)

// Finished is a run that RunAll has made.
type Finished struct {
	Options Options
	Result  Result
	// Err is that of Machine.Run.
	Err error
}

// RunAll makes runs, so many at once (0: one for each processor), and yields each
// in the order of jobs, as soon as those before it are done. When ctx ends it
// starts no more, and yields those that were done, also those out of order; runs
// that the end of ctx has cut short are left out. It holds a few runs more than
// are at work.
func (m *Machine) RunAll(ctx context.Context, jobs iter.Seq[Options], atOnce int) iter.Seq[Finished] {
	if atOnce <= 0 {
		atOnce = runtime.NumCPU()
	}
	return func(yield func(Finished) bool) {
		ctx, cancel := context.WithCancel(ctx)
		q := &runs{machine: m, places: make(chan struct{}, atOnce), order: make(chan chan Finished, 4*atOnce)}
		go q.start(ctx, jobs)
		defer func() {
			cancel()
			for range q.order { // until the last run has ended
			}
			q.working.Wait()
		}()
		for done := range q.order {
			f := <-done
			if f.Err != nil && ctx.Err() != nil && errors.Is(f.Err, context.Cause(ctx)) {
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}

type runs struct {
	machine *Machine
	places  chan struct{}      // holds one for each run at work
	order   chan chan Finished // of the runs, in the order of jobs
	working sync.WaitGroup
}

func (q *runs) start(ctx context.Context, jobs iter.Seq[Options]) {
	defer close(q.order)
	for o := range jobs {
		select {
		case q.places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		done := make(chan Finished, 1)
		q.working.Go(func() {
			defer func() { <-q.places }()
			result, err := q.machine.Run(ctx, o)
			done <- Finished{Options: o, Result: result, Err: err}
		})
		select {
		case q.order <- done:
		case <-ctx.Done():
			q.order <- done // whoever reads takes all that was started
			return
		}
	}
}
