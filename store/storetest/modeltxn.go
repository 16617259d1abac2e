package storetest

import (
	"slices"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// txn is a transaction in the model: refuse, decide, then run.
func (m *Model) txn(s *modelSpace, txn *internalv1.Txn, r *internalv1.CommandResult) {
	if bad := m.malformed(txn, m.limits.TxnOps); bad != 0 {
		r.Outcome = bad
		return
	}
	if putBytes(txn) > m.limits.TxnBytes {
		r.Outcome = internalv1.CommandResult_OUTCOME_LIMIT
		return
	}
	if collides(txn.GetSuccess()) || collides(txn.GetFailure()) {
		r.Outcome = internalv1.CommandResult_OUTCOME_INVALID
		return
	}
	flat := m.flatten(s, txn)
	if bad := m.impossible(s, flat); bad != 0 {
		r.Outcome = bad
		return
	}
	before := s.now()
	t := m.begin(s)
	r.Txn = t.run(txn, before)
	t.commit()
}

func putBytes(txn *internalv1.Txn) int {
	sum := 0
	for _, op := range slices.Concat(txn.GetSuccess(), txn.GetFailure()) {
		sum += len(op.GetPut().GetKey()) + len(op.GetPut().GetValue())
		sum += putBytes(op.GetTxn())
	}
	return sum
}

func (m *Model) malformed(txn *internalv1.Txn, ops int) internalv1.CommandResult_Outcome {
	n := max(len(txn.GetCompares()), len(txn.GetSuccess()), len(txn.GetFailure()))
	if n > ops {
		return internalv1.CommandResult_OUTCOME_LIMIT
	}
	for _, c := range txn.GetCompares() {
		if c.GetTarget() == 0 || c.GetResult() == 0 {
			return internalv1.CommandResult_OUTCOME_INVALID
		}
		if bad := m.badKeys(c.GetKey(), c.GetRangeEnd()); bad != 0 {
			return bad
		}
	}
	for _, op := range slices.Concat(txn.GetSuccess(), txn.GetFailure()) {
		if bad := m.malformedOp(op, ops-n); bad != 0 {
			return bad
		}
	}
	return 0
}

func (m *Model) malformedOp(op *internalv1.Op, ops int) internalv1.CommandResult_Outcome {
	switch {
	case op.GetPut() != nil:
		p := op.GetPut()
		if len(p.GetValue()) > m.limits.ValueBytes {
			return internalv1.CommandResult_OUTCOME_LIMIT
		}
		if p.GetIgnoreValue() && len(p.GetValue()) > 0 || p.GetIgnoreLease() && p.GetLease() != 0 {
			return internalv1.CommandResult_OUTCOME_INVALID
		}
		return m.badKeys(p.GetKey(), nil)
	case op.GetDeleteRange() != nil:
		return m.badKeys(op.GetDeleteRange().GetKey(), op.GetDeleteRange().GetRangeEnd())
	case op.GetRange() != nil:
		return m.badKeys(op.GetRange().GetKey(), op.GetRange().GetRangeEnd())
	case op.GetTxn() != nil:
		return m.malformed(op.GetTxn(), ops)
	}
	return internalv1.CommandResult_OUTCOME_INVALID
}

func (m *Model) badKeys(key, end []byte) internalv1.CommandResult_Outcome {
	switch {
	case len(key) == 0:
		return internalv1.CommandResult_OUTCOME_INVALID
	case len(key) > m.limits.KeyBytes, len(end) > m.limits.KeyBytes:
		return internalv1.CommandResult_OUTCOME_LIMIT
	}
	return 0
}

// write is a put or a delete, and where in the tree of transactions it stands:
// one step "op number, branch" a level.
type write struct {
	put      bool
	key, end string
	path     []step
}

type step struct {
	op      int
	failure bool
}

// collides compares every write with every other, and says what etcd forbids:
// two puts of a key unless they exclude each other, and a put and a delete of a
// key. A delete may stand below the op it collides with only when it comes later
// in a nested transaction; etcd lets that pass.
func collides(ops []*internalv1.Op) bool {
	all := allWrites(ops, nil)
	for i, a := range all {
		for j, b := range all {
			if i != j && a.put && (b.put && i < j && samePut(a, b) || !b.put && putAndDelete(a, b)) {
				return true
			}
		}
	}
	return false
}

func allWrites(ops []*internalv1.Op, path []step) []write {
	var all []write
	for i, op := range ops {
		at := append(slices.Clone(path), step{op: i})
		switch {
		case op.GetPut() != nil:
			all = append(all, write{put: true, key: string(op.GetPut().GetKey()), path: at})
		case op.GetDeleteRange() != nil:
			d := op.GetDeleteRange()
			key, end := string(d.GetKey()), string(d.GetRangeEnd())
			if end == "" {
				end = key + "\x00"
			}
			all = append(all, write{key: key, end: end, path: at})
		case op.GetTxn() != nil:
			other := append(slices.Clone(path), step{op: i, failure: true})
			all = append(all, allWrites(op.GetTxn().GetSuccess(), at)...)
			all = append(all, allWrites(op.GetTxn().GetFailure(), other)...)
		}
	}
	return all
}

// fork is the first step at which two paths differ.
func fork(a, b []step) int {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	return i
}

func samePut(a, b write) bool {
	i := fork(a.path, b.path)
	return a.key == b.key && a.path[i].op != b.path[i].op
}

func putAndDelete(put, del write) bool {
	if put.key < del.key || put.key >= del.end {
		return false
	}
	i := fork(put.path, del.path)
	p, d := put.path[i:], del.path[i:]
	switch {
	case p[0].op == d[0].op:
		return false // two branches of one transaction
	case len(p) == 1 || len(d) == 1:
		return true // one of them stands at the level where they meet
	}
	return d[0].op < p[0].op
}

// flatten is the ops that will run, nested ones included.
func (m *Model) flatten(s *modelSpace, txn *internalv1.Txn) []*internalv1.Op {
	ops := txn.GetSuccess()
	if failed, _ := firstFailed(txn, s.now()); failed >= 0 {
		ops = txn.GetFailure()
	}
	var flat []*internalv1.Op
	for _, op := range ops {
		if op.GetTxn() != nil {
			flat = append(flat, m.flatten(s, op.GetTxn())...)
		} else {
			flat = append(flat, op)
		}
	}
	return flat
}

func firstFailed(txn *internalv1.Txn, state map[string]store.KV) (int, store.KV) {
	for i, c := range txn.GetCompares() {
		kvs := pickCommand(state, c.GetKey(), c.GetRangeEnd())
		if len(kvs) == 0 {
			absent := store.KV{Key: string(c.GetKey())}
			if c.GetTarget() == internalv1.Compare_TARGET_VALUE || !compareKV(c, absent) {
				return i, absent
			}
		}
		for _, kv := range kvs {
			if !compareKV(c, kv) {
				return i, kv
			}
		}
	}
	return -1, store.KV{}
}

// impossible is why the ops cannot run on the space as it is.
func (m *Model) impossible(s *modelSpace, ops []*internalv1.Op) internalv1.CommandResult_Outcome {
	puts, grow := int64(0), int64(0)
	for _, op := range ops {
		if bad := m.unreadable(s, op.GetRange()); bad != 0 {
			return bad
		}
		p := op.GetPut()
		if p == nil {
			continue
		}
		if _, ok := s.leases[p.GetLease()]; p.GetLease() != 0 && !ok {
			return internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND
		}
		old, exists := s.now()[string(p.GetKey())]
		if !exists && (p.GetIgnoreValue() || p.GetIgnoreLease()) {
			return internalv1.CommandResult_OUTCOME_KEY_NOT_FOUND
		}
		next := store.KV{Key: string(p.GetKey()), Value: p.GetValue()}
		if p.GetIgnoreValue() {
			next.Value = old.Value
		}
		puts, grow = puts+cost(next), grow+cost(next)
		if exists {
			grow -= cost(old)
		}
	}
	return m.unaffordable(s, puts, grow)
}

func (m *Model) unaffordable(s *modelSpace, puts, grow int64) internalv1.CommandResult_Outcome {
	used, limit := s.liveBytes()+s.historyBytes(), s.opts.Bytes
	if s.opts.Shed {
		used, limit = 0, s.opts.Bytes-s.opts.Bytes/4
	} else if grow > 0 {
		limit -= s.opts.ReserveBytes
	}
	if puts > 0 && used+puts > limit {
		return internalv1.CommandResult_OUTCOME_NO_SPACE
	}
	return 0
}

func (t *modelTxn) run(txn *internalv1.Txn, before map[string]store.KV) *internalv1.TxnResult {
	failed, found := firstFailed(txn, before)
	r := &internalv1.TxnResult{Succeeded: failed < 0}
	ops := txn.GetSuccess()
	if failed >= 0 {
		r.FailedCompare, r.Found, ops = uint32(failed), stored(found), txn.GetFailure()
	}
	for _, op := range ops {
		r.Results = append(r.Results, t.op(op, before))
	}
	return r
}

func (t *modelTxn) op(op *internalv1.Op, before map[string]store.KV) *internalv1.OpResult {
	switch {
	case op.GetPut() != nil:
		return t.opPut(op.GetPut())
	case op.GetDeleteRange() != nil:
		d, r := op.GetDeleteRange(), &internalv1.DeleteRangeResult{}
		for _, kv := range pickCommand(t.state, d.GetKey(), d.GetRangeEnd()) {
			if d.GetPrevKv() {
				r.Prev = append(r.Prev, stored(kv))
			}
			r.Deleted++
			t.delete(kv.Key)
		}
		return &internalv1.OpResult{Result: &internalv1.OpResult_DeleteRange{DeleteRange: r}}
	case op.GetRange() != nil:
		return t.opRange(op.GetRange())
	}
	return &internalv1.OpResult{Result: &internalv1.OpResult_Txn{Txn: t.run(op.GetTxn(), before)}}
}

func (t *modelTxn) opPut(p *internalv1.Put) *internalv1.OpResult {
	r := &internalv1.PutResult{}
	old, exists := t.state[string(p.GetKey())]
	if exists && p.GetPrevKv() {
		r.Prev = stored(old)
	}
	value, lease := p.GetValue(), p.GetLease()
	if p.GetIgnoreValue() {
		value = old.Value
	}
	if p.GetIgnoreLease() {
		lease = old.Lease
	}
	t.put(string(p.GetKey()), value, lease)
	return &internalv1.OpResult{Result: &internalv1.OpResult_Put{Put: r}}
}

func stored(kv store.KV) *internalv1.StoredKey {
	return &internalv1.StoredKey{
		Key: []byte(kv.Key), Value: kv.Value, Lease: kv.Lease, Version: kv.Version,
		CreateRevision: int64(kv.CreateRevision), ModRevision: int64(kv.ModRevision),
	}
}
