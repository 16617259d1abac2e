package apiserver

import (
	"context"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Update replaces an object but for what users do not write. Without a resource
// version it replaces whatever is there.
func (o objectService) Update(ctx context.Context, req *balsav1.UpdateRequest) (*balsav1.UpdateResponse, error) {
	m, err := o.existing(ctx, req.GetObject())
	if err != nil {
		return nil, err
	}
	id, _ := pki.IdentityFrom(ctx)
	c, err := o.write(ctx, object.KindOf(m).Space, req.GetDryRun(), func(view store.View, _ time.Time) (*change, error) {
		return o.planUpdate(view, id, m)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.UpdateResponse{Object: o.finishWrite(ctx, c, req.GetDryRun())}, nil
}

// existing unwraps an object that must exist and that the caller may write. It
// is the caller's copy, with its namespace.
func (o objectService) existing(ctx context.Context, wrapped *balsav1.Object) (object.Message, error) {
	m, err := object.Unwrap(wrapped)
	if err != nil {
		return nil, err
	}
	kind := object.KindOf(m)
	meta := object.EnsureMetadata(m)
	if _, meta.Namespace, err = target(kind.Name, meta.GetNamespace(), meta.GetName()); err != nil {
		return nil, err
	}
	about(ctx, keyOfMessage(m))
	id, _ := pki.IdentityFrom(ctx)
	return m, mayWrite(id, kind)
}

// current is the live object in the clear, to be changed freely, and the
// precondition that it is still at its revision.
func (s *Server) current(view store.View, m object.Message) (object.Message, *change, error) {
	kind, meta := object.KindOf(m), m.GetMetadata()
	frozen, kv, err := lookup(view, kind, meta.GetNamespace(), meta.GetName())
	if err != nil {
		return nil, nil, err
	}
	if err := precondition(frozen, meta.GetUid(), meta.GetResourceVersion()); err != nil {
		return nil, nil, err
	}
	live, err := s.opened(frozen)
	if err != nil {
		return nil, nil, err
	}
	c := &change{space: kind.Space}
	c.expect(kv.Key, kv.ModRevision)
	return live, c, nil
}

func (s *Server) planUpdate(view store.View, id pki.Identity, m object.Message) (*change, error) {
	live, c, err := s.current(view, m)
	if err != nil {
		return nil, err
	}
	next := object.Clone(m)
	object.CarryOver(live, next)
	object.Default(next) // before the comparison: what is left out is not changed
	object.ReleaseChanged(live, next)
	return s.replace(c, view, id, live, next)
}

// replace completes a change from live to next, both in the clear.
func (s *Server) replace(c *change, view store.View, id pki.Identity, live, next object.Message) (*change, error) {
	object.Default(next)
	object.BumpGeneration(live, next)
	c.result = next
	if object.Same(live, next) {
		c.outcome, c.compares = outcomeUnchanged, nil
		return c, nil
	}
	if err := object.ValidateUpdate(live, next, writerOf(id)).Err(next); err != nil {
		return nil, err
	}
	if err := claim(c, view, live, next, randomBelow); err != nil {
		return nil, err
	}
	c.outcome = outcomeConfigured
	return c, s.putObject(c, next)
}

// UpdateStatus replaces only status.
func (o objectService) UpdateStatus(ctx context.Context, req *balsav1.UpdateStatusRequest) (*balsav1.UpdateStatusResponse, error) {
	m, err := o.existing(ctx, req.GetObject())
	if err != nil {
		return nil, err
	}
	if kind := object.KindOf(m); !object.HasStatus(kind) {
		return nil, invalid("object", "use Update", "%s have no status", kind.Plural)
	}
	id, _ := pki.IdentityFrom(ctx)
	c, err := o.write(ctx, object.KindOf(m).Space, req.GetDryRun(), func(view store.View, _ time.Time) (*change, error) {
		return o.planStatus(view, id, m)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.UpdateStatusResponse{Object: o.finishWrite(ctx, c, req.GetDryRun())}, nil
}

func (s *Server) planStatus(view store.View, id pki.Identity, m object.Message) (*change, error) {
	live, c, err := s.current(view, m)
	if err != nil {
		return nil, err
	}
	if err := mayReport(id, live); err != nil {
		return nil, err
	}
	next := object.Clone(live)
	object.SetStatus(next, object.Clone(m))
	c.result = next
	if object.Same(live, next) {
		c.outcome, c.compares = outcomeUnchanged, nil
		return c, nil
	}
	if err := object.ValidateUpdate(live, next, object.System).Err(next); err != nil {
		return nil, err
	}
	c.outcome = outcomeConfigured
	return c, s.putObject(c, next)
}
