// Balsa is the whole orchestrator in one program: a server of the control
// plane, the agent of a node, and the command line that talks to them. This
// package parses and prints; what is done is done elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/daemon"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // what was asked for did not come about
	exitUsage  = 2 // the command line itself is wrong; nothing was tried
)

// grpcLogVariable is gRPC's own: who sets it wants its log, on standard error.
const grpcLogVariable = "GRPC_GO_LOG_SEVERITY_LEVEL"

func main() {
	if os.Getenv(grpcLogVariable) == "" {
		// What gRPC would print are errors that its callers are told as well, among them
		// those of what clients send: a log that strangers write.
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program without the process around it.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, errOut: errOut}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	command, err := root.ExecuteContextC(ctx)
	a.disconnect()
	if err == nil {
		return exitOK
	}
	var exited *exitError
	if errors.As(err, &exited) {
		return exited.code
	}
	a.explain(err)
	var usage *usageError
	var option *daemon.OptionError
	if errors.As(err, &usage) || errors.As(err, &option) {
		fmt.Fprintf(errOut, "  hint: %s --help\n", command.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// app is one run of the program.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	configPath  string
	namespace   string
	retryFor    time.Duration
	client      *client.Client // what connect made, until the program ends
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "balsa",
		Short: "A container orchestrator in one binary",
		Long: `Balsa runs containers on a cluster of machines: three servers keep the state in
a raft group, agents run the pods. This program is all of them.

  balsa dev                        a cluster of one, for trying things
  balsa server, balsa agent        the parts of a real one
  balsa apply, get, describe ...   to work with it

Exit codes: 0 done, 1 not done, 2 the command line is wrong; exec, attach and
debug end with that of the program.`,
		SilenceUsage: true, SilenceErrors: true,
		RunE: inside, Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", "", "client configuration (default $BALSA_CONFIG, ./balsa-dev/admin.yaml, ~/.balsa/admin.yaml)")
	flags.StringVarP(&a.namespace, "namespace", "n", "default", "namespace")
	flags.DurationVar(&a.retryFor, "retry-for", client.DefaultRetryFor, "how long to try again while no server can serve; 0: try once")
	root.AddGroup(
		&cobra.Group{ID: "work", Title: "Work with objects:"},
		&cobra.Group{ID: "pods", Title: "Look into pods:"},
		&cobra.Group{ID: "cluster", Title: "Look after the cluster:"},
		&cobra.Group{ID: "run", Title: "Run Balsa:"},
	)
	a.add(root, "work", a.applyCommand(), a.getCommand(), a.describeCommand(), a.deleteCommand(), a.scaleCommand(),
		a.rolloutCommand(), a.labelCommand(), a.annotateCommand(), a.eventsCommand(), a.imageCommand())
	a.add(root, "pods", a.logsCommand(), a.execCommand(), a.attachCommand(), a.portForwardCommand(), a.proxyCommand(), a.cpCommand(), a.topCommand(), a.debugCommand(), a.whyCommand())
	a.add(root, "cluster", a.clusterCommand(), a.nodeCommand(), a.tokenCommand(), a.userCommand(), a.configCommand(), a.versionCommand())
	a.add(root, "run", a.serverCommand(), a.agentCommand(), a.devCommand())
	return root
}

func (a *app) add(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, command := range commands {
		command.GroupID = group
		if command.HasSubCommands() {
			command.RunE = inside
		}
		wrapArgs(command)
		root.AddCommand(command)
	}
}

// inside is what a command that only holds others does by itself.
func inside(command *cobra.Command, args []string) error {
	if len(args) == 0 {
		return command.Help()
	}
	text := fmt.Sprintf("%q is no command of %s", args[0], command.CommandPath())
	command.SuggestionsMinimumDistance = 2
	if near := command.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; try: " + strings.Join(near, ", ")
	}
	return &usageError{errors.New(text)}
}

// wrapArgs makes refused arguments usage errors, in every command.
func wrapArgs(command *cobra.Command) {
	if check := command.Args; check != nil {
		command.Args = func(command *cobra.Command, args []string) error {
			if check(command, args) == nil {
				return nil
			}
			found := "no argument"
			if len(args) > 0 {
				found = strconv.Quote(strings.Join(args, " "))
			}
			return &usageError{fmt.Errorf("found %s; allowed: %s", found, command.UseLine())}
		}
	}
	for _, child := range command.Commands() {
		wrapArgs(child)
	}
}
