package storetest

import (
	"fmt"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// binaryKeys are keys that are no text: zero bytes, 0xff, broken UTF-8.
func binaryKeys(s *teller) {
	zero, high, broken := "\x00", "\xff\xff", "\xc3\x28"
	long := "a\x00\xff" + big(97)
	s.ops(2, Put(high, "h"), Put(zero, "z"), Put(broken, "b"), Put(long, "l"))
	s.kvs(0, kv(zero, "z", 2, 2, 1), kv(long, "l", 2, 2, 1), kv(broken, "b", 2, 2, 1), kv(high, "h", 2, 2, 1))

	compare := Number(broken, internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_EQUAL, 9)
	r := s.apply(Txn(suiteSpace, &internalv1.Txn{Compares: []*internalv1.Compare{compare}}), ok).Txn
	s.same([]byte(broken), r.Found.Key)
	compare = Number("\xfe\x00", internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_EQUAL, 9)
	r = s.apply(Txn(suiteSpace, &internalv1.Txn{Compares: []*internalv1.Compare{compare}}), ok).Txn
	s.same([]byte("\xfe\x00"), r.Found.Key)

	r = s.ops(3, Put(broken, "2"), Get(&internalv1.Range{Key: []byte(zero), RangeEnd: []byte("\xff"), KeysOnly: true}))
	s.same([]byte(broken), r.Results[0].GetPut().Prev.Key)
	var keys []string
	for _, k := range r.Results[1].GetRange().Keys {
		keys = append(keys, string(k.Key))
	}
	s.same([]string{zero, long, broken}, keys)
	s.same(int64(2), s.ops(4, Delete("\xc3", "\xff\xff\x00")).Results[0].GetDeleteRange().Deleted)
	s.history(3, batch(3, put(kv(broken, "2", 2, 3, 2), kv(broken, "b", 2, 2, 1))),
		batch(4, gone(broken, 4, kv(broken, "2", 2, 3, 2)), gone(high, 4, kv(high, "h", 2, 2, 1))))

	// A refusal quotes the key: its message stays text.
	s.apply(Do(suiteSpace, Put("\xff"+big(100), "")), internalv1.CommandResult_OUTCOME_LIMIT)
	s.apply(Do(suiteSpace, Put(broken, "1"), Put(broken, "2")), internalv1.CommandResult_OUTCOME_INVALID)
}

func everything(change func(*internalv1.Range)) *internalv1.Op {
	r := &internalv1.Range{Key: []byte("\x00"), RangeEnd: []byte("\x00")}
	if change != nil {
		change(r)
	}
	return Get(r)
}

// told is a range's result in one line: "b@3 a@2, 3 in all, more".
func told(r *internalv1.RangeResult) string {
	line := ""
	for _, k := range r.GetKeys() {
		line += fmt.Sprintf("%s@%d ", k.GetKey(), k.GetModRevision())
	}
	line += fmt.Sprintf("of %d", r.GetCount())
	if r.GetMore() {
		line += ", more"
	}
	return line
}

func ranges(s *teller) {
	s.ops(2, Put("a", "3"), Put("b", "1"), Put("c", "2"))
	s.ops(3, Put("c", "2"), Put("d", "1"))
	s.ops(4, Delete("b", ""), Put("a", "3"))
	s.ops(5, Put("a", "0"))
	type R = internalv1.Range
	for _, c := range []struct {
		want   string
		change func(*R)
	}{
		{"a@5 c@3 d@3 of 3", nil},
		{"a@2 b@2 c@2 of 3", func(r *R) { r.Revision = 2 }},
		{"a@2 b@2 of 4, more", func(r *R) { r.Revision, r.Limit = 3, 2 }},
		{"of 4", func(r *R) { r.Revision, r.CountOnly = 3, true }},
		{"of 0", func(r *R) { r.Revision = 1 }},
		{"d@3 c@3 a@5 of 3", func(r *R) { r.SortOrder = internalv1.Range_SORT_ORDER_DESCEND }},
		{"d@3 of 3, more", func(r *R) { r.SortOrder, r.Limit = internalv1.Range_SORT_ORDER_DESCEND, 1 }},
		{"c@3 d@3 a@5 of 3", func(r *R) { r.SortTarget = internalv1.Range_SORT_TARGET_MOD }},
		{"a@5 c@3 d@3 of 3", func(r *R) {
			r.SortTarget, r.SortOrder = internalv1.Range_SORT_TARGET_MOD, internalv1.Range_SORT_ORDER_DESCEND
		}},
		{"d@3 c@3 a@5 of 3", func(r *R) { r.SortTarget = internalv1.Range_SORT_TARGET_VERSION }},
		{"d@3 a@5 c@3 of 3", func(r *R) {
			r.SortTarget, r.SortOrder = internalv1.Range_SORT_TARGET_CREATE, internalv1.Range_SORT_ORDER_DESCEND
		}},
		{"b@2 c@2 a@2 of 3", func(r *R) { r.Revision, r.SortTarget = 2, internalv1.Range_SORT_TARGET_VALUE }},
		// As etcd: without an order the limit comes first, and one more is read.
		{"c@3 of 3, more", func(r *R) { r.SortTarget, r.Limit = internalv1.Range_SORT_TARGET_MOD, 1 }},
		{"d@3 of 3, more", func(r *R) {
			r.SortTarget, r.SortOrder, r.Limit = internalv1.Range_SORT_TARGET_VERSION, internalv1.Range_SORT_ORDER_ASCEND, 1
		}},
		{"a@5 of 3", func(r *R) { r.MinModRevision = 4 }},
		{"c@3 d@3 of 3", func(r *R) { r.MaxModRevision = 3 }},
		{"d@3 of 3", func(r *R) { r.MinCreateRevision = 3 }},
		{"a@5 c@3 of 3", func(r *R) { r.MaxCreateRevision = 2 }},
		{"c@3 of 3", func(r *R) { r.MaxModRevision, r.MaxCreateRevision, r.Limit = 4, 2, 1 }},
	} {
		s.same(c.want, told(s.ops(5, everything(c.change)).Results[0].GetRange()))
	}
	// At an earlier revision nothing of the transaction itself is seen.
	r := s.ops(6, Put("a", "9"), Delete("c", ""), Put("z", ""),
		everything(func(r *R) { r.Revision = 5 }))
	s.same("a@5 c@3 d@3 of 3", told(r.Results[3].GetRange()))
	s.same("a@6 d@3 z@6 of 3", told(s.ops(6, everything(nil)).Results[0].GetRange()))
}

func unreadableRanges(s *teller) {
	at := func(rev int64) *internalv1.Command {
		return Do(suiteSpace, Put("a", "x"), everything(func(r *internalv1.Range) { r.Revision = rev }))
	}
	s.ops(2, Put("a", "1"))
	s.ops(3, Put("a", "2"))
	s.apply(at(4), internalv1.CommandResult_OUTCOME_FUTURE_REVISION)
	// As etcd: -1 is the newest revision, until the first compaction.
	s.apply(at(-2), internalv1.CommandResult_OUTCOME_COMPACTED)
	newest := s.ops(3, everything(func(r *internalv1.Range) { r.Revision = -1 })).Results[0].GetRange()
	s.same("a@3 of 1", told(newest))
	s.apply(Compact(suiteSpace, 3), ok)
	s.apply(at(-1), internalv1.CommandResult_OUTCOME_COMPACTED)
	s.apply(at(2), internalv1.CommandResult_OUTCOME_COMPACTED)
	s.kvs(0, kv("a", "2", 2, 3, 2))
	s.apply(at(3), ok)

	for i := range 11 {
		s.apply(Do(suiteSpace, Put(fmt.Sprint("k", i), "")), ok)
	}
	rev := s.m.Facts(suiteSpace).Revision
	limited := func(change func(*internalv1.Range)) *internalv1.Command {
		return Do(suiteSpace, everything(func(r *internalv1.Range) { r.Limit = 1; change(r) }))
	}
	const limit = internalv1.CommandResult_OUTCOME_LIMIT
	s.apply(limited(func(*internalv1.Range) {}), ok)
	s.apply(limited(func(r *internalv1.Range) { r.SortOrder = internalv1.Range_SORT_ORDER_DESCEND }), limit)
	s.apply(limited(func(r *internalv1.Range) { r.MinModRevision = 1 }), limit)
	s.apply(limited(func(r *internalv1.Range) { r.Revision = int64(rev) }), limit)
	s.apply(limited(func(r *internalv1.Range) { r.Revision = int64(rev) - 3 }), ok)
	s.same(rev, s.m.Facts(suiteSpace).Revision)
}
