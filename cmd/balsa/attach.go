package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

func (a *app) attachCommand() *cobra.Command {
	var container string
	var stdin, tty bool
	command := &cobra.Command{
		Use: "attach POD [-c CONTAINER] [-it]", Short: "Join the streams of a container's own program", Args: cobra.ExactArgs(1),
		Long: `Join the streams of a container's own program. When the program ends, this one
ends with its exit code; when this one ends, the program goes on (unless it has
stdinOnce and was typed to).`,
		Example: "  balsa attach hello-7d9f-x2k4j\n  balsa attach -it shell -c main",
		RunE: func(command *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			name, err := a.podNamed(command.Context(), c, args[0])
			if err != nil {
				return err
			}
			pod, err := client.Get[*balsav1.Pod](command.Context(), c, a.namespace, name, client.GetOptions{})
			if err != nil {
				return err
			}
			return a.attachTo(command.Context(), c, pod, container, stdin, tty)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&container, "container", "c", "", "container; may be left out when there is one")
	flags.BoolVarP(&stdin, "stdin", "i", false, "hand on the standard input")
	flags.BoolVarP(&tty, "tty", "t", false, "the standard input is a terminal, and so is the program's")
	return command
}

// attachTo joins a container; a terminal is only used where the container has one.
func (a *app) attachTo(ctx context.Context, c *client.Client, pod *balsav1.Pod, container string, stdin, tty bool) error {
	has := false
	for _, each := range object.AllContainers(pod.GetSpec()) {
		if each.GetName() == container || container == "" && len(pod.GetSpec().GetContainers()) == 1 {
			has = has || each.GetTty()
		}
	}
	if tty && !has {
		fmt.Fprintln(a.errOut, "the container was started without a terminal: none is used")
		tty = false
	}
	tty = a.wantsTerminal(tty)
	start := &balsav1.AttachStart{Namespace: pod.GetMetadata().GetNamespace(), Name: pod.GetMetadata().GetName(), Container: container, Stdin: stdin}
	if tty {
		start.Size = a.terminalSize()
	}
	stream, err := c.Pods.Attach(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseResponse() }()
	if err := stream.Send(&balsav1.AttachRequest{Message: &balsav1.AttachRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s := &session{
		a: a, stdin: stdin, tty: tty, abort: stream.CloseResponse,
		send: func(in *balsav1.StreamInput) error {
			return stream.Send(&balsav1.AttachRequest{Message: &balsav1.AttachRequest_Input{Input: in}})
		},
		receive: func() (*balsav1.StreamOutput, error) {
			m, err := stream.Receive()
			return m.GetOutput(), err
		},
	}
	return s.run(ctx)
}
