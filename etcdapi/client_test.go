package etcdapi

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/clientv3util"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
)

// The packages of the official client against the server in this process. The
// same assertions against a real etcd are etcdtest's.

// TestTransfersKeepTheSum: software transactions of many clients at once, which
// read, compare revisions, and write.
func TestTransfersKeepTheSum(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	const accounts, each, clients, transfers = 5, 100, 4, 25
	for i := range accounts {
		r.put(t, fmt.Sprint("account", i), strconv.Itoa(each))
	}
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for i := range transfers {
				from, to := fmt.Sprint("account", (c+i)%accounts), fmt.Sprint("account", (c*3+i*2+1)%accounts)
				_, err := concurrency.NewSTM(r.client, func(s concurrency.STM) error {
					if from == to {
						return nil
					}
					a, _ := strconv.Atoi(s.Get(from))
					z, _ := strconv.Atoi(s.Get(to))
					s.Put(from, strconv.Itoa(a-1))
					s.Put(to, strconv.Itoa(z+1))
					return nil
				}, concurrency.WithAbortContext(ctx), concurrency.WithIsolation(concurrency.SerializableSnapshot))
				if err != nil {
					t.Errorf("transfer: %v", err)
				}
			}
		})
	}
	all.Wait()
	g, err := r.client.Get(ctx, "account", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, kv := range g.Kvs {
		n, err := strconv.Atoi(string(kv.Value))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if sum != accounts*each {
		t.Errorf("the accounts have %d, they had %d", sum, accounts*each)
	}
}

func TestMutexAndElection(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	session := func() *concurrency.Session {
		s, err := concurrency.NewSession(r.client, concurrency.WithTTL(60))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	one, two := session(), session()
	first, second := concurrency.NewMutex(one, "/lock"), concurrency.NewMutex(two, "/lock")
	if err := first.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := second.TryLock(ctx); err != concurrency.ErrLocked { //nolint:errorlint // a sentinel that is returned bare
		t.Errorf("the lock was taken twice: %v", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- second.Lock(ctx) }()
	if err := one.Close(); err != nil { // revokes the lease, and the lock with it
		t.Fatal(err)
	}
	if err := <-locked; err != nil {
		t.Errorf("the lock that was given up: %v", err)
	}
	e := concurrency.NewElection(two, "/election")
	if err := e.Campaign(ctx, "two"); err != nil {
		t.Fatal(err)
	}
	if l, err := e.Leader(ctx); err != nil || string(l.Kvs[0].Value) != "two" {
		t.Errorf("leader %v, %v", l, err)
	}
	if err := e.Resign(ctx); err != nil {
		t.Error(err)
	}
}

func TestMirror(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	for i := range 20 {
		r.put(t, fmt.Sprintf("m/%02d", i), "v")
	}
	syncer := mirror.NewSyncer(r.client, "m/", 0)
	pages, errs := syncer.SyncBase(ctx)
	copied := 0
	for page := range pages {
		copied += len(page.Kvs)
	}
	if err := <-errs; err != nil || copied != 20 {
		t.Fatalf("%d keys were copied: %v", copied, err)
	}
	updates := syncer.SyncUpdates(ctx)
	r.put(t, "elsewhere", "v")
	r.put(t, "m/20", "v")
	if u := <-updates; len(u.Events) != 1 || string(u.Events[0].Kv.Key) != "m/20" {
		t.Errorf("update: %+v", u)
	}
}

func TestNamespace(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	kv := namespace.NewKV(r.client.KV, "app/")
	if _, err := kv.Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	r.put(t, "b", "not in the namespace")
	if g, err := kv.Get(ctx, "\x00", clientv3.WithFromKey()); err != nil || keysOf(g.Kvs) != "a" {
		t.Errorf("inside: %v, %v", g, err)
	}
	if g, err := r.client.Get(ctx, "app/a"); err != nil || g.Count != 1 {
		t.Errorf("outside: %v, %v", g, err)
	}
	events := namespace.NewWatcher(r.client.Watcher, "app/").Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1))
	if e := <-events; len(e.Events) != 1 || string(e.Events[0].Kv.Key) != "a" {
		t.Errorf("event: %+v", e)
	}
}

func TestLeasing(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	cached, closeCached, err := leasing.NewKV(r.client, "leases/")
	if err != nil {
		t.Fatal(err)
	}
	defer closeCached()
	other, closeOther, err := leasing.NewKV(r.client, "leases/")
	if err != nil {
		t.Fatal(err)
	}
	defer closeOther()
	for i := range 3 {
		writer, reader := cached, other
		if i%2 == 1 {
			writer, reader = other, cached
		}
		if _, err := reader.Get(ctx, "k"); err != nil {
			t.Fatal(err)
		}
		// The owner of the key is made to give it up before this succeeds.
		if _, err := writer.Put(ctx, "k", strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		if g, err := reader.Get(ctx, "k"); err != nil || len(g.Kvs) != 1 || string(g.Kvs[0].Value) != strconv.Itoa(i) {
			t.Errorf("round %d: %v, %v", i, g, err)
		}
	}
}

func TestNaming(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	m, err := endpoints.NewManager(r.client, "service")
	if err != nil {
		t.Fatal(err)
	}
	updates, err := m.NewWatchChannel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.AddEndpoint(ctx, "service/one", endpoints.Endpoint{Addr: "10.0.0.1:80"}); err != nil {
		t.Fatal(err)
	}
	if u := <-updates; len(u) != 1 || u[0].Endpoint.Addr != "10.0.0.1:80" {
		t.Errorf("update: %+v", u)
	}
	want := endpoints.Key2EndpointMap{"service/one": {Addr: "10.0.0.1:80"}}
	got, err := m.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestOrdering: the client's own check that no answer is older than one before.
func TestOrdering(t *testing.T) {
	r := newRig(t)
	ctx := soon(t)
	kv := ordering.NewKV(r.client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error {
		return fmt.Errorf("an answer went back in time")
	})
	for i := range 10 {
		if _, err := kv.Put(ctx, "a", strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Get(ctx, "a", clientv3.WithSerializable()); err != nil {
			t.Fatal(err)
		}
		x, err := kv.Txn(ctx).If(clientv3util.KeyMissing("b")).Then(clientv3.OpGet("a")).Commit()
		if err != nil || !x.Succeeded {
			t.Fatalf("%v, %v", x, err)
		}
	}
}
