package etcdtest

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/store"
)

// acceptedDifference is one that is meant, with the reason. One that a long run
// never meets fails it, so the list cannot outlive what it describes.
type acceptedDifference struct {
	name, reason string
	match        func(o op, etcd, balsa answer) bool
	// after, when it is set, has to hold of what the sequence did before as well.
	after func(before []op) bool
	// kills says that etcd does not live through it, rare that a long run may miss it.
	kills, rare bool
	used        int
}

func acceptedDifferences() []*acceptedDifference {
	return []*acceptedDifference{
		{
			name:   "keys longer than the store takes",
			reason: "every key is held in memory by every server; etcd bounds the request only",
			match: func(o op, etcd, balsa answer) bool {
				return longestKey(o.msg.ProtoReflect()) > store.DefaultKeyBytes &&
					balsa.code == codes.InvalidArgument && balsa.message == rpctypes.ErrorDesc(rpctypes.ErrGRPCRequestTooLarge)
			},
		},
		{
			name:   "a large transaction that only reads, in another",
			reason: "etcd puts every transaction that holds another into its log, so the size counts; we answer it as the read that it is, or say why it cannot be read",
			match: func(o op, etcd, balsa answer) bool {
				t, ok := o.msg.(*pb.TxnRequest)
				return ok && (balsa.code == codes.OK || balsa.code == codes.OutOfRange) && etcd.code == codes.InvalidArgument &&
					etcd.message == rpctypes.ErrorDesc(rpctypes.ErrGRPCRequestTooLarge) && onlyReads(t)
			},
		},
		{
			name:   "etcd panics at ignore_value or ignore_lease behind a deletion without end",
			reason: "a mistake of etcd 3.7.3: the transaction's check finds the key, the transaction has deleted it when the put looks for it; we put an empty value, without a lease",
			kills:  true,
			match: func(o op, etcd, _ answer) bool {
				t, ok := o.msg.(*pb.TxnRequest)
				return ok && etcd.code == codes.Unavailable && keepsBehindDeletion(t)
			},
		},
		{
			name: "etcd dies of a key that one transaction has deleted without end and put",
			reason: "a mistake of etcd 3.7.3: a compaction at that revision throws the put away with the deletion, but for its place in the index, " +
				"and who reads the key then ends the server (range failed to find revision pair); we have the key",
			kills: true,
			rare:  true,
			match: func(_ op, etcd, balsa answer) bool {
				return etcd.code == codes.Unavailable && balsa.code != codes.Unavailable
			},
			after: putBehindDeletionIsCompacted,
		},
		{
			name:   "a stream of a range with something to sort by and no order",
			reason: "etcd sorts each part of the stream for itself and goes on behind the last key that it sent, so it counts and sends keys twice; we sort as Range does",
			match: func(o op, etcd, balsa answer) bool {
				r, ok := o.msg.(*pb.RangeRequest)
				return ok && o.kind == "rangestream" && r.GetSortOrder() == pb.RangeRequest_NONE && r.GetSortTarget() != pb.RangeRequest_KEY &&
					etcd.code == codes.OK && balsa.code == codes.OK
			},
		},
		{
			name:   "the hash at a compacted revision",
			reason: "etcd notes the hashes at its last compactions and still tells them; we tell of what can be read",
			match: func(o op, etcd, balsa answer) bool {
				return o.kind == "hashkv" && etcd.code == codes.OK && balsa.code == codes.OutOfRange &&
					balsa.message == rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted)
			},
		},
		{
			name:   "the hash at a negative revision",
			reason: "there is none; etcd hashes the newest and names the negative one, we name what was hashed",
			match: func(o op, etcd, balsa answer) bool {
				h, ok := o.msg.(*pb.HashKVRequest)
				return ok && h.GetRevision() < 0 && etcd.code == codes.OK && balsa.code == codes.OK
			},
		},
	}
}

// onlyReads tells whether nothing in a transaction can write.
func onlyReads(t *pb.TxnRequest) bool {
	for _, o := range append(append([]*pb.RequestOp{}, t.GetSuccess()...), t.GetFailure()...) {
		if o.GetRequestPut() != nil || o.GetRequestDeleteRange() != nil || o.GetRequestTxn() != nil && !onlyReads(o.GetRequestTxn()) {
			return false
		}
	}
	return true
}

// putBehindDeletionIsCompacted tells whether a transaction with both a deletion of every
// key from one on and a put was followed by a compaction.
func putBehindDeletionIsCompacted(before []op) bool {
	suspect := false
	for _, o := range before {
		if t, ok := o.msg.(*pb.TxnRequest); ok {
			deletes, puts, _ := endless(t)
			suspect = suspect || deletes && puts
		}
		if suspect && o.kind == "compact" {
			return true
		}
	}
	return false
}

// keepsBehindDeletion tells whether a transaction has both a deletion of every key
// from one on and a put that keeps the value or the lease.
func keepsBehindDeletion(t *pb.TxnRequest) bool {
	deletes, _, keeps := endless(t)
	return deletes && keeps
}

// endless tells whether a transaction has a deletion of every key from one on, a put, and
// a put that keeps the value or the lease.
func endless(t *pb.TxnRequest) (deletes, puts, keeps bool) {
	var look func([]*pb.RequestOp)
	look = func(ops []*pb.RequestOp) {
		for _, o := range ops {
			deletes = deletes || string(o.GetRequestDeleteRange().GetRangeEnd()) == "\x00"
			puts = puts || o.GetRequestPut() != nil
			keeps = keeps || o.GetRequestPut().GetIgnoreValue() || o.GetRequestPut().GetIgnoreLease()
			look(o.GetRequestTxn().GetSuccess())
			look(o.GetRequestTxn().GetFailure())
		}
	}
	look(t.GetSuccess())
	look(t.GetFailure())
	return deletes, puts, keeps
}

// longestKey is the length of the longest key or end of a range in a request.
func longestKey(m protoreflect.Message) int {
	longest := 0
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() != nil && fd.IsList():
			for i := range v.List().Len() {
				longest = max(longest, longestKey(v.List().Get(i).Message()))
			}
		case fd.Message() != nil:
			longest = max(longest, longestKey(v.Message()))
		case fd.Name() == "key" || fd.Name() == "range_end":
			longest = max(longest, len(v.Bytes()))
		}
		return true
	})
	return longest
}
