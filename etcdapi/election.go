package etcdapi

import (
	"bytes"
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"google.golang.org/grpc"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

var (
	errNotElected    = unknown("election: not leader")
	errNobodyElected = unknown("election: no leader")
	errNoLeaderKey   = unknown(`"leader" field must be provided`)
)

// electionServer is v3electionpb.Election.
type electionServer struct {
	*Server
	v3electionpb.UnsafeElectionServer
}

// Campaign returns once the caller leads: its key is the oldest of the election's.
func (e *electionServer) Campaign(ctx context.Context, req *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	lease, err := e.session(ctx, req.GetLease())
	if err != nil {
		return nil, err
	}
	// The answer's revision is etcd's: that of the attempt to enter, whatever came then.
	p, held, revision, err := e.enter(ctx, req.GetName(), lease, req.GetValue())
	if err != nil {
		return nil, err
	}
	if held != nil && !bytes.Equal(held.GetValue(), req.GetValue()) {
		if _, err = e.proclaim(ctx, p, req.GetValue()); err != nil {
			e.leave(ctx, p)
			return nil, err
		}
	}
	if _, err := e.await(ctx, p, revision, errNotElected); err != nil {
		e.leave(ctx, p)
		return nil, err
	}
	return &v3electionpb.CampaignResponse{
		Header: e.header(revision),
		Leader: &v3electionpb.LeaderKey{Name: req.GetName(), Key: []byte(p.key), Rev: int64(p.created), Lease: lease},
	}, nil
}

// Proclaim gives an election that was won a new value.
func (e *electionServer) Proclaim(ctx context.Context, req *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	if req.GetLeader() == nil {
		return nil, errNoLeaderKey
	}
	revision, err := e.proclaim(ctx, placeOf(req.GetLeader()), req.GetValue())
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ProclaimResponse{Header: e.header(revision)}, nil
}

func placeOf(l *v3electionpb.LeaderKey) place {
	return place{key: string(l.GetKey()), lease: l.GetLease(), created: store.Revision(l.GetRev())}
}

func (e *electionServer) proclaim(ctx context.Context, p place, value []byte) (store.Revision, error) {
	if p.key == "" {
		return 0, rpctypes.ErrGRPCEmptyKey
	}
	result, err := e.propose(ctx, command(&internalv1.Txn{
		Compares: []*internalv1.Compare{p.made()}, Success: []*internalv1.Op{putOf(p.key, value, p.lease)},
	}))
	switch {
	case err != nil:
		return 0, err
	case !result.GetTxn().GetSucceeded():
		return 0, errNotElected
	}
	return store.Revision(result.GetRevision()), nil
}

// Leader is who leads now.
func (e *electionServer) Leader(ctx context.Context, req *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	view, err := e.viewFor(ctx, false)
	if err != nil {
		return nil, err
	}
	front, ok := first(view, string(req.GetName())+"/")
	if !ok {
		return nil, errNobodyElected
	}
	return &v3electionpb.LeaderResponse{Header: e.header(view.Revision()), Kv: viewKV(front)}, nil
}

// Resign gives leadership up; who does not have it any more has nothing to give.
func (e *electionServer) Resign(ctx context.Context, req *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	if req.GetLeader() == nil {
		return nil, errNoLeaderKey
	}
	p := placeOf(req.GetLeader())
	if p.key == "" {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	result, err := e.propose(ctx, command(&internalv1.Txn{
		Compares: []*internalv1.Compare{p.made()}, Success: []*internalv1.Op{deleteOf(p.key)},
	}))
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ResignResponse{Header: e.header(store.Revision(result.GetRevision()))}, nil
}

// Observe tells who leads, and all that a leader proclaims, in order.
func (e *electionServer) Observe(req *v3electionpb.LeaderRequest, stream grpc.ServerStreamingServer[v3electionpb.LeaderResponse]) error {
	ctx, prefix := stream.Context(), string(req.GetName())+"/"
	view, err := e.viewFor(ctx, false)
	if err != nil {
		return err
	}
	for {
		changed := e.space.Changed(prefix)
		if now := e.space.View(); now.Revision() > view.Revision() {
			view = now
		}
		front, ok := first(view, prefix)
		if !ok {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return endOf(ctx, ctx.Err())
			}
		}
		if err := stream.Send(&v3electionpb.LeaderResponse{Header: e.header(view.Revision()), Kv: viewKV(front)}); err != nil {
			return err
		}
		if err := e.observe(ctx, front.Key, view.Revision(), stream); err != nil {
			return err
		}
	}
}

// observe tells what one leader proclaims, until its key is deleted or the watch
// lost its place: then the election is looked at anew.
func (e *electionServer) observe(ctx context.Context, key string, from store.Revision, stream grpc.ServerStreamingServer[v3electionpb.LeaderResponse]) error {
	w, err := e.space.Watch(ctx, store.WatchOptions{Key: key, From: from + 1})
	if errors.Is(err, store.ErrCompacted) {
		return nil
	}
	if err != nil {
		return e.statusOf(err)
	}
	defer w.Stop()
	for batch := range w.Events() {
		for _, event := range batch.Events {
			if event.Type == store.EventDelete {
				return nil
			}
			if err := stream.Send(&v3electionpb.LeaderResponse{Header: e.header(batch.Revision), Kv: viewKV(event.KV)}); err != nil {
				return err
			}
		}
	}
	return endOf(ctx, ctx.Err())
}
