package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime/debug"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/balsa-run/balsa/pki"
)

// readerMethods are what a reader may call, pages included; what reads and writes (Txn)
// is looked into by its handler. An admin may call everything; servers and agents
// have no business with the applications' keys and may call nothing.
var readerMethods = map[string]bool{
	pb.KV_Range_FullMethodName:              true,
	pb.KV_RangeStream_FullMethodName:        true,
	pb.KV_Txn_FullMethodName:                true,
	pb.Watch_Watch_FullMethodName:           true,
	pb.Lease_LeaseTimeToLive_FullMethodName: true,
	pb.Lease_LeaseLeases_FullMethodName:     true,
	pb.Cluster_MemberList_FullMethodName:    true,
	pb.Maintenance_Status_FullMethodName:    true,
	pb.Maintenance_Hash_FullMethodName:      true,
	pb.Maintenance_HashKV_FullMethodName:    true,
	"/v3electionpb.Election/Leader":         true,
	"/v3electionpb.Election/Observe":        true,
	"/grpc.health.v1.Health/Check":          true,
	"/grpc.health.v1.Health/Watch":          true,
	webPrefix + "/metrics":                  true,
	webPrefix + "/version":                  true,
	webPrefix + "/health":                   true,
	webPrefix + "/livez":                    true,
	webPrefix + "/readyz":                   true,
	webPrefix + "/unknown":                  true,
}

// IdentifyTLS is Config.Identify for TLS connections: the identity in the
// client's certificate. check may refuse it (pki.Guard.Check: removed, expired).
func IdentifyTLS(clusterID string, check func(pki.Identity) error) func(context.Context) (pki.Identity, error) {
	return func(ctx context.Context) (pki.Identity, error) {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return pki.Identity{}, errors.New("the connection is unknown")
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok {
			return pki.Identity{}, errors.New("the connection is not TLS, so nobody knows who is calling: connect with a client certificate")
		}
		id, err := pki.IdentityOf(info.State, clusterID)
		if err != nil {
			return pki.Identity{}, err
		}
		return id, check(id)
	}
}

// listenerTLS lets a listener of TLS connections tell gRPC who is at the other
// end. A connection that is not TLS says nothing; Config.Identify decides. One of the
// gateway's says what the connection says that it is made for.
type listenerTLS struct{}

func (listenerTLS) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	switch c := conn.(type) {
	case *insideConn:
		return c, tlsInfo(c.by.ConnectionState()), nil
	case *tls.Conn:
		ctx, cancel := context.WithTimeout(context.Background(), handshakeMax)
		defer cancel()
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, nil, errors.Join(err, c.Close())
		}
		return c, tlsInfo(c.ConnectionState()), nil
	}
	return conn, plainText{}, nil
}

// tlsInfo is what gRPC knows of a TLS connection; IdentifyTLS reads it.
func tlsInfo(state tls.ConnectionState) credentials.TLSInfo {
	return credentials.TLSInfo{
		State:          state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
}

func (listenerTLS) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("etcdapi: these credentials are a server's")
}

func (listenerTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (l listenerTLS) Clone() credentials.TransportCredentials { return l }

// OverrideServerName is of no use on a server.
func (listenerTLS) OverrideServerName(string) error { return nil }

type plainText struct{}

func (plainText) AuthType() string { return "none" }

// admit says who is calling, or why the call is refused.
func (s *Server) admit(ctx context.Context, method string) (pki.Identity, error) {
	id, err := s.identify(ctx)
	if err != nil {
		return id, status.Error(codes.Unauthenticated, "etcdserver: "+err.Error())
	}
	if id.Role == pki.RoleAdmin || id.Role == pki.RoleReader && readerMethods[method] {
		return id, nil
	}
	return id, rpctypes.ErrGRPCPermissionDenied
}

// mayWrite refuses readers, in the calls that can read and write.
func (s *Server) mayWrite(ctx context.Context) error {
	if id, ok := pki.IdentityFrom(ctx); ok && id.Role == pki.RoleAdmin {
		return nil
	}
	return rpctypes.ErrGRPCPermissionDenied
}

// demands are what the metadata of a call ask of the server.
func (s *Server) demands(ctx context.Context) (leader bool, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(rpctypes.MetadataClientAPIVersionKey); len(v) > 0 && !utf8.ValidString(v[0]) {
		return false, rpctypes.ErrGRPCInvalidClientAPIVersion
	}
	v := md.Get(rpctypes.MetadataRequireLeaderKey)
	leader = len(v) > 0 && v[0] == rpctypes.MetadataHasLeader
	if leader && s.group.Status().LeaderID == 0 {
		return true, rpctypes.ErrGRPCNoLeader
	}
	return leader, nil
}

// learnerServes says what a server without a vote answers, as etcd's do.
func learnerServes(request any) bool {
	switch r := request.(type) {
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.GetSerializable()
	}
	return false
}

// guardUnary lets in whoever may call, and turns a panic into an error.
func (s *Server) guardUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	defer s.recovered(info.FullMethod, &err)
	id, err := s.admit(ctx, info.FullMethod)
	callOf(ctx).identity = id
	if err != nil {
		return nil, err
	}
	if s.group.Status().Learner && !learnerServes(request) {
		return nil, rpctypes.ErrGRPCNotSupportedForLearner
	}
	if _, err := s.demands(ctx); err != nil {
		return nil, err
	}
	return handler(pki.WithIdentity(ctx, id), request)
}

// guardStream is guardUnary for streams. It also ends them: when the caller is
// removed, when there is no leader for a caller that needs one, and at Stop.
func (s *Server) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer s.recovered(info.FullMethod, &err)
	id, err := s.admit(stream.Context(), info.FullMethod)
	callOf(stream.Context()).identity = id
	if err != nil {
		return err
	}
	if s.group.Status().Learner && info.FullMethod != pb.Maintenance_Snapshot_FullMethodName {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	leader, err := s.demands(stream.Context())
	if err != nil {
		return err
	}
	ctx, leave, err := s.streams.enter(pki.WithIdentity(stream.Context(), id), leader, s.limits.Streams)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := s.attend(ctx, id)
	defer cancel()
	err = handler(srv, &boundStream{ServerStream: stream, ctx: ctx})
	return endOf(ctx, err)
}

// endOf is why a stream ended: the cause, when the server has ended it.
func endOf(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, context.Canceled), errors.Is(cause, context.DeadlineExceeded):
		return err
	case status.Code(cause) != codes.Unknown:
		return cause
	default: // of Config.Attend
		return status.Error(codes.Unauthenticated, "etcdserver: "+cause.Error())
	}
}

// boundStream is a stream with the context that the server ends.
type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (b *boundStream) Context() context.Context { return b.ctx }

// recovered keeps a mistake in one call from ending the server.
func (s *Server) recovered(method string, err *error) {
	if reason := recover(); reason != nil {
		s.logger.Error("etcd call panicked", "method", method, "panic", reason, "stack", string(debug.Stack()))
		*err = errInternal
	}
}

// countUnary is the outermost layer: it counts and audits whatever came of a call.
func (s *Server) countUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := s.clock.Now()
	ctx, c := withCall(ctx)
	response, err := handler(ctx, request)
	s.metrics.Handled(info.FullMethod, codeOf(err), s.since(began))
	s.audit(c, info.FullMethod, request, response, err)
	return response, err
}

func (s *Server) countStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := s.clock.Now()
	ctx, c := withCall(stream.Context())
	err := handler(srv, &boundStream{ServerStream: stream, ctx: ctx})
	s.metrics.Handled(info.FullMethod, codeOf(err), s.since(began))
	s.audit(c, info.FullMethod, nil, nil, err)
	return err
}

func (s *Server) since(began time.Time) time.Duration { return s.clock.Now().Sub(began) }

// codeOf is the code that gRPC sends for err.
func codeOf(err error) codes.Code {
	if _, ok := status.FromError(err); ok {
		return status.Code(err)
	}
	return status.FromContextError(err).Code()
}
