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

// adding is a random operation on a set of a correct store.
func (s *space) adding(dice dice) act {
	all := history.Record{F: history.List, Key: "set/", End: "set0"}
	switch dice(6) {
	case 0: // a stale list shows any past
		all.F = history.StaleList
		return act{invoke: all, effect: func(end *history.Record) {
			end.At = 1 + int64(dice(int(s.revision)))
			end.KVs = replay(s.changes, end.Key, end.End, end.At)
		}}
	case 1: // a page
		if all.Limit = int64(1 + dice(4)); dice(2) == 0 {
			all.Key, all.End = "set/v2", "set/v5"
		}
		return act{invoke: all, effect: func(end *history.Record) {
			end.At, end.KVs = s.revision, s.list(end.Key, end.End)
			if end.More = int64(len(end.KVs)) > end.Limit; end.More {
				end.KVs = end.KVs[:end.Limit]
			}
		}}
	case 2:
		return act{invoke: all, effect: func(end *history.Record) { end.At, end.KVs = s.revision, s.list(end.Key, end.End) }}
	}
	refuse, v := dice(10) == 0, s.value()
	return act{
		invoke: history.Record{F: history.CAS, Key: "set/" + v, Value: v},
		effect: func(end *history.Record) {
			if refuse {
				end.Type = history.Refused
				return
			}
			end.Revision = s.put(end.Key, end.Value)
		},
	}
}

func additions(dice dice, n int) []history.Record {
	st, sp := &stage{dice: dice}, newSpace()
	st.run(n, func() act { return sp.adding(dice) })
	for range 2 { // so that something can be seen to be lost
		all := history.Record{F: history.List, Key: "set/", End: "set0"}
		st.one(act{invoke: all, effect: func(end *history.Record) { end.At, end.KVs = sp.revision, sp.list(end.Key, end.End) }})
	}
	return st.records
}

func TestSetAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := additions(rapidDice(t), rapid.IntRange(0, 40).Draw(t, "n"))
		accepts(t, judged(check.NewSet(), records, nil), records)
	})
	for seed := range 200 {
		records := additions(seeded(seed), 200)
		accepts(t, judged(check.NewSet(), records, nil), records)
	}
}

// forget takes an element out of what lists show.
func forget(records []history.Record, key string) {
	for i := range records {
		records[i].KVs = slices.DeleteFunc(slices.Clone(records[i].KVs), func(kv history.KV) bool { return kv.Key == key })
	}
}

// anAdd is the end of a random acknowledged add.
func anAdd(dice dice, records []history.Record) int {
	var all []int
	for i, r := range records {
		if r.F == history.CAS && r.Type == history.OK {
			all = append(all, i)
		}
	}
	return all[dice(len(all))]
}

func TestSetFindsWhatIsPlanted(t *testing.T) {
	for _, test := range []struct {
		name, rule string
		plant      func(dice dice, records []history.Record)
	}{
		{"an acknowledged add is nowhere", "lost", func(dice dice, records []history.Record) {
			forget(records, records[anAdd(dice, records)].Key)
		}},
		{"an acknowledged add vanishes in the end", "lost", func(dice dice, records []history.Record) {
			forget(records[len(records)-4:], records[anAdd(dice, records)].Key)
		}},
		{"an add of an unknown outcome is seen and vanishes", "lost", func(dice dice, records []history.Record) {
			i := anAdd(dice, records)
			records[i].Type, records[i].Revision = history.Unknown, 0
			forget(records[len(records)-2:], records[i].Key)
		}},
		{"an add is missing once", "stale", func(dice dice, records []history.Record) {
			forget(records[len(records)-4:len(records)-2], records[anAdd(dice, records)].Key)
		}},
		{"an element from nowhere", "phantom", func(_ dice, records []history.Record) {
			last := &records[len(records)-1]
			last.KVs = append(slices.Clone(last.KVs), history.KV{Key: "set/zz"})
		}},
		{"an element before it was added", "phantom", func(dice dice, records []history.Record) {
			key := records[anAdd(dice, records[len(records)/2:])+len(records)/2].Key
			i := slices.IndexFunc(records, func(r history.Record) bool { return r.F == history.List && r.Type == history.OK && !r.More })
			records[i].KVs = append([]history.KV{{Key: key}}, records[i].KVs...)
		}},
		{"a refused add is there", "refused", func(dice dice, records []history.Record) {
			records[anAdd(dice, records)].Type = history.Refused
		}},
		{"an element comes twice", "duplicated", func(dice dice, records []history.Record) {
			last := &records[len(records)-1]
			last.KVs = append(slices.Clone(last.KVs), last.KVs[dice(len(last.KVs))])
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				records := additions(dice, 100)
				test.plant(dice, records)
				finds(t, judged(check.NewSet(), records, nil), test.rule)
			}
		})
	}
}

func TestSetSaysWhatItDoesNotJudge(t *testing.T) {
	st, sp := &stage{dice: seeded(1), certain: true}, newSpace()
	put := func(key string) {
		st.one(act{invoke: history.Record{F: history.Put, Key: key}, effect: func(end *history.Record) { end.Revision = sp.put(key, "") }})
	}
	put("set/a")
	st.one(act{invoke: history.Record{F: history.Delete, Key: "set/a"}, effect: func(*history.Record) {}})
	put("set/b")
	v := judged(check.NewSet(), st.records, nil)
	left := strings.Join(v.Left, "\n")
	if len(v.Violations) > 0 || !strings.Contains(left, "2 acknowledged elements") || !strings.Contains(left, "2 records of what is no operation") {
		t.Errorf("%v, left %q", v.Violations, left)
	}
}

func TestSetCountsWhatIsRecovered(t *testing.T) {
	st, sp := &stage{dice: seeded(1)}, newSpace()
	for i := range 3 {
		st.one(act{invoke: history.Record{F: history.Put, Key: fmt.Sprint("set/", i)}, effect: func(end *history.Record) {
			if end.Type = history.Unknown; i > 0 {
				sp.put(end.Key, "")
			}
		}})
	}
	st.one(act{invoke: history.Record{F: history.List, Key: "set/", End: "set0"}, effect: func(end *history.Record) { end.KVs = sp.list(end.Key, end.End) }})
	v := judged(check.NewSet(), st.records, nil)
	if v.Checked != 4 || v.Unknown != 1 || !slices.Contains(v.Notes, "2 adds of an unknown outcome took effect") {
		t.Errorf("checked %d, unknown %d, notes %q", v.Checked, v.Unknown, v.Notes)
	}
}
