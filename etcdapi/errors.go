package etcdapi

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// errInternal is what a client gets to know of a mistake of ours.
var errInternal = status.Error(codes.Internal, "etcdserver: internal error: see the log of the server")

// statuses give what the ports and the store fail with etcd's codes and words.
var statuses = []struct{ err, status error }{
	{ErrNoLeader, rpctypes.ErrGRPCNoLeader},
	{ErrLeaderChanged, rpctypes.ErrGRPCLeaderChanged},
	{ErrLeaderLost, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
	{ErrTimeout, rpctypes.ErrGRPCTimeout},
	{ErrStopped, rpctypes.ErrGRPCStopped},
	{ErrTooManyRequests, rpctypes.ErrGRPCRequestTooManyRequests},
	{ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{store.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{store.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{store.ErrTooManyWatchers, rpctypes.ErrGRPCRequestTooManyRequests},
}

// statusOf is err as a client gets it. What nobody expected becomes Internal and
// goes to the log.
func (s *Server) statusOf(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range statuses {
		if errors.Is(err, known.err) {
			return known.status
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	s.logger.Error("etcd request failed", "error", err)
	return errInternal
}

// outcomes give what commands come to etcd's codes and words. Limits that etcd
// does not have (the length of a key, the keys of a range in a transaction)
// are a request that is too large.
var outcomes = map[internalv1.CommandResult_Outcome]error{
	internalv1.CommandResult_OUTCOME_STALE_EPOCH:     rpctypes.ErrGRPCLeaderChanged,
	internalv1.CommandResult_OUTCOME_COMPACTED:       rpctypes.ErrGRPCCompacted,
	internalv1.CommandResult_OUTCOME_FUTURE_REVISION: rpctypes.ErrGRPCFutureRev,
	internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND: rpctypes.ErrGRPCLeaseNotFound,
	internalv1.CommandResult_OUTCOME_LEASE_EXISTS:    rpctypes.ErrGRPCLeaseExist,
	internalv1.CommandResult_OUTCOME_NO_SPACE:        rpctypes.ErrGRPCNoSpace,
	internalv1.CommandResult_OUTCOME_LIMIT:           rpctypes.ErrGRPCRequestTooLarge,
	internalv1.CommandResult_OUTCOME_KEY_NOT_FOUND:   rpctypes.ErrGRPCKeyNotFound,
}

// outcomeError is nil when the command was carried out.
func (s *Server) outcomeError(result *internalv1.CommandResult) error {
	if result.GetOutcome() == internalv1.CommandResult_OUTCOME_OK {
		return nil
	}
	if err, ok := outcomes[result.GetOutcome()]; ok {
		s.logger.Debug("etcd request refused", "outcome", result.GetOutcome().String(), "reason", result.GetMessage())
		return err
	}
	s.logger.Error("etcd command refused", "outcome", result.GetOutcome().String(), "reason", result.GetMessage())
	return errInternal
}

// propose carries a command of the etcd space through the log. The error is fit
// for a client.
func (s *Server) propose(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	command.Space = s.space.Name()
	command.TimeNs = s.clock.Now().UnixNano()
	result, err := s.backend.Propose(ctx, command)
	if err != nil {
		return nil, s.statusOf(err)
	}
	if err := s.outcomeError(result); err != nil {
		return nil, err
	}
	return result, nil
}
