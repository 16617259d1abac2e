package etcdtest

import (
	"bytes"
	"math"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// generator draws sequences whose operations meet each other: few keys, few
// leases, revisions near those that exist, and every mistake a client can make.
type generator struct {
	*rand.Rand
	// revision is about what the space has come to.
	revision int64
	// watches says whether the sequence has any: a watch that reads the past costs
	// etcd a tenth of a second.
	watches bool
	// compacted are the revisions that it asked to compact at.
	compacted []int64
}

// streams is how many watch streams a sequence has.
const streams = 2

// sequenceOps is how long a sequence is at most.
const sequenceOps = 60

func drawSequence(seed uint64) []op {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0xba15a)), revision: 1}
	g.watches = g.IntN(3) == 0
	ops := make([]op, 5+g.IntN(sequenceOps-5))
	for i := range ops {
		if ops[i] = g.op(); g.watches && i < streams {
			all := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: g.IntN(2) == 0, WatchId: pick(g, int64(0), 0, 9)}
			ops[i] = op{kind: watchKind, stream: i, msg: &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: all}}}
		}
	}
	return ops
}

func (g *generator) op() op {
	n := 84
	if g.watches {
		n = 100
		if g.IntN(12) == 0 { // watches of what is gone
			return g.compact(max(1, g.revision-int64(g.IntN(6))), false)
		}
	}
	switch n := g.IntN(n); {
	case n < 24:
		g.revision++
		return op{kind: "put", msg: g.put()}
	case n < 40:
		g.revision++
		return op{kind: "txn", msg: g.txn(2)}
	case n < 46:
		g.revision++
		return op{kind: "delete", msg: g.delete()}
	case n < 60:
		return op{kind: "range", msg: g.rangeRequest()}
	case n < 64:
		return op{kind: "rangestream", msg: g.rangeRequest()}
	case n < 68:
		return g.compact(g.aRevision(), g.IntN(4) == 0)
	case n < 84:
		return g.leaseOp(n)
	}
	return g.watchOp()
}

func (g *generator) leaseOp(n int) op {
	switch {
	case n < 73:
		return op{kind: "grant", msg: &pb.LeaseGrantRequest{ID: pick(g, int64(0), 0, 1, 2, 3, 3, -5), TTL: pick(g, int64(600), 600, 3600, 1, 0, -1, 9_000_000_000, 9_000_000_001, math.MaxInt64)}}
	case n < 76:
		g.revision++
		return op{kind: "revoke", msg: &pb.LeaseRevokeRequest{ID: g.lease()}}
	case n < 79:
		return op{kind: "timetolive", msg: &pb.LeaseTimeToLiveRequest{ID: g.lease(), Keys: g.IntN(3) > 0}}
	case n < 81:
		return op{kind: "keepalive", msg: &pb.LeaseKeepAliveRequest{ID: g.lease()}}
	case n < 82:
		return op{kind: "leases", msg: &pb.LeaseLeasesRequest{}}
	case n < 83:
		return op{kind: "hashkv", msg: &pb.HashKVRequest{Revision: g.hashed()}}
	}
	return op{kind: "alarm", msg: &pb.AlarmRequest{}}
}

func (g *generator) watchOp() op {
	o := op{kind: watchKind, stream: g.IntN(streams)}
	switch n := g.IntN(16); {
	case n < 11:
		w := &pb.WatchCreateRequest{
			Key: g.key(), RangeEnd: g.end(), StartRevision: pick(g, 0, g.aRevision(), max(1, g.revision-int64(g.IntN(20)))), PrevKv: g.IntN(2) == 0,
			WatchId: pick(g, int64(0), 0, 0, 0, 1, 2, 7, -3), Fragment: g.IntN(4) == 0, ProgressNotify: g.IntN(4) == 0,
		}
		if g.IntN(4) == 0 {
			w.Filters = append(w.Filters, pick(g, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE, 9))
		}
		o.msg = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: w}}
	case n < 14:
		o.msg = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: pick(g, int64(0), 0, 1, 2, 7, 55)}}}
	default:
		o.msg = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	}
	return o
}

func (g *generator) key() []byte {
	if g.IntN(60) == 0 {
		return pick(g, nil, bytes.Repeat([]byte("k"), 5000), []byte{})
	}
	return []byte(pick(g, "a", "a/1", "a/2", "b", "b\x00", "c", "c/\xff", "\xff\xff", "\x00"))
}

func (g *generator) end() []byte {
	if g.IntN(2) == 0 {
		return nil
	}
	return []byte(pick(g, "\x00", "\x00", "a/2", "a0", "b", "c", "d", "c/\xff\x00", "\xff\xff\xff", "", "\x00\x00"))
}

func (g *generator) value() []byte {
	if g.IntN(100) == 0 {
		return bytes.Repeat([]byte("v"), pick(g, 70_000, 2_000_000))
	}
	return []byte(pick(g, "1", "2", "3", "", "\xfe\x00"))
}

// aRevision is one near those that exist, now, or a mistake.
func (g *generator) aRevision() int64 {
	switch n := g.IntN(30); {
	case n < 15:
		return 0
	case n < 27:
		return g.revision - int64(g.IntN(8)) + 2
	case n < 28:
		return -1
	case n < 29:
		return math.MaxInt64
	}
	return 1
}

func (g *generator) compact(revision int64, physical bool) op {
	g.compacted = append(g.compacted, revision)
	return op{kind: "compact", msg: &pb.CompactionRequest{Revision: revision, Physical: physical}}
}

// hashed is a revision to ask the hash of, at times one that was compacted long ago,
// whose hash etcd remembers.
func (g *generator) hashed() int64 {
	if len(g.compacted) > 1 && g.IntN(2) == 0 {
		return pick(g, g.compacted...)
	}
	return g.aRevision()
}

func (g *generator) lease() int64 {
	return pick(g, int64(0), 1, 1, 2, 3, leaseChosen, leaseChosen+1, 77, -5)
}

func (g *generator) put() *pb.PutRequest {
	p := &pb.PutRequest{Key: g.key(), Value: g.value(), PrevKv: g.IntN(2) == 0}
	switch g.IntN(16) {
	case 0:
		p.IgnoreValue = true
		p.Value = pick(g, nil, nil, []byte("x"))
	case 1:
		p.IgnoreLease = true
		p.Lease = pick(g, int64(0), 0, 1)
	case 2:
		p.IgnoreLease, p.IgnoreValue, p.Value = true, true, nil
	case 3, 4, 5:
		p.Lease = g.lease()
	}
	return p
}

func (g *generator) delete() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.IntN(2) == 0}
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key: g.key(), RangeEnd: g.end(), Limit: pick(g, int64(0), 0, 0, 1, 2, 3, -1), Revision: g.aRevision(),
		Serializable: g.IntN(3) == 0, KeysOnly: g.IntN(5) == 0, CountOnly: g.IntN(8) == 0,
	}
	if g.IntN(3) == 0 {
		r.SortOrder = pick(g, pb.RangeRequest_NONE, pb.RangeRequest_ASCEND, pb.RangeRequest_DESCEND, 3, -1)
		r.SortTarget = pick(g, pb.RangeRequest_KEY, pb.RangeRequest_VERSION, pb.RangeRequest_CREATE, pb.RangeRequest_MOD, pb.RangeRequest_VALUE, 7, -1)
	}
	for _, bound := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
		if g.IntN(10) == 0 {
			*bound = g.aRevision()
		}
	}
	return r
}

func (g *generator) txn(depth int) *pb.TxnRequest {
	t := &pb.TxnRequest{}
	if g.IntN(400) == 0 { // large, and nothing but a read in another
		t.Compare = []*pb.Compare{{Key: g.key(), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: bytes.Repeat([]byte("v"), 2_000_000)}}}
		t.Failure = []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}}}
		return t
	}
	for range g.IntN(3) {
		t.Compare = append(t.Compare, g.compare())
	}
	for range g.IntN(4) {
		t.Success = append(t.Success, g.requestOp(depth))
	}
	for range g.IntN(3) {
		t.Failure = append(t.Failure, g.requestOp(depth))
	}
	if g.IntN(150) == 0 {
		for range 129 {
			t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}})
		}
	}
	return t
}

func (g *generator) requestOp(depth int) *pb.RequestOp {
	switch n := g.IntN(40); {
	case n == 0:
		return &pb.RequestOp{}
	case n < 6 && depth > 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth - 1)}}
	case n < 14:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.delete()}}
	case n < 24:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put()}}
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{Key: g.key(), Result: pick(g, pb.Compare_EQUAL, pb.Compare_GREATER, pb.Compare_LESS, pb.Compare_NOT_EQUAL)}
	if g.IntN(4) == 0 {
		c.RangeEnd = g.end()
	}
	target := g.IntN(5)
	c.Target = pb.Compare_CompareTarget(target)
	switch target {
	case 0:
		c.TargetUnion = &pb.Compare_Version{Version: int64(g.IntN(4))}
	case 1:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: g.aRevision()}
	case 2:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: g.aRevision()}
	case 3:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case 4:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.lease()}
	}
	switch g.IntN(40) {
	case 0:
		c.TargetUnion = nil
	case 1:
		c.Target = pb.Compare_CompareTarget(pick(g, int32(9), -1, 0, 3))
	case 2:
		c.Result = pb.Compare_CompareResult(pick(g, int32(9), -1))
	}
	return c
}

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }
