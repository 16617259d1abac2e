package etcdapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/balsa-run/balsa/store"
)

// b is for keys and values in literals.
func b(s string) []byte { return []byte(s) }

func rangeOf(ops ...func(*pb.RangeRequest)) *pb.RangeRequest {
	r := &pb.RangeRequest{Key: b("a"), RangeEnd: b("z")}
	for _, op := range ops {
		op(r)
	}
	return r
}

func opRange(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opPut(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func opDelete(r *pb.DeleteRangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
}

func opTxn(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func opPutOf(key, value string) *pb.RequestOp {
	return opPut(&pb.PutRequest{Key: b(key), Value: b(value)})
}

// same compares what etcd's clients see of two errors: code and words.
func same(t *testing.T, got, want error) {
	t.Helper()
	if status.Code(got) != status.Code(want) || rpctypes.ErrorDesc(got) != rpctypes.ErrorDesc(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func nested(depth int) *pb.TxnRequest {
	if depth == 0 {
		return &pb.TxnRequest{Success: []*pb.RequestOp{opPutOf("deep", "")}}
	}
	return &pb.TxnRequest{Success: []*pb.RequestOp{opTxn(nested(depth - 1))}}
}

func many(n int, op func(i int) *pb.RequestOp) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, n)
	for i := range ops {
		ops[i] = op(i)
	}
	return ops
}

// TestErrorsAreEtcds tries what is wrong in a request. Revision 2 makes key a, 3
// makes key b; the space is compacted at 3, and the newest revision is 5.
func TestErrorsAreEtcds(t *testing.T) {
	r := newRig(t)
	r.put(t, "a", "1")
	r.put(t, "b", "1")
	r.put(t, "b", "2")
	r.put(t, "b", "3")
	r.compact(t, 3)
	put := func(p *pb.PutRequest) func() error {
		return func() error { _, err := r.kv.Put(soon(t), p); return err }
	}
	get := func(g *pb.RangeRequest) func() error {
		return func() error { _, err := r.kv.Range(soon(t), g); return err }
	}
	del := func(d *pb.DeleteRangeRequest) func() error {
		return func() error { _, err := r.kv.DeleteRange(soon(t), d); return err }
	}
	txn := func(x *pb.TxnRequest) func() error {
		return func() error { _, err := r.kv.Txn(soon(t), x); return err }
	}
	success := func(ops ...*pb.RequestOp) func() error { return txn(&pb.TxnRequest{Success: ops}) }
	compact := func(rev int64) func() error {
		return func() error {
			_, err := r.kv.Compact(soon(t), &pb.CompactionRequest{Revision: rev})
			return err
		}
	}
	rangeStream := func(g *pb.RangeRequest) func() error {
		return func() error {
			s, err := r.kv.RangeStream(soon(t), g)
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
	}
	for _, c := range []struct {
		name string
		call func() error
		want error
	}{
		{"range without key", get(&pb.RangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		{"range in an unknown order", get(&pb.RangeRequest{Key: b("a"), SortOrder: 9}), rpctypes.ErrGRPCInvalidSortOption},
		{"range by an unknown target", get(&pb.RangeRequest{Key: b("a"), SortTarget: 9}), rpctypes.ErrGRPCInvalidSortOption},
		{"range in the future", get(&pb.RangeRequest{Key: b("a"), Revision: 6}), rpctypes.ErrGRPCFutureRev},
		{"range of what is compacted", get(&pb.RangeRequest{Key: b("a"), Revision: 2}), rpctypes.ErrGRPCCompacted},
		{"range at the compacted revision", get(&pb.RangeRequest{Key: b("a"), Revision: 3}), nil},
		{"range before any revision", get(&pb.RangeRequest{Key: b("a"), Revision: -3}), nil},
		{"range with its end before its key", get(&pb.RangeRequest{Key: b("b"), RangeEnd: b("a")}), nil},
		{"range stream without key", rangeStream(&pb.RangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		{"range stream in the future", rangeStream(&pb.RangeRequest{Key: b("a"), Revision: 6}), rpctypes.ErrGRPCFutureRev},
		{"range stream of what is compacted", rangeStream(&pb.RangeRequest{Key: b("a"), Revision: 2}), rpctypes.ErrGRPCCompacted},
		{"range stream in an order", rangeStream(&pb.RangeRequest{Key: b("a"), SortOrder: pb.RangeRequest_DESCEND}),
			status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")},
		{"range stream with a filter", rangeStream(&pb.RangeRequest{Key: b("a"), MinModRevision: 1}),
			status.Error(codes.Unimplemented, "RangeStream does not support revision filters")},
		{"put without key", put(&pb.PutRequest{Value: b("1")}), rpctypes.ErrGRPCEmptyKey},
		{"put with a value to ignore", put(&pb.PutRequest{Key: b("a"), Value: b("1"), IgnoreValue: true}), rpctypes.ErrGRPCValueProvided},
		{"put with a lease to ignore", put(&pb.PutRequest{Key: b("a"), Lease: 1, IgnoreLease: true}), rpctypes.ErrGRPCLeaseProvided},
		{"put that keeps the value of no key", put(&pb.PutRequest{Key: b("c"), IgnoreValue: true}), rpctypes.ErrGRPCKeyNotFound},
		{"put that keeps the lease of no key", put(&pb.PutRequest{Key: b("c"), IgnoreLease: true}), rpctypes.ErrGRPCKeyNotFound},
		{"put with no such lease", put(&pb.PutRequest{Key: b("c"), Lease: 5}), rpctypes.ErrGRPCLeaseNotFound},
		{"put with no such lease to no key", put(&pb.PutRequest{Key: b("c"), Lease: 5, IgnoreValue: true}), rpctypes.ErrGRPCLeaseNotFound},
		{"put of 1.5 MiB", put(&pb.PutRequest{Key: b("c"), Value: make([]byte, DefaultRequestBytes)}), rpctypes.ErrGRPCRequestTooLarge},
		{"put of a long key", put(&pb.PutRequest{Key: make([]byte, store.DefaultKeyBytes+1)}), rpctypes.ErrGRPCRequestTooLarge},
		{"delete without key", del(&pb.DeleteRangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		{"delete of 1.5 MiB", del(&pb.DeleteRangeRequest{Key: make([]byte, DefaultRequestBytes)}), rpctypes.ErrGRPCRequestTooLarge},
		{"compact again", compact(3), rpctypes.ErrGRPCCompacted},
		{"compact the past", compact(-1), rpctypes.ErrGRPCCompacted},
		{"compact the future", compact(6), rpctypes.ErrGRPCFutureRev},
		{"empty transaction", txn(&pb.TxnRequest{}), nil},
		{"transaction with an empty operation", success(&pb.RequestOp{}), rpctypes.ErrGRPCKeyNotFound},
		{"compare without key", txn(&pb.TxnRequest{Compare: []*pb.Compare{{}}}), rpctypes.ErrGRPCEmptyKey},
		{"129 compares", txn(&pb.TxnRequest{Compare: slices.Repeat([]*pb.Compare{{Key: b("a")}}, 129)}), rpctypes.ErrGRPCTooManyOps},
		{"128 puts", success(many(128, func(i int) *pb.RequestOp { return opPutOf(fmt.Sprint("k", i), "") })...), nil},
		{"129 puts", success(many(129, func(i int) *pb.RequestOp { return opPutOf(fmt.Sprint("k", i), "") })...), rpctypes.ErrGRPCTooManyOps},
		{"129 failures", txn(&pb.TxnRequest{Failure: many(129, func(i int) *pb.RequestOp { return opPutOf(fmt.Sprint("k", i), "") })}), rpctypes.ErrGRPCTooManyOps},
		{"nested 127 deep", txn(nested(127)), nil},
		{"nested 128 deep", txn(nested(128)), rpctypes.ErrGRPCTooManyOps},
		{"one key put twice", success(opPutOf("d", "1"), opPutOf("d", "2")), rpctypes.ErrGRPCDuplicateKey},
		{"one key put twice where it is not run", txn(&pb.TxnRequest{Failure: []*pb.RequestOp{opPutOf("d", "1"), opPutOf("d", "2")}}), rpctypes.ErrGRPCDuplicateKey},
		{"one key put and deleted", success(opPutOf("d", "1"), opDelete(&pb.DeleteRangeRequest{Key: b("c"), RangeEnd: b("e")})), rpctypes.ErrGRPCDuplicateKey},
		{"one key put inside and outside", success(opPutOf("d", "1"), opTxn(&pb.TxnRequest{Failure: []*pb.RequestOp{opPutOf("d", "2")}})), rpctypes.ErrGRPCDuplicateKey},
		{"one key put in both branches", success(opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opPutOf("d", "1")}, Failure: []*pb.RequestOp{opPutOf("d", "2")}})), nil},
		{"one key put and everything deleted", success(opPutOf("a", "2"), opPutOf("b", "2"), opDelete(&pb.DeleteRangeRequest{Key: b("w"), RangeEnd: []byte{0}})), nil},
		{"duplicate before lease", success(opPut(&pb.PutRequest{Key: b("d"), Lease: 5}), opPutOf("d", "2")), rpctypes.ErrGRPCDuplicateKey},
		{"lease in a transaction", success(opPut(&pb.PutRequest{Key: b("d"), Lease: 5})), rpctypes.ErrGRPCLeaseNotFound},
		{"ignored value in a transaction", success(opPutOf("e", ""), opPut(&pb.PutRequest{Key: b("none"), IgnoreValue: true})), rpctypes.ErrGRPCKeyNotFound},
		{"future range in a reading transaction", success(opRange(&pb.RangeRequest{Key: b("a"), Revision: math.MaxInt64})), rpctypes.ErrGRPCFutureRev},
		{"future range in a writing transaction", success(opPutOf("e", ""), opRange(&pb.RangeRequest{Key: b("a"), Revision: math.MaxInt64})), rpctypes.ErrGRPCFutureRev},
		{"compacted range in a reading transaction", success(opRange(&pb.RangeRequest{Key: b("a"), Revision: 2})), rpctypes.ErrGRPCCompacted},
		{"compacted range in a writing transaction", success(opPutOf("e", ""), opRange(&pb.RangeRequest{Key: b("a"), Revision: 2})), rpctypes.ErrGRPCCompacted},
		{"negative range in a reading transaction", success(opRange(&pb.RangeRequest{Key: b("a"), Revision: -1})), rpctypes.ErrGRPCCompacted},
		{"negative range in a writing transaction", success(opPutOf("e", ""), opRange(&pb.RangeRequest{Key: b("a"), Revision: -1})), rpctypes.ErrGRPCCompacted},
		{"range by an unknown target in a transaction", success(opRange(&pb.RangeRequest{Key: b("a"), SortTarget: 9})), rpctypes.ErrGRPCInvalidSortOption},
		{"one key put twice in 1.5 MiB", success(opPutOf("d", strings.Repeat("x", DefaultRequestBytes/2)), opPutOf("d", strings.Repeat("x", DefaultRequestBytes/2))), rpctypes.ErrGRPCDuplicateKey},
		{"a long key in a transaction", success(opPutOf(strings.Repeat("k", store.DefaultKeyBytes+1), "")), rpctypes.ErrGRPCRequestTooLarge},
		{"transaction of 1.5 MiB", success(opPutOf("c", strings.Repeat("x", DefaultRequestBytes/2)), opPutOf("d", strings.Repeat("x", DefaultRequestBytes/2))), rpctypes.ErrGRPCRequestTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) { same(t, c.call(), c.want) })
	}
	if _, err := r.kv.Put(soon(t), &pb.PutRequest{Key: b("c"), Value: make([]byte, DefaultRequestBytes+requestOverhead)}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that is too long for gRPC: %v", err)
	}
}

// TestFailuresOfTheGroup: every error of the ports has etcd's code and words, and
// one that nobody expected says nothing of what went wrong.
func TestFailuresOfTheGroup(t *testing.T) {
	r := newRig(t)
	for err, want := range map[error]error{
		ErrNoLeader:                           rpctypes.ErrGRPCNoLeader,
		fmt.Errorf("x: %w", ErrLeaderChanged): rpctypes.ErrGRPCLeaderChanged,
		ErrLeaderLost:                         rpctypes.ErrGRPCTimeoutDueToLeaderFail,
		ErrTimeout:                            rpctypes.ErrGRPCTimeout,
		ErrStopped:                            rpctypes.ErrGRPCStopped,
		ErrTooManyRequests:                    rpctypes.ErrGRPCRequestTooManyRequests,
		ErrTooLarge:                           rpctypes.ErrGRPCRequestTooLarge,
		context.DeadlineExceeded:              status.Error(codes.DeadlineExceeded, "context deadline exceeded"),
		context.Canceled:                      status.Error(codes.Canceled, "context canceled"),
		errors.New("disk /dev/sda has bad blocks"): errInternal,
	} {
		r.group.set(func(g *testGroup) { g.fail = err })
		_, got := r.kv.Put(soon(t), &pb.PutRequest{Key: b("a")})
		same(t, got, want)
		_, got = r.kv.Range(soon(t), &pb.RangeRequest{Key: b("a")})
		same(t, got, want)
		_, got = r.kv.Txn(soon(t), &pb.TxnRequest{Success: []*pb.RequestOp{opRange(rangeOf())}})
		same(t, got, want)
		_, got = r.kv.Compact(soon(t), &pb.CompactionRequest{Revision: 1})
		same(t, got, want)
		if _, err := r.kv.Range(soon(t), &pb.RangeRequest{Key: b("a"), Serializable: true}); err != nil {
			t.Errorf("a serializable read needs nobody else: %v", err)
		}
	}
}

func TestNoSpace(t *testing.T) {
	r := newRig(t, func(c *Config) {
		g := &testGroup{store: store.New(store.Options{Spaces: []store.SpaceOptions{{Name: store.SpaceEtcd, Bytes: 4096}}})}
		c.Space, c.Backend = g.store.Space(store.SpaceEtcd), g
	})
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = r.kv.Put(soon(t), &pb.PutRequest{Key: b(fmt.Sprint("k", i)), Value: make([]byte, 256)})
	}
	same(t, err, rpctypes.ErrGRPCNoSpace)
	if _, err := r.kv.DeleteRange(soon(t), &pb.DeleteRangeRequest{Key: b("k0")}); err != nil {
		t.Errorf("a full space refuses to delete: %v", err)
	}
}

// TestRevisions: revision 1 is the empty space, a write that changes something is
// the next, what changes nothing or fails is none, and every header has the
// newest, whatever revision was read.
func TestRevisions(t *testing.T) {
	r := newRig(t)
	steps := []struct {
		what string
		call func() (*pb.ResponseHeader, error)
		want int64
	}{
		{"range of the empty space", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.Range(soon(t), rangeOf())
			return x.GetHeader(), err
		}, 1},
		{"delete of nothing", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.DeleteRange(soon(t), &pb.DeleteRangeRequest{Key: b("a")})
			return x.GetHeader(), err
		}, 1},
		{"empty transaction", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.Txn(soon(t), &pb.TxnRequest{})
			return x.GetHeader(), err
		}, 1},
		{"put", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.Put(soon(t), &pb.PutRequest{Key: b("a")})
			return x.GetHeader(), err
		}, 2},
		{"the same put", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.Put(soon(t), &pb.PutRequest{Key: b("a")})
			return x.GetHeader(), err
		}, 3},
		{"failed put", func() (*pb.ResponseHeader, error) {
			if _, err := r.kv.Put(soon(t), &pb.PutRequest{Key: b("a"), Lease: 99}); err == nil {
				return nil, errors.New("it did not fail")
			}
			x, err := r.kv.Range(soon(t), rangeOf())
			return x.GetHeader(), err
		}, 3},
		{"range of the past", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.Range(soon(t), &pb.RangeRequest{Key: b("a"), Revision: 2})
			return x.GetHeader(), err
		}, 3},
		{"compaction", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.Compact(soon(t), &pb.CompactionRequest{Revision: 2})
			return x.GetHeader(), err
		}, 3},
		{"delete", func() (*pb.ResponseHeader, error) {
			x, err := r.kv.DeleteRange(soon(t), &pb.DeleteRangeRequest{Key: b("a")})
			return x.GetHeader(), err
		}, 4},
	}
	for _, s := range steps {
		h, err := s.call()
		if err != nil {
			t.Fatalf("%s: %v", s.what, err)
		}
		want := &pb.ResponseHeader{ClusterId: 11, MemberId: 12, Revision: s.want, RaftTerm: 7}
		if diff := cmp.Diff(want, h, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", s.what, diff)
		}
	}
}

// keysOf is the keys of a response, in order.
func keysOf(kvs []*mvccpb.KeyValue) string {
	keys := make([]string, len(kvs))
	for i, kv := range kvs {
		keys[i] = string(kv.GetKey())
	}
	return strings.Join(keys, " ")
}

// TestRange: a has version 3, b is the newest key, d was made first. Revisions: d
// 2, a 3, c 4, a 5, a 6, b 7.
func TestRange(t *testing.T) {
	r := newRig(t)
	for _, kv := range [][2]string{{"d", "1"}, {"a", "x"}, {"c", "3"}, {"a", "y"}, {"a", "4"}, {"b", "2"}} {
		r.put(t, kv[0], kv[1])
	}
	order := func(target pb.RangeRequest_SortTarget, order pb.RangeRequest_SortOrder) func(*pb.RangeRequest) {
		return func(r *pb.RangeRequest) { r.SortTarget, r.SortOrder = target, order }
	}
	limit := func(n int64) func(*pb.RangeRequest) { return func(r *pb.RangeRequest) { r.Limit = n } }
	for _, c := range []struct {
		name  string
		r     *pb.RangeRequest
		keys  string
		more  bool
		count int64
	}{
		{"everything", rangeOf(), "a b c d", false, 4},
		{"one key", &pb.RangeRequest{Key: b("b")}, "b", false, 1},
		{"no key", &pb.RangeRequest{Key: b("bb")}, "", false, 0},
		{"from a key", &pb.RangeRequest{Key: b("b"), RangeEnd: []byte{0}}, "b c d", false, 3},
		{"from the first key", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, "a b c d", false, 4},
		{"the first key alone", &pb.RangeRequest{Key: []byte{0}}, "", false, 0},
		{"end before key", &pb.RangeRequest{Key: b("c"), RangeEnd: b("b")}, "", false, 0},
		{"end at key", &pb.RangeRequest{Key: b("c"), RangeEnd: b("c")}, "", false, 0},
		{"limit", rangeOf(limit(2)), "a b", true, 4},
		{"limit that is met", rangeOf(limit(4)), "a b c d", false, 4},
		{"limit below 0", rangeOf(limit(-1)), "a b c d", false, 4},
		{"limit without end", rangeOf(limit(math.MaxInt64)), "a b c d", false, 4},
		{"limit of one key", &pb.RangeRequest{Key: b("b"), Limit: 1}, "b", false, 1},
		{"keys backwards", rangeOf(order(pb.RangeRequest_KEY, pb.RangeRequest_DESCEND)), "d c b a", false, 4},
		{"keys backwards, cut", rangeOf(order(pb.RangeRequest_KEY, pb.RangeRequest_DESCEND), limit(1)), "d", true, 4},
		{"keys forwards, cut", rangeOf(order(pb.RangeRequest_KEY, pb.RangeRequest_ASCEND), limit(1)), "a", true, 4},
		{"by creation", rangeOf(order(pb.RangeRequest_CREATE, pb.RangeRequest_ASCEND)), "d a c b", false, 4},
		{"by creation, newest", rangeOf(order(pb.RangeRequest_CREATE, pb.RangeRequest_DESCEND), limit(1)), "b", true, 4},
		{"by change", rangeOf(order(pb.RangeRequest_MOD, pb.RangeRequest_ASCEND)), "d c a b", false, 4},
		{"by version", rangeOf(order(pb.RangeRequest_VERSION, pb.RangeRequest_DESCEND)), "a b c d", false, 4},
		{"by value", rangeOf(order(pb.RangeRequest_VALUE, pb.RangeRequest_ASCEND)), "d b c a", false, 4},
		{"by value without an order, cut first", rangeOf(order(pb.RangeRequest_VALUE, pb.RangeRequest_NONE), limit(2)), "b c", true, 4},
		{"changed since", rangeOf(func(r *pb.RangeRequest) { r.MinModRevision = 6 }), "a b", false, 4},
		{"changed until", rangeOf(func(r *pb.RangeRequest) { r.MaxModRevision = 4 }), "c d", false, 4},
		{"made since", rangeOf(func(r *pb.RangeRequest) { r.MinCreateRevision = 4 }), "b c", false, 4},
		{"made until", rangeOf(func(r *pb.RangeRequest) { r.MaxCreateRevision = 3 }, limit(1)), "a", true, 4},
		{"count", rangeOf(func(r *pb.RangeRequest) { r.CountOnly = true; r.Limit = 1 }), "", false, 4},
		{"count of what is filtered", rangeOf(func(r *pb.RangeRequest) { r.CountOnly = true; r.MinModRevision = 7 }), "", false, 4},
		{"past", rangeOf(func(r *pb.RangeRequest) { r.Revision = 3 }), "a d", false, 2},
		{"past, cut", rangeOf(func(r *pb.RangeRequest) { r.Revision = 4; r.Limit = 2 }), "a c", true, 3},
		{"count of the past", rangeOf(func(r *pb.RangeRequest) { r.Revision = 4; r.CountOnly = true }), "", false, 3},
		{"empty past", rangeOf(func(r *pb.RangeRequest) { r.Revision = 1 }), "", false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, serializable := range []bool{false, true} {
				c.r.Serializable = serializable
				got, err := r.kv.Range(soon(t), c.r)
				if err != nil {
					t.Fatal(err)
				}
				if keysOf(got.GetKvs()) != c.keys || got.GetMore() != c.more || got.GetCount() != c.count {
					t.Errorf("got %q, more %v, count %d; want %q, %v, %d", keysOf(got.GetKvs()), got.GetMore(), got.GetCount(), c.keys, c.more, c.count)
				}
			}
		})
	}
}

// TestKeysOnly: without values, and without leases unless they are sorted by value, as
// etcd's index has none.
func TestKeysOnly(t *testing.T) {
	r := newRig(t)
	r.grant(t, 5, 60)
	if _, err := r.kv.Put(soon(t), &pb.PutRequest{Key: b("a"), Value: b("1"), Lease: 5}); err != nil {
		t.Fatal(err)
	}
	for target, lease := range map[pb.RangeRequest_SortTarget]int64{pb.RangeRequest_KEY: 0, pb.RangeRequest_MOD: 0, pb.RangeRequest_VALUE: 5} {
		request := rangeOf(func(r *pb.RangeRequest) { r.KeysOnly = true; r.SortTarget = target })
		want := []*mvccpb.KeyValue{{Key: b("a"), CreateRevision: 2, ModRevision: 2, Version: 1, Lease: lease}}
		got, err := r.kv.Range(soon(t), request)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.GetKvs(), protocmp.Transform()); diff != "" {
			t.Errorf("by %v: %s", target, diff)
		}
		logged, err := r.kv.Txn(soon(t), &pb.TxnRequest{Success: []*pb.RequestOp{opPutOf("zz", ""), opRange(request)}})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, logged.GetResponses()[1].GetResponseRange().GetKvs(), protocmp.Transform()); diff != "" {
			t.Errorf("by %v in a transaction: %s", target, diff)
		}
	}
}

// TestRangeStreamIsRange: the pieces, merged, are what Range answers, also when they
// are small.
func TestRangeStreamIsRange(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.FragmentBytes = 64 })
	for i := range 40 {
		r.put(t, fmt.Sprintf("k%02d", i), strings.Repeat("v", i))
	}
	r.put(t, "k03", "w")
	r.put(t, "k03", "a")
	for name, request := range map[string]*pb.RangeRequest{
		"everything":  rangeOf(),
		"limit":       rangeOf(func(r *pb.RangeRequest) { r.Limit = 17 }),
		"exact limit": rangeOf(func(r *pb.RangeRequest) { r.Limit = 40 }),
		"past":        rangeOf(func(r *pb.RangeRequest) { r.Revision = 20; r.Limit = 3 }),
		"keys only":   rangeOf(func(r *pb.RangeRequest) { r.KeysOnly = true }),
		"count only":  rangeOf(func(r *pb.RangeRequest) { r.CountOnly = true }),
		"by value":    rangeOf(func(r *pb.RangeRequest) { r.SortTarget = pb.RangeRequest_VALUE; r.Limit = 17 }),
		"by version":  rangeOf(func(r *pb.RangeRequest) { r.SortTarget = pb.RangeRequest_VERSION }),
		"one key":     {Key: b("k07")},
		"nothing":     {Key: b("x"), RangeEnd: b("y"), Serializable: true},
	} {
		want, err := r.kv.Range(soon(t), proto.Clone(request).(*pb.RangeRequest))
		if err != nil {
			t.Fatal(err)
		}
		got, pieces, err := rangeStream(r.kv.RangeStream(soon(t), request))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if name == "everything" && pieces < 10 {
			t.Errorf("%d pieces of about 64 bytes", pieces)
		}
	}
}

func rangeStream(s grpc.ServerStreamingClient[pb.RangeStreamResponse], err error) (*pb.RangeResponse, int, error) {
	whole, pieces := &pb.RangeResponse{}, 0
	for err == nil {
		var r *pb.RangeStreamResponse
		if r, err = s.Recv(); err == nil {
			pieces++
			proto.Merge(whole, r.GetRangeResponse())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return whole, pieces, err
}

func TestPutAndDelete(t *testing.T) {
	r := newRig(t)
	r.grant(t, 5, 60)
	c, ctx := r.client, soon(t)
	expect := func(what string, err error, got, want *mvccpb.KeyValue) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	p, err := c.Put(ctx, "a", "1", clientv3.WithLease(5), clientv3.WithPrevKV())
	expect("first put", err, p.PrevKv, nil)
	p, err = c.Put(ctx, "a", "2", clientv3.WithIgnoreLease(), clientv3.WithPrevKV())
	expect("second put", err, p.PrevKv, &mvccpb.KeyValue{Key: b("a"), Value: b("1"), CreateRevision: 2, ModRevision: 2, Version: 1, Lease: 5})
	p, err = c.Put(ctx, "a", "", clientv3.WithIgnoreValue())
	expect("third put", err, p.PrevKv, nil)
	g, err := c.Get(ctx, "a")
	expect("get", err, g.Kvs[0], &mvccpb.KeyValue{Key: b("a"), Value: b("2"), CreateRevision: 2, ModRevision: 4, Version: 3})
	r.put(t, "b", "1")
	d, err := c.Delete(ctx, "a", clientv3.WithFromKey(), clientv3.WithPrevKV())
	if err != nil || d.Deleted != 2 || keysOf(d.PrevKvs) != "a b" || d.Header.Revision != 6 {
		t.Errorf("delete: %v, %v", d, err)
	}
	p, err = c.Put(ctx, "a", "3", clientv3.WithPrevKV())
	expect("put after delete", err, p.PrevKv, nil)
	g, err = c.Get(ctx, "a")
	expect("get after delete", err, g.Kvs[0], &mvccpb.KeyValue{Key: b("a"), Value: b("3"), CreateRevision: 7, ModRevision: 7, Version: 1})
	if d, err := c.Delete(ctx, "b", clientv3.WithRange("a")); err != nil || d.Deleted != 0 {
		t.Errorf("delete with its end before its key: %v, %v", d, err)
	}
}

// TestPhysicalCompactionWaits until the member has given back what it forgot.
func TestPhysicalCompactionWaits(t *testing.T) {
	r := newRig(t)
	for i := range 2000 {
		if _, err := r.group.Propose(soon(t), txnCommand(opPutOf("a", fmt.Sprint(i)))); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(soon(t))
	done := make(chan error, 1)
	go func() {
		_, err := r.kv.Compact(ctx, &pb.CompactionRequest{Revision: 2001, Physical: true})
		done <- err
	}()
	space := r.group.store.Space(store.SpaceEtcd)
	eventually(t, "compacted", func() bool { return space.Stats().CompactRevision == 2001 })
	if space.Stats().PurgeRecords == 0 {
		t.Fatal("there is nothing left to wait for: the test tests nothing")
	}
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Fatalf("it did not wait: %v", err)
	}
	r.put(t, "a", "last")
	r.maintain(t)
	if _, err := r.kv.Compact(soon(t), &pb.CompactionRequest{Revision: 2002, Physical: true}); err != nil {
		t.Fatal(err)
	}
	if n := space.Stats().PurgeRecords; n != 0 {
		t.Errorf("%d records are still to be cleared away", n)
	}
}

// TestResponsesOwnTheirBytes: what a client is sent is a copy of nothing that a
// later write changes.
func TestResponsesOwnTheirBytes(t *testing.T) {
	r := newRig(t)
	r.put(t, "a", "1")
	view := r.group.store.Space(store.SpaceEtcd).View()
	response, err := readRange(t.Context(), view, rangeOf())
	if err != nil {
		t.Fatal(err)
	}
	response.Kvs[0].Key[0] = 'x'
	if kv, ok := view.Get("a"); !ok || !bytes.Equal(kv.Value, b("1")) {
		t.Error("the key of a response is the store's own")
	}
}
