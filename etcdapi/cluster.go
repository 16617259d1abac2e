package etcdapi

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The answers to changes of membership. A server comes and goes with its identity,
// its raft log and the cluster's own objects, none of which etcd's API knows of, so
// Balsa's own commands do it.
var (
	errMemberAdd = status.Error(codes.FailedPrecondition,
		"etcdserver: a server joins by itself: make a token with `balsa token create --role server` and start it with `balsa server --join ADDRESS --token-file FILE`")
	errMemberRemove = status.Error(codes.FailedPrecondition,
		"etcdserver: removing a server also takes its certificate away: use `balsa cluster remove MEMBER`")
	errMemberUpdate = status.Error(codes.FailedPrecondition,
		"etcdserver: a server says itself where it is: start it with other --advertise and --etcd-advertise")
)

// clusterServer is etcdserverpb.Cluster.
type clusterServer struct {
	*Server
	pb.UnsafeClusterServer
}

func (c *clusterServer) MemberList(ctx context.Context, req *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if req.GetLinearizable() {
		if err := c.backend.ReadBarrier(ctx); err != nil {
			return nil, c.statusOf(err)
		}
	}
	// As etcd's, these headers have no revision: members are not in the space.
	res := &pb.MemberListResponse{Header: c.header(0)}
	for _, m := range c.group.Members() {
		res.Members = append(res.Members, &pb.Member{
			ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner,
		})
	}
	return res, nil
}

func (c *clusterServer) MemberAdd(_ context.Context, req *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if _, err := types.NewURLs(req.GetPeerURLs()); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	for _, m := range c.group.Members() {
		if slices.ContainsFunc(req.GetPeerURLs(), func(u string) bool { return slices.Contains(m.PeerURLs, u) }) {
			return nil, rpctypes.ErrGRPCPeerURLExist
		}
	}
	return nil, errMemberAdd
}

func (c *clusterServer) MemberRemove(_ context.Context, req *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if _, known := c.member(req.GetID()); !known {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return nil, errMemberRemove
}

func (c *clusterServer) MemberUpdate(_ context.Context, req *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if _, known := c.member(req.GetID()); !known {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	if _, err := types.NewURLs(req.GetPeerURLs()); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	return nil, errMemberUpdate
}

// MemberPromote never has anything to do: a learner gets its vote by itself as soon
// as it has caught up, so one that is still a learner has not.
func (c *clusterServer) MemberPromote(_ context.Context, req *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	switch m, known := c.member(req.GetID()); {
	case !known:
		return nil, rpctypes.ErrGRPCMemberNotFound
	case !m.Learner:
		return nil, rpctypes.ErrGRPCMemberNotLearner
	}
	return nil, rpctypes.ErrGRPCLearnerNotReady
}

func (s *Server) member(id uint64) (Member, bool) {
	all := s.group.Members()
	i := slices.IndexFunc(all, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return all[i], true
}
