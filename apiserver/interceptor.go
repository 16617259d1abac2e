package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"

	"connectrpc.com/connect"
)

// edge is the interceptor round every handler: it turns errors into codes and
// details, a panic into an internal error, and notes the outcome.
type edge struct{ s *Server }

func (e edge) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		callOf(ctx).answers()
		defer func() { err = e.conclude(ctx, req.Spec(), err, recover()) }()
		return next(ctx, req)
	}
}

func (e edge) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (e edge) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		callOf(ctx).answers()
		defer func() { err = e.conclude(ctx, conn.Spec(), err, recover()) }()
		return next(ctx, conn)
	}
}

func (e edge) conclude(ctx context.Context, spec connect.Spec, err error, panicked any) error {
	c := callOf(ctx)
	c.served = true
	if panicked != nil {
		if cause, ok := panicked.(error); ok && errors.Is(cause, http.ErrAbortHandler) {
			panic(panicked)
		}
		e.s.log.Error("a handler panicked", "method", rpcName(spec.Procedure), "panic", fmt.Sprintf("%T", panicked), "stack", string(debug.Stack()))
		err = e.panicProblem(spec)
	}
	if err == nil {
		c.code = "ok"
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && (errors.Is(err, context.Canceled) || connect.CodeOf(err) == connect.CodeCanceled) {
		err = cause // a removed identity, rather than "canceled", also of a call to a node
	}
	ce := toConnect(err, e.s.policy.writes(spec.Procedure), e.s.log)
	c.code, c.reason = ce.Code().String(), toProblem(err).reason
	return ce
}

// panicProblem cannot know how far the handler came.
func (e edge) panicProblem(spec connect.Spec) error {
	p := &problem{
		code: connect.CodeInternal, reason: "Panic",
		hint: "this is a mistake in the server; its log holds the stack",
		err:  errors.New("internal error"),
	}
	if e.s.policy.writes(spec.Procedure) {
		p.applied = unknown
	}
	return p
}
