package storetest

import (
	"bytes"
	"cmp"
	"slices"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// selective tells that a range looks at more keys than it may return.
func selective(q *internalv1.Range) bool {
	return q.GetSortOrder() != 0 || q.GetMinModRevision() != 0 || q.GetMaxModRevision() != 0 ||
		q.GetMinCreateRevision() != 0 || q.GetMaxCreateRevision() != 0
}

// unreadable is why a range cannot be read; 0 for none.
func (m *Model) unreadable(s *modelSpace, q *internalv1.Range) internalv1.CommandResult_Outcome {
	if q == nil {
		return 0
	}
	rev := store.Revision(q.GetRevision())
	switch {
	case rev > s.rev():
		return internalv1.CommandResult_OUTCOME_FUTURE_REVISION
	case rev != 0 && rev < s.compacted: // -1 while nothing is compacted, as etcd has it
		return internalv1.CommandResult_OUTCOME_COMPACTED
	case rev <= 0:
		rev = s.rev()
	}
	if len(pickCommand(s.states[rev], q.GetKey(), q.GetRangeEnd())) <= m.limits.RangeKeys {
		return 0
	}
	few := q.GetCountOnly() || q.GetLimit() > 0 && q.GetLimit() <= int64(m.limits.RangeKeys)
	if few && q.GetRevision() <= 0 && !selective(q) {
		return 0
	}
	return internalv1.CommandResult_OUTCOME_LIMIT
}

func (t *modelTxn) opRange(q *internalv1.Range) *internalv1.OpResult {
	state := t.state
	if q.GetRevision() > 0 {
		state = t.s.states[q.GetRevision()]
	}
	kvs := pickCommand(state, q.GetKey(), q.GetRangeEnd())
	r := &internalv1.RangeResult{Count: int64(len(kvs))}
	if q.GetCountOnly() {
		return &internalv1.OpResult{Result: &internalv1.OpResult_Range{Range: r}}
	}
	limit := len(kvs)
	if q.GetLimit() > 0 {
		limit = min(limit, int(q.GetLimit()))
	}
	if !selective(q) {
		kvs = kvs[:min(len(kvs), limit+1)] // etcd sorts what it has read
	}
	kvs = slices.DeleteFunc(kvs, func(kv store.KV) bool { return !admits(q, kv) })
	arrange(q, kvs)
	r.More = len(kvs) > limit
	for _, kv := range kvs[:min(len(kvs), limit)] {
		if q.GetKeysOnly() {
			kv.Value = nil
		}
		r.Keys = append(r.Keys, stored(kv))
	}
	return &internalv1.OpResult{Result: &internalv1.OpResult_Range{Range: r}}
}

func admits(q *internalv1.Range, kv store.KV) bool {
	mod, create := int64(kv.ModRevision), int64(kv.CreateRevision)
	return !(q.GetMinModRevision() != 0 && mod < q.GetMinModRevision() ||
		q.GetMaxModRevision() != 0 && mod > q.GetMaxModRevision() ||
		q.GetMinCreateRevision() != 0 && create < q.GetMinCreateRevision() ||
		q.GetMaxCreateRevision() != 0 && create > q.GetMaxCreateRevision())
}

func arrange(q *internalv1.Range, kvs []store.KV) {
	slices.SortFunc(kvs, func(a, b store.KV) int {
		order := 0
		switch q.GetSortTarget() {
		case internalv1.Range_SORT_TARGET_UNSPECIFIED:
			order = cmp.Compare(a.Key, b.Key)
		case internalv1.Range_SORT_TARGET_VERSION:
			order = cmp.Compare(a.Version, b.Version)
		case internalv1.Range_SORT_TARGET_CREATE:
			order = cmp.Compare(a.CreateRevision, b.CreateRevision)
		case internalv1.Range_SORT_TARGET_MOD:
			order = cmp.Compare(a.ModRevision, b.ModRevision)
		case internalv1.Range_SORT_TARGET_VALUE:
			order = bytes.Compare(a.Value, b.Value)
		}
		if q.GetSortOrder() == internalv1.Range_SORT_ORDER_DESCEND {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.Key, b.Key))
	})
}
