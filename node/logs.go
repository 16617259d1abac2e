package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// Limits of a log stream.
const (
	logBatchLines  = 256
	logBatchBytes  = 256 << 10
	logLinesQueued = 64
)

// Logs implements internalv1connect.AgentServiceHandler.
func (s agentService) Logs(ctx context.Context, req *internalv1.LogsRequest, stream *connect.ServerStream[internalv1.LogsResponse]) error {
	leave, err := s.enter(s.a.logSlots, "log streams")
	if err != nil {
		return err
	}
	defer leave()
	reader, err := s.open(ctx, req)
	if err != nil {
		return err
	}
	return errors.Join(s.copy(ctx, reader, stream), reader.Close())
}

// open finds the attempt that was asked for.
func (s agentService) open(ctx context.Context, req *internalv1.LogsRequest) (runtime.LogReader, error) {
	uid := runtime.PodUID(req.GetPodUid())
	state, err := s.a.cfg.Runtime.Pod(ctx, uid)
	if err != nil {
		return nil, s.failed(req, err)
	}
	newest, ok := state.Container(req.GetContainer())
	if !ok {
		return nil, s.noContainer(req)
	}
	attempt := newest.Attempt
	if req.GetPrevious() {
		attempt--
	}
	if _, ok := state.Attempt(req.GetContainer(), attempt); !ok {
		return nil, connect.NewError(connect.CodeNotFound,
			fmt.Errorf("container %q of pod %s has no run before its attempt %d whose log is kept", req.GetContainer(), uid, newest.Attempt))
	}
	options := runtime.LogOptions{Follow: req.GetFollow()}
	if ns := req.GetSinceNs(); ns > 0 {
		options.Since = time.Unix(0, ns)
	}
	if req.TailLines != nil {
		if *req.TailLines == 0 && !req.GetFollow() {
			return emptyLog{}, nil
		}
		options.TailLines = int(min(max(*req.TailLines, 0), maxTailLines))
		if options.TailLines == 0 {
			options.Since = later(options.Since, s.a.cfg.Clock.Now())
		}
	}
	reader, err := s.a.cfg.Runtime.OpenLog(ctx, uid, req.GetContainer(), attempt, options)
	if err != nil {
		return nil, s.failed(req, err)
	}
	return reader, nil
}

// maxTailLines bounds what is counted from the end; more is everything.
const maxTailLines = 1 << 30

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (s agentService) failed(req *internalv1.LogsRequest, err error) error {
	return s.streamFailed("logs", req.GetPodUid(), req.GetContainer(), err)
}

func (s agentService) noContainer(req *internalv1.LogsRequest) error {
	var names []string
	for _, c := range s.a.set.pod(req.GetPodUid()).GetSpec().GetContainers() {
		if c.GetName() == req.GetContainer() {
			return connect.NewError(connect.CodeFailedPrecondition,
				fmt.Errorf("container %q has not been started yet: the pod's status says what it waits for", req.GetContainer()))
		}
		names = append(names, c.GetName())
	}
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("pod %s has no container %q; it has %v", req.GetPodUid(), req.GetContainer(), names))
}

// copy sends lines in batches: what is there at once goes together, and nothing
// waits for more to come.
func (s agentService) copy(ctx context.Context, reader runtime.LogReader, stream *connect.ServerStream[internalv1.LogsResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan *internalv1.LogLine, logLinesQueued)
	failed := make(chan error, 1)
	go func() {
		defer close(lines)
		failed <- readLines(ctx, reader, lines)
	}()
	for first := range lines {
		if err := stream.Send(&internalv1.LogsResponse{Lines: gather(first, lines)}); err != nil {
			return err
		}
	}
	return <-failed
}

func gather(first *internalv1.LogLine, lines <-chan *internalv1.LogLine) []*internalv1.LogLine {
	batch, size := []*internalv1.LogLine{first}, len(first.GetLine())
	for len(batch) < logBatchLines && size < logBatchBytes {
		select {
		case line, ok := <-lines:
			if !ok {
				return batch
			}
			batch, size = append(batch, line), size+len(line.GetLine())
		default:
			return batch
		}
	}
	return batch
}

func readLines(ctx context.Context, reader runtime.LogReader, to chan<- *internalv1.LogLine) error {
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		message := &internalv1.LogLine{TimeNs: line.Time.UnixNano(), Stream: string(line.Stream), Line: line.Text, Partial: line.Partial}
		select {
		case to <- message:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// emptyLog is the log of which nobody wants a line.
type emptyLog struct{}

func (emptyLog) Next() (runtime.LogLine, error) { return runtime.LogLine{}, io.EOF }
func (emptyLog) Close() error                   { return nil }
