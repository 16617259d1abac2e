package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/etcdapi"
)

// story is one use of the API. It is told on an empty space of each side; what it
// notes must be the same on both, beside what it asserts itself.
type story struct {
	name string
	// expires says that the story waits for leases to end, which takes a real
	// balsa.
	expires bool
	tell    func(*teller)
}

// teller is a story on one side.
type teller struct {
	*testing.T
	*side
	ctx   context.Context
	c     *clientv3.Client
	frame frame
	notes []string
}

// note keeps a response, or the error that came instead, for the comparison.
func (s *teller) note(what string, m proto.Message, err error) {
	s.Helper()
	if err != nil {
		s.notes = append(s.notes, what+": "+describe(err))
		return
	}
	s.notes = append(s.notes, what+": "+text(s.frame.shown(m)))
}

func (s *teller) notef(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func describe(err error) string {
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		return fmt.Sprintf("%v: %s", known.Code(), known.Error())
	}
	st := status.Convert(err)
	return fmt.Sprintf("%v: %s", st.Code(), st.Message())
}

func (s *teller) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", s.name, err)
	}
}

func (s *teller) put(key, value string, opts ...clientv3.OpOption) int64 {
	s.Helper()
	r, err := s.c.Put(s.ctx, key, value, opts...)
	s.must(err)
	return r.Header.Revision
}

// rev is a revision of the story as the side has it.
func (s *teller) rev(r int64) int64 { return s.frame.realRevision(r) }

func (s *teller) equal(what string, want, got any) {
	s.Helper()
	if err, ok := want.(error); ok {
		want = describe(err)
		if failed, ok := got.(error); ok {
			got = describe(failed)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("%s on %s (-want +got):\n%s", what, s.name, diff)
	}
}

func allStories() []story {
	var all []story
	for _, some := range [][]story{kvStories(), watchStories(), leaseStories(), packageStories()} {
		all = append(all, some...)
	}
	return all
}

// TestStories tells every story on etcd, on Balsa's API alone and on a real balsa.
func TestStories(t *testing.T) {
	t.Parallel()
	etcd, solo, balsa := startEtcd(t), startSolo(t, etcdapi.Limits{}), startBalsa(t)
	for _, told := range allStories() {
		t.Run(told.name, func(t *testing.T) {
			theirs := told.on(t, etcd)
			sides := []*side{solo, balsa}
			if told.expires {
				sides = sides[1:]
			}
			for _, s := range sides {
				if diff := cmp.Diff(theirs, told.on(t, s)); diff != "" {
					t.Errorf("etcd and %s differ (-etcd +%s):\n%s", s.name, s.name, diff)
				}
			}
		})
	}
}

func (told story) on(t *testing.T, s *side) []string {
	t.Helper()
	ctx := within(t)
	base, err := reset(ctx, s)
	if err != nil {
		t.Fatalf("empty %s: %v", s.name, err)
	}
	teller := &teller{T: t, side: s, ctx: ctx, c: s.newClient(t), frame: frame{base: base}}
	told.tell(teller)
	return teller.notes
}

func kvStories() []story {
	return []story{
		{name: "a key through its life", tell: func(s *teller) {
			s.equal("first revision", int64(2), s.frame.shownRevision(s.put("a", "1")))
			s.put("a", "2")
			r, err := s.c.Get(s.ctx, "a")
			s.must(err)
			kv := r.Kvs[0]
			s.equal("version, create, mod", []int64{2, 2, 3}, []int64{kv.Version, s.frame.shownRevision(kv.CreateRevision), s.frame.shownRevision(kv.ModRevision)})
			d, err := s.c.Delete(s.ctx, "a", clientv3.WithPrevKV())
			s.must(err)
			s.equal("deleted", []any{int64(1), "2"}, []any{d.Deleted, string(d.PrevKvs[0].Value)})
			s.note("delete", (*pb.DeleteRangeResponse)(d), nil)
			p, err := s.c.Put(s.ctx, "a", "3", clientv3.WithPrevKV())
			s.note("put again", (*pb.PutResponse)(p), err)
			r, err = s.c.Get(s.ctx, "a", clientv3.WithRev(s.rev(3)))
			s.note("the past", (*pb.RangeResponse)(r), err)
		}},
		{name: "every option of a range", tell: rangeOptions},
		{name: "every error of the KV service, with its code and words", tell: kvErrors},
		{name: "transactions", tell: transactions},
		{name: "compaction", tell: compactionStory},
		{name: "a request that is too large", tell: func(s *teller) {
			_, err := s.c.Put(s.ctx, "a", strings.Repeat("x", 3<<19+1))
			s.equal("error", rpctypes.ErrRequestTooLarge, err)
			p, err := s.c.Put(s.ctx, "a", strings.Repeat("x", 3<<19-100))
			s.note("one that just fits", (*pb.PutResponse)(p), err)
		}},
	}
}

func rangeOptions(s *teller) {
	for i, key := range []string{"b", "a", "c", "a/x", "a/y", "a\x00", "\xff"} {
		s.put(key, fmt.Sprint(9-i))
	}
	s.put("a", "again")
	for name, opts := range map[string][]clientv3.OpOption{
		"prefix":                 {clientv3.WithPrefix()},
		"range":                  {clientv3.WithRange("b")},
		"from key":               {clientv3.WithFromKey()},
		"limit":                  {clientv3.WithFromKey(), clientv3.WithLimit(2)},
		"keys only":              {clientv3.WithPrefix(), clientv3.WithKeysOnly()},
		"count only":             {clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithLimit(1)},
		"serializable":           {clientv3.WithPrefix(), clientv3.WithSerializable()},
		"at a revision":          {clientv3.WithPrefix(), clientv3.WithRev(s.rev(4))},
		"at a future revision":   {clientv3.WithRev(s.rev(99))},
		"at the largest one":     {clientv3.WithRev(math.MaxInt64)},
		"keys of mod 3 and more": {clientv3.WithFromKey(), clientv3.WithMinModRev(s.rev(4))},
		"keys of mod up to 4":    {clientv3.WithFromKey(), clientv3.WithMaxModRev(s.rev(5))},
		"keys made from 5":       {clientv3.WithFromKey(), clientv3.WithMinCreateRev(s.rev(5))},
		"keys made up to 5":      {clientv3.WithFromKey(), clientv3.WithMaxCreateRev(s.rev(5)), clientv3.WithLimit(2)},
		"first by create":        clientv3.WithFirstCreate(),
		"last by mod":            clientv3.WithLastRev(),
		"first key":              clientv3.WithFirstKey(),
		"last key":               clientv3.WithLastKey(),
		"by value, down":         {clientv3.WithFromKey(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend)},
		"by version, up, two":    {clientv3.WithFromKey(), clientv3.WithSort(clientv3.SortByVersion, clientv3.SortAscend), clientv3.WithLimit(2)},
		"by value, no order":     {clientv3.WithFromKey(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortNone), clientv3.WithLimit(3)},
	} {
		r, err := s.c.Get(s.ctx, "a", opts...)
		s.note(name, (*pb.RangeResponse)(r), err)
	}
	sortNotes(s)
}

func kvErrors(s *teller) {
	kv := pb.NewKVClient(s.conn)
	key := []byte("a")
	put := func(p *pb.PutRequest) error { _, err := kv.Put(s.ctx, p); return err }
	get := func(r *pb.RangeRequest) error { _, err := kv.Range(s.ctx, r); return err }
	txn := func(ops ...*pb.RequestOp) error { _, err := kv.Txn(s.ctx, &pb.TxnRequest{Success: ops}); return err }
	putOp := func(p *pb.PutRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}}
	}
	compact := func(rev int64) error {
		_, err := kv.Compact(s.ctx, &pb.CompactionRequest{Revision: rev})
		return err
	}
	for range 3 {
		s.put("other", "")
	}
	s.must(compact(s.rev(3)))
	many := make([]*pb.RequestOp, etcdapi.DefaultTxnOps+1)
	for i := range many {
		many[i] = putOp(&pb.PutRequest{Key: fmt.Append(nil, i)})
	}
	_, noKey := kv.DeleteRange(s.ctx, &pb.DeleteRangeRequest{})
	for _, c := range []struct {
		name      string
		want, got error
	}{
		{"put without a key", rpctypes.ErrGRPCEmptyKey, put(&pb.PutRequest{})},
		{"range without a key", rpctypes.ErrGRPCEmptyKey, get(&pb.RangeRequest{})},
		{"delete without a key", rpctypes.ErrGRPCEmptyKey, noKey},
		{"a put in a transaction without a key", rpctypes.ErrGRPCEmptyKey, txn(putOp(&pb.PutRequest{}))},
		{"ignore_value of nothing", rpctypes.ErrGRPCKeyNotFound, put(&pb.PutRequest{Key: key, IgnoreValue: true})},
		{"ignore_lease of nothing", rpctypes.ErrGRPCKeyNotFound, put(&pb.PutRequest{Key: key, IgnoreLease: true})},
		{"ignore_value and a value", rpctypes.ErrGRPCValueProvided, put(&pb.PutRequest{Key: key, IgnoreValue: true, Value: key})},
		{"ignore_lease and a lease", rpctypes.ErrGRPCLeaseProvided, put(&pb.PutRequest{Key: key, IgnoreLease: true, Lease: 5})},
		{"a lease that is not", rpctypes.ErrGRPCLeaseNotFound, put(&pb.PutRequest{Key: key, Lease: 5})},
		{"a lease that is not, in a transaction", rpctypes.ErrGRPCLeaseNotFound, txn(putOp(&pb.PutRequest{Key: key, Lease: 5}))},
		{"an order there is not", rpctypes.ErrGRPCInvalidSortOption, get(&pb.RangeRequest{Key: key, SortOrder: 7})},
		{"a target there is not", rpctypes.ErrGRPCInvalidSortOption, get(&pb.RangeRequest{Key: key, SortTarget: 7})},
		{"too many operations", rpctypes.ErrGRPCTooManyOps, txn(many...)},
		{"a key put twice", rpctypes.ErrGRPCDuplicateKey, txn(putOp(&pb.PutRequest{Key: key}), putOp(&pb.PutRequest{Key: key}))},
		{"a range of the future", rpctypes.ErrGRPCFutureRev, get(&pb.RangeRequest{Key: key, Revision: s.rev(100)})},
		{"a range of what is compacted", rpctypes.ErrGRPCCompacted, get(&pb.RangeRequest{Key: key, Revision: s.rev(2)})},
		{"compaction again", rpctypes.ErrGRPCCompacted, compact(s.rev(3))},
		{"compaction of the future", rpctypes.ErrGRPCFutureRev, compact(s.rev(100))},
	} {
		want, got := status.Convert(c.want), status.Convert(c.got)
		s.equal(c.name, []any{want.Code(), want.Message()}, []any{got.Code(), got.Message()})
	}
	// A revision that no write took: the failed ones changed nothing.
	s.equal("revision", int64(5), s.frame.shownRevision(s.put("a", "")))
}

func transactions(s *teller) {
	s.put("a", "1")
	r, err := s.c.Txn(s.ctx).
		If(clientv3.Compare(clientv3.Value("a"), "=", "1"), clientv3.Compare(clientv3.Version("b"), "=", 0), clientv3.Compare(clientv3.ModRevision("a"), "<", s.rev(3))).
		Then(clientv3.OpPut("b", "2", clientv3.WithPrevKV()), clientv3.OpGet("", clientv3.WithFromKey()), clientv3.OpDelete("a", clientv3.WithPrevKV()), clientv3.OpGet("a")).
		Else(clientv3.OpPut("never", "")).Commit()
	s.must(err)
	s.equal("succeeded", true, r.Succeeded)
	s.note("the first branch", (*pb.TxnResponse)(r), nil)
	r, err = s.c.Txn(s.ctx).
		If(clientv3.Compare(clientv3.CreateRevision("b"), "!=", s.rev(3))).Then(clientv3.OpPut("never", "")).
		Else(clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.LeaseValue("b"), "=", 0).WithPrefix()}, []clientv3.Op{clientv3.OpPut("c", "nested")}, []clientv3.Op{clientv3.OpPut("d", "")}), clientv3.OpPut("e", "")).Commit()
	s.must(err)
	s.equal("succeeded", false, r.Succeeded)
	s.note("the second branch", (*pb.TxnResponse)(r), nil)
	r, err = s.c.Txn(s.ctx).Then(clientv3.OpGet("a"), clientv3.OpGet("b")).Commit()
	s.note("one that only reads", (*pb.TxnResponse)(r), err)
	r, err = s.c.Txn(s.ctx).Commit()
	s.note("an empty one", (*pb.TxnResponse)(r), err)
	r, err = s.c.Txn(s.ctx).Then(clientv3.OpDelete("nothing"), clientv3.OpDelete("x", clientv3.WithFromKey())).Commit()
	s.note("one that changes nothing", (*pb.TxnResponse)(r), err)
	all, err := s.c.Get(s.ctx, "", clientv3.WithFromKey())
	s.note("what is left", (*pb.RangeResponse)(all), err)
}

func compactionStory(s *teller) {
	for i := range 6 {
		s.put("a", fmt.Sprint(i))
	}
	for _, rev := range []int64{4, 4, 3, 7, 8, -1} {
		r, err := s.c.Compact(s.ctx, s.rev(rev), clientv3.WithCompactPhysical())
		s.note(fmt.Sprint("compact ", rev), (*pb.CompactionResponse)(r), err)
	}
	for rev := range int64(9) {
		r, err := s.c.Get(s.ctx, "a", clientv3.WithRev(s.rev(rev)))
		s.note(fmt.Sprint("get at ", rev), (*pb.RangeResponse)(r), err)
	}
}

// TestAFreshServer: etcd's first revisions, which no story that is told on a
// server with a past can see.
func TestAFreshServer(t *testing.T) {
	t.Parallel()
	var told [][]string
	for _, s := range []*side{startEtcd(t), startSolo(t, etcdapi.Limits{})} {
		tell := &teller{T: t, side: s, ctx: within(t), c: s.client, frame: frame{base: 1}}
		r, err := s.client.Get(tell.ctx, "a")
		tell.note("an empty space", (*pb.RangeResponse)(r), err)
		for _, rev := range []int64{1, 2, -1} {
			r, err = s.client.Get(tell.ctx, "a", clientv3.WithRev(rev))
			tell.note(fmt.Sprint("at ", rev), (*pb.RangeResponse)(r), err)
		}
		for _, rev := range []int64{0, 0, 1, 1, 2} {
			c, err := s.client.Compact(tell.ctx, rev)
			tell.note(fmt.Sprint("compact ", rev), (*pb.CompactionResponse)(c), err)
		}
		w := s.client.Watch(tell.ctx, "a", clientv3.WithRev(1), clientv3.WithCreatedNotify())
		tell.notef("created at %d", (<-w).Header.Revision)
		tell.equal("first revision", int64(2), tell.put("a", ""))
		tell.notef("first event at %d", (<-w).Events[0].Kv.ModRevision)
		told = append(told, tell.notes)
	}
	if diff := cmp.Diff(told[0], told[1]); diff != "" {
		t.Errorf("(-etcd +balsa):\n%s", diff)
	}
}

// next is the next response of a watch.
func (s *teller) next(w clientv3.WatchChan) clientv3.WatchResponse {
	s.Helper()
	select {
	case r, open := <-w:
		if !open {
			s.Fatalf("a watch of %s has ended", s.name)
		}
		return r
	case <-time.After(patience):
		s.Fatalf("a watch of %s delivers nothing", s.name)
	}
	return clientv3.WatchResponse{}
}
