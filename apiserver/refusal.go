package apiserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"connectrpc.com/connect"
)

// maxRefusalBytes bounds what is held back of an answer that no handler wrote.
const maxRefusalBytes = 64 << 10

// reply is the answer of a call. What is written to it before the call has
// reached an interceptor or was refused by the gate is a refusal by connect
// itself, such as of a message that cannot be decoded. connect says no more than
// a code and a text then, so it is held back, and sent again with a detail, as
// every other refusal of ours has one.
type reply struct {
	http.ResponseWriter
	open   bool // what is written goes out
	status int
	held   bytes.Buffer
}

// Unwrap is for http.ResponseController.
func (r *reply) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// pass lets everything out from here on.
func (r *reply) pass() {
	if r.open {
		return
	}
	r.open = true
	if r.status != 0 {
		r.ResponseWriter.WriteHeader(r.status)
	}
	if r.held.Len() > 0 {
		_, _ = r.ResponseWriter.Write(r.held.Bytes()) // who does not take it learns nothing
	}
}

// WriteHeader implements http.ResponseWriter.
func (r *reply) WriteHeader(status int) {
	if r.open {
		r.ResponseWriter.WriteHeader(status)
		return
	}
	r.status = status
}

// Write implements http.ResponseWriter.
func (r *reply) Write(p []byte) (int, error) {
	if !r.open && r.held.Len()+len(p) > maxRefusalBytes {
		r.pass()
	}
	if r.open {
		return r.ResponseWriter.Write(p)
	}
	return r.held.Write(p)
}

// Flush implements http.Flusher, which connect wants of streams.
func (r *reply) Flush() {
	if flusher, ok := r.ResponseWriter.(http.Flusher); ok && r.open {
		flusher.Flush()
	}
}

// conclude sends what was held back, with a detail if it is an error of a call.
func (s *Server) conclude(r *reply, request *http.Request, c *call) {
	if r.open {
		return
	}
	refused := r.refusal(request)
	if refused == nil || !s.refusals.IsSupported(request) {
		r.pass()
		return
	}
	p := s.refusalProblem(refused)
	c.reason = p.reason
	clear(r.Header())
	s.announcer.put(r.Header())
	r.open = true
	_ = s.refusals.Write(r, request, toConnect(p, s.policy.writes(c.procedure), s.log)) // who does not take it learns nothing
}

// refusal is the error that was held back; nil when it is none of a call.
func (r *reply) refusal(request *http.Request) *connect.Error {
	h := r.Header()
	for _, prefix := range []string{"", http.TrailerPrefix} {
		if status := h.Get(prefix + "Grpc-Status"); status != "" && status != "0" {
			code, err := strconv.ParseUint(status, 10, 8)
			text, textErr := url.PathUnescape(h.Get(prefix + "Grpc-Message"))
			if err != nil || textErr != nil {
				return nil //nolint:nilerr // not a status that connect writes, so nothing to add to
			}
			return connect.NewError(connect.Code(code), errors.New(text))
		}
	}
	var wire struct {
		Code    connect.Code `json:"code"`
		Message string       `json:"message"`
	}
	switch {
	case r.status == http.StatusNotFound && request.Method == http.MethodPost:
		return connect.NewError(connect.CodeUnimplemented, errors.New("there is no method "+clip(strings.TrimPrefix(request.URL.Path, "/"))))
	case !strings.HasPrefix(h.Get("Content-Type"), "application/json"), json.Unmarshal(r.held.Bytes(), &wire) != nil, wire.Code == 0:
		return nil //nolint:nilerr // the same
	}
	return connect.NewError(wire.Code, errors.New(wire.Message))
}

// refusalProblem says what connect left out. What never reached a handler was not
// applied.
func (s *Server) refusalProblem(refused *connect.Error) *problem {
	p := &problem{code: refused.Code(), reason: reasonOf(refused.Code())}
	switch refused.Code() {
	case connect.CodeInvalidArgument:
		p = &problem{code: connect.CodeInvalidArgument, reason: "Malformed",
			hint: "send what the method's request message describes; unknown fields are refused"}
	case connect.CodeInternal:
		// Nothing has gone wrong in here: connect says so of a broken message.
		p = &problem{code: connect.CodeInvalidArgument, reason: "Malformed",
			hint: "the message is cut off or not framed as the protocol has it"}
	case connect.CodeResourceExhausted:
		p = &problem{code: connect.CodeResourceExhausted, reason: "LimitReached",
			hint: fmt.Sprintf("send less at once: a message may have %d bytes (limit MessageBytes)", s.limits.MessageBytes)}
	case connect.CodeUnimplemented:
		p.hint = "see that client and server are of versions that work together"
	}
	p.applied, p.err = notApplied, errors.New(refused.Message())
	return p
}
