package check_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// dice is chance, from rapid or from a seed.
type dice func(n int) int

func rapidDice(t *rapid.T) dice {
	return func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "dice") }
}

func seeded(seed int) dice {
	return rand.New(rand.NewPCG(uint64(seed), 7)).IntN
}

// act is one operation of a model: what is asked, and what happens in the moment
// in which it takes effect.
type act struct {
	invoke history.Record
	effect func(end *history.Record)
	// then runs when the completion was recorded.
	then func(end history.Record)
}

// stage runs acts of several processes, so that they overlap: each begins, takes
// effect and ends at moments that the dice choose. Some are never heard of again,
// and take effect later or not at all.
type stage struct {
	dice    dice
	records []history.Record
	now     time.Duration
	// certain: nothing is unknown.
	certain bool
	lost    []*running
	next    int32
}

type running struct {
	act
	end     history.Record
	applied bool
}

func (s *stage) record(r history.Record) history.Record {
	s.now += time.Duration(1+s.dice(3)) * time.Millisecond
	r.Index, r.Time = int64(len(s.records)), s.now
	s.records = append(s.records, r)
	return r
}

// run makes n acts on a few processes.
func (s *stage) run(n int, next func() act) {
	open := make([]*running, 4)
	ids := make([]int32, len(open))
	for i := range ids {
		s.next++
		ids[i] = s.next
	}
	for left := n; left > 0 || slices.ContainsFunc(open, func(r *running) bool { return r != nil }); {
		i := s.dice(len(open))
		if s.late(); open[i] == nil && left > 0 {
			left--
			open[i] = s.begin(ids[i], next())
		} else if open[i] != nil && s.proceed(open[i]) {
			if open[i].end.Type == history.Unknown {
				s.next++
				ids[i] = s.next
			}
			open[i] = nil
		}
	}
}

func (s *stage) begin(process int32, a act) *running {
	a.invoke.Process, a.invoke.Type = process, history.Invoke
	a.invoke = s.record(a.invoke)
	end := a.invoke
	end.Mops = slices.Clone(end.Mops)
	return &running{act: a, end: end}
}

// proceed does the next step of an act, and says whether it has ended.
func (s *stage) proceed(r *running) bool {
	unknown := !s.certain && s.dice(12) == 0
	if !r.applied && !unknown {
		r.end.Type = history.OK
		if r.effect(&r.end); r.end.Type == 0 {
			r.end.Type = history.OK
		}
		r.applied = true
		return false
	}
	if unknown {
		if !r.applied {
			s.lost = append(s.lost, r)
		}
		r.end = r.act.invoke
		r.end.Type, r.end.Error = history.Unknown, "timed out"
	}
	r.end = s.record(r.end)
	if r.then != nil {
		r.then(r.end)
	}
	return true
}

// late lets something lost take effect after all.
func (s *stage) late() {
	if len(s.lost) == 0 || s.dice(10) > 0 {
		return
	}
	r := s.lost[0]
	s.lost = s.lost[1:]
	end := r.act.invoke
	end.Mops = slices.Clone(end.Mops)
	r.effect(&end)
}

// one makes an act that overlaps with nothing.
func (s *stage) one(a act) history.Record {
	s.next++
	r := s.begin(s.next, a)
	r.end.Type = history.OK
	r.effect(&r.end)
	r.end = s.record(r.end)
	return r.end
}

// space is a correct store.
type space struct {
	revision int64
	changes  []history.KV
	keys     map[string]history.KV
	lists    map[string][]string
	written  int
	prefix   string
}

func newSpace() *space {
	return &space{revision: 1, keys: map[string]history.KV{}, lists: map[string][]string{}}
}

func (s *space) set(key, value string, lease int64) {
	old := s.keys[key]
	kv := history.KV{Key: key, Value: value, CreateRevision: old.CreateRevision, ModRevision: s.revision, Version: old.Version + 1, Lease: lease}
	if kv.CreateRevision == 0 {
		kv.CreateRevision = s.revision
	}
	s.keys[key] = kv
	s.changes = append(s.changes, kv)
}

func (s *space) put(key, value string) int64 {
	s.revision++
	s.set(key, value, 0)
	return s.revision
}

// remove is 0 when there was nothing.
func (s *space) remove(key string) int64 {
	if _, ok := s.keys[key]; !ok {
		return 0
	}
	s.revision++
	delete(s.keys, key)
	s.changes = append(s.changes, history.KV{Key: key, ModRevision: s.revision, Deleted: true})
	return s.revision
}

func (s *space) value() string {
	s.written++
	return fmt.Sprint("v", s.written)
}

func in(key, from, end string) bool {
	return key == from || key > from && (end == "\x00" || key < end)
}

func (s *space) list(from, end string) []history.KV {
	return replay(s.changes, from, end, s.revision)
}

// replay is the dumb twin of the checkers' timeline.
func replay(changes []history.KV, from, end string, at int64) []history.KV {
	state := map[string]history.KV{}
	for _, kv := range changes {
		if kv.ModRevision > at {
			break
		}
		if state[kv.Key] = kv; kv.Deleted {
			delete(state, kv.Key)
		}
	}
	var out []history.KV
	for _, kv := range state {
		if in(kv.Key, from, end) {
			out = append(out, kv)
		}
	}
	slices.SortFunc(out, func(a, b history.KV) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func (s *space) members() []check.Member {
	var out []check.Member
	for _, name := range []string{"s1", "s2", "s3"} {
		out = append(out, check.Member{Name: name, Revision: s.revision, Hash: 42, Changes: slices.Clone(s.changes)})
	}
	return out
}

// judged gives a history to a checker.
func judged(c check.Checker, records []history.Record, members []check.Member) check.Verdict {
	for _, r := range records {
		c.Add(r)
	}
	return c.Verdict(members)
}

// accepts fails when anything is called wrong.
func accepts(t interface {
	Helper()
	Fatalf(string, ...any)
}, v check.Verdict, records []history.Record) {
	t.Helper()
	if len(v.Violations) > 0 {
		var out strings.Builder
		for _, r := range records {
			fmt.Fprintf(&out, "%v\n", r)
		}
		t.Fatalf("%v\nin a correct history:\n%s", v.Violations, out.String())
	}
}

// finds fails unless a rule has fired, with a reason and a proof. It says also
// which rules did.
func finds(t *testing.T, v check.Verdict, rule string) {
	t.Helper()
	var fired []string
	for _, violation := range v.Violations {
		fired = append(fired, violation.Rule)
		if violation.Reason == "" || len(violation.Proof) == 0 || !strings.HasPrefix(violation.String(), violation.Rule+": ") {
			t.Errorf("a violation without a reason or a proof: %q", violation)
		}
	}
	if !slices.Contains(fired, rule) {
		t.Fatalf("found %q, and not %q: %v", fired, rule, v.Violations)
	}
}

// plants is how often each kind of violation is planted.
const plants = 20

// insert puts the records of a fragment into a history, in order, at places that
// the dice choose.
func insert(dice dice, records, fragment []history.Record) []history.Record {
	places := make([]int, len(fragment))
	for i := range places {
		places[i] = dice(len(records) + 1)
	}
	slices.Sort(places)
	var out []history.Record
	for i := range len(records) + 1 {
		for len(places) > 0 && places[0] == i {
			out = append(out, fragment[0])
			places, fragment = places[1:], fragment[1:]
		}
		if i < len(records) {
			out = append(out, records[i])
		}
	}
	for i := range out {
		out[i].Index, out[i].Time = int64(i), time.Duration(i)*time.Millisecond
	}
	return out
}
