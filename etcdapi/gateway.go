package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	electiongw "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb/gw"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	lockgw "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// Where the gateway's paths begin. The second is that of etcd 3.3, which etcd still takes.
const (
	gatewayPath     = "/v3/"
	gatewayBetaPath = "/v3beta/"
)

// gatewayBody bounds the bodies of one HTTP request, all messages of a stream together:
// the largest request, with its keys and values in base64, and as much again for names
// and spaces.
func (l Limits) gatewayBody() int64 { return 2 * int64(l.RequestBytes+requestOverhead) }

// gateway is etcd's JSON gateway: the same services by POST, with requests and answers in
// protobuf's JSON. Each HTTP connection has a gRPC connection of its own to this very
// server, in memory, which says by whom it is made (inside). So a call of the gateway is a
// call like any other: roles, limits, audit and metrics are those of its method.
type gateway struct {
	mux   http.Handler
	calls *inside

	mu    sync.Mutex
	conns map[net.Conn]*grpc.ClientConn // guarded by mu; by the HTTP connection
}

func newGateway() *gateway {
	g := &gateway{calls: &inside{conns: make(chan net.Conn), closed: make(chan struct{})}, conns: map[net.Conn]*grpc.ClientConn{}}
	// As etcd does: names as in the .proto files, no zero values, unknown fields are ignored.
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{
		Marshaler: &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		},
	}))
	ctx := context.Background() // of no use to what is registered with a client
	err := errors.Join(
		gw.RegisterKVHandlerClient(ctx, mux, pb.NewKVClient(g)),
		gw.RegisterWatchHandlerClient(ctx, mux, pb.NewWatchClient(g)),
		gw.RegisterLeaseHandlerClient(ctx, mux, pb.NewLeaseClient(g)),
		gw.RegisterClusterHandlerClient(ctx, mux, pb.NewClusterClient(g)),
		gw.RegisterMaintenanceHandlerClient(ctx, mux, pb.NewMaintenanceClient(g)),
		gw.RegisterAuthHandlerClient(ctx, mux, pb.NewAuthClient(g)),
		lockgw.RegisterLockHandlerClient(ctx, mux, v3lockpb.NewLockClient(g)),
		electiongw.RegisterElectionHandlerClient(ctx, mux, v3electionpb.NewElectionClient(g)),
	)
	if err != nil {
		panic("etcdapi: the gateway's paths are wrong: " + err.Error())
	}
	g.mux = mux
	return g
}

// serve answers one request of a path of the gateway's.
func (g *gateway) serve(w http.ResponseWriter, r *http.Request, bodyMost int64) {
	if rest, ok := strings.CutPrefix(r.URL.Path, gatewayBetaPath); ok {
		r.URL.Path = gatewayPath + rest
	}
	r.Body = &boundBody{http.MaxBytesReader(w, r.Body, bodyMost)}
	g.mux.ServeHTTP(w, r)
}

// isGateway tells the gateway's paths from those of pages.
func isGateway(path string) bool {
	return strings.HasPrefix(path, gatewayPath) || strings.HasPrefix(path, gatewayBetaPath)
}

// boundBody says what is allowed when there is more.
type boundBody struct{ io.ReadCloser }

func (b *boundBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if over := (*http.MaxBytesError)(nil); errors.As(err, &over) {
		err = fmt.Errorf("etcdserver: request is too large: the body of a request has %d bytes at most, and a larger one goes by gRPC", over.Limit)
	}
	return n, err
}

// connKey is where a request's context has its HTTP connection.
type connKey struct{}

// connContext is http.Server.ConnContext, and forget its ConnState.
func (g *gateway) connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func (g *gateway) forget(c net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	g.mu.Lock()
	calls := g.conns[c]
	delete(g.conns, c)
	g.mu.Unlock()
	if calls != nil {
		_ = calls.Close() // fails only when it is closed
	}
}

// Invoke implements grpc.ClientConnInterface, on the caller's own connection.
func (g *gateway) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	conn, err := g.connOf(ctx)
	if err != nil {
		return err
	}
	return conn.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (g *gateway) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, err := g.connOf(ctx)
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}

// connOf is the gRPC connection of the HTTP connection that a request came by.
func (g *gateway) connOf(ctx context.Context) (*grpc.ClientConn, error) {
	c, ok := ctx.Value(connKey{}).(*tls.Conn)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "etcdserver: the connection is not TLS, so nobody knows who is calling: connect with a client certificate")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err // the connection may be forgotten already
	}
	if conn := g.conns[c]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///gateway",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.calls.dial(ctx, c) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "etcdserver: the gateway cannot call its own server: %v", err)
	}
	g.conns[c] = conn
	return conn, nil
}

// inside is a listener for connections that are made in this process.
type inside struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// insideConn is a connection on behalf of whoever is at the other end of by.
type insideConn struct {
	net.Conn
	by *tls.Conn
}

func (c *insideConn) RemoteAddr() net.Addr { return c.by.RemoteAddr() }
func (c *insideConn) LocalAddr() net.Addr  { return c.by.LocalAddr() }

func (l *inside) dial(ctx context.Context, by *tls.Conn) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- &insideConn{Conn: far, by: by}:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *inside) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close never fails.
func (l *inside) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is of no address that could be called from outside.
func (l *inside) Addr() net.Addr { return &net.UnixAddr{Name: "gateway", Net: "inside"} }

// noDeadlines leaves a connection the time that a watch or a lock takes; what bounds calls
// is in the interceptors.
func noDeadlines(w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	return errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{}))
}
