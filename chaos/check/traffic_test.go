package check_test

import (
	"fmt"
	"slices"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// traffic is a correct store with writers, lists, watches and compaction.
type traffic struct {
	*stage
	*space
	compact int64
	watches []*watching
}

// watching is a watch that is open.
type watching struct {
	process int32
	server  string
	invoke  history.Record
	next    int64 // the first revision that was not delivered
	prev    bool
}

func key(dice dice) string { return "range/" + string(rune('a'+dice(6))) }

func (s *traffic) write() act {
	r := history.Record{F: history.Put, Key: key(s.dice), Value: s.value()}
	switch s.dice(6) {
	case 0:
		r.F, r.Value = history.Delete, ""
		return act{invoke: r, effect: func(end *history.Record) { end.Revision = s.remove(end.Key) }}
	case 1:
		r = history.Record{F: history.Txn}
		for _, k := range "abc" {
			r.Mops = append(r.Mops, history.Mop{F: history.MopWrite, Key: "range/" + string(k), Value: s.value()})
		}
		return act{invoke: r, effect: s.writeAll}
	}
	return act{invoke: r, effect: func(end *history.Record) { end.Revision = s.put(end.Key, end.Value) }}
}

// lists is a random list, of now or of a revision that is not compacted.
func (s *traffic) lists() act {
	r := history.Record{F: history.List, Key: "range/", End: "range0", Limit: int64(s.dice(4))}
	switch s.dice(6) {
	case 0:
		r.Key, r.End = key(s.dice), ""
	case 1:
		r.Key, r.End = key(s.dice), "\x00"
	case 2:
		r.Limit = -1 // the number only
	case 3:
		r.At = 1 + int64(s.dice(int(s.revision)))
	case 4:
		r.F = history.StaleList
	}
	return act{invoke: r, effect: s.answer}
}

func (s *traffic) answer(end *history.Record) {
	if end.At == 0 {
		end.At = s.revision
		if end.F == history.StaleList {
			end.At -= int64(s.dice(int(s.revision-s.compact) + 1))
		}
	}
	if end.At < s.compact {
		end.Type, end.Error = history.Refused, "revision is compacted"
		return
	}
	all := replay(s.changes, end.Key, end.End, end.At)
	if end.KVs = all; end.Limit < 0 || s.dice(2) == 0 {
		end.Count = int64(len(all))
	}
	if most := max(0, end.Limit); end.Limit != 0 && int64(len(all)) > most {
		end.KVs, end.More = all[:most], true
	}
}

// pages lists all in a chain.
func (s *traffic) pages() {
	r := history.Record{F: history.List, Key: "range/", End: "range0", Limit: int64(1 + s.dice(3))}
	s.next++
	for more := true; more; {
		run := s.begin(s.next, act{invoke: r, effect: s.answer})
		run.end.Type = history.OK
		s.answer(&run.end)
		end := s.record(run.end)
		if more = end.More; more {
			r.Key, r.At = end.KVs[len(end.KVs)-1].Key+"\x00", end.At
		}
	}
}

func (s *traffic) compacts() act {
	at := s.compact + int64(s.dice(int(s.revision-s.compact)+1))
	return act{invoke: history.Record{F: history.Compact, Base: at}, effect: func(*history.Record) { s.compact = max(s.compact, at) }}
}

func (s *traffic) watch(from int64) {
	r := history.Record{F: history.Watch, Type: history.Invoke, Key: "range/", End: "range0", Base: from, Server: fmt.Sprint("s", 1+s.dice(3))}
	if s.dice(3) == 0 {
		r.Key, r.End = key(s.dice), ""
	}
	s.next++
	r.Process = s.next
	w := &watching{process: s.next, server: r.Server, next: from, prev: s.dice(2) == 0, invoke: s.record(r)}
	if from == 0 {
		if w.next = s.revision + 1; s.dice(2) == 0 {
			s.deliver(w, nil, s.revision)
		}
	}
	s.watches = append(s.watches, w)
}

func (s *traffic) deliver(w *watching, kvs []history.KV, at int64) {
	s.record(history.Record{F: history.Deliver, Type: history.OK, Process: w.process, Server: w.server, Key: w.invoke.Key, End: w.invoke.End, KVs: kvs, At: at})
}

// serve lets a watch deliver what happened, or some of it, or end.
func (s *traffic) serve(w *watching) (open bool) {
	end := w.invoke
	if end.Type = history.OK; w.next < s.compact {
		end.Type, end.Error, end.At = history.Refused, "revision is compacted", s.compact
	}
	if end.Type == history.Refused || s.dice(10) == 0 {
		s.record(end)
		if s.dice(2) == 0 { // and resume
			s.watch(max(w.next, s.compact, 1))
		}
		return false
	}
	var batch []history.KV
	upto := w.next + int64(s.dice(4))
	for _, kv := range s.changes {
		if kv.ModRevision >= w.next && kv.ModRevision <= upto && (in(kv.Key, w.invoke.Key, w.invoke.End) && (w.invoke.End != "" || kv.Key == w.invoke.Key)) {
			if w.prev {
				kv.Prev = s.before(kv)
			}
			batch = append(batch, kv)
		}
	}
	if len(batch) > 0 {
		w.next = batch[len(batch)-1].ModRevision + 1
		s.deliver(w, batch, w.next-1+int64(s.dice(int(s.revision-w.next)+2)))
	} else if w.next = min(max(w.next, upto+1), s.revision+1); w.next > w.invoke.Base && s.dice(3) == 0 {
		s.deliver(w, nil, w.next-1)
	}
	return true
}

// before is what a key was before a change, if that is not compacted.
func (s *traffic) before(kv history.KV) *history.KV {
	if kv.ModRevision <= s.compact {
		return nil
	}
	if all := replay(s.changes, kv.Key, kv.Key+"\x00", kv.ModRevision-1); len(all) == 1 {
		return &all[0]
	}
	return nil
}

// newTraffic is a history of some turns, with compaction or without.
func newTraffic(dice dice, turns int, compaction bool) *traffic {
	s := &traffic{stage: &stage{dice: dice}, space: newSpace(), compact: 1}
	for range turns {
		s.run(6, func() act {
			switch n := dice(10); {
			case n < 6:
				return s.write()
			case n == 6 && compaction:
				return s.compacts()
			}
			return s.lists()
		})
		if len(s.watches) < 5 {
			s.watch(max(s.compact, int64(dice(int(s.revision)))) * int64(dice(2)))
		}
		open := s.watches
		s.watches = nil
		for _, w := range open {
			if s.serve(w) {
				s.watches = append(s.watches, w)
			}
		}
		if dice(2) == 0 {
			s.pages()
		}
	}
	return s
}

// finish lets every watch deliver all that is left.
func (s *traffic) finish() *traffic {
	for _, w := range s.watches {
		for w.next >= s.compact && w.next <= s.revision && s.serve(w) {
			continue
		}
	}
	s.watches = nil
	return s
}

func (s *traffic) atRest() []check.Member {
	if s.compact > 1 {
		return compacted(s.space, s.compact)
	}
	return s.space.members()
}

// where are the records of a kind.
func where(records []history.Record, is func(r *history.Record) bool) []int {
	var out []int
	for i := range records {
		if is(&records[i]) {
			out = append(out, i)
		}
	}
	return out
}

// anyOf is a copy of the history in which a random record of a kind may be changed,
// and that record; nil when there is none.
func anyOf(dice dice, records []history.Record, is func(r *history.Record) bool) ([]history.Record, *history.Record, int) {
	all := where(records, is)
	if len(all) == 0 {
		return records, nil, -1
	}
	out, i := slices.Clone(records), all[dice(len(all))]
	out[i].KVs = slices.Clone(out[i].KVs)
	return out, &out[i], i
}
