package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/zerodrop"
)

// The play in full, as it is promised; what about two minutes hold; and what is
// enough for a build that must fail.
var (
	fullPlay  = zerodrop.Counts{Rollouts: 200, Drains: 50, Upgrades: 50, Kills: 20}
	shortPlay = zerodrop.Counts{Rollouts: 40, Drains: 14, Upgrades: 14, Kills: 6}
	failPlay  = zerodrop.Counts{Rollouts: 10, Drains: 4, Upgrades: 6, Kills: 2}
)

func zeroDropCommand() *cobra.Command {
	var options zerodrop.Options
	var short, mustFail bool
	command := &cobra.Command{
		Use: "zero-drop", Short: "Roll, drain, upgrade and kill under load; no request may fail", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			options.Chaos, options.Out, options.Counts = program, command.OutOrStdout(), fullPlay
			switch {
			case mustFail:
				options.Counts = failPlay
			case short:
				options.Counts = shortPlay
			}
			if options.Seed == 0 {
				options.Seed = uint64(time.Now().UnixNano())
			}
			report, err := zerodrop.Run(command.Context(), options)
			if report == nil {
				return err
			}
			c := options.Counts
			fmt.Fprintf(options.Out, "\n%d rollouts, %d drains, %d upgrades of agents, %d kills of the leader, %d pauses of agents in %v, seed %d\n%s",
				c.Rollouts, c.Drains, c.Upgrades, c.Kills, report.Pauses, report.Took.Round(time.Second), options.Seed, report)
			switch failed := report.Failed(); {
			case err != nil:
				return err
			case mustFail && failed == 0:
				return errors.New("no request failed, although nodes were not waited for: this play proves nothing")
			case !mustFail && failed > 0:
				return fmt.Errorf("%d requests failed", failed)
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Binary, "balsa", "bin/balsa", "the program to play on")
	flags.StringVar(&options.Archive, "image", "bin/echo.tar", "archive of the echo image")
	flags.StringVar(&options.Dir, "dir", "/tmp/balsa-zero-drop", "folder for everything that the play writes")
	flags.BoolVar(&short, "short", false, "play for about two minutes")
	flags.BoolVar(&mustFail, "must-fail", false, "a few rounds of a build that does not wait for the nodes: requests must fail")
	flags.Uint64Var(&options.Seed, "seed", 0, "chooses whom it hits; 0: another each time")
	return command
}
