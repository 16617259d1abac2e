package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/internal/clock"
)

// recorder notes at which second since the start each step ran, and with what.
type recorder struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf("%v ", time.Since(r.start))+fmt.Sprintf(format, args...))
}

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(want, r.lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func options(q *Queue, step func(context.Context, []string) []Again) Options {
	return Options{
		Name: "test", Queue: q, Clock: clock.Real{}, Rand: rand.New(rand.NewPCG(1, 2)),
		Logger: slog.New(slog.DiscardHandler), Step: step, Resync: time.Hour,
	}
}

// during runs the loop for a while of virtual time, with changes on the way.
func during(t *testing.T, d time.Duration, o Options, changes func()) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	task := Go(func() error { return Run(ctx, o) })
	synctest.Wait()
	changes()
	return task.Wait()
}

func TestRunLooksAtEverythingFirstThenAtWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, r := NewQueue(clock.Real{}, 0), &recorder{start: time.Now()}
		o := options(q, func(_ context.Context, keys []string) []Again {
			r.note("%v", keys)
			return nil
		})
		o.List = func() []string { return []string{"c", "a", "b", "a"} }
		o.Batch, o.Settle = 2, 10*time.Millisecond
		err := during(t, 10*time.Second, o, func() {
			time.Sleep(time.Second)
			q.Add("x")
			time.Sleep(5 * time.Millisecond) // within settle
			q.Add("y", "x")
			q.AddAfter("z", time.Second)
			q.AddAfter("z", 2*time.Second) // later than what is asked already
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
		r.want(t, "10ms [a b]", "10ms [c]", "1.01s [x y]", "2.015s [z]")
	})
}

func TestRunBacksOffAKeyAndForgetsItsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(clock.Real{}, 0)
		var at []time.Duration
		start := time.Now()
		o := options(q, func(_ context.Context, keys []string) []Again {
			at = append(at, time.Since(start))
			if len(at) == 6 {
				return nil
			}
			return []Again{{Key: "k", Err: errors.New("conflict")}}
		})
		o.List = func() []string { return []string{"k"} }
		o.BackoffMin, o.BackoffMax = time.Second, 8*time.Second
		during(t, 2*time.Minute, o, func() {
			time.Sleep(time.Minute)
			q.Add("k") // fails again, as if for the first time
		})
		for i, seconds := range []int{1, 2, 4, 8, 8} {
			upper, got := time.Duration(seconds)*time.Second, at[i+1]-at[i]
			if got < upper/2 || got > upper {
				t.Errorf("back-off %d is %v, want within (%v, %v]", i+1, got, upper/2, upper)
			}
		}
		if got := at[7] - at[6]; at[6] != time.Minute || got > time.Second {
			t.Errorf("after a success the back-off is %v, at %v", got, at[6])
		}
	})
}

func TestRunLooksAtEverythingWhenTheQueueIsFullAndEveryResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, r := NewQueue(clock.Real{}, 2), &recorder{start: time.Now()}
		o := options(q, func(_ context.Context, keys []string) []Again {
			r.note("%s", strings.Join(keys, ","))
			return nil
		})
		o.List = func() []string { return []string{"all"} }
		o.Resync = time.Minute
		during(t, 90*time.Second, o, func() {
			time.Sleep(time.Second)
			q.Add("a", "b", "c")
		})
		r.want(t, "0s all", "1s all", "1m0s all")
		if q.Len() != 0 {
			t.Errorf("%d keys left", q.Len())
		}
	})
}

func TestRunEndsOnErrStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(clock.Real{}, 0)
		o := options(q, func(context.Context, []string) []Again {
			return []Again{{Err: fmt.Errorf("stale: %w", ErrStop)}}
		})
		if err := during(t, time.Hour, o, func() {}); !errors.Is(err, ErrStop) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestGateRunsOncePerTermAndNeverTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		terms, r := make(chan Term), &recorder{start: time.Now()}
		running := 0
		run := func(ctx context.Context, epoch uint64) error {
			running++
			r.note("start %d of %d", epoch, running)
			<-ctx.Done()
			time.Sleep(time.Second) // the last write is on its way
			r.note("end %d", epoch)
			running--
			return ctx.Err()
		}
		gate := Go(func() error { return Gate(t.Context(), terms, clock.Real{}, slog.New(slog.DiscardHandler), run) })
		terms <- Term{}
		terms <- Term{Leader: true, Epoch: 3}
		time.Sleep(time.Second)
		terms <- Term{Leader: true, Epoch: 3}
		terms <- Term{Leader: true, Epoch: 5}
		time.Sleep(2 * time.Second)
		terms <- Term{Epoch: 5}
		time.Sleep(2 * time.Second)
		terms <- Term{Leader: true, Epoch: 7}
		time.Sleep(time.Second)
		close(terms)
		if err := gate.Wait(); err != nil {
			t.Error(err)
		}
		r.want(t, "0s start 3 of 1", "2s end 3", "2s start 5 of 1", "4s end 5", "5s start 7 of 1", "7s end 7")
	})
}

func TestGateStartsAgainUnlessTheTermIsKnownToBeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		terms, starts := make(chan Term), 0
		run := func(context.Context, uint64) error {
			starts++
			if starts < 3 {
				return errors.New("disk on fire")
			}
			return fmt.Errorf("stale epoch: %w", ErrStop)
		}
		gate := Go(func() error { return Gate(ctx, terms, clock.Real{}, slog.New(slog.DiscardHandler), run) })
		terms <- Term{Leader: true, Epoch: 1}
		time.Sleep(time.Minute)
		cancel()
		if err := gate.Wait(); !errors.Is(err, context.Canceled) || starts != 3 {
			t.Errorf("%d starts, ended with %v", starts, err)
		}
	})
}

func TestPanicsSurface(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := func(context.Context, uint64) error { panic("boom") }
		terms := make(chan Term, 1)
		terms <- Term{Leader: true, Epoch: 1}
		for name, f := range map[string]func(){
			"gate": func() { Gate(t.Context(), terms, clock.Real{}, slog.New(slog.DiscardHandler), boom) },
			"group": func() {
				Group(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return nil }, func(ctx context.Context) error { return boom(ctx, 1) })
			},
		} {
			if got := recovered(f); got == nil || !strings.Contains(fmt.Sprint(got), "boom") {
				t.Errorf("%s: recovered %v", name, got)
			}
		}
	})
}

func recovered(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

func TestGroupEndsTogether(t *testing.T) {
	first := errors.New("first")
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	fail := func(context.Context) error { return first }
	if err := Group(t.Context(), wait, fail, wait); !errors.Is(err, first) {
		t.Errorf("ended with %v", err)
	}
}
