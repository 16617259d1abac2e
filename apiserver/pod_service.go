package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/object"
)

// podService is balsa.v1.PodService: the one way past the store. The server
// authorises and audits, then asks the node, which trusts servers only.
type podService struct {
	*Server
	balsav1connect.UnimplementedPodServiceHandler
}

// Logs streams what a container printed.
func (p podService) Logs(ctx context.Context, req *balsav1.LogsRequest, stream *connect.ServerStream[balsav1.LogsResponse]) error {
	pod, container, err := p.container(ctx, req)
	if err != nil {
		return err
	}
	agent, err := p.agentOf(ctx, pod)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, err := agent.Logs(ctx, logsRequest(pod, container, req))
	if err != nil {
		return fromAgent(pod, err)
	}
	defer func() { _ = lines.Close() }()
	pace := newPace(ctx, p.limits.SendStall)
	defer pace.stop()
	for lines.Receive() {
		res := logsResponse(lines.Msg())
		if err := pace.send(func() error { return stream.Send(res) }); err != nil {
			return err
		}
	}
	return fromAgent(pod, lines.Err())
}

// container is the pod and the name of its container that a request means.
func (p podService) container(ctx context.Context, req *balsav1.LogsRequest) (*balsav1.Pod, string, error) {
	if n := req.TailLines; n != nil && *n < 0 {
		return nil, "", invalid("tailLines", "leave it out for all lines", "found %d, which is negative", *n)
	}
	pod, err := p.pod(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, "", err
	}
	name, err := containerOf(pod, req.GetContainer())
	return pod, name, err
}

// pod reads a pod, as new as any write before the call, whichever server is asked.
func (p podService) pod(ctx context.Context, namespace, name string) (*balsav1.Pod, error) {
	kind, namespace, err := target("Pod", namespace, name)
	if err != nil {
		return nil, err
	}
	about(ctx, keyOf(kind, namespace, name))
	view, err := p.view(ctx, kind.Space, nil)
	if err != nil {
		return nil, err
	}
	m, _, err := lookup(view, kind, namespace, name)
	if err != nil {
		return nil, err
	}
	return m.(*balsav1.Pod), nil
}

// containerOf is the container that a name means; without a name the only one
// of the pod's own.
func containerOf(pod *balsav1.Pod, name string) (string, error) {
	var names []string
	for role, c := range object.AllContainers(pod.GetSpec()) {
		if c.GetName() == name {
			return name, nil
		}
		if role == object.RoleMain {
			names = append(names, c.GetName())
		}
	}
	if name == "" && len(names) == 1 {
		return names[0], nil
	}
	return "", invalid("container", "name one of them", "found %q; %s has %s", clip(name), object.Describe(pod), strings.Join(names, ", "))
}

// agentOf is a client for the node that runs a pod.
func (p podService) agentOf(ctx context.Context, pod *balsav1.Pod) (internalv1connect.AgentServiceClient, error) {
	name := pod.GetSpec().GetNodeName()
	if name == "" {
		return nil, &problem{
			code: connect.CodeFailedPrecondition, reason: "NotScheduled", object: keyOfMessage(pod),
			hint: "balsa describe pod " + pod.GetMetadata().GetName() + " says what it waits for",
			err:  fmt.Errorf("%s is on no node yet", object.Describe(pod)),
		}
	}
	kind, _ := object.KindByName("Node")
	m, _, err := lookup(p.store.Space(kind.Space).View(), kind, "", name)
	if err != nil {
		return nil, err
	}
	agent, err := p.nodes.Agent(ctx, m.(*balsav1.Node))
	if err != nil {
		return nil, fromAgent(pod, err)
	}
	return agent, nil
}

func logsRequest(pod *balsav1.Pod, container string, req *balsav1.LogsRequest) *internalv1.LogsRequest {
	out := &internalv1.LogsRequest{
		PodUid:    pod.GetMetadata().GetUid(),
		Container: container,
		Follow:    req.GetFollow(),
		Previous:  req.GetPrevious(),
		TailLines: req.TailLines,
	}
	if t := req.GetSinceTime(); t != nil {
		out.SinceNs = t.AsTime().UnixNano()
	}
	return out
}

func logsResponse(res *internalv1.LogsResponse) *balsav1.LogsResponse {
	out := &balsav1.LogsResponse{Lines: make([]*balsav1.LogLine, 0, len(res.GetLines()))}
	for _, l := range res.GetLines() {
		out.Lines = append(out.Lines, &balsav1.LogLine{
			Time:    &timestamppb.Timestamp{Seconds: l.GetTimeNs() / 1e9, Nanos: int32(l.GetTimeNs() % 1e9)},
			Stream:  l.GetStream(),
			Line:    l.GetLine(),
			Partial: l.GetPartial(),
		})
	}
	return out
}

// fromAgent passes on what the node says, and says which node did not answer.
func fromAgent(pod *balsav1.Pod, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var ce *connect.Error
	if errors.As(err, &ce) && ce.Code() != connect.CodeUnavailable && ce.Code() != connect.CodeUnknown && ce.Code() != connect.CodeInternal {
		return err
	}
	return &problem{
		code: connect.CodeUnavailable, reason: "NodeUnreachable", object: keyOfMessage(pod),
		hint: "balsa get nodes tells which nodes are ready",
		err:  fmt.Errorf("node %q does not answer: %w", pod.GetSpec().GetNodeName(), err),
	}
}
