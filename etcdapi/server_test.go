package etcdapi

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

const patience = 30 * time.Second

// group is a Backend, Leases and Group of one member: commands are applied to a
// store at once, after a trip through their encoding.
type testGroup struct {
	mu      sync.Mutex
	store   *store.Store // guarded by mu for writing
	index   uint64       // guarded by mu
	entries int          // guarded by mu; commands that were logged
	reads   int          // guarded by mu; read barriers
	fail    error        // guarded by mu; what Propose and ReadBarrier answer
	leader  uint64       // guarded by mu
	learner bool         // guarded by mu
}

func (g *testGroup) set(change func(*testGroup)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

func (g *testGroup) Propose(_ context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return nil, g.fail
	}
	raw, err := proto.Marshal(command)
	if err != nil {
		return nil, err
	}
	logged := &internalv1.Command{}
	if err := proto.Unmarshal(raw, logged); err != nil {
		return nil, err
	}
	g.index++
	g.entries++
	return g.store.Apply(g.index, 7, []*internalv1.Command{logged})[0], nil
}

func (g *testGroup) ReadBarrier(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reads++
	return g.fail
}

func (g *testGroup) counts() (entries, reads int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.entries, g.reads
}

// LeaseTime counts nothing down: a lease has its whole time always.
func (g *testGroup) LeaseTime(_ context.Context, r *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	lease, ok := g.store.Space(store.SpaceEtcd).View().Lease(r.GetId())
	return &internalv1.LeaseTimeResponse{Found: ok, GrantedSeconds: lease.TTLSeconds, RemainingMs: lease.TTLSeconds * 1000}, nil
}

func (g *testGroup) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Status{ClusterID: 11, MemberID: 12, LeaderID: g.leader, Term: 7, Learner: g.learner, Applied: g.index, CommittedIndex: g.index, Version: "test"}
}

func (g *testGroup) Members() []Member { return []Member{{ID: 12, Name: "one"}} }

func (g *testGroup) MoveLeader(context.Context, uint64) error { return ErrNoLeader }

// rig is a server on a loopback listener and clients of it.
type rig struct {
	group  *testGroup
	server *Server
	client *clientv3.Client
	conn   *grpc.ClientConn
	kv     pb.KVClient
}

func newRig(t testing.TB, adjust ...func(*Config)) *rig {
	t.Helper()
	g := &testGroup{store: store.New(store.Options{}), leader: 12}
	cfg := Config{
		Space: g.store.Space(store.SpaceEtcd), Backend: g, Leases: g, Group: g,
		Identify: func(context.Context) (pki.Identity, error) {
			return pki.Identity{Name: "ann", Role: pki.RoleAdmin}, nil
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range adjust {
		f(&cfg)
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		server.Stop(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	r := &rig{group: g, server: server}
	r.client, err = clientv3.New(clientv3.Config{Endpoints: []string{l.Addr().String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.client.Close() })
	r.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close() })
	r.kv = pb.NewKVClient(r.conn)
	return r
}

// soon is a context for a test that should never need it to end.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (r *rig) put(t testing.TB, key, value string) int64 {
	t.Helper()
	response, err := r.kv.Put(soon(t), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	return response.GetHeader().GetRevision()
}

func (r *rig) delete(t testing.TB, key string) int64 {
	t.Helper()
	response, err := r.kv.DeleteRange(soon(t), &pb.DeleteRangeRequest{Key: []byte(key)})
	if err != nil {
		t.Fatalf("delete %q: %v", key, err)
	}
	return response.GetHeader().GetRevision()
}

func (r *rig) compact(t testing.TB, revision int64) {
	t.Helper()
	if _, err := r.kv.Compact(soon(t), &pb.CompactionRequest{Revision: revision}); err != nil {
		t.Fatalf("compact at %d: %v", revision, err)
	}
}

func (r *rig) grant(t testing.TB, id, seconds int64) {
	t.Helper()
	result, err := r.group.Propose(soon(t), &internalv1.Command{Space: store.SpaceEtcd, Op: &internalv1.Command_LeaseGrant{
		LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: seconds},
	}})
	if err != nil || result.GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
		t.Fatalf("grant lease %d: %v, %v", id, result, err)
	}
}

// maintain runs what a member runs to give back memory, until the test ends.
func (r *rig) maintain(t testing.TB) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				r.group.store.Maintain()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
}

func TestConfigIsChecked(t *testing.T) {
	g := &testGroup{store: store.New(store.Options{})}
	whole := func() Config {
		return Config{Space: g.store.Space(store.SpaceEtcd), Backend: g, Leases: g, Group: g,
			Identify: func(context.Context) (pki.Identity, error) { return pki.Identity{}, nil }}
	}
	if _, err := New(whole()); err != nil {
		t.Fatalf("a whole config is refused: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"Space":                func(c *Config) { c.Space = nil },
		"Backend":              func(c *Config) { c.Backend = nil },
		"Leases":               func(c *Config) { c.Leases = nil },
		"Group":                func(c *Config) { c.Group = nil },
		"Identify":             func(c *Config) { c.Identify = nil },
		"Limits.RequestBytes":  func(c *Config) { c.Limits.RequestBytes = -1 },
		"Limits.TxnOps":        func(c *Config) { c.Limits.TxnOps = -1 },
		"Limits.Watches":       func(c *Config) { c.Limits.Watches = -1 },
		"Limits.Streams":       func(c *Config) { c.Limits.Streams = -1 },
		"Limits.FragmentBytes": func(c *Config) { c.Limits.FragmentBytes = -1 },
		"Limits.ProgressEvery": func(c *Config) { c.Limits.ProgressEvery = -1 },
	} {
		cfg := whole()
		spoil(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "Config."+name) {
			t.Errorf("without a good %s: %v", name, err)
		}
	}
}

// counted is Metrics that remembers.
type counted struct {
	mu      sync.Mutex
	handled map[string][]codes.Code // guarded by mu
	watches int                     // guarded by mu
	events  int                     // guarded by mu
}

func (c *counted) Handled(method string, code codes.Code, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handled == nil {
		c.handled = map[string][]codes.Code{}
	}
	if took < 0 {
		code = codes.Internal
	}
	c.handled[method] = append(c.handled[method], code)
}

func (c *counted) Watches(change int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches += change
}

func (c *counted) Events(sent int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events += sent
}

func (c *counted) figures() (watches, events int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watches, c.events
}

// eventually waits for what another goroutine brings about.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}
