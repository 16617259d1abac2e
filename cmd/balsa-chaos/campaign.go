package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

// What a campaign varies beside the seed, by the seed, so that it goes on in the same
// way wherever it was cut off.
const (
	// one seed in wide has wideServers servers.
	wide, wideServers = 4, 5
	// One seed in scripted, with the rest firstScripted, plays a directed script: they
	// take turns.
	scripted, firstScripted = 8, 3
)

// diedInARow ends a sitting: what dies so often is no finding but a broken build, and
// would use up seeds as fast as they can be counted.
const diedInARow = 10

func campaignCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "campaign", Short: "Run simulated clusters for hours, in as many sittings as it takes",
		Long: `Run simulated clusters for hours, in as many sittings as it takes.

A campaign is a folder with a record: a line of JSON for each seed that was played. It
may be cut off at any moment, and goes on where it stopped, also days later and with
another build: the record says which build has played what.`,
	}
	command.AddCommand(campaignRunCommand(), campaignSummaryCommand())
	return command
}

func campaignRunCommand() *cobra.Command {
	var lasts, wall, length time.Duration
	var procs int
	command := &cobra.Command{
		Use: "run DIR", Short: "Play seeds, from where the record of DIR ends", Args: cobra.ExactArgs(1),
		Long: `Play seeds, from where the record of DIR ends.

Nothing that a run does stops it: a broken promise is recorded with its seed, printed
and written to a file for replay, and the next seed is played. Runs that are at work
when the time is up are played to their end; with the first interrupt they are given
up, and played again the next time. The schedule is what the seed decides; each fourth
seed has five servers instead of three, each eighth plays a directed script.

Exit codes: 1 a promise was broken or a run died in this sitting, 3 a run did too
little to prove anything, 130 interrupted.`,
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			book, err := openBook(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = book.Close() }()
			wasm, err := sim.Guest(ctx)
			if err != nil {
				return err
			}
			m, err := machineOf(ctx, wasm)
			if err != nil {
				return err
			}
			defer func() { _ = m.Close(context.WithoutCancel(ctx)) }()
			s := newSitting(book, command.OutOrStdout(), buildOf(ctx, wasm))
			s.length, s.wall = length, wall
			s.play(ctx, m, lasts, procs)
			return s.end(ctx)
		},
	}
	flags := command.Flags()
	flags.DurationVar(&lasts, "for", time.Hour, "how long this sitting lasts, in real time")
	flags.IntVar(&procs, "procs", 0, "runs at once; 0: one for each processor")
	flags.DurationVar(&length, "length", time.Minute, "how long faults are done in a run, in simulated time")
	flags.DurationVar(&wall, "wall", sim.DefaultWallLimit, "real time that one run may take")
	return command
}

func campaignSummaryCommand() *cobra.Command {
	var into string
	command := &cobra.Command{
		Use: "summary DIR", Short: "Print what a campaign came to, as Markdown", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			played, err := readBook(args[0])
			if err != nil {
				return err
			}
			text := campaignMarkdown(played, inside.States())
			if into != "" {
				return replacePart(into, text)
			}
			_, err = io.WriteString(command.OutOrStdout(), text)
			return err
		},
	}
	command.Flags().StringVar(&into, "into", "", "put it between its marks in this file instead")
	return command
}

func machineOf(ctx context.Context, wasm []byte) (*sim.Machine, error) {
	cache, err := sim.CacheDir()
	if err != nil {
		return nil, err
	}
	return sim.New(ctx, wasm, sim.Config{CacheDir: cache})
}

// build is what a sitting plays with.
type build struct {
	// Commit is that of the checkout, with "+" when something in it was changed since.
	Commit string `json:"commit"`
	// Guest is the beginning of the guest's SHA-256, which tells builds apart also
	// when the commit does not.
	Guest string `json:"guest"`
}

const guestDigits = 12

func buildOf(ctx context.Context, wasm []byte) build {
	sum := sha256.Sum256(wasm)
	return build{Commit: commit(ctx), Guest: hex.EncodeToString(sum[:])[:guestDigits]}
}

// commit is that of the working directory. A checkout without git is fine: the guest's
// sum says more.
func commit(ctx context.Context) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	changed, err := exec.CommandContext(ctx, "git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", "*.go", "go.mod").Output()
	name := strings.TrimSpace(string(head))
	if err != nil || len(changed) > 0 {
		name += "+"
	}
	return name
}

// sitting is one stretch of a campaign, with one build.
type sitting struct {
	book   *book
	print  io.Writer
	build  build
	number int
	began  time.Time
	length time.Duration // of a run
	wall   time.Duration // limit of a run

	runs, bad, died, little int
	inARow                  int // runs that died, one after the other
	broken                  error
}

func newSitting(b *book, out io.Writer, with build) *sitting {
	return &sitting{book: b, print: out, build: with, number: b.lastSitting() + 1, began: time.Now()}
}

func (s *sitting) printf(format string, args ...any) { _, _ = fmt.Fprintf(s.print, format, args...) }

// runner makes runs in the order of the jobs, as sim.Machine does.
type runner interface {
	RunAll(ctx context.Context, jobs iter.Seq[sim.Options], atOnce int) iter.Seq[sim.Finished]
}

// play begins runs until the time is up, and records all that ended.
func (s *sitting) play(ctx context.Context, m runner, lasts time.Duration, atOnce int) {
	s.printf("sitting %d, build %s (guest %s), for %v, from seed %d\n", s.number, s.build.Commit, s.build.Guest, lasts, s.book.next())
	scripts, seeds := inside.Scripts(), s.book.unplayed()
	until := s.began.Add(lasts)
	jobs := func(yield func(sim.Options) bool) {
		for seed := range seeds {
			r, _ := variant(seed, s.length, scripts)
			args, err := r.args()
			if err != nil || !time.Now().Before(until) || !yield(sim.Options{Seed: seed, Args: args, WallLimit: s.wall}) {
				return // an error would be one of a schedule that is in the program
			}
		}
	}
	for f := range m.RunAll(ctx, jobs, atOnce) {
		if err := s.add(f, scripts); err != nil {
			s.broken = err
			return
		}
	}
}

// variant is how a seed is played, and the name of the script when it plays one.
func variant(seed uint64, length time.Duration, scripts []inside.Script) (r recipe, script string) {
	r = recipe{Seed: seed, Length: length, Servers: 3, Clients: 3, Pace: 1}
	if seed%wide == 0 {
		r.Servers = wideServers
	}
	if seed%scripted == firstScripted {
		chosen := scripts[seed/scripted%uint64(len(scripts))]
		r.Schedule, script = &chosen.Schedule, chosen.Name
	}
	return r, script
}

// add records a run. An error is one of the record: without it there is no campaign.
func (s *sitting) add(f sim.Finished, scripts []inside.Script) error {
	r, summary := s.entry(f)
	_, r.Script = variant(f.Options.Seed, s.length, scripts)
	if err := s.book.write(r); err != nil {
		return err
	}
	s.runs++
	s.inARow++
	switch {
	case r.Died != "":
		s.died++
		s.printf("seed %d DIED: %s\n", r.Seed, r.Died)
		if s.inARow >= diedInARow {
			return fmt.Errorf("%d runs died one after the other: the build is broken, or the machine has no memory left", s.inARow)
		}
		return nil
	case len(r.Violations) > 0:
		s.bad++
		s.violation(f, summary)
	case len(r.Missing) > 0:
		s.little++
		s.printf("seed %d did too little: %s\n", r.Seed, strings.Join(r.Missing, "; "))
	}
	s.inARow = 0
	s.printf("seed %d: %.0f s in %.1f s, %d operations, %d faults, digest %s\n",
		r.Seed, r.SimulatedS, r.WallS, r.Operations.All(), sum(r.Faults), r.Digest[:min(len(r.Digest), guestDigits)])
	return nil
}

// entry is what the record keeps of a run.
func (s *sitting) entry(f sim.Finished) (played, verdict.Summary) {
	summary, told := verdict.Read(f.Result.Lines)
	r := played{
		Seed: f.Options.Seed, Build: s.build, Sitting: s.number, SittingS: time.Since(s.began).Seconds(), Digest: f.Result.Digest,
		Servers: summary.Servers, SimulatedS: f.Result.VirtualElapsed.Seconds(), WallS: f.Result.WallElapsed.Seconds(), ProcessorS: f.Result.Processor.Seconds(),
		Operations: summary.Operations(), Faults: summary.Faults, Failovers: summary.Failovers, Reached: summary.Reached,
		Violations: summary.Violations, Missing: summary.Missing,
	}
	ended := f.Err == nil && told && (f.Result.ExitCode == verdict.Good || f.Result.ExitCode == verdict.Broken || f.Result.ExitCode == verdict.TooLittle)
	if !ended {
		r.Died = died(f)
	}
	return r, summary
}

// diedBytes bounds what is kept of a dying run's words.
const diedBytes = 2000

// died is why a run has no verdict, the reason first.
func died(f sim.Finished) string {
	reasons := []string{fmt.Sprintf("exit code %d", f.Result.ExitCode)}
	if f.Err != nil {
		reasons = append(reasons, f.Err.Error())
	}
	reasons = append(reasons, f.Result.Stderr[:min(len(f.Result.Stderr), diedBytes)], lastWords(f.Result))
	return strings.Join(slices.DeleteFunc(reasons, func(each string) bool { return each == "" }), ": ")
}

func (s *sitting) violation(f sim.Finished, summary verdict.Summary) {
	s.printf("\nVIOLATION in seed %d\n", f.Options.Seed)
	for _, v := range summary.Violations[:min(len(summary.Violations), violationsShown)] {
		s.printf("%s: %s\n", v.Checker, v.Text)
	}
	path := filepath.Join(s.book.dir, fmt.Sprintf("sim-%d.json", f.Options.Seed))
	if err := writeRecord(path, f, summary); err != nil {
		s.printf("%v\n\n", err) // the record has the seed, which is enough
		return
	}
	s.printf("again: balsa-chaos replay %s    smaller: balsa-chaos shrink %s\n\n", path, path)
}

// end says how the sitting ends.
func (s *sitting) end(ctx context.Context) error {
	all := s.book.all()
	s.printf("\nsitting %d: %d runs in %v; the campaign has %d runs in %.2f hours\n",
		s.number, s.runs, time.Since(s.began).Round(time.Second), len(all), totalsOf(all).wall.Hours())
	switch {
	case s.broken != nil:
		return s.broken
	case s.bad+s.died > 0:
		return &exitError{code: 1, reason: fmt.Errorf("%d of %d runs broke a promise, %d died", s.bad, s.runs, s.died)}
	case ctx.Err() != nil:
		return &exitError{code: exitInterrupted, reason: fmt.Errorf("interrupted after %d runs", s.runs)}
	case s.little > 0:
		return &exitError{code: exitTooLittle, reason: fmt.Errorf("%d of %d runs did too little to prove anything", s.little, s.runs)}
	}
	return nil
}

func sum(counts map[string]int) (n int) {
	for _, each := range counts {
		n += each
	}
	return n
}

// replacePart puts text, which has its marks, in the place of what a file has between
// the same marks.
func replacePart(path, text string) error {
	old, err := readFile(path)
	if err != nil {
		return err
	}
	before, rest, began := strings.Cut(string(old), campaignBegins)
	_, after, ended := strings.Cut(rest, campaignEnds+"\n")
	if !began || !ended {
		return fmt.Errorf("%s has no part between %q and %q", path, campaignBegins, campaignEnds)
	}
	if err := os.WriteFile(path, []byte(before+text+after), 0o644); err != nil {
		return errors.Join(fmt.Errorf("write the summary into %s", path), err)
	}
	return nil
}
