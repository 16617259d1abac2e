package check_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

func TestRangesAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newTraffic(rapidDice(t), rapid.IntRange(1, 5).Draw(t, "turns"), true)
		accepts(t, judged(check.NewRanges(), s.records, s.atRest()), s.records)
	})
	for seed := range 200 {
		s := newTraffic(seeded(seed), 30, seed%2 == 0)
		v := judged(check.NewRanges(), s.records, s.atRest())
		accepts(t, v, s.records)
		if seed%2 == 1 && len(v.Left) > 0 {
			t.Fatalf("left %q though members hold everything", v.Left)
		}
		accepts(t, judged(check.NewRanges(), s.records, nil), s.records)
	}
}

// isList is an answer with some keys.
func isList(keys int) func(r *history.Record) bool {
	return func(r *history.Record) bool {
		return (r.F == history.List || r.F == history.StaleList) && r.Type == history.OK && len(r.KVs) >= keys
	}
}

func TestRangesFindsWhatIsPlanted(t *testing.T) {
	for _, test := range []struct {
		name, rule string
		fits       func(r *history.Record) bool
		plant      func(dice dice, r *history.Record)
		// alone: it is found without members.
		alone bool
	}{
		{"two keys the wrong way round", "order", isList(2), func(dice dice, r *history.Record) {
			i := dice(len(r.KVs) - 1)
			r.KVs[i], r.KVs[i+1] = r.KVs[i+1], r.KVs[i]
		}, true},
		{"a key twice", "order", isList(1), func(_ dice, r *history.Record) { r.KVs = append(r.KVs, r.KVs[len(r.KVs)-1]) }, true},
		{"a key below the range", "bounds", isList(1), func(_ dice, r *history.Record) { r.KVs[0].Key = "a" }, true},
		{"a key above the range", "bounds", func(r *history.Record) bool { return isList(1)(r) && r.End == "range0" }, func(_ dice, r *history.Record) {
			r.KVs[len(r.KVs)-1].Key = "range0"
		}, true},
		{"a page too large", "limit", func(r *history.Record) bool { return isList(1)(r) && int64(len(r.KVs)) == r.Limit && r.End != "" }, func(_ dice, r *history.Record) {
			r.KVs = append(r.KVs, history.KV{Key: "range/z", ModRevision: 1})
		}, true},
		{"more of what has no limit", "limit", func(r *history.Record) bool { return isList(0)(r) && r.Limit == 0 }, func(_ dice, r *history.Record) { r.More = true }, true},
		{"a key of the future", "future", isList(1), func(dice dice, r *history.Record) { r.KVs[dice(len(r.KVs))].ModRevision = r.At + 1 }, true},
		{"changed before it was created", "future", isList(1), func(dice dice, r *history.Record) {
			kv := &r.KVs[dice(len(r.KVs))]
			kv.CreateRevision = kv.ModRevision + 1
		}, true},
		{"fewer counted than shown", "count", isList(2), func(_ dice, r *history.Record) { r.Count = 1 }, true},
		{"more counted than shown", "count", func(r *history.Record) bool { return isList(1)(r) && !r.More }, func(_ dice, r *history.Record) { r.Count = 99 }, true},
		{"a key left out", "missing", func(r *history.Record) bool { return isList(1)(r) && r.Limit == 0 }, func(dice dice, r *history.Record) {
			i := dice(len(r.KVs))
			r.KVs = slices.Delete(r.KVs, i, i+1)
		}, false},
		{"a key left out of a page", "missing", func(r *history.Record) bool { return isList(2)(r) && r.More }, func(dice dice, r *history.Record) {
			i := dice(len(r.KVs) - 1)
			r.KVs = slices.Delete(r.KVs, i, i+1)
		}, false},
		{"a key that is gone", "extra", func(r *history.Record) bool { return isList(0)(r) && r.End != "" && r.Count == 0 }, func(_ dice, r *history.Record) {
			r.KVs = append(r.KVs, history.KV{Key: "range/zz", ModRevision: 1})
		}, false},
		{"another value", "value", isList(1), func(dice dice, r *history.Record) { r.KVs[dice(len(r.KVs))].Value = "other" }, false},
		{"an older revision of a key", "value", isList(1), func(dice dice, r *history.Record) {
			kv := &r.KVs[dice(len(r.KVs))]
			kv.CreateRevision = 0
			kv.ModRevision--
		}, false},
		{"another version", "value", isList(1), func(dice dice, r *history.Record) { r.KVs[dice(len(r.KVs))].Version += 3 }, false},
		{"the end told too early", "more", func(r *history.Record) bool { return isList(1)(r) && r.More }, func(_ dice, r *history.Record) { r.More = false }, false},
		{"more when there is none", "more", func(r *history.Record) bool { return isList(0)(r) && !r.More && r.Limit > 0 }, func(_ dice, r *history.Record) { r.More = true }, false},
		{"a wrong count", "total", func(r *history.Record) bool { return r.Type == history.OK && r.Count > 0 && r.F == history.List }, func(_ dice, r *history.Record) {
			r.Count++
		}, false},
		{"a revision that is not there", "ahead", isList(0), func(_ dice, r *history.Record) { r.At = 100_000 }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				s := newTraffic(dice, 20, false)
				records, r, _ := anyOf(dice, s.records, test.fits)
				if r == nil {
					t.Fatalf("seed %d has no place for it", seed)
				}
				test.plant(dice, r)
				finds(t, judged(check.NewRanges(), records, s.atRest()), test.rule)
				if test.alone {
					finds(t, judged(check.NewRanges(), records, nil), test.rule)
				}
			}
		})
	}
}

// later are the places of records of which a later one of the same process fits.
func later(records []history.Record, fits func(first, later *history.Record) bool) (out [][2]int) {
	for i := range records {
		for j := i + 1; j < len(records); j++ {
			if records[i].Process == records[j].Process {
				if fits(&records[i], &records[j]) {
					out = append(out, [2]int{i, j})
				}
				break
			}
		}
	}
	return out
}

// What is wrong only beside what was asked.
func TestRangesFindsPlantedAnswers(t *testing.T) {
	asked := func(invoke, end *history.Record) bool {
		return invoke.F == history.List && invoke.Type == history.Invoke && invoke.At > 2 && end.Type == history.OK
	}
	paged := func(page, next *history.Record) bool {
		return page.More && page.At != 0 && next.Type == history.Invoke && next.At == page.At
	}
	for _, test := range []struct {
		name, rule string
		fits       func(first, later *history.Record) bool
		plant      func(first, later *history.Record)
	}{
		{"another revision than was asked for", "at", asked, func(_, end *history.Record) { end.At-- }},
		{"refused as compacted", "compacted", asked, func(_, end *history.Record) {
			end.Type, end.Error, end.KVs = history.Refused, "revision is compacted", nil
		}},
		{"pages of two revisions", "chain", paged, func(page, _ *history.Record) { page.At++ }},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				s := newTraffic(dice, 20, false)
				places := later(s.records, test.fits)
				place := places[dice(len(places))]
				test.plant(&s.records[place[0]], &s.records[place[1]])
				finds(t, judged(check.NewRanges(), s.records, s.atRest()), test.rule)
			}
		})
	}
}

func TestRangesSaysWhatItDoesNotJudge(t *testing.T) {
	s := newTraffic(seeded(1), 20, false)
	records := slices.Clone(s.records)
	for i := range records[:len(records)/2] {
		records[i].At = 0
	}
	v := judged(check.NewRanges(), records, s.atRest())
	if !strings.Contains(strings.Join(v.Left, "\n"), "that do not tell their revision") {
		t.Errorf("left %q", v.Left)
	}
	v = judged(check.NewRanges(), s.records, nil)
	if !strings.Contains(strings.Join(v.Left, "\n"), "or was asked for") {
		t.Errorf("left %q", v.Left)
	}
}
