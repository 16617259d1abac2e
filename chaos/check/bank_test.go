package check_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

var bankAccounts = []string{"bank/a", "bank/b", "bank/c"}

const bankTotal = 100

func (s *space) balance(account string) int {
	n, _ := strconv.Atoi(s.keys[account].Value)
	return n
}

// open puts all money into the first account, in one revision.
func (s *space) open() act {
	r := history.Record{F: history.Txn}
	for i, a := range bankAccounts {
		r.Mops = append(r.Mops, history.Mop{F: history.MopWrite, Key: a, Value: strconv.Itoa(bankTotal * max(0, 1-i))})
	}
	return act{invoke: r, effect: s.writeAll}
}

func (s *space) writeAll(end *history.Record) {
	s.revision++
	for _, m := range end.Mops {
		if m.F == history.MopWrite {
			s.set(m.Key, m.Value, 0)
		}
	}
	end.Revision = s.revision
}

// banking is a random operation of a correct bank.
func (s *space) banking(dice dice) act {
	all := history.Record{F: history.List, Key: "bank/", End: "bank0"}
	switch dice(5) {
	case 4: // a page, which shows no total
		all.Limit = 2
		return act{invoke: all, effect: func(end *history.Record) {
			end.At, end.KVs = s.revision, s.list(end.Key, end.End)
			if end.More = len(end.KVs) > 2; end.More {
				end.KVs = end.KVs[:2]
			}
		}}
	case 0:
		return act{invoke: all, effect: func(end *history.Record) { end.At, end.KVs = s.revision, s.list(end.Key, end.End) }}
	case 1:
		all.F = history.StaleList
		return act{invoke: all, effect: func(end *history.Record) {
			end.At = 1 + int64(dice(int(s.revision)))
			end.KVs = replay(s.changes, end.Key, end.End, end.At)
		}}
	case 2:
		r := history.Record{F: history.Txn}
		for _, a := range bankAccounts {
			r.Mops = append(r.Mops, history.Mop{F: history.MopRead, Key: a})
		}
		return act{invoke: r, effect: func(end *history.Record) {
			for i, m := range end.Mops {
				if kv, ok := s.keys[m.Key]; ok {
					end.Mops[i].Values = []string{kv.Value}
				}
			}
		}}
	}
	from, to := dice(3), dice(3)
	r := history.Record{F: history.Txn}
	for _, i := range []int{from, to} {
		r.Mops = append(r.Mops, history.Mop{F: history.MopRead, Key: bankAccounts[i]})
	}
	return act{invoke: r, effect: func(end *history.Record) {
		amount := s.balance(bankAccounts[from])
		if from == to || amount == 0 {
			end.Type = history.Refused
			return
		}
		amount = 1 + dice(amount)
		for i, by := range []int{-amount, amount} {
			m := &end.Mops[i]
			m.Values = []string{s.keys[m.Key].Value}
			end.Mops = append(end.Mops, history.Mop{F: history.MopWrite, Key: m.Key, Value: strconv.Itoa(s.balance(m.Key) + by)})
		}
		s.writeAll(end)
	}}
}

func bank(dice dice, n int) ([]history.Record, *space) {
	st, sp := &stage{dice: dice}, newSpace()
	opened := dice(n/2 + 1)
	st.run(n, func() act {
		if opened--; opened == -1 {
			return sp.open()
		}
		return sp.banking(dice)
	})
	if len(sp.keys) == 0 { // the opening may still be on its way, or is lost
		st.certain = true
		st.lost = nil
		st.one(sp.open())
	}
	st.certain = true
	st.run(8, func() act { return sp.banking(dice) })
	for range 2 {
		st.one(act{invoke: history.Record{F: history.List, Key: "bank/", End: "bank0"}, effect: func(end *history.Record) {
			end.At, end.KVs = sp.revision, sp.list(end.Key, end.End)
		}})
	}
	return st.records, sp
}

func TestBankAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records, sp := bank(rapidDice(t), rapid.IntRange(1, 30).Draw(t, "n"))
		accepts(t, judged(check.NewBank(bankAccounts, bankTotal), records, sp.members()), records)
	})
	for seed := range 200 {
		records, sp := bank(seeded(seed), 100)
		accepts(t, judged(check.NewBank(bankAccounts, bankTotal), records, sp.members()), records)
		accepts(t, judged(check.NewBank(bankAccounts, bankTotal), records, compacted(sp, 1+int64(seed)%sp.revision)), records)
	}
}

// compacted are members that hold the newest change of each key at a revision, and
// all that came later.
func compacted(s *space, first int64) []check.Member {
	base := replay(s.changes, "\x01", "\x00", first-1)
	slices.SortFunc(base, func(a, b history.KV) int { return int(a.ModRevision - b.ModRevision) })
	for _, kv := range s.changes {
		if kv.ModRevision >= first {
			base = append(base, kv)
		}
	}
	members := s.members()
	for i := range members {
		members[i].First, members[i].Changes = first, slices.Clone(base)
	}
	return members
}

func TestBankFindsWhatIsPlanted(t *testing.T) {
	last := func(records []history.Record) *history.Record {
		r := &records[len(records)-1]
		r.KVs = slices.Clone(r.KVs)
		return r
	}
	for _, test := range []struct {
		name, rule string
		plant      func(dice dice, records []history.Record, members []check.Member)
	}{
		{"money appears", "total", func(dice dice, records []history.Record, _ []check.Member) {
			kv := &last(records).KVs[dice(3)]
			n, _ := strconv.Atoi(kv.Value)
			kv.Value = strconv.Itoa(n + 1 + dice(5))
		}},
		{"two moments in one transaction", "total", func(dice dice, records []history.Record, _ []check.Member) {
			i := slices.IndexFunc(records, func(r history.Record) bool {
				return r.Type == history.OK && len(r.Mops) == 3 && r.Mops[0].F == history.MopRead && len(r.Mops[0].Values) > 0
			})
			if i < 0 {
				last(records).KVs[0].Value = "1000"
				return
			}
			records[i].Mops = slices.Clone(records[i].Mops)
			records[i].Mops[dice(3)].Values = []string{"1000"}
		}},
		{"an account vanishes", "missing", func(dice dice, records []history.Record, _ []check.Member) {
			r, i := last(records), dice(3)
			r.KVs = slices.Delete(r.KVs, i, i+1)
		}},
		{"all accounts vanish", "missing", func(_ dice, records []history.Record, _ []check.Member) { last(records).KVs = nil }},
		{"more is spent than there was", "negative", func(dice dice, records []history.Record, _ []check.Member) {
			last(records).KVs[dice(3)].Value = "-1"
		}},
		{"a balance is torn", "unreadable", func(dice dice, records []history.Record, _ []check.Member) {
			last(records).KVs[dice(3)].Value = "1\x00"
		}},
		{"a negative balance at rest", "negative", func(_ dice, _ []history.Record, members []check.Member) {
			members[0].Changes[len(members[0].Changes)-1].Value = "-5"
		}},
		{"an account from nowhere", "phantom", func(_ dice, records []history.Record, _ []check.Member) {
			r := last(records)
			r.KVs = append(r.KVs, history.KV{Key: "bank/d", Value: "0"})
		}},
		{"half a transfer at rest", "total", func(dice dice, _ []history.Record, members []check.Member) {
			i := 3 + dice(len(members[0].Changes)-3) // after the opening
			for j := i; j < len(members[0].Changes); j++ {
				if members[0].Changes[j].Key == members[0].Changes[i].Key {
					n, _ := strconv.Atoi(members[0].Changes[j].Value)
					members[0].Changes[j].Value = strconv.Itoa(n + 1)
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				records, sp := bank(dice, 100)
				members := sp.members()
				test.plant(dice, records, members)
				finds(t, judged(check.NewBank(bankAccounts, bankTotal), records, members), test.rule)
			}
		})
	}
}

func TestBankSaysWhatItDoesNotJudge(t *testing.T) {
	records, _ := bank(seeded(1), 20)
	v := judged(check.NewBank(bankAccounts, bankTotal), records, nil)
	if !strings.Contains(strings.Join(v.Left, "\n"), "no member was asked") {
		t.Errorf("left %q", v.Left)
	}
}
