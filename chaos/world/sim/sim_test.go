package sim_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim"
)

func small(t *testing.T, cfg sim.Config) *sim.Machine {
	t.Helper()
	wasm, err := sim.Build(t.Context(), "./testdata/small")
	if err != nil {
		t.Fatal(err)
	}
	return machine(t, wasm, cfg)
}

func machine(t *testing.T, wasm []byte, cfg sim.Config) *sim.Machine {
	t.Helper()
	m, err := sim.New(t.Context(), wasm, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestSameSeedSameRun(t *testing.T) {
	m := small(t, sim.Config{})
	seen := map[string]uint64{}
	for seed := range uint64(10) {
		first, again := show(t, m, seed), show(t, m, seed)
		if first.Digest != again.Digest || !slices.Equal(first.Lines, again.Lines) || first.VirtualElapsed != again.VirtualElapsed {
			t.Errorf("seed %d: two runs differ:\n%s\n\n%s", seed, strings.Join(first.Lines, "\n"), strings.Join(again.Lines, "\n"))
		}
		if other, taken := seen[first.Digest]; taken {
			t.Errorf("seeds %d and %d give one digest", other, seed)
		}
		seen[first.Digest] = seed
	}
}

func show(t *testing.T, m *sim.Machine, seed uint64) sim.Result {
	t.Helper()
	result, err := m.Run(t.Context(), sim.Options{Seed: seed, VirtualLimit: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if result.ExitCode != 0 || len(result.Lines) != 6 {
		t.Fatalf("exit code %d, %q, %s", result.ExitCode, result.Lines, result.Stderr)
	}
	if !strings.HasPrefix(result.Lines[4], "2026-01-01T00:00:00.") || !strings.HasPrefix(result.Lines[5], "2026-01-01T01:30:00.") {
		t.Errorf("the clock showed %q and %q", result.Lines[4], result.Lines[5])
	}
	if result.VirtualElapsed < 90*time.Minute {
		t.Errorf("slept for 90 minutes, only %v passed", result.VirtualElapsed)
	}
	return result
}

// Runs at the same time do not see each other.
func TestRunsAtOnce(t *testing.T) {
	m := small(t, sim.Config{})
	want := show(t, m, 1)
	results := make(chan sim.Result)
	for range 4 {
		go func() {
			result, err := m.Run(t.Context(), sim.Options{Seed: 1, VirtualLimit: 2 * time.Hour})
			if err != nil {
				t.Error(err)
			}
			results <- result
		}()
	}
	for range 4 {
		if got := <-results; got.Digest != want.Digest {
			t.Errorf("beside others the run differs: %q, alone %q", got.Lines, want.Lines)
		}
	}
}

func TestEnds(t *testing.T) {
	m := small(t, sim.Config{MemoryBytes: 64 << 20})
	for _, test := range []struct {
		mode string
		o    sim.Options
		want error
		code int
		says string
	}{
		{mode: "wait", o: sim.Options{VirtualLimit: 24 * time.Hour}, want: sim.ErrVirtualLimit, code: -1},
		{mode: "spin", o: sim.Options{WallLimit: 200 * time.Millisecond}, want: sim.ErrWallLimit, code: -1},
		{mode: "talk", o: sim.Options{OutputBytes: 10_000}, want: sim.ErrOutputLimit, code: -1},
		{mode: "eat", code: 2, says: "out of memory"},
		{mode: "panic", code: 2, says: "out of cheese"},
		{mode: "fail", code: 3},
	} {
		t.Run(test.mode, func(t *testing.T) {
			test.o.Args = []string{"-mode=" + test.mode}
			result, err := m.Run(t.Context(), test.o)
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("ended with %v, expected %v", err, test.want)
			}
			if result.ExitCode != test.code || !strings.Contains(result.Stderr, test.says) {
				t.Errorf("exit code %d, expected %d; it said %q", result.ExitCode, test.code, result.Stderr)
			}
		})
	}
}

// A run that was cut off by its own time is as repeatable as another.
func TestVirtualLimitIsExact(t *testing.T) {
	m := small(t, sim.Config{})
	o := sim.Options{Args: []string{"-mode=wait"}, VirtualLimit: 90 * time.Second}
	first, _ := m.Run(t.Context(), o)
	again, _ := m.Run(t.Context(), o)
	if first.VirtualElapsed != o.VirtualLimit || first.Digest != again.Digest {
		t.Errorf("ended at %v, expected %v", first.VirtualElapsed, o.VirtualLimit)
	}
}

// The cache makes the second New quick; here it must only not change anything.
func TestCache(t *testing.T) {
	dir := t.TempDir()
	first := show(t, small(t, sim.Config{CacheDir: dir}), 5)
	again := show(t, small(t, sim.Config{CacheDir: dir}), 5)
	if first.Digest != again.Digest {
		t.Errorf("from the cache the run differs: %q, %q", first.Lines, again.Lines)
	}
}
