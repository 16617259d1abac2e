package check_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// all are the checkers of the mixture: its locks and its lists are revisions that
// Linearizable cannot know of, so they are strangers' to it.
func all() []check.Checker {
	return check.All(check.Options{
		Linearizable: check.LinearizableOptions{Foreign: true}, Drift: drift, Accounts: bankAccounts, Total: bankTotal,
	})
}

// mixture is a history of all workloads at once, in one space; in one of two, what is
// old is forgotten.
func mixture(dice dice, turns int) ([]history.Record, []check.Member) {
	sp, st := newSpace(), &stage{dice: dice}
	kv := &traffic{stage: st, space: sp, compact: 1}
	smith := newLocksmith(dice)
	smith.stage, smith.space = st, sp
	st.one(sp.open())
	compacts := dice(2) == 0
	for range turns {
		st.run(12, func() act {
			switch dice(5) {
			case 0:
				return kv.write()
			case 1:
				return kv.lists()
			case 2:
				return sp.adding(dice)
			case 3:
				return sp.banking(dice)
			}
			return smith.use()
		})
		kv.watch(int64(dice(int(sp.revision))))
		open := kv.watches
		kv.watches = nil
		for _, w := range open {
			if kv.serve(w) {
				kv.watches = append(kv.watches, w)
			}
		}
		if kv.pages(); compacts && dice(3) == 0 {
			st.one(kv.compacts())
		}
		for range 5 {
			st.one(sp.transaction(dice))
		}
		st.record(history.Record{F: history.Hash, Type: history.OK, Server: "s1", At: sp.revision, Value: check.FormatHash(uint64(sp.revision))})
		st.record(history.Record{F: history.Fault, Type: history.Invoke, Value: "kill s1"})
		st.record(history.Record{F: history.Fault, Type: history.Invoke, Value: "pause s2"})
		st.record(history.Record{F: history.Fault, Type: history.Unknown, Value: "kill s1"})
	}
	members := kv.atRest()
	for i := range members {
		members[i].Hash = uint64(sp.revision)
	}
	return st.records, members
}

// Each checker takes its part out of a history of everything, and finds nothing
// wrong in it.
func TestAllAcceptsAMixture(t *testing.T) {
	for seed := range 30 {
		records, members := mixture(seeded(seed), 10)
		checkers := all()
		var names []string
		for _, c := range checkers {
			v := judged(c, records, members)
			names = append(names, v.Checker)
			accepts(t, v, records)
			if v.Checked == 0 || strings.Contains(fmt.Sprint(v.Left), "do not fit") || strings.Contains(fmt.Sprint(v.Left), "no operation of") {
				t.Errorf("%s checked %d and left %q", v.Checker, v.Checked, v.Left)
			}
		}
		if want := []string{"linearizable", "hashes", "ranges", "watch", "txn", "set", "locks", "bank"}; !slices.Equal(names, want) {
			t.Fatalf("the checkers are %q, want %q", names, want)
		}
	}
}

func TestAllHasNoBankWithoutAccounts(t *testing.T) {
	for _, c := range check.All(check.Options{}) {
		if v := c.Verdict(nil); v.Checker == "bank" {
			t.Error("a bank without accounts")
		}
	}
}

// What one workload does wrong is found by its checker, and by it alone.
func TestScopeSeparatesWorkloads(t *testing.T) {
	records, members := mixture(seeded(1), 10)
	process := int32(1_000_000)
	add := func(invoke history.Record, answer func(r *history.Record)) {
		process++
		invoke.Process, invoke.Type, invoke.Time = process, history.Invoke, time.Hour
		end := invoke
		end.Type = history.OK
		answer(&end)
		records = append(records, invoke, end)
	}
	add(history.Record{F: history.StaleList, Key: "set/", End: "set0"}, func(r *history.Record) { r.KVs = []history.KV{{Key: "set/zz"}} })
	add(history.Record{F: history.Txn, Mops: []history.Mop{{F: history.MopRead, Key: "txn/q"}}}, func(r *history.Record) {
		r.Mops = []history.Mop{{F: history.MopRead, Key: "txn/q", Values: []string{"ghost"}}}
	})
	add(history.Record{F: history.Lock, Key: "lock/q"}, func(*history.Record) {})
	add(history.Record{F: history.List, Key: "bank/", End: "bank0"}, func(r *history.Record) {
		r.KVs = []history.KV{{Key: "bank/a", Value: "50"}, {Key: "bank/b", Value: "50"}, {Key: "bank/c", Value: "1"}}
	})
	want := map[string]string{"set": "phantom", "txn": "phantom", "locks": "token", "bank": "total"}
	for _, c := range all() {
		v := judged(c, records, members)
		rule, mine := want[v.Checker]
		if !mine {
			continue
		}
		finds(t, v, rule)
		if n := len(v.Violations); n != 1 {
			t.Errorf("%s finds %d violations, not only its own: %v", v.Checker, n, v.Violations)
		}
	}
}

// One mistake with many consequences does not hide another.
func TestVerdictIsBounded(t *testing.T) {
	c := check.NewHashes()
	for i := range 100 {
		c.Add(history.Record{F: history.Hash, Type: history.OK, At: 1, Value: check.FormatHash(uint64(i))})
	}
	v := c.Verdict([]check.Member{{Name: "s1", Revision: 5}, {Name: "s2", Revision: 6}})
	finds(t, v, "hash")
	finds(t, v, "behind")
	if n := int64(len(v.Violations)); n > check.MaxViolations || v.Dropped == 0 || n+v.Dropped != 100 {
		t.Errorf("%d violations and %d dropped, want 100 together", n, v.Dropped)
	}
}

// Whatever a history says, a checker judges it or leaves it, and says the same each
// time.
func TestCheckersTakeAnything(t *testing.T) {
	words := rapid.SampledFrom([]string{"", "a", "\x00", "set/", "set/a", "set0", "txn/a", "bank/a", "bank0", "bank/", "lock/a", "lease/a", "compacted", "not found", "7"})
	number := rapid.SampledFrom([]int64{-1, 0, 1, 2, 3, 1 << 62})
	kv := rapid.Custom(func(t *rapid.T) history.KV {
		out := history.KV{
			Key: words.Draw(t, "key"), Value: words.Draw(t, "value"), CreateRevision: number.Draw(t, "create"), ModRevision: number.Draw(t, "mod"),
			Version: number.Draw(t, "version"), Lease: number.Draw(t, "lease"), Deleted: rapid.Bool().Draw(t, "deleted"),
		}
		if rapid.Bool().Draw(t, "prev") {
			out.Prev = &history.KV{Key: words.Draw(t, "key"), ModRevision: number.Draw(t, "mod")}
		}
		return out
	})
	mop := rapid.Custom(func(t *rapid.T) history.Mop {
		return history.Mop{F: history.MopF(rapid.IntRange(0, 4).Draw(t, "f")), Key: words.Draw(t, "key"), Value: words.Draw(t, "value"), Values: rapid.SliceOfN(words, 0, 3).Draw(t, "values")}
	})
	record := rapid.Custom(func(t *rapid.T) history.Record {
		return history.Record{
			Index: number.Draw(t, "index"), Time: time.Duration(number.Draw(t, "time")), Process: int32(rapid.IntRange(0, 2).Draw(t, "process")),
			Type: history.Type(rapid.IntRange(0, 5).Draw(t, "type")), F: history.F(rapid.IntRange(0, 20).Draw(t, "f")),
			Key: words.Draw(t, "key"), End: words.Draw(t, "end"), Value: words.Draw(t, "value"), Error: words.Draw(t, "error"),
			Base: number.Draw(t, "base"), Revision: number.Draw(t, "revision"), At: number.Draw(t, "at"), Limit: number.Draw(t, "limit"),
			Count: number.Draw(t, "count"), More: rapid.Bool().Draw(t, "more"), Lease: number.Draw(t, "lease"), TTL: time.Duration(number.Draw(t, "ttl")),
			KVs: rapid.SliceOfN(kv, 0, 3).Draw(t, "kvs"), Mops: rapid.SliceOfN(mop, 0, 3).Draw(t, "mops"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SliceOfN(record, 0, 40).Draw(t, "records")
		members := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) check.Member {
			return check.Member{Name: "s", Revision: number.Draw(t, "revision"), First: number.Draw(t, "first"), Changes: rapid.SliceOfN(kv, 0, 5).Draw(t, "changes")}
		}), 0, 3).Draw(t, "members")
		verdicts := func() (out string) {
			for _, c := range append(all()[1:], check.NewTxn(), check.NewSet(), check.NewLocks(drift), check.NewBank(bankAccounts, bankTotal)) {
				out += fmt.Sprintln(judged(c, records, members))
			}
			return out
		}
		if first, again := verdicts(), verdicts(); first != again {
			t.Fatalf("two verdicts on one history:\n%s\n%s", first, again)
		}
	})
}
