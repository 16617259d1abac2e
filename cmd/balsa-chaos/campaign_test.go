package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

var update = flag.Bool("update", false, "write what the golden tests expect")

func opened(t *testing.T, dir string) *book {
	t.Helper()
	b, err := openBook(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func written(t *testing.T, b *book, runs ...played) {
	t.Helper()
	for _, r := range runs {
		if err := b.write(r); err != nil {
			t.Fatal(err)
		}
	}
}

func seedsOf(runs []played) (seeds []uint64) {
	for _, r := range runs {
		seeds = append(seeds, r.Seed)
	}
	return seeds
}

func firstOf(seeds iter.Seq[uint64], n int) (out []uint64) {
	for seed := range seeds {
		if out = append(out, seed); len(out) == n {
			break
		}
	}
	return out
}

// A process may be killed after any byte that it has written: what was whole before
// is there, the rest is gone, and the campaign goes on behind it.
func TestTornTailOfTheRecord(t *testing.T) {
	whole := t.TempDir()
	b := opened(t, whole)
	written(t, b, played{Seed: 1, Digest: "one"}, played{Seed: 2, Digest: "two"})
	text, err := os.ReadFile(filepath.Join(whole, recordName))
	if err != nil {
		t.Fatal(err)
	}
	line := bytes.IndexByte(text, '\n') + 1
	for cut := range len(text) + 1 {
		dir := t.TempDir()
		path := filepath.Join(dir, recordName)
		if err := os.WriteFile(path, text[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := []uint64{1, 2}[:min(cut/line, 2)]
		if cut == len(text) {
			want = []uint64{1, 2}
		}
		if runs, err := readBook(dir); err != nil || !slices.Equal(seedsOf(runs), want) {
			t.Fatalf("%d of %d bytes are read as seeds %v, %v; expected %v", cut, len(text), seedsOf(runs), err, want)
		}
		b := opened(t, dir)
		next := uint64(len(want) + 1)
		if b.next() != next {
			t.Errorf("after %d of %d bytes it goes on with seed %d, expected %d", cut, len(text), b.next(), next)
		}
		written(t, b, played{Seed: next})
		if runs, err := readBook(dir); err != nil || !slices.Equal(seedsOf(runs), append(slices.Clone(want), next)) {
			t.Errorf("after %d of %d bytes and another run there are seeds %v, %v", cut, len(text), seedsOf(runs), err)
		}
	}
}

// What is wrong in the middle was not left by a process that was killed, and nobody
// may cut it off silently.
func TestRecordThatIsNoRecord(t *testing.T) {
	dir := t.TempDir()
	text := `{"seed":1}` + "\n" + `{"seed":` + "\n" + `{"seed":3}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, recordName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openBook(dir); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("opened with %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, recordName)); err != nil || string(after) != text {
		t.Errorf("it is now %q, %v", after, err)
	}
}

func TestTwoSittingsAtOnce(t *testing.T) {
	dir := t.TempDir()
	opened(t, dir)
	if _, err := openBook(dir); err == nil || !strings.Contains(err.Error(), "another sitting") {
		t.Errorf("the record was opened twice: %v", err)
	}
}

// player plays without a guest.
type player struct {
	ends  func(o sim.Options) sim.Finished
	asked []sim.Options
	most  int // runs; 0: all
}

func (p *player) RunAll(_ context.Context, jobs iter.Seq[sim.Options], _ int) iter.Seq[sim.Finished] {
	return func(yield func(sim.Finished) bool) {
		for o := range jobs {
			p.asked = append(p.asked, o)
			if !yield(p.ends(o)) || p.most > 0 && len(p.asked) == p.most {
				return
			}
		}
	}
}

func endsWith(code int, s verdict.Summary) func(o sim.Options) sim.Finished {
	return func(o sim.Options) sim.Finished { return finished(o.Seed, code, s) }
}

func sat(t *testing.T, dir string, with build, p *player) (out string, err error) {
	t.Helper()
	b, err := openBook(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	var text bytes.Buffer
	s := newSitting(b, &text, with)
	s.length = time.Minute
	s.play(t.Context(), p, time.Hour, 1)
	err = s.end(t.Context())
	return text.String(), err
}

// A campaign goes on where it was cut off, in another sitting and with another build;
// a seed that an interrupt has left out is played then.
func TestCampaignGoesOn(t *testing.T) {
	dir := t.TempDir()
	good := endsWith(verdict.Good, verdict.Summary{})
	if _, err := sat(t, dir, build{"c1", "g1"}, &player{ends: good, most: 3}); err != nil {
		t.Fatal(err)
	}
	b := opened(t, dir)
	written(t, b, played{Seed: 5, Build: build{"c1", "g1"}, Sitting: 1}) // 4 was given up
	if got := firstOf(b.unplayed(), 3); !slices.Equal(got, []uint64{4, 6, 7}) {
		t.Errorf("goes on with seeds %v", got)
	}
	_ = b.Close()
	second := &player{ends: good, most: 2}
	if out, err := sat(t, dir, build{"c2", "g2"}, second); err != nil || !strings.Contains(out, "sitting 2, build c2 (guest g2)") || !strings.Contains(out, "from seed 4") {
		t.Errorf("%v\n%s", err, out)
	}
	runs, err := readBook(dir)
	if err != nil || !slices.Equal(seedsOf(runs), []uint64{1, 2, 3, 5, 4, 6}) {
		t.Fatalf("seeds %v, %v", seedsOf(runs), err)
	}
	for i, want := range []int{1, 1, 1, 1, 2, 2} {
		if r := runs[i]; r.Sitting != want || r.Build.Commit != fmt.Sprint("c", want) || r.Build.Guest != fmt.Sprint("g", want) {
			t.Errorf("seed %d: sitting %d, build %v, expected those of sitting %d", r.Seed, r.Sitting, r.Build, want)
		}
	}
}

// No run starts when the time is up.
func TestCampaignEndsInTime(t *testing.T) {
	b := opened(t, t.TempDir())
	p := &player{ends: endsWith(verdict.Good, verdict.Summary{})}
	newSitting(b, new(bytes.Buffer), build{}).play(t.Context(), p, 0, 1)
	if len(p.asked) > 0 {
		t.Errorf("%d runs were started", len(p.asked))
	}
}

// Whatever a run does, the next is played; how the sitting ends tells the worst.
func TestCampaignStopsForNothing(t *testing.T) {
	broken := verdict.Summary{Violations: []verdict.Violation{{Checker: "etcd/watch", Rule: "reliable", Text: "reliable: left out"}}}
	for _, test := range []struct {
		name string
		ends func(o sim.Options) sim.Finished
		code int
		says string
		ok   func(r played) bool
	}{
		{"violation", endsWith(verdict.Broken, broken), 1, "balsa-chaos replay", func(r played) bool { return cmp.Equal(r.Violations, broken.Violations) && r.Died == "" }},
		{"little", endsWith(verdict.TooLittle, verdict.Summary{Missing: []string{"no failover"}}), exitTooLittle, "seed 2 did too little: no failover", func(r played) bool { return len(r.Missing) == 1 }},
		{"died", endsWith(2, verdict.Summary{}), 1, "seed 2 DIED: exit code 2", func(r played) bool { return r.Died != "" }},
		{"too long", func(o sim.Options) sim.Finished {
			return sim.Finished{Options: o, Result: sim.Result{ExitCode: -1}, Err: sim.ErrWallLimit}
		}, 1, "took too long", func(r played) bool { return r.Died != "" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			p := &player{most: 3, ends: func(o sim.Options) sim.Finished {
				if o.Seed == 2 {
					return test.ends(o)
				}
				return finished(o.Seed, verdict.Good, verdict.Summary{})
			}}
			out, err := sat(t, dir, build{"c", "g"}, p)
			if err == nil || code(err) != test.code || !strings.Contains(out, test.says) {
				t.Errorf("%v; expected code %d and %q in\n%s", err, test.code, test.says, out)
			}
			runs, err := readBook(dir)
			if err != nil || !slices.Equal(seedsOf(runs), []uint64{1, 2, 3}) || !test.ok(runs[1]) {
				t.Errorf("%v, %+v", err, runs)
			}
			if _, err := readRecord(filepath.Join(dir, "sim-2.json")); (err == nil) != (test.name == "violation") {
				t.Errorf("a file for replay: %v", err)
			}
		})
	}
}

// A build of which every run dies does not use up all seeds.
func TestCampaignOfABrokenBuild(t *testing.T) {
	p := &player{ends: endsWith(2, verdict.Summary{})}
	if _, err := sat(t, t.TempDir(), build{}, p); err == nil || code(err) != 1 || len(p.asked) != diedInARow {
		t.Errorf("%d runs, %v", len(p.asked), err)
	}
}

// The seed alone decides how it is played, every kind of play comes, and a guest takes
// each.
func TestVariants(t *testing.T) {
	scripts := inside.Scripts()
	servers, played := map[int]int{}, map[string]int{}
	for seed := range uint64(scripted * len(scripts)) {
		r, script := variant(seed, time.Minute, scripts)
		servers[r.Servers]++
		played[script]++
		if args, err := r.args(); err != nil || foundBy(args) != "script: "+script && script != "" || script == "" && foundBy(args) != "chance" {
			t.Errorf("seed %d, script %q: played as %s, %v", seed, script, foundBy(args), err)
		}
	}
	if servers[wideServers]*wide != scripted*len(scripts) || servers[3] != scripted*len(scripts)-servers[wideServers] {
		t.Errorf("servers: %v", servers)
	}
	for _, s := range scripts {
		if played[s.Name] != 1 {
			t.Errorf("script %q is played %d times", s.Name, played[s.Name])
		}
	}
}

// What people are shown is what the record says. go test -run CampaignSummary -update
func TestCampaignSummary(t *testing.T) {
	old, young := build{"0123456789ab", "aaaaaaaaaaaa"}, build{"fedcba987654+", "bbbbbbbbbbbb"}
	counts := verdict.Count{OK: 1_234_000, Refused: 500, Unknown: 67}
	runs := []played{
		{Seed: 1, Build: old, Sitting: 1, SittingS: 1800, SimulatedS: 7200, WallS: 720, ProcessorS: 720, Operations: counts, Failovers: 3, Faults: map[string]int{"kill": 2, "late": 9}, Reached: map[string]int{inside.ReachedElection: 4, inside.ReachedInstall: 0}},
		{Seed: 2, Build: old, Sitting: 1, SittingS: 3600, SimulatedS: 60, WallS: 6, ProcessorS: 6, Missing: []string{"no failover"}},
		{Seed: 3, Build: old, Sitting: 2, SittingS: 600, SimulatedS: 70, WallS: 7, ProcessorS: 7, Script: "late answers", Faults: map[string]int{"late": 1},
			Violations: []verdict.Violation{{Checker: "etcd/linearizable", Rule: "stale", Text: "stale: it shows a|b\n  " + strings.Repeat("and more ", 30)}, {Checker: "world", Text: "second"}}},
		{Seed: 4, Build: young, Sitting: 3, SittingS: 900, SimulatedS: 80, WallS: 8, ProcessorS: 8, Died: "exit code 2: out of memory"},
		{Seed: 5, Build: young, Sitting: 3, SittingS: 1000, SimulatedS: 80, WallS: 8, ProcessorS: 8, Operations: counts, Reached: map[string]int{inside.ReachedElection: 1000}},
	}
	got := campaignMarkdown(runs, []string{inside.ReachedElection, inside.ReachedInstall, inside.ReachedReset})
	path := filepath.Join("testdata", "campaign.md")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o750), os.WriteFile(path, []byte(got), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

// The command puts it where the marks are, and nowhere else.
func TestSummaryIntoADocument(t *testing.T) {
	dir := t.TempDir()
	written(t, opened(t, dir), played{Seed: 1, Build: build{"c", "g"}, Sitting: 1, SittingS: 60})
	document := filepath.Join(dir, "doc.md")
	begin := func(text string) {
		if err := os.WriteFile(document, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	into := func() error {
		command := campaignCommand()
		command.SetArgs([]string{"summary", dir, "--into", document})
		return command.ExecuteContext(t.Context())
	}
	begin("before\n" + campaignBegins + "\nold\n" + campaignEnds + "\nafter\n")
	runs, err := readBook(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		if err := into(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(document); err != nil || string(got) != "before\n"+campaignMarkdown(runs, inside.States())+"after\n" {
			t.Errorf("%v\n%s", err, got)
		}
	}
	begin("a document without marks\n")
	if err := into(); err == nil || !strings.Contains(err.Error(), "has no part between") {
		t.Errorf("without marks: %v", err)
	}
}

// A line of the record can be read by programs that know its names: they do not
// change.
func TestNamesInTheRecord(t *testing.T) {
	text, err := json.Marshal(played{Seed: 1, Died: "d", Script: "s"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"seed":1,"build":{"commit":"","guest":""},"sitting":0,"sittingS":0,"script":"s","digest":"","servers":0,"simulatedS":0,"wallS":0,"processorS":0,"operations":{"ok":0,"refused":0,"unknown":0},"failovers":0,"died":"d"}`
	if string(text) != want {
		t.Errorf("%s", text)
	}
}
