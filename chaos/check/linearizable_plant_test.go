package check_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"pgregory.net/rapid"
)

// overwritten is the version of key before the one that was acknowledged before
// index, if there is one.
func (s *linSim) overwritten(key string, index int64) (older, newer history.KV, ok bool) {
	for i := len(s.changes) - 1; i >= 0; i-- {
		kv := s.changes[i]
		if kv.Key != key {
			continue
		}
		if ok {
			return kv, newer, !kv.Deleted
		}
		if ack, there := s.acked[kv.ModRevision]; there && ack < index && !kv.Deleted {
			newer, ok = kv, true
		}
	}
	return history.KV{}, newer, false
}

// begun is where an operation began.
func (s *linSim) begun(c *linClient) int64 {
	for i := len(s.records) - 1; i >= 0; i-- {
		if r := &s.records[i]; r.Type == history.Invoke && r.Process == c.invoke.Process {
			return r.Index
		}
	}
	panic("an operation ends that did not begin")
}

// ackedBefore is the highest revision that was acknowledged before index.
func (s *linSim) ackedBefore(index int64) int64 {
	highest := int64(0)
	for rev, ack := range s.acked {
		if ack < index {
			highest = max(highest, rev)
		}
	}
	return highest
}

// wrongAnswer makes the answer of c wrong, if the plant fits it.
func (s *linSim) wrongAnswer(c *linClient) {
	r, begun := &c.answer, s.begun(c)
	read := r.F == history.Read
	list := r.F == history.List && c.invoke.At == 0
	older, newer, overwritten := s.overwritten(r.Key, begun)
	live, there := s.state(s.ackedBefore(begun))[r.Key]
	switch s.plant {
	case plantPhantom:
		if s.planted = read; read {
			r.Value, r.Revision, r.At = "nobody's", s.rev+1, 0
		}
	case plantStaleRead:
		if s.planted = read && overwritten; s.planted {
			s.read(r, older)
			r.At = 0
		}
	case plantStaleList:
		s.planted = list && s.staleIn(r, begun)
	case plantStaleAt:
		if known := s.ackedBefore(begun); (read || list) && known > 2 {
			at := known - 1
			state := s.state(at)
			if s.planted = true; read {
				s.read(r, state[r.Key])
			} else {
				s.list(r, state)
			}
			r.At = at
		}
	case plantGoneRead:
		// Only when no deletion can explain it.
		if s.planted = read && there && newer.ModRevision == live.ModRevision && s.live[r.Key].ModRevision == live.ModRevision && !s.deleting(r.Key); s.planted {
			r.Revision, r.Value, r.At = 0, "", 0
		}
	case plantTornList:
		s.planted = list && s.torn(r)
	case plantListHole:
		s.planted = list && s.hole(r, begun)
	case plantValue:
		if s.planted = read && r.Revision != 0 && s.isAcked(r.Revision); s.planted {
			r.Value += "-wrong"
		}
	case plantListValue:
		s.planted = (list || r.F == history.StaleList) && len(r.KVs) > 0 && s.isAcked(r.KVs[0].ModRevision)
		if s.planted {
			r.KVs = slices.Clone(r.KVs)
			r.KVs[0].Value += "-wrong"
		}
	case plantSameRevision, plantStaleWrite, plantFuture:
		s.wrongRevision(c, begun)
	}
}

func (s *linSim) isAcked(rev int64) bool { _, there := s.acked[rev]; return there }

func (s *linSim) wrongRevision(c *linClient, begun int64) {
	r := &c.answer
	known := s.ackedBefore(begun)
	isWrite := (r.F == history.Put || r.F == history.CAS) && r.Revision != 0
	switch s.plant {
	case plantSameRevision:
		if s.planted = isWrite && known > 1; s.planted {
			r.Revision, r.At = known, 0
		}
	case plantStaleWrite:
		// A revision that no acknowledged write has.
		for rev := known - 1; isWrite && rev > 1 && !s.planted; rev-- {
			if !s.isAcked(rev) {
				r.Revision, r.At, s.planted = rev, 0, true
			}
		}
	case plantFuture:
		if s.planted = r.F == history.Read; s.planted {
			r.Value, r.Revision, r.At = fmt.Sprintf("v%d", s.values+1), s.rev+1, 0
			next := history.Record{Process: 2000, Type: history.Invoke, F: history.Put, Key: r.Key, Value: s.value()}
			s.idle = slices.Clone(s.idle)
			s.running = append(s.running, &linClient{invoke: next, answer: next})
			// It begins after this answer.
			defer func() { s.after(next) }()
		}
	}
}

// after puts an invocation behind the record that is made next.
func (s *linSim) after(next history.Record) { s.pending = append(s.pending, next) }

// deleting says whether a deletion of key runs or may take effect yet.
func (s *linSim) deleting(key string) bool {
	deletes := func(c *linClient) bool { return c.answer.F == history.Delete && c.answer.Key == key }
	if slices.ContainsFunc(s.running, deletes) || slices.ContainsFunc(s.late, deletes) {
		return true
	}
	// One that ended as unknown may be what explains it, whatever it did.
	return slices.ContainsFunc(s.records, func(r history.Record) bool {
		return r.Type == history.Unknown && r.F == history.Delete && r.Key == key
	}) || slices.ContainsFunc(s.changes, func(kv history.KV) bool { return kv.Deleted && kv.Key == key && !s.isAcked(kv.ModRevision) }) ||
		slices.ContainsFunc(s.changes, func(kv history.KV) bool {
			return kv.Deleted && kv.Key == key && kv.ModRevision > s.live[key].ModRevision
		})
}

func (s *linSim) staleIn(r *history.Record, begun int64) bool {
	for i, kv := range r.KVs {
		if older, _, ok := s.overwritten(kv.Key, begun); ok {
			r.KVs = slices.Clone(r.KVs)
			r.KVs[i], r.At = older, 0
			return true
		}
	}
	return false
}

func (s *linSim) hole(r *history.Record, begun int64) bool {
	state := s.state(s.ackedBefore(begun))
	for i, kv := range r.KVs {
		if state[kv.Key].ModRevision == kv.ModRevision && s.isAcked(kv.ModRevision) && !s.deleting(kv.Key) && (!r.More || i < len(r.KVs)-1) {
			r.KVs = slices.Delete(slices.Clone(r.KVs), i, i+1)
			return true
		}
	}
	return false
}

// torn shows one key of a list as it was before a transaction that the list shows.
func (s *linSim) torn(r *history.Record) bool {
	for i, kv := range r.KVs {
		other := func(other history.KV) bool { return other.ModRevision == kv.ModRevision && other.Key != kv.Key }
		before, there := s.state(kv.ModRevision - 1)[kv.Key]
		if there && slices.ContainsFunc(r.KVs, other) {
			r.KVs = slices.Clone(r.KVs)
			r.KVs[i] = before
			return true
		}
	}
	return false
}

// ofSeveral are where the changes are that share their revision with the next one.
func (s *linSim) ofSeveral() []int {
	var out []int
	for i := range len(s.changes) - 1 {
		if s.changes[i].ModRevision == s.changes[i+1].ModRevision {
			out = append(out, i)
		}
	}
	return out
}

// alone says that a change is an acknowledged write of one key.
func (s *linSim) alone(at int) bool {
	ack, there := s.acked[s.changes[at].ModRevision]
	return there && s.records[ack].F != history.Txn && !s.changes[at].Deleted
}

// atRest plants what only the members show.
func (s *linSim) atRest() {
	last := len(s.changes) - 1
	acked := slices.IndexFunc(s.changes, func(kv history.KV) bool { return s.isAcked(kv.ModRevision) && !kv.Deleted })
	switch s.plant {
	case plantRest:
		s.change("k000", "nobody's", false)
		s.planted = true
	case plantLostWrite:
		at := acked + s.rng.IntN(last-acked+1)
		for !s.isAcked(s.changes[at].ModRevision) {
			at--
		}
		s.changes, s.planted = slices.Delete(s.changes, at, at+1), true
	case plantTornRest, plantRestTxn:
		several := s.ofSeveral()
		if s.planted = len(several) > 0; !s.planted {
			return
		}
		at := several[s.rng.IntN(len(several))]
		if s.changes[at].Value += "-wrong"; s.plant == plantTornRest {
			s.changes = slices.Delete(s.changes, at, at+1)
		}
	case plantRestValue:
		for s.cfg.txns > 0 && acked < len(s.changes) && !s.alone(acked) {
			acked++
		}
		if s.planted = acked < len(s.changes); s.planted {
			s.changes[acked].Value += "-wrong"
		}
	}
}

func judgeLin(records []history.Record, members []check.Member) check.Verdict {
	c := check.NewLinearizable(check.LinearizableOptions{})
	for _, r := range records {
		c.Add(r)
	}
	return c.Verdict(members)
}

func TestLinearizableFindsEachPlant(t *testing.T) {
	for _, test := range []struct {
		plant linPlant
		// rules are those of which one must fire: some lies can be told by two names.
		rules []string
		// told: the clients were told it, so that it is found without members too.
		told bool
	}{
		{plantLostWrite, []string{"lost"}, false},
		{plantSameRevision, []string{"lost"}, true},
		{plantPhantom, []string{"phantom"}, true},
		{plantRest, []string{"phantom"}, false},
		{plantRefused, []string{"refused-applied"}, false},
		{plantTwice, []string{"twice"}, false},
		{plantTwiceUnknown, []string{"twice"}, false},
		{plantBasisCAS, []string{"basis"}, false},
		{plantBasisCreate, []string{"basis"}, false},
		{plantBasisDelete, []string{"basis"}, false},
		{plantStaleRead, []string{"stale"}, true},
		{plantStaleList, []string{"stale"}, true},
		{plantStaleAt, []string{"stale"}, true},
		{plantGoneRead, []string{"stale"}, true},
		{plantListHole, []string{"stale"}, true},
		{plantStaleWrite, []string{"stale", "lost"}, true},
		{plantFuture, []string{"future"}, true},
		{plantGap, []string{"gap"}, false},
		{plantValue, []string{"value"}, true},
		{plantListValue, []string{"value"}, true},
		{plantRestValue, []string{"value"}, false},
		{plantTornRest, []string{"lost"}, false},
		{plantTornList, []string{"stale"}, true},
		{plantRestTxn, []string{"lost", "phantom"}, false},
	} {
		for _, txns := range []int{0, 20} {
			if txns == 0 && slices.Contains([]linPlant{plantTornRest, plantTornList, plantRestTxn}, test.plant) {
				continue
			}
			t.Run(fmt.Sprintf("%s, txns %d", test.plant, txns), func(t *testing.T) {
				for planted, seed := 0, uint64(1); planted < 20; seed++ {
					if seed > 200 {
						t.Fatalf("planted %d of 20 in %d histories", planted, seed-1)
					}
					cfg := linConfig{steps: 2000, keys: 5, procs: 6, unknown: 5, refused: 10, ats: 50, plantAfter: int(seed*97) % 1500, txns: txns}
					s := newLinSim(seed, cfg, test.plant)
					records, members := s.run()
					if !s.planted {
						continue
					}
					planted++
					v := judgeLin(records, members)
					found := func(v check.Violation) bool { return slices.Contains(test.rules, v.Rule) && len(v.Proof) > 0 }
					if !slices.ContainsFunc(v.Violations, found) {
						t.Errorf("seed %d: want one of %v with a proof, got %v", seed, test.rules, v.Violations)
					}
					if v := judgeLin(records, nil); test.told && !slices.ContainsFunc(v.Violations, found) {
						t.Errorf("seed %d, without members: want one of %v with a proof, got %v", seed, test.rules, v.Violations)
					}
				}
			})
		}
	}
}

// linCompacted are members that have forgotten what was before first.
func linCompacted(members []check.Member, first int64) []check.Member {
	changes := replay(members[0].Changes, "k", "l", first-1)
	slices.SortStableFunc(changes, func(a, b history.KV) int { return int(a.ModRevision - b.ModRevision) })
	for _, kv := range members[0].Changes {
		if kv.ModRevision >= first {
			changes = append(changes, kv)
		}
	}
	out := slices.Clone(members)
	for i := range out {
		out[i].First, out[i].Changes = first, changes
	}
	return out
}

func TestLinearizableAcceptsWhatIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := linConfig{
			steps: rapid.IntRange(10, 4000).Draw(t, "steps"), keys: rapid.IntRange(1, 8).Draw(t, "keys"),
			procs: rapid.IntRange(1, 12).Draw(t, "procs"), unknown: rapid.SampledFrom([]int{0, 2, 10, 40}).Draw(t, "unknown"),
			refused: rapid.SampledFrom([]int{0, 10, 40}).Draw(t, "refused"), duplicates: rapid.Bool().Draw(t, "duplicates"),
			ats: rapid.SampledFrom([]int{0, 50, 100}).Draw(t, "ats"), txns: rapid.SampledFrom([]int{0, 20, 60}).Draw(t, "txns"),
			appends: rapid.Bool().Draw(t, "appends"),
		}
		records, members := newLinSim(rapid.Uint64().Draw(t, "seed"), cfg, plantNone).run()
		switch rapid.IntRange(0, 2).Draw(t, "members") {
		case 0:
			members = nil
		case 1:
			members = linCompacted(members, 2+rapid.Int64Range(0, members[0].Revision).Draw(t, "first"))
		}
		opts := check.LinearizableOptions{Foreign: rapid.Bool().Draw(t, "foreign")}
		if v := judged(check.NewLinearizable(opts), records, members); len(v.Violations) > 0 {
			t.Fatalf("%v", v.Violations[0])
		}
	})
}

// longHistories is how many; of so many, several showed the mistake of the campaign's seed 939.
const longHistories = 300

// Histories that are so long that their beginnings are forgotten, with watches that tell
// of them late.
func TestLinearizableAcceptsLongHistories(t *testing.T) {
	for seed := range uint64(longHistories) {
		cfg := linConfig{
			steps: 5000, keys: 1 + int(seed%8), procs: 1 + int(seed%7), unknown: []int{2, 10, 40}[seed%3], refused: 10,
			ats: 50 * int(seed%3), txns: 20 * int(seed/150%2),
		}
		records, members := newLinSim(seed, cfg, plantNone).run()
		if v := judgeLin(records, members); len(v.Violations) > 0 {
			t.Errorf("seed %d: %v", seed, v.Violations[0])
		}
	}
}
