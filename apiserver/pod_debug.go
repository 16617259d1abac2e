package apiserver

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// maxEphemeral bounds the ephemeral containers of a pod: none is ever removed.
const maxEphemeral = 32

// Debug adds an ephemeral container to a pod that has not ended.
func (p podService) Debug(ctx context.Context, req *balsav1.DebugRequest) (*balsav1.DebugResponse, error) {
	kind, namespace, err := target("Pod", req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	about(ctx, keyOf(kind, namespace, req.GetName()))
	if req.GetContainer() == nil {
		return nil, invalid("container", "say which image to debug with", "it is empty")
	}
	id, _ := pki.IdentityFrom(ctx)
	c, err := p.write(ctx, kind.Space, false, func(view store.View, _ time.Time) (*change, error) {
		return p.planDebug(view, id, kind, namespace, req)
	})
	if err != nil {
		return nil, err
	}
	callOf(ctx).outcome = fmt.Sprintf("ephemeral container %s of image %s", clip(req.GetContainer().GetName()), clip(req.GetContainer().GetImage()))
	return &balsav1.DebugResponse{Pod: c.result.(*balsav1.Pod)}, nil
}

func (p podService) planDebug(view store.View, id pki.Identity, kind object.Kind, namespace string, req *balsav1.DebugRequest) (*change, error) {
	live, c, err := p.current(view, &balsav1.Pod{
		ApiVersion: kind.APIVersion, Kind: kind.Name, Metadata: &balsav1.ObjectMeta{Namespace: namespace, Name: req.GetName()},
	})
	if err != nil {
		return nil, err
	}
	next := object.Clone(live).(*balsav1.Pod)
	switch phase := next.GetStatus().GetPhase(); {
	case phase == object.PodSucceeded || phase == object.PodFailed || next.GetMetadata().GetDeletionTimestamp() != nil:
		return nil, &problem{code: connect.CodeFailedPrecondition, reason: "PodEnded", object: keyOfMessage(next), applied: notApplied,
			hint: "debug a pod that runs", err: fmt.Errorf("%s has ended or is being deleted: no container can join it", object.Describe(next))}
	case len(next.GetSpec().GetEphemeralContainers()) >= maxEphemeral:
		return nil, overLimit("maxEphemeral", maxEphemeral, "debug another pod, or attach to a container that is there",
			"%s has %d ephemeral containers", object.Describe(next), len(next.GetSpec().GetEphemeralContainers()))
	}
	next.Spec.EphemeralContainers = append(next.Spec.EphemeralContainers, proto.CloneOf(req.GetContainer()))
	return p.replace(c, view, id, live, next)
}
