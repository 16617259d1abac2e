package etcdapi

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// How long a server waits for a leader before it ends the streams that need one:
// as etcd, three looks that are an election apart.
const (
	leaderLook   = time.Second
	leaderMisses = 3
)

// streamSet is the open streams, so that the server can end them.
type streamSet struct {
	mu      sync.Mutex
	stopped bool                     // guarded by mu
	open    map[*openStream]struct{} // guarded by mu
}

type openStream struct {
	cancel context.CancelCauseFunc
	// leader says that the stream is to end when there is no leader.
	leader bool
}

// enter counts a stream in. leave must be called when it ends.
func (set *streamSet) enter(ctx context.Context, leader bool, limit int) (_ context.Context, leave func(), err error) {
	set.mu.Lock()
	defer set.mu.Unlock()
	switch {
	case set.stopped:
		return nil, nil, rpctypes.ErrGRPCStopped
	case len(set.open) >= limit:
		return nil, nil, rpctypes.ErrGRPCRequestTooManyRequests
	case set.open == nil:
		set.open = map[*openStream]struct{}{}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	o := &openStream{cancel: cancel, leader: leader}
	set.open[o] = struct{}{}
	return ctx, func() {
		set.mu.Lock()
		delete(set.open, o)
		set.mu.Unlock()
		cancel(nil)
	}, nil
}

// end ends the streams that need a leader, or all of them and those to come.
func (set *streamSet) end(all bool, reason error) {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.stopped = set.stopped || all
	for o := range set.open {
		if all || o.leader {
			o.cancel(reason)
		}
	}
}

// watchLeader ends the streams that need a leader when there has been none for a
// while, until Stop.
func (s *Server) watchLeader() {
	timer := s.clock.NewTimer(leaderLook)
	defer timer.Stop()
	missed := 0
	for {
		select {
		case <-s.stopping:
			return
		case <-timer.C():
		}
		timer.Reset(leaderLook)
		if missed++; s.group.Status().LeaderID != 0 {
			missed = 0
		}
		if missed >= leaderMisses {
			s.streams.end(false, rpctypes.ErrGRPCNoLeader)
		}
	}
}
