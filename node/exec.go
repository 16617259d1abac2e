package node

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// errNoStart: the first message of a stream says what it is for.
var errNoStart = connect.NewError(connect.CodeInvalidArgument, errors.New("the first message of the stream must be start"))

// Exec implements internalv1connect.AgentServiceHandler. The program lives as
// long as the stream.
func (s agentService) Exec(ctx context.Context, stream *connect.BidiStream[internalv1.ExecRequest, internalv1.ExecResponse]) error {
	leave, err := s.enter(s.execs, "programs that were started by exec")
	if err != nil {
		return err
	}
	defer leave()
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errNoStart
	}
	ctx, gone := context.WithCancelCause(ctx)
	defer gone(nil)
	in := newInlet(start.GetSize())
	defer in.close()
	go in.follow(func() (*balsav1.StreamInput, error) {
		m, err := stream.Receive()
		return m.GetInput(), err
	}, gone)
	out := &outlet{send: func(o *balsav1.StreamOutput) error { return stream.Send(&internalv1.ExecResponse{Output: o}) }}
	exit, err := s.a.cfg.Runtime.Exec(ctx, runtime.PodUID(start.GetPodUid()), start.GetContainer(), runtime.ExecConfig{
		Args: start.GetCommand(), TTY: start.GetTty(), Resize: in.resize,
		Stdin: in.reader(start.GetStdin()), Stdout: out.stdout(), Stderr: out.stderr(),
	})
	if err != nil {
		return s.streamFailed("exec", start.GetPodUid(), start.GetContainer(), err)
	}
	return out.exit(exit)
}

// Attach implements internalv1connect.AgentServiceHandler. The program does not
// notice when the stream ends.
func (s agentService) Attach(ctx context.Context, stream *connect.BidiStream[internalv1.AttachRequest, internalv1.AttachResponse]) error {
	leave, err := s.enter(s.attaches, "attached streams")
	if err != nil {
		return err
	}
	defer leave()
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errNoStart
	}
	uid, name := runtime.PodUID(start.GetPodUid()), start.GetContainer()
	attempt, err := s.newest(ctx, uid, name)
	if err != nil {
		return s.streamFailed("attach", start.GetPodUid(), name, err)
	}
	ctx, gone := context.WithCancelCause(ctx)
	defer gone(nil)
	in := newInlet(start.GetSize())
	defer in.close()
	go in.follow(func() (*balsav1.StreamInput, error) {
		m, err := stream.Receive()
		return m.GetInput(), err
	}, gone)
	out := &outlet{send: func(o *balsav1.StreamOutput) error { return stream.Send(&internalv1.AttachResponse{Output: o}) }}
	err = s.a.cfg.Runtime.Attach(ctx, uid, name, runtime.AttachConfig{
		Stdin: in.reader(start.GetStdin()), Stdout: out.stdout(), Stderr: out.stderr(), Resize: in.resize,
	})
	if err != nil {
		return s.streamFailed("attach", start.GetPodUid(), name, err)
	}
	return s.tellExit(ctx, out, uid, name, attempt)
}

func (s agentService) newest(ctx context.Context, uid runtime.PodUID, name string) (int, error) {
	state, err := s.a.cfg.Runtime.Pod(ctx, uid)
	if err != nil {
		return 0, err
	}
	c, ok := state.Container(name)
	if !ok {
		return 0, runtime.ErrContainerNotFound
	}
	return c.Attempt, nil
}

// tellExit ends a stream whose program is over with its exit code.
func (s agentService) tellExit(ctx context.Context, out *outlet, uid runtime.PodUID, name string, attempt int) error {
	state, err := s.a.cfg.Runtime.Pod(ctx, uid)
	if err != nil {
		return s.streamFailed("attach", string(uid), name, err)
	}
	c, ok := state.Attempt(name, attempt)
	if !ok || c.Status != runtime.ContainerExited {
		return nil
	}
	return out.exit(c.Exit)
}
