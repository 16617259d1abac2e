package sim_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// More seeds, or one again: go test -run TestThreeServers/seeds -first 17 -seeds 1 -v
var (
	firstSeed = flag.Uint64("first", 1, "the first seed of TestThreeServers")
	seeds     = flag.Uint64("seeds", 2, "how many seeds TestThreeServers runs, each twice")
)

const (
	virtualLimit = 20 * time.Minute
	wallLimit    = 10 * time.Minute
	linesShown   = 40
)

// Three servers of daemon/core elect, commit and fail over, and keep their
// promises while machines, links and disks fail. The guest says what exactly it
// checks; here each seed has to pass, twice in the same way. Campaigns of many
// seeds are balsa-chaos sim's.
func TestThreeServers(t *testing.T) {
	m := machine(t, build(t, "./guest"), sim.Config{})
	t.Run("seeds", func(t *testing.T) { manySeeds(t, m) })
	t.Run("lies", func(t *testing.T) {
		lieIsFound(t, m, "ack", 2)
		lieIsFound(t, m, "ghost", 2)
		lieIsFound(t, m, "stale", 8)
	})
	t.Run("a run that does too little", func(t *testing.T) {
		result := once(t, m, sim.Options{Seed: 1, Args: []string{"-length=1ms", "-workloads=api,register"}})
		summary, told := verdict.Read(result.Lines)
		if result.ExitCode != verdict.TooLittle || !told || len(summary.Missing) == 0 {
			t.Errorf("exit code %d, missing %q; expected %d\n%s", result.ExitCode, summary.Missing, verdict.TooLittle, tail(result))
		}
	})
	t.Run("arguments that make no sense", func(t *testing.T) {
		if result := once(t, m, sim.Options{Seed: 1, Args: []string{"-servers=9"}}); result.ExitCode != verdict.NoCluster {
			t.Errorf("exit code %d, expected %d\n%s", result.ExitCode, verdict.NoCluster, tail(result))
		}
	})
}

func once(t *testing.T, m *sim.Machine, o sim.Options) sim.Result {
	t.Helper()
	o.VirtualLimit, o.WallLimit = virtualLimit, wallLimit
	result, err := m.Run(t.Context(), o)
	if err != nil {
		t.Fatalf("seed %d: %v\n%s", o.Seed, err, tail(result))
	}
	return result
}

// manySeeds runs each seed twice: with its history handed out, and without.
func manySeeds(t *testing.T, m *sim.Machine) {
	digests := map[string]uint64{}
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		args := []string{"-length=30s"}
		var records bytes.Buffer
		first := once(t, m, sim.Options{Seed: seed, Args: args, History: &records})
		if first.ExitCode != verdict.Good {
			t.Fatalf("seed %d: exit code %d\n%s", seed, first.ExitCode, tail(first))
		}
		if again := once(t, m, sim.Options{Seed: seed, Args: args}); first.Digest != again.Digest {
			t.Errorf("seed %d: two runs part after\n%s", seed, parting(first.Lines, again.Lines))
		}
		if other, taken := digests[first.Digest]; taken {
			t.Errorf("seeds %d and %d give one digest", other, seed)
		}
		digests[first.Digest] = seed
		holds(t, first, &records)
	}
}

// holds looks whether the history that was handed out is that of the run.
func holds(t *testing.T, r sim.Result, records *bytes.Buffer) {
	t.Helper()
	summary, told := verdict.Read(r.Lines)
	if !told || summary.Failovers == 0 || len(summary.Faults) == 0 {
		t.Errorf("the run says %+v", summary)
	}
	operations := int64(0)
	for op, err := range history.Pair(history.Records(records)) {
		if err != nil {
			t.Fatal(err)
		}
		if op.End.F == history.Put || op.End.F == history.CAS {
			operations++
		}
	}
	if operations == 0 || operations > summary.Operations().All() {
		t.Errorf("%d writes in the history, %d operations in the run", operations, summary.Operations().All())
	}
}

// lieIsFound plants a lie in what the clients record. The clients tell it now and
// then, so some runs may pass by luck; of tries seeds one has to find it.
func lieIsFound(t *testing.T, m *sim.Machine, lie string, tries uint64) {
	t.Run(lie, func(t *testing.T) {
		for seed := uint64(1); seed <= tries; seed++ {
			result := once(t, m, sim.Options{Seed: seed, Args: []string{"-plant=" + lie, "-workloads=api", "-length=30s", "-pace=3"}})
			if result.ExitCode == verdict.Good {
				continue
			}
			summary, _ := verdict.Read(result.Lines)
			if result.ExitCode == verdict.Broken && slices.ContainsFunc(summary.Violations, func(v verdict.Violation) bool { return v.Checker == "objects/linearizable" }) {
				return
			}
			t.Fatalf("seed %d: exit code %d\n%s", seed, result.ExitCode, tail(result))
		}
		t.Errorf("%d seeds did not find it", tries)
	})
}

// Runs come in the order in which they were asked for, and the end of the context
// leaves out only what it has cut short.
func TestRunAll(t *testing.T) {
	m := machine(t, build(t, "./testdata/small"), sim.Config{})
	jobs := func(yield func(sim.Options) bool) {
		for seed := uint64(1); ; seed++ {
			if !yield(sim.Options{Seed: seed, VirtualLimit: 2 * time.Hour}) {
				return
			}
		}
	}
	var got []uint64
	for f := range m.RunAll(t.Context(), jobs, 3) {
		if f.Err != nil {
			t.Fatal(f.Err)
		}
		if got = append(got, f.Options.Seed); len(got) == 7 {
			break
		}
	}
	if !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("runs came as %v", got)
	}
	if err := interrupted(t, m); err != nil {
		t.Error(err)
	}
}

func interrupted(t *testing.T, m *sim.Machine) error {
	t.Helper()
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	jobs := func(yield func(sim.Options) bool) {
		_ = yield(sim.Options{Seed: 1, VirtualLimit: 2 * time.Hour}) &&
			yield(sim.Options{Seed: 2, Args: []string{"-mode=idle"}, VirtualLimit: 1e6 * time.Hour})
	}
	seen := 0
	for f := range m.RunAll(ctx, jobs, 2) {
		if seen++; f.Err != nil || f.Options.Seed != 1 {
			return fmt.Errorf("seed %d came with %w", f.Options.Seed, f.Err)
		}
		cancel(stop)
	}
	if seen != 1 {
		return fmt.Errorf("%d runs, expected the one that was done", seen)
	}
	return nil
}

// parting is where two runs differ for the first time.
func parting(first, again []string) string {
	for i := range min(len(first), len(again)) {
		if first[i] != again[i] {
			return fmt.Sprintf("%s\n- %s\n+ %s", strings.Join(first[max(0, i-linesShown):i], "\n"), first[i], again[i])
		}
	}
	return fmt.Sprintf("%d and %d lines that are the same", len(first), len(again))
}

func tail(r sim.Result) string {
	return strings.Join(r.Lines[max(0, len(r.Lines)-linesShown):], "\n") + "\n" + r.Stderr[:min(len(r.Stderr), 4000)]
}
