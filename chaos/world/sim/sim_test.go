package sim_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim"
)

func build(t *testing.T, pkg string) []byte {
	t.Helper()
	wasm, err := sim.Build(t.Context(), pkg)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
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

func TestHost(t *testing.T) {
	wasm := build(t, "./testdata/small")
	cache := t.TempDir()
	m := machine(t, wasm, sim.Config{CacheDir: cache})
	t.Run("the same seed gives the same run", func(t *testing.T) { sameSeedSameRun(t, m) })
	t.Run("runs at once do not see each other", func(t *testing.T) { runsAtOnce(t, m) })
	t.Run("a run that is cut off by its time repeats", func(t *testing.T) { cutOff(t, m) })
	t.Run("the cache changes nothing", func(t *testing.T) {
		want, got := show(t, m, 5), show(t, machine(t, wasm, sim.Config{CacheDir: cache}), 5)
		if got.Digest != want.Digest {
			t.Errorf("from the cache the run differs: %q, %q", got.Lines, want.Lines)
		}
	})
	t.Run("limits", func(t *testing.T) {
		limits(t, machine(t, wasm, sim.Config{MemoryBytes: 64 << 20, Interruptible: true}))
	})
}

func sameSeedSameRun(t *testing.T, m *sim.Machine) {
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

func runsAtOnce(t *testing.T, m *sim.Machine) {
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

func cutOff(t *testing.T, m *sim.Machine) {
	o := sim.Options{Args: []string{"-mode=wait"}, VirtualLimit: 90 * time.Second}
	first, _ := m.Run(t.Context(), o)
	again, err := m.Run(t.Context(), o)
	if !errors.Is(err, sim.ErrVirtualLimit) {
		t.Errorf("ended with %v, expected %v", err, sim.ErrVirtualLimit)
	}
	if first.VirtualElapsed != o.VirtualLimit || first.Digest != again.Digest {
		t.Errorf("ended at %v, expected %v", first.VirtualElapsed, o.VirtualLimit)
	}
}

func limits(t *testing.T, m *sim.Machine) {
	for _, test := range []struct {
		mode string
		o    sim.Options
		want error
		code int
		says string
	}{
		{mode: "wait", o: sim.Options{VirtualLimit: 24 * time.Hour}, want: sim.ErrVirtualLimit, code: -1},
		{mode: "spin", o: sim.Options{WallLimit: 200 * time.Millisecond}, want: sim.ErrWallLimit, code: -1},
		{mode: "idle", o: sim.Options{WallLimit: 200 * time.Millisecond, VirtualLimit: 1e6 * time.Hour}, want: sim.ErrWallLimit, code: -1},
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
