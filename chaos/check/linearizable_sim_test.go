package check_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
)

// linSim is a linearizable store with revisions, and clients whose operations
// overlap: it makes histories that are right by construction, or, with a plant,
// wrong in one place.
type linSim struct {
	rng *rand.Rand
	cfg linConfig

	records []history.Record
	now     time.Duration
	// rev is the revision of the store; changes are all of it.
	rev     int64
	changes []history.KV
	live    map[string]history.KV
	// acked are the revisions that were acknowledged, with the index of that record.
	acked map[int64]int64

	idle    []int32
	running []*linClient
	// late are unknown writes that may take effect yet.
	late     []*linClient
	nextProc int32
	values   int

	// pending are records that follow the next one.
	pending []history.Record

	plant linPlant
	// planted: the plant is in the history.
	planted bool
}

type linConfig struct {
	steps, keys, procs int
	// unknown, refused are parts of 100 of the writes.
	unknown, refused int
	// plantAfter is the step from which the plant is looked for a place.
	plantAfter int
	// duplicates: values repeat.
	duplicates bool
	// ats is the part of 100 of the answers that tell their revision.
	ats int
	// txns is the part of 100 of the operations that are transactions; with appends,
	// also such as append.
	txns    int
	appends bool
}

// linClient is an operation that runs.
type linClient struct {
	invoke, answer history.Record
	applied        bool
	// refuse: it will be told that it did not take effect.
	refuse bool
	// certain: it will not end as Unknown, which would hide the plant.
	certain bool
}

// linPlant is a way to be wrong.
type linPlant string

const (
	plantNone         linPlant = ""
	plantLostWrite    linPlant = "an acknowledged write is not in the store"
	plantSameRevision linPlant = "two writes are acknowledged with one revision"
	plantPhantom      linPlant = "a read shows what nobody wrote"
	plantRest         linPlant = "a change at rest that nobody asked for"
	plantRefused      linPlant = "a refused write took effect"
	plantTwice        linPlant = "a write took effect twice"
	plantTwiceUnknown linPlant = "an unknown write took effect twice"
	plantBasisCAS     linPlant = "a CAS took effect upon another revision"
	plantBasisCreate  linPlant = "a create took effect upon a key that was there"
	plantBasisDelete  linPlant = "a delete took effect upon another revision"
	plantStaleRead    linPlant = "a read shows what was overwritten before it began"
	plantStaleList    linPlant = "a list shows what was overwritten before it began"
	plantStaleAt      linPlant = "an answer is as of a revision before what was known"
	plantGoneRead     linPlant = "a read does not show a key that is there"
	plantListHole     linPlant = "a list leaves a key out"
	plantStaleWrite   linPlant = "a write is acknowledged with a revision before what was known"
	plantFuture       linPlant = "a read shows what is written later"
	plantGap          linPlant = "the store skips a revision"
	plantValue        linPlant = "a read shows a revision with another value"
	plantListValue    linPlant = "a list shows a revision with another value"
	plantRestValue    linPlant = "a member holds a revision with another value"
	plantTornRest     linPlant = "a member holds a part of a transaction"
	plantTornList     linPlant = "a list shows a part of a transaction"
	plantRestTxn      linPlant = "a member holds a transaction with another value"
)

func newLinSim(seed uint64, cfg linConfig, plant linPlant) *linSim {
	s := &linSim{
		rng: rand.New(rand.NewPCG(seed, 77)), cfg: cfg, rev: 1, live: map[string]history.KV{}, acked: map[int64]int64{}, plant: plant,
	}
	for range cfg.procs {
		s.nextProc++
		s.idle = append(s.idle, s.nextProc)
	}
	return s
}

func (s *linSim) emit(r history.Record) int64 {
	s.now += time.Duration(1 + s.rng.IntN(1000))
	r.Index, r.Time = int64(len(s.records)), s.now
	s.records = append(s.records, r)
	for _, next := range s.pending {
		s.pending = nil
		s.emit(next)
	}
	return r.Index
}

// run makes the history, and what the members hold.
func (s *linSim) run() ([]history.Record, []check.Member) {
	for step := range s.cfg.steps {
		s.step(step >= s.cfg.plantAfter)
	}
	for len(s.running) > 0 {
		s.finish(0, true)
	}
	for _, c := range s.late {
		if s.rng.IntN(2) == 0 {
			s.apply(c, false)
		}
	}
	s.atRest()
	var members []check.Member
	for i := range 3 {
		members = append(members, check.Member{Name: fmt.Sprintf("s%d", i+1), Revision: s.rev, Changes: slices.Clone(s.changes)})
	}
	return s.records, members
}

func (s *linSim) step(mayPlant bool) {
	switch n := s.rng.IntN(10); {
	case n < 4 && len(s.idle) > 0:
		s.start()
	case n < 7 && len(s.running) > 0:
		s.apply(s.running[s.rng.IntN(len(s.running))], mayPlant)
	case n < 9 && len(s.running) > 0:
		s.finish(s.rng.IntN(len(s.running)), mayPlant)
	case n == 9 && len(s.late) > 0 && s.rng.IntN(4) == 0:
		at := s.rng.IntN(len(s.late))
		s.apply(s.late[at], false)
		s.late = slices.Delete(s.late, at, at+1)
	case n == 9 && s.rng.IntN(3) == 0:
		s.deliver()
	}
}

// deliver is a watch that says what changed, late.
func (s *linSim) deliver() {
	if len(s.changes) == 0 {
		return
	}
	from := s.rng.IntN(len(s.changes))
	to := min(len(s.changes), from+1+s.rng.IntN(3))
	kvs := slices.Clone(s.changes[from:to])
	s.emit(history.Record{Process: 1000, Type: history.OK, F: history.Deliver, KVs: kvs, At: kvs[len(kvs)-1].ModRevision})
}

func (s *linSim) start() {
	at := s.rng.IntN(len(s.idle))
	r := history.Record{Process: s.idle[at], Type: history.Invoke, Key: fmt.Sprintf("k%03d", s.rng.IntN(s.cfg.keys)), Server: fmt.Sprintf("s%d", 1+s.rng.IntN(3))}
	s.idle = slices.Delete(s.idle, at, at+1)
	if s.cfg.txns > 0 && s.rng.IntN(100) < s.cfg.txns {
		r.F, r.Key, r.Mops = history.Txn, "", s.mops()
		s.emit(r)
		s.running = append(s.running, &linClient{invoke: r, answer: r})
		return
	}
	switch n := s.rng.IntN(20); {
	case n < 5:
		r.F = history.Read
	case n < 6:
		r.F = history.StaleRead
	case n < 10:
		r.F, r.Value = history.Put, s.value()
	case n < 14:
		r.F, r.Value, r.Base = history.CAS, s.value(), s.base(r.Key)
	case n < 15:
		r.F = history.Delete
	case n < 16:
		r.F, r.Base = history.Delete, s.base(r.Key)
	case n < 19:
		r.F, r.Key, r.End = history.List, fmt.Sprintf("k%03d", s.rng.IntN(s.cfg.keys)), "l"
		if s.rng.IntN(4) == 0 {
			r.Limit = int64(1 + s.rng.IntN(3))
		}
		if s.rng.IntN(4) == 0 && s.rev > 3 {
			r.At = s.rev - s.rng.Int64N(3)
		}
	default:
		r.F, r.Key, r.End = history.StaleList, "k", "l"
	}
	s.emit(r)
	s.running = append(s.running, &linClient{invoke: r, answer: r})
}

// mops are some reads and writes.
func (s *linSim) mops() []history.Mop {
	var out []history.Mop
	for range 1 + s.rng.IntN(4) {
		m := history.Mop{F: history.MopRead, Key: fmt.Sprintf("k%03d", s.rng.IntN(s.cfg.keys))}
		switch n := s.rng.IntN(6); {
		case n == 0 && s.cfg.appends:
			m.F, m.Value = history.MopAppend, s.value()
		case n < 5:
			m.F, m.Value = history.MopWrite, s.value()
		}
		out = append(out, m)
	}
	return out
}

// transact changes all that a transaction writes, at one revision.
func (s *linSim) transact(r *history.Record) {
	values := map[string]string{}
	for _, m := range r.Mops {
		before, there := values[m.Key]
		if !there {
			before = s.live[m.Key].Value
		}
		switch m.F {
		case history.MopWrite:
			values[m.Key] = m.Value
		case history.MopAppend:
			values[m.Key] = before + " " + m.Value
		}
	}
	if len(values) == 0 {
		return
	}
	s.rev++
	for _, key := range slices.Sorted(maps.Keys(values)) {
		s.set(key, values[key], false)
	}
	r.Revision = s.rev
}

func (s *linSim) value() string {
	if s.cfg.duplicates {
		return fmt.Sprintf("v%d", s.rng.IntN(3))
	}
	s.values++
	return fmt.Sprintf("v%d", s.values)
}

func (s *linSim) base(key string) int64 {
	if s.rng.IntN(5) == 0 && s.rev > 2 {
		return s.rng.Int64N(s.rev)
	}
	return s.live[key].ModRevision
}

// change is the next revision.
func (s *linSim) change(key, value string, deleted bool) int64 {
	s.rev++
	s.set(key, value, deleted)
	return s.rev
}

// set changes a key, at the revision that the store has.
func (s *linSim) set(key, value string, deleted bool) {
	before, there := s.live[key]
	kv := history.KV{Key: key, Value: value, CreateRevision: s.rev, ModRevision: s.rev, Version: 1, Deleted: deleted}
	if there {
		kv.CreateRevision, kv.Version = before.CreateRevision, before.Version+1
	}
	if deleted {
		kv.CreateRevision, kv.Version = 0, 0
		delete(s.live, key)
	} else {
		s.live[key] = kv
	}
	s.changes = append(s.changes, kv)
}

// state is the space as of a revision.
func (s *linSim) state(at int64) map[string]history.KV {
	out := map[string]history.KV{}
	for _, kv := range s.changes {
		if kv.ModRevision > at {
			break
		}
		if kv.Deleted {
			delete(out, kv.Key)
		} else {
			out[kv.Key] = kv
		}
	}
	return out
}

// apply is the moment at which an operation takes effect.
func (s *linSim) apply(c *linClient, mayPlant bool) {
	if c.applied {
		return
	}
	c.applied = true
	r := &c.answer
	switch r.F {
	case history.Read:
		s.read(r, s.live[r.Key])
		s.tellAt(r, s.rev)
	case history.StaleRead:
		at := 1 + s.rng.Int64N(s.rev)
		s.read(r, s.state(at)[r.Key])
		s.tellAt(r, at)
	case history.List:
		at := r.At
		if at == 0 {
			at = s.rev
			s.tellAt(r, at)
		}
		s.list(r, s.state(at))
	case history.StaleList:
		at := 1 + s.rng.Int64N(s.rev)
		s.list(r, s.state(at))
		s.tellAt(r, at)
	default:
		s.write(c, mayPlant)
	}
}

func (s *linSim) tellAt(r *history.Record, at int64) {
	if s.rng.IntN(100) < s.cfg.ats {
		r.At = at
	}
}

func (s *linSim) read(r *history.Record, kv history.KV) {
	r.Revision, r.Value = kv.ModRevision, kv.Value
}

func (s *linSim) list(r *history.Record, state map[string]history.KV) {
	r.KVs = nil
	for _, kv := range state {
		if kv.Key >= r.Key && kv.Key < r.End {
			r.KVs = append(r.KVs, kv)
		}
	}
	slices.SortFunc(r.KVs, func(a, b history.KV) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	r.Count = int64(len(r.KVs))
	if r.Limit > 0 && r.Count > r.Limit {
		r.KVs, r.More = r.KVs[:r.Limit], true
	}
}

// holds says whether what a conditional write depends on is so.
func (s *linSim) holds(r *history.Record) bool {
	now := s.live[r.Key].ModRevision
	switch r.F {
	case history.CAS:
		return now == r.Base
	case history.Delete:
		return r.Base == 0 || now == r.Base
	}
	return true
}

func (s *linSim) write(c *linClient, mayPlant bool) {
	r := &c.answer
	may := mayPlant && !s.planted
	if s.rng.IntN(100) < s.cfg.refused {
		c.refuse = true
		if may && s.plant == plantRefused && r.F != history.Delete && r.F != history.Txn && s.holds(r) {
			s.change(r.Key, r.Value, false)
			s.planted, c.certain = true, true
		}
		return
	}
	if !s.holds(r) && !(may && s.wrongBasis(r)) {
		c.refuse = true
		return
	}
	c.certain = may && s.planted
	if r.F == history.Txn {
		s.transact(r)
		s.tellAt(r, s.rev)
		return
	}
	if r.F == history.Delete {
		if _, there := s.live[r.Key]; there {
			r.Revision = s.change(r.Key, "", true)
			s.tellAt(r, s.rev)
		}
		return
	}
	switch {
	case may && s.plant == plantGap:
		s.rev++
		s.planted = true
	case may && s.plant == plantTwice && r.F == history.Put:
		s.change(r.Key, r.Value, false)
		s.planted, c.certain = true, true
	}
	r.Revision = s.change(r.Key, r.Value, false)
	s.tellAt(r, s.rev)
}

// wrongBasis makes a conditional write take effect that should not.
func (s *linSim) wrongBasis(r *history.Record) bool {
	_, there := s.live[r.Key]
	switch s.plant {
	case plantBasisCAS:
		s.planted = r.F == history.CAS && r.Base != 0
	case plantBasisCreate:
		s.planted = r.F == history.CAS && r.Base == 0 && there
	case plantBasisDelete:
		s.planted = r.F == history.Delete && r.Base != 0 && there
	}
	return s.planted
}

func (s *linSim) finish(at int, mayPlant bool) {
	c := s.running[at]
	s.running = slices.Delete(s.running, at, at+1)
	r := &c.answer
	isWrite := r.F == history.Put || r.F == history.CAS || r.F == history.Delete || r.F == history.Txn
	r.Type = history.OK
	switch {
	case !c.certain && s.rng.IntN(100) < s.cfg.unknown || !c.applied && s.cfg.unknown > 0 && s.rng.IntN(2) == 0:
		answer := c.invoke
		answer.Type, answer.Error = history.Unknown, "timeout"
		s.emit(answer)
		if !c.applied && isWrite {
			s.late = append(s.late, c)
		}
		if mayPlant && !s.planted && s.plant == plantTwiceUnknown && c.applied && !c.refuse && r.F == history.Put {
			s.change(r.Key, r.Value, false)
			s.planted = true
		}
		s.nextProc++
		s.idle = append(s.idle, s.nextProc)
		return
	case !c.applied:
		s.apply(c, false)
	}
	if c.refuse {
		answer := c.invoke
		answer.Type, answer.Error = history.Refused, "conflict"
		s.emit(answer)
	} else {
		if mayPlant && !s.planted {
			s.wrongAnswer(c)
		}
		index := s.emit(*r)
		if isWrite && r.Revision != 0 {
			s.acked[r.Revision] = index
		}
	}
	s.idle = append(s.idle, r.Process)
}
