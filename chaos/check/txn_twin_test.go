package check_test

import (
	"slices"
	"testing"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// sloppy is a store without any isolation: each step of a transaction takes effect
// by itself, reads may be old, and some transactions are refused half way. At the
// end somebody may read everything, so that all that took effect is known.
func sloppy(dice dice, final bool) []history.Record {
	st, sp := &stage{dice: dice}, newSpace()
	type session struct {
		invoke history.Record
		end    history.Record
		step   int
	}
	var open []*session
	for left := 2 + dice(3); left > 0 || len(open) > 0; {
		if left > 0 && (len(open) == 0 || dice(3) == 0) {
			left--
			st.next++
			r := sp.transaction(dice).invoke
			r.Mops = r.Mops[:min(len(r.Mops), 2)]
			for i := range r.Mops {
				r.Mops[i].Key = "txn/" + string(rune('a'+dice(2)))
			}
			r.Process, r.Type = st.next, history.Invoke
			s := &session{invoke: st.record(r)}
			s.end = s.invoke
			s.end.Type, s.end.Mops = history.OK, slices.Clone(r.Mops)
			open = append(open, s)
			continue
		}
		i := dice(len(open))
		s := open[i]
		if s.step == len(s.end.Mops) {
			switch dice(12) {
			case 0:
				s.end.Type, s.end.Mops = history.Unknown, s.invoke.Mops
			case 1:
				s.end.Type, s.end.Mops = history.Refused, s.invoke.Mops
			}
			st.record(s.end)
			open = slices.Delete(open, i, i+1)
			continue
		}
		m := &s.end.Mops[s.step]
		if s.step++; m.F == history.MopAppend {
			sp.lists[m.Key] = append(slices.Clone(sp.lists[m.Key]), m.Value)
			continue
		}
		found := sp.lists[m.Key]
		if dice(6) == 0 {
			found = found[:dice(len(found)+1)]
		}
		m.Values = found
	}
	if !final {
		return st.records
	}
	last := history.Record{F: history.Txn, Mops: []history.Mop{{F: history.MopRead, Key: "txn/a"}, {F: history.MopRead, Key: "txn/b"}}}
	st.one(act{invoke: last, effect: func(end *history.Record) {
		for i := range end.Mops {
			end.Mops[i].Values = sp.lists[end.Mops[i].Key]
		}
	}})
	return st.records
}

// serial tries every order: the dumb twin of the graph.
func serial(ops []history.Operation, lists map[string][]string) bool {
	if !slices.ContainsFunc(ops, func(o history.Operation) bool { return o.End.Type == history.OK }) {
		return true // all others may have no effect
	}
	for i, o := range ops {
		rest := slices.Delete(slices.Clone(ops), i, i+1)
		early := slices.ContainsFunc(rest, func(p history.Operation) bool {
			return p.End.Type == history.OK && p.End.Index < o.Invoke.Index
		})
		if early || o.End.Type == history.Refused {
			continue
		}
		if next, fits := apply(o, lists); fits && serial(rest, next) {
			return true
		}
	}
	return false
}

// apply runs a transaction, and says whether it found what it says.
func apply(o history.Operation, lists map[string][]string) (map[string][]string, bool) {
	next := map[string][]string{"txn/a": lists["txn/a"], "txn/b": lists["txn/b"]}
	for _, m := range o.End.Mops {
		if m.F == history.MopAppend {
			next[m.Key] = append(slices.Clone(next[m.Key]), m.Value)
		} else if o.End.Type == history.OK && !slices.Equal(next[m.Key], m.Values) {
			return nil, false
		}
	}
	return next, true
}

func operations(records []history.Record) (out []history.Operation) {
	open := map[int32]history.Record{}
	for _, r := range records {
		if r.Type == history.Invoke {
			open[r.Process] = r
			continue
		}
		out = append(out, history.Operation{Invoke: open[r.Process], End: r})
	}
	return out
}

// What Txn says of small histories is what trying every order says: no false alarm,
// and, when all that was appended was read in the end, nothing overlooked.
func TestTxnAgreesWithTryingEveryOrder(t *testing.T) {
	for _, final := range []bool{true, false} {
		right, wrong, overlooked := 0, 0, 0
		for seed := range 20_000 {
			records := sloppy(seeded(seed), final)
			v := judged(check.NewTxn(), records, nil)
			possible, accepted := serial(operations(records), nil), len(v.Violations) == 0
			switch {
			case possible && !accepted, final && accepted && !possible:
				t.Fatalf("seed %d: an order exists: %v, and Txn says %v of\n%v", seed, possible, v.Violations, records)
			case possible:
				right++
			case accepted:
				overlooked++
			default:
				wrong++
			}
		}
		if min(right, wrong) < 2000 || overlooked > wrong/10 {
			t.Errorf("final read %v: %d right histories, %d wrong, %d overlooked", final, right, wrong, overlooked)
		}
		t.Logf("final read %v: %d right histories, %d wrong, %d overlooked", final, right, wrong, overlooked)
	}
}
