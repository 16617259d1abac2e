package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// Txn carries out a transaction. One that only reads, nested ones too, is
// answered from a view, without an entry in the log.
func (k *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, k.limits.TxnOps); err != nil {
		return nil, err
	}
	if readOnly(r) {
		return k.readTxn(ctx, r)
	}
	if err := k.mayWrite(ctx); err != nil {
		return nil, err
	}
	txn := txnOp(r)
	if reason := store.CheckWrites(txn); reason != "" {
		k.logger.Debug("etcd transaction refused", "reason", reason)
		return nil, rpctypes.ErrGRPCDuplicateKey
	}
	if err := k.checkSize(&pb.InternalRaftRequest{Txn: r}); err != nil {
		return nil, err
	}
	result, err := k.proposeTxn(ctx, txn)
	if err != nil {
		return nil, err
	}
	response := txnResult(r, result)
	response.Header = k.header(store.Revision(result.GetRevision()))
	return response, nil
}

// checkTxn refuses what makes no sense whatever the space holds, but for keys
// that are written twice. ops is how many operations the
// transaction may have; what nests in it may have what it leaves.
func checkTxn(r *pb.TxnRequest, ops int) error {
	n := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if n > ops {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if len(c.GetKey()) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, ops-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, ops int) error {
	switch op := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(op.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(op.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(op.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxn(op.RequestTxn, ops)
	}
	return rpctypes.ErrGRPCKeyNotFound // etcd's words for an empty operation
}

func readOnly(r *pb.TxnRequest) bool {
	return everyRange(r, func(*pb.RangeRequest) bool { return true })
}

// everyRange says whether all operations, nested ones too, are ranges that
// match.
func everyRange(r *pb.TxnRequest, match func(*pb.RangeRequest) bool) bool {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			matches := false
			switch op := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				matches = match(op.RequestRange)
			case *pb.RequestOp_RequestTxn:
				matches = everyRange(op.RequestTxn, match)
			}
			if !matches {
				return false
			}
		}
	}
	return true
}

// readTxn answers a transaction that only reads. It is a serializable read when
// all of its ranges are; one without ranges is not, unlike in etcd, because
// nobody has asked for an old answer.
func (k *kvServer) readTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	ranges := 0
	serializable := everyRange(r, func(r *pb.RangeRequest) bool {
		ranges++
		return r.GetSerializable()
	})
	view, err := k.viewFor(ctx, serializable && ranges > 0)
	if err != nil {
		return nil, err
	}
	response, err := runReads(ctx, view, r)
	if err != nil {
		return nil, k.statusOf(err)
	}
	response.Header = k.header(view.Revision())
	return response, nil
}

func runReads(ctx context.Context, view store.View, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	ops := r.GetSuccess()
	response := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: holdAll(view, r.GetCompare())}
	if !response.Succeeded {
		ops = r.GetFailure()
	}
	for _, op := range ops {
		out := &pb.ResponseOp{}
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			// A range alone takes any negative revision for the newest.
			if rev := store.Revision(op.RequestRange.GetRevision()); rev < 0 && rev < view.LastCompaction() {
				return nil, rpctypes.ErrGRPCCompacted
			}
			found, err := readRange(ctx, view, op.RequestRange)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: found}
		case *pb.RequestOp_RequestTxn:
			nested, err := runReads(ctx, view, op.RequestTxn)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
		response.Responses = append(response.Responses, out)
	}
	return response, nil
}

func holdAll(view store.View, compares []*pb.Compare) bool {
	for _, c := range compareOps(compares) {
		if !holds(view, c) {
			return false
		}
	}
	return true
}

// holds compares as the store does when it applies: every key of the range, or
// one that does not exist.
func holds(view store.View, c *internalv1.Compare) bool {
	exists := false
	for kv := range keysIn(view, c, 0) {
		exists = true
		if !store.Holds(c, kv) {
			return false
		}
	}
	return exists || c.GetTarget() != internalv1.Compare_TARGET_VALUE && store.Holds(c, store.KV{})
}

// txnOp is a transaction as the log has it.
func txnOp(r *pb.TxnRequest) *internalv1.Txn {
	return &internalv1.Txn{Compares: compareOps(r.GetCompare()), Success: branchOps(r.GetSuccess()), Failure: branchOps(r.GetFailure())}
}

func branchOps(branch []*pb.RequestOp) []*internalv1.Op {
	ops := make([]*internalv1.Op, len(branch))
	for i, op := range branch {
		ops[i] = &internalv1.Op{}
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			ops[i].Op = &internalv1.Op_Range{Range: rangeOp(op.RequestRange)}
		case *pb.RequestOp_RequestPut:
			ops[i].Op = &internalv1.Op_Put{Put: putOp(op.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			ops[i].Op = &internalv1.Op_DeleteRange{DeleteRange: deleteOp(op.RequestDeleteRange)}
		case *pb.RequestOp_RequestTxn:
			ops[i].Op = &internalv1.Op_Txn{Txn: txnOp(op.RequestTxn)}
		}
	}
	return ops
}

// compareOps leaves out the compares that always hold.
func compareOps(compares []*pb.Compare) []*internalv1.Compare {
	var ops []*internalv1.Compare
	for _, c := range compares {
		if op := compareOp(c); op != nil {
			ops = append(ops, op)
		}
	}
	return ops
}

// compareOp is a compare as the log has it; nil when it always holds. To etcd a
// result that it does not know always holds, and a target that it does not know
// is always equal, where the log knows neither.
func compareOp(c *pb.Compare) *internalv1.Compare {
	op := &internalv1.Compare{
		Key: c.GetKey(), RangeEnd: c.GetRangeEnd(),
		Target: internalv1.Compare_Target(c.GetTarget() + 1), Result: internalv1.Compare_Result(c.GetResult() + 1),
	}
	_, target := pb.Compare_CompareTarget_name[int32(c.GetTarget())]
	_, result := pb.Compare_CompareResult_name[int32(c.GetResult())]
	switch {
	case !result && c.GetTarget() == pb.Compare_VALUE:
		// Holds for any value, but there must be one.
		op.Target, op.Result = internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_GREATER
		return op
	case !result, !target && c.GetResult() == pb.Compare_EQUAL:
		return nil
	case !target:
		op.Target, op.Result = internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_LESS
		return op
	}
	setOperand(op, c)
	return op
}

// setOperand takes what the target asks for; a field of another target counts
// as absent, which is 0.
func setOperand(op *internalv1.Compare, c *pb.Compare) {
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		op.Number = c.GetVersion()
	case pb.Compare_CREATE:
		op.Number = c.GetCreateRevision()
	case pb.Compare_MOD:
		op.Number = c.GetModRevision()
	case pb.Compare_LEASE:
		op.Number = c.GetLease()
	case pb.Compare_VALUE:
		op.Value = c.GetValue()
	}
}

// txnResult is what a logged transaction came to, without its own header.
func txnResult(r *pb.TxnRequest, result *internalv1.CommandResult) *pb.TxnResponse {
	run := &txnRun{revision: result.GetRevision()}
	if changed(result.GetTxn()) {
		run.revision--
	}
	return run.response(r, result.GetTxn())
}

// changed says whether a transaction has made a revision.
func changed(txn *internalv1.TxnResult) bool {
	for _, r := range txn.GetResults() {
		if r.GetPut() != nil || r.GetDeleteRange().GetDeleted() > 0 || changed(r.GetTxn()) {
			return true
		}
	}
	return false
}

// txnRun goes through the operations of a transaction in the order in which they
// were carried out. The headers of their responses have the revision that the
// operation saw: that of the transaction once something has changed.
type txnRun struct {
	revision int64
	changed  bool
}

func (t *txnRun) change(changes bool) {
	if changes && !t.changed {
		t.changed = true
		t.revision++
	}
}

func (t *txnRun) response(r *pb.TxnRequest, result *internalv1.TxnResult) *pb.TxnResponse {
	ops := r.GetSuccess()
	if !result.GetSucceeded() {
		ops = r.GetFailure()
	}
	// The header of a nested transaction is empty.
	response := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: result.GetSucceeded()}
	for i, op := range ops {
		response.Responses = append(response.Responses, t.op(op, result.GetResults()[i]))
	}
	return response
}

func (t *txnRun) op(op *pb.RequestOp, result *internalv1.OpResult) *pb.ResponseOp {
	switch op := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: rangeResult(op.RequestRange, result.GetRange(), t.revision)}}
	case *pb.RequestOp_RequestPut:
		t.change(true)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{
			Header: &pb.ResponseHeader{Revision: t.revision}, PrevKv: storedKV(result.GetPut().GetPrev()),
		}}}
	case *pb.RequestOp_RequestDeleteRange:
		t.change(result.GetDeleteRange().GetDeleted() > 0)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{
			Header:  &pb.ResponseHeader{Revision: t.revision},
			Deleted: result.GetDeleteRange().GetDeleted(), PrevKvs: storedKVs(result.GetDeleteRange().GetPrev()),
		}}}
	}
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: t.response(op.GetRequestTxn(), result.GetTxn())}}
}
