package apiserver

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// PortForward carries one connection to a port of a pod.
func (p podService) PortForward(ctx context.Context, stream *connect.BidiStream[balsav1.PortForwardRequest, balsav1.PortForwardResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage()
	}
	if start.GetPort() < 1 || start.GetPort() > 1<<16-1 {
		return invalid("start.port", "use 1 to 65535", "found %d", start.GetPort())
	}
	pod, err := p.pod(ctx, start.GetNamespace(), start.GetName())
	if err != nil {
		return err
	}
	agent, err := p.agentOf(ctx, pod)
	if err != nil {
		return err
	}
	s := p.begin(ctx, pod, "", fmt.Sprintf("connection to port %d", start.GetPort()))
	defer s.over()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up, err := agent.PortForward(ctx)
	if err != nil {
		return fromAgent(pod, err)
	}
	defer abortWith(ctx, up.CloseResponse)()
	request := &internalv1.PortForwardStart{PodUid: pod.GetMetadata().GetUid(), Port: start.GetPort()}
	if err := sent(up.Send(&internalv1.PortForwardRequest{Message: &internalv1.PortForwardRequest_Start{Start: request}})); err != nil {
		return fromAgent(pod, err)
	}
	err = relay(cancel, func() error {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		return up.Send(towardsPod(m))
	}, up.CloseRequest, func() error {
		m, err := up.Receive()
		if err != nil {
			return fromStream(pod, err)
		}
		return stream.Send(towardsUser(m))
	})
	if err == nil {
		s.end = "ended"
	}
	return err
}

func towardsPod(m *balsav1.PortForwardRequest) *internalv1.PortForwardRequest {
	if m.GetClose() {
		return &internalv1.PortForwardRequest{Message: &internalv1.PortForwardRequest_Close{Close: true}}
	}
	return &internalv1.PortForwardRequest{Message: &internalv1.PortForwardRequest_Data{Data: m.GetData()}}
}

func towardsUser(m *internalv1.PortForwardResponse) *balsav1.PortForwardResponse {
	switch {
	case m.GetConnected():
		return &balsav1.PortForwardResponse{Message: &balsav1.PortForwardResponse_Connected{Connected: true}}
	case m.GetClose():
		return &balsav1.PortForwardResponse{Message: &balsav1.PortForwardResponse_Close{Close: true}}
	}
	return &balsav1.PortForwardResponse{Message: &balsav1.PortForwardResponse_Data{Data: m.GetData()}}
}

// CopyOut reads a file or folder of a container as a tar stream.
func (p podService) CopyOut(ctx context.Context, req *balsav1.CopyOutRequest, stream *connect.ServerStream[balsav1.CopyOutResponse]) error {
	pod, container, agent, err := p.reach(ctx, req.GetNamespace(), req.GetName(), req.GetContainer())
	if err != nil {
		return err
	}
	s := p.begin(ctx, pod, container, "copy out "+clip(req.GetPath()))
	defer s.over()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	archive, err := agent.CopyOut(ctx, &internalv1.CopyOutRequest{PodUid: pod.GetMetadata().GetUid(), Container: container, Path: req.GetPath()})
	if err != nil {
		return fromAgent(pod, err)
	}
	defer func() { _ = archive.Close() }()
	pace := newPace(ctx, p.limits.SendStall)
	defer pace.stop()
	size := 0
	for archive.Receive() {
		part := archive.Msg().GetTar()
		size += len(part)
		if err := pace.send(func() error { return stream.Send(&balsav1.CopyOutResponse{Tar: part}) }); err != nil {
			return err
		}
	}
	s.end = fmt.Sprintf("%d bytes", size)
	return fromAgent(pod, archive.Err())
}

// CopyIn unpacks a tar stream in a folder of a container.
func (p podService) CopyIn(ctx context.Context, stream *connect.ClientStream[balsav1.CopyInRequest]) (*balsav1.CopyInResponse, error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, firstMessage()
	}
	start := stream.Msg().GetStart()
	if start == nil {
		return nil, firstMessage()
	}
	pod, container, agent, err := p.reach(ctx, start.GetNamespace(), start.GetName(), start.GetContainer())
	if err != nil {
		return nil, err
	}
	s := p.begin(ctx, pod, container, "copy into "+clip(start.GetPath()))
	defer s.over()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	up, err := agent.CopyIn(ctx)
	if err != nil {
		return nil, fromAgent(pod, err)
	}
	request := &internalv1.CopyInStart{PodUid: pod.GetMetadata().GetUid(), Container: container, Path: start.GetPath()}
	err = up.Send(&internalv1.CopyInRequest{Message: &internalv1.CopyInRequest_Start{Start: request}})
	for err == nil && stream.Receive() {
		err = up.Send(&internalv1.CopyInRequest{Message: &internalv1.CopyInRequest_Tar{Tar: stream.Msg().GetTar()}})
	}
	if err == nil && stream.Err() != nil {
		// The user is gone: the node must not take what it has for the whole.
		cancel()
		_, _ = up.CloseAndReceive()
		return nil, stream.Err()
	}
	if err := sent(err); err != nil {
		return nil, fromAgent(pod, err)
	}
	result, err := up.CloseAndReceive()
	if err != nil {
		return nil, fromAgent(pod, err)
	}
	s.end = fmt.Sprintf("%d entries, %d bytes", result.GetEntries(), result.GetBytes())
	return &balsav1.CopyInResponse{Entries: result.GetEntries(), Bytes: result.GetBytes()}, nil
}
