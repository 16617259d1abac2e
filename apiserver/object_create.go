package apiserver

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// nameAttempts bounds how many generated names are drawn for one object.
const nameAttempts = 8

// Create makes an object that does not exist.
func (o objectService) Create(ctx context.Context, req *balsav1.CreateRequest) (*balsav1.CreateResponse, error) {
	m, err := object.Unwrap(req.GetObject())
	if err != nil {
		return nil, err
	}
	about(ctx, keyOfMessage(m))
	if err := unborn(m); err != nil {
		return nil, err
	}
	if err := object.ValidateInput(m).Err(m); err != nil {
		return nil, err
	}
	id, _ := pki.IdentityFrom(ctx)
	c, err := o.write(ctx, object.KindOf(m).Space, req.GetDryRun(), func(view store.View, now time.Time) (*change, error) {
		return o.planCreate(view, id, object.Clone(m), now)
	})
	if err != nil {
		return nil, err
	}
	return &balsav1.CreateResponse{Object: o.finishWrite(ctx, c, req.GetDryRun())}, nil
}

// unborn refuses what only an object that exists can have.
func unborn(m object.Message) error {
	meta := m.GetMetadata()
	switch {
	case meta.GetResourceVersion() != "":
		return invalid("metadata.resourceVersion", "leave it out, or use Update", "found %q in an object that is to be created", clip(meta.GetResourceVersion()))
	case meta.GetUid() != "":
		return invalid("metadata.uid", "leave it out: the server gives it", "found %q in an object that is to be created", clip(meta.GetUid()))
	}
	return nil
}

// planCreate makes m, which it owns, a new object.
func (s *Server) planCreate(view store.View, id pki.Identity, m object.Message, now time.Time) (*change, error) {
	kind := object.KindOf(m)
	if err := mayWrite(id, kind); err != nil {
		return nil, err
	}
	if err := mayMake(id, kind); err != nil {
		return nil, err
	}
	object.Default(m)
	if err := s.nameNew(view, m); err != nil {
		return nil, err
	}
	uid, err := object.NewUID(rand.Reader)
	if err != nil {
		return nil, err
	}
	object.Stamp(m, uid, now)
	object.Default(m) // what depends on the name
	c := &change{space: kind.Space, result: m, outcome: outcomeCreated}
	if err := object.Validate(m, writerOf(id)).Err(m); err != nil {
		return nil, err
	}
	if err := claim(c, view, nil, m, randomBelow); err != nil {
		return nil, err
	}
	if err := inNamespace(c, s.store.Space(store.SpaceObjects).View(), kind, m.GetMetadata().GetNamespace()); err != nil {
		return nil, err
	}
	c.expect(object.KeyOf(m), 0)
	return c, s.putObject(c, m)
}

// nameNew draws a name where one is to be generated, and refuses one that is
// taken.
func (s *Server) nameNew(view store.View, m object.Message) error {
	generated := m.GetMetadata().GetName() == ""
	for range nameAttempts {
		if generated {
			object.EnsureMetadata(m).Name = ""
			if err := object.GenerateName(m, rand.Reader); err != nil {
				return err
			}
		}
		if _, taken := view.Get(object.KeyOf(m)); !taken {
			return nil
		}
		if !generated {
			return alreadyExists(view, m)
		}
	}
	return &problem{
		code: connect.CodeAlreadyExists, reason: "AlreadyExists", applied: notApplied, object: keyOfMessage(m),
		hint: "use a longer or another metadata.generateName",
		err:  fmt.Errorf("%d generated names for %q are taken", nameAttempts, m.GetMetadata().GetGenerateName()),
	}
}

func alreadyExists(view store.View, m object.Message) error {
	kv, _ := view.Get(object.KeyOf(m))
	p := &problem{
		code: connect.CodeAlreadyExists, reason: "AlreadyExists", applied: notApplied, object: keyOfMessage(m),
		current: revisionString(kv.ModRevision),
		hint:    "use Apply or Update to change it",
		err:     fmt.Errorf("%s exists already", object.Describe(m)),
	}
	if live, err := messageOf(kv); err == nil && object.IsTerminating(live) {
		p.hint = "it is being deleted: try again when it is gone"
	}
	return p
}
