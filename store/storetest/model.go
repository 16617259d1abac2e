package storetest

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// overhead is what a version costs beside its key and value. It is part of what
// members must agree on, so it is written down here a second time.
const overhead = 128

// Model is a Machine that keeps a full copy of every state of every space. It
// forgets nothing; compaction is a number that reads are compared with.
type Model struct {
	spaces []*modelSpace
	limits store.Limits
	timeNS int64
}

type modelSpace struct {
	opts store.SpaceOptions
	// states[r] is the keys at revision r; states[0] is unused.
	states    []map[string]store.KV
	changes   []change // of all revisions
	compacted store.Revision
	leases    map[int64]int64
}

// change is one event, in order.
type change struct {
	rev    store.Revision
	timeNS int64
	event  store.Event
	// replaced is the live version that it replaced, if any.
	replaced *store.KV
}

// NewModel is an empty model. The limits must be set in full.
func NewModel(spaces []store.SpaceOptions, limits store.Limits) *Model {
	m := &Model{limits: limits}
	for _, o := range spaces {
		m.spaces = append(m.spaces, &modelSpace{
			opts: o, states: []map[string]store.KV{nil, {}}, compacted: -1, leases: map[int64]int64{},
		})
	}
	return m
}

func (m *Model) space(name string) *modelSpace {
	for _, s := range m.spaces {
		if s.opts.Name == name {
			return s
		}
	}
	return nil
}

func (s *modelSpace) rev() store.Revision { return store.Revision(len(s.states) - 1) }

func (s *modelSpace) now() map[string]store.KV { return s.states[s.rev()] }

// Journal is every batch of a range from a revision on, compacted or not.
func (m *Model) Journal(space string, from store.Revision, start, end string) []store.Batch {
	var all []store.Batch
	for _, c := range m.space(space).changes {
		if c.rev < from || !within(c.event.KV.Key, start, end) {
			continue
		}
		if n := len(all); n == 0 || all[n-1].Revision != c.rev {
			all = append(all, store.Batch{Revision: c.rev, TimeNS: c.timeNS})
		}
		last := &all[len(all)-1]
		last.Events = append(last.Events, c.event)
	}
	return all
}

// History implements Machine.
func (m *Model) History(space string, from store.Revision, start, end string) ([]store.Batch, error) {
	s := m.space(space)
	if from < max(s.compacted, 1) {
		return nil, fmt.Errorf("history from %d: %w", from, store.ErrCompacted)
	}
	all := m.Journal(space, from, start, end)
	for i := range all {
		for j := range all[i].Events {
			if all[i].Revision <= s.compacted {
				all[i].Events[j].Prev = nil
			}
		}
	}
	return all, nil
}

func within(key, start, end string) bool { return key >= start && (end == "" || key < end) }

// Range implements Machine.
func (m *Model) Range(space string, rev store.Revision, start, end string) ([]store.KV, error) {
	s := m.space(space)
	switch {
	case rev == 0:
		rev = s.rev()
	case rev > s.rev():
		return nil, store.ErrFutureRevision
	case rev < max(s.compacted, 1):
		return nil, store.ErrCompacted
	}
	return pick(s.states[rev], start, end), nil
}

func pick(state map[string]store.KV, start, end string) []store.KV {
	var kvs []store.KV
	for _, key := range slices.Sorted(maps.Keys(state)) {
		if within(key, start, end) {
			kvs = append(kvs, state[key])
		}
	}
	return kvs
}

// pickCommand is pick by the convention of commands.
func pickCommand(state map[string]store.KV, from, rangeEnd []byte) []store.KV {
	key, end := string(from), string(rangeEnd)
	switch end {
	case "":
		return pick(state, key, key+"\x00")
	case "\x00":
		return pick(state, key, "")
	}
	return pick(state, key, end)
}

// Facts implements Machine.
func (m *Model) Facts(space string) Facts {
	s := m.space(space)
	f := Facts{
		Revision: s.rev(), CompactRevision: max(s.compacted, 1),
		LiveBytes: s.liveBytes(), HistoryBytes: s.historyBytes(), LeaseKeys: map[int64][]string{},
	}
	for _, id := range slices.Sorted(maps.Keys(s.leases)) {
		f.Leases = append(f.Leases, store.Lease{ID: id, TTLSeconds: s.leases[id]})
		f.LeaseKeys[id] = s.leaseKeys(id)
	}
	return f
}

func (s *modelSpace) leaseKeys(id int64) []string {
	var keys []string
	for _, kv := range pick(s.now(), "", "") {
		if kv.Lease == id {
			keys = append(keys, kv.Key)
		}
	}
	return keys
}

func cost(kv store.KV) int64 { return int64(len(kv.Key)+len(kv.Value)) + overhead }

func (s *modelSpace) liveBytes() int64 {
	sum := int64(0)
	for _, kv := range s.now() {
		sum += cost(kv)
	}
	return sum
}

func (s *modelSpace) historyBytes() int64 {
	sum := int64(0)
	for _, c := range s.changes {
		if c.replaced != nil && c.rev > s.compacted {
			sum += cost(*c.replaced)
		}
		if c.event.Type == store.EventDelete && c.rev >= s.compacted {
			sum += cost(c.event.KV)
		}
	}
	return sum
}

// Apply implements Machine. It leaves messages empty, and never panics.
func (m *Model) Apply(index, term uint64, cmds []*internalv1.Command) []*internalv1.CommandResult {
	var results []*internalv1.CommandResult
	for _, cmd := range cmds {
		m.timeNS = max(m.timeNS, cmd.GetTimeNs())
		r := &internalv1.CommandResult{CommitTimeNs: m.timeNS}
		s := m.space(cmd.GetSpace())
		switch {
		case cmd.GetEpoch() != 0 && cmd.GetEpoch() != term:
			r.Outcome = internalv1.CommandResult_OUTCOME_STALE_EPOCH
		case s == nil:
			r.Outcome = internalv1.CommandResult_OUTCOME_NO_SUCH_SPACE
		default:
			m.command(s, cmd, r)
		}
		if s != nil {
			r.Revision = int64(s.rev())
		}
		results = append(results, r)
	}
	return results
}

func (m *Model) command(s *modelSpace, cmd *internalv1.Command, r *internalv1.CommandResult) {
	r.Outcome = internalv1.CommandResult_OUTCOME_OK
	switch op := cmd.GetOp().(type) {
	case *internalv1.Command_Txn:
		m.txn(s, op.Txn, r)
	case *internalv1.Command_Compact:
		rev := store.Revision(op.Compact.GetRevision())
		switch {
		case rev <= s.compacted:
			r.Outcome = internalv1.CommandResult_OUTCOME_COMPACTED
		case rev > s.rev():
			r.Outcome = internalv1.CommandResult_OUTCOME_FUTURE_REVISION
		default:
			s.compacted = rev
		}
	case *internalv1.Command_LeaseGrant:
		m.grant(s, op.LeaseGrant, r)
	case *internalv1.Command_LeaseRevoke:
		id := op.LeaseRevoke.GetId()
		if _, ok := s.leases[id]; !ok {
			r.Outcome = internalv1.CommandResult_OUTCOME_LEASE_NOT_FOUND
			return
		}
		t := m.begin(s)
		for _, key := range s.leaseKeys(id) {
			t.delete(key)
		}
		t.commit()
		delete(s.leases, id)
	default:
		r.Outcome = internalv1.CommandResult_OUTCOME_INVALID
	}
}

// grant wants the id to be given: which one a store chooses is its own affair.
func (m *Model) grant(s *modelSpace, g *internalv1.LeaseGrant, r *internalv1.CommandResult) {
	_, taken := s.leases[g.GetId()]
	switch {
	case g.GetTtlSeconds() > store.MaxLeaseTTLSeconds, len(s.leases) >= m.limits.Leases:
		r.Outcome = internalv1.CommandResult_OUTCOME_LIMIT
	case taken:
		r.Outcome = internalv1.CommandResult_OUTCOME_LEASE_EXISTS
	default:
		s.leases[g.GetId()] = g.GetTtlSeconds()
		r.LeaseId = g.GetId()
	}
}

// modelTxn is a revision in the making.
type modelTxn struct {
	s       *modelSpace
	timeNS  int64
	rev     store.Revision
	before  map[string]store.KV
	state   map[string]store.KV
	changes []change
}

func (m *Model) begin(s *modelSpace) *modelTxn {
	return &modelTxn{s: s, timeNS: m.timeNS, rev: s.rev() + 1, before: s.now(), state: maps.Clone(s.now())}
}

func (t *modelTxn) record(e store.Event, replaced *store.KV) {
	if prev, ok := t.before[e.KV.Key]; ok && !e.IsCreate() {
		e.Prev = &prev
	}
	t.changes = append(t.changes, change{rev: t.rev, timeNS: t.timeNS, event: e, replaced: replaced})
}

func (t *modelTxn) put(key string, value []byte, lease int64) {
	kv := store.KV{Key: key, Value: value, CreateRevision: t.rev, ModRevision: t.rev, Version: 1, Lease: lease}
	var replaced *store.KV
	if old, ok := t.state[key]; ok {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		replaced = &old
	}
	t.state[key] = kv
	t.record(store.Event{Type: store.EventPut, KV: kv}, replaced)
}

func (t *modelTxn) delete(key string) {
	old := t.state[key]
	delete(t.state, key)
	t.record(store.Event{Type: store.EventDelete, KV: store.KV{Key: key, ModRevision: t.rev}}, &old)
}

func (t *modelTxn) commit() {
	if len(t.changes) == 0 {
		return
	}
	s := t.s
	s.states = append(s.states, t.state)
	if s.opts.Shed {
		t.shed()
	}
	s.changes = append(s.changes, t.changes...)
	for s.opts.Shed && s.historyBytes() > s.opts.Bytes/4 && s.compacted < s.rev() {
		recent := slices.DeleteFunc(slices.Clone(s.changes), func(c change) bool { return c.rev <= s.compacted })
		s.compacted = recent[(len(recent)-1)/2].rev
	}
}

// shed deletes the keys that were not changed for longest.
func (t *modelTxn) shed() {
	for t.s.liveBytes() > t.s.opts.Bytes-t.s.opts.Bytes/4 {
		oldest := slices.MinFunc(pick(t.state, "", ""), func(a, b store.KV) int {
			return cmp.Or(cmp.Compare(a.ModRevision, b.ModRevision), cmp.Compare(a.Key, b.Key))
		})
		t.delete(oldest.Key)
	}
}

func compareKV(c *internalv1.Compare, kv store.KV) bool {
	order := 0
	switch c.GetTarget() {
	case internalv1.Compare_TARGET_VERSION:
		order = cmp.Compare(kv.Version, c.GetNumber())
	case internalv1.Compare_TARGET_CREATE:
		order = cmp.Compare(int64(kv.CreateRevision), c.GetNumber())
	case internalv1.Compare_TARGET_MOD:
		order = cmp.Compare(int64(kv.ModRevision), c.GetNumber())
	case internalv1.Compare_TARGET_LEASE:
		order = cmp.Compare(kv.Lease, c.GetNumber())
	case internalv1.Compare_TARGET_VALUE:
		order = bytes.Compare(kv.Value, c.GetValue())
	}
	return map[internalv1.Compare_Result]bool{
		internalv1.Compare_RESULT_EQUAL:     order == 0,
		internalv1.Compare_RESULT_NOT_EQUAL: order != 0,
		internalv1.Compare_RESULT_GREATER:   order > 0,
		internalv1.Compare_RESULT_LESS:      order < 0,
	}[c.GetResult()]
}
