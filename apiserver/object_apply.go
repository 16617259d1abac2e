package apiserver

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Apply merges what a manifest mentions into an object, or makes it.
func (o objectService) Apply(ctx context.Context, req *balsav1.ApplyRequest) (*balsav1.ApplyResponse, error) {
	m, err := o.existing(ctx, req.GetObject())
	if err != nil {
		return nil, err
	}
	if req.GetManager() == "" {
		return nil, invalid("manager", "say who applies, for example balsa-cli", "it is empty")
	}
	id, _ := pki.IdentityFrom(ctx)
	c, err := o.write(ctx, object.KindOf(m).Space, req.GetDryRun(), func(view store.View, now time.Time) (*change, error) {
		return o.planApply(view, id, m, req.GetManager(), now)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.ApplyResponse{Object: o.finishWrite(ctx, c, req.GetDryRun()), Result: c.outcome}, nil
}

func (s *Server) planApply(view store.View, id pki.Identity, m object.Message, manager string, now time.Time) (*change, error) {
	if _, exists := view.Get(object.KeyOf(m)); !exists {
		return s.planFirstApply(view, id, m, manager, now)
	}
	live, c, err := s.current(view, m)
	if err != nil {
		return nil, err
	}
	if object.IsTerminating(live) {
		return nil, terminating(live)
	}
	merged, _, err := object.Merge(live, object.Clone(m), manager, now)
	if err != nil {
		return nil, mergeProblem(m, err)
	}
	return s.replace(c, view, id, live, merged)
}

// planFirstApply creates. A manifest that names a uid or a resource version
// means an object that exists.
func (s *Server) planFirstApply(view store.View, id pki.Identity, m object.Message, manager string, now time.Time) (*change, error) {
	if meta := m.GetMetadata(); meta.GetUid() != "" || meta.GetResourceVersion() != "" {
		return nil, notFound(object.KindOf(m), meta.GetNamespace(), meta.GetName())
	}
	merged, _, err := object.Merge(nil, object.Clone(m), manager, now)
	if err != nil {
		return nil, mergeProblem(m, err)
	}
	return s.planCreate(view, id, merged, now)
}

// mergeProblem: what Merge refuses without listing fields is the caller's
// business as well.
func mergeProblem(m object.Message, err error) error {
	p := toProblem(err)
	if p.code != connect.CodeInternal {
		return p
	}
	return &problem{
		code: connect.CodeInvalidArgument, reason: "Invalid", applied: notApplied, object: keyOfMessage(m),
		hint: "correct the manifest and apply again", err: err,
	}
}

func terminating(live object.Message) error {
	return &problem{
		code: connect.CodeFailedPrecondition, reason: "Terminating", applied: notApplied, object: keyOfMessage(live),
		current: live.GetMetadata().GetResourceVersion(),
		hint:    "wait until it is gone and apply again",
		err:     fmt.Errorf("%s is being deleted", object.Describe(live)),
	}
}
