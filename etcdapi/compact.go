package etcdapi

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// purgeLook is how often a physical compaction looks whether the memory of this
// member has been given back.
const purgeLook = 5 * time.Millisecond

// Compact forgets what came before a revision. A physical one waits until this
// member has cleared away what it forgot.
func (k *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	_, err := k.propose(ctx, &internalv1.Command{Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: r.GetRevision()}}})
	if err != nil {
		return nil, err
	}
	if r.GetPhysical() {
		if err := k.waitPurged(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.CompactionResponse{Header: k.headerNow()}, nil
}

func (k *kvServer) waitPurged(ctx context.Context) error {
	timer := k.clock.NewTimer(purgeLook)
	defer timer.Stop()
	for k.space.Stats().PurgeRecords > 0 {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-k.stopping:
			return k.statusOf(ErrStopped)
		case <-timer.C():
			timer.Reset(purgeLook)
		}
	}
	return nil
}
