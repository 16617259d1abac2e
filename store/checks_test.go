package store

import (
	"errors"
	"strings"
	"testing"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// TestChecksAreApplys: what CheckLimits and CheckWrites say is what Apply answers.
func TestChecksAreApplys(t *testing.T) {
	put := func(key string, value int) *internalv1.Op {
		return &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: make([]byte, value)}}}
	}
	s := New(Options{Limits: Limits{TxnOps: 3, KeyBytes: 8, ValueBytes: 100, TxnBytes: 150}})
	const ok, limit, invalid = internalv1.CommandResult_OUTCOME_OK, internalv1.CommandResult_OUTCOME_LIMIT, internalv1.CommandResult_OUTCOME_INVALID
	for i, c := range []struct {
		ops    []*internalv1.Op
		limits internalv1.CommandResult_Outcome
		writes string
	}{
		{[]*internalv1.Op{put("a", 1)}, ok, ""},
		{[]*internalv1.Op{put("a", 1), put("b", 1), put("c", 1), put("d", 1)}, limit, ""},
		{[]*internalv1.Op{put("123456789", 1)}, limit, ""},
		{[]*internalv1.Op{put("a", 101)}, limit, ""},
		{[]*internalv1.Op{put("a", 100), put("b", 100)}, limit, ""},
		{[]*internalv1.Op{put("", 1)}, invalid, ""},
		{[]*internalv1.Op{put("a", 1), put("a", 1)}, ok, `duplicate key "a"`},
	} {
		txn := &internalv1.Txn{Success: c.ops}
		outcome, reason := s.Space(SpaceEtcd).CheckLimits(txn)
		if outcome != c.limits || (reason == "") != (outcome == ok) {
			t.Errorf("case %d: limits: %v %q", i, outcome, reason)
		}
		twice := CheckWrites(txn)
		if !strings.Contains(twice, c.writes) || (twice == "") != (c.writes == "") {
			t.Errorf("case %d: writes: %q", i, twice)
		}
		if outcome == ok && twice != "" {
			outcome, reason = invalid, twice
		}
		applied := s.Apply(uint64(i+1), 1, []*internalv1.Command{{Space: SpaceEtcd, Op: &internalv1.Command_Txn{Txn: txn}}})[0]
		if applied.GetOutcome() != outcome || applied.GetMessage() != reason {
			t.Errorf("case %d: applied: %v, checked: %v %q", i, applied, outcome, reason)
		}
	}
}

// TestViewAt: the revisions of one view are one history, whatever is written and
// compacted after it was taken.
func TestViewAt(t *testing.T) {
	s := New(Options{})
	index := uint64(0)
	apply := func(c *internalv1.Command) {
		index++
		c.Space = SpaceEtcd
		if r := s.Apply(index, 1, []*internalv1.Command{c})[0]; r.GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
			t.Fatal(r)
		}
	}
	put := func(value string) {
		apply(&internalv1.Command{Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{
			Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte("a"), Value: []byte(value)}}}},
		}}})
	}
	compact := func(rev int64) {
		apply(&internalv1.Command{Op: &internalv1.Command_Compact{Compact: &internalv1.Compact{Revision: rev}}})
	}
	put("2")
	put("3")
	if last := s.Space(SpaceEtcd).View().LastCompaction(); last != -1 {
		t.Errorf("the last compaction of a new space: %d", last)
	}
	view := s.Space(SpaceEtcd).View()
	put("4")
	compact(4)
	for rev, want := range map[Revision]string{2: "2", 3: "3"} {
		at, err := view.At(rev)
		if err != nil {
			t.Fatal(err)
		}
		if kv, _ := at.Get("a"); string(kv.Value) != want || at.Revision() != rev {
			t.Errorf("revision %d: %q at %d", rev, kv.Value, at.Revision())
		}
	}
	if _, err := view.At(4); !errors.Is(err, ErrFutureRevision) {
		t.Errorf("a revision after the view: %v", err)
	}
	now := s.Space(SpaceEtcd).View()
	if _, err := now.At(3); !errors.Is(err, ErrCompacted) {
		t.Errorf("a compacted revision: %v", err)
	}
	if last := now.LastCompaction(); last != 4 {
		t.Errorf("the last compaction: %d", last)
	}
}
