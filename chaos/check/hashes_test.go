package check_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// hashed is a history of hashes, and what three members hold at its end.
func hashed(dice dice) ([]history.Record, []check.Member) {
	st, sp := &stage{dice: dice}, newSpace()
	for range 50 {
		sp.put("k"+string(rune('a'+dice(5))), sp.value())
	}
	for range 30 {
		at := 1 + int64(dice(int(sp.revision)))
		st.record(history.Record{F: history.Hash, Type: history.OK, Server: "s" + string(rune('1'+dice(3))), At: at, Value: check.FormatHash(uint64(at) * 7)})
	}
	members := sp.members()
	for i := range members {
		members[i].Hash = uint64(sp.revision) * 7
	}
	members[1].Changes, members[1].First = members[1].Changes[10:], members[1].Changes[10].ModRevision // compacted
	return st.records, members
}

func TestHashesAcceptsWhatIsRight(t *testing.T) {
	for seed := range 100 {
		records, members := hashed(seeded(seed))
		v := judged(check.NewHashes(), records, members)
		accepts(t, v, records)
		if v.Checked != 33 {
			t.Errorf("%d were checked", v.Checked)
		}
	}
}

func TestHashesFindsWhatIsPlanted(t *testing.T) {
	for _, test := range []struct {
		name, rule string
		plant      func(dice dice, records []history.Record, members []check.Member) []history.Record
	}{
		{"another hash", "hash", func(dice dice, records []history.Record, _ []check.Member) []history.Record {
			r := records[dice(len(records))]
			r.Server, r.Value = "s9", check.FormatHash(1)
			return append(records, r)
		}},
		{"another hash of the same server", "hash", func(dice dice, records []history.Record, _ []check.Member) []history.Record {
			r := records[dice(len(records))]
			r.Value = check.FormatHash(1)
			return append(records, r)
		}},
		{"another hash at rest", "hash", func(dice dice, records []history.Record, members []check.Member) []history.Record {
			members[dice(3)].Hash++
			return records
		}},
		{"another hash at rest than before", "hash", func(_ dice, records []history.Record, members []check.Member) []history.Record {
			return append(records, history.Record{F: history.Hash, Type: history.OK, Server: "s1", At: members[0].Revision, Value: check.FormatHash(1)})
		}},
		{"a member that is behind", "behind", func(dice dice, records []history.Record, members []check.Member) []history.Record {
			members[1+dice(2)].Revision--
			return records
		}},
		{"another value", "changes", func(dice dice, records []history.Record, members []check.Member) []history.Record {
			m := members[dice(3)]
			m.Changes[11+dice(len(m.Changes)-12)].Value = "other"
			return records
		}},
		{"another version", "changes", func(dice dice, records []history.Record, members []check.Member) []history.Record {
			members[2].Changes[11+dice(30)].Version++
			return records
		}},
		{"a change less", "changes", func(dice dice, records []history.Record, members []check.Member) []history.Record {
			i := 11 + dice(30)
			members[2].Changes = slices.Delete(members[2].Changes, i, i+1)
			return records
		}},
		{"the last change less", "changes", func(_ dice, records []history.Record, members []check.Member) []history.Record {
			members[2].Changes = members[2].Changes[:len(members[2].Changes)-1]
			return records
		}},
		{"changes out of order", "order", func(dice dice, records []history.Record, members []check.Member) []history.Record {
			c := members[dice(3)].Changes
			i := dice(len(c) - 1)
			c[i], c[i+1] = c[i+1], c[i]
			return records
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				records, members := hashed(dice)
				finds(t, judged(check.NewHashes(), test.plant(dice, records, members), members), test.rule)
			}
		})
	}
}

func TestHashesSaysWhatItDoesNotJudge(t *testing.T) {
	records, members := hashed(seeded(1))
	v := judged(check.NewHashes(), records, members[:1])
	if len(v.Left) != 1 || !strings.Contains(v.Left[0], "1 were asked") {
		t.Errorf("left %q", v.Left)
	}
}
