package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/world/sim"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

// recipe is all that decides a run.
type recipe struct {
	Seed      uint64        `json:"seed"`
	Length    time.Duration `json:"lengthNS"`
	Servers   int           `json:"servers"`
	Clients   int           `json:"clients"`
	Pace      float64       `json:"pace"`
	Workloads string        `json:"workloads,omitempty"`
	Bugs      string        `json:"mutate,omitempty"`
	// Schedule is what goes wrong; nil: what the seed decides.
	Schedule *inside.Schedule `json:"schedule,omitempty"`
}

// args are the guest's arguments but for the seed, which the host gives.
func (r recipe) args() ([]string, error) {
	out := []string{
		"-length=" + r.Length.String(), "-servers=" + strconv.Itoa(r.Servers), "-clients=" + strconv.Itoa(r.Clients),
		"-pace=" + strconv.FormatFloat(r.Pace, 'g', -1, 64),
		"-workloads=" + r.Workloads, "-mutate=" + r.Bugs,
	}
	if r.Schedule != nil {
		text, err := json.Marshal(*r.Schedule)
		if err != nil {
			return nil, fmt.Errorf("the schedule as JSON: %w", err)
		}
		out = append(out, "-schedule="+string(text))
	}
	return out, nil
}

// recordFile is a run as sim writes it down when something was wrong.
type recordFile struct {
	recipe
	// Args are the guest's arguments as they were, which replay uses.
	Args   []string `json:"args"`
	Digest string   `json:"digest"`
	// Drawn is the schedule that the seed decided, for people and for shrink.
	Drawn      json.RawMessage     `json:"drawn,omitempty"`
	Violations []verdict.Violation `json:"violations"`
}

func writeRecord(path string, f sim.Finished, summary verdict.Summary) error {
	r := recordFile{Args: f.Options.Args, Digest: f.Result.Digest, Drawn: summary.Schedule, Violations: summary.Violations}
	r.Seed = f.Options.Seed
	if err := r.read(f.Options.Args); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("seed %d as JSON: %w", f.Options.Seed, err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write down seed %d: %w", f.Options.Seed, err)
	}
	return nil
}

// read takes a recipe from the guest's arguments.
func (r *recipe) read(args []string) error {
	for _, arg := range args {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		var err error
		switch name {
		case "length":
			r.Length, err = time.ParseDuration(value)
		case "servers":
			r.Servers, err = strconv.Atoi(value)
		case "clients":
			r.Clients, err = strconv.Atoi(value)
		case "pace":
			r.Pace, err = strconv.ParseFloat(value, 64)
		case "workloads":
			r.Workloads = value
		case "mutate":
			r.Bugs = value
		case "schedule":
			r.Schedule = new(inside.Schedule)
			err = json.Unmarshal([]byte(value), r.Schedule)
		default:
			err = errors.New("no such argument")
		}
		if err != nil {
			return fmt.Errorf("argument %s of the guest: %w", arg, err)
		}
	}
	return nil
}

func readRecord(path string) (r recordFile, err error) {
	text, err := readFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: not a file of balsa-chaos sim or shrink: %w", path, err)
	}
	if len(r.Args) == 0 || r.Servers == 0 {
		return r, fmt.Errorf("%s: not a file of balsa-chaos sim or shrink: it has no args or no servers", path)
	}
	return r, nil
}

// readSchedule takes a schedule from a file that has nothing else, or from one of
// sim or shrink.
func readSchedule(path string) (inside.Schedule, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var alone inside.Schedule
	if err := json.Unmarshal(text, &alone); err == nil {
		return alone, nil
	}
	r, err := readRecord(path)
	if err != nil {
		return nil, err
	}
	return r.scheduled()
}

// scheduled is the schedule of the run, drawn or given.
func (r recordFile) scheduled() (inside.Schedule, error) {
	if r.Schedule != nil {
		return *r.Schedule, nil
	}
	var drawn inside.Schedule
	if err := json.Unmarshal(r.Drawn, &drawn); err != nil {
		return nil, fmt.Errorf("the schedule of seed %d: %w", r.Seed, err)
	}
	return drawn, nil
}

// which is what replay and shrink are told: a seed with flags, or a file.
func which(arg string, flags *simFlags) (recordFile, error) {
	seed, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return readRecord(arg)
	}
	args, err := flags.args()
	if err != nil {
		return recordFile{}, err
	}
	r := recordFile{Args: args}
	r.Seed = seed
	return r, r.read(args)
}

func replayCommand() *cobra.Command {
	var flags simFlags
	command := &cobra.Command{
		Use: "replay SEED|FILE", Short: "Make one simulated run again, and show what happens in it", Args: cobra.ExactArgs(1),
		Long: `Make one simulated run again, and show what happens in it.

FILE is one that sim or shrink has written; then the digest has to be the one that is
in it, or the program is not the one that wrote it, and the command ends with 1. A
SEED is run with the flags, as sim does. --history writes what the clients of the etcd
space asked and were told, for balsa-chaos history and balsa-chaos check.`,
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
			return replay(command.Context(), command.OutOrStdout(), m, r, &flags)
		},
	}
	flags.add(command)
	command.Flags().StringVar(&flags.history, "history", "", "file for the history of the etcd space")
	return command
}

func replay(ctx context.Context, out io.Writer, m *sim.Machine, r recordFile, flags *simFlags) (err error) {
	o := sim.Options{Seed: r.Seed, Args: r.Args, WallLimit: flags.wall}
	if flags.history != "" {
		file, err := os.Create(flags.history)
		if err != nil {
			return fmt.Errorf("file for the history: %w", err)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		o.History = file
	}
	result, err := m.Run(ctx, o)
	_, _ = fmt.Fprintf(out, "%s\ndigest %d %s\n", strings.Join(result.Lines, "\n"), r.Seed, result.Digest)
	switch {
	case err != nil:
		return fmt.Errorf("%w\n%s", err, result.Stderr)
	case r.Digest != "" && r.Digest != result.Digest:
		return fmt.Errorf("this run is another one: its digest is %s, the file has %s: the program has changed since, or was built by another toolchain", result.Digest, r.Digest)
	case result.ExitCode != verdict.Good:
		return &exitError{code: result.ExitCode, reason: fmt.Errorf("the run ended with %d\n%s", result.ExitCode, result.Stderr)}
	}
	return nil
}
