package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/pki"
)

// Limits of what a node does for servers at once.
const (
	maxExecs     = 64
	maxAttaches  = 64
	maxForwards  = 512
	maxCopies    = 16
	maxStatsRuns = 4
	// maxStreamMessage bounds one message from a server: an exec's arguments are
	// the largest.
	maxStreamMessage = 2 << 20
	// streamChunk is how much a message to a server carries.
	streamChunk = 64 << 10
	// resizesQueued: of several changes of a terminal only the last counts.
	resizesQueued = 1
)

// agentService is AgentService: what servers ask of a node. The server has
// authorised the user; the node sees to it that servers alone come in, that no
// more is open than it can bear, and that whatever it has begun for a stream ends
// with it.
type agentService struct {
	a                                     *Agent
	execs, attaches, forwards, copies, st chan struct{}
	rates                                 *cpuRates
	volumes                               *volumeSizes
	internalv1connect.UnimplementedAgentServiceHandler
}

func newAgentHandler(a *Agent) http.Handler {
	options := []connect.HandlerOption{connect.WithReadMaxBytes(maxStreamMessage), connect.WithRequestGate(serversOnly), connect.WithCompression("gzip", nil, nil)}
	for _, c := range codec.Lenient() {
		options = append(options, connect.WithCodec(c))
	}
	service := agentService{
		a: a, execs: make(chan struct{}, maxExecs), attaches: make(chan struct{}, maxAttaches), forwards: make(chan struct{}, maxForwards),
		copies: make(chan struct{}, maxCopies), st: make(chan struct{}, maxStatsRuns), rates: newCPURates(), volumes: newVolumeSizes(),
	}
	mux := http.NewServeMux()
	mux.Handle(internalv1connect.NewAgentServiceHandler(service, options...))
	return mux
}

// serversOnly refuses everybody else before a message is read.
func serversOnly(ctx context.Context, _ connect.Spec, _ connect.Peer, _ http.Header) (context.Context, error) {
	if id, ok := pki.IdentityFrom(ctx); !ok || id.Role != pki.RoleServer {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("only servers may ask a node: use a server's address"))
	}
	return ctx, nil
}

// enter takes a place; the caller gives it back.
func (s agentService) enter(places chan struct{}, what string) (leave func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, connect.NewError(connect.CodeResourceExhausted,
			fmt.Errorf("node %s: %d %s are open, which is the limit: end some, or try again later", s.a.cfg.Name, cap(places), what))
	}
}

// streamFailed gives an error of the runtime its code.
func (s agentService) streamFailed(what string, uid, container string, err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, runtime.ErrPodNotFound) && s.a.set.pod(uid) != nil:
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("pod %s has not been started yet: its status says what it waits for", uid))
	case errors.Is(err, runtime.ErrPodNotFound), errors.Is(err, runtime.ErrContainerNotFound), errors.Is(err, fs.ErrNotExist):
		code = connect.CodeNotFound
	case errors.Is(err, runtime.ErrInvalid):
		code = connect.CodeInvalidArgument
	case errors.Is(err, runtime.ErrNotRunning), errors.Is(err, runtime.ErrPodLost), errors.Is(err, runtime.ErrStartFailed), isFileError(err):
		code = connect.CodeFailedPrecondition
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	of := "container " + container + " of pod " + uid
	if container == "" {
		of = "pod " + uid
	}
	return connect.NewError(code, fmt.Errorf("%s: %s on node %s: %w", what, of, s.a.cfg.Name, err))
}

// isFileError: what a container's file system refuses is no fault of the node.
func isFileError(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrExist) || fileErrno(err)
}

// outlet sends a program's output. Two streams may write at once.
type outlet struct {
	mu   sync.Mutex
	send func(*balsav1.StreamOutput) error
}

func (o *outlet) put(out *balsav1.StreamOutput) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.send(out)
}

func (o *outlet) stdout() io.Writer {
	return writerFunc(func(p []byte) error {
		return o.put(&balsav1.StreamOutput{Output: &balsav1.StreamOutput_Stdout{Stdout: p}})
	})
}

func (o *outlet) stderr() io.Writer {
	return writerFunc(func(p []byte) error {
		return o.put(&balsav1.StreamOutput{Output: &balsav1.StreamOutput_Stderr{Stderr: p}})
	})
}

func (o *outlet) exit(e runtime.ExitStatus) error {
	exit := &balsav1.ProcessExit{Code: int32(e.Code), Signal: int32(e.Signal)}
	return o.put(&balsav1.StreamOutput{Output: &balsav1.StreamOutput_Exit{Exit: exit}})
}

// writerFunc sends what it is given in messages of bounded size.
type writerFunc func(p []byte) error

func (w writerFunc) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		end := min(done+streamChunk, len(p))
		if err := w(p[done:end]); err != nil {
			return done, err
		}
		done = end
	}
	return done, nil
}

// inlet is what a client sends to a program: bytes, in order, and the size of
// its terminal, of which only the last counts.
type inlet struct {
	stdin  *io.PipeReader
	typed  *io.PipeWriter
	resize chan runtime.TerminalSize
}

func newInlet(first *balsav1.TerminalSize) *inlet {
	in := &inlet{resize: make(chan runtime.TerminalSize, resizesQueued)}
	in.stdin, in.typed = io.Pipe()
	in.size(first)
	return in
}

// reader is nil for a program that gets no input.
func (in *inlet) reader(wanted bool) io.Reader {
	if !wanted {
		return nil
	}
	return in.stdin
}

func (in *inlet) size(s *balsav1.TerminalSize) {
	if s.GetWidth() == 0 || s.GetHeight() == 0 {
		return
	}
	size := runtime.TerminalSize{Width: uint16(min(s.GetWidth(), 1<<16-1)), Height: uint16(min(s.GetHeight(), 1<<16-1))}
	for {
		select {
		case in.resize <- size:
			return
		default:
		}
		select {
		case <-in.resize:
		default:
		}
	}
}

// take hands on one message.
func (in *inlet) take(m *balsav1.StreamInput) {
	switch m := m.GetInput().(type) {
	case *balsav1.StreamInput_Stdin:
		_, _ = in.typed.Write(m.Stdin) // a program that has ended reads nothing
	case *balsav1.StreamInput_CloseStdin:
		_ = in.typed.Close()
	case *balsav1.StreamInput_Resize:
		in.size(m.Resize)
	}
}

// follow takes messages until there are no more: that is the end of input. Any
// other end means that the client is gone.
func (in *inlet) follow(receive func() (*balsav1.StreamInput, error), gone context.CancelCauseFunc) {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			_ = in.typed.Close()
			return
		}
		if err != nil {
			_ = in.typed.CloseWithError(err)
			gone(err)
			return
		}
		in.take(m)
	}
}

// close frees whoever still waits at either end.
func (in *inlet) close() {
	_ = in.stdin.Close()
	_ = in.typed.Close()
}
