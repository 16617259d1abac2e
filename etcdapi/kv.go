package etcdapi

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// kvServer is etcd's KV service. What changes keys is one transaction in the log;
// what only reads is answered from this member's own view of the space, behind
// a read barrier unless the client asked for a serializable read.
type kvServer struct {
	*Server
	pb.UnsafeKVServer
}

// Range reads keys. The revision of its header is the newest of the space, also
// when an older one was read.
func (k *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	view, err := k.viewFor(ctx, r.GetSerializable())
	if err != nil {
		return nil, err
	}
	response, err := readRange(ctx, view, r)
	if err != nil {
		return nil, k.statusOf(err)
	}
	response.Header = k.header(view.Revision())
	return response, nil
}

// viewFor is the space as a read sees it: as new as every write acknowledged
// before, or, when the client asked for no more, as this member has it.
func (s *Server) viewFor(ctx context.Context, serializable bool) (store.View, error) {
	if !serializable {
		if err := s.backend.ReadBarrier(ctx); err != nil {
			return store.View{}, s.statusOf(err)
		}
	}
	return s.space.View(), nil
}

// RangeStream is Range in pieces of one view, whatever is written or compacted
// meanwhile. The last piece has header, count and more.
func (k *kvServer) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	now, err := k.viewFor(stream.Context(), r.GetSerializable())
	if err != nil {
		return err
	}
	view, err := viewAt(now, r.GetRevision())
	if err != nil {
		return k.statusOf(err)
	}
	last, err := k.sendRange(view, r, stream)
	if err != nil {
		return k.statusOf(err)
	}
	last.Header = k.header(now.Revision())
	return stream.Send(&pb.RangeStreamResponse{RangeResponse: last})
}

// sendRange sends what a range finds and returns the piece that is left at the end.
func (k *kvServer) sendRange(view store.View, r *pb.RangeRequest, stream pb.KV_RangeStreamServer) (*pb.RangeResponse, error) {
	piece, sent, bytes := &pb.RangeResponse{Count: countRange(view, r)}, int64(0), 0
	if r.GetCountOnly() {
		return piece, nil
	}
	keys := keysIn(view, r, 0)
	if r.GetSortTarget() != pb.RangeRequest_KEY {
		// As Range: without an order it sorts what the limit has let through.
		op := rangeOp(r)
		found, err := collect(stream.Context(), view, op)
		if err != nil {
			return nil, err
		}
		store.SortKeys(op, found)
		keys = slices.Values(found)
	}
	for kv := range keys {
		if r.GetLimit() > 0 && sent == r.GetLimit() {
			piece.More = true
			break
		}
		if bytes >= k.limits.FragmentBytes {
			if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: piece.Kvs}}); err != nil {
				return nil, err
			}
			piece.Kvs, bytes = nil, 0
		}
		found := rangeKV(r, kv)
		piece.Kvs = append(piece.Kvs, found)
		sent, bytes = sent+1, bytes+len(found.Key)+len(found.Value)
	}
	return piece, nil
}

// Put writes a key.
func (k *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	if err := k.checkSize(&pb.InternalRaftRequest{Put: r}); err != nil {
		return nil, err
	}
	result, err := k.proposeTxn(ctx, &internalv1.Txn{Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: putOp(r)}}}})
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{
		Header: k.header(store.Revision(result.GetRevision())),
		PrevKv: storedKV(result.GetTxn().GetResults()[0].GetPut().GetPrev()),
	}, nil
}

// DeleteRange deletes keys. When there are none it makes no revision.
func (k *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	if err := k.checkSize(&pb.InternalRaftRequest{DeleteRange: r}); err != nil {
		return nil, err
	}
	result, err := k.proposeTxn(ctx, &internalv1.Txn{Success: []*internalv1.Op{{Op: &internalv1.Op_DeleteRange{DeleteRange: deleteOp(r)}}}})
	if err != nil {
		return nil, err
	}
	deleted := result.GetTxn().GetResults()[0].GetDeleteRange()
	return &pb.DeleteRangeResponse{
		Header:  k.header(store.Revision(result.GetRevision())),
		Deleted: deleted.GetDeleted(),
		PrevKvs: storedKVs(deleted.GetPrev()),
	}, nil
}

// proposeTxn carries a transaction through the log. What breaks a limit of the
// store, whatever that holds, never gets there.
func (s *Server) proposeTxn(ctx context.Context, txn *internalv1.Txn) (*internalv1.CommandResult, error) {
	outcome, reason := s.space.CheckLimits(txn)
	if err := s.outcomeError(&internalv1.CommandResult{Outcome: outcome, Message: reason}); err != nil {
		return nil, err
	}
	return s.propose(ctx, &internalv1.Command{Op: &internalv1.Command_Txn{Txn: txn}})
}

// someRequestID is as long as the ids that etcd puts into the header of what it
// logs; they count against the limit of a request.
const someRequestID = 1 << 63

// checkSize is etcd's limit of a request that is logged: of its bytes in the log.
func (s *Server) checkSize(r *pb.InternalRaftRequest) error {
	r.Header = &pb.RequestHeader{ID: someRequestID}
	if proto.Size(r) > s.limits.RequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, known := pb.RangeRequest_SortOrder_name[int32(r.GetSortOrder())]; !known {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, known := pb.RangeRequest_SortTarget_name[int32(r.GetSortTarget())]; !known {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	if sorted(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if filtered(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.GetIgnoreValue() && len(r.GetValue()) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.GetIgnoreLease() && r.GetLease() != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

func putOp(r *pb.PutRequest) *internalv1.Put {
	return &internalv1.Put{
		Key: r.GetKey(), Value: r.GetValue(), Lease: r.GetLease(),
		PrevKv: r.GetPrevKv(), IgnoreValue: r.GetIgnoreValue(), IgnoreLease: r.GetIgnoreLease(),
	}
}

func deleteOp(r *pb.DeleteRangeRequest) *internalv1.DeleteRange {
	return &internalv1.DeleteRange{Key: r.GetKey(), RangeEnd: r.GetRangeEnd(), PrevKv: r.GetPrevKv()}
}

// storedKV is nil for a key that did not exist.
func storedKV(k *internalv1.StoredKey) *mvccpb.KeyValue {
	if k.GetModRevision() == 0 {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: k.GetKey(), Value: k.GetValue(), Lease: k.GetLease(), Version: k.GetVersion(),
		CreateRevision: k.GetCreateRevision(), ModRevision: k.GetModRevision(),
	}
}

func storedKVs(keys []*internalv1.StoredKey) []*mvccpb.KeyValue {
	kvs := make([]*mvccpb.KeyValue, len(keys))
	for i, k := range keys {
		kvs[i] = storedKV(k)
	}
	return kvs
}

func viewKV(kv store.KV) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Lease: kv.Lease, Version: kv.Version,
		CreateRevision: int64(kv.CreateRevision), ModRevision: int64(kv.ModRevision),
	}
}
