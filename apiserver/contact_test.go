package apiserver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// TestOutOfContact: a server that hears no leader ends the streams that tell what
// changes, and begins none before it has caught up. Reads of its own choice and
// streams of other kinds are not its business.
func TestOutOfContact(t *testing.T) {
	var alone atomic.Bool
	run(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() { w.server.FollowContact(ctx) })
		defer following.Wait()
		defer cancel()
		w.register("n1")
		watching := startWatch(t, w.reader(), &balsav1.WatchRequest{Kind: "cm"})
		resume := watching.next(t).GetResourceVersion()
		assigned, err := w.agent("n1").nodes.Assignments(t.Context(), &balsav1.AssignmentsRequest{NodeName: "n1"})
		must(t, err)
		if !assigned.Receive() {
			t.Fatal(assigned.Err())
		}
		alone.Store(true)
		w.backend.barrier = func() error {
			if alone.Load() {
				return classed{notApplied: true}
			}
			return nil
		}
		lost := time.Now()
		refused(t, watching.end(t), connect.CodeUnavailable, "NoLeader")
		for assigned.Receive() {
		}
		refused(t, assigned.Err(), connect.CodeUnavailable, "NoLeader")
		if took := time.Since(lost); took > 2*DefaultLimits().ContactEvery {
			t.Errorf("the streams ended after %v", took)
		}
		_, err = stream(t, w.reader(), &balsav1.WatchRequest{Kind: "cm", ResourceVersion: resume})
		refused(t, err, connect.CodeUnavailable, "Unavailable")
		alone.Store(false)
		back := startWatch(t, w.reader(), &balsav1.WatchRequest{Kind: "cm", ResourceVersion: resume})
		time.Sleep(3 * DefaultLimits().ContactEvery)
		create(t, w.admin(), newConfigMap("later", nil))
		back.expect(t, "ADDED later")
		synctest.Wait()
	}, func(c *Config) { c.InContact = func() bool { return !alone.Load() } })
}

// TestRemovedMembersCertificate goes with the member, unless another member has
// the name; a call that was lost half way is made again.
func TestRemovedMembersCertificate(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		admin := w.admin().cluster
		remove := func(id string) error {
			_, err := admin.RemoveMember(t.Context(), &balsav1.RemoveMemberRequest{MemberId: id})
			return err
		}
		isRemoved := func(name string) bool {
			removals, err := Removals(w.store.Space(store.SpaceObjects).View(), time.Now())
			must(t, err)
			for _, r := range removals {
				if r.Role == pki.RoleServer && r.Name == name {
					return true
				}
			}
			return false
		}
		must(t, remove("s2-shared"))
		if isRemoved("s2") {
			t.Error("the certificate of another member's server is refused")
		}
		w.members.gone = errors.New("no member s3")
		if err := remove("s3"); err == nil || isRemoved("s3") {
			t.Errorf("a member that never was: %v, removed %v", err, isRemoved("s3"))
		}
		join := prepareJoin(t, w.token("server", 1), pki.RoleServer, "s3")
		join.req.MemberId, join.req.AdvertiseAddress = "s3", "10.0.0.3:7443"
		_, err := w.joiner().Join(t.Context(), join.req)
		must(t, err)
		must(t, remove("s3"))
		if !isRemoved("s3") {
			t.Error("the second call did not end what the first began")
		}
		if err := remove("s3"); err == nil {
			t.Error("a third call found something to do")
		}
		w.members.gone = nil
		must(t, remove("s4"))
		if !isRemoved("s4") {
			t.Error("the certificate outlives the member")
		}
	})
}

// TestRemovedServerAsksWhy: nothing is answered to a removed server but that it
// was removed.
func TestRemovedServerAsksWhy(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s2 := w.as(pki.RoleServer, "s2").peer
		_, err := s2.State(t.Context(), &internalv1.StateRequest{})
		must(t, err)
		w.remove(pki.RoleServer, "s2")
		_, err = s2.HasBlob(t.Context(), &internalv1.HasBlobRequest{})
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
		_, err = s2.State(t.Context(), &internalv1.StateRequest{})
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
		removed := connect.NewError(connect.CodeFailedPrecondition, errors.New("s2 is not part of this cluster any more"))
		detail, err := connect.NewErrorDetail(&balsav1.ErrorDetail{Reason: "RemovedFromCluster", Applied: notApplied})
		must(t, err)
		removed.AddDetail(detail)
		w.backend.expels = removed
		_, err = s2.State(t.Context(), &internalv1.StateRequest{})
		refused(t, err, connect.CodeFailedPrecondition, "RemovedFromCluster")
	})
}
