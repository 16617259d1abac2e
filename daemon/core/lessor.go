package core

import (
	"context"
	"errors"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/reconciler/leases"
	"github.com/balsa-run/balsa/store"
)

// lessor counts down the leases of the etcd space in the memory of the leader.
type lessor interface {
	LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error)
}

// localLessor is that of this server: while it leads.
type localLessor struct{ whileLeading[lessor] }

func (l *localLessor) LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	counting, err := l.get()
	if err != nil {
		return nil, err
	}
	response, err := counting.LeaseTime(ctx, req)
	if errors.Is(err, leases.ErrNotCounting) {
		return nil, noLeader(cluster.ReasonNotReady, err.Error())
	}
	return response, cluster.ToConnect(err)
}

// termLessor counts the leases of one term.
func (s *Server) termLessor(epoch uint64) *leases.Lessor {
	return leases.New(leases.Options{
		Space: s.store.Space(store.SpaceEtcd), Proposer: s.cluster, Clock: s.cfg.Clock,
		Logger: s.logger.With("part", "leases"), Epoch: epoch,
		Confirm: func(ctx context.Context) error { return s.confirmTerm(ctx, epoch) },
	})
}

// confirmTerm returns once this server is as new as every write acknowledged before
// the call and has led in the term after it began. A server never leads twice in
// one term, so what holds before and after has held all the time.
func (s *Server) confirmTerm(ctx context.Context, epoch uint64) error {
	over := &cluster.Error{Class: cluster.NotApplied, Reason: cluster.ReasonNotLeader, Err: errors.New("this server has lost leadership; leases are the leader's")}
	if s.cluster.Status().Leading != epoch {
		return over
	}
	if _, err := s.cluster.ReadIndex(ctx); err != nil {
		return err
	}
	if s.cluster.Status().Leading != epoch {
		return over
	}
	return nil
}

// leaseTimes asks this server's count, or the leader's.
type leaseTimes struct {
	local   *localLessor
	cluster *cluster.Cluster
	peers   *peers
}

// LeaseTime never asks on: who is asked as the leader and is none refuses.
func (l *leaseTimes) LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	status := l.cluster.Status()
	if status.Leading != 0 {
		response, err := l.local.LeaseTime(ctx, req)
		return response, cluster.FromConnect(err)
	}
	if status.LeaderAddress == "" || status.LeaderID == status.ID {
		return nil, &cluster.Error{Class: cluster.NotApplied, Reason: cluster.ReasonNoLeader, Err: errors.New("no server leads at this moment")}
	}
	response, err := l.peers.at(status.LeaderAddress).LeaseTime(ctx, req)
	return response, cluster.FromConnect(err)
}
