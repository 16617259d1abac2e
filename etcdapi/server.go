package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/keepalive"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// The default limits; RequestBytes and TxnOps are etcd's.
const (
	DefaultRequestBytes  = 3 << 19 // 1.5 MiB
	DefaultTxnOps        = store.DefaultTxnOps
	DefaultWatches       = 10_000
	DefaultStreams       = 10_000
	DefaultFragmentBytes = DefaultRequestBytes + requestOverhead
	DefaultProgressEvery = 10 * time.Minute
)

// requestOverhead is what a request may be longer than RequestBytes for its
// framing, as in etcd.
const requestOverhead = 512 << 10

// handshakeMax bounds the TLS and HTTP/2 handshakes of a new connection.
const handshakeMax = 20 * time.Second

// pingMin is how often a client may ping a connection; etcd's
// --grpc-keepalive-min-time.
const pingMin = 5 * time.Second

// Metrics is told what the server does. It must be quick, and safe for any
// number of goroutines.
type Metrics interface {
	// Handled is a call that ended: its full method name, code and duration.
	Handled(method string, code codes.Code, took time.Duration)
	// Watches is by how much the number of open watches has changed.
	Watches(change int)
	// Events is how many events a watch response has just carried.
	Events(sent int)
}

// Config is what a Server is made of. Clock, Logger, Audit, Metrics, Scrape, Archiver,
// Attend and the fields of Limits may be left out.
type Config struct {
	// Space is the etcd space of this member's store.
	Space    *store.Space
	Backend  Backend
	Leases   Leases
	Group    Group
	Archiver Archiver
	// Identify tells who is calling; an error refuses the call. IdentifyTLS is
	// the one for real connections.
	Identify func(context.Context) (pki.Identity, error)
	// Attend returns a context that ends when the caller is removed from the
	// cluster, with the reason as its cause: pki.Guard.Watch.
	Attend func(context.Context, pki.Identity) (context.Context, context.CancelFunc)
	Clock  clock.Clock
	// Audit's default is Logger.
	Logger, Audit *slog.Logger
	Limits        Limits
	Metrics       Metrics
	// Scrape is the page of the server's metrics; without it there is none.
	Scrape http.Handler
}

// Server serves etcd's API. Its services hold no state of their own.
type Server struct {
	space    *store.Space
	backend  Backend
	leases   Leases
	group    Group
	archiver Archiver
	identify func(context.Context) (pki.Identity, error)
	attend   func(context.Context, pki.Identity) (context.Context, context.CancelFunc)
	clock    clock.Clock
	logger   *slog.Logger
	auditLog *slog.Logger
	limits   Limits
	metrics  Metrics
	scrape   http.Handler

	grpc    *grpc.Server
	health  *grpchealth.Server
	gateway *gateway
	web     *http.Server
	// asked has a place for each page that is being answered.
	asked chan struct{}
	// stopping is closed when Stop begins: it ends the streams.
	stopping chan struct{}
	stopOnce sync.Once
	streams  streamSet
}

// New makes a server that does nothing until Serve.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Server{
		space: cfg.Space, backend: cfg.Backend, leases: cfg.Leases, group: cfg.Group, archiver: cfg.Archiver,
		identify: cfg.Identify, attend: cfg.Attend, clock: cfg.Clock, logger: cfg.Logger, auditLog: cfg.Audit, limits: cfg.Limits, metrics: cfg.Metrics, scrape: cfg.Scrape,
		asked: make(chan struct{}, webRequests), stopping: make(chan struct{}),
	}
	s.grpc, s.health = grpc.NewServer(s.options()...), grpchealth.NewServer()
	s.register(s.grpc)
	s.gateway = newGateway()
	s.web = s.newWeb()
	return s, nil
}

// register adds every service of the API.
func (s *Server) register(r grpc.ServiceRegistrar) {
	pb.RegisterKVServer(r, &kvServer{Server: s})
	pb.RegisterWatchServer(r, &watchServer{Server: s})
	s.registerRest(r)
}

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(listenerTLS{}),
		grpc.ConnectionTimeout(handshakeMax),
		grpc.ChainUnaryInterceptor(s.countUnary, s.guardUnary),
		grpc.ChainStreamInterceptor(s.countStream, s.guardStream),
		grpc.MaxRecvMsgSize(s.limits.RequestBytes + requestOverhead),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingMin}),
	}
}

// Serve answers on a listener until Stop; it closes the listener. The listener should be
// one of NewListener, whose connections know who calls and what the client can speak.
func (s *Server) Serve(l net.Listener) error {
	go s.watchLeader()
	d := newDoor(l, s.clock, s.logger)
	web, inside := make(chan error, 1), make(chan error, 1)
	go func() { web <- s.serveWeb(d.web) }()
	go func() { inside <- s.grpc.Serve(s.gateway.calls) }()
	err := s.grpc.Serve(d.calls)
	switch {
	case s.stopped():
		err = nil // whichever of its servers was told first
	case err != nil:
		err = fmt.Errorf("serve etcd's API on %s: %w", l.Addr(), err)
	}
	err = errors.Join(err, d.Close(), <-web)
	_ = s.gateway.calls.Close()
	if inner := <-inside; inner != nil && !s.stopped() && !errors.Is(inner, net.ErrClosed) {
		err = errors.Join(err, fmt.Errorf("serve etcd's JSON gateway: %w", inner))
	}
	return err
}

func (s *Server) stopped() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// Stop ends streams at once and lets calls finish until ctx ends.
func (s *Server) Stop(ctx context.Context) {
	s.stopOnce.Do(func() { close(s.stopping) })
	s.health.Shutdown()
	s.streams.end(true, rpctypes.ErrGRPCStopped)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// First, since gRPC has no grace for calls that come over net/http.
		if err := s.web.Shutdown(ctx); err != nil {
			_ = s.web.Close() // whoever still waits for a page waits no more
		}
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}

func (c Config) check() error {
	missing := func(what string) error { return fmt.Errorf("etcdapi: Config.%s is missing", what) }
	switch {
	case c.Space == nil:
		return missing("Space")
	case c.Backend == nil:
		return missing("Backend")
	case c.Leases == nil:
		return missing("Leases")
	case c.Group == nil:
		return missing("Group")
	case c.Identify == nil:
		return missing("Identify")
	}
	return c.Limits.check()
}

func (l Limits) check() error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"RequestBytes", int64(l.RequestBytes)}, {"TxnOps", int64(l.TxnOps)}, {"Watches", int64(l.Watches)},
		{"Streams", int64(l.Streams)}, {"FragmentBytes", int64(l.FragmentBytes)}, {"ProgressEvery", int64(l.ProgressEvery)},
	} {
		if f.value < 0 {
			return fmt.Errorf("etcdapi: Config.Limits.%s is %d; it must be positive, or 0 for the default", f.name, f.value)
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Audit == nil {
		c.Audit = c.Logger
	}
	if c.Metrics == nil {
		c.Metrics = unmeasured{}
	}
	if c.Attend == nil {
		c.Attend = func(ctx context.Context, _ pki.Identity) (context.Context, context.CancelFunc) {
			return context.WithCancel(ctx)
		}
	}
	c.Limits = c.Limits.withDefaults()
	return c
}

func (l Limits) withDefaults() Limits {
	orElse(&l.RequestBytes, DefaultRequestBytes)
	orElse(&l.TxnOps, DefaultTxnOps)
	orElse(&l.Watches, DefaultWatches)
	orElse(&l.Streams, DefaultStreams)
	orElse(&l.FragmentBytes, l.RequestBytes+requestOverhead)
	orElse(&l.ProgressEvery, DefaultProgressEvery)
	return l
}

func orElse[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// unmeasured is Metrics where nobody counts.
type unmeasured struct{}

func (unmeasured) Handled(string, codes.Code, time.Duration) {}
func (unmeasured) Watches(int)                               {}
func (unmeasured) Events(int)                                {}
