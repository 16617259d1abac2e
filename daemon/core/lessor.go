package core

import (
	"context"
	"sync"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster"
)

// lessor counts down the leases of the etcd space in the memory of the leader.
type lessor interface {
	LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error)
}

// localLessor is that of this server: while it leads.
type localLessor struct {
	mu     sync.Mutex
	leases lessor // guarded by mu; nil unless this server leads
}

func (l *localLessor) set(leases lessor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases = leases
}

func (l *localLessor) LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	l.mu.Lock()
	leases := l.leases
	l.mu.Unlock()
	if leases == nil {
		return nil, noLeader(cluster.ReasonNotLeader, "this server does not lead; leases are the leader's")
	}
	return leases.LeaseTime(ctx, req)
}
