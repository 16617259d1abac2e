package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
	"github.com/balsa-run/balsa/internal/mutate"
)

// directed are the named schedules.
func directed() map[string]inside.Schedule {
	out := map[string]inside.Schedule{}
	for _, script := range inside.Scripts() {
		out[script.Name] = script.Schedule
	}
	out[handedRound] = handOvers()
	return out
}

// handedRound is a script of this command: leadership is handed over again and
// again, so that servers lead a second time while they remember the first.
const handedRound = "leadership handed round"

func handOvers() (out inside.Schedule) {
	const times, every = 60, 500 * time.Millisecond
	for i := range times {
		fault := inside.Fault{Kind: inside.Transfer, Target: inside.Leader, For: every / 2}
		out = append(out, inside.Step{At: time.Duration(i+1) * every, Fault: fault})
	}
	return out
}

// plan is how a planted bug is looked for: with the workloads that can see it, which
// ask the faster for it; scripts first, then seeds at random.
type plan struct {
	bug       mutate.Bug
	workloads string // "": all
	pace      float64
	scripts   []string
	clients   int // 0: fewClients
}

const (
	fewClients = 3
	// manyClients are so many that some are free to write at the new leader while
	// others wait for the old one.
	manyClients = 16
)

// plans name the scripts that play at the place where a bug is.
func plans() []plan {
	const killed = "leader killed with uncommitted entries"
	return []plan{
		{bug: mutate.VerifyLeader, workloads: "register", pace: 6, clients: manyClients, scripts: []string{"late answers"}},
		{bug: mutate.NoBarrier, workloads: "register", pace: 15, scripts: []string{"new leader that is behind"}},
		{bug: mutate.VoteInTwoWrites, workloads: "register", pace: 1, scripts: []string{"vote then crash"}},
		{bug: mutate.NoFsync, workloads: "register,set", pace: 3, scripts: []string{"power cut of all"}},
		{bug: mutate.AckBeforeMajority, workloads: "register,set", pace: 3, scripts: []string{killed}},
		{bug: mutate.RandomApply, workloads: "register,hash", pace: 3},
		{bug: mutate.CompactionLosesEvents, workloads: "register,range,watch,compact", pace: 5, scripts: []string{"watch across compaction"}},
		{bug: mutate.WatchOneLate, workloads: "register,watch", pace: 3},
		{bug: mutate.LeaseEarly, workloads: "lock", pace: 5},
		{bug: mutate.SnapshotWithoutLast, workloads: "register,set,hash", pace: 5, scripts: []string{"snapshot install cut short"}},
		{bug: mutate.EpochNotChecked, workloads: "plan", pace: 10, scripts: []string{handedRound}},
		{bug: mutate.AmnesiacVotes, workloads: "register,set", pace: 5, scripts: []string{"server without memory"}},
	}
}

// scriptSeeds is how many seeds each script is tried with before chance is.
const scriptSeeds = 4

type matrixFlags struct {
	bugs    string
	limit   time.Duration
	seeds   uint64
	atOnce  int
	servers int
	length  time.Duration
}

func matrixCommand() *cobra.Command {
	var flags matrixFlags
	command := &cobra.Command{
		Use: "matrix", Short: "Plant each bug, and see that it is found", Args: cobra.NoArgs,
		Long: `Plant each bug, and see that it is found.

The simulation is trusted as far as it finds what is known to be wrong. Each planted
bug has to be found within --limit; what found it is then done to the real program,
where nothing may be found. Exit code 1 when either fails.`,
		RunE: func(command *cobra.Command, _ []string) error {
			chosen, err := chosenPlans(flags.bugs)
			if err != nil {
				return err
			}
			ctx := command.Context()
			m, err := machine(ctx, tagsFor("all")...)
			if err != nil {
				return err
			}
			defer func() { _ = m.Close(context.WithoutCancel(ctx)) }()
			x := &matrix{flags: flags, print: command.OutOrStdout()}
			x.hunt(ctx, m, chosen)
			if ctx.Err() != nil {
				return &exitError{code: exitInterrupted, reason: errors.New("interrupted")}
			}
			return x.prove(ctx)
		},
	}
	f := command.Flags()
	f.StringVar(&flags.bugs, "bugs", "", "only these, with commas")
	f.DurationVar(&flags.limit, "limit", 2*time.Minute, "real time for each bug")
	f.Uint64Var(&flags.seeds, "first", 1, "the first seed")
	f.IntVar(&flags.atOnce, "parallel", 0, "runs at once; 0: one for each processor")
	f.IntVar(&flags.servers, "servers", 3, "servers of the cluster")
	f.DurationVar(&flags.length, "length", time.Minute, "how long faults are done in a run")
	return command
}

func chosenPlans(names string) ([]plan, error) {
	bugs, err := mutate.Parse(names)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(plans(), func(p plan) bool { return len(bugs) > 0 && !slices.Contains(bugs, p.bug) }), nil
}

// matrix is the table in the making.
type matrix struct {
	flags matrixFlags
	print io.Writer
	found []finding
	lost  []mutate.Bug
}

// finding is a bug that was found.
type finding struct {
	bug  mutate.Bug
	by   string // "chance", or a script
	rule string
	seed uint64
	took time.Duration
	args []string // without the bug
}

func (x *matrix) printf(format string, args ...any) { _, _ = fmt.Fprintf(x.print, format, args...) }

func (x *matrix) hunt(ctx context.Context, m *sim.Machine, chosen []plan) {
	x.printf("%-26s %-34s %-28s %6s %8s\n", "BUG", "FOUND BY", "RULE", "SEED", "TIME")
	for _, p := range chosen {
		if ctx.Err() != nil {
			return
		}
		f, found := x.find(ctx, m, p)
		if !found {
			x.lost = append(x.lost, p.bug)
			x.printf("%-26s %-34s after %v\n", p.bug, "NOT FOUND", f.took.Round(time.Second))
			continue
		}
		x.found = append(x.found, f)
		x.printf("%-26s %-34s %-28s %6d %7.1fs\n", f.bug, f.by, f.rule, f.seed, f.took.Seconds())
	}
}

// attempts are the scripts with a few seeds each, then seeds without end.
func (x *matrix) attempts(p plan) iter.Seq[recipe] {
	return func(yield func(recipe) bool) {
		base := recipe{Seed: x.flags.seeds, Length: x.flags.length, Servers: x.flags.servers, Clients: cmp.Or(p.clients, fewClients), Pace: p.pace, Workloads: p.workloads}
		scripts := directed()
		for i := range uint64(scriptSeeds) {
			for _, name := range p.scripts {
				schedule, known := scripts[name]
				r := base
				r.Seed, r.Schedule = base.Seed+i, &schedule
				if known && !yield(r) {
					return
				}
			}
		}
		for r := base; yield(r); r.Seed++ {
		}
	}
}

func (x *matrix) find(ctx context.Context, m *sim.Machine, p plan) (f finding, found bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, x.flags.limit, errEnough)
	defer cancel()
	began := time.Now()
	jobs := func(yield func(sim.Options) bool) {
		for r := range x.attempts(p) {
			r.Bugs = string(p.bug)
			args, err := r.args()
			if err != nil || !yield(sim.Options{Seed: r.Seed, Args: args, WallLimit: x.flags.limit / 2}) {
				return // an error would be one of a schedule that is in the program
			}
		}
	}
	for done := range m.RunAll(ctx, jobs, x.flags.atOnce) {
		v, wrong := firstWrong(done)
		if !wrong {
			continue
		}
		return finding{
			bug: p.bug, by: foundBy(done.Options.Args), rule: v.Checker + " " + v.Rule, seed: done.Options.Seed,
			took: time.Since(began), args: without(done.Options.Args, "-mutate="),
		}, true
	}
	return finding{took: time.Since(began)}, false
}

// firstWrong is the first thing that was wrong in a run. One that did not come to its
// end may have said so before: with a planted bug servers may send each other the same
// for ever, which takes more real time than it has.
func firstWrong(f sim.Finished) (v verdict.Violation, wrong bool) {
	summary, told := verdict.Read(f.Result.Lines)
	if told && len(summary.Violations) > 0 {
		return summary.Violations[0], true
	}
	if !errors.Is(f.Err, sim.ErrWallLimit) {
		return v, false
	}
	for _, line := range f.Result.Lines {
		if _, text, found := strings.Cut(line, " WRONG: "); found {
			return verdict.Violation{Checker: "world", Rule: "no-end", Text: text}, true
		}
	}
	return v, false
}

// foundBy is the script whose schedule the guest was given, or chance.
func foundBy(args []string) string {
	var r recipe
	if err := r.read(args); err != nil || r.Schedule == nil {
		return "chance"
	}
	for name, schedule := range directed() {
		if slices.Equal(schedule, *r.Schedule) {
			return "script: " + name
		}
	}
	return "a schedule"
}

// without leaves an argument empty.
func without(args []string, flag string) []string {
	out := slices.Clone(args)
	for i, arg := range out {
		if strings.HasPrefix(arg, flag) {
			out[i] = flag
		}
	}
	return out
}

// prove does to the real program what found the bugs: nothing may be found.
func (x *matrix) prove(ctx context.Context) error {
	m, err := machine(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close(context.WithoutCancel(ctx)) }()
	jobs := func(yield func(sim.Options) bool) {
		for _, f := range x.found {
			if !yield(sim.Options{Seed: f.seed, Args: f.args}) {
				return
			}
		}
	}
	clean, wrong := 0, 0
	for done := range m.RunAll(ctx, jobs, x.flags.atOnce) {
		summary, told := verdict.Read(done.Result.Lines)
		switch {
		case done.Err != nil || !told:
			wrong++
			x.printf("without a bug, seed %d: %v\n%s\n%s\n", done.Options.Seed, done.Err, lastWords(done.Result), done.Result.Stderr)
		case len(summary.Violations) > 0:
			wrong++
			x.printf("without a bug, seed %d: %s: %s\n", done.Options.Seed, summary.Violations[0].Checker, summary.Violations[0].Text)
		default:
			clean++
		}
	}
	return x.verdict(clean, wrong)
}

// verdict is how the command ends: so many runs without a bug were clean, and in so
// many something was wrong.
func (x *matrix) verdict(clean, wrong int) error {
	x.printf("%d of %d planted bugs found; the same %d runs without them: %d clean, %d not\n",
		len(x.found), len(x.found)+len(x.lost), len(x.found), clean, wrong)
	if len(x.lost) > 0 || wrong > 0 || clean != len(x.found) {
		return &exitError{code: 1, reason: fmt.Errorf("not found: %v; found without being there: %d", x.lost, wrong)}
	}
	return nil
}
