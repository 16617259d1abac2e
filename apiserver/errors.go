package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/apiserver/blobs"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Whether a failed write took place.
const (
	notApplied = balsav1.ErrorDetail_APPLIED_NOT_APPLIED
	unknown    = balsav1.ErrorDetail_APPLIED_UNKNOWN
)

// problem is a refusal with all that its ErrorDetail says. Handlers return
// problems; toConnect turns everything else into one.
type problem struct {
	code       connect.Code
	reason     string
	applied    balsav1.ErrorDetail_Applied
	object     *balsav1.ObjectKey
	violations []*balsav1.FieldViolation
	current    string
	hint       string
	// err is what the caller is told; cause is for the log only.
	err   error
	cause error
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }

// proposalError is what a Backend's errors may implement, so that this package
// need not know the cluster's. The other way to say the same is a *connect.Error
// that carries an ErrorDetail. An error of Propose that says neither counts as
// UNKNOWN.
type proposalError interface {
	error
	// NotApplied reports that the command did not and will not take effect.
	NotApplied() bool
}

// toConnect is the one place where errors become codes. write tells that the
// call was one that changes something, so that its error must say whether it
// did; an error that nobody classified came from before the proposal, since
// propose classifies its own.
func toConnect(err error, write bool, log *slog.Logger) *connect.Error {
	p := toProblem(err)
	if p.code == connect.CodeInternal {
		// What is unknown does not leak: the log has it, the caller a pointer.
		log.Error("internal error", "err", errors.Join(p.cause, p.err).Error())
	}
	if write && p.applied == balsav1.ErrorDetail_APPLIED_UNSPECIFIED {
		p.applied = notApplied
	}
	ce := connect.NewError(p.code, errors.New(p.Error()))
	detail, detailErr := connect.NewErrorDetail(p.detail())
	if detailErr != nil {
		log.Error("error detail cannot be encoded", "err", detailErr.Error())
		return ce
	}
	ce.AddDetail(detail)
	return ce
}

func (p *problem) detail() *balsav1.ErrorDetail {
	return &balsav1.ErrorDetail{
		Reason:                 p.reason,
		Applied:                p.applied,
		Object:                 p.object,
		Violations:             p.violations,
		CurrentResourceVersion: p.current,
		Hint:                   p.hint,
	}
}

// toProblem classifies. It returns a copy, so that callers may complete it.
func toProblem(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		dup := *p
		dup.err = err // with what was wrapped round it
		return &dup
	}
	for _, classify := range []func(error) *problem{ofObject, ofConnect, ofContext, ofStore, ofPKI, ofBlobs} {
		if p := classify(err); p != nil {
			return p
		}
	}
	return &problem{
		code:   connect.CodeInternal,
		reason: "Internal",
		hint:   "the server's log says more",
		err:    errors.New("internal error"),
		cause:  err,
	}
}

func ofContext(err error) *problem {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &problem{code: connect.CodeDeadlineExceeded, reason: "Timeout", err: err,
			hint: "try again, or allow more time"}
	case errors.Is(err, context.Canceled):
		return &problem{code: connect.CodeCanceled, reason: "Canceled", err: err}
	}
	return nil
}

// ofObject covers objects whose fields are refused.
func ofObject(err error) *problem {
	var invalid *object.InvalidError
	if errors.As(err, &invalid) {
		return &problem{code: connect.CodeInvalidArgument, reason: "Invalid", violations: invalid.Violations.Proto(), err: err,
			hint: "correct the fields that are listed"}
	}
	if errors.Is(err, object.ErrNoObject) {
		return &problem{code: connect.CodeInvalidArgument, reason: "Invalid", err: err}
	}
	return nil
}

func ofStore(err error) *problem {
	var compacted *store.CompactedError
	switch {
	case errors.As(err, &compacted):
		return &problem{code: connect.CodeOutOfRange, reason: "Compacted", err: err,
			current: revisionString(compacted.Compact),
			hint:    "history before resource version " + revisionString(compacted.Compact) + " is gone: list again and go on from there"}
	case errors.Is(err, store.ErrFutureRevision):
		return &problem{code: connect.CodeOutOfRange, reason: "FutureRevision", err: err,
			hint: "use a resource version that a server has given out"}
	}
	return nil
}

// ofPKI covers what identities, tokens and certificate requests are refused for.
func ofPKI(err error) *problem {
	for _, c := range pkiCodes() {
		if errors.Is(err, c.err) {
			return &problem{code: c.code, reason: c.reason, err: err}
		}
	}
	return nil
}

// Reasons that agents look at.
const (
	ReasonIdentityRemoved = "IdentityRemoved"
	ReasonBadProof        = "BadProof"
)

type pkiCode struct {
	err    error
	code   connect.Code
	reason string
}

func pkiCodes() []pkiCode {
	return []pkiCode{
		{pki.ErrRemoved, connect.CodeUnauthenticated, ReasonIdentityRemoved},
		{pki.ErrExpired, connect.CodeUnauthenticated, "CertificateExpired"},
		{pki.ErrNoIdentity, connect.CodeUnauthenticated, "Unauthenticated"},
		{pki.ErrOtherCluster, connect.CodeUnauthenticated, "OtherCluster"},
		{pki.ErrProof, connect.CodeUnauthenticated, ReasonBadProof},
		{pki.ErrNotMember, connect.CodeUnauthenticated, "NotMember"},
		{pki.ErrTokenUnknown, connect.CodeUnauthenticated, "TokenUnknown"},
		{pki.ErrTokenExpired, connect.CodeUnauthenticated, "TokenExpired"},
		{pki.ErrTokenUsed, connect.CodeUnauthenticated, "TokenUsed"},
		{pki.ErrTokenRevoked, connect.CodeUnauthenticated, "TokenRevoked"},
		{pki.ErrWrongRole, connect.CodePermissionDenied, "WrongRole"},
		{pki.ErrWrongCA, connect.CodeUnauthenticated, "WrongCA"},
		{pki.ErrNameTaken, connect.CodeAlreadyExists, "NameTaken"},
		{pki.ErrTokenFormat, connect.CodeInvalidArgument, "TokenFormat"},
		{pki.ErrBadName, connect.CodeInvalidArgument, "BadName"},
		{pki.ErrBadRole, connect.CodeInvalidArgument, "BadRole"},
		{pki.ErrBadRequest, connect.CodeInvalidArgument, "BadRequest"},
		{pki.ErrTooMany, connect.CodeResourceExhausted, "LimitReached"},
	}
}

// ofBlobs covers digests and blobs that are not what they should be.
func ofBlobs(err error) *problem {
	switch {
	case errors.Is(err, blobs.ErrDigest):
		return &problem{code: connect.CodeInvalidArgument, reason: "BadDigest", err: err}
	case errors.Is(err, blobs.ErrTooLarge):
		return &problem{code: connect.CodeResourceExhausted, reason: "LimitReached", err: err}
	}
	return nil
}

// ofConnect keeps what connect refuses by itself, such as a message that is too
// large, and what another layer has classified with an ErrorDetail.
func ofConnect(err error) *problem {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	p := &problem{code: ce.Code(), reason: reasonOf(ce.Code()), err: errors.New(ce.Message())}
	if d := detailOf(ce); d != nil {
		p.reason, p.applied, p.object = d.GetReason(), d.GetApplied(), d.GetObject()
		p.violations, p.current, p.hint = d.GetViolations(), d.GetCurrentResourceVersion(), d.GetHint()
	}
	return p
}

func detailOf(ce *connect.Error) *balsav1.ErrorDetail {
	for _, detail := range ce.Details() {
		value, err := detail.Value()
		if err != nil {
			continue
		}
		if d, ok := value.(*balsav1.ErrorDetail); ok {
			return d
		}
	}
	return nil
}

// reasonOf makes "ResourceExhausted" of resource_exhausted.
func reasonOf(code connect.Code) string {
	var b strings.Builder
	for word := range strings.SplitSeq(code.String(), "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

func revisionString(r store.Revision) string { return strconv.FormatInt(int64(r), 10) }

func keyOf(kind object.Kind, namespace, name string) *balsav1.ObjectKey {
	return &balsav1.ObjectKey{Kind: kind.Name, Namespace: namespace, Name: name}
}

func keyOfMessage(m object.Message) *balsav1.ObjectKey {
	meta := m.GetMetadata()
	return keyOf(object.KindOf(m), meta.GetNamespace(), meta.GetName())
}

// invalid refuses an argument of the request itself, not of an object.
func invalid(field, hint, format string, args ...any) *problem {
	cause := fmt.Errorf(format, args...) // %w works, and keeps the cause in the chain
	return &problem{
		code:       connect.CodeInvalidArgument,
		reason:     "Invalid",
		violations: []*balsav1.FieldViolation{{Field: field, Message: cause.Error()}},
		hint:       hint,
		err:        fmt.Errorf("%s: %w", field, cause),
	}
}

// overLimit names a limit that a request met, and its value.
func overLimit(name string, limit any, hint, format string, args ...any) *problem {
	return &problem{
		code:   connect.CodeResourceExhausted,
		reason: "LimitReached",
		hint:   hint,
		err:    fmt.Errorf("%s: at most %v are allowed (limit %s)", fmt.Sprintf(format, args...), limit, name),
	}
}

func notFound(kind object.Kind, namespace, name string) *problem {
	return &problem{
		code:   connect.CodeNotFound,
		reason: "NotFound",
		object: keyOf(kind, namespace, name),
		hint:   "balsa get " + kind.Plural + " lists what there is",
		err:    fmt.Errorf("%s does not exist", object.DescribeKey(kind, namespace, name)),
	}
}
