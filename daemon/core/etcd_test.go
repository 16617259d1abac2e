package core

import (
	"context"
	"errors"
	"testing"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/etcdapi"
)

// TestEtcdErrors holds that every reason there is has words of etcd's, and that what
// may have been applied never looks as if it had not.
func TestEtcdErrors(t *testing.T) {
	for _, c := range []struct {
		reason           cluster.Reason
		refused, unknown error
	}{
		{cluster.ReasonNotLeader, etcdapi.ErrNoLeader, etcdapi.ErrTimeout},
		{cluster.ReasonNoLeader, etcdapi.ErrNoLeader, etcdapi.ErrTimeout},
		{cluster.ReasonNotReady, etcdapi.ErrNoLeader, etcdapi.ErrTimeout},
		{cluster.ReasonTransfer, etcdapi.ErrNoLeader, etcdapi.ErrTimeout},
		{cluster.ReasonPeer, etcdapi.ErrNoLeader, etcdapi.ErrTimeout},
		{cluster.ReasonDiskStalled, etcdapi.ErrNoLeader, etcdapi.ErrTimeout},
		{cluster.ReasonLeadershipLost, etcdapi.ErrLeaderChanged, etcdapi.ErrLeaderLost},
		{cluster.ReasonStaleEpoch, etcdapi.ErrLeaderChanged, etcdapi.ErrTimeout},
		{cluster.ReasonDeadline, etcdapi.ErrTimeout, etcdapi.ErrTimeout},
		{cluster.ReasonQueueFull, etcdapi.ErrTooManyRequests, etcdapi.ErrTimeout},
		{cluster.ReasonTooLarge, etcdapi.ErrTooLarge, etcdapi.ErrTimeout},
		{cluster.ReasonStopped, etcdapi.ErrStopped, etcdapi.ErrTimeout},
		{cluster.ReasonFailed, etcdapi.ErrStopped, etcdapi.ErrTimeout},
		{cluster.ReasonNotInitialised, etcdapi.ErrStopped, etcdapi.ErrTimeout},
		{cluster.ReasonRemoved, etcdapi.ErrStopped, etcdapi.ErrTimeout},
		{cluster.ReasonIdentity, etcdapi.ErrStopped, etcdapi.ErrTimeout},
	} {
		for class, want := range map[cluster.Class]error{cluster.NotApplied: c.refused, cluster.Unknown: c.unknown} {
			err := error(&cluster.Error{Class: class, Reason: c.reason, Err: errors.New("why")})
			if got := etcdError(t.Context(), err); !errors.Is(got, want) || !errors.Is(got, err) {
				t.Errorf("%s, %v: %v, want %v", c.reason, class, got, want)
			}
		}
	}
	ours := &cluster.Error{Class: cluster.NotApplied, Reason: cluster.ReasonInvalid, Err: errors.New("why")}
	if got := etcdError(t.Context(), ours); !errors.Is(got, ours) || errors.Is(got, etcdapi.ErrNoLeader) {
		t.Errorf("a mistake of ours: %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := etcdError(ctx, ours); !errors.Is(got, context.Canceled) || errors.Is(got, ours) {
		t.Errorf("the caller has gone: %v", got)
	}
}

func TestNumbersOfMembers(t *testing.T) {
	if number("") != 0 {
		t.Error("no id has a number")
	}
	if a, b := number("s1-504266f4"), number("s2-504266f4"); a == 0 || a == b || a != number("s1-504266f4") {
		t.Errorf("numbers %x and %x", a, b)
	}
}
