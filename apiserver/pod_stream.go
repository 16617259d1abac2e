package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
)

// Streams into pods. The server carries messages both ways and holds none: a
// side that does not read holds up the other one, through both connections. A
// stream ends with the user, his identity, the node or the program, whichever is
// first; the node sees to it that what was begun for it ends too.

// maxCommand bounds an exec's arguments, all together.
const maxCommand = 1 << 20

// firstMessage refuses a stream that does not say what it is for.
func firstMessage() *problem {
	return invalid("start", "send it in the first message", "the stream's first message is another one")
}

// session is a stream into a pod that is under way, for the audit: one line when
// it begins, and the usual one, with what became of it, at its end.
type session struct {
	p     podService
	ctx   context.Context
	began time.Time
	what  string
	end   string
}

// begin tells the audit what is done, of a command only the program: arguments
// are where people put passwords.
func (p podService) begin(ctx context.Context, pod *balsav1.Pod, container, what string) *session {
	c := callOf(ctx)
	if container != "" {
		c.object = fmt.Sprintf("Pod %s/%s container %s", pod.GetMetadata().GetNamespace(), pod.GetMetadata().GetName(), container)
	}
	p.auditLog.LogAttrs(context.Background(), slog.LevelInfo, "audit", slog.String("who", c.who()), slog.String("what", rpcName(c.procedure)),
		slog.String("code", "begun"), slog.String("object", c.object), slog.String("outcome", what))
	return &session{p: p, ctx: ctx, began: p.clock.Now(), what: what}
}

func (s *session) over() {
	end := s.end
	if end == "" {
		end = "ended early"
	}
	callOf(s.ctx).outcome = fmt.Sprintf("%s, %s after %v", s.what, end, s.p.clock.Now().Sub(s.began).Round(time.Millisecond))
}

// saw notes a program's exit code.
func (s *session) saw(out *balsav1.StreamOutput) {
	if exit := out.GetExit(); exit != nil {
		s.end = fmt.Sprintf("exit code %d", exit.GetCode())
	}
}

// program is a command as the audit has it.
func program(command []string) string {
	if len(command) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("program %q with %d arguments", clip(path.Base(command[0])), len(command)-1)
}

// reach finds pod, container and the node's client.
func (p podService) reach(ctx context.Context, namespace, name, container string) (*balsav1.Pod, string, internalv1connect.AgentServiceClient, error) {
	pod, err := p.pod(ctx, namespace, name)
	if err != nil {
		return nil, "", nil, err
	}
	if container, err = containerOf(pod, container); err != nil {
		return nil, "", nil, err
	}
	agent, err := p.agentOf(ctx, pod)
	return pod, container, agent, err
}

// relay carries messages until the node's side ends. up moves one message to the
// node, io.EOF when there are no more, down one to the user.
func relay(cancel context.CancelCauseFunc, up, closeUp, down func() error) error {
	go func() {
		for {
			err := up()
			if errors.Is(err, io.EOF) {
				_ = closeUp()
				return
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	}()
	for {
		err := down()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// abortWith closes a stream to a node with ctx, and when the returned function is
// called. Once a stream has begun, net/http looks at its context only after the
// last of the request was sent, which here is when the user says so.
func abortWith(ctx context.Context, closeResponse func() error) func() {
	stop := context.AfterFunc(ctx, func() { _ = closeResponse() })
	return func() {
		stop()
		_ = closeResponse()
	}
}

// Exec runs a further program in a container.
func (p podService) Exec(ctx context.Context, stream *connect.BidiStream[balsav1.ExecRequest, balsav1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage()
	}
	size := 0
	for _, arg := range start.GetCommand() {
		size += len(arg)
	}
	switch {
	case len(start.GetCommand()) == 0:
		return invalid("start.command", "name a program that the container has, for example sh", "it is empty")
	case size > maxCommand:
		return overLimit("maxCommand", maxCommand, "send long input by stdin", "the command has %d bytes", size)
	}
	pod, container, agent, err := p.reach(ctx, start.GetNamespace(), start.GetName(), start.GetContainer())
	if err != nil {
		return err
	}
	s := p.begin(ctx, pod, container, program(start.GetCommand()))
	defer s.over()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up, err := agent.Exec(ctx)
	if err != nil {
		return fromAgent(pod, err)
	}
	defer abortWith(ctx, up.CloseResponse)()
	request := &internalv1.ExecStart{
		PodUid: pod.GetMetadata().GetUid(), Container: container, Command: start.GetCommand(),
		Stdin: start.GetStdin(), Tty: start.GetTty(), Size: start.GetSize(),
	}
	if err := sent(up.Send(&internalv1.ExecRequest{Message: &internalv1.ExecRequest_Start{Start: request}})); err != nil {
		return fromAgent(pod, err)
	}
	return relay(cancel, func() error {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		return up.Send(&internalv1.ExecRequest{Message: &internalv1.ExecRequest_Input{Input: m.GetInput()}})
	}, up.CloseRequest, func() error {
		m, err := up.Receive()
		if err != nil {
			return fromStream(pod, err)
		}
		s.saw(m.GetOutput())
		return stream.Send(&balsav1.ExecResponse{Output: m.GetOutput()})
	})
}

// sent: a stream that is over already says why when it is read.
func sent(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Attach joins the streams of a container's own program.
func (p podService) Attach(ctx context.Context, stream *connect.BidiStream[balsav1.AttachRequest, balsav1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage()
	}
	pod, container, agent, err := p.reach(ctx, start.GetNamespace(), start.GetName(), start.GetContainer())
	if err != nil {
		return err
	}
	s := p.begin(ctx, pod, container, fmt.Sprintf("attached, input %t", start.GetStdin()))
	defer s.over()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up, err := agent.Attach(ctx)
	if err != nil {
		return fromAgent(pod, err)
	}
	defer abortWith(ctx, up.CloseResponse)()
	request := &internalv1.AttachStart{PodUid: pod.GetMetadata().GetUid(), Container: container, Stdin: start.GetStdin(), Size: start.GetSize()}
	if err := sent(up.Send(&internalv1.AttachRequest{Message: &internalv1.AttachRequest_Start{Start: request}})); err != nil {
		return fromAgent(pod, err)
	}
	return relay(cancel, func() error {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		return up.Send(&internalv1.AttachRequest{Message: &internalv1.AttachRequest_Input{Input: m.GetInput()}})
	}, up.CloseRequest, func() error {
		m, err := up.Receive()
		if err != nil {
			return fromStream(pod, err)
		}
		s.saw(m.GetOutput())
		return stream.Send(&balsav1.AttachResponse{Output: m.GetOutput()})
	})
}

// fromStream is fromAgent for a stream that had begun; io.EOF is its good end.
func fromStream(pod *balsav1.Pod, err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	err = fromAgent(pod, err)
	var p *problem
	if errors.As(err, &p) && p.reason == "NodeUnreachable" {
		p.err = fmt.Errorf("the stream to node %q broke: its agent was restarted, or the node is out of reach (%w)", pod.GetSpec().GetNodeName(), p.err)
		p.hint = "what exec had started has ended, the container itself goes on; try again, balsa get nodes tells which nodes are ready"
	}
	return err
}
