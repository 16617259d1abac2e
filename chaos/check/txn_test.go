package check_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// transaction is a random one of a correct store.
func (s *space) transaction(dice dice) act {
	var mops []history.Mop
	for range 1 + dice(4) {
		m := history.Mop{F: history.MopRead, Key: "txn/" + s.prefix + string(rune('a'+dice(3)))}
		if dice(2) == 0 {
			m.F, m.Value = history.MopAppend, s.value()
		}
		mops = append(mops, m)
	}
	refuse := dice(10) == 0
	return act{
		invoke: history.Record{F: history.Txn, Mops: mops},
		effect: func(end *history.Record) {
			if refuse {
				end.Type = history.Refused
				return
			}
			for i, m := range end.Mops {
				if m.F == history.MopAppend {
					s.lists[m.Key] = append(slices.Clone(s.lists[m.Key]), m.Value)
				} else {
					end.Mops[i].Values = s.lists[m.Key]
				}
			}
		},
	}
}

func transactions(dice dice, n int) []history.Record {
	st, sp := &stage{dice: dice}, newSpace()
	st.run(n, func() act { return sp.transaction(dice) })
	return st.records
}

func TestTxnAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := transactions(rapidDice(t), rapid.IntRange(0, 40).Draw(t, "n"))
		accepts(t, judged(check.NewTxn(), records, nil), records)
	})
	for seed := range 200 {
		records := transactions(seeded(seed), 300)
		accepts(t, judged(check.NewTxn(), records, nil), records)
	}
}

// script reads lines such as "1> ax1 ry | 1< ax1 ry=1,2": process 1 asks to append
// 1 to x and to read y, and then is told that y is 1, 2. "!" is refused, "?" is
// unknown.
func script(lines string) []history.Record {
	types := map[byte]history.Type{'>': history.Invoke, '<': history.OK, '!': history.Refused, '?': history.Unknown}
	var out []history.Record
	for line := range strings.SplitSeq(lines, "|") {
		words := strings.Fields(line)
		r := history.Record{F: history.Txn, Process: 1000 + int32(words[0][0]-'0'), Type: types[words[0][1]]}
		for _, w := range words[1:] {
			m := history.Mop{F: history.MopRead, Key: "txn/plant-" + w[1:2]}
			switch rest := w[2:]; {
			case w[0] == 'a':
				m.F, m.Value = history.MopAppend, rest
			case w[0] == 'w':
				m.F, m.Value = history.MopWrite, rest
			case rest != "" && rest != "=":
				m.Values = strings.Split(rest[1:], ",")
			}
			r.Mops = append(r.Mops, m)
		}
		out = append(out, r)
	}
	return out
}

func TestTxnFindsWhatIsPlanted(t *testing.T) {
	for _, test := range []struct{ name, rule, script string }{
		{"own append not seen", "internal", "1> ax1 rx | 1< ax1 rx="},
		{"two reads differ", "internal", "2> ax1 | 2< ax1 | 1> rx rx | 1< rx= rx=1"},
		{"more after an own append", "internal", "1> rx ax1 rx | 1< rx= ax1 rx=2,1"},
		{"a value twice", "duplicate", "1> ax1 | 1< ax1 | 2> rx | 2< rx=1,1"},
		{"a value from nowhere", "phantom", "1> ax1 | 1< ax1 | 2> rx | 2< rx=1,7"},
		{"a refused append", "G1a", "1> ax1 | 1! ax1 | 2> rx | 2< rx=1"},
		{"a refused append below others", "G1a", "1> ax1 | 1! ax1 | 3> ax2 | 3< ax2 | 2> rx | 2< rx=1,2"},
		{"half a transaction", "G1b", "1> ax1 ax2 | 2> rx | 2< rx=1 | 1< ax1 ax2 | 3> rx | 3< rx=1,2"},
		{"two orders", "incompatible", "1> ax1 | 2> ax2 | 1< ax1 | 2< ax2 | 3> rx | 4> rx | 3< rx=1,2 | 4< rx=2,1"},
		{"two orders at the end of long lists", "incompatible", "1> ax0 ax1 ax2 ax3 ax4 ax5 ax6 ax7 | 2> ax8 | 3> ax9 | 1< ax0 ax1 ax2 ax3 ax4 ax5 ax6 ax7 | 2< ax8 | 3< ax9 | 4> rx | 5> rx | 4< rx=0,1,2,3,4,5,6,7,8,9 | 5< rx=0,1,2,3,4,5,6,7,9,8"},
		{"a lost append", "lost", "1> ax1 | 1< ax1 | 2> rx | 2< rx="},
		{"a lost append among others", "lost", "1> ax1 | 1< ax1 | 2> ax2 | 2< ax2 | 3> rx | 3< rx=2"},
		{"writes across", "G0", "1> ax1 ay1 | 2> ax2 ay2 | 1< ax1 ay1 | 2< ax2 ay2 | 3> rx ry | 3< rx=1,2 ry=2,1"},
		{"a transaction within another's writes", "G0", "1> ax1 ax3 | 2> ax2 | 1< ax1 ax3 | 2< ax2 | 3> rx | 3< rx=1,2,3"},
		{"each has seen the other", "G1c", "1> ax1 ry | 2> ay1 rx | 1< ax1 ry=1 | 2< ay1 rx=1"},
		{"a read skew", "G-single", "1> ax1 ay1 | 2> rx ry | 1< ax1 ay1 | 2< rx=1 ry="},
		{"a lost update", "G-single", "1> rx ax1 | 2> rx ax2 | 1< rx= ax1 | 2< rx= ax2 | 3> rx | 3< rx=1,2"},
		{"a lost update that nobody has seen", "G2", "1> rx ax1 | 2> rx ax2 | 1< rx= ax1 | 2< rx= ax2"},
		{"a write skew", "G2", "1> rx ay1 | 2> ry ax1 | 1< rx= ay1 | 2< ry= ax1 | 3> rx ry | 3< rx=1 ry=1"},
		{"a write skew that nobody has seen", "G2", "1> rx ay1 | 2> ry ax1 | 1< rx= ay1 | 2< ry= ax1"},
		{"a stale read", "G-single-realtime", "1> ax1 | 1< ax1 | 2> rx | 2< rx= | 3> rx | 3< rx=1"},
		{"a stale read of a later transaction", "G-single-realtime", "1> ax1 | 1< ax1 | 3> ax2 | 3< ax2 | 2> rx | 2< rx=1 | 4> rx | 4< rx=1,2"},
		{"appends in the wrong order", "G0-realtime", "1> ax1 | 1< ax1 | 2> ax2 | 2< ax2 | 3> rx | 3< rx=2,1"},
		{"read before it was written", "G1c-realtime", "1> rx | 1< rx=1 | 2> ax1 | 2< ax1"},
		{"an unknown append read before it began", "G1c-realtime", "1> rx | 1< rx=1 | 2> ax1 | 2? ax1"},
		{"a long fork", "G2", "1> ax1 | 2> ay1 | 3> rx ry | 4> rx ry | 3< rx=1 ry= | 4< rx= ry=1 | 1< ax1 | 2< ay1"},
		{"missed by one that was missed", "G2-realtime", "2> ax1 ry | 3> ay1 | 3< ay1 | 1> rx | 1< rx= | 2< ax1 ry= | 4> rx ry | 4< rx=1 ry=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				records := insert(dice, transactions(dice, 60), script(test.script))
				v := judged(check.NewTxn(), records, nil)
				finds(t, v, test.rule)
				for _, violation := range v.Violations {
					if proof := fmt.Sprint(violation.Proof); !strings.Contains(proof, "plant") {
						t.Errorf("the proof is not of what was planted: %v", violation)
					}
				}
			}
		})
	}
}

// What looks odd and is right.
func TestTxnAcceptsFragments(t *testing.T) {
	for name, lines := range map[string]string{
		"unknown and seen":                "1> ax1 | 1? ax1 | 2> rx | 2< rx=1",
		"unknown and not seen":            "1> ax1 | 1? ax1 | 2> rx | 2< rx=",
		"unknown and seen late":           "1> ax1 | 1? ax1 | 2> rx | 2< rx= | 3> rx | 3< rx=1",
		"never ended":                     "1> ax1 | 2> rx | 2< rx=1",
		"refused and not seen":            "1> ax1 | 1! ax1 | 2> rx | 2< rx=",
		"read and append, nobody sees it": "1> rx ax1 | 1< rx= ax1",
		"two in a row, nobody sees them":  "1> rx ax1 | 1< rx= ax1 | 2> ax2 | 2< ax2",
		"concurrent, either order":        "1> ax1 | 2> ax2 | 2< ax2 | 1< ax1 | 3> rx | 3< rx=1,2",
		"own append within":               "1> rx ax1 rx ax2 | 1< rx= ax1 rx=1 ax2 | 2> rx | 2< rx=1,2",
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				records := insert(dice, transactions(dice, 30), script(lines))
				accepts(t, judged(check.NewTxn(), records, nil), records)
			}
		})
	}
}

func TestTxnSaysWhatItDoesNotJudge(t *testing.T) {
	for name, lines := range map[string]string{
		"list txn/plant-x, which is written like a register":   "1> wx1 | 1< wx1 | 2> rx | 2< rx=7",
		"list txn/plant-x, which got the value \"1\" appended": "1> ax1 | 1< ax1 | 2> ax1 | 2< ax1 | 3> rx | 3< rx=1,1",
		"2 records that do not fit":                            "1< ax1 | 2> ax1 | 2< ax1 | 3! ax2",
		"1 records that do not fit":                            "1> ax1 | 1> ax2 | 1< ax2 | 2> rx | 2< rx=1,2",
	} {
		v := judged(check.NewTxn(), script(lines), nil)
		if len(v.Violations) > 0 || !strings.Contains(strings.Join(v.Left, "\n"), name) {
			t.Errorf("%s: %v, left %q", name, v.Violations, v.Left)
		}
	}
}

func TestTxnCounts(t *testing.T) {
	v := judged(check.NewTxn(), script("1> ax1 | 1? ax1 | 2> rx | 2< rx=1 | 3> ax2 | 3? ax2 | 4> ax3 | 4! ax3"), nil)
	if v.Checked != 4 || v.Unknown != 1 || v.Checker != "txn" {
		t.Errorf("checked %d, unknown %d by %q; want 4, 1 by txn", v.Checked, v.Unknown, v.Checker)
	}
}

// The shortest proof is found among longer ones, and the same each time.
func TestTxnProvesWithFew(t *testing.T) {
	long := "1> ax1 | 2> ax2 | 3> ax3 | 4> ax4 ay1 | 1< ax1 | 2< ax2 | 3< ax3 | 4< ax4 ay1 | 5> rx | 5< rx=1,2,3,4 | 6> rx ry | 6< rx=1 ry=1 | 7> rx | 7< rx=1,2,3,4"
	first := judged(check.NewTxn(), script(long), nil)
	finds(t, first, "G-single")
	if n := len(first.Violations[0].Proof); n > 4 {
		t.Errorf("%d records prove it: %v", n, first.Violations[0])
	}
	for range 10 {
		if again := judged(check.NewTxn(), script(long), nil); fmt.Sprint(again) != fmt.Sprint(first) {
			t.Fatalf("another verdict: %v, %v", again, first)
		}
	}
}

func BenchmarkTxn100000(b *testing.B) {
	dice := seeded(1)
	st, sp := &stage{dice: dice}, newSpace()
	for range 1000 { // lists of some 100 values each
		sp.lists = map[string][]string{}
		sp.prefix = fmt.Sprint(sp.written, "-")
		st.run(100, func() act { return sp.transaction(dice) })
		st.lost = nil
	}
	for b.Loop() {
		if v := judged(check.NewTxn(), st.records, nil); len(v.Violations) > 0 {
			b.Fatal(v.Violations[0])
		}
	}
	b.ReportMetric(float64(100_000*b.N)/b.Elapsed().Seconds(), "txn/s")
}
