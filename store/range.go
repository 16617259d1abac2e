package store

import (
	"bytes"
	"cmp"
	"iter"
	"slices"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// widely tells that a range has to look at all of its keys, however few of them
// it returns.
func widely(r *internalv1.Range) bool {
	return r.GetRevision() > 0 || r.GetSortOrder() != 0 || bounded(r)
}

func bounded(r *internalv1.Range) bool {
	return r.GetMinModRevision() != 0 || r.GetMaxModRevision() != 0 || r.GetMinCreateRevision() != 0 || r.GetMaxCreateRevision() != 0
}

// inspectRange refuses what cannot be read, and what would hold up the log.
func (w *writer) inspectRange(r *internalv1.Range) *refusal {
	rev := Revision(r.GetRevision())
	switch {
	case rev > w.st.rev:
		return refuse(internalv1.CommandResult_OUTCOME_FUTURE_REVISION, "the range from %q is to be read at revision %d, the newest is %d", r.GetKey(), rev, w.st.rev)
	case rev != 0 && rev < w.st.compacted:
		return refuse(internalv1.CommandResult_OUTCOME_COMPACTED, "the range from %q is to be read at revision %d, the oldest is %d", r.GetKey(), rev, w.st.oldest())
	case rev <= 0: // as in etcd -1 is the newest too, until the first compaction
		rev = w.st.rev
	}
	most, limit := w.space.limits.RangeKeys, r.GetLimit()
	if !widely(r) && (r.GetCountOnly() || limit > 0 && limit <= int64(most)) {
		return nil
	}
	if n := w.st.countTo(rev, spanIn(r), most+1); n > most {
		return refuse(internalv1.CommandResult_OUTCOME_LIMIT,
			"the range from %q has more than the %d keys that a transaction may return, sort, or read from the past: set a limit, or ask for less", r.GetKey(), most)
	}
	return nil
}

// countTo counts the keys of a span at a revision; when there are many it stops
// at enough of them.
func (s *state) countTo(rev Revision, sp span, enough int) int {
	if rev == s.rev {
		return s.live.count(sp)
	}
	n := 0
	for range s.at(rev, sp) {
		if n++; n == enough {
			break
		}
	}
	return n
}

// at walks the versions of a span that an op sees: what the transaction has made
// of them for revision 0, else those of a revision before it.
func (t *txn) at(rev Revision, s span) iter.Seq2[string, *version] {
	if rev == 0 || !t.changes() {
		return t.w.st.at(cmp.Or(rev, t.w.st.rev), s)
	}
	return t.w.st.then(rev, s)
}

func (t *txn) count(rev Revision, s span) (n int) {
	if rev == 0 {
		return t.w.st.live.count(s)
	}
	for range t.at(rev, s) {
		n++
	}
	return n
}

func (t *txn) runRange(r *internalv1.Range) *internalv1.RangeResult {
	s, rev, limit := spanIn(r), Revision(max(0, r.GetRevision())), r.GetLimit()
	result := &internalv1.RangeResult{Count: int64(t.count(rev, s))}
	if r.GetCountOnly() {
		return result
	}
	// As etcd does: what is sorted or bounded is read whole before it is cut.
	whole := limit <= 0 || r.GetSortOrder() != 0 || bounded(r)
	var found []rangeKey
	for key, v := range t.at(rev, s) {
		if within(r, v) {
			found = append(found, rangeKey{key, v})
		}
		if !whole && int64(len(found)) > limit {
			break
		}
	}
	sortKeys(r, found)
	if limit > 0 && int64(len(found)) > limit {
		found, result.More = found[:limit], true
	}
	for _, k := range found {
		stored := k.v.stored(k.key)
		if r.GetKeysOnly() {
			stored.Value = nil
		}
		result.Keys = append(result.Keys, stored)
	}
	return result
}

type rangeKey struct {
	key string
	v   *version
}

func within(r *internalv1.Range, v *version) bool {
	return inBounds(v.mod, r.GetMinModRevision(), r.GetMaxModRevision()) &&
		inBounds(v.create, r.GetMinCreateRevision(), r.GetMaxCreateRevision())
}

// inBounds tells least <= rev <= most, where 0 is no bound.
func inBounds(rev Revision, least, most int64) bool {
	return (least == 0 || int64(rev) >= least) && (most == 0 || int64(rev) <= most)
}

// sortKeys puts keys that are in order into the order that is asked for.
func sortKeys(r *internalv1.Range, found []rangeKey) {
	target, order := r.GetSortTarget(), r.GetSortOrder()
	switch {
	case order == internalv1.Range_SORT_ORDER_DESCEND && target == internalv1.Range_SORT_TARGET_UNSPECIFIED:
		slices.Reverse(found)
	case order == internalv1.Range_SORT_ORDER_DESCEND:
		slices.SortStableFunc(found, func(a, b rangeKey) int { return compareBy(target, b.v, a.v) })
	case target != internalv1.Range_SORT_TARGET_UNSPECIFIED:
		slices.SortStableFunc(found, func(a, b rangeKey) int { return compareBy(target, a.v, b.v) })
	}
}

func compareBy(target internalv1.Range_SortTarget, a, b *version) int {
	switch target {
	case internalv1.Range_SORT_TARGET_VERSION:
		return cmp.Compare(a.number, b.number)
	case internalv1.Range_SORT_TARGET_CREATE:
		return cmp.Compare(a.create, b.create)
	case internalv1.Range_SORT_TARGET_MOD:
		return cmp.Compare(a.mod, b.mod)
	case internalv1.Range_SORT_TARGET_VALUE:
		return bytes.Compare(a.value, b.value)
	}
	return 0
}
