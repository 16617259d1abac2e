package client

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Reasons in the ErrorDetail of failures that no server told.
const (
	ReasonUnreachable     = "Unreachable"     // no server was reached
	ReasonIdentityRefused = "IdentityRefused" // a server did not take our certificate
	ReasonOtherCluster    = "OtherCluster"    // what answers is not of our cluster
	ReasonConnectionLost  = "ConnectionLost"  // the answer did not come
)

// trials remembers, of one call, why each server could not be asked.
type trials struct {
	began  time.Time
	failed []*dialError // the latest of each address, in the order of the first
}

func (t *trials) note(err error) {
	var failed *dialError
	if !errors.As(err, &failed) {
		return
	}
	for i, earlier := range t.failed {
		if earlier.address == failed.address {
			t.failed[i] = failed
			return
		}
	}
	t.failed = append(t.failed, failed)
}

// conclude gives a failure that comes from no server the same form as one that
// does: a code, a text without the transport's URL, and a detail. Others stay.
func (t *trials) conclude(spec connect.Spec, err error, now time.Time) error {
	if Detail(err) != nil {
		return err
	}
	detail := &balsav1.ErrorDetail{}
	if !reads(spec) {
		detail.Applied = Applied(err)
	}
	code, text := connect.CodeOf(err), ""
	switch {
	case refusedUs(err):
		code, detail.Reason = connect.CodeUnauthenticated, ReasonIdentityRefused
		detail.Hint = "it was removed, has expired, or is of another cluster: an admin makes a new one with balsa user create"
	case neverSent(err) && strange(err):
		code, detail.Reason = connect.CodeUnauthenticated, ReasonOtherCluster
		detail.Hint = "this configuration's authority did not sign the server's certificate: use the configuration of the cluster that runs there"
	case neverSent(err):
		code, detail.Reason, text = connect.CodeUnavailable, ReasonUnreachable, t.unreachable(now)
		detail.Hint = "see that a server runs there and that the addresses in the configuration are right"
	case !connect.IsWireError(err):
		detail.Reason = ReasonConnectionLost
	default:
		return err
	}
	return failed(code, text, err, detail)
}

func (t *trials) unreachable(now time.Time) string {
	lines := make([]string, 0, len(t.failed))
	for _, f := range t.failed {
		lines = append(lines, f.err.Error())
	}
	text := "no server can be reached: " + strings.Join(lines, "; ")
	if passed := now.Sub(t.began).Round(time.Second); passed > 0 {
		text += fmt.Sprintf("; tried for %v", passed)
	}
	return text
}

// transport is what went wrong below the protocol, nil when it was nothing there.
func transport(err error) error {
	var at *url.Error
	if !errors.As(err, &at) {
		return nil
	}
	return at.Err
}

// failed makes the error; an empty text is the cause's.
func failed(code connect.Code, text string, cause error, detail *balsav1.ErrorDetail) error {
	if text == "" {
		text = plain(cause)
	}
	failure := connect.NewError(code, &toldError{text: text, cause: cause})
	if encoded, err := connect.NewErrorDetail(detail); err == nil {
		failure.AddDetail(encoded)
	}
	return failure
}

// plain is what went wrong, without the protocol's code and the transport's URL.
func plain(err error) string {
	var refused *refusalError
	var dial *dialError
	switch {
	case errors.As(err, &refused):
		return refused.Error()
	case errors.As(err, &dial):
		return dial.Error()
	}
	if below := transport(err); below != nil {
		return below.Error()
	}
	var failure *connect.Error
	if errors.As(err, &failure) {
		return failure.Message()
	}
	return err.Error()
}

// toldError is an error with a text of its own and a cause for those who look.
type toldError struct {
	text  string
	cause error
}

func (e *toldError) Error() string { return e.text }
func (e *toldError) Unwrap() error { return e.cause }

// reads tells whether calls of a method change nothing.
func reads(spec connect.Spec) bool {
	return spec.IdempotencyLevel == connect.IdempotencyNoSideEffects || spec.StreamType == connect.StreamTypeServer
}
