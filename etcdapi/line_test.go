package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// mustLease grants a lease of a minute.
func (r *rig) mustLease(t *testing.T) int64 {
	t.Helper()
	granted, err := r.client.Grant(soon(t), 60)
	if err != nil {
		t.Fatal(err)
	}
	return int64(granted.ID)
}

// queued waits until so many keys stand in a line.
func (r *rig) queued(t *testing.T, prefix string, want int) {
	t.Helper()
	for deadline := time.After(patience); ; {
		changed := r.server.space.Changed(prefix)
		if r.server.space.View().CountPrefix(prefix) == want {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d keys under %q, want %d", r.server.space.View().CountPrefix(prefix), prefix, want)
		}
	}
}

type locked struct {
	res *v3lockpb.LockResponse
	err error
}

func lockLater(ctx context.Context, c v3lockpb.LockClient, name string, lease int64) <-chan locked {
	out := make(chan locked, 1)
	go func() {
		res, err := c.Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
		out <- locked{res, err}
	}()
	return out
}

func waits(t *testing.T, what string, c <-chan locked) {
	t.Helper()
	select {
	case got := <-c:
		t.Fatalf("%s does not wait: %v, %v", what, got.res, got.err)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestLockIsHandedOnInOrder(t *testing.T) {
	r, _ := leaseRig(t)
	ctx, locks := soon(t), v3lockpb.NewLockClient(r.conn)
	a, b, c := r.mustLease(t), r.mustLease(t), r.mustLease(t)
	first, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: a})
	if err != nil || string(first.GetKey()) != fmt.Sprintf("l/%x", a) {
		t.Fatalf("locked: %v, %v", first, err)
	}
	again, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: a})
	if err != nil || string(again.GetKey()) != string(first.GetKey()) {
		t.Errorf("who holds it has it again: %v, %v", again, err)
	}
	second := lockLater(ctx, locks, "l", b)
	r.queued(t, "l/", 2)
	third := lockLater(ctx, locks, "l", c)
	r.queued(t, "l/", 3)
	waits(t, "the second", second)
	unlocked, err := locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: first.GetKey()})
	if err != nil {
		t.Fatal(err)
	}
	got := <-second
	if got.err != nil || got.res.GetHeader().GetRevision() < unlocked.GetHeader().GetRevision() {
		t.Fatalf("the second: %v, %v", got.res, got.err)
	}
	waits(t, "the third", third)
	// The lease of the holder is over: the lock is the next one's.
	if _, err := r.client.Revoke(ctx, clientv3.LeaseID(b)); err != nil {
		t.Fatal(err)
	}
	if got := <-third; got.err != nil {
		t.Fatalf("the third: %v", got.err)
	}
	// etcd's own client stands in the same line.
	session, err := concurrency.NewSession(r.client)
	if err != nil {
		t.Fatal(err)
	}
	if err := concurrency.NewMutex(session, "l").TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("etcd's client: %v", err)
	}
}

// TestLeaseLostWhileWaiting is noticed although the holder goes on holding.
func TestLeaseLostWhileWaiting(t *testing.T) {
	r, _ := leaseRig(t)
	ctx, locks := soon(t), v3lockpb.NewLockClient(r.conn)
	if _, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: r.mustLease(t)}); err != nil {
		t.Fatal(err)
	}
	lease := r.mustLease(t)
	waiting := lockLater(ctx, locks, "l", lease)
	r.queued(t, "l/", 2)
	if _, err := r.client.Revoke(ctx, clientv3.LeaseID(lease)); err != nil {
		t.Fatal(err)
	}
	if got := <-waiting; status.Convert(got.err).Message() != concurrency.ErrSessionExpired.Error() {
		t.Errorf("it says %v", got.err)
	}
}

func TestLockGivenUp(t *testing.T) {
	r, h := leaseRig(t)
	locks := v3lockpb.NewLockClient(r.conn)
	if _, err := locks.Lock(soon(t), &v3lockpb.LockRequest{Name: []byte("l"), Lease: r.mustLease(t)}); err != nil {
		t.Fatal(err)
	}
	// Who goes leaves the line.
	ctx, cancel := context.WithCancel(t.Context())
	waiting := lockLater(ctx, locks, "l", r.mustLease(t))
	r.queued(t, "l/", 2)
	cancel()
	<-waiting
	r.queued(t, "l/", 1)
	// A caller without a lease gets one, of a minute.
	leases := r.server.space.Stats().Leases
	if _, err := locks.Lock(soon(t), &v3lockpb.LockRequest{Name: []byte("other")}); err != nil {
		t.Fatal(err)
	}
	if got := r.server.space.Stats().Leases; got != leases+1 {
		t.Errorf("%d leases, want one more than %d", got, leases)
	}
	if _, err := locks.Lock(soon(t), &v3lockpb.LockRequest{Name: []byte("l"), Lease: 99}); err == nil || err.Error() != rpctypes.ErrGRPCLeaseNotFound.Error() {
		t.Errorf("with a lease that is not there: %v", err)
	}
	h.set(func(h *hourglass) { h.fail = nil })
	if _, err := locks.Unlock(soon(t), &v3lockpb.UnlockRequest{}); err == nil {
		t.Error("unlocked nothing")
	}
	// A server that stops does not wait for those who wait.
	held := lockLater(soon(t), locks, "l", r.mustLease(t))
	r.queued(t, "l/", 2)
	r.server.Stop(soon(t))
	if got := <-held; got.err == nil {
		t.Errorf("locked by a server that has stopped: %v", got.res)
	}
}

func TestElection(t *testing.T) {
	r, _ := leaseRig(t)
	ctx, election := soon(t), v3electionpb.NewElectionClient(r.conn)
	ask := &v3electionpb.LeaderRequest{Name: []byte("e")}
	if _, err := election.Leader(ctx, ask); status.Convert(err).Message() != concurrency.ErrElectionNoLeader.Error() {
		t.Errorf("nobody is elected: %v", err)
	}
	observer, err := election.Observe(ctx, ask)
	if err != nil {
		t.Fatal(err)
	}
	one, two := r.mustLease(t), r.mustLease(t)
	won, err := election.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: one, Value: []byte("one")})
	if err != nil || won.GetLeader().GetRev() != won.GetHeader().GetRevision() || won.GetLeader().GetLease() != one {
		t.Fatalf("elected: %v, %v", won, err)
	}
	again, err := election.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: one, Value: []byte("uno")})
	if err != nil || again.GetLeader().GetRev() != won.GetLeader().GetRev() {
		t.Errorf("who leads goes on leading, with a new value: %v, %v", again, err)
	}
	next := make(chan *v3electionpb.CampaignResponse, 1)
	go func() {
		res, err := election.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: two, Value: []byte("two")})
		if err != nil {
			t.Error(err)
		}
		next <- res
	}()
	r.queued(t, "e/", 2)
	if _, err := election.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: won.GetLeader(), Value: []byte("eins")}); err != nil {
		t.Error(err)
	}
	leader, err := election.Leader(ctx, ask)
	if err != nil || string(leader.GetKv().GetValue()) != "eins" || leader.GetKv().GetLease() != one {
		t.Errorf("the leader is %v, %v", leader, err)
	}
	if _, err := election.Resign(ctx, &v3electionpb.ResignRequest{Leader: won.GetLeader()}); err != nil {
		t.Error(err)
	}
	if res := <-next; string(res.GetLeader().GetKey()) != fmt.Sprintf("e/%x", two) {
		t.Errorf("the next is %v", res)
	}
	if _, err := election.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: won.GetLeader(), Value: []byte("late")}); status.Convert(err).Message() != concurrency.ErrElectionNotLeader.Error() {
		t.Errorf("who has resigned proclaims: %v", err)
	}
	if _, err := election.Resign(ctx, &v3electionpb.ResignRequest{Leader: won.GetLeader()}); err != nil {
		t.Errorf("who has resigned resigns: %v", err)
	}
	if got := r.server.space.View().CountPrefix("e/"); got != 1 {
		t.Errorf("%d candidates are left, want the leader", got)
	}
	var told []string
	for _, want := range []string{"one", "uno", "eins", "two"} {
		res, err := observer.Recv()
		if err != nil {
			t.Fatalf("told %q, then %v, want %q", told, err, want)
		}
		told = append(told, string(res.GetKv().GetValue()))
		if told[len(told)-1] != want {
			t.Errorf("told %q, want %q next", told, want)
		}
	}
	for name, err := range map[string]error{
		"proclaim": second(election.Proclaim(ctx, &v3electionpb.ProclaimRequest{})),
		"resign":   second(election.Resign(ctx, &v3electionpb.ResignRequest{})),
	} {
		if status.Convert(err).Message() != `"leader" field must be provided` || status.Code(err) != codes.Unknown {
			t.Errorf("%s without a leader key: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestLeaseLostWhileCampaigning tells the candidate, who would otherwise believe to
// lead once everybody in front has gone.
func TestLeaseLostWhileCampaigning(t *testing.T) {
	r, _ := leaseRig(t)
	ctx, election := soon(t), v3electionpb.NewElectionClient(r.conn)
	if _, err := election.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: r.mustLease(t)}); err != nil {
		t.Fatal(err)
	}
	lease, ended := r.mustLease(t), make(chan error, 1)
	go func() {
		ended <- second(election.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: lease}))
	}()
	r.queued(t, "e/", 2)
	if _, err := r.client.Revoke(ctx, clientv3.LeaseID(lease)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; status.Convert(err).Message() != concurrency.ErrElectionNotLeader.Error() {
		t.Errorf("it says %v", err)
	}
}
