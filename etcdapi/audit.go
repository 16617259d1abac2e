package etcdapi

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/balsa-run/balsa/pki"
)

const (
	// auditKeyBytes is how much of a key the audit shows.
	auditKeyBytes = 128
	// auditOps is how many writes of a transaction it shows.
	auditOps = 8
)

// call is what is known about one call on its way, for the audit.
type call struct{ identity pki.Identity }

type callKey struct{}

// withCall begins a call; callOf finds it again, or an empty one outside of a call, as
// in a unit test of an interceptor.
func withCall(ctx context.Context) (context.Context, *call) {
	c := &call{}
	return context.WithValue(ctx, callKey{}, c), c
}

func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// audit says who did what, to which keys and with which outcome, never a value: lines of
// the form that the API server's have. What may change something is info, a refusal of
// identity or role a warning, and reads are debug.
func (s *Server) audit(c *call, method string, request, response any, err error) {
	level := slog.LevelDebug
	switch code := codeOf(err); {
	case code == codes.PermissionDenied || code == codes.Unauthenticated:
		level = slog.LevelWarn
	case loud(method, request):
		level = slog.LevelInfo
	}
	if err != nil {
		response = nil
	}
	ctx := context.Background() // the caller's may have ended; the line is written all the same
	if !s.auditLog.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("who", c.who()), slog.String("what", strings.TrimPrefix(method, "/")), slog.String("code", auditCode(err))}
	for _, a := range []slog.Attr{
		slog.String("object", auditObject(request, response)), slog.String("outcome", auditOutcome(response)), slog.String("reason", auditReason(err)),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	s.auditLog.LogAttrs(ctx, level, "audit", attrs...)
}

func (c *call) who() string {
	if c.identity.Role == "" {
		return "nobody"
	}
	return c.identity.String()
}

// loud tells that a call may change something, or gives away everything at once. What is
// not known to be a read is loud.
func loud(method string, request any) bool {
	switch r := request.(type) {
	case *pb.TxnRequest:
		return !readOnly(r)
	case *pb.AlarmRequest:
		return r.GetAction() != pb.AlarmRequest_GET
	}
	return !readerMethods[method] && !strings.HasPrefix(method, webPrefix+"/") && method != pb.Lease_LeaseKeepAlive_FullMethodName
}

// auditCode is the word that the API server has for a code.
func auditCode(err error) string {
	code := codeOf(err)
	if code == codes.OK {
		return "ok"
	}
	return connect.Code(code).String() // the numbers are gRPC's
}

func auditReason(err error) string {
	if err == nil {
		return ""
	}
	return status.Convert(err).Message()
}

// auditObject is what a call is about. The response of a grant has the lease that the
// request did not name.
func auditObject(request, response any) string {
	switch r := request.(type) {
	case *pb.PutRequest:
		return "Key " + auditKey(r.GetKey())
	case *pb.DeleteRangeRequest:
		return auditKeys(r.GetKey(), r.GetRangeEnd())
	case *pb.RangeRequest:
		return auditKeys(r.GetKey(), r.GetRangeEnd())
	case *pb.TxnRequest:
		return auditTxn(r)
	case *pb.CompactionRequest:
		return fmt.Sprintf("Revision %d", r.GetRevision())
	case *pb.LeaseGrantRequest:
		if granted, ok := response.(*pb.LeaseGrantResponse); ok {
			return auditLease(granted.GetID())
		}
		return auditLease(r.GetID())
	case *pb.MoveLeaderRequest:
		return fmt.Sprintf("Member %x", r.GetTargetID())
	case *pb.AlarmRequest:
		return "Alarm " + r.GetAlarm().String()
	case *pb.LeaseRevokeRequest:
		return auditLease(r.GetID())
	case *pb.LeaseTimeToLiveRequest:
		return auditLease(r.GetID())
	}
	return auditLine(request)
}

// auditLine is auditObject for the services of locks and elections, and for changes of
// members.
func auditLine(request any) string {
	switch r := request.(type) {
	case *v3lockpb.LockRequest:
		return "Lock " + auditKey(r.GetName())
	case *v3lockpb.UnlockRequest:
		return "Key " + auditKey(r.GetKey())
	case *v3electionpb.CampaignRequest:
		return "Election " + auditKey(r.GetName())
	case *v3electionpb.LeaderRequest:
		return "Election " + auditKey(r.GetName())
	case interface { // Proclaim, Resign
		GetLeader() *v3electionpb.LeaderKey
	}:
		return "Key " + auditKey(r.GetLeader().GetKey())
	case *pb.MemberRemoveRequest:
		return fmt.Sprintf("Member %x", r.GetID())
	case *pb.MemberUpdateRequest:
		return fmt.Sprintf("Member %x", r.GetID())
	case *pb.MemberPromoteRequest:
		return fmt.Sprintf("Member %x", r.GetID())
	}
	return ""
}

func auditLease(id int64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("Lease %x", id)
}

// auditKey is a key in quotes, cut to what is shown of one.
func auditKey(key []byte) string {
	if len(key) <= auditKeyBytes {
		return strconv.Quote(string(key))
	}
	return fmt.Sprintf("%s… (%d bytes)", strconv.Quote(string(key[:auditKeyBytes])), len(key))
}

func auditKeys(key, end []byte) string {
	if len(end) == 0 {
		return "Key " + auditKey(key)
	}
	return "Keys " + auditRange(key, end)
}

func auditRange(key, end []byte) string {
	switch {
	case len(end) == 0:
		return auditKey(key)
	case string(end) == "\x00":
		return auditKey(key) + " and all behind it"
	}
	return auditKey(key) + " to " + auditKey(end)
}

// auditTxn is what a transaction may write, whichever branch it takes.
func auditTxn(r *pb.TxnRequest) string {
	var shown []string
	more := 0
	var look func(r *pb.TxnRequest)
	look = func(r *pb.TxnRequest) {
		for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
			for _, op := range branch {
				write := op.GetRequestPut() != nil || op.GetRequestDeleteRange() != nil
				switch {
				case op.GetRequestTxn() != nil:
					look(op.GetRequestTxn())
				case write && len(shown) == auditOps:
					more++
				case op.GetRequestPut() != nil:
					shown = append(shown, "put "+auditKey(op.GetRequestPut().GetKey()))
				case write:
					d := op.GetRequestDeleteRange()
					shown = append(shown, "delete "+auditRange(d.GetKey(), d.GetRangeEnd()))
				}
			}
		}
	}
	look(r)
	if more > 0 {
		shown = append(shown, fmt.Sprintf("%d more", more))
	}
	return strings.Join(shown, ", ")
}

// auditOutcome is what came of a call, in a few words.
func auditOutcome(response any) string {
	switch r := response.(type) {
	case *pb.PutResponse:
		return fmt.Sprintf("revision %d", r.GetHeader().GetRevision())
	case *pb.DeleteRangeResponse:
		return fmt.Sprintf("%d deleted, revision %d", r.GetDeleted(), r.GetHeader().GetRevision())
	case *pb.TxnResponse:
		if r.GetSucceeded() {
			return fmt.Sprintf("succeeded, revision %d", r.GetHeader().GetRevision())
		}
		return fmt.Sprintf("otherwise, revision %d", r.GetHeader().GetRevision())
	case *pb.LeaseGrantResponse:
		return fmt.Sprintf("granted for %d s", r.GetTTL())
	}
	return ""
}
