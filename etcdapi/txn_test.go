package etcdapi

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// txnCommand is a transaction of these operations for Propose.
func txnCommand(ops ...*pb.RequestOp) *internalv1.Command {
	return &internalv1.Command{Space: store.SpaceEtcd, Op: &internalv1.Command_Txn{Txn: txnOp(&pb.TxnRequest{Success: ops})}}
}

// TestTxnHeaders: each response has the revision that its operation saw, a nested
// transaction none.
func TestTxnHeaders(t *testing.T) {
	r := newRig(t)
	r.put(t, "a", "1") // 2
	get := opRange(&pb.RangeRequest{Key: b("a")})
	nothing := opDelete(&pb.DeleteRangeRequest{Key: b("none")})
	got, err := r.kv.Txn(soon(t), &pb.TxnRequest{Success: []*pb.RequestOp{
		get, nothing, opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{get, opPutOf("b", "1"), get}}), nothing, get,
		opPut(&pb.PutRequest{Key: b("a"), Value: b("2"), PrevKv: true}), get,
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := func(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: rev} }
	seen := func(rev int64, value string, mod int64) *pb.ResponseOp {
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{
			Header: h(rev), Count: 1,
			Kvs: storedKVs([]*internalv1.StoredKey{{Key: b("a"), Value: b(value), CreateRevision: 2, ModRevision: mod, Version: mod - 1}}),
		}}}
	}
	deleted := func(rev int64) *pb.ResponseOp {
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Header: h(rev)}}}
	}
	put := func(rev int64) *pb.ResponseOp {
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: h(rev)}}}
	}
	last := put(3)
	last.GetResponsePut().PrevKv = seen(0, "1", 2).GetResponseRange().GetKvs()[0]
	want := &pb.TxnResponse{
		Header: &pb.ResponseHeader{ClusterId: 11, MemberId: 12, Revision: 3, RaftTerm: 7}, Succeeded: true,
		Responses: []*pb.ResponseOp{
			seen(2, "1", 2), deleted(2),
			{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{
				Header: h(0), Succeeded: true, Responses: []*pb.ResponseOp{seen(2, "1", 2), put(3), seen(3, "1", 2)},
			}}},
			deleted(3), seen(3, "1", 2), last, seen(3, "2", 3),
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestCompares: key a has version 2, creation 2, change 3, value "v", lease 5; key b
// version 1, creation and change 4, value "w".
func TestCompares(t *testing.T) {
	r := newRig(t)
	r.grant(t, 5, 60)
	for _, p := range []*pb.PutRequest{{Key: b("a")}, {Key: b("a"), Value: b("v"), Lease: 5}, {Key: b("b"), Value: b("w")}} {
		if _, err := r.kv.Put(soon(t), p); err != nil {
			t.Fatal(err)
		}
	}
	const unknown = 77
	version, create, mod, lease := func(n int64) *pb.Compare {
		return &pb.Compare{Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: n}}
	},
		func(n int64) *pb.Compare {
			return &pb.Compare{Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: n}}
		},
		func(n int64) *pb.Compare {
			return &pb.Compare{Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: n}}
		},
		func(n int64) *pb.Compare {
			return &pb.Compare{Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{Lease: n}}
		}
	value := func(v string) *pb.Compare {
		return &pb.Compare{Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: b(v)}}
	}
	const eq, gt, lt, ne = pb.Compare_EQUAL, pb.Compare_GREATER, pb.Compare_LESS, pb.Compare_NOT_EQUAL
	for i, c := range []struct {
		compare  *pb.Compare
		key, end string
		result   pb.Compare_CompareResult
		want     bool
	}{
		{version(2), "a", "", eq, true}, {version(2), "a", "", ne, false}, {version(1), "a", "", gt, true}, {version(3), "a", "", lt, true},
		{create(2), "a", "", eq, true}, {create(2), "b", "", eq, false}, {create(2), "b", "", gt, true},
		{mod(3), "a", "", eq, true}, {mod(3), "b", "", lt, false},
		{lease(5), "a", "", eq, true}, {lease(0), "b", "", eq, true}, {lease(5), "b", "", ne, true},
		{value("v"), "a", "", eq, true}, {value("v"), "b", "", gt, true}, {value("v"), "b", "", lt, false}, {value("x"), "a", "", ne, true},
		// What does not exist has version, revisions and lease 0, and no value.
		{version(0), "none", "", eq, true}, {create(0), "none", "", gt, false}, {value(""), "none", "", eq, false}, {value("x"), "none", "", ne, false},
		// All keys of a range.
		{version(0), "a", "z", gt, true}, {version(2), "a", "z", eq, false}, {create(4), "a", "\x00", lt, false}, {mod(2), "a", "\x00", gt, true},
		{version(0), "x", "z", eq, true}, {value("x"), "x", "z", ne, false}, {version(0), "z", "a", eq, true}, {version(2), "z", "a", eq, false},
		{value("a"), "a", "z", gt, true}, {value("v"), "a", "z", gt, false},
		// The operand of another target counts as absent.
		{&pb.Compare{Target: pb.Compare_MOD, TargetUnion: &pb.Compare_Version{Version: 3}}, "a", "", eq, false},
		{&pb.Compare{Target: pb.Compare_VALUE}, "a", "", gt, true},
		// What etcd does not know: a result always holds, a target is equal.
		{version(99), "a", "", unknown, true}, {version(99), "none", "", unknown, true},
		{value("x"), "a", "", unknown, true}, {value("x"), "none", "", unknown, false}, {value("x"), "a", "z", unknown, true},
		{&pb.Compare{Target: unknown}, "a", "", eq, true}, {&pb.Compare{Target: unknown}, "none", "", eq, true},
		{&pb.Compare{Target: unknown}, "a", "", ne, false}, {&pb.Compare{Target: unknown}, "none", "", gt, false}, {&pb.Compare{Target: unknown}, "a", "z", lt, false},
		{&pb.Compare{Target: unknown}, "a", "", unknown, true},
	} {
		c.compare.Key, c.compare.RangeEnd, c.compare.Result = b(c.key), b(c.end), c.result
		for how, txn := range map[string]*pb.TxnRequest{
			"read":   {Compare: []*pb.Compare{c.compare}},
			"logged": {Compare: []*pb.Compare{c.compare}, Success: []*pb.RequestOp{opDelete(&pb.DeleteRangeRequest{Key: b("q")})}, Failure: []*pb.RequestOp{opDelete(&pb.DeleteRangeRequest{Key: b("q")})}},
		} {
			got, err := r.kv.Txn(soon(t), txn)
			if err != nil {
				t.Fatalf("compare %d, %s: %v", i, how, err)
			}
			if got.GetSucceeded() != c.want {
				t.Errorf("compare %d, %s: %v holds: %v", i, how, c.compare, got.GetSucceeded())
			}
		}
	}
}

// TestReadsAreNotLogged: a transaction of ranges, nested ones too, costs a read
// barrier at most.
func TestReadsAreNotLogged(t *testing.T) {
	r := newRig(t)
	r.put(t, "a", "1")
	old := opRange(&pb.RangeRequest{Key: b("a"), Serializable: true})
	for _, c := range []struct {
		name           string
		txn            *pb.TxnRequest
		entries, reads int
	}{
		{"compares alone", &pb.TxnRequest{Compare: []*pb.Compare{{Key: b("a")}}}, 0, 1},
		{"a range", &pb.TxnRequest{Success: []*pb.RequestOp{opRange(rangeOf())}}, 0, 1},
		{"a nested range", &pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Failure: []*pb.RequestOp{opRange(rangeOf())}})}}, 0, 1},
		{"serializable ranges", &pb.TxnRequest{Success: []*pb.RequestOp{old}, Failure: []*pb.RequestOp{old}}, 0, 0},
		{"one that is serializable", &pb.TxnRequest{Success: []*pb.RequestOp{old}, Failure: []*pb.RequestOp{opRange(rangeOf())}}, 0, 1},
		{"a put that is not run", &pb.TxnRequest{Failure: []*pb.RequestOp{opPutOf("a", "2")}}, 1, 0},
		{"a nested put", &pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opPutOf("a", "2")}})}}, 1, 0},
		{"a duplicate key", &pb.TxnRequest{Success: []*pb.RequestOp{opPutOf("a", "2"), opPutOf("a", "2")}}, 0, 0},
	} {
		entries, reads := r.group.counts()
		_, err := r.kv.Txn(soon(t), c.txn)
		if (err != nil) != (c.name == "a duplicate key") {
			t.Errorf("%s: %v", c.name, err)
		}
		moreEntries, moreReads := r.group.counts()
		if moreEntries-entries != c.entries || moreReads-reads != c.reads {
			t.Errorf("%s: %d entries and %d barriers, want %d and %d", c.name, moreEntries-entries, moreReads-reads, c.entries, c.reads)
		}
	}
}

// TestReadsEqualTheStore: what the service answers from a view is what the store
// answers when the same transaction goes through the log. The store is held
// against the naive model by its own suite.
func TestReadsEqualTheStore(t *testing.T) {
	r := newRig(t)
	r.grant(t, 5, 60)
	put := func(t *rapid.T) *pb.RequestOp {
		return opPut(&pb.PutRequest{Key: drawKey(t), Value: drawKey(t), Lease: rapid.SampledFrom([]int64{0, 0, 5}).Draw(t, "lease")})
	}
	rapid.Check(t, func(rt *rapid.T) {
		op := put(rt)
		if rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
			op = opDelete(&pb.DeleteRangeRequest{Key: drawKey(rt), RangeEnd: drawEnd(rt)})
		}
		if _, err := r.group.Propose(rt.Context(), txnCommand(op)); err != nil {
			rt.Fatal(err)
		}
		view := r.group.store.Space(store.SpaceEtcd).View()
		if rapid.IntRange(0, 30).Draw(rt, "compact") == 0 {
			r.kv.Compact(rt.Context(), &pb.CompactionRequest{Revision: int64(view.Revision()) - 5})
		}
		txn := drawReads(rt, int64(view.Revision()), 2)
		// A delete of nothing sends the same reads through the log.
		logged := proto.Clone(txn).(*pb.TxnRequest)
		nothing := opDelete(&pb.DeleteRangeRequest{Key: b("~")})
		logged.Success, logged.Failure = append(logged.Success, nothing), append(logged.Failure, nothing)
		got, gotErr := r.kv.Txn(rt.Context(), txn)
		want, wantErr := r.kv.Txn(rt.Context(), logged)
		if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
			rt.Fatalf("read: %v\nlogged: %v\n%v", gotErr, wantErr, txn)
		}
		if wantErr == nil {
			want.Responses = want.Responses[:len(want.Responses)-1]
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			rt.Fatalf("logged and read: %s\n%v", diff, txn)
		}
	})
}

func drawKey(t *rapid.T) []byte {
	return b(rapid.SampledFrom([]string{"\x00", "a", "a\x00", "b", "c", "d", "e", "\xff"}).Draw(t, "key"))
}

func drawEnd(t *rapid.T) []byte {
	return b(rapid.SampledFrom([]string{"", "", "\x00", "b", "d", "\xff", "\xff\xff"}).Draw(t, "end"))
}

func drawReads(t *rapid.T, newest int64, depth int) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		c := &pb.Compare{
			Key: drawKey(t), RangeEnd: drawEnd(t),
			Target: pb.Compare_CompareTarget(rapid.IntRange(0, 5).Draw(t, "target")), Result: pb.Compare_CompareResult(rapid.IntRange(0, 4).Draw(t, "result")),
		}
		n := rapid.Int64Range(0, newest).Draw(t, "number")
		switch rapid.IntRange(0, 5).Draw(t, "operand") {
		case 0:
			c.TargetUnion = &pb.Compare_Version{Version: n}
		case 1:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
		case 2:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
		case 3:
			c.TargetUnion = &pb.Compare_Lease{Lease: 5}
		case 4:
			c.TargetUnion = &pb.Compare_Value{Value: drawKey(t)}
		}
		txn.Compare = append(txn.Compare, c)
	}
	ops := func() (ops []*pb.RequestOp) {
		for range rapid.IntRange(0, 2).Draw(t, "ops") {
			if depth > 0 && rapid.IntRange(0, 4).Draw(t, "nested") == 0 {
				ops = append(ops, opTxn(drawReads(t, newest, depth-1)))
			} else {
				ops = append(ops, opRange(drawRange(t, newest)))
			}
		}
		return ops
	}
	txn.Success, txn.Failure = ops(), ops()
	return txn
}

func drawRange(t *rapid.T, newest int64) *pb.RangeRequest {
	rev := func(name string) int64 {
		return rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-2, newest+1)).Draw(t, name)
	}
	return &pb.RangeRequest{
		Key: drawKey(t), RangeEnd: drawEnd(t), Limit: rapid.Int64Range(-1, 4).Draw(t, "limit"), Revision: rev("revision"),
		SortOrder:  pb.RangeRequest_SortOrder(rapid.IntRange(0, 2).Draw(t, "order")),
		SortTarget: pb.RangeRequest_SortTarget(rapid.IntRange(0, 4).Draw(t, "sort")),
		KeysOnly:   rapid.Bool().Draw(t, "keysOnly"), CountOnly: rapid.IntRange(0, 5).Draw(t, "countOnly") == 0,
		MinModRevision: rev("minMod"), MaxModRevision: rev("maxMod"), MinCreateRevision: rev("minCreate"), MaxCreateRevision: rev("maxCreate"),
	}
}

// TestPutBehindAnEndlessDeletion: a transaction deletes every key from one on and puts one
// of them again; a compaction at that revision keeps it. (etcd 3.7.3 loses the key, and
// ends itself at the next read of it.)
func TestPutBehindAnEndlessDeletion(t *testing.T) {
	r := newRig(t)
	r.put(t, "c", "1")
	if _, err := r.client.Txn(soon(t)).Then(clientv3.OpDelete("a", clientv3.WithFromKey()), clientv3.OpPut("c", "2")).Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Compact(soon(t), 3); err != nil {
		t.Fatal(err)
	}
	got, err := r.client.Get(soon(t), "c")
	if err != nil || got.Count != 1 || string(got.Kvs[0].Value) != "2" || got.Kvs[0].ModRevision != 3 || got.Kvs[0].CreateRevision != 3 || got.Kvs[0].Version != 1 {
		t.Errorf("%v, %v", got, err)
	}
}
