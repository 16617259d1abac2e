package apiserver

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/balsa-run/balsa/apiserver/why"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// Config is what a Server is made of. Everything without a default is required.
type Config struct {
	Store   *store.Store
	Backend Backend
	// Guard knows who was removed; the daemon feeds it with what Removals reads.
	Guard *pki.Guard
	// Bundle is what makes this machine a server: its CA signs for those who join
	// and for users, its seal keys seal, and a joining server gets it whole. It is
	// asked each time, since keys may be added.
	Bundle func() *pki.Bundle

	Heartbeats Heartbeats
	// LocalHeartbeats are those of this server alone, for PeerService.
	LocalHeartbeats Heartbeats
	// LocalLessor is for PeerService as well.
	LocalLessor Lessor
	Nodes       Nodes
	Members     Members
	// Leader is the address at which the leader is reached, empty when nobody is
	// known to lead. nil: callers are told nothing of other servers.
	Leader func() (address string)
	// InContact tells whether this server's store is as new as a leader that it
	// has just heard from lets it be. nil: always.
	InContact func() bool
	Peer      Peer
	Peers     PeerClients
	Blobs     Blobs
	Archives  Archives
	// Policies judges connections by NetworkPolicies.
	Policies why.Policies

	// Lease is what nodes are told about heartbeats.
	Lease LeaseTimes

	// Clock's default is the machine's.
	Clock clock.Clock
	// Log's default discards; Audit's default is Log.
	Log, Audit *slog.Logger
	// Metrics' default is a set that nobody reads.
	Metrics *Metrics
	Limits  Limits
}

// Server serves the API. Make it with New; it has nothing to close.
type Server struct {
	store      *store.Store
	backend    Backend
	guard      *pki.Guard
	bundle     func() *pki.Bundle
	heartbeats Heartbeats
	localBeats Heartbeats
	lessor     Lessor
	nodes      Nodes
	members    Members
	peer       Peer
	peers      PeerClients
	blobs      Blobs
	archives   Archives
	policies   why.Policies
	lease      LeaseTimes
	clock      clock.Clock
	log        *slog.Logger
	auditLog   *slog.Logger
	metrics    *Metrics
	limits     Limits

	announcer *announcer
	contact   *contact
	refusals  *connect.ErrorWriter

	policy   policy
	requests *places
	streams  *places
	imports  chan struct{}
	nonces   *pki.Nonces
	reports  *reportOrder
	// told is what agents are told of removed identities; nil: nothing is read yet.
	told atomic.Pointer[balsav1.RemovedIdentities]
}

// New makes a Server. It starts nothing.
func New(c Config) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Server{
		store: c.Store, backend: c.Backend, guard: c.Guard, bundle: c.Bundle,
		heartbeats: c.Heartbeats, localBeats: c.LocalHeartbeats, lessor: c.LocalLessor, nodes: c.Nodes, members: c.Members,
		peer: c.Peer, peers: c.Peers, blobs: c.Blobs, archives: c.Archives, policies: c.Policies, lease: c.Lease,
		clock: c.Clock, log: c.Log, auditLog: c.Audit, metrics: c.Metrics, limits: c.Limits,
		announcer: &announcer{leader: c.Leader, members: c.Members, clock: c.Clock},
		contact:   newContact(c.InContact, c.Clock),
		refusals:  connect.NewErrorWriter(),

		policy:   newPolicy(),
		requests: newPlaces(),
		streams:  newPlaces(),
		imports:  make(chan struct{}, c.Limits.Imports),
		nonces:   pki.NewNonces(c.Clock),
		reports:  newReportOrder(),
	}, nil
}

func (c Config) check() error {
	var missing []error
	for _, need := range []struct {
		name string
		have bool
	}{
		{"Store", c.Store != nil}, {"Backend", c.Backend != nil}, {"Guard", c.Guard != nil},
		{"Bundle", c.Bundle != nil}, {"Heartbeats", c.Heartbeats != nil},
		{"LocalHeartbeats", c.LocalHeartbeats != nil}, {"LocalLessor", c.LocalLessor != nil}, {"Nodes", c.Nodes != nil}, {"Members", c.Members != nil},
		{"Peer", c.Peer != nil}, {"Peers", c.Peers != nil}, {"Blobs", c.Blobs != nil}, {"Archives", c.Archives != nil}, {"Policies", c.Policies != nil},
		{"Lease", c.Lease.valid()},
	} {
		if !need.have {
			missing = append(missing, errors.New("apiserver: Config."+need.name+" is missing or invalid"))
		}
	}
	return errors.Join(missing...)
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Audit == nil {
		c.Audit = c.Log
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	c.Limits = c.Limits.withDefaults()
	return c
}

// API serves every service but JoinService, on connections whose certificate
// the listener has put into the context (pki.WithIdentity). It speaks gRPC,
// gRPC-Web and Connect, binary and JSON.
func (s *Server) API() http.Handler {
	mux := http.NewServeMux()
	mount := func(path string, h http.Handler) { mux.Handle(path, h) }
	strict, machine := s.options(codec.Strict(object.KnownField)), s.options(codec.Lenient())
	mount(balsav1connect.NewObjectServiceHandler(objectService{s}, strict...))
	// What goes through pods is as often incompressible as not, and is waited for.
	plain := append(strict, connect.WithCompression("gzip", nil, nil))
	mount(balsav1connect.NewPodServiceHandler(podService{Server: s}, plain...))
	mount(balsav1connect.NewClusterServiceHandler(clusterService{s}, strict...))
	mount(balsav1connect.NewImageServiceHandler(imageService{Server: s}, strict...))
	mount(balsav1connect.NewNetworkServiceHandler(networkService{s}, strict...))
	mount(balsav1connect.NewNodeServiceHandler(nodeService{s}, machine...))
	mount(internalv1connect.NewPeerServiceHandler(peerService{s}, machine...))
	names := []string{
		balsav1connect.ObjectServiceName, balsav1connect.PodServiceName, balsav1connect.ClusterServiceName,
		balsav1connect.ImageServiceName, balsav1connect.NetworkServiceName, balsav1connect.NodeServiceName, internalv1connect.PeerServiceName,
	}
	reflector := grpcreflect.NewStaticReflector(names...)
	mount(grpchealth.NewHandler(health{Server: s, services: names}, strict...))
	mount(grpcreflect.NewHandlerV1(reflector, strict...))
	mount(grpcreflect.NewHandlerV1Alpha(reflector, strict...))
	return s.announcer.wrap(s.wrap(mux))
}

// Join serves JoinService alone, on connections of ALPN balsa-join/1, whose
// callers have no certificate.
func (s *Server) Join() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(balsav1connect.NewJoinServiceHandler(joinService{s}, s.options(codec.Strict(object.KnownField))...))
	return s.wrap(mux)
}

// wrap refuses browsers of other origins, whose users may hold a certificate
// that they did not mean to lend, and keeps track of every call.
func (s *Server) wrap(h http.Handler) http.Handler {
	return s.track(http.NewCrossOriginProtection().Handler(h))
}

// compressFrom is the size from which an answer is worth compressing, where the
// caller takes that.
const compressFrom = 16 << 10

// options are those of every handler. User-facing services refuse unknown
// fields in any encoding; those between machines skip them, so that versions one
// minor apart work together.
func (s *Server) options(codecs []codec.Codec) []connect.HandlerOption {
	options := []connect.HandlerOption{
		connect.WithRequestGate(s.gate),
		connect.WithInterceptors(edge{s}),
		connect.WithReadMaxBytes(s.limits.MessageBytes),
		connect.WithCompressMinBytes(compressFrom),
	}
	for _, c := range codecs {
		options = append(options, connect.WithCodec(c))
	}
	return slices.Clip(options)
}

// Only serves h to callers of the given roles whose identity was not removed:
// for what the daemon mounts beside the API, such as metrics.
func (s *Server) Only(h http.Handler, roles ...pki.Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := pki.IdentityFrom(r.Context())
		switch {
		case !ok:
			http.Error(w, "this takes a client certificate of the cluster", http.StatusUnauthorized)
		case s.guard.Check(id) != nil:
			http.Error(w, s.guard.Check(id).Error(), http.StatusUnauthorized)
		case !slices.Contains(roles, id.Role):
			http.Error(w, id.String()+" may not read this", http.StatusForbidden)
		default:
			h.ServeHTTP(w, r)
		}
	})
}
