package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/internal/clock"
)

// retrier repeats calls as the package comment promises.
type retrier struct {
	servers  *pool
	clock    clock.Clock
	retryFor time.Duration
}

func (r *retrier) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		began := r.clock.Now()
		tried, wait := trials{began: began}, backoffFirst
		for count := 1; ; count++ {
			tracked, made := withAttempt(ctx, !reads(request.Spec()))
			response, err := next(tracked, request)
			if err == nil {
				r.servers.served(made.address)
				return response, nil
			}
			tried.note(err)
			if ctx.Err() != nil {
				return nil, err
			}
			if !mayRepeat(request, err) || hopeless(err) && count >= r.servers.size() {
				if connect.CodeOf(err) == connect.CodeUnavailable || cutOff(err) {
					r.servers.failed(made.address, err) // the next call goes elsewhere
				}
				return nil, tried.conclude(request.Spec(), err, r.clock.Now())
			}
			r.servers.failed(made.address, err)
			if r.clock.Now().Add(wait).After(began.Add(r.retryFor)) || !r.pause(ctx, wait) {
				return nil, tried.conclude(request.Spec(), err, r.clock.Now())
			}
			wait = min(2*wait, backoffMax)
		}
	}
}

// hopeless tells that the same server would say the same again.
func hopeless(err error) bool { return refusedUs(err) || strange(err) }

// WrapStreamingClient does not repeat streams: whoever reads one knows where to
// resume it.
func (r *retrier) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		tracked, made := withAttempt(ctx, false)
		return &watchedStream{StreamingClientConn: next(tracked, spec), ctx: ctx, retrier: r, made: made, began: r.clock.Now()}
	}
}

func (r *retrier) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// pause waits for about d, or less when ctx ends: then it returns false.
func (r *retrier) pause(ctx context.Context, d time.Duration) bool {
	timer := r.clock.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// watchedStream tells the pool when a stream broke because of its server.
type watchedStream struct {
	connect.StreamingClientConn
	ctx     context.Context
	retrier *retrier
	made    *attempt
	began   time.Time

	servedOnce sync.Once
}

func (s *watchedStream) Receive(message any) error {
	err := s.StreamingClientConn.Receive(message)
	if err == nil {
		s.servedOnce.Do(func() { s.retrier.servers.served(s.made.address) })
	}
	if err == nil || errors.Is(err, io.EOF) || s.ctx.Err() != nil {
		return err
	}
	if s.made.address != "" && (connect.CodeOf(err) == connect.CodeUnavailable || !connect.IsWireError(err)) {
		s.retrier.servers.failed(s.made.address, err)
	}
	tried := trials{began: s.began}
	tried.note(err)
	return tried.conclude(s.Spec(), err, s.retrier.clock.Now())
}

// mayRepeat tells whether a failed call may be made again. Only a server that
// was not to be reached, or said that it cannot serve now, is worth it.
func mayRepeat(request connect.AnyRequest, err error) bool {
	if neverSent(err) {
		return true
	}
	if connect.CodeOf(err) != connect.CodeUnavailable && !cutOff(err) {
		return false
	}
	if reads(request.Spec()) || Applied(err) == balsav1.ErrorDetail_APPLIED_NOT_APPLIED {
		return true
	}
	return sameTwice(request)
}

// cutOff tells that a call which nobody here has given up was: by a connection that
// broke, which the protocol's library calls canceled, for HTTP/2 does.
func cutOff(err error) bool {
	return connect.CodeOf(err) == connect.CodeCanceled && !connect.IsWireError(err)
}

// sameTwice tells whether making a write a second time, after a first whose fate
// is unknown, can change nothing that the first did not.
func sameTwice(request connect.AnyRequest) bool {
	switch message := request.Any().(type) {
	case *balsav1.ApplyRequest, *balsav1.RegisterRequest, *balsav1.HeartbeatRequest, *balsav1.ReportStatusRequest:
		return true
	case *balsav1.DeleteRequest:
		return message.GetUid() != ""
	case *balsav1.EvictRequest:
		return message.GetUid() != "" // a pod that is on its way out is asked for nothing more
	case *balsav1.RevokeTokenRequest, *balsav1.RemoveIdentityRequest, *balsav1.RemoveMemberRequest:
		return true
	}
	return request.Spec().Procedure == balsav1connect.JoinServiceRenewProcedure
}

// Applied tells what became of the write that err is the failure of. An error
// that does not say, for instance because the connection broke, is UNKNOWN.
func Applied(err error) balsav1.ErrorDetail_Applied {
	if err == nil {
		return balsav1.ErrorDetail_APPLIED_UNSPECIFIED
	}
	if detail := Detail(err); detail != nil && detail.GetApplied() != balsav1.ErrorDetail_APPLIED_UNSPECIFIED {
		return detail.GetApplied()
	}
	if neverSent(err) {
		return balsav1.ErrorDetail_APPLIED_NOT_APPLIED
	}
	if !connect.IsWireError(err) {
		return balsav1.ErrorDetail_APPLIED_UNKNOWN // a server may have done it before the failure
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
		connect.CodeUnauthenticated, connect.CodeFailedPrecondition, connect.CodeUnimplemented, connect.CodeResourceExhausted:
		return balsav1.ErrorDetail_APPLIED_NOT_APPLIED
	}
	return balsav1.ErrorDetail_APPLIED_UNKNOWN
}

// Detail returns what the server said beside the message, or nil.
func Detail(err error) *balsav1.ErrorDetail {
	var failure *connect.Error
	if !errors.As(err, &failure) {
		return nil
	}
	for _, detail := range failure.Details() {
		message, err := detail.Value()
		if err != nil {
			continue
		}
		if found, ok := message.(*balsav1.ErrorDetail); ok {
			return found
		}
	}
	return nil
}

// IsNotFound tells that the object does not exist.
func IsNotFound(err error) bool { return connect.CodeOf(err) == connect.CodeNotFound }

// IsAlreadyExists tells that an object of that name exists.
func IsAlreadyExists(err error) bool { return connect.CodeOf(err) == connect.CodeAlreadyExists }

// IsConflict tells that the object has changed since it was read: Detail names
// its current revision. Read it again and decide anew.
func IsConflict(err error) bool { return connect.CodeOf(err) == connect.CodeAborted }

// IsCompacted tells that the revision asked for is no longer kept: list again.
func IsCompacted(err error) bool { return connect.CodeOf(err) == connect.CodeOutOfRange }

// IsUnavailable tells that no server could serve: none was reached, or they
// have no leader.
func IsUnavailable(err error) bool { return connect.CodeOf(err) == connect.CodeUnavailable }
