package etcdapi

import (
	"context"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

var errSessionExpired = unknown("mutex: session is expired")

// lockServer is v3lockpb.Lock.
type lockServer struct {
	*Server
	v3lockpb.UnsafeLockServer
}

// Lock returns once the caller's key is the oldest of the lock's. It is held as long
// as the key is there: until Unlock, or until the lease is over.
func (l *lockServer) Lock(ctx context.Context, req *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	lease, err := l.session(ctx, req.GetLease())
	if err != nil {
		return nil, err
	}
	p, _, revision, err := l.enter(ctx, req.GetName(), lease, nil)
	if err != nil {
		return nil, err
	}
	revision, err = l.await(ctx, p, revision, errSessionExpired)
	if err != nil {
		l.leave(ctx, p)
		return nil, err
	}
	return &v3lockpb.LockResponse{Header: l.header(revision), Key: []byte(p.key)}, nil
}

// Unlock deletes the key that Lock gave.
func (l *lockServer) Unlock(ctx context.Context, req *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	if len(req.GetKey()) == 0 {
		return nil, unknown("etcdserver: key is not provided")
	}
	result, err := l.propose(ctx, command(&internalv1.Txn{Success: []*internalv1.Op{deleteOf(string(req.GetKey()))}}))
	if err != nil {
		return nil, err
	}
	return &v3lockpb.UnlockResponse{Header: l.header(store.Revision(result.GetRevision()))}, nil
}
