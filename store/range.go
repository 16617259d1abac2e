package store

import (
	"cmp"
	"iter"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// widely tells that a range has to look at all of its keys, however few of them
// it returns.
func widely(r *internalv1.Range) bool { return r.GetRevision() > 0 || Sifts(r) }

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
	whole := limit <= 0 || Sifts(r)
	var found []KV
	for key, v := range t.at(rev, s) {
		if kv := v.kv(key); Passes(r, kv) {
			found = append(found, kv)
		}
		if !whole && int64(len(found)) > limit {
			break
		}
	}
	SortKeys(r, found)
	if limit > 0 && int64(len(found)) > limit {
		found, result.More = found[:limit], true
	}
	for _, kv := range found {
		stored := kv.stored()
		if r.GetKeysOnly() {
			stored.Value = nil
		}
		result.Keys = append(result.Keys, stored)
	}
	return result
}
