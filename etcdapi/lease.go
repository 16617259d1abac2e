package etcdapi

import (
	"context"
	"errors"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

const (
	// MinLeaseTTLSeconds is the shortest time to live: etcd's with its default
	// settings, 3/2 of its election time-out in whole seconds. A shorter one is
	// granted as this one.
	MinLeaseTTLSeconds = 2
	// leaseWait is how long a request waits for a leader who knows the time, which
	// is etcd's request time-out; leasePause is between two questions.
	leaseWait  = 7 * time.Second
	leasePause = 50 * time.Millisecond
)

// leaseServer is etcdserverpb.Lease. Grants and revocations are commands of the log;
// the time that is left is asked of the leader.
type leaseServer struct {
	*Server
	pb.UnsafeLeaseServer
}

func (l *leaseServer) LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if req.GetTTL() > store.MaxLeaseTTLSeconds {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	result, ttl, err := l.grant(ctx, req.GetID(), req.GetTTL())
	if err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{Header: l.header(store.Revision(result.GetRevision())), ID: result.GetLeaseId(), TTL: ttl}, nil
}

// grant grants a lease for at least the shortest time.
//
// An id that was chosen by the client may have been that of an earlier lease, whose
// revocation the leader is just about to propose. The lease counts only once the
// leader has renewed it; until then it is granted again, which fails for as long as
// the earlier one lives.
func (s *Server) grant(ctx context.Context, id, ttl int64) (*internalv1.CommandResult, int64, error) {
	ttl = max(ttl, MinLeaseTTLSeconds)
	for granted := false; ; granted = true {
		result, err := s.propose(ctx, &internalv1.Command{Op: &internalv1.Command_LeaseGrant{
			LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: ttl},
		}})
		switch {
		case errors.Is(err, rpctypes.ErrGRPCRequestTooLarge):
			return nil, 0, rpctypes.ErrGRPCRequestTooManyRequests // as many leases as there may be
		case err != nil && (!granted || !errors.Is(err, rpctypes.ErrGRPCLeaseExist)):
			return nil, 0, err
		case err == nil && id == 0:
			return result, ttl, nil // chosen by the store, and never used before
		}
		res, timeErr := s.leaseTime(ctx, id, true)
		if timeErr != nil {
			return nil, 0, timeErr
		}
		if res.GetFound() && result == nil {
			return nil, 0, rpctypes.ErrGRPCLeaseExist // somebody else's meanwhile
		}
		if res.GetFound() {
			return result, ttl, nil
		}
		if err := s.pause(ctx, leasePause); err != nil {
			return nil, 0, err
		}
	}
}

func (l *leaseServer) LeaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	result, err := l.propose(ctx, &internalv1.Command{Op: &internalv1.Command_LeaseRevoke{
		LeaseRevoke: &internalv1.LeaseRevoke{Id: req.GetID()},
	}})
	if err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: l.header(store.Revision(result.GetRevision()))}, nil
}

// LeaseKeepAlive renews the leases that the client names, one after the other. Of a
// lease that is not there it says that it has no time.
func (l *leaseServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	requests, ended := l.receiveKeepAlives(stream)
	for {
		select {
		case <-stream.Context().Done():
			return l.statusOf(context.Cause(stream.Context()))
		case req, more := <-requests:
			if !more {
				return <-ended
			}
			// The header is from before: a lease that is revoked at a later revision must
			// not look as if it had been renewed at that one.
			res := &pb.LeaseKeepAliveResponse{Header: l.headerNow(), ID: req.GetID()}
			left, err := l.leaseTime(stream.Context(), req.GetID(), true)
			if err != nil {
				return err
			}
			if left.GetFound() {
				res.TTL = left.GetGrantedSeconds()
			}
			if err := stream.Send(res); err != nil {
				return err
			}
		}
	}
}

// receiveKeepAlives reads on its own, since nothing else ends a wait for a client
// that says nothing.
func (s *Server) receiveKeepAlives(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) (<-chan *pb.LeaseKeepAliveRequest, <-chan error) {
	requests, ended := make(chan *pb.LeaseKeepAliveRequest), make(chan error, 1)
	go func() {
		defer close(requests)
		for {
			req, err := stream.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				ended <- err
				return
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				ended <- nil
				return
			}
		}
	}()
	return requests, ended
}

func (l *leaseServer) LeaseTimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	left, err := l.leaseTime(ctx, req.GetID(), false)
	if err != nil {
		return nil, err
	}
	// The leader may know of a lease that has not been applied here yet.
	if err := l.backend.ReadBarrier(ctx); err != nil {
		return nil, l.statusOf(err)
	}
	view := l.space.View()
	res := &pb.LeaseTimeToLiveResponse{Header: l.header(view.Revision()), ID: req.GetID(), TTL: -1}
	if lease, there := view.Lease(req.GetID()); there && left.GetFound() {
		res.TTL, res.GrantedTTL = left.GetRemainingMs()/1000, lease.TTLSeconds
		if req.GetKeys() {
			for key := range view.LeaseKeys(req.GetID()) {
				res.Keys = append(res.Keys, []byte(key))
			}
		}
	}
	return res, nil
}

func (l *leaseServer) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	if err := l.backend.ReadBarrier(ctx); err != nil {
		return nil, l.statusOf(err)
	}
	view := l.space.View()
	res := &pb.LeaseLeasesResponse{Header: l.header(view.Revision())}
	for lease := range view.Leases() {
		res.Leases = append(res.Leases, &pb.LeaseStatus{ID: lease.ID})
	}
	return res, nil
}

// leaseTime asks the leader, and waits for one for a while: to ask again does no
// harm. The error is fit for a client.
func (s *Server) leaseTime(ctx context.Context, id int64, renew bool) (*internalv1.LeaseTimeResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, leaseWait, ErrTimeout)
	defer cancel()
	leaderless := false
	over := func() error {
		if cause := context.Cause(ctx); !leaderless || !errors.Is(cause, ErrTimeout) {
			return s.statusOf(cause)
		}
		return s.statusOf(ErrNoLeader) // etcd's word when nobody leads in the end either
	}
	for {
		res, err := s.leases.LeaseTime(ctx, &internalv1.LeaseTimeRequest{Id: id, Renew: renew})
		switch {
		case err == nil:
			return res, nil
		case ctx.Err() != nil:
			return nil, over()
		case !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrLeaderChanged) && !errors.Is(err, ErrTimeout):
			return nil, s.statusOf(err)
		}
		leaderless = errors.Is(err, ErrNoLeader)
		if err := s.pause(ctx, leasePause); err != nil {
			if ctx.Err() != nil {
				return nil, over()
			}
			return nil, err
		}
	}
}

// pause waits, and fails when the context ends or the server stops.
func (s *Server) pause(ctx context.Context, d time.Duration) error {
	timer := s.clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return nil
	case <-ctx.Done():
		return s.statusOf(context.Cause(ctx))
	case <-s.stopping:
		return rpctypes.ErrGRPCStopped
	}
}
