package apiserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/apiserver/blobs"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// world is one server over a store of one member, on virtual time, with clients
// that come through real HTTP/2 over in-memory pipes.
type world struct {
	t       *testing.T
	store   *store.Store
	backend *soloBackend
	guard   *pki.Guard
	bundle  *pki.Bundle
	server  *Server
	metrics *Metrics
	logs    *logBuffer
	beats   *beatRecorder
	members *memberFake
	nodes   *nodeFake
	peers   *peersFake
	blobs   *blobs.Dir

	listener, joinListener *pipeListener
}

// run gives f a world inside a bubble of virtual time.
func run(t *testing.T, f func(t *testing.T, w *world), change ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, change...)) })
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	now := time.Now()
	ca, err := pki.NewCA("c1", now)
	must(t, err)
	w := &world{
		t: t, logs: &logBuffer{}, metrics: NewMetrics(), beats: &beatRecorder{}, members: &memberFake{},
		nodes: &nodeFake{}, peers: &peersFake{},
		bundle:   pki.NewBundle(ca, pki.NewKeyring(pki.NewSealKey(now)), pki.NewGossipKey()),
		guard:    pki.NewGuard(clock.Real{}, nil),
		listener: newPipeListener(), joinListener: newPipeListener(),
	}
	w.store = store.New(store.Options{Decode: object.Decode, Index: storeIndex})
	w.backend = &soloBackend{store: w.store}
	w.blobs, err = blobs.Open(t.TempDir())
	must(t, err)
	log := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	config := Config{
		Store: w.store, Backend: w.backend, Guard: w.guard, Bundle: func() *pki.Bundle { return w.bundle },
		Heartbeats: w.beats, LocalHeartbeats: w.beats, LocalLessor: w.beats, Nodes: w.nodes, Members: w.members, Peer: w.backend,
		Peers: w.peers, Blobs: w.blobs, Archives: archiveFake{}, Policies: policiesFake{},
		Lease: LeaseTimes{Interval: time.Second, Duration: 10 * time.Second},
		Log:   log, Metrics: w.metrics,
	}
	for _, c := range change {
		c(&config)
	}
	w.server, err = New(config)
	must(t, err)
	w.init(now)
	w.serve(w.listener, w.server.API())
	w.serve(w.joinListener, w.server.Join())
	return w
}

func (w *world) init(now time.Time) {
	w.t.Helper()
	command, err := InitCommand(&internalv1.ClusterRecord{
		ClusterId: "c1", PodCidr: "10.244.0.0/16", ServiceCidr: "10.96.0.0/24", NodePrefix: 24, DnsDomain: "cluster.local",
	}, nil, now)
	must(w.t, err)
	_, err = w.backend.Propose(w.t.Context(), command)
	must(w.t, err)
}

func (w *world) serve(l *pipeListener, h http.Handler) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: h, Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if id := c.(*pipeConn).identity; id.Role != roleNone {
				return pki.WithIdentity(ctx, id)
			}
			return ctx
		},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	w.t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
}

// clients are all services as one identity sees them.
type clients struct {
	http     *http.Client
	objects  balsav1connect.ObjectServiceClient
	nodes    balsav1connect.NodeServiceClient
	pods     balsav1connect.PodServiceClient
	cluster  balsav1connect.ClusterServiceClient
	images   balsav1connect.ImageServiceClient
	network  balsav1connect.NetworkServiceClient
	peer     internalv1connect.PeerServiceClient
	joining  balsav1connect.JoinServiceClient
	identity pki.Identity
}

const base = "http://balsa"

func (w *world) as(role pki.Role, name string, options ...connect.ClientOption) *clients {
	w.t.Helper()
	return w.dial(w.listener, pki.Identity{Role: role, Name: name, Serial: "abc123"}, true, options...)
}

func (w *world) dial(l *pipeListener, id pki.Identity, h2 bool, options ...connect.ClientOption) *clients {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{
		Protocols:   protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(id) },
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	hc := &http.Client{Transport: transport}
	options = append([]connect.ClientOption{connect.WithCodec(codec.Lenient()[0])}, options...)
	return &clients{
		http: hc, identity: id,
		objects: balsav1connect.NewObjectServiceClient(hc, base, options...),
		nodes:   balsav1connect.NewNodeServiceClient(hc, base, options...),
		pods:    balsav1connect.NewPodServiceClient(hc, base, options...),
		cluster: balsav1connect.NewClusterServiceClient(hc, base, options...),
		images:  balsav1connect.NewImageServiceClient(hc, base, options...),
		network: balsav1connect.NewNetworkServiceClient(hc, base, options...),
		peer:    internalv1connect.NewPeerServiceClient(hc, base, options...),
		joining: balsav1connect.NewJoinServiceClient(hc, base, options...),
	}
}

func (w *world) admin() *clients  { return w.as(pki.RoleAdmin, "ana") }
func (w *world) reader() *clients { return w.as(pki.RoleReader, "rui") }

// soloBackend is a cluster of one: it applies at once. Hooks make it fail.
type soloBackend struct {
	store *store.Store
	mu    sync.Mutex
	index uint64 // guarded by mu
	// before runs ahead of a command; its error refuses it.
	before func(*internalv1.Command) error
	// after runs behind a command; its error hides the result.
	after func(*internalv1.Command) error
	// barrier, when set, runs in each ReadBarrier.
	barrier  func() error
	barriers int
	// expels, when set, is what a server is told that asks for the state.
	expels error
}

func (b *soloBackend) Propose(_ context.Context, c *internalv1.Command) (*internalv1.CommandResult, error) {
	if b.before != nil {
		if err := b.before(c); err != nil {
			return nil, err
		}
	}
	result := b.apply(c)
	if b.after != nil {
		if err := b.after(c); err != nil {
			return nil, err
		}
	}
	return result, nil
}

func (b *soloBackend) apply(c *internalv1.Command) *internalv1.CommandResult {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index++
	return b.store.Apply(b.index, 1, []*internalv1.Command{proto.CloneOf(c)})[0]
}

func (b *soloBackend) ReadBarrier(context.Context) error {
	b.mu.Lock()
	b.barriers++
	b.mu.Unlock()
	if b.barrier != nil {
		return b.barrier()
	}
	return nil
}

func (b *soloBackend) ServePropose(ctx context.Context, req *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	result, err := b.Propose(ctx, req.GetCommand())
	return &internalv1.ProposeResponse{Result: result, Index: b.index}, err
}

func (b *soloBackend) ServeProposeMany(ctx context.Context, req *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	answer := &internalv1.ProposeManyResponse{}
	for _, command := range req.GetCommands() {
		result, err := b.Propose(ctx, command)
		if err != nil {
			return nil, err
		}
		answer.Proposals = append(answer.Proposals, &internalv1.Proposal{Committed: &internalv1.ProposeResponse{Result: result, Index: b.index}})
	}
	return answer, nil
}

func (b *soloBackend) ServeReadIndex(context.Context, *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	return &internalv1.ReadIndexResponse{Index: b.index}, nil
}

func (b *soloBackend) ServeConfirm(_ context.Context, req *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	return &internalv1.ConfirmResponse{Nonce: req.GetNonce(), Term: 1, MemberId: "m1"}, nil
}

func (b *soloBackend) ServeState(context.Context, *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	if b.expels != nil {
		return nil, b.expels
	}
	return &internalv1.StateResponse{MemberId: "m1", AppliedIndex: b.index}, nil
}

// classed is an error that says whether the write was applied.
type classed struct{ notApplied bool }

func (classed) Error() string      { return "there is no leader" }
func (c classed) NotApplied() bool { return c.notApplied }

type beatRecorder struct {
	mu    sync.Mutex
	beats []*balsav1.HeartbeatRequest // guarded by mu
}

// LeaseTime knows one lease.
func (b *beatRecorder) LeaseTime(_ context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	return &internalv1.LeaseTimeResponse{Found: req.GetId() == 7, GrantedSeconds: 10}, nil
}

func (b *beatRecorder) Beat(_ context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.beats = append(b.beats, beat)
	return &balsav1.HeartbeatResponse{LeaseDurationMs: 10_000}, nil
}

type memberFake struct {
	added []NewMember
	gone  error // what removing says
}

func (m *memberFake) Status(context.Context) (*balsav1.GetStatusResponse, error) {
	return &balsav1.GetStatusResponse{ClusterId: "c1", LeaderId: "m1"}, nil
}

func (m *memberFake) TransferLeadership(_ context.Context, id string) (string, error) {
	if id == "nobody" {
		return "", classed{notApplied: true}
	}
	return "m2", nil
}

func (m *memberFake) RemoveMember(_ context.Context, id string) (string, error) {
	server, _, shared := strings.Cut(id, "-shared")
	if shared {
		return "", m.gone
	}
	return server, m.gone
}

func (m *memberFake) AddMember(_ context.Context, n NewMember) error {
	m.added = append(m.added, n)
	return nil
}

func (m *memberFake) Addresses() (api, gossip []string) {
	return []string{"10.0.0.1:7443"}, []string{"10.0.0.1:7446"}
}

// nodeFake is a node whose containers print what lines holds.
type nodeFake struct {
	internalv1connect.UnimplementedAgentServiceHandler
	lines []*internalv1.LogLine
	asked *internalv1.LogsRequest
	down  error
}

func (n *nodeFake) Agent(context.Context, *balsav1.Node) (internalv1connect.AgentServiceClient, error) {
	if n.down != nil {
		return nil, n.down
	}
	mux := http.NewServeMux()
	mux.Handle(internalv1connect.NewAgentServiceHandler(n))
	return internalv1connect.NewAgentServiceClient(&http.Client{Transport: inProcess{mux}}, base), nil
}

func (n *nodeFake) Logs(_ context.Context, req *internalv1.LogsRequest, stream *connect.ServerStream[internalv1.LogsResponse]) error {
	n.asked = req
	for _, line := range n.lines {
		if err := stream.Send(&internalv1.LogsResponse{Lines: []*internalv1.LogLine{line}}); err != nil {
			return err
		}
	}
	return nil
}

// inProcess serves requests by a handler without a connection.
type inProcess struct{ h http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := &recorder{header: http.Header{}, code: http.StatusOK}
	r2 := r.Clone(r.Context())
	if r2.Body == nil {
		r2.Body = http.NoBody
	}
	p.h.ServeHTTP(rec, r2)
	return &http.Response{StatusCode: rec.code, Header: rec.header, Body: io.NopCloser(&rec.body), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

type recorder struct {
	header http.Header
	body   bytes.Buffer
	code   int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Flush()                      {}

type peersFake struct {
	others map[string]internalv1connect.PeerServiceClient
}

func (p *peersFake) Others(context.Context) (map[string]internalv1connect.PeerServiceClient, error) {
	return p.others, nil
}

// archiveFake takes an archive of the form "name\ncontent", of one blob.
type archiveFake struct{}

func (archiveFake) Import(ctx context.Context, archive io.Reader, name string, b Blobs) ([]*internalv1.ImageRecord, error) {
	data, err := io.ReadAll(archive)
	if err != nil {
		return nil, err
	}
	own, content, ok := strings.Cut(string(data), "\n")
	if !ok {
		return nil, errors.New("no line")
	}
	if name == "" {
		name = own
	}
	digest := digestOf(content)
	size, err := b.Put(ctx, digest, strings.NewReader(content), 1<<20)
	if err != nil {
		return nil, err
	}
	return []*internalv1.ImageRecord{{
		Name: name, Digest: digest, Size: size,
		Blobs: []*internalv1.BlobRecord{{Digest: digest, Size: size, MediaType: "text/plain"}},
	}}, nil
}

func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// storeIndex adapts object's index to the store's.
func storeIndex(key string, m proto.Message) []store.IndexEntry {
	var out []store.IndexEntry
	for _, e := range object.Index(key, m) {
		out = append(out, store.IndexEntry{Index: e.Index, Value: e.Value})
	}
	return out
}

// pipeListener hands out in-memory connections that know who dialled.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type pipeConn struct {
	net.Conn
	identity pki.Identity
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dial(id pki.Identity) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- &pipeConn{far, id}:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks an error's code and the reason in its detail, and returns the
// detail.
func refused(t *testing.T, err error, code connect.Code, reason string) *balsav1.ErrorDetail {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) {
		t.Fatalf("got %v, want %s", err, code)
	}
	d := detailOf(ce)
	if ce.Code() != code || d.GetReason() != reason {
		t.Fatalf("got %s %q (%v), want %s %q", ce.Code(), d.GetReason(), err, code, reason)
	}
	return d
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}
