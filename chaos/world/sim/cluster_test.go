package sim_test

import (
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/world/sim"
)

// More seeds, or one again: go test -run TestThreeServers/seeds -first 17 -seeds 1 -v
var (
	firstSeed = flag.Uint64("first", 1, "the first seed of TestThreeServers")
	seeds     = flag.Uint64("seeds", 10, "how many seeds TestThreeServers runs, each twice")
)

const (
	virtualLimit = 10 * time.Minute
	wallLimit    = 10 * time.Minute
	linesShown   = 40
)

// Three servers of daemon/core elect, commit and fail over, and keep their
// promises while machines, links and disks fail. The guest says what exactly it
// checks; here each seed has to pass, twice in the same way.
func TestThreeServers(t *testing.T) {
	m := machine(t, build(t, "./guest"), sim.Config{})
	t.Run("seeds", func(t *testing.T) { manySeeds(t, m) })
	t.Run("lies", func(t *testing.T) {
		lieIsFound(t, m, "ack", 1, "acknowledged, but lost")
		lieIsFound(t, m, "ghost", 1, "nobody wrote")
		lieIsFound(t, m, "stale", 8, "stale: get")
	})
	t.Run("a run that does too little", func(t *testing.T) {
		result, err := m.Run(t.Context(), sim.Options{Seed: 1, Args: []string{"-length=1ms"}, VirtualLimit: virtualLimit, WallLimit: wallLimit})
		if err != nil || result.ExitCode != 3 {
			t.Errorf("exit code %d, %v; expected 3\n%s", result.ExitCode, err, tail(result))
		}
	})
}

func manySeeds(t *testing.T, m *sim.Machine) {
	var mu sync.Mutex
	digests, seen := map[string]uint64{}, map[string]int{} // guarded by mu
	t.Run("each", func(t *testing.T) {
		for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				first, again := pass(t, m, seed), pass(t, m, seed)
				if first.Digest != again.Digest {
					t.Errorf("seed %d: two runs part after\n%s", seed, parting(first.Lines, again.Lines))
				}
				t.Log(strings.Join(first.Lines, "\n"))
				mu.Lock()
				defer mu.Unlock()
				if other, taken := digests[first.Digest]; taken {
					t.Errorf("seeds %d and %d give one digest", other, seed)
				}
				digests[first.Digest] = seed
				visited(first, seen)
			})
		}
	})
	if uint64(len(digests)) != *seeds && !t.Failed() {
		t.Errorf("%d digests of %d seeds", len(digests), *seeds)
	}
	for _, state := range []string{"election won", "failed to contact quorum of nodes, stepping down", "snapshot complete up to"} {
		if seen[state] == 0 && !t.Failed() {
			t.Errorf("no run came where the servers say %q", state)
		}
	}
	t.Logf("visited: %v", seen)
}

// visited reads how often a run came to the states that the guest counts.
func visited(r sim.Result, into map[string]int) {
	for _, line := range r.Lines {
		var times int
		_, text, ok := strings.Cut(line, " seen ")
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(text, "%d times:", &times); err == nil {
			into[text[strings.Index(text, ": ")+2:]] += times
		}
	}
}

func pass(t *testing.T, m *sim.Machine, seed uint64) sim.Result {
	t.Helper()
	result, err := m.Run(t.Context(), sim.Options{Seed: seed, VirtualLimit: virtualLimit, WallLimit: wallLimit})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("seed %d: exit code %d, %v\n%s", seed, result.ExitCode, err, tail(result))
	}
	return result
}

// lieIsFound plants a lie in what the clients record. The clients tell it now and
// then, so some runs may pass by luck; of tries seeds one has to find it.
func lieIsFound(t *testing.T, m *sim.Machine, lie string, tries uint64, name string) {
	t.Run(lie, func(t *testing.T) {
		t.Parallel()
		for seed := uint64(1); seed <= tries; seed++ {
			result, err := m.Run(t.Context(), sim.Options{Seed: seed, Args: []string{"-plant=" + lie}, VirtualLimit: virtualLimit, WallLimit: wallLimit})
			if err != nil {
				t.Fatal(err)
			}
			if result.ExitCode == 0 {
				continue
			}
			text := strings.Join(result.Lines, "\n")
			if result.ExitCode == 1 && strings.Contains(text, "WRONG: "+name) {
				return
			}
			t.Fatalf("seed %d: exit code %d, expected %q\n%s", seed, result.ExitCode, name, tail(result))
		}
		t.Errorf("%d seeds did not find it", tries)
	})
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
