package etcdtest

import (
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// shortTTL is the shortest that both grant as it was asked for, in seconds.
const shortTTL = 2

// lateMost is how late a lease may end; etcd looks every half second, and revokes
// through its log.
const lateMost = 4 * time.Second

func leaseStories() []story {
	return []story{
		{name: "a lease and its keys", tell: leaseLife},
		{name: "every error of the Lease service, with its code and words", tell: leaseErrors},
		{name: "a lease ends when its time is over and not before", expires: true, tell: func(s *teller) {
			l, err := s.c.Grant(s.ctx, shortTTL)
			granted := time.Now()
			s.must(err)
			s.put("bound", "", clientv3.WithLease(l.ID))
			s.put("bound too", "", clientv3.WithLease(l.ID))
			w := s.c.Watch(s.ctx, "bound", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(s.rev(4)))
			r := s.next(w)
			took := time.Since(granted)
			if ttl := shortTTL * time.Second; took < ttl || took > ttl+lateMost {
				s.Errorf("%s: a lease of %v has ended after %v", s.name, ttl, took)
			}
			for _, e := range r.Events {
				s.notef("%v %s at %d", e.Type, e.Kv.Key, s.frame.shownRevision(e.Kv.ModRevision))
			}
			_, err = s.c.KeepAliveOnce(s.ctx, l.ID)
			s.notef("keep alive what has ended: %v", err)
			ttl, err := s.c.TimeToLive(s.ctx, l.ID)
			s.must(err)
			s.equal("time to live of what has ended", int64(-1), ttl.TTL)
		}},
		{name: "a lease that is kept alive does not end", expires: true, tell: func(s *teller) {
			l, err := s.c.Grant(s.ctx, shortTTL)
			s.must(err)
			s.put("kept", "", clientv3.WithLease(l.ID))
			w := s.c.Watch(s.ctx, "kept", clientv3.WithRev(s.rev(3)))
			kept, err := s.c.KeepAlive(s.ctx, l.ID)
			s.must(err)
			for end := time.Now().Add(2*shortTTL*time.Second + lateMost/2); time.Now().Before(end); {
				select {
				case r, open := <-kept:
					if !open {
						s.Fatalf("%s: the keep-alives have ended", s.name)
					}
					s.equal("TTL", int64(shortTTL), r.TTL)
				case r := <-w:
					s.Fatalf("%s: the key is gone although its lease was kept: %+v", s.name, r)
				case <-time.After(lateMost):
					s.Fatalf("%s: no keep-alive in %v", s.name, lateMost)
				}
			}
		}},
	}
}

func leaseLife(s *teller) {
	l, err := s.c.Grant(s.ctx, 600)
	s.must(err)
	s.frame.chosen = append(s.frame.chosen, int64(l.ID))

	s.equal("TTL", int64(600), l.TTL)
	for i := range 3 {
		s.put(fmt.Sprint("k", i), "", clientv3.WithLease(l.ID))
	}
	s.put("k1", "") // takes the key from the lease
	ttl, err := s.c.TimeToLive(s.ctx, l.ID, clientv3.WithAttachedKeys())
	s.must(err)
	slices.SortFunc(ttl.Keys, slices.Compare)
	s.notef("keys %q, granted %d, left %v", ttl.Keys, ttl.GrantedTTL, ttl.TTL > 590 && ttl.TTL <= 600)
	kept, err := s.c.KeepAliveOnce(s.ctx, l.ID)
	s.must(err)
	s.equal("TTL", int64(600), kept.TTL)
	all, err := s.c.Leases(s.ctx)
	s.must(err)
	s.equal("leases", []clientv3.LeaseStatus{{ID: l.ID}}, all.Leases)
	w := s.c.Watch(s.ctx, "", clientv3.WithFromKey(), clientv3.WithPrevKV(), clientv3.WithRev(s.rev(6)))
	r, err := s.c.Revoke(s.ctx, l.ID)
	s.must(err)
	s.equal("revision of the revocation", int64(6), s.frame.shownRevision(r.Header.Revision))
	s.events("revoked", w, 2)
	left, err := s.c.Get(s.ctx, "", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	s.note("left", (*pb.RangeResponse)(left), err)
}

func leaseErrors(s *teller) {
	lease := pb.NewLeaseClient(s.conn)
	grant := func(id, ttl int64) error {
		_, err := lease.LeaseGrant(s.ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
		return err
	}
	s.must(grant(77, 600))
	_, unknown := lease.LeaseRevoke(s.ctx, &pb.LeaseRevokeRequest{ID: 78})
	for _, c := range []struct {
		name      string
		want, got error
	}{
		{"an id that is taken", rpctypes.ErrGRPCLeaseExist, grant(77, 600)},
		{"too long a time", rpctypes.ErrGRPCLeaseTTLTooLarge, grant(79, 9_000_000_001)},
		{"revoking what is not there", rpctypes.ErrGRPCLeaseNotFound, unknown},
	} {
		s.equal(c.name, describe(c.want), describe(c.got))
	}
	s.equal("the longest time", nil, grant(80, 9_000_000_000))
	for _, ttl := range []int64{1, 0, -7} {
		r, err := lease.LeaseGrant(s.ctx, &pb.LeaseGrantRequest{ID: 100 + ttl, TTL: ttl})
		s.note(fmt.Sprint("a time of ", ttl), r, err)
	}
	ttl, err := lease.LeaseTimeToLive(s.ctx, &pb.LeaseTimeToLiveRequest{ID: 78, Keys: true})
	s.note("time to live of what is not there", ttl, err)
	stream, err := lease.LeaseKeepAlive(s.ctx)
	s.must(err)
	for _, id := range []int64{78, 77, 0} {
		s.must(stream.Send(&pb.LeaseKeepAliveRequest{ID: id}))
		r, err := stream.Recv()
		s.note(fmt.Sprint("keep alive ", id), r, err)
	}
}
