package check_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

func TestWatchAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newTraffic(rapidDice(t), rapid.IntRange(1, 6).Draw(t, "turns"), true)
		accepts(t, judged(check.NewWatch(), s.records, s.atRest()), s.records)
	})
	for seed := range 200 {
		s := newTraffic(seeded(seed), 30, seed%2 == 0).finish()
		v := judged(check.NewWatch(), s.records, s.atRest())
		accepts(t, v, s.records)
		if v.Checked == 0 || seed%2 == 1 && len(v.Left) > 0 {
			t.Fatalf("checked %d, left %q", v.Checked, v.Left)
		}
		accepts(t, judged(check.NewWatch(), s.records, nil), s.records)
		truncated := s.atRest()
		for i := range truncated {
			truncated[i].First = max(2, s.compact, s.revision/2)
			truncated[i].Changes = slices.DeleteFunc(truncated[i].Changes, func(kv history.KV) bool { return kv.ModRevision < truncated[i].First })
		}
		// A space that has forgotten by itself, without what was before.
		accepts(t, judged(check.NewWatch(), s.records, truncated), s.records)
	}
}

// isBatch is a delivery of that many events at least.
func isBatch(events int) func(r *history.Record) bool {
	return func(r *history.Record) bool { return r.F == history.Deliver && len(r.KVs) >= events }
}

// ofAll says whether the watch is of all keys.
func ofAll(r *history.Record) bool { return r.End == "range0" }

// event is a delivery with an event of a kind.
func event(fits func(kv history.KV) bool) func(r *history.Record) bool {
	return func(r *history.Record) bool { return slices.ContainsFunc(r.KVs, fits) && r.F == history.Deliver }
}

func pick(dice dice, r *history.Record, fits func(kv history.KV) bool) *history.KV {
	var all []int
	for i, kv := range r.KVs {
		if fits(kv) {
			all = append(all, i)
		}
	}
	return &r.KVs[all[dice(len(all))]]
}

func isPut(kv history.KV) bool    { return !kv.Deleted }
func isChange(kv history.KV) bool { return !kv.Deleted && kv.Version > 1 }
func isNew(kv history.KV) bool    { return !kv.Deleted && kv.Version == 1 }
func hasPrev(kv history.KV) bool  { return kv.Prev != nil }

type watchPlant struct {
	name, rule string
	fits       func(r *history.Record) bool
	plant      func(dice dice, r *history.Record)
}

func watchPlants() []watchPlant {
	twoRevisions := func(r *history.Record) bool { return isBatch(2)(r) && r.KVs[0].ModRevision != r.KVs[1].ModRevision }
	return []watchPlant{
		{"an event of another key", "filter", isBatch(1), func(dice dice, r *history.Record) { r.KVs[dice(len(r.KVs))].Key = "other" }},
		{"two events the wrong way round", "ordered", twoRevisions, func(_ dice, r *history.Record) { r.KVs[0], r.KVs[1] = r.KVs[1], r.KVs[0] }},
		{"an event twice", "unique", isBatch(1), func(dice dice, r *history.Record) {
			i := dice(len(r.KVs))
			r.KVs = slices.Insert(r.KVs, i, r.KVs[i])
		}},
		{"an old event again", "unique", twoRevisions, func(_ dice, r *history.Record) { r.KVs = append(r.KVs, r.KVs[0]) }},
		{"a batch of the past", "future", isBatch(1), func(_ dice, r *history.Record) { r.At = r.KVs[len(r.KVs)-1].ModRevision - 1 }},
		{"an event left out", "reliable", func(r *history.Record) bool { return isBatch(3)(r) }, func(dice dice, r *history.Record) {
			i := 1 + dice(len(r.KVs)-2)
			r.KVs = slices.Delete(r.KVs, i, i+1)
		}},
		{"an event of what never happened", "phantom", func(r *history.Record) bool { return isBatch(1)(r) && ofAll(r) }, func(_ dice, r *history.Record) {
			kv := r.KVs[0]
			kv.Key = "range/never"
			r.KVs = slices.Insert(r.KVs, 0, kv)
		}},
		{"an event of the future", "phantom", isBatch(1), func(_ dice, r *history.Record) {
			kv := r.KVs[len(r.KVs)-1]
			kv.ModRevision = 100_000
			r.KVs = append(r.KVs, kv)
		}},
		{"another value", "value", event(isPut), func(dice dice, r *history.Record) { pick(dice, r, isPut).Value = "other" }},
		{"a put as a deletion", "value", event(isPut), func(dice dice, r *history.Record) { pick(dice, r, isPut).Deleted = true }},
		{"another version", "value", event(isChange), func(dice dice, r *history.Record) { pick(dice, r, isChange).Version += 5 }},
		{"another value before", "prevKV", event(hasPrev), func(dice dice, r *history.Record) {
			kv := pick(dice, r, hasPrev)
			prev := *kv.Prev
			prev.Value = "other"
			kv.Prev = &prev
		}},
		{"an older one before", "prevKV", event(hasPrev), func(dice dice, r *history.Record) {
			kv := pick(dice, r, hasPrev)
			prev := *kv.Prev
			prev.ModRevision--
			kv.Prev = &prev
		}},
		{"itself before", "prevKV", event(hasPrev), func(dice dice, r *history.Record) {
			kv := pick(dice, r, hasPrev)
			prev := *kv
			prev.Prev = nil
			kv.Prev = &prev
		}},
		{"something before what is new", "prevKV", event(isNew), func(dice dice, r *history.Record) {
			kv := pick(dice, r, isNew)
			kv.Prev = &history.KV{Key: kv.Key, ModRevision: 1}
		}},
		{"a creation as a change", "isCreate", event(isNew), func(dice dice, r *history.Record) { pick(dice, r, isNew).CreateRevision-- }},
		{"a change as a creation", "isCreate", event(isChange), func(dice dice, r *history.Record) {
			kv := pick(dice, r, isChange)
			kv.CreateRevision, kv.Version = kv.ModRevision, 1
		}},
		{"a change as a creation without a version", "isCreate", event(isChange), func(dice dice, r *history.Record) {
			kv := pick(dice, r, isChange)
			kv.CreateRevision, kv.Version = kv.ModRevision, 0
		}},
	}
}

func TestWatchFindsWhatIsPlanted(t *testing.T) {
	for _, test := range watchPlants() {
		t.Run(test.name, func(t *testing.T) {
			for seed := range plants {
				dice := seeded(seed)
				s := newTraffic(dice, 30, false).finish()
				records, r, _ := anyOf(dice, s.records, test.fits)
				if r == nil {
					t.Fatalf("seed %d has no place for it", seed)
				}
				test.plant(dice, r)
				finds(t, judged(check.NewWatch(), records, s.atRest()), test.rule)
			}
		})
	}
}

// small is a history of one key space in which every watch is known: 6 revisions
// of two keys, and two watches of all of them.
type small struct{ *traffic }

func newSmall(dice dice) *small {
	s := &small{&traffic{stage: &stage{dice: dice}, space: newSpace(), compact: 1}}
	for i := range 6 {
		r := history.Record{F: history.Put, Key: "range/" + string(rune('a'+i%2)), Value: s.value()}
		s.one(act{invoke: r, effect: func(end *history.Record) { end.Revision = s.put(end.Key, end.Value) }})
	}
	return s
}

func (s *small) open(base int64, server string) *watching {
	s.next++
	r := s.record(history.Record{F: history.Watch, Type: history.Invoke, Process: s.next, Key: "range/", End: "range0", Base: base, Server: server})
	return &watching{process: s.next, server: server, invoke: r}
}

// events delivers the events of some revisions.
func (s *small) events(w *watching, revisions ...int64) {
	var kvs []history.KV
	for _, r := range revisions {
		kvs = append(kvs, s.changes[r-2])
	}
	s.deliver(w, kvs, 7)
}

func (s *small) ends(w *watching, at int64) {
	end := w.invoke
	end.Type, end.Error, end.At = history.Refused, "revision is compacted", at
	s.record(end)
}

func TestWatchFindsPlantedSequences(t *testing.T) {
	for _, test := range []struct {
		name, rule string
		// rest: members are asked.
		rest bool
		run  func(s *small, w *watching)
	}{
		{"an event older than the batch before", "ordered", false, func(s *small, w *watching) { s.events(w, 2, 3, 5); s.events(w, 4) }},
		{"a batch again", "unique", false, func(s *small, w *watching) { s.events(w, 2, 3); s.events(w, 3, 4) }},
		{"an event after its mark", "bookmarkable", false, func(s *small, w *watching) { s.deliver(w, nil, 4); s.events(w, 4) }},
		{"a mark before its event", "bookmarkable", false, func(s *small, w *watching) { s.events(w, 2, 3, 4); s.deliver(w, nil, 3) }},
		{"a mark that goes back", "bookmarkable", false, func(s *small, w *watching) { s.deliver(w, nil, 4); s.deliver(w, nil, 3) }},
		{"resumed one late", "resumable", true, func(s *small, w *watching) { s.events(w, 3, 4) }},
		{"resumed one late, as writes tell", "resumable", false, func(s *small, w *watching) { s.events(w, 3, 4) }},
		{"resumed too early", "resumable", true, func(s *small, _ *watching) { s.events(s.open(4, "s2"), 3, 4, 5) }},
		{"a gap between batches", "reliable", true, func(s *small, w *watching) { s.events(w, 2); s.events(w, 4) }},
		{"a gap between batches, as writes tell", "reliable", false, func(s *small, w *watching) { s.events(w, 2); s.events(w, 4) }},
		{"a gap before a mark", "reliable", true, func(s *small, w *watching) { s.events(w, 2, 3); s.deliver(w, nil, 7) }},
		{"a mark of what never came", "reliable", true, func(s *small, w *watching) { s.deliver(w, nil, 7) }},
		{"refused as compacted", "compacted", true, func(s *small, w *watching) { s.ends(w, 0) }},
		{"refused as compacted beyond what was asked", "compacted", true, func(s *small, w *watching) {
			s.one(s.compactTo(4))
			s.events(w, 2, 3, 4, 5)
			s.ends(w, 0)
		}},
		{"refused as compacted, and not older than the oldest", "compacted", true, func(s *small, w *watching) {
			s.one(s.compactTo(4))
			s.ends(w, 2)
		}},
		{"what was before is left out", "prevKV", true, func(s *small, w *watching) {
			kvs := slices.Clone(s.changes)
			for i := range kvs[:4] {
				kvs[i].Prev = s.before(kvs[i])
			}
			s.deliver(w, kvs, 7)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSmall(seeded(1))
			test.run(s, s.open(2, "s1"))
			var members []check.Member
			if test.rest {
				members = s.space.members()
			}
			finds(t, judged(check.NewWatch(), s.records, members), test.rule)
		})
	}
}

func (s *small) compactTo(at int64) act {
	return act{invoke: history.Record{F: history.Compact, Base: at}, effect: func(*history.Record) {}}
}

// A revision with several keys is not split over two batches.
func TestWatchFindsASplitRevision(t *testing.T) {
	for seed := range plants {
		dice := seeded(seed)
		s := newTraffic(dice, 30, false).finish()
		many := func(r *history.Record) bool {
			return isBatch(2)(r) && r.KVs[len(r.KVs)-1].ModRevision == r.KVs[len(r.KVs)-2].ModRevision
		}
		records, r, i := anyOf(dice, s.records, many)
		rest := *r
		rest.KVs = r.KVs[len(r.KVs)-1:]
		r.KVs = r.KVs[:len(r.KVs)-1]
		finds(t, judged(check.NewWatch(), slices.Insert(records, i+1, rest), s.atRest()), "atomic")
	}
}

// Servers tell the same: what one watch has, another must have, and equally, also
// when nobody else knows.
func TestWatchFindsWhereServersDiffer(t *testing.T) {
	for name, spoil := range map[string]func(kvs []history.KV) []history.KV{
		"a value":   func(kvs []history.KV) []history.KV { kvs[2].Value = "other"; return kvs },
		"a version": func(kvs []history.KV) []history.KV { kvs[2].Version += 5; return kvs },
		"a lease":   func(kvs []history.KV) []history.KV { kvs[2].Lease = 8; return kvs },
		"an event":  func(kvs []history.KV) []history.KV { return slices.Delete(kvs, 2, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSmall(seeded(1))
			for i := range s.changes {
				s.changes[i].Lease = 7
			}
			first, second := s.open(2, "s1"), s.open(2, "s2")
			s.deliver(first, slices.Clone(s.changes), 7)
			s.deliver(second, spoil(slices.Clone(s.changes)), 7)
			records := slices.DeleteFunc(s.records, func(r history.Record) bool { return r.F == history.Put })
			finds(t, judged(check.NewWatch(), records, nil), "equal")
		})
	}
}

func TestWatchAcceptsRefusals(t *testing.T) {
	for name, run := range map[string]func(s *small, w *watching){
		"compacted":                     func(s *small, w *watching) { s.one(s.compactTo(4)); s.ends(w, 4) },
		"compacted while it was slow":   func(s *small, w *watching) { s.events(w, 2); s.one(s.compactTo(4)); s.ends(w, 0) },
		"from now on, and nothing came": func(s *small, _ *watching) { s.ends(s.open(0, "s1"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSmall(seeded(1))
			run(s, s.open(2, "s1"))
			accepts(t, judged(check.NewWatch(), s.records, s.space.members()), s.records)
		})
	}
}

func TestWatchSaysWhatItDoesNotJudge(t *testing.T) {
	s := newSmall(seeded(1))
	v := judged(check.NewWatch(), s.records, nil)
	if !strings.Contains(strings.Join(v.Left, "\n"), "no member was asked") {
		t.Errorf("left %q", v.Left)
	}
	members := s.space.members()
	for i := range members {
		members[i].First, members[i].Changes = 5, members[i].Changes[3:]
	}
	v = judged(check.NewWatch(), s.records, members)
	if !strings.Contains(strings.Join(v.Left, "\n"), "before revision 5") {
		t.Errorf("left %q", v.Left)
	}
}

func BenchmarkWatch(b *testing.B) {
	const watches, revisions, batch = 10, 100_000, 100
	sp, st := newSpace(), &stage{dice: seeded(1)}
	for i := range revisions {
		sp.put("range/"+string(rune('a'+i%26)), "value")
	}
	for w := range watches {
		st.record(history.Record{F: history.Watch, Type: history.Invoke, Process: int32(w), Key: "range/", End: "range0", Base: 2})
		for i := 0; i < revisions; i += batch {
			st.record(history.Record{F: history.Deliver, Type: history.OK, Process: int32(w), KVs: sp.changes[i : i+batch]})
		}
	}
	members := sp.members()
	for b.Loop() {
		if v := judged(check.NewWatch(), st.records, members); len(v.Violations) > 0 {
			b.Fatal(v.Violations[0])
		}
	}
	b.ReportMetric(float64(watches*revisions*b.N)/b.Elapsed().Seconds(), "events/s")
}
