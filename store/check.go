package store

import (
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// CheckLimits says how Apply would refuse a transaction for its form and size,
// whatever the space holds: OUTCOME_LIMIT or OUTCOME_INVALID and the reason in
// words, else OUTCOME_OK. With CheckWrites it spares the log what cannot be
// carried out.
func (sp *Space) CheckLimits(txn *internalv1.Txn) (internalv1.CommandResult_Outcome, string) {
	if no := sp.limits.checkSize(txn); no != nil {
		return no.outcome, no.message
	}
	return internalv1.CommandResult_OUTCOME_OK, ""
}

// CheckWrites says why Apply would refuse a transaction for a key that it writes
// twice; empty when it does not. Its work grows with the nesting of the
// transaction: check the limits first.
func CheckWrites(txn *internalv1.Txn) string {
	if no := checkWrites(txn); no != nil {
		return no.message
	}
	return ""
}

// check is what can be said about a transaction without looking at the space:
// limits, and keys that it would write twice. The rules are etcd's.
func (l Limits) check(txn *internalv1.Txn) *refusal {
	if no := l.checkSize(txn); no != nil {
		return no
	}
	return checkWrites(txn)
}

func (l Limits) checkSize(txn *internalv1.Txn) *refusal {
	bytes := 0
	if no := l.checkTxn(txn, l.TxnOps, &bytes); no != nil {
		return no
	}
	if bytes > l.TxnBytes {
		return refuse(internalv1.CommandResult_OUTCOME_LIMIT, "the transaction puts %d bytes, more than %d", bytes, l.TxnBytes)
	}
	return nil
}

func checkWrites(txn *internalv1.Txn) *refusal {
	for _, ops := range [][]*internalv1.Op{txn.GetSuccess(), txn.GetFailure()} {
		if _, no := collectWrites(ops); no != nil {
			return no
		}
	}
	return nil
}

// checkTxn checks a transaction that may have so many ops. What nests in it may
// have what is left, which bounds the depth as well.
func (l Limits) checkTxn(txn *internalv1.Txn, ops int, bytes *int) *refusal {
	n := max(len(txn.GetCompares()), len(txn.GetSuccess()), len(txn.GetFailure()))
	if n > ops {
		return refuse(internalv1.CommandResult_OUTCOME_LIMIT, "the transaction has %d operations where %d of %d are left", n, ops, l.TxnOps)
	}
	for _, c := range txn.GetCompares() {
		if no := l.checkCompare(c); no != nil {
			return no
		}
	}
	for _, branch := range [][]*internalv1.Op{txn.GetSuccess(), txn.GetFailure()} {
		for _, op := range branch {
			if no := l.checkOp(op, ops-n, bytes); no != nil {
				return no
			}
		}
	}
	return nil
}

func (l Limits) checkCompare(c *internalv1.Compare) *refusal {
	if c.GetTarget() == internalv1.Compare_TARGET_UNSPECIFIED {
		return invalid("the compare of key %q has no target", c.GetKey())
	}
	if c.GetResult() == internalv1.Compare_RESULT_UNSPECIFIED {
		return invalid("the compare of key %q has no result", c.GetKey())
	}
	return l.checkKeys(c.GetKey(), c.GetRangeEnd())
}

func (l Limits) checkOp(op *internalv1.Op, ops int, bytes *int) *refusal {
	switch op := op.GetOp().(type) {
	case *internalv1.Op_Put:
		*bytes += len(op.Put.GetKey()) + len(op.Put.GetValue())
		return l.checkPut(op.Put)
	case *internalv1.Op_DeleteRange:
		return l.checkKeys(op.DeleteRange.GetKey(), op.DeleteRange.GetRangeEnd())
	case *internalv1.Op_Range:
		return l.checkKeys(op.Range.GetKey(), op.Range.GetRangeEnd())
	case *internalv1.Op_Txn:
		return l.checkTxn(op.Txn, ops, bytes)
	}
	return invalid("the transaction has an empty operation")
}

func (l Limits) checkPut(p *internalv1.Put) *refusal {
	if n := len(p.GetValue()); n > l.ValueBytes {
		return refuse(internalv1.CommandResult_OUTCOME_LIMIT, "the value of key %q has %d bytes, more than %d", p.GetKey(), n, l.ValueBytes)
	}
	if p.GetIgnoreValue() && len(p.GetValue()) > 0 {
		return invalid("the put of key %q has a value and ignore_value: give one of them", p.GetKey())
	}
	if p.GetIgnoreLease() && p.GetLease() != 0 {
		return invalid("the put of key %q has a lease and ignore_lease: give one of them", p.GetKey())
	}
	return l.checkKeys(p.GetKey(), nil)
}

func (l Limits) checkKeys(key, rangeEnd []byte) *refusal {
	if len(key) == 0 {
		return invalid("a key is empty")
	}
	if n := max(len(key), len(rangeEnd)); n > l.KeyBytes {
		return refuse(internalv1.CommandResult_OUTCOME_LIMIT, "key %.64q... has %d bytes, more than %d", key, n, l.KeyBytes)
	}
	return nil
}

// writes is what the ops of a branch put and delete, whichever way its nested
// transactions go.
type writes struct {
	puts    map[string]bool
	deletes intervals[struct{}]
}

// collectWrites refuses ops that put a key twice, or put a key that another op
// deletes, as etcd does, to the letter:
//   - the two branches of a nested transaction may put the same key;
//   - a nested transaction may delete what an earlier nested one has put;
//   - a delete without an upper end collides with nothing, because etcd reads
//     its end "\x00" as a key here.
//
// So a key can change more than once in a revision, and the log allows for it.
func collectWrites(ops []*internalv1.Op) (writes, *refusal) {
	w := writes{puts: make(map[string]bool)}
	for _, op := range ops {
		if d := op.GetDeleteRange(); d != nil {
			w.deletes.set(literalSpan(borrowed(d.GetKey()), borrowed(d.GetRangeEnd())), struct{}{})
		}
	}
	for _, op := range ops {
		if txn := op.GetTxn(); txn != nil {
			if no := w.collectNested(txn); no != nil {
				return w, no
			}
		}
	}
	for _, op := range ops {
		if p := op.GetPut(); p != nil {
			if no := w.put(borrowed(p.GetKey()), nil); no != nil {
				return w, no
			}
		}
	}
	return w, nil
}

func literalSpan(key, rangeEnd string) span {
	if rangeEnd == "" {
		return oneKey(key)
	}
	return span{start: key, end: rangeEnd}
}

func (w *writes) collectNested(txn *internalv1.Txn) *refusal {
	success, no := collectWrites(txn.GetSuccess())
	if no != nil {
		return no
	}
	failure, no := collectWrites(txn.GetFailure())
	if no != nil {
		return no
	}
	if no := w.putAll(success.puts, nil); no != nil {
		return no
	}
	if no := w.putAll(failure.puts, success.puts); no != nil {
		return no
	}
	w.deletes.merge(success.deletes)
	w.deletes.merge(failure.deletes)
	return nil
}

// putAll adds keys that may stand in other already. The refusal names the
// smallest key that collides: the order of a map must not show in a result.
func (w *writes) putAll(keys, other map[string]bool) *refusal {
	var first *refusal
	smallest := ""
	for key := range keys {
		no := w.put(key, other)
		if no != nil && (first == nil || key < smallest) {
			first, smallest = no, key
		}
	}
	return first
}

func (w *writes) put(key string, other map[string]bool) *refusal {
	if w.puts[key] && !other[key] {
		return invalid("duplicate key %q in the transaction", key)
	}
	if w.deletes.touches(key) {
		return invalid("duplicate key %q in the transaction: it is put and deleted", key)
	}
	w.puts[key] = true
	return nil
}
