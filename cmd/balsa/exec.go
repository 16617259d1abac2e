package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

func (a *app) execCommand() *cobra.Command {
	var container string
	var stdin, tty bool
	command := &cobra.Command{
		Use: "exec POD [-c CONTAINER] [-it] -- COMMAND [ARG...]", Short: "Run a further program in a container", Args: cobra.ArbitraryArgs,
		Long: `Run a further program in a container of a pod, and end with its exit code. The
program ends when this one does.`,
		Example: "  balsa exec hello-7d9f-x2k4j -- ls -l /\n  balsa exec -it deploy/hello -- sh\n  echo 'select 1' | balsa exec -i db-0 -c postgres -- psql -U app",
		RunE: func(command *cobra.Command, args []string) error {
			at := command.ArgsLenAtDash()
			if at != 1 || len(args) < 2 {
				return &usageError{errors.New("give one pod, then -- and the program, for example: balsa exec my-pod -- ls /")}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			name, err := a.podNamed(command.Context(), c, args[0])
			if err != nil {
				return err
			}
			start := &balsav1.ExecStart{Namespace: a.namespace, Name: name, Container: container, Command: args[1:], Stdin: stdin, Tty: a.wantsTerminal(tty)}
			return a.exec(command.Context(), c, start)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&container, "container", "c", "", "container; may be left out when there is one")
	flags.BoolVarP(&stdin, "stdin", "i", false, "hand on the standard input")
	flags.BoolVarP(&tty, "tty", "t", false, "give the program a terminal")
	return command
}

func (a *app) exec(ctx context.Context, c *client.Client, start *balsav1.ExecStart) error {
	if start.GetTty() {
		start.Size = a.terminalSize()
	}
	stream, err := c.Pods.Exec(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseResponse() }()
	if err := stream.Send(&balsav1.ExecRequest{Message: &balsav1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s := &session{
		a: a, stdin: start.GetStdin(), tty: start.GetTty(), abort: stream.CloseResponse,
		send: func(in *balsav1.StreamInput) error {
			return stream.Send(&balsav1.ExecRequest{Message: &balsav1.ExecRequest_Input{Input: in}})
		},
		receive: func() (*balsav1.StreamOutput, error) {
			m, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				return nil, errors.New("the stream ended before the program did: nothing is known of its exit code")
			}
			return m.GetOutput(), err
		},
	}
	return s.run(ctx)
}
