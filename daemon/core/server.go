package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/reconciler/nodes"
	"github.com/balsa-run/balsa/store"
)

const (
	shutdownTimeout   = 10 * time.Second // for calls under way when the server stops
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maintainPause     = 250 * time.Millisecond // between two looks for compacted history to clear away
)

// Config is what a Server is made of. All fields are required unless they say
// otherwise.
type Config struct {
	// ID names the server and its disk for ever; Name is what people call it;
	// Address is where clients and other servers reach it.
	ID, Name, Address string
	Version           string
	// EtcdAddress is where clients of etcd's API reach it; empty: it has none.
	EtcdAddress string

	Network Network
	// Gossip may be nil: then nobody is found dead.
	Gossip    cluster.Gossip
	Logs      cluster.LogStore
	Stable    cluster.StableStore
	Snapshots cluster.SnapshotStore
	Blobs     apiserver.Blobs
	Archives  apiserver.Archives
	// FreeSpace tells the bytes left on the log's disk; nil: not checked.
	FreeSpace func() (uint64, error)

	Bundle *pki.Bundle
	Guard  *pki.Guard

	Clock clock.Clock
	// Random gives unpredictable bytes.
	Random io.Reader
	Logger *slog.Logger
	// Fatal is told, once, why this server must not go on.
	Fatal func(reason error)

	// ScrubEvery is how often all that the store holds is looked through for
	// damage; 0: DefaultScrubEvery.
	ScrubEvery time.Duration
	Timing     cluster.Timing // zero fields take the defaults
	Limits     cluster.Limits
	// Metrics of the cluster and of this server; nil: none.
	Metrics    cluster.Metrics
	APIMetrics *apiserver.Metrics
	// Extra are handlers beside the API, by path, for admins and readers.
	Extra map[string]http.Handler
	// FeatureLevel is the highest that this binary can do.
	FeatureLevel uint32
}

// Server is one server of the control plane.
type Server struct {
	cfg     Config
	store   *store.Store
	cluster *cluster.Cluster
	members *members
	peers   *peers
	local   *localBeats
	lessor  *localLessor
	api     *apiserver.Server
	logger  *slog.Logger
}

// NewServer wires a server. If its disk has state it takes part in its cluster
// from here on; otherwise it waits for Bootstrap or Join.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Metrics == nil {
		cfg.Metrics = unmeasured{}
	}
	s := &Server{cfg: cfg, logger: cfg.Logger, local: &localBeats{}, lessor: &localLessor{}, peers: newPeers(cfg.Network, cfg.ID)}
	s.store = store.New(store.Options{Decode: object.Decode, Index: indexes, FeatureLevel: cfg.FeatureLevel})
	var err error
	s.cluster, err = cluster.New(s.clusterConfig())
	if err != nil {
		return nil, err
	}
	s.members = &members{
		cluster: s.cluster, gossip: cfg.Gossip, peers: s.peers,
		clusterID: cfg.Bundle.CA.ClusterID(), caNotAfter: cfg.Bundle.CA.NotAfter(), clock: cfg.Clock,
	}
	if s.api, err = apiserver.New(s.apiConfig()); err != nil {
		return nil, err
	}
	return s, nil
}

// indexes adapts what object knows about names to what the store asks for.
func indexes(key string, message proto.Message) []store.IndexEntry {
	entries := object.Index(key, message)
	out := make([]store.IndexEntry, len(entries))
	for i, entry := range entries {
		out[i] = store.IndexEntry(entry)
	}
	return out
}

func (s *Server) clusterConfig() cluster.Config {
	c := s.cfg
	return cluster.Config{
		ID: c.ID, Name: c.Name, Address: c.Address, Version: c.Version,
		Machine: machine{s.store}, LogStore: c.Logs, StableStore: c.Stable, SnapshotStore: c.Snapshots,
		Stream: stream{c.Network, address(c.Address), c.Guard}, Peers: s.peers, Gossip: c.Gossip,
		Clock: c.Clock, Rand: randomNumbers(c.Random), Logger: c.Logger, Metrics: c.Metrics, Fatal: c.Fatal,
		FreeSpace: c.FreeSpace, Spaces: s.spaceStates, FeatureLevel: s.store.FeatureLevel, MaxFeatureLevel: c.FeatureLevel,
		Timing: c.Timing, Limits: c.Limits,
	}
}

func (s *Server) apiConfig() apiserver.Config {
	c := s.cfg
	return apiserver.Config{
		Store: s.store, Backend: edge{s.cluster}, Guard: c.Guard, Bundle: func() *pki.Bundle { return c.Bundle },
		Heartbeats: &beats{local: s.local, cluster: s.cluster, peers: s.peers}, LocalHeartbeats: s.local, LocalLessor: s.lessor,
		Nodes: agents{c.Network}, Members: s.members, Leader: func() string { return s.cluster.Status().LeaderAddress }, InContact: s.cluster.InContact, Peer: edge{s.cluster}, Peers: s.members, Blobs: c.Blobs, Archives: c.Archives, Policies: judge{},
		Lease: apiserver.LeaseTimes{Interval: nodes.DefaultInterval, Duration: nodes.DefaultDuration}, Clock: c.Clock, Log: c.Logger, Audit: c.Logger.With("log", "audit"), Metrics: c.APIMetrics,
	}
}

// Store is the server's copy of the state.
func (s *Server) Store() *store.Store { return s.store }

// Cluster is the server's part in the raft group.
func (s *Server) Cluster() *cluster.Cluster { return s.cluster }

// Join makes this server, whose disk is empty, part of a cluster that has
// already been told of it.
func (s *Server) Join(ctx context.Context) error {
	return s.cluster.Join(ctx, func(context.Context) error { return nil })
}

// Run serves until ctx ends, then hands over leadership, finishes the calls that
// are under way, and returns.
func (s *Server) Run(ctx context.Context) error {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks tasks
	tasks.start(func() {
		if err := s.reconcile(running); err != nil && running.Err() == nil {
			s.cfg.Fatal(fmt.Errorf("reconcile: %w", err))
		}
	})
	tasks.start(func() { s.api.FeedGuard(running) })
	tasks.start(func() { s.api.FollowContact(running) })
	tasks.start(func() { s.cfg.Guard.Run(running) })
	tasks.start(func() { s.maintain(running) })
	tasks.start(func() { s.scrubber().run(running) })
	tasks.start(func() { s.sweep(running) })
	tasks.start(func() { s.revokeAbsent(running) })
	tasks.start(func() { s.announce(running) })
	// Calls outlive ctx until leadership has been handed over.
	calls, endCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer endCalls()
	api, endJoins := s.serveAPI(calls), s.serveJoins(calls)
	<-ctx.Done()
	err := s.stop(api, func() { endJoins(); endCalls() })
	cancel()
	tasks.wait()
	s.peers.close()
	return err
}

// stop lets go of leadership while calls are still answered, then ends them:
// from then on nothing here could be written or read linearizably.
func (s *Server) stop(api *http.Server, endCalls func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	failed := s.cluster.Shutdown(ctx)
	endCalls()
	if err := api.Shutdown(ctx); err != nil {
		failed = errors.Join(failed, err, api.Close())
	}
	return failed
}

// serveAPI answers on connections whose ends are known.
func (s *Server) serveAPI(calls context.Context) *http.Server {
	server := &http.Server{
		Handler:           s.apiHandler(),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		BaseContext:       func(net.Listener) context.Context { return calls },
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if identity, ok := s.cfg.Network.Identify(conn); ok {
				return pki.WithIdentity(ctx, identity)
			}
			return ctx
		},
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreamsPerConnection},
	}
	if s.cfg.Network.Plain() {
		server.Protocols = new(http.Protocols)
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
	}
	go func() {
		if err := server.Serve(s.cfg.Network.API()); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.cfg.Fatal(fmt.Errorf("serve the API: %w", err))
		}
	}()
	return server
}

const maxStreamsPerConnection = 1000

func (s *Server) apiHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.api.API())
	for path, handler := range s.cfg.Extra {
		mux.Handle(path, s.api.Only(handler, pki.RoleAdmin, pki.RoleReader, pki.RoleServer))
	}
	return mux
}

// serveJoins answers JoinService on connections of strangers. The function it
// returns ends them.
func (s *Server) serveJoins(calls context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(calls)
	joins := newJoins(s.logger, func() { s.cfg.Metrics.Add("join_connections_refused", 1) })
	server := joins.server(ctx, s.api.Join())
	go func() { _ = server.Serve(joins.listener(s.cfg.Network.Join())) }() // ends with the listener
	return func() {
		cancel()
		_ = server.Close()
	}
}

// unmeasured is cluster.Metrics where nobody counts.
type unmeasured struct{}

func (unmeasured) Add(string, float64, ...cluster.Label)     {}
func (unmeasured) Set(string, float64, ...cluster.Label)     {}
func (unmeasured) Observe(string, float64, ...cluster.Label) {}

func (s *Server) scrubber() *scrubber {
	return &scrubber{
		store: s.store, every: cmp.Or(s.cfg.ScrubEvery, DefaultScrubEvery), clock: s.cfg.Clock,
		metrics: s.cfg.Metrics, logger: s.logger, fatal: s.cfg.Fatal,
	}
}

// maintain clears away compacted history, a little at a time.
func (s *Server) maintain(ctx context.Context) {
	for {
		pause := maintainPause
		if s.store.Maintain() {
			pause = 0
		}
		timer := s.cfg.Clock.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
	}
}
