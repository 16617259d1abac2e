package storetest

import (
	"fmt"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

func stories() []story { return append(keyStories(), ruleStories()...) }

// keyStories are about keys, revisions and histories.
func keyStories() []story {
	return []story{
		{"an empty space is revision 1", func(s *teller) {
			s.same(Facts{Revision: 1, CompactRevision: 1, LeaseKeys: map[int64][]string{}}, s.m.Facts(suiteSpace))
			s.kvs(1)
			s.refused(2, store.ErrFutureRevision)
			s.history(1)
		}},
		{"a key is any bytes, in the order of bytes", binaryKeys},
		{"a range reads the past, sorts, and leaves out", ranges},
		{"a range that cannot be read refuses the transaction", unreadableRanges},
		{"a key counts its versions from its creation", func(s *teller) {
			s.ops(2, Put("a", "1"))
			s.ops(3, Put("a", "2"))
			s.kvs(0, kv("a", "2", 2, 3, 2))
			s.ops(4, Delete("a", ""))
			s.kvs(0)
			s.ops(5, Put("a", "3"))
			s.kvs(0, kv("a", "3", 5, 5, 1))
			s.kvs(2, kv("a", "1", 2, 2, 1))
			s.kvs(4)
		}},
		{"equal values make a revision, deleting nothing does not", func(s *teller) {
			s.ops(2, Put("a", "1"))
			s.ops(3, Put("a", "1"))
			r := s.ops(3, Delete("b", "\x00"))
			s.same(int64(0), r.Results[0].GetDeleteRange().Deleted)
			s.ops(3)
		}},
		{"a transaction is one revision and sees its own writes", func(s *teller) {
			s.ops(2, Put("a", "1"), Put("b", "2"))
			r := s.ops(3, Put("c", "3"), Get(&internalv1.Range{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Limit: 2}), Delete("a", "b"))
			s.same(&internalv1.RangeResult{Count: 3, More: true, Keys: []*internalv1.StoredKey{
				{Key: []byte("a"), Value: []byte("1"), CreateRevision: 2, ModRevision: 2, Version: 1},
				{Key: []byte("b"), Value: []byte("2"), CreateRevision: 2, ModRevision: 2, Version: 1},
			}}, r.Results[1].GetRange())
			s.history(3, batch(3, put(kv("c", "3", 3, 3, 1)), gone("a", 3, kv("a", "1", 2, 2, 1))))
		}},
		{"compares choose the branch and say what was found", failedCompare},
		{"nested transactions decide before the first write", nestedDecide},
		{"a key may be put or deleted once, as etcd has it", duplicates},
		{"a put and a later nested delete of one key share a revision", func(s *teller) {
			s.ops(2, Put("a", "1"))
			s.ops(3, Nested(&internalv1.Txn{Success: []*internalv1.Op{Put("a", "2")}}),
				Nested(&internalv1.Txn{Success: []*internalv1.Op{Delete("a", "")}}))
			s.kvs(0)
			s.kvs(2, kv("a", "1", 2, 2, 1))
			old := kv("a", "1", 2, 2, 1)
			s.history(2, batch(2, put(old)), batch(3, put(kv("a", "2", 2, 3, 2), old), gone("a", 3, old)))
		}},
		{"a delete without an end and a put of one key share a revision", func(s *teller) {
			s.ops(2, Put("a", "1"))
			s.ops(3, Delete("a", "\x00"), Put("a", "2"), Delete("\x00", "\x00"))
			old := kv("a", "1", 2, 2, 1)
			s.history(3, batch(3, gone("a", 3, old), put(kv("a", "2", 3, 3, 1)), gone("a", 3, old)))
		}},
	}
}

// ruleStories are about what is refused, forgotten and bounded.
func ruleStories() []story {
	return []story{
		{"ignore_value and ignore_lease keep what is there", ignore},
		{"a revoked lease takes its keys along in one revision", leases},
		{"compaction forgets and says so", compaction},
		{"a tombstone at the compacted revision is still told", func(s *teller) {
			s.ops(2, Put("a", "1"))
			s.ops(3, Delete("a", ""))
			s.apply(Compact(suiteSpace, 3), ok)
			s.history(3, batch(3, gone("a", 3)))
			s.apply(Compact(suiteSpace, 3), internalv1.CommandResult_OUTCOME_COMPACTED)
		}},
		{"the first compaction may be at 0, as in etcd", func(s *teller) {
			s.apply(Compact(suiteSpace, -1), internalv1.CommandResult_OUTCOME_COMPACTED)
			s.apply(Compact(suiteSpace, 0), ok)
			s.apply(Compact(suiteSpace, 0), internalv1.CommandResult_OUTCOME_COMPACTED)
			s.apply(Compact(suiteSpace, 1), ok)
		}},
		{"a deposed leader changes nothing", func(s *teller) {
			late := Do(suiteSpace, Put("a", "1"))
			late.Epoch = 6
			s.apply(late, internalv1.CommandResult_OUTCOME_STALE_EPOCH)
			late.Epoch = 8
			s.apply(late, internalv1.CommandResult_OUTCOME_STALE_EPOCH)
			s.kvs(0)
			late.Epoch = 7
			s.apply(late, ok)
		}},
		{"commit times never go back", func(s *teller) {
			for i, now := range []int64{50, 20, 60} {
				cmd := Do(suiteSpace, Put("a", fmt.Sprint(i)))
				cmd.TimeNs = now
				s.same([]int64{50, 50, 60}[i], s.apply(cmd, ok).CommitTimeNs)
			}
		}},
		{"limits have outcomes", limitStory},
		{"a full space takes deletes and compaction", quota},
		{"a shedding space forgets the oldest first", shedding},
		{"spaces share nothing", func(s *teller) {
			s.ops(2, Put("a", "1"))
			s.apply(Compact(suiteSpace, 2), ok)
			s.apply(Grant(suiteSpace, 5, 60), ok)
			s.same(Facts{Revision: 1, CompactRevision: 1, LeaseKeys: map[int64][]string{}}, s.m.Facts(suiteShed))
			s.apply(Do("nowhere", Put("a", "1")), internalv1.CommandResult_OUTCOME_NO_SUCH_SPACE)
		}},
	}
}

func failedCompare(s *teller) {
	s.ops(2, Put("a", "1"), Put("b", "2"))
	txn := &internalv1.Txn{
		Compares: []*internalv1.Compare{
			Number("a", internalv1.Compare_TARGET_MOD, internalv1.Compare_RESULT_EQUAL, 2),
			{Key: []byte("a"), RangeEnd: []byte("\x00"), Target: internalv1.Compare_TARGET_VALUE, Result: internalv1.Compare_RESULT_EQUAL, Value: []byte("1")},
		},
		Success: []*internalv1.Op{Put("yes", "")},
		Failure: []*internalv1.Op{Put("no", "")},
	}
	r := s.apply(Txn(suiteSpace, txn), ok)
	s.same(false, r.Txn.Succeeded)
	s.same(uint32(1), r.Txn.FailedCompare)
	s.same(&internalv1.StoredKey{Key: []byte("b"), Value: []byte("2"), CreateRevision: 2, ModRevision: 2, Version: 1}, r.Txn.Found)

	absent := func(c *internalv1.Compare) bool {
		return s.apply(Txn(suiteSpace, &internalv1.Txn{Compares: []*internalv1.Compare{c}}), ok).Txn.Succeeded
	}
	s.same(true, absent(Number("x", internalv1.Compare_TARGET_CREATE, internalv1.Compare_RESULT_EQUAL, 0)))
	s.same(true, absent(Number("x", internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_LESS, 1)))
	for _, result := range []internalv1.Compare_Result{internalv1.Compare_RESULT_EQUAL, internalv1.Compare_RESULT_NOT_EQUAL} {
		s.same(false, absent(&internalv1.Compare{Key: []byte("x"), Target: internalv1.Compare_TARGET_VALUE, Result: result}))
	}
}

func nestedDecide(s *teller) {
	inner := &internalv1.Txn{
		Compares: []*internalv1.Compare{Number("a", internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_EQUAL, 0)},
		Success:  []*internalv1.Op{Put("b", "as it was")},
		Failure:  []*internalv1.Op{Put("b", "as it is")},
	}
	r := s.ops(2, Put("a", "1"), Nested(inner))
	s.same(true, r.Results[1].GetTxn().Succeeded)
	s.kvs(0, kv("a", "1", 2, 2, 1), kv("b", "as it was", 2, 2, 1))
}

func duplicates(s *teller) {
	nested := func(success, failure *internalv1.Op) *internalv1.Op {
		txn := &internalv1.Txn{Success: []*internalv1.Op{success}}
		if failure != nil {
			txn.Failure = []*internalv1.Op{failure}
		}
		return Nested(txn)
	}
	const invalid = internalv1.CommandResult_OUTCOME_INVALID
	s.apply(Do(suiteSpace, Put("a", "1"), Put("a", "2")), invalid)
	s.apply(Do(suiteSpace, Put("a", "1"), Delete("a", "")), invalid)
	s.apply(Do(suiteSpace, Delete("a", "c"), Put("b", "1")), invalid)
	s.apply(Do(suiteSpace, Put("a", "1"), nested(Put("a", "2"), nil)), invalid)
	s.apply(Do(suiteSpace, nested(Put("a", "1"), nil), nested(Put("a", "2"), nil)), invalid)
	s.apply(Do(suiteSpace, nested(Delete("a", ""), nil), nested(Put("a", "1"), nil)), invalid)
	s.apply(Do(suiteSpace, Delete("a", ""), nested(Put("b", "1"), Put("a", "1"))), invalid)
	s.apply(Txn(suiteSpace, &internalv1.Txn{Failure: []*internalv1.Op{Put("a", "1"), Put("a", "2")}}), invalid)
	s.kvs(0)
	s.ops(2, nested(Put("a", "1"), Put("a", "2")))
	s.ops(3, Delete("a", "c"), Put("c", "1"), Delete("a", ""))
}

func ignore(s *teller) {
	s.apply(Grant(suiteSpace, 5, 60), ok)
	keep := func(p *internalv1.Put) *internalv1.Command { return Do(suiteSpace, PutOp(p)) }
	s.apply(keep(&internalv1.Put{Key: []byte("a"), IgnoreValue: true}), internalv1.CommandResult_OUTCOME_KEY_NOT_FOUND)
	s.apply(keep(&internalv1.Put{Key: []byte("a"), IgnoreLease: true}), internalv1.CommandResult_OUTCOME_KEY_NOT_FOUND)
	s.apply(keep(&internalv1.Put{Key: []byte("a"), Value: []byte("1"), Lease: 5}), ok)
	s.apply(keep(&internalv1.Put{Key: []byte("a"), Value: []byte("2"), IgnoreLease: true}), ok)
	s.same(map[int64][]string{5: {"a"}}, s.m.Facts(suiteSpace).LeaseKeys)
	s.apply(keep(&internalv1.Put{Key: []byte("a"), IgnoreValue: true}), ok)
	s.kvs(0, kv("a", "2", 2, 4, 3))
	s.same(map[int64][]string{5: nil}, s.m.Facts(suiteSpace).LeaseKeys)
	s.apply(keep(&internalv1.Put{Key: []byte("a"), IgnoreValue: true, Value: []byte("3")}), internalv1.CommandResult_OUTCOME_INVALID)
	s.apply(keep(&internalv1.Put{Key: []byte("a"), IgnoreLease: true, Lease: 5}), internalv1.CommandResult_OUTCOME_INVALID)
}

func leases(s *teller) {
	s.apply(Grant(suiteSpace, 5, 60), ok)
	s.apply(Grant(suiteSpace, 5, 60), internalv1.CommandResult_OUTCOME_LEASE_EXISTS)
	bound := func(key string, lease int64) *internalv1.Op {
		return PutOp(&internalv1.Put{Key: []byte(key), Lease: lease})
	}
	s.apply(Do(suiteSpace, bound("a", 6)), internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND)
	s.ops(2, bound("c", 5), bound("a", 5), Put("b", ""))
	s.ops(3, bound("d", 5))
	s.ops(4, bound("d", 0))
	s.same([]string{"a", "c"}, s.m.Facts(suiteSpace).LeaseKeys[5])
	s.same(int64(5), s.apply(Revoke(suiteSpace, 5), ok).Revision)
	a, c := kv("a", "", 2, 2, 1), kv("c", "", 2, 2, 1)
	a.Lease, c.Lease, a.Value, c.Value = 5, 5, nil, nil
	s.history(5, batch(5, gone("a", 5, a), gone("c", 5, c)))
	s.apply(Revoke(suiteSpace, 5), internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND)
	s.apply(Grant(suiteSpace, 6, 60), ok)
	s.same(int64(5), s.apply(Revoke(suiteSpace, 6), ok).Revision)
}

func compaction(s *teller) {
	s.ops(2, Put("a", "1"))
	s.ops(3, Put("a", "2"))
	s.ops(4, Put("b", "1"))
	s.ops(5, Delete("b", ""))
	s.apply(Compact(suiteSpace, 6), internalv1.CommandResult_OUTCOME_FUTURE_REVISION)
	s.same(int64(5), s.apply(Compact(suiteSpace, 4), ok).Revision)
	s.apply(Compact(suiteSpace, 4), internalv1.CommandResult_OUTCOME_COMPACTED)
	s.refused(3, store.ErrCompacted)
	s.kvs(4, kv("a", "2", 2, 3, 2), kv("b", "1", 4, 4, 1))
	s.history(4, batch(4, put(kv("b", "1", 4, 4, 1))), batch(5, gone("b", 5, kv("b", "1", 4, 4, 1))))
	s.ops(6, Put("c", "1"))
	s.apply(Compact(suiteSpace, 6), ok)
	f := s.m.Facts(suiteSpace)
	s.same(int64(0), f.HistoryBytes)
	s.same(store.Revision(6), f.CompactRevision)
	s.kvs(6, kv("a", "2", 2, 3, 2), kv("c", "1", 6, 6, 1))
}

func limitStory(s *teller) {
	const limit, invalid = internalv1.CommandResult_OUTCOME_LIMIT, internalv1.CommandResult_OUTCOME_INVALID
	s.apply(Do(suiteSpace, Put("", "1")), invalid)
	s.apply(Do(suiteSpace, &internalv1.Op{}), invalid)
	s.apply(&internalv1.Command{Space: suiteSpace}, invalid)
	s.apply(Txn(suiteSpace, &internalv1.Txn{Compares: []*internalv1.Compare{{Key: []byte("a")}}}), invalid)
	s.apply(Do(suiteSpace, Put(big(101), "")), limit)
	s.apply(Do(suiteSpace, Put("a", big(3001))), limit)
	s.apply(Do(suiteSpace, Put("a", big(2999)), Put("b", big(2999)), Put("c", big(99))), limit)
	s.apply(Do(suiteSpace, Put("a", ""), Put("b", ""), Put("c", ""), Put("d", ""), Put("e", "")), limit)
	deep := &internalv1.Txn{}
	for range 5 {
		deep = &internalv1.Txn{Success: []*internalv1.Op{Nested(deep)}}
	}
	s.apply(Txn(suiteSpace, deep), limit)
	for i := range 11 {
		s.apply(Do(suiteSpace, Put(fmt.Sprint("k", i), "")), ok)
	}
	s.apply(Do(suiteSpace, Get(&internalv1.Range{Key: []byte("k"), RangeEnd: []byte("\x00")})), limit)
	s.apply(Do(suiteSpace, Get(&internalv1.Range{Key: []byte("k"), RangeEnd: []byte("\x00"), Limit: 10})), ok)
	s.apply(Do(suiteSpace, Get(&internalv1.Range{Key: []byte("k"), RangeEnd: []byte("\x00"), CountOnly: true})), ok)
	for id := range int64(3) {
		s.apply(Grant(suiteSpace, id+1, 5), ok)
	}
	s.apply(Grant(suiteSpace, 9, 5), limit)
}

func quota(s *teller) {
	const full = internalv1.CommandResult_OUTCOME_NO_SPACE
	s.ops(2, Put("a", big(2500)))
	s.ops(3, Put("b", big(2500)))
	s.apply(Do(suiteSpace, Put("c", big(1000))), full) // would grow into the reserve
	s.ops(4, Put("a", big(2000)))                      // does not grow
	s.apply(Do(suiteSpace, Put("a", big(2000))), full) // the reserve is used up
	s.ops(5, Delete("b", ""))
	s.apply(Do(suiteSpace, Put("c", big(1000))), full) // it is all history now
	s.apply(Compact(suiteSpace, 5), ok)
	s.ops(6, Put("c", big(1000)))
}

func shedding(s *teller) {
	apply := func(key string) { s.apply(Do(suiteShed, Put(key, big(800))), ok) }
	left := func(want ...string) {
		s.Helper()
		kvs, err := s.m.Range(suiteShed, 0, "", "")
		if err != nil {
			s.Fatal(err)
		}
		var keys []string
		for _, kv := range kvs {
			keys = append(keys, kv.Key)
		}
		s.same(want, keys)
	}
	for _, key := range []string{"b", "a", "c", "d"} {
		apply(key)
	}
	left("a", "c", "d")
	apply("a") // a is young again
	apply("e")
	left("a", "d", "e")
	f := s.m.Facts(suiteShed)
	s.same(store.Revision(7), f.Revision)
	if f.LiveBytes > 3000 || f.HistoryBytes > 1000 {
		s.Fatalf("%d live bytes and %d of history, allowed are 3000 and 1000", f.LiveBytes, f.HistoryBytes)
	}
	s.apply(Do(suiteShed, Put("x", big(1500)), Put("y", big(1500))), internalv1.CommandResult_OUTCOME_NO_SPACE)
}
