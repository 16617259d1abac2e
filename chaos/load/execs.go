package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// ExecOptions say which program is run in which pod.
type ExecOptions struct {
	Namespace string
	Pod       string
	Command   []string
	Count     int
}

// ExecReport is how long each run took, from the first message until its exit
// code was read, in milliseconds.
type ExecReport struct {
	TookMS []float64 `json:"tookMS"`
}

// Execs runs a program again and again, each after the one before.
func Execs(ctx context.Context, c *client.Client, options ExecOptions) (ExecReport, error) {
	report := ExecReport{}
	for i := range options.Count {
		began := time.Now()
		if err := execOnce(ctx, c, options); err != nil {
			return report, fmt.Errorf("exec %d in pod %s: %w", i, options.Pod, err)
		}
		report.TookMS = append(report.TookMS, milliseconds(time.Since(began)))
	}
	return report, nil
}

// execOnce ends with the program, which has to end well.
func execOnce(ctx context.Context, c *client.Client, options ExecOptions) (err error) {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	stream, err := c.Pods.Exec(ctx)
	if err != nil {
		return err
	}
	// Of what follows the exit code nothing is wanted.
	defer func() { _ = stream.CloseResponse() }()
	start := &balsav1.ExecStart{Namespace: options.Namespace, Name: options.Pod, Command: options.Command}
	if err := stream.Send(&balsav1.ExecRequest{Message: &balsav1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// A failure to send shows in what is received.
	_ = stream.CloseRequest()
	for {
		message, err := stream.Receive()
		if err != nil {
			return err
		}
		if exit := message.GetOutput().GetExit(); exit != nil {
			if exit.GetCode() != 0 {
				return fmt.Errorf("%v ended with exit code %d", options.Command, exit.GetCode())
			}
			return nil
		}
	}
}
