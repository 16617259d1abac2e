package main

import (
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
)

// What a sweep is by default: short runs, since there are many.
const (
	sweepLength = "12s"
	sweepMost   = 1000
)

type sweepFlags struct {
	simFlags
	seed       uint64
	target     string
	what       string
	at, window time.Duration
	most       int
}

func sweepCommand() *cobra.Command {
	var flags sweepFlags
	command := &cobra.Command{
		Use: "sweep", Short: "Crash a server at each of its writes, one run for each", Args: cobra.NoArgs,
		Long: `Crash a server at each of its writes, one run for each.

What chance may miss, a sweep does not: the same run is made again and again, and in the
N-th the power of the target is cut right before its N-th write after --at, and once more
right behind it; it starts again when --window is over. The sweep ends with the first
number of which there is no write in the window. --script or --schedule say what else
goes wrong meanwhile; without them nothing does.

Exit codes: those of sim; 3 also when there was no write.`,
		Example: `  balsa-chaos sweep
  balsa-chaos sweep --target follower --what vote --script "late answers" --length 20s`,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			s, err := newSweep(&flags, command.OutOrStdout())
			if err != nil {
				return err
			}
			m, err := machine(ctx, tagsFor(flags.bugs)...)
			if err != nil {
				return err
			}
			defer func() { _ = m.Close(context.WithoutCancel(ctx)) }()
			for f := range m.RunAll(ctx, s.jobs(), flags.atOnce) {
				// When it is interrupted the last runs are in no order.
				if ctx.Err() != nil || !s.add(f) {
					break
				}
			}
			return s.end(ctx)
		},
	}
	flags.add(command)
	f := command.Flags()
	length := f.Lookup("length")
	length.DefValue = sweepLength
	_ = length.Value.Set(sweepLength) // a constant that is a duration
	f.Uint64Var(&flags.seed, "seed", 1, "of all runs")
	f.StringVar(&flags.target, "target", string(inside.Leader), "leader, follower, any, or a server's name")
	f.StringVar(&flags.what, "what", "", "only writes whose name begins so: append, truncate, vote, stable, snapshot")
	f.DurationVar(&flags.at, "at", time.Second, "when the writes begin to be counted, in simulated time")
	f.DurationVar(&flags.window, "window", 4*time.Second, "how long they are counted")
	f.IntVar(&flags.most, "most", sweepMost, "writes to try at most")
	return command
}

// moment is where one run of a sweep crashes.
type moment struct {
	kind inside.Kind
	n    int
}

// momentOf is the moment of the i-th run, from 0: before and behind each write.
func momentOf(i int) moment {
	if i%2 == 1 {
		return moment{inside.CrashAfter, i/2 + 1}
	}
	return moment{inside.CrashBefore, i/2 + 1}
}

func (m moment) String() string { return fmt.Sprintf("%s %d", m.kind, m.n) }

// id is a moment in the name of a file.
func (m moment) id() string {
	if m.kind == inside.CrashAfter {
		return fmt.Sprintf("after-%d", m.n)
	}
	return fmt.Sprintf("before-%d", m.n)
}

// sweep is a series of runs that crash at one write after the other.
type sweep struct {
	*series
	flags *sweepFlags
	base  recipe
	// crashed is the last number of a write at which a server crashed.
	crashed int
	whole   bool
}

func newSweep(flags *sweepFlags, out io.Writer) (*sweep, error) {
	base, err := flags.recipe()
	if err != nil {
		return nil, err
	}
	base.Seed = flags.seed
	s := &sweep{series: newSeries(out, flags.out), flags: flags, base: base}
	if _, err := s.args(momentOf(0)); err != nil {
		return nil, err
	}
	if flags.most < 1 {
		return nil, fmt.Errorf("--most %d: at least one write has to be tried", flags.most)
	}
	return s, nil
}

func (s *sweep) fault(m moment) inside.Fault {
	return inside.Fault{Kind: m.kind, Target: inside.Target(s.flags.target), For: s.flags.window, N: m.n, What: s.flags.what}
}

// args are those of the run that crashes at a moment.
func (s *sweep) args(m moment) ([]string, error) {
	crash := inside.Step{At: s.flags.at, Fault: s.fault(m)}
	if err := crash.Check(); err != nil {
		return nil, err
	}
	r, schedule := s.base, inside.Schedule{}
	if r.Schedule != nil {
		schedule = slices.Clone(*r.Schedule)
	}
	schedule = append(schedule, crash)
	slices.SortStableFunc(schedule, func(a, b inside.Step) int { return int(a.At - b.At) })
	r.Schedule = &schedule
	return r.args()
}

func (s *sweep) jobs() iter.Seq[sim.Options] {
	return func(yield func(sim.Options) bool) {
		for i := range 2 * s.flags.most {
			args, err := s.args(momentOf(i))
			if err != nil {
				return // the first was well, and the others have other numbers only
			}
			if !yield(sim.Options{Seed: s.base.Seed, Args: args, WallLimit: s.flags.wall}) {
				return
			}
		}
	}
}

// add takes the next run; false when there is nothing more to learn from others.
func (s *sweep) add(f sim.Finished) bool {
	m := momentOf(s.runs)
	if f.Result.ExitCode != verdict.Broken && s.inVain(f, m) {
		s.whole = true
		return false
	}
	s.crashed = m.n
	s.addAs(f, m.String(), m.id())
	return len(s.broken) == 0 // what dies at one moment would do so at the next
}

// inVain says that a run has not crashed at its moment.
func (s *sweep) inVain(f sim.Finished, m moment) bool {
	return slices.ContainsFunc(f.Result.Lines, func(line string) bool { return strings.HasSuffix(line, inside.InVain(s.fault(m))) })
}

func (s *sweep) end(ctx context.Context) error {
	err := s.series.end(ctx)
	how := "each of them"
	if !s.whole {
		how = "the first of them"
	}
	s.printf("swept: %d writes of %s in %v, %s, before and behind\n", s.crashed, s.flags.target, s.flags.window, how)
	if err == nil && s.crashed == 0 {
		return &exitError{code: exitTooLittle, reason: errors.New("there was no write to crash at: give another --at, --window or --what")}
	}
	return err
}
