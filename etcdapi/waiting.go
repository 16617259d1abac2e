package etcdapi

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Locks and elections are lines of keys under one prefix, each bound to its holder's
// lease: who made his key first is first. They are etcd's, key for key, so programs
// that use its client library stand in the same line.

// ownLeaseTTLSeconds is the time of the lease that is granted to a caller without
// one; that of etcd's sessions.
const ownLeaseTTLSeconds = 60

// place is a caller's place in a line.
type place struct {
	prefix, key string
	lease       int64
	// created is the revision that made the key: the fencing token.
	created store.Revision
}

// session makes sure of a lease: one that was named is renewed, else one is granted.
func (s *Server) session(ctx context.Context, lease int64) (int64, error) {
	if lease == 0 {
		result, _, err := s.grant(ctx, 0, ownLeaseTTLSeconds)
		return result.GetLeaseId(), err
	}
	res, err := s.leaseTime(ctx, lease, true)
	if err == nil && !res.GetFound() {
		err = rpctypes.ErrGRPCLeaseNotFound
	}
	return lease, err
}

// enter takes a place at the end of a line, or finds the one that the lease has.
func (s *Server) enter(ctx context.Context, name []byte, lease int64, value []byte) (p place, held *internalv1.StoredKey, revision store.Revision, err error) {
	p = place{prefix: string(name) + "/", lease: lease}
	p.key = fmt.Sprintf("%s%x", p.prefix, lease)
	result, err := s.propose(ctx, command(&internalv1.Txn{
		Compares: []*internalv1.Compare{p.unmade()},
		Success:  []*internalv1.Op{putOf(p.key, value, lease)},
		Failure:  []*internalv1.Op{{Op: &internalv1.Op_Range{Range: &internalv1.Range{Key: []byte(p.key)}}}},
	}))
	if err != nil {
		return place{}, nil, 0, err
	}
	revision = store.Revision(result.GetRevision())
	if result.GetTxn().GetSucceeded() {
		p.created = revision
		return p, nil, revision, nil
	}
	held = result.GetTxn().GetResults()[0].GetRange().GetKeys()[0]
	p.created = store.Revision(held.GetCreateRevision())
	return p, held, revision, nil
}

// await waits until nobody is in front of a place, and returns the revision at which
// that was seen: entered, when it needed no wait. It fails with lost when the place's
// own key is gone, because its lease is over or somebody deleted it.
func (s *Server) await(ctx context.Context, p place, entered store.Revision, lost error) (store.Revision, error) {
	ctx, cancel, err := s.attending(ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	for waited := false; ; waited = true {
		mine := s.space.Changed(p.key) // before the view: nothing is missed
		view := s.space.View()
		if !p.there(view) {
			return 0, lost
		}
		front, ok := inFront(view, p)
		switch {
		case !ok && waited:
			return s.confirm(ctx, p, lost)
		case !ok:
			return entered, nil
		}
		gone := s.space.Changed(front)
		if _, there := s.space.View().Get(front); !there {
			continue
		}
		select {
		case <-mine:
		case <-gone:
		case <-ctx.Done():
			return 0, endOf(ctx, status.FromContextError(ctx.Err()).Err())
		}
	}
}

// confirm looks once more, behind all that was acknowledged by now: what a member
// that lags has seen may be long past.
func (s *Server) confirm(ctx context.Context, p place, lost error) (store.Revision, error) {
	view, err := s.viewFor(ctx, false)
	switch {
	case err != nil:
		return 0, err
	case !p.there(view):
		return 0, lost
	}
	return view.Revision(), nil
}

// there tells whether a place's key is still the one that was made for it.
func (p place) there(view store.View) bool {
	kv, ok := view.Get(p.key)
	return ok && kv.CreateRevision == p.created
}

// inFront is the last one in front of a place: who made his key before it.
func inFront(view store.View, p place) (key string, ok bool) {
	last := store.Revision(0)
	for kv := range view.Prefix(p.prefix) {
		if kv.CreateRevision < p.created && kv.CreateRevision > last {
			key, last, ok = kv.Key, kv.CreateRevision, true
		}
	}
	return key, ok
}

// first is who is first in a line.
func first(view store.View, prefix string) (front store.KV, ok bool) {
	for kv := range view.Prefix(prefix) {
		if !ok || kv.CreateRevision < front.CreateRevision {
			front, ok = kv, true
		}
	}
	return front, ok
}

// attending counts a wait as a stream, since it may be as long: it ends when the
// caller is removed from the cluster, and at Stop.
func (s *Server) attending(ctx context.Context) (context.Context, context.CancelFunc, error) {
	ctx, leave, err := s.streams.enter(ctx, false, s.limits.Streams)
	if err != nil {
		return nil, nil, err
	}
	id, known := pki.IdentityFrom(ctx)
	if !known {
		return ctx, leave, nil
	}
	ctx, cancel := s.attend(ctx, id)
	return ctx, func() { cancel(); leave() }, nil
}

// leave gives a place up, also when its caller has gone. What fails goes with the
// lease.
func (s *Server) leave(ctx context.Context, p place) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseWait)
	defer cancel()
	if _, err := s.propose(ctx, command(&internalv1.Txn{
		Compares: []*internalv1.Compare{p.made()}, Success: []*internalv1.Op{deleteOf(p.key)},
	})); err != nil {
		s.logger.Info("a place in a line could not be given up; it goes with its lease", "key", p.key, "error", err)
	}
}

func (p place) unmade() *internalv1.Compare { return createdAt(p.key, 0) }
func (p place) made() *internalv1.Compare   { return createdAt(p.key, p.created) }

func createdAt(key string, revision store.Revision) *internalv1.Compare {
	return &internalv1.Compare{
		Key: []byte(key), Target: internalv1.Compare_TARGET_CREATE, Result: internalv1.Compare_RESULT_EQUAL, Number: int64(revision),
	}
}

// putOf binds the key to a lease, or leaves it bound to the one it has.
func putOf(key string, value []byte, lease int64) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{
		Key: []byte(key), Value: value, Lease: lease, IgnoreLease: lease == 0,
	}}}
}

func deleteOf(key string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key)}}}
}

func command(txn *internalv1.Txn) *internalv1.Command {
	return &internalv1.Command{Op: &internalv1.Command_Txn{Txn: txn}}
}

// unknown is an error as etcd's own lock and election services have them: they pass
// on the text of its client library, without a code.
func unknown(text string) error { return status.Error(codes.Unknown, text) }
