package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/shrink"
	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

// shortest is how short shrink makes a fault.
const shortest = 10 * time.Millisecond

func shrinkCommand() *cobra.Command {
	var flags simFlags
	var limit time.Duration
	command := &cobra.Command{
		Use: "shrink SEED|FILE", Short: "Make the schedule of a run that breaks a promise small", Args: cobra.ExactArgs(1),
		Long: `Make the schedule of a run that breaks a promise small.

Faults are left out for as long as the same rule is broken, then made shorter, then
clients are taken away. What is left is printed, and written to a file for replay.`,
		RunE: func(command *cobra.Command, args []string) error {
			r, err := which(args[0], &flags)
			if err != nil {
				return err
			}
			m, err := machine(command.Context(), tagsFor(r.Bugs)...)
			if err != nil {
				return err
			}
			defer func() { _ = m.Close(context.WithoutCancel(command.Context())) }()
			ctx, cancel := context.WithTimeoutCause(command.Context(), limit, errEnough)
			defer cancel()
			s := &shrinker{machine: m, print: command.OutOrStdout(), wall: flags.wall, recipe: r.recipe}
			return s.run(ctx, flags.out)
		},
	}
	flags.add(command)
	command.Flags().DurationVar(&limit, "limit", 10*time.Minute, "real time after which the smallest so far is good enough")
	return command
}

// errEnough ends a search that has taken its time.
var errEnough = errors.New("the time for shrinking is up")

type shrinker struct {
	machine *sim.Machine
	print   io.Writer
	wall    time.Duration
	recipe  recipe
	rule    string // that has to be broken again
	runs    int
	// smallest is the last run that broke it.
	smallest sim.Finished
}

func (s *shrinker) printf(format string, args ...any) { _, _ = fmt.Fprintf(s.print, format, args...) }

// run shrinks and prints. What is given must break a promise, with its schedule
// drawn and with it given.
func (s *shrinker) run(ctx context.Context, out string) error {
	if err := s.first(ctx); err != nil {
		return err
	}
	before := len(*s.recipe.Schedule)
	steps, err := shrink.List(ctx, *s.recipe.Schedule, s.fails)
	if err == nil {
		s.printf("%d of %d faults are enough, after %d runs\n", len(steps), before, s.runs)
		steps, err = shrink.Each(ctx, steps, shorter, s.fails)
	}
	schedule := inside.Schedule(steps)
	s.recipe.Schedule = &schedule
	if err == nil {
		err = s.fewer(ctx)
	}
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return s.report(out)
}

// first runs what was given, and learns the rule and the schedule.
func (s *shrinker) first(ctx context.Context) error {
	f, summary, err := s.try(ctx, s.recipe)
	if err != nil {
		return err
	}
	if len(summary.Violations) == 0 {
		return fmt.Errorf("seed %d breaks no promise, so there is nothing to shrink", s.recipe.Seed)
	}
	s.rule = summary.Violations[0].Rule
	s.printf("seed %d breaks %q\n", s.recipe.Seed, s.rule)
	s.smallest = f
	if s.recipe.Schedule != nil {
		return nil
	}
	drawn, err := recordFile{Drawn: summary.Schedule}.scheduled()
	if err != nil {
		return err
	}
	s.recipe.Schedule = &drawn
	if again, err := s.fails(ctx, drawn); err != nil {
		return err
	} else if !again {
		return fmt.Errorf("seed %d breaks %q, but not when its own schedule is given to it: it hangs on a hair, and cannot be shrunk", s.recipe.Seed, s.rule)
	}
	return nil
}

// shorter is half as long.
func shorter(step inside.Step) []inside.Step {
	if step.For < 2*shortest {
		return nil
	}
	step.For = (step.For / 2).Round(time.Millisecond)
	return []inside.Step{step}
}

func (s *shrinker) fails(ctx context.Context, steps []inside.Step) (bool, error) {
	r := s.recipe
	schedule := inside.Schedule(slices.Clone(steps))
	if schedule == nil {
		schedule = inside.Schedule{}
	}
	r.Schedule = &schedule
	return s.breaks(ctx, r)
}

func (s *shrinker) breaks(ctx context.Context, r recipe) (bool, error) {
	f, summary, err := s.try(ctx, r)
	if err != nil {
		return false, err
	}
	same := slices.ContainsFunc(summary.Violations, func(v verdict.Violation) bool { return v.Rule == s.rule })
	if same {
		s.smallest = f
	}
	return same, nil
}

// fewer takes clients away.
func (s *shrinker) fewer(ctx context.Context) error {
	for s.recipe.Clients > 1 {
		r := s.recipe
		r.Clients--
		if yes, err := s.breaks(ctx, r); err != nil || !yes {
			return err
		}
		s.recipe = r
	}
	return nil
}

// try makes one run. One that dies or is ended by a limit breaks nothing.
func (s *shrinker) try(ctx context.Context, r recipe) (sim.Finished, verdict.Summary, error) {
	args, err := r.args()
	if err != nil {
		return sim.Finished{}, verdict.Summary{}, err
	}
	s.runs++
	o := sim.Options{Seed: r.Seed, Args: args, WallLimit: s.wall}
	result, err := s.machine.Run(ctx, o)
	if ctx.Err() != nil {
		return sim.Finished{}, verdict.Summary{}, context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, sim.ErrWallLimit) && !errors.Is(err, sim.ErrVirtualLimit) {
		return sim.Finished{}, verdict.Summary{}, err
	}
	summary, _ := verdict.Read(result.Lines)
	return sim.Finished{Options: o, Result: result, Err: err}, summary, nil
}

func (s *shrinker) report(out string) error {
	summary, _ := verdict.Read(s.smallest.Result.Lines)
	path := filepath.Join(out, fmt.Sprintf("sim-%d-small.json", s.recipe.Seed))
	if err := writeRecord(path, s.smallest, summary); err != nil {
		return err
	}
	var r recipe
	if err := r.read(s.smallest.Options.Args); err != nil {
		return err
	}
	s.printf("\nafter %d runs, with %d clients:\n", s.runs, r.Clients)
	if r.Schedule != nil {
		for _, step := range *r.Schedule {
			s.printf("  at %8.3fs  %v\n", step.At.Seconds(), step.Fault)
		}
	}
	for _, v := range summary.Violations {
		if v.Rule == s.rule {
			s.printf("%s: %s\n", v.Checker, v.Text)
			break
		}
	}
	s.printf("again: balsa-chaos replay %s\n", path)
	return nil
}
