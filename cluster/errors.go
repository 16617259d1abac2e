package cluster

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// Class says what may have become of a write that failed.
type Class int

const (
	// NotApplied: it did not happen and will not.
	NotApplied Class = iota + 1
	// Unknown: it may have happened, or may still.
	Unknown
)

func (c Class) String() string {
	if c == Unknown {
		return "UNKNOWN"
	}
	return "NOT_APPLIED"
}

// Reason is one word for programs.
type Reason string

const (
	ReasonNotLeader      Reason = "NotLeader"
	ReasonNoLeader       Reason = "NoLeader"
	ReasonNotReady       Reason = "LeaderNotReady"
	ReasonTransfer       Reason = "LeadershipTransfer"
	ReasonLeadershipLost Reason = "LeadershipLost"
	ReasonStaleEpoch     Reason = "StaleEpoch"
	ReasonQueueFull      Reason = "QueueFull"
	ReasonTooLarge       Reason = "CommandTooLarge"
	ReasonFeatureLevel   Reason = "FeatureLevel"
	ReasonInvalid        Reason = "Invalid"
	ReasonDeadline       Reason = "Deadline"
	ReasonDiskStalled    Reason = "DiskStalled"
	ReasonNotInitialised Reason = "NotInitialised"
	ReasonKnownMember    Reason = "KnownMember"
	ReasonUnsafe         Reason = "UnsafeChange"
	ReasonFailed         Reason = "MemberFailed"
	ReasonStopped        Reason = "MemberStopped"
	ReasonPeer           Reason = "PeerUnreachable"
	// ReasonRemoved: a leader says that the server that asks is no member any more.
	ReasonRemoved Reason = "RemovedFromCluster"
	// ReasonUnimplemented: another server is of a version that does not know the call.
	ReasonUnimplemented Reason = "Unimplemented"
	// ReasonIdentity: another server does not take this one's certificate.
	ReasonIdentity Reason = "IdentityRemoved"
)

// Error is how every call of this package fails.
type Error struct {
	Class  Class
	Reason Reason
	// LeaderID and LeaderAddress are who to ask instead, if that is known.
	LeaderID, LeaderAddress string
	Err                     error
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s (%s): %v", e.Reason, e.Class, e.Err)
	if e.LeaderAddress != "" {
		text += fmt.Sprintf("; the leader is %s at %s", e.LeaderID, e.LeaderAddress)
	}
	return text
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Sentinels that stores and callers branch on.
var (
	// ErrDiskFull is wrapped by a store's error when there was no room.
	ErrDiskFull = errors.New("no space left on the log's disk")
	// ErrHasState: the disk already belongs to a cluster.
	ErrHasState = errors.New("this disk already holds the state of a cluster")
	// ErrDiverged: this member's data is not the others' data.
	ErrDiverged = errors.New("this member's data differs from the majority's")
	// ErrRemoved: this member was taken out of the cluster.
	ErrRemoved = errors.New("this server was removed from the cluster")
)

// ReasonOf is the reason of an *Error, or "".
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// IsUnknown tells whether a write may have happened although it failed. An error
// that this package does not know is unknown.
func IsUnknown(err error) bool {
	var e *Error
	return err != nil && (!errors.As(err, &e) || e.Class == Unknown)
}

func refused(reason Reason, format string, args ...any) *Error {
	return &Error{Class: NotApplied, Reason: reason, Err: fmt.Errorf(format, args...)}
}

func unknown(reason Reason, format string, args ...any) *Error {
	return &Error{Class: Unknown, Reason: reason, Err: fmt.Errorf(format, args...)}
}

// retriable: nothing happened, and another try at another moment may succeed.
func retriable(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Class != NotApplied {
		return false
	}
	switch e.Reason {
	case ReasonNotLeader, ReasonNoLeader, ReasonNotReady, ReasonTransfer, ReasonPeer, ReasonDiskStalled:
		return true
	}
	return false
}

// ToConnect puts an error of this package on the wire between servers.
func ToConnect(err error) error {
	var e *Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	wire := connect.NewError(codeOf(e), errors.New(e.Err.Error()))
	if detail, err := connect.NewErrorDetail(detailOf(e)); err == nil {
		wire.AddDetail(detail)
	}
	return wire
}

func detailOf(e *Error) *balsav1.ErrorDetail {
	applied := balsav1.ErrorDetail_APPLIED_NOT_APPLIED
	if e.Class == Unknown {
		applied = balsav1.ErrorDetail_APPLIED_UNKNOWN
	}
	return &balsav1.ErrorDetail{Reason: string(e.Reason), Applied: applied, Hint: leaderHint(e)}
}

// refusalOf puts an error of a command among others on the wire.
func refusalOf(err error) *internalv1.Proposal {
	var e *Error
	if !errors.As(err, &e) {
		e = unknown(ReasonFailed, "%w", err)
	}
	return &internalv1.Proposal{Error: &internalv1.ProposalError{Message: e.Err.Error(), Detail: detailOf(e)}}
}

// outcomeOf reads it back on the other server.
func outcomeOf(p *internalv1.Proposal) outcome {
	switch {
	case p.GetError() != nil:
		return outcome{err: fromDetail(p.GetError().GetDetail(), p.GetError().GetMessage())}
	case p.GetCommitted() != nil:
		return outcome{result: p.GetCommitted().GetResult(), index: p.GetCommitted().GetIndex()}
	}
	return outcome{err: unknown(ReasonPeer, "the leader's answer says neither that the command was committed nor why not")}
}

// FromConnect reads it back on the other server. What carries no detail is an
// accident of the network: whether the call took place is unknown, unless no
// connection was made. A server that does not know the method says so by the code,
// whatever it adds.
func FromConnect(err error) error {
	if err == nil {
		return nil
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return refused(ReasonPeer, "%w", err) // nothing was sent
	}
	var wire *connect.Error
	if !errors.As(err, &wire) {
		return unknown(ReasonPeer, "%w", err)
	}
	if wire.Code() == connect.CodeUnimplemented {
		return refused(ReasonUnimplemented, "%s", wire.Message())
	}
	for _, detail := range wire.Details() {
		value, valueErr := detail.Value()
		if valueErr != nil {
			continue
		}
		if d, ok := value.(*balsav1.ErrorDetail); ok {
			return fromDetail(d, wire.Message())
		}
	}
	return unknown(ReasonPeer, "%w", err)
}

func fromDetail(d *balsav1.ErrorDetail, message string) *Error {
	e := &Error{Class: Unknown, Reason: Reason(d.GetReason()), Err: errors.New(message)}
	if d.GetApplied() == balsav1.ErrorDetail_APPLIED_NOT_APPLIED {
		e.Class = NotApplied
	}
	if id, address, ok := strings.Cut(d.GetHint(), leaderSeparator); ok {
		e.LeaderID, e.LeaderAddress = id, address
	}
	return e
}

const leaderSeparator = " leads at "

func leaderHint(e *Error) string {
	if e.LeaderAddress == "" {
		return ""
	}
	return e.LeaderID + leaderSeparator + e.LeaderAddress
}

func codeOf(e *Error) connect.Code {
	switch e.Reason {
	case ReasonQueueFull:
		return connect.CodeResourceExhausted
	case ReasonTooLarge, ReasonInvalid:
		return connect.CodeInvalidArgument
	case ReasonStaleEpoch:
		return connect.CodeAborted
	case ReasonDeadline:
		return connect.CodeDeadlineExceeded
	case ReasonFeatureLevel, ReasonKnownMember, ReasonUnsafe, ReasonRemoved:
		return connect.CodeFailedPrecondition
	}
	return connect.CodeUnavailable
}
