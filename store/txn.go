package store

import (
	"bytes"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// branch is a transaction with its way decided. As in etcd every compare, those
// of nested transactions too, looks at the space as it was before the first op.
type branch struct {
	succeeded bool
	// failed is the first compare that did not hold, found what was there.
	failed uint32
	found  *internalv1.StoredKey
	ops    []*internalv1.Op
	nested []*branch // of the ops that are transactions, in order
}

// applyTxn decides, checks, and then writes: once the first op has run nothing
// can be refused any more.
func (w *writer) applyTxn(req *internalv1.Txn, timeNS int64) (*internalv1.TxnResult, *refusal) {
	if no := w.space.limits.check(req); no != nil {
		return nil, no
	}
	b := w.decide(req)
	need := footprint{}
	if no := w.inspect(b, &need); no != nil {
		return nil, no
	}
	if no := w.afford(need); no != nil {
		return nil, no
	}
	t := w.begin(timeNS)
	result := t.run(b)
	t.commit()
	return result, nil
}

func (w *writer) decide(txn *internalv1.Txn) *branch {
	b := &branch{succeeded: true, ops: txn.GetSuccess()}
	for i, c := range txn.GetCompares() {
		if holds, found := w.compare(c); !holds {
			b.succeeded, b.failed, b.found, b.ops = false, uint32(i), found, txn.GetFailure()
			break
		}
	}
	for _, op := range b.ops {
		if nested := op.GetTxn(); nested != nil {
			b.nested = append(b.nested, w.decide(nested))
		}
	}
	return b
}

// compare says whether c holds, and if not what was found. A range without keys
// compares as one key that does not exist.
func (w *writer) compare(c *internalv1.Compare) (holds bool, found *internalv1.StoredKey) {
	exists := false
	for key, v := range w.st.now(spanIn(c)) {
		exists = true
		if !Holds(c, v.kv(key)) {
			return false, v.stored(key)
		}
	}
	// As in etcd no value compares with anything, not even as unequal.
	if !exists && (c.GetTarget() == internalv1.Compare_TARGET_VALUE || !Holds(c, KV{})) {
		return false, &internalv1.StoredKey{Key: bytes.Clone(c.GetKey())}
	}
	return true, nil
}

// footprint is what the puts of a branch cost, in version.bytes.
type footprint struct {
	puts int64 // what they add to the space, history included
	grow int64 // what they add to the live keys
}

// inspect checks what depends on the space, before anything is written.
func (w *writer) inspect(b *branch, need *footprint) *refusal {
	nested := 0
	for _, op := range b.ops {
		var no *refusal
		switch op := op.GetOp().(type) {
		case *internalv1.Op_Put:
			no = w.inspectPut(op.Put, need)
		case *internalv1.Op_Range:
			no = w.inspectRange(op.Range)
		case *internalv1.Op_Txn:
			no = w.inspect(b.nested[nested], need)
			nested++
		}
		if no != nil {
			return no
		}
	}
	return nil
}

func (w *writer) inspectPut(p *internalv1.Put, need *footprint) *refusal {
	if id := p.GetLease(); id != 0 {
		if _, ok := w.st.leases.get(leaseKey(id)); !ok {
			return refuse(internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND, "there is no lease %d for key %q", id, p.GetKey())
		}
	}
	key := borrowed(p.GetKey())
	old := w.st.get(w.st.rev, key)
	if old == nil && (p.GetIgnoreValue() || p.GetIgnoreLease()) {
		return refuse(internalv1.CommandResult_OUTCOME_KEY_NOT_FOUND, "key %q does not exist, so it has no value or lease to keep", p.GetKey())
	}
	next := &version{value: p.GetValue()}
	if p.GetIgnoreValue() {
		next.value = old.value
	}
	need.puts += next.bytes(key)
	need.grow += next.bytes(key)
	if old != nil {
		need.grow -= old.bytes(key)
	}
	return nil
}

// afford is the quota. Puts that grow the live keys stop short of the reserve,
// the others may use it: a space that is full of live keys still takes status
// updates until compaction makes room. Deletes are not asked.
func (w *writer) afford(need footprint) *refusal {
	o, used := w.space.opts, w.st.bytes()
	if need.puts == 0 {
		return nil
	}
	limit := o.Bytes
	switch {
	case o.Shed:
		used, limit = 0, o.shedLiveBytes()
	case need.grow > 0:
		limit -= o.ReserveBytes
	}
	if used+need.puts <= limit {
		return nil
	}
	return refuse(internalv1.CommandResult_OUTCOME_NO_SPACE,
		"space %q is full: %d bytes used of %d, %d more asked for: delete keys or compact", w.space.name, used, limit, need.puts)
}

func (t *txn) run(b *branch) *internalv1.TxnResult {
	result := &internalv1.TxnResult{Succeeded: b.succeeded, FailedCompare: b.failed, Found: b.found}
	nested := 0
	for _, op := range b.ops {
		r := &internalv1.OpResult{}
		switch op := op.GetOp().(type) {
		case *internalv1.Op_Put:
			r.Result = &internalv1.OpResult_Put{Put: t.runPut(op.Put)}
		case *internalv1.Op_DeleteRange:
			r.Result = &internalv1.OpResult_DeleteRange{DeleteRange: t.runDelete(op.DeleteRange)}
		case *internalv1.Op_Range:
			r.Result = &internalv1.OpResult_Range{Range: t.runRange(op.Range)}
		case *internalv1.Op_Txn:
			r.Result = &internalv1.OpResult_Txn{Txn: t.run(b.nested[nested])}
			nested++
		}
		result.Results = append(result.Results, r)
	}
	return result
}

func (t *txn) runPut(p *internalv1.Put) *internalv1.PutResult {
	result := &internalv1.PutResult{}
	key, value, lease := borrowed(p.GetKey()), p.GetValue(), p.GetLease()
	old := t.get(key)
	if p.GetPrevKv() {
		result.Prev = old.stored(key)
	}
	if p.GetIgnoreValue() && old != nil {
		value = old.value
	}
	if p.GetIgnoreLease() && old != nil {
		lease = old.lease
	}
	t.put(key, value, lease)
	return result
}

func (t *txn) runDelete(d *internalv1.DeleteRange) *internalv1.DeleteRangeResult {
	result := &internalv1.DeleteRangeResult{}
	var keys []string
	for key, v := range t.w.st.now(spanIn(d)) {
		keys = append(keys, key)
		if d.GetPrevKv() {
			result.Prev = append(result.Prev, v.stored(key))
		}
	}
	for _, key := range keys {
		t.delete(key)
	}
	result.Deleted = int64(len(keys))
	return result
}
