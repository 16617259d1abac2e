package etcdapi

import (
	"context"
	"iter"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// checkEvery is after how many keys a range looks whether its client is still
// waiting.
const checkEvery = 4096

// keyed is a request that names a key, or with a range end a range: up to that
// end, or "\x00" for no end.
type keyed interface {
	GetKey() []byte
	GetRangeEnd() []byte
}

// bounds are the keys start <= key < end that a request names; an empty end is
// no upper end.
func bounds(k keyed) (start, end string) {
	start, end = string(k.GetKey()), string(k.GetRangeEnd())
	switch end {
	case "":
		end = start + "\x00"
	case "\x00":
		end = ""
	}
	return start, end
}

// keysIn yields the keys of a request, at most limit of them; 0 is no limit.
func keysIn(view store.View, k keyed, limit int) iter.Seq[store.KV] {
	if len(k.GetRangeEnd()) == 0 {
		return func(yield func(store.KV) bool) {
			if kv, ok := view.Get(string(k.GetKey())); ok {
				yield(kv)
			}
		}
	}
	start, end := bounds(k)
	if end != "" && end <= start {
		return func(func(store.KV) bool) {}
	}
	return view.Range(start, end, limit)
}

// countRange is how many keys the range has, whatever limit and filters leave.
func countRange(view store.View, k keyed) int64 {
	if len(k.GetRangeEnd()) == 0 {
		if _, ok := view.Get(string(k.GetKey())); ok {
			return 1
		}
		return 0
	}
	start, end := bounds(k)
	if end != "" && end <= start {
		return 0
	}
	return int64(view.Count(start, end))
}

// viewAt is the view of a request's revision; 0 and less is the newest.
func viewAt(now store.View, revision int64) (store.View, error) {
	if revision <= 0 {
		return now, nil
	}
	return now.At(store.Revision(revision))
}

// readRange answers a range from a view. Its header has only the revision.
func readRange(ctx context.Context, now store.View, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	view, err := viewAt(now, r.GetRevision())
	if err != nil {
		return nil, err
	}
	response := &pb.RangeResponse{
		Header: &pb.ResponseHeader{Revision: int64(now.Revision())},
		Count:  countRange(view, r),
	}
	if r.GetCountOnly() {
		return response, nil
	}
	op := rangeOp(r)
	found, err := collect(ctx, view, op)
	if err != nil {
		return nil, err
	}
	store.SortKeys(op, found)
	if limit := r.GetLimit(); limit > 0 && int64(len(found)) > limit {
		found, response.More = found[:limit], true
	}
	response.Kvs = make([]*mvccpb.KeyValue, len(found))
	for i, kv := range found {
		response.Kvs[i] = rangeKV(r, kv)
	}
	return response, nil
}

// collect is what a range finds before it is sorted and cut: as etcd does, only a
// range that is neither sorted nor filtered stops early, one key behind its
// limit.
func collect(ctx context.Context, view store.View, r *internalv1.Range) ([]store.KV, error) {
	most := 0
	if limit := r.GetLimit(); limit > 0 && limit < math.MaxInt32 && !store.Sifts(r) {
		most = int(limit) + 1
	}
	var found []store.KV
	seen := 0
	for kv := range keysIn(view, r, most) {
		if seen++; seen%checkEvery == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if store.Passes(r, kv) {
			found = append(found, kv)
		}
	}
	return found, nil
}

// rangeKV is a key as a range returns it. With keys_only etcd reads its index
// alone, which has no leases, unless it needs the values to sort by them.
func rangeKV(r *pb.RangeRequest, kv store.KV) *mvccpb.KeyValue {
	found := viewKV(kv)
	stripKey(r, found)
	return found
}

func stripKey(r *pb.RangeRequest, kv *mvccpb.KeyValue) {
	if !r.GetKeysOnly() {
		return
	}
	kv.Value = nil
	if r.GetSortTarget() != pb.RangeRequest_VALUE {
		kv.Lease = 0
	}
}

// sorted says that a range is read whole and sorted before it is cut. A target
// without an order sorts only what the limit has let through.
func sorted(r *pb.RangeRequest) bool {
	switch r.GetSortOrder() {
	case pb.RangeRequest_NONE:
		return false
	case pb.RangeRequest_ASCEND:
		return r.GetSortTarget() != pb.RangeRequest_KEY
	}
	return true
}

func filtered(r *pb.RangeRequest) bool {
	return r.GetMinModRevision() != 0 || r.GetMaxModRevision() != 0 || r.GetMinCreateRevision() != 0 || r.GetMaxCreateRevision() != 0
}

// rangeOp is a range as the store has it.
func rangeOp(r *pb.RangeRequest) *internalv1.Range {
	op := &internalv1.Range{
		Key: r.GetKey(), RangeEnd: r.GetRangeEnd(), Limit: r.GetLimit(), Revision: r.GetRevision(),
		KeysOnly: r.GetKeysOnly(), CountOnly: r.GetCountOnly(),
		SortTarget:     internalv1.Range_SortTarget(r.GetSortTarget()),
		MinModRevision: r.GetMinModRevision(), MaxModRevision: r.GetMaxModRevision(),
		MinCreateRevision: r.GetMinCreateRevision(), MaxCreateRevision: r.GetMaxCreateRevision(),
	}
	// The order that keys have anyway needs no sorting.
	if sorted(r) {
		op.SortOrder = internalv1.Range_SortOrder(r.GetSortOrder())
	}
	return op
}

// rangeResult is what a range of a logged transaction has found.
func rangeResult(r *pb.RangeRequest, found *internalv1.RangeResult, revision int64) *pb.RangeResponse {
	response := &pb.RangeResponse{
		Header: &pb.ResponseHeader{Revision: revision},
		Count:  found.GetCount(), More: found.GetMore(), Kvs: storedKVs(found.GetKeys()),
	}
	for _, kv := range response.GetKvs() {
		stripKey(r, kv)
	}
	return response
}
