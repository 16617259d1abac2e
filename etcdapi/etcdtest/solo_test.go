package etcdtest

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/balsa-run/balsa/etcdapi"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// solo is Balsa's etcd API without a cluster below it: a store whose log is the
// order in which commands come. It is quick and exact, for the fuzz; the stories
// run on a real balsa as well.
type solo struct {
	store *store.Store

	mu      sync.Mutex
	renewed map[int64]time.Time // guarded by mu; when each lease began its time
}

// soloTerm is the one term there is.
const soloTerm = 2

func startSolo(t testing.TB, limits etcdapi.Limits, options ...grpc.DialOption) *side {
	t.Helper()
	backend := &solo{store: store.New(store.Options{}), renewed: map[int64]time.Time{}}
	server, err := etcdapi.New(etcdapi.Config{
		Space: backend.store.Space(store.SpaceEtcd), Backend: backend, Leases: backend, Group: backend, Limits: limits,
		Identify: func(context.Context) (pki.Identity, error) {
			return pki.Identity{Name: "test", Role: pki.RoleAdmin}, nil
		},
	})
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
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		server.Stop(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	s := &side{name: "balsa", address: l.Addr().String()}
	s.connect(t, "", options...)
	return s
}

// Propose implements etcdapi.Backend.
func (b *solo) Propose(_ context.Context, cmd *internalv1.Command) (*internalv1.CommandResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	cmd.TimeNs = time.Now().UnixNano()
	r := b.store.Apply(b.store.AppliedIndex()+1, soloTerm, []*internalv1.Command{cmd})[0]
	if r.LeaseId != 0 {
		b.renewed[r.LeaseId] = time.Now()
	}
	return r, nil
}

// ReadBarrier implements etcdapi.Backend: what was acknowledged is applied.
func (b *solo) ReadBarrier(ctx context.Context) error { return ctx.Err() }

// LeaseTime implements etcdapi.Leases. Nothing expires here.
func (b *solo) LeaseTime(_ context.Context, r *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lease, found := b.store.Space(store.SpaceEtcd).View().Lease(r.GetId())
	if !found {
		return &internalv1.LeaseTimeResponse{}, nil
	}
	if r.GetRenew() {
		b.renewed[lease.ID] = time.Now()
	}
	left := max(0, time.Duration(lease.TTLSeconds)*time.Second-time.Since(b.renewed[lease.ID]))
	return &internalv1.LeaseTimeResponse{Found: true, GrantedSeconds: lease.TTLSeconds, RemainingMs: left.Milliseconds()}, nil
}

// Status implements etcdapi.Group.
func (b *solo) Status() etcdapi.Status {
	at := b.store.AppliedIndex()
	return etcdapi.Status{ClusterID: 11, MemberID: 12, LeaderID: 12, Term: soloTerm, CommittedIndex: at, Applied: at, Version: "test"}
}

// Members implements etcdapi.Group.
func (b *solo) Members() []etcdapi.Member {
	return []etcdapi.Member{{ID: 12, Name: "default", PeerURLs: []string{"http://127.0.0.1:1"}, ClientURLs: []string{"http://127.0.0.1:2"}}}
}

// MoveLeader implements etcdapi.Group.
func (b *solo) MoveLeader(context.Context, uint64) error {
	return errors.New("there is nobody to move to")
}
