package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

func (a *app) logsCommand() *cobra.Command {
	var request balsav1.LogsRequest
	var tail int64
	var since time.Duration
	var timestamps bool
	command := &cobra.Command{
		Use: "logs POD", Short: "Show what a pod's container printed", Args: cobra.ExactArgs(1),
		Example: "  balsa logs hello-7d9f-x2k4j\n  balsa logs -f --tail 20 hello-7d9f-x2k4j\n  balsa logs -p hello-7d9f-x2k4j -c echo",
		RunE: func(command *cobra.Command, args []string) error {
			request.Namespace, request.Name = a.namespace, args[0]
			if found, err := targets(args); err == nil && len(found) == 1 && len(found[0].names) == 1 {
				if found[0].kind.Name != "Pod" {
					return &usageError{fmt.Errorf("logs are those of a pod; %s is not one", args[0])}
				}
				request.Name = found[0].names[0]
			}
			if command.Flags().Changed("tail") {
				request.TailLines = &tail
			}
			if since > 0 {
				request.SinceTime = timestamppb.New(time.Now().Add(-since))
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.logs(command.Context(), c, &request, timestamps)
		},
	}
	flags := command.Flags()
	flags.StringVarP(&request.Container, "container", "c", "", "container; may be left out when there is one")
	flags.BoolVarP(&request.Follow, "follow", "f", false, "go on with what is printed")
	flags.BoolVarP(&request.Previous, "previous", "p", false, "of the container's run before this one")
	flags.Int64Var(&tail, "tail", 0, "only the last lines")
	flags.DurationVar(&since, "since", 0, "only what is younger, for example 10m")
	flags.BoolVar(&timestamps, "timestamps", false, "put the time before each line")
	return command
}

func (a *app) logs(ctx context.Context, c *client.Client, request *balsav1.LogsRequest, timestamps bool) error {
	stream, err := c.Pods.Logs(ctx, request)
	if err != nil {
		return err
	}
	defer stream.Close()
	begun := false // a line whose end has not come yet
	for stream.Receive() {
		for _, line := range stream.Msg().GetLines() {
			if timestamps && !begun {
				fmt.Fprintf(a.out, "%s ", line.GetTime().AsTime().Format(time.RFC3339Nano))
			}
			fmt.Fprintf(a.out, "%s", line.GetLine())
			if begun = line.GetPartial(); !begun {
				fmt.Fprintln(a.out)
			}
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return stream.Err()
}
