package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/status"
)

// packageStories are told with the packages of etcd's client, as programs use
// them, and with the services that do the same on the server.
func packageStories() []story {
	return []story{
		{name: "concurrency: a mutex", tell: mutexStory},
		{name: "concurrency: an election", tell: electionStory},
		{name: "concurrency: transactional memory", tell: stmStory},
		{name: "recipes: queue, barrier, readers and writers", tell: recipeStory},
		{name: "naming", tell: namingStory},
		{name: "leasing", tell: leasingStory},
		{name: "mirror", tell: mirrorStory},
		{name: "namespace", tell: namespaceStory},
		{name: "ordering", tell: orderingStory},
		{name: "kubernetes", tell: kubernetesStory},
		{name: "the lock service", tell: lockStory},
		{name: "the election service", tell: electionServiceStory},
	}
}

func (s *teller) session() *concurrency.Session {
	s.Helper()
	session, err := concurrency.NewSession(s.newClient(s.T), concurrency.WithTTL(60))
	s.must(err)
	s.Cleanup(func() { session.Close() })
	return session
}

// blocked fails when something that must wait has not.
func (s *teller) blocked(what string, done <-chan error) {
	s.Helper()
	select {
	case err := <-done:
		s.Errorf("%s on %s did not wait: %v", what, s.name, err)
	case <-time.After(50 * time.Millisecond):
	}
}

func (s *teller) arrives(what string, done <-chan error) {
	s.Helper()
	select {
	case err := <-done:
		s.must(err)
	case <-time.After(patience):
		s.Fatalf("%s on %s waits for ever", what, s.name)
	}
}

func inBackground(do func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

func mutexStory(s *teller) {
	one, two := s.session(), s.session()
	first, second := concurrency.NewMutex(one, "lock"), concurrency.NewMutex(two, "lock")
	s.must(first.Lock(s.ctx))
	s.equal("try", concurrency.ErrLocked, second.TryLock(s.ctx))
	waiting := inBackground(func() error { return second.Lock(s.ctx) })
	s.blocked("the second", waiting)
	s.must(first.Unlock(s.ctx))
	s.arrives("the second", waiting)
	r, err := s.c.Txn(s.ctx).If(second.IsOwner()).Commit()
	s.must(err)
	s.equal("the second owns it", true, r.Succeeded)
	// A session that ends lets go of its locks.
	waiting = inBackground(func() error { return first.Lock(s.ctx) })
	s.blocked("the first again", waiting)
	s.must(two.Close())
	s.arrives("the first again", waiting)
	s.must(first.Unlock(s.ctx))

	var holders, most int
	var mu, all sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		m := concurrency.NewMutex(s.session(), "many")
		wg.Go(func() {
			for range 3 {
				if err := m.Lock(s.ctx); err != nil {
					s.Error(err)
					return
				}
				mu.Lock()
				holders++
				most = max(most, holders)
				mu.Unlock()
				all.Lock()
				all.Unlock() //nolint:staticcheck // a moment in which another could come in
				mu.Lock()
				holders--
				mu.Unlock()
				if err := m.Unlock(s.ctx); err != nil {
					s.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.equal("the most holders", 1, most)
}

func electionStory(s *teller) {
	one, two := s.session(), s.session()
	first, second := concurrency.NewElection(one, "boss"), concurrency.NewElection(two, "boss")
	_, err := first.Leader(s.ctx)
	s.equal("nobody yet", concurrency.ErrElectionNoLeader, err)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.must(first.Campaign(s.ctx, "one"))
	seen := second.Observe(ctx)
	who := func() string {
		select {
		case r := <-seen:
			return string(r.Kvs[0].Value)
		case <-time.After(patience):
			return "nobody"
		}
	}
	s.equal("observed", "one", who())
	waiting := inBackground(func() error { return second.Campaign(s.ctx, "two") })
	s.blocked("the second", waiting)
	s.must(first.Proclaim(s.ctx, "one, changed"))
	s.equal("observed", "one, changed", who())
	s.must(first.Resign(s.ctx))
	s.arrives("the second", waiting)
	s.equal("observed", "two", who())
	s.equal("proclaim without office", concurrency.ErrElectionNotLeader, first.Proclaim(s.ctx, "x"))
	leader, err := second.Leader(s.ctx)
	s.must(err)
	s.equal("leader", "two", string(leader.Kvs[0].Value))
}

func stmStory(s *teller) {
	const accounts, each, workers, transfers = 4, 100, 4, 10
	for _, level := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads} {
		for i := range accounts {
			s.put(fmt.Sprint("account", i), strconv.Itoa(each))
		}
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range transfers {
					from, to := fmt.Sprint("account", (w+i)%accounts), fmt.Sprint("account", (w+2*i+1)%accounts)
					_, err := concurrency.NewSTM(s.c, func(stm concurrency.STM) error {
						have, err := strconv.Atoi(stm.Get(from))
						if err != nil || from == to {
							return err
						}
						there, err := strconv.Atoi(stm.Get(to))
						stm.Put(from, strconv.Itoa(have-1))
						stm.Put(to, strconv.Itoa(there+1))
						return err
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(s.ctx))
					if err != nil {
						s.Error(err)
					}
				}
			})
		}
		wg.Wait()
		r, err := s.c.Get(s.ctx, "account", clientv3.WithPrefix())
		s.must(err)
		sum := 0
		for _, kv := range r.Kvs {
			n, err := strconv.Atoi(string(kv.Value))
			s.must(err)
			sum += n
		}
		s.equal("sum", accounts*each, sum)
	}
}

func recipeStory(s *teller) {
	q := recipe.NewQueue(s.c, "queue")
	for i := range 3 {
		s.must(q.Enqueue(fmt.Sprint(i)))
	}
	for i := range 3 {
		got, err := q.Dequeue()
		s.must(err)
		s.equal("queue", fmt.Sprint(i), got)
	}
	p := recipe.NewPriorityQueue(s.c, "urgent")
	s.must(errors.Join(p.Enqueue("later", 9), p.Enqueue("first", 1)))
	got, err := p.Dequeue()
	s.must(err)
	s.equal("the most urgent", "first", got)
	b := recipe.NewBarrier(s.c, "barrier")
	s.must(b.Hold())
	waiting := inBackground(b.Wait)
	s.blocked("a barrier", waiting)
	s.must(b.Release())
	s.arrives("a barrier", waiting)
	reader, writer := recipe.NewRWMutex(s.session(), "rw"), recipe.NewRWMutex(s.session(), "rw")
	s.must(reader.RLock())
	waiting = inBackground(writer.Lock)
	s.blocked("a writer", waiting)
	s.must(reader.RUnlock())
	s.arrives("a writer", waiting)
	s.must(writer.Unlock())
}

func namingStory(s *teller) {
	m, err := endpoints.NewManager(s.c, "services/web")
	s.must(err)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	changes, err := m.NewWatchChannel(ctx)
	s.must(err)
	s.must(m.AddEndpoint(s.ctx, "services/web/1", endpoints.Endpoint{Addr: "10.0.0.1:80", Metadata: "blue"}))
	s.must(m.AddEndpoint(s.ctx, "services/web/2", endpoints.Endpoint{Addr: "10.0.0.2:80"}))
	all, err := m.List(s.ctx)
	s.must(err)
	s.equal("endpoints", endpoints.Key2EndpointMap{
		"services/web/1": {Addr: "10.0.0.1:80", Metadata: "blue"}, "services/web/2": {Addr: "10.0.0.2:80"},
	}, all)
	s.must(m.DeleteEndpoint(s.ctx, "services/web/1"))
	for seen := 0; seen < 3; {
		select {
		case updates := <-changes:
			for _, u := range updates {
				s.notef("%v %s %s", u.Op, u.Key, u.Endpoint.Addr)
				seen++
			}
		case <-time.After(patience):
			s.Fatalf("%s: %d changes of 3", s.name, seen)
		}
	}
}

func leasingStory(s *teller) {
	kv, closeKV, err := leasing.NewKV(s.c, "leases/")
	s.must(err)
	defer closeKV()
	other, closeOther, err := leasing.NewKV(s.newClient(s.T), "leases/")
	s.must(err)
	defer closeOther()
	_, err = kv.Put(s.ctx, "k", "1")
	s.must(err)
	value := func(from clientv3.KV) string {
		r, err := from.Get(s.ctx, "k")
		s.must(err)
		return string(r.Kvs[0].Value)
	}
	s.equal("read", "1", value(kv))
	s.equal("from the cache", "1", value(kv))
	_, err = other.Put(s.ctx, "k", "2") // takes the lease on k away
	s.must(err)
	s.equal("by the other", "2", value(kv))
	r, err := kv.Txn(s.ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "2")).Then(clientv3.OpPut("k", "3")).Else(clientv3.OpGet("k")).Commit()
	s.must(err)
	s.equal("succeeded", true, r.Succeeded)
	s.equal("by the transaction", "3", value(other))
	_, err = other.Delete(s.ctx, "k")
	s.must(err)
	gone, err := kv.Get(s.ctx, "k")
	s.must(err)
	s.equal("keys left", int64(0), gone.Count)
}

func mirrorStory(s *teller) {
	const keys = 2500 // more than one page of the syncer
	for from := 0; from < keys; from += 100 {
		var ops []clientv3.Op
		for i := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("m/%04d", from+i), ""))
		}
		_, err := s.c.Txn(s.ctx).Then(ops...).Commit()
		s.must(err)
	}
	syncer := mirror.NewSyncer(s.c, "m/", 0)
	base, failed := syncer.SyncBase(s.ctx)
	copied := 0
	for r := range base {
		copied += len(r.Kvs)
	}
	s.must(<-failed)
	s.equal("copied", keys, copied)
	updates := syncer.SyncUpdates(s.ctx)
	s.put("m/new", "")
	_, err := s.c.Delete(s.ctx, "m/0000")
	s.must(err)
	s.events("mirrored", updates, 2)
}

func namespaceStory(s *teller) {
	c := s.newClient(s.T)
	c.KV, c.Watcher, c.Lease = namespace.NewKV(c.KV, "mine/"), namespace.NewWatcher(c.Watcher, "mine/"), namespace.NewLease(c.Lease, "mine/")
	s.put("not mine", "")
	w := c.Watch(s.ctx, "", clientv3.WithPrefix())
	l, err := c.Grant(s.ctx, 60)
	s.must(err)
	_, err = c.Put(s.ctx, "a", "1", clientv3.WithLease(l.ID))
	s.must(err)
	r, err := c.Get(s.ctx, "", clientv3.WithFromKey())
	s.must(err)
	s.equal("keys", []any{1, "a"}, []any{len(r.Kvs), string(r.Kvs[0].Key)})
	ttl, err := c.TimeToLive(s.ctx, l.ID, clientv3.WithAttachedKeys())
	s.must(err)
	s.equal("keys of the lease", [][]byte{[]byte("a")}, ttl.Keys)
	e := s.next(w)
	s.equal("watched", "a", string(e.Events[0].Kv.Key))
	raw, err := s.c.Get(s.ctx, "mine/a")
	s.must(err)
	s.equal("its real name", int64(1), raw.Count)
	_, err = c.Txn(s.ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Then(clientv3.OpDelete("", clientv3.WithFromKey())).Commit()
	s.must(err)
	left, err := s.c.Get(s.ctx, "", clientv3.WithFromKey())
	s.must(err)
	s.equal("left", "not mine", string(left.Kvs[0].Key))
}

func orderingStory(s *teller) {
	violated := errors.New("went back in time")
	kv := ordering.NewKV(s.c.KV, func(clientv3.Op, clientv3.OpResponse, int64) error { return violated })
	for i := range 20 {
		s.put("k", fmt.Sprint(i))
		for _, opts := range [][]clientv3.OpOption{nil, {clientv3.WithSerializable()}} {
			r, err := kv.Get(s.ctx, "k", opts...)
			s.must(err)
			s.equal("value", fmt.Sprint(i), string(r.Kvs[0].Value))
		}
	}
}

func kubernetesStory(s *teller) {
	k, err := kubernetes.New(clientv3.Config{Endpoints: []string{s.address}, TLS: s.tls, DialTimeout: patience})
	s.must(err)
	s.Cleanup(func() { k.Close() })
	made, err := k.Kubernetes.OptimisticPut(s.ctx, "/pods/a", []byte("1"), 0, kubernetes.PutOptions{})
	s.must(err)
	s.equal("made", []any{true, int64(2)}, []any{made.Succeeded, s.frame.shownRevision(made.Revision)})
	again, err := k.Kubernetes.OptimisticPut(s.ctx, "/pods/a", []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true})
	s.must(err)
	s.equal("made again", []any{false, "1"}, []any{again.Succeeded, string(again.KV.Value)})
	list, err := k.Kubernetes.List(s.ctx, "/pods/", kubernetes.ListOptions{Limit: 500})
	s.must(err)
	s.equal("listed", []any{1, int64(1), int64(2)}, []any{len(list.Kvs), list.Count, s.frame.shownRevision(list.Revision)})
	count, err := k.Kubernetes.Count(s.ctx, "/pods/", kubernetes.CountOptions{})
	s.must(err)
	s.equal("count", int64(1), count)
	gone, err := k.Kubernetes.OptimisticDelete(s.ctx, "/pods/a", made.Revision, kubernetes.DeleteOptions{})
	s.must(err)
	s.equal("deleted", []any{true, int64(3)}, []any{gone.Succeeded, s.frame.shownRevision(gone.Revision)})
	got, err := k.Kubernetes.Get(s.ctx, "/pods/a", kubernetes.GetOptions{})
	s.must(err)
	s.equal("gone", true, got.KV == nil)
}

func lockStory(s *teller) {
	lock := v3lockpb.NewLockClient(s.conn)
	one, err := s.c.Grant(s.ctx, 60)
	s.must(err)
	two, err := s.c.Grant(s.ctx, 60)
	s.must(err)
	held, err := lock.Lock(s.ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: int64(one.ID)})
	s.must(err)
	s.equal("key", fmt.Sprintf("l/%x", int64(one.ID)), string(held.GetKey()))
	waiting := inBackground(func() error {
		r, err := lock.Lock(s.ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: int64(two.ID)})
		if err == nil && string(r.GetKey()) != fmt.Sprintf("l/%x", int64(two.ID)) {
			return fmt.Errorf("the second holds %q", r.GetKey())
		}
		return err
	})
	s.blocked("the second", waiting)
	_, err = lock.Unlock(s.ctx, &v3lockpb.UnlockRequest{Key: held.GetKey()})
	s.must(err)
	s.arrives("the second", waiting)
	_, err = lock.Lock(s.ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: 12345})
	// etcd's own service loses the code of what its client told it; the words are the same.
	s.notef("a lease that is not: %v", status.Convert(err).Message())
	ctx, cancel := context.WithTimeout(s.ctx, 100*time.Millisecond)
	defer cancel()
	_, err = lock.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: int64(one.ID)})
	s.notef("one who does not wait: %v", status.Code(err))
	eventually(s, "one who does not wait any more leaves the queue", func() bool {
		left, err := s.c.Get(s.ctx, "l/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && left.Count == 1
	})
}

func electionServiceStory(s *teller) {
	election := v3electionpb.NewElectionClient(s.conn)
	one, err := s.c.Grant(s.ctx, 60)
	s.must(err)
	two, err := s.c.Grant(s.ctx, 60)
	s.must(err)
	_, err = election.Leader(s.ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	s.notef("nobody yet: %v", describe(err))
	won, err := election.Campaign(s.ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: int64(one.ID), Value: []byte("one")})
	s.must(err)
	s.equal("leader", []any{"e", int64(one.ID), fmt.Sprintf("e/%x", int64(one.ID))}, []any{string(won.Leader.Name), won.Leader.Lease, string(won.Leader.Key)})
	stream, err := election.Observe(s.ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	s.must(err)
	observe := func(want string) {
		r, err := stream.Recv()
		s.must(err)
		s.equal("observed", want, string(r.GetKv().GetValue()))
	}
	observe("one")
	waiting := inBackground(func() error {
		_, err := election.Campaign(s.ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: int64(two.ID), Value: []byte("two")})
		return err
	})
	s.blocked("the second", waiting)
	_, err = election.Proclaim(s.ctx, &v3electionpb.ProclaimRequest{Leader: won.Leader, Value: []byte("one, changed")})
	s.must(err)
	observe("one, changed")
	_, err = election.Resign(s.ctx, &v3electionpb.ResignRequest{Leader: won.Leader})
	s.must(err)
	s.arrives("the second", waiting)
	observe("two")
	_, err = election.Proclaim(s.ctx, &v3electionpb.ProclaimRequest{Leader: won.Leader, Value: []byte("x")})
	s.notef("proclaim without office: %v", describe(err))
	_, err = election.Proclaim(s.ctx, &v3electionpb.ProclaimRequest{})
	s.notef("proclaim nothing: %v", describe(err))
	_, err = election.Resign(s.ctx, &v3electionpb.ResignRequest{})
	s.notef("resign nothing: %v", describe(err))
	r, err := pb.NewKVClient(s.conn).Range(s.ctx, &pb.RangeRequest{Key: []byte("e/"), RangeEnd: []byte("e0"), CountOnly: true})
	s.note("candidates", r, err)
}
