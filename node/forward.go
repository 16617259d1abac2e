package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// PortForward implements internalv1connect.AgentServiceHandler: one stream is
// one connection, and each direction ends by itself.
func (s agentService) PortForward(ctx context.Context, stream *connect.BidiStream[internalv1.PortForwardRequest, internalv1.PortForwardResponse]) error {
	leave, err := s.enter(s.forwards, "forwarded connections")
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
	conn, err := s.a.cfg.Runtime.Dial(ctx, runtime.PodUID(start.GetPodUid()), int(start.GetPort()))
	if err != nil {
		return s.dialFailed(start.GetPodUid(), err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	connected := &internalv1.PortForwardResponse{Message: &internalv1.PortForwardResponse_Connected{Connected: true}}
	if err := stream.Send(connected); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- toPod(conn, stream) }()
	if err := fromPod(conn, stream); err != nil {
		return s.dialFailed(start.GetPodUid(), err)
	}
	return <-sent
}

// dialFailed: that nobody listens, or that he hangs up, is the pod's business and
// not the node's.
func (s agentService) dialFailed(uid string, err error) error {
	for _, ours := range []error{runtime.ErrPodNotFound, runtime.ErrInvalid, runtime.ErrPodLost, context.Canceled} {
		if errors.Is(err, ours) {
			return s.streamFailed("port-forward", uid, "", err)
		}
	}
	return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("port-forward: pod %s on node %s: %w", uid, s.a.cfg.Name, err))
}

// toPod writes what the client sends; its end is passed on as the end of one
// direction, its loss ends the connection.
func toPod(conn runtime.Conn, stream *connect.BidiStream[internalv1.PortForwardRequest, internalv1.PortForwardResponse]) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) || m.GetClose() {
			_ = conn.CloseWrite()
			if err == nil {
				continue // to see the end of the stream
			}
			return nil
		}
		if err != nil {
			_ = conn.Close()
			return err
		}
		if _, err := conn.Write(m.GetData()); err != nil {
			// The pod reads no more; what it still says goes out.
			return drainStream(stream)
		}
	}
}

func drainStream(stream *connect.BidiStream[internalv1.PortForwardRequest, internalv1.PortForwardResponse]) error {
	for {
		if _, err := stream.Receive(); err != nil {
			return nil //nolint:nilerr // it has ended, however
		}
	}
}

func fromPod(conn runtime.Conn, stream *connect.BidiStream[internalv1.PortForwardRequest, internalv1.PortForwardResponse]) error {
	buf := make([]byte, streamChunk)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			data := &internalv1.PortForwardResponse{Message: &internalv1.PortForwardResponse_Data{Data: buf[:n]}}
			if err := stream.Send(data); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return stream.Send(&internalv1.PortForwardResponse{Message: &internalv1.PortForwardResponse_Close{Close: true}})
		}
		if err != nil {
			return err
		}
	}
}
