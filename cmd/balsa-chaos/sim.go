package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// What a command ends with, beside 0 and 1.
const (
	exitTooLittle   = 3
	exitInterrupted = 130
)

// exitError ends the program with a code of its own. What there is to say has been
// said when its reason is nil.
type exitError struct {
	code   int
	reason error
}

func (e *exitError) Error() string {
	if e.reason == nil {
		return ""
	}
	return e.reason.Error()
}

func (e *exitError) Unwrap() error { return e.reason }

// simFlags are how a run is made: all but the seed.
type simFlags struct {
	length    time.Duration
	servers   int
	clients   int
	pace      float64
	workloads string
	script    string
	schedule  string
	bugs      string
	atOnce    int
	out       string
	history   string
	wall      time.Duration
}

func (f *simFlags) add(command *cobra.Command) {
	flags := command.Flags()
	flags.DurationVar(&f.length, "length", time.Minute, "how long faults are done, in simulated time")
	flags.IntVar(&f.servers, "servers", 3, "servers of the cluster, 3 to 5")
	flags.IntVar(&f.clients, "clients", 3, "clients of each workload")
	flags.Float64Var(&f.pace, "pace", 1, "how much faster than usual clients ask")
	flags.StringVar(&f.workloads, "workloads", "", "only these, with commas")
	flags.StringVar(&f.script, "script", "", "do what a directed script says instead of what the seed decides")
	flags.StringVar(&f.schedule, "schedule", "", "do what this file says, JSON, instead of what the seed decides")
	flags.StringVar(&f.bugs, "mutate", "", "plant these bugs, with commas")
	flags.IntVar(&f.atOnce, "parallel", 0, "runs at once; 0: one for each processor")
	flags.StringVar(&f.out, "out", ".", "folder for the files of runs in which something was wrong")
	flags.DurationVar(&f.wall, "wall", sim.DefaultWallLimit, "real time that one run may take")
}

// args are the guest's arguments.
func (f *simFlags) args() ([]string, error) {
	r, err := f.recipe()
	if err != nil {
		return nil, err
	}
	return r.args()
}

// recipe is what the flags say, for any seed.
func (f *simFlags) recipe() (recipe, error) {
	if f.script != "" && f.schedule != "" {
		return recipe{}, errors.New("--script and --schedule exclude each other")
	}
	r := recipe{Length: f.length, Servers: f.servers, Clients: f.clients, Pace: f.pace, Workloads: f.workloads, Bugs: f.bugs}
	switch {
	case f.script != "":
		scripts := directed()
		schedule, known := scripts[f.script]
		if !known {
			return recipe{}, fmt.Errorf("--script: there is no %q; there are: %s", f.script, strings.Join(verdict.Names(scripts), ", "))
		}
		r.Schedule = &schedule
	case f.schedule != "":
		schedule, err := readSchedule(f.schedule)
		if err != nil {
			return recipe{}, err
		}
		r.Schedule = &schedule
	}
	return r, nil
}

func simCommand() *cobra.Command {
	var flags simFlags
	var seeds string
	command := &cobra.Command{
		Use: "sim", Short: "Run simulated clusters, one for each seed, while everything goes wrong", Args: cobra.NoArgs,
		Long: `Run simulated clusters, one for each seed, while everything goes wrong.

The servers are the real program, in a world that the seed decides: network, disks,
clocks, crashes. What clients were told is judged by the checkers of chaos/check. The
same seed gives the same run, which its digest shows. The guest is built from the
checkout that the working directory is in, with the go command.

Exit codes: 1 a promise was broken, 3 a run did too little to prove anything, 130
interrupted: what was done so far has been printed.`,
		RunE: func(command *cobra.Command, _ []string) error {
			first, last, err := seedRange(seeds)
			if err != nil {
				return err
			}
			args, err := flags.args()
			if err != nil {
				return err
			}
			m, err := machine(command.Context(), tagsFor(flags.bugs)...)
			if err != nil {
				return err
			}
			defer func() { _ = m.Close(context.WithoutCancel(command.Context())) }()
			c := newSeries(command.OutOrStdout(), flags.out)
			c.run(command.Context(), m, jobs(first, last, args, flags.wall), flags.atOnce)
			return c.end(command.Context())
		},
	}
	command.Flags().StringVar(&seeds, "seeds", "1:10", "FIRST:LAST, or one")
	flags.add(command)
	return command
}

// seedRange reads "FIRST:LAST" or one number.
func seedRange(text string) (first, last uint64, err error) {
	low, high, several := strings.Cut(text, ":")
	if !several {
		high = low
	}
	first, err1 := strconv.ParseUint(low, 10, 64)
	last, err2 := strconv.ParseUint(high, 10, 64)
	if err := errors.Join(err1, err2); err != nil || first > last {
		return 0, 0, fmt.Errorf("--seeds %q: expected FIRST:LAST, as in 1:50, or one number", text)
	}
	return first, last, nil
}

func jobs(first, last uint64, args []string, wall time.Duration) iter.Seq[sim.Options] {
	return func(yield func(sim.Options) bool) {
		for seed := first; ; seed++ {
			if !yield(sim.Options{Seed: seed, Args: args, WallLimit: wall}) || seed == last {
				return
			}
		}
	}
}

// tagsFor are the build tags that planted bugs need.
func tagsFor(bugs string) []string {
	if bugs == "" {
		return nil
	}
	return []string{"mutate"}
}

// machine builds the guest. Whoever has it closes it when everything was told: what can
// fail then is giving back the memory of a program that is about to end, so that error is
// dropped.
func machine(ctx context.Context, tags ...string) (*sim.Machine, error) {
	wasm, err := sim.Guest(ctx, tags...)
	if err != nil {
		return nil, err
	}
	cache, err := sim.CacheDir()
	if err != nil {
		return nil, err
	}
	m, err := sim.New(ctx, wasm, sim.Config{CacheDir: cache})
	if err != nil {
		return nil, err
	}
	sim.KeepWatch()
	return m, nil
}

// series sums up runs and prints them.
type series struct {
	print  io.Writer
	out    string
	began  time.Time
	total  verdict.Summary
	runs   int
	bad    []string
	little []string
	broken []error
	// virtual is simulated time, busy the processor time that it took.
	virtual, busy time.Duration
}

func newSeries(to io.Writer, out string) *series {
	return &series{print: to, out: out, began: time.Now()}
}

func (c *series) run(ctx context.Context, m *sim.Machine, jobs iter.Seq[sim.Options], atOnce int) {
	for f := range m.RunAll(ctx, jobs, atOnce) {
		c.add(f)
	}
}

func (c *series) printf(format string, args ...any) { _, _ = fmt.Fprintf(c.print, format, args...) }

// add takes the run of a seed.
func (c *series) add(f sim.Finished) {
	id := strconv.FormatUint(f.Options.Seed, 10)
	c.addAs(f, "seed "+id, id)
}

// addAs takes a run that is called name in what is printed, and id in the names of files.
func (c *series) addAs(f sim.Finished, name, id string) {
	c.runs++
	c.virtual += f.Result.VirtualElapsed
	c.busy += f.Result.Processor
	if f.Result.Digest != "" { // a run that is stuck has none
		c.printf("digest %s %s\n", id, f.Result.Digest)
	}
	summary, told := verdict.Read(f.Result.Lines)
	if told {
		c.total.Add(summary)
	}
	switch {
	case f.Err == nil && f.Result.ExitCode == verdict.Good:
		return
	case f.Err == nil && f.Result.ExitCode == verdict.TooLittle:
		c.little = append(c.little, name)
		c.printf("%s did too little: %s\n", name, strings.Join(summary.Missing, "; "))
	case f.Err == nil && f.Result.ExitCode == verdict.Broken && told:
		c.bad = append(c.bad, name)
		c.violation(f, summary, name, id)
	default:
		c.broken = append(c.broken, fmt.Errorf("%s: exit code %d: %w\n%s", name, f.Result.ExitCode, errors.Join(f.Err, errors.New(lastWords(f.Result))), f.Result.Stderr))
	}
}

// wordsShown bounds what is shown of a run that died.
const wordsShown = 5

func lastWords(r sim.Result) string {
	return strings.Join(r.Lines[max(0, len(r.Lines)-wordsShown):], "\n")
}

// violationsShown bounds what is printed of one run: the first tell most.
const violationsShown = 3

func (c *series) violation(f sim.Finished, summary verdict.Summary, name, id string) {
	c.printf("\nVIOLATION in %s\n", name)
	for _, v := range summary.Violations[:min(len(summary.Violations), violationsShown)] {
		c.printf("%s: %s\n", v.Checker, v.Text)
	}
	if more := len(summary.Violations) - violationsShown; more > 0 {
		c.printf("and %d more\n", more)
	}
	path := filepath.Join(c.out, fmt.Sprintf("sim-%s.json", id))
	if err := writeRecord(path, f, summary); err != nil {
		c.broken = append(c.broken, err)
		return
	}
	c.printf("again: balsa-chaos replay %s    smaller: balsa-chaos shrink %s\n\n", path, path)
}

// end prints the summary and says how the command ends.
func (c *series) end(ctx context.Context) error {
	took := time.Since(c.began)
	c.summary(took)
	switch {
	case len(c.broken) > 0:
		return errors.Join(c.broken...)
	case len(c.bad) > 0:
		return &exitError{code: 1, reason: fmt.Errorf("%d of %d runs broke a promise: %s", len(c.bad), c.runs, strings.Join(c.bad, ", "))}
	case ctx.Err() != nil:
		return &exitError{code: exitInterrupted, reason: fmt.Errorf("interrupted after %d runs", c.runs)}
	case len(c.little) > 0:
		return &exitError{code: exitTooLittle, reason: fmt.Errorf("%d of %d runs did too little to prove anything: %s", len(c.little), c.runs, strings.Join(c.little, ", "))}
	}
	return nil
}

func (c *series) summary(took time.Duration) {
	all := c.total.Operations()
	c.printf("\n%d runs, %.2f simulated hours in %v: %.1f simulated hours an hour, %.1f an hour of a processor\n",
		c.runs, c.virtual.Hours(), took.Round(time.Second), ratio(c.virtual, took), ratio(c.virtual, c.busy))
	c.printf("operations: %d, of which %d succeeded, %d were refused, %d are unknown\n", all.All(), all.OK, all.Refused, all.Unknown)
	for _, name := range verdict.Names(c.total.Workloads) {
		w := c.total.Workloads[name]
		c.printf("  %-10s %8d ok %8d refused %8d unknown\n", name, w.OK, w.Refused, w.Unknown)
	}
	faults := 0
	for _, n := range c.total.Faults {
		faults += n
	}
	c.printf("faults: %d; leaders elected: %d\n", faults, c.total.Failovers)
	for _, kind := range verdict.Names(c.total.Faults) {
		c.printf("  %-24s %8d\n", kind, c.total.Faults[kind])
	}
	c.printf("states reached:\n")
	var not []string
	for _, state := range verdict.Names(c.total.Reached) {
		if n := c.total.Reached[state]; n > 0 {
			c.printf("  %-40s %8d\n", state, n)
		} else {
			not = append(not, state)
		}
	}
	if len(not) > 0 {
		c.printf("states not reached: %s\n", strings.Join(not, ", "))
	}
	c.printf("violations: %d, in %d runs; runs that did too little: %d\n", len(c.total.Violations), len(c.bad), len(c.little))
}

func ratio(a, b time.Duration) float64 {
	if b <= 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// code is what the program ends with after an error.
func code(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return 1
}

func readFile(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}
