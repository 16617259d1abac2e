package etcdapi

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// hourglass is a leader's count that a test turns: leases in over have no time left,
// and a question may fail a few times.
type hourglass struct {
	group *testGroup

	mu      sync.Mutex
	over    map[int64]bool // guarded by mu
	fail    []error        // guarded by mu; the next answers
	renewed []int64        // guarded by mu
}

func (h *hourglass) set(change func(*hourglass)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

func (h *hourglass) LeaseTime(_ context.Context, r *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.fail) > 0 {
		err := h.fail[0]
		h.fail = h.fail[1:]
		return nil, err
	}
	lease, there := h.group.store.Space(store.SpaceEtcd).View().Lease(r.GetId())
	if !there || h.over[r.GetId()] {
		return &internalv1.LeaseTimeResponse{}, nil
	}
	if r.GetRenew() {
		h.renewed = append(h.renewed, r.GetId())
		return &internalv1.LeaseTimeResponse{Found: true, GrantedSeconds: lease.TTLSeconds, RemainingMs: lease.TTLSeconds * 1000}, nil
	}
	return &internalv1.LeaseTimeResponse{Found: true, GrantedSeconds: lease.TTLSeconds, RemainingMs: lease.TTLSeconds*1000 - 1}, nil
}

func leaseRig(t *testing.T) (*rig, *hourglass) {
	h := &hourglass{over: map[int64]bool{}}
	r := newRig(t, func(c *Config) {
		h.group = c.Group.(*testGroup)
		c.Leases = h
	})
	return r, h
}

func TestGrantRevokeAndList(t *testing.T) {
	r, _ := leaseRig(t)
	ctx := soon(t)
	before := r.server.space.View().Revision()
	granted, err := r.client.Grant(ctx, 10)
	if err != nil || granted.TTL != 10 || granted.ID == 0 {
		t.Fatalf("granted %v, %v", granted, err)
	}
	if granted.ResponseHeader.GetRevision() != int64(before) {
		t.Errorf("a grant is at revision %d, want %d: it changes no key", granted.GetRevision(), before)
	}
	for _, key := range []string{"b", "a"} {
		if _, err := r.client.Put(ctx, key, "v", clientv3.WithLease(granted.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.client.Grant(ctx, 1); err != nil {
		t.Fatal(err)
	}
	list, err := r.client.Leases(ctx)
	if err != nil || len(list.Leases) != 2 {
		t.Fatalf("leases are %v, %v", list, err)
	}
	left, err := r.client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	if err != nil || left.TTL != 9 || left.GrantedTTL != 10 || len(left.Keys) != 2 || string(left.Keys[0]) != "a" {
		t.Errorf("time to live: %v, %v", left, err)
	}
	revoked, err := r.client.Revoke(ctx, granted.ID)
	if err != nil || revoked.Header.GetRevision() != int64(before)+3 {
		t.Errorf("revoked: %v, %v; want one revision for both keys", revoked, err)
	}
	if got, _ := r.client.Get(ctx, "", clientv3.WithPrefix()); got.Count != 0 {
		t.Errorf("%d keys outlive their lease", got.Count)
	}
	left, err = r.client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	if err != nil || left.TTL != -1 || left.GrantedTTL != 0 || left.ID != granted.ID || len(left.Keys) != 0 {
		t.Errorf("time to live of a lease that is gone: %v, %v", left, err)
	}
}

func TestLeaseRefusals(t *testing.T) {
	r, _ := leaseRig(t)
	ctx, leases := soon(t), pb.NewLeaseClient(r.conn)
	if _, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 60}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		call func() error
		want error
	}{
		"too long": {func() error {
			_, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: store.MaxLeaseTTLSeconds + 1})
			return err
		}, rpctypes.ErrGRPCLeaseTTLTooLarge},
		"there already": {func() error {
			_, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 60})
			return err
		}, rpctypes.ErrGRPCLeaseExist},
		"revoked twice": {func() error {
			_, err := leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 99})
			return err
		}, rpctypes.ErrGRPCLeaseNotFound},
		"put with a lease that is not there": {func() error {
			_, err := r.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 99})
			return err
		}, rpctypes.ErrGRPCLeaseNotFound},
	} {
		if err := c.call(); err == nil || err.Error() != c.want.Error() {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, ttl := range []int64{-3, 0, 1, MinLeaseTTLSeconds} {
		if res, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl}); err != nil || res.GetTTL() != MinLeaseTTLSeconds {
			t.Errorf("ttl %d: granted %v, %v, want the shortest, %d", ttl, res, err, MinLeaseTTLSeconds)
		}
	}
	if res, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: store.MaxLeaseTTLSeconds}); err != nil || res.GetTTL() != store.MaxLeaseTTLSeconds {
		t.Errorf("the longest: %v, %v", res, err)
	}
}

// TestGrantUnderAnUsedID: the leader is about to revoke an earlier lease of that id.
// What is granted in front of it counts for nothing.
func TestGrantUnderAnUsedID(t *testing.T) {
	r, h := leaseRig(t)
	h.set(func(h *hourglass) { h.over[5] = true })
	done := make(chan error, 1)
	go func() {
		res, err := pb.NewLeaseClient(r.conn).LeaseGrant(soon(t), &pb.LeaseGrantRequest{ID: 5, TTL: 60})
		if err == nil && (res.GetID() != 5 || res.GetTTL() != 60) {
			err = errors.New(res.String())
		}
		done <- err
	}()
	for {
		changed := r.server.space.LeasesChanged()
		if r.server.space.Stats().Leases > 0 {
			break
		}
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("nothing was granted")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("granted in front of a revocation: %v", err)
	case <-time.After(3 * leasePause):
	}
	if _, err := r.group.Propose(t.Context(), &internalv1.Command{Space: store.SpaceEtcd, Op: &internalv1.Command_LeaseRevoke{LeaseRevoke: &internalv1.LeaseRevoke{Id: 5}}}); err != nil {
		t.Fatal(err)
	}
	h.set(func(h *hourglass) { delete(h.over, 5) })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestKeepAlive(t *testing.T) {
	r, h := leaseRig(t)
	ctx := soon(t)
	granted, err := r.client.Grant(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := pb.NewLeaseClient(r.conn).LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(id clientv3.LeaseID) (*pb.LeaseKeepAliveResponse, error) {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	if res, err := ask(granted.ID); err != nil || res.GetTTL() != 10 || res.GetID() != int64(granted.ID) {
		t.Errorf("kept alive: %v, %v", res, err)
	}
	if res, err := ask(77); err != nil || res.GetTTL() != 0 || res.GetID() != 77 {
		t.Errorf("a lease that is not there: %v, %v", res, err)
	}
	// A change of leader is waited out.
	h.set(func(h *hourglass) { h.fail = []error{ErrNoLeader, ErrLeaderChanged, ErrTimeout, ErrNoLeader} })
	if res, err := ask(granted.ID); err != nil || res.GetTTL() != 10 {
		t.Errorf("over a change of leader: %v, %v", res, err)
	}
	h.set(func(h *hourglass) {
		h.over[int64(granted.ID)] = true
		if len(h.renewed) != 2 {
			t.Errorf("renewed were %v, want the lease twice", h.renewed)
		}
	})
	if res, err := ask(granted.ID); err != nil || res.GetTTL() != 0 {
		t.Errorf("over, and its revocation on its way: %v, %v", res, err)
	}
	h.set(func(h *hourglass) { h.fail = []error{ErrStopped} })
	if res, err := ask(granted.ID); err == nil || err.Error() != rpctypes.ErrGRPCStopped.Error() {
		t.Errorf("a server that stops: %v, %v", res, err)
	}
}

func TestKeepAliveEnds(t *testing.T) {
	r, _ := leaseRig(t)
	stream, err := pb.NewLeaseClient(r.conn).LeaseKeepAlive(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if res, err := stream.Recv(); err == nil {
		t.Errorf("after the client's end: %v", res)
	}
	silent, err := pb.NewLeaseClient(r.conn).LeaseKeepAlive(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := silent.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Recv(); err != nil {
		t.Fatal(err)
	}
	r.server.Stop(soon(t))
	if res, err := silent.Recv(); err == nil {
		t.Errorf("after the server's end: %v", res)
	}
}

// leaderless are Leases that nobody answers for, until the caller waits no longer.
type leaderless struct{ err error }

func (l leaderless) LeaseTime(ctx context.Context, _ *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error) {
	if l.err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, l.err
}

// TestLeaseTimeWithoutALeader: as etcd, who waited in vain is told that there was no leader,
// and who got no answer that it timed out.
func TestLeaseTimeWithoutALeader(t *testing.T) {
	for want, leases := range map[error]leaderless{rpctypes.ErrGRPCNoLeader: {ErrNoLeader}, rpctypes.ErrGRPCTimeout: {nil}} {
		synctest.Test(t, func(t *testing.T) {
			g := &testGroup{store: store.New(store.Options{})}
			s, err := New(Config{Space: g.store.Space(store.SpaceEtcd), Backend: g, Group: g, Leases: leases, Identify: IdentifyTLS("c1", nil)})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, err = s.leaseTime(t.Context(), 1, true)
			says(t, "the lease's time", err, want)
			if waited := time.Since(began); waited != leaseWait {
				t.Errorf("it waited %v, want %v", waited, leaseWait)
			}
		})
	}
}
