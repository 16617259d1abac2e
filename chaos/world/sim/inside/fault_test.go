package inside

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/cluster"
)

const testLimit = time.Minute

// newWorld makes a cluster in the bubble of a test.
func newWorld(t *testing.T, servers int) *World {
	t.Helper()
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	w, err := New(1, servers, NewTrace(out, slog.LevelWarn))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	if err := w.Form(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// end closes a world and fails for what went wrong in it.
func end(t *testing.T, w *World) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testLimit)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Error(err)
	}
	for _, wrong := range w.Wrongs() {
		t.Error(wrong)
	}
}

func (w *World) testClient(t *testing.T, name string) *client.Client {
	t.Helper()
	c, err := w.Client(name, w.Addresses(), testLimit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(ctx context.Context, c *client.Client, name string) error {
	_, err := client.Create(ctx, c, &balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default"}}, client.WriteOptions{})
	return err
}

// After each fault is healed the cluster writes again, has what was written
// before, and has given up on nobody.
func TestEveryFaultHeals(t *testing.T) {
	for _, kind := range Kinds() {
		for _, target := range []Target{Leader, Follower} {
			t.Run(fmt.Sprintf("%s %s", kind, target), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { faultHeals(t, kind, target) })
			})
		}
	}
}

// example is a fault of a kind that changes something.
func example(kind Kind, target Target) Fault {
	f := Fault{Kind: kind, Target: target, For: 3 * time.Second}
	if needsOf(kind).by {
		f.By = 300 * time.Millisecond
	}
	if needsOf(kind).n {
		f.N = 2
	}
	switch kind {
	case Drift:
		f.By = maxDrift
	case Jump:
		f.By = -time.Hour
	}
	return f
}

func faultHeals(t *testing.T, kind Kind, target Target) {
	servers := 3
	if kind == RemoveServer {
		servers = 4
	}
	w := newWorld(t, servers)
	defer end(t, w)
	c := w.testClient(t, "c1")
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	if err := write(ctx, c, "before"); err != nil {
		t.Fatal(err)
	}
	f := example(kind, target)
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	heal := w.Inject(f, rand.New(rand.NewPCG(1, 1)))
	if heal == nil {
		t.Fatalf("nobody to do it to")
	}
	Sleep(ctx, 3*time.Second)
	heal()
	if err := Await(ctx, func() (bool, string) { return write(ctx, c, "after") == nil, "no write after " + string(kind) }); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.Servers() {
		if err := Await(ctx, func() (bool, string) { return s.Core().Cluster().Phase() == cluster.PhaseRunning, "it waits for room" }); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if _, err := s.Core().Cluster().ReadIndex(ctx); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		view := s.Core().Store().Space("objects").View()
		for _, name := range []string{"before", "after"} {
			if _, ok := view.Get("configmaps/default/" + name); !ok {
				t.Errorf("%s has no %q", s.Name, name)
			}
		}
	}
}

// What a fault takes away is away.
func TestFaultsBite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer end(t, w)
		c := w.testClient(t, "c1")
		heal := w.powerCutAll(Fault{Kind: PowerCutAll})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := write(ctx, c, "lost"); err == nil {
			t.Error("a write was acknowledged by machines that are off")
		}
		if w.Inject(Fault{Kind: Kill, Target: Any}, rand.New(rand.NewPCG(1, 1))) != nil {
			t.Error("a machine that is off was killed")
		}
		heal()
		ctx, cancel = context.WithTimeout(t.Context(), testLimit)
		defer cancel()
		if err := Await(ctx, func() (bool, string) { return w.Leader() != nil, "no leader" }); err != nil {
			t.Error(err)
		}
	})
}

func TestFaultsThatOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer end(t, w)
		first, second := w.cut("s1:7443", "s2:7443"), w.cut("s1:7443", "s2:7443")
		passes := func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return w.net.Pass(ctx, "s1:7443", "s2:7443") == nil
		}
		first()
		if passes() {
			t.Error("the link is open, but a second fault holds it")
		}
		second()
		if !passes() {
			t.Error("the link is held by no fault, but does not pass")
		}
		began := time.Now()
		short, long := w.slow("s1:7443", "s2:7443", 10*time.Millisecond), w.slow("s1:7443", "s2:7443", 100*time.Millisecond)
		long()
		if passes(); time.Since(began) > 50*time.Millisecond {
			t.Errorf("took %v after the longer delay was healed", time.Since(began))
		}
		short()
	})
}

// A server that gives up although nothing is wrong with its machine is noticed.
func TestGivingUpIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		s := w.Servers()[1]
		s.mu.Lock()
		disk := s.disk
		s.mu.Unlock()
		disk.SetFault(func(int, string) (error, bool) { return io.ErrShortWrite, false })
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		defer cancel()
		c := w.testClient(t, "c1")
		if err := write(ctx, c, "one"); err != nil {
			t.Error(err)
		}
		if err := Await(ctx, func() (bool, string) { return len(w.Wrongs()) == 1, "nothing was noticed" }); err != nil {
			t.Error(err)
		}
		if err := w.Close(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestTwoLeadersOfOneTermAreNoticed(t *testing.T) {
	w, err := New(1, 3, NewTrace(io.Discard, slog.LevelError))
	if err != nil {
		t.Fatal(err)
	}
	w.elected("s1", 3)
	w.elected("s1", 3)
	w.elected("s2", 4)
	if wrong := w.Wrongs(); len(wrong) > 0 {
		t.Errorf("noticed %q", wrong)
	}
	w.elected("s3", 4)
	if wrong := w.Wrongs(); len(wrong) != 1 {
		t.Errorf("noticed %q, expected one mistake", wrong)
	}
}

func TestGenerate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		length := time.Duration(rapid.Int64Range(int64(10*time.Second), int64(5*time.Minute)).Draw(t, "length"))
		schedule := Generate(rand.New(rand.NewPCG(seed, 1)), length)
		if again := Generate(rand.New(rand.NewPCG(seed, 1)), length); !slices.Equal(schedule, again) {
			t.Fatalf("one seed gives two schedules:\n%v\n%v", schedule, again)
		}
		died, cut := false, false
		last := time.Duration(0)
		for _, step := range schedule {
			died = died || step.Target == Leader && (step.Kind == Kill || step.Kind == PowerCut)
			cut = cut || step.Target == Leader && (step.Kind == Isolate || step.Kind == CutOff)
			if step.At < last || step.At >= length || step.For <= 0 {
				t.Errorf("step %v at %v after %v of %v", step.Fault, step.At, last, length)
			}
			if (step.Kind == Hang || step.Kind == Stall) && step.For >= cluster.DefaultStallFatal {
				t.Errorf("%v outlasts a server's patience of %v", step.Fault, cluster.DefaultStallFatal)
			}
			if err := step.Check(); err != nil {
				t.Errorf("%v: %v", step.Fault, err)
			}
			if step.Kind == FlipEntry {
				t.Errorf("%v is drawn by itself", step.Fault)
			}
			last = step.At
		}
		if !died || !cut {
			t.Errorf("no leader dies (%v) or none is cut off (%v) in %v", died, cut, schedule)
		}
	})
}

// TestADiskLostMeetsAnUpgrade is seed 489 of the campaign: a server that lost its disk
// is being stopped, for an upgrade, when it is looked at. That is not to take part.
func TestADiskLostMeetsAnUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer end(t, w)
		s := w.servers[1]
		undo := w.diskLost(s)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		defer cancel()
		if err := s.Core().Cluster().Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		undo()
		if n := w.Reached(ReachedAmnesiac); n != 0 {
			t.Errorf("a server that was stopped counts as one that was kept out")
		}
	})
}
