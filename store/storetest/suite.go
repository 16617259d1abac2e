package storetest

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// The spaces and limits that the suite expects of a machine.
const (
	suiteSpace = "objects"
	suiteShed  = "events"
)

// SuiteSpaces are the spaces of a machine for Run.
func SuiteSpaces() []store.SpaceOptions {
	return []store.SpaceOptions{
		{Name: suiteSpace, Bytes: 8000, ReserveBytes: 2000},
		{Name: suiteShed, Bytes: 4000, Shed: true},
	}
}

// SuiteLimits are the limits of a machine for Run.
func SuiteLimits() store.Limits {
	return store.Limits{
		TxnOps: 4, KeyBytes: 100, ValueBytes: 3000, TxnBytes: 6000, RangeKeys: 10, Leases: 3,
		Watchers: 10, WatchBuffer: 4, PurgeRecords: 2,
	}
}

// Run holds a machine to the promises of a store, one small story each. Every
// story begins with an empty machine from fresh.
func Run(t *testing.T, fresh func(t *testing.T) Machine) {
	for _, story := range stories() {
		t.Run(story.name, func(t *testing.T) {
			story.tell(&teller{T: t, m: fresh(t)})
		})
	}
}

type story struct {
	name string
	tell func(*teller)
}

// teller applies commands to a machine and fails the test when they do not come
// to what the story says.
type teller struct {
	*testing.T
	m     Machine
	index uint64
}

type outcome = internalv1.CommandResult_Outcome

const ok = internalv1.CommandResult_OUTCOME_OK

func (s *teller) apply(cmd *internalv1.Command, want outcome) *internalv1.CommandResult {
	s.Helper()
	s.index++
	r := s.m.Apply(s.index, 7, []*internalv1.Command{cmd})[0]
	if r.Outcome != want {
		s.Fatalf("%v\ncame to %v (%s), want %v", cmd, r.Outcome, r.Message, want)
	}
	return r
}

// ops runs ops in one transaction, which must end at a revision.
func (s *teller) ops(rev int64, ops ...*internalv1.Op) *internalv1.TxnResult {
	s.Helper()
	r := s.apply(Do(suiteSpace, ops...), ok)
	if r.Revision != rev {
		s.Fatalf("revision %d, want %d", r.Revision, rev)
	}
	return r.Txn
}

func (s *teller) kvs(rev store.Revision, want ...store.KV) {
	s.Helper()
	got, err := s.m.Range(suiteSpace, rev, "", "")
	if err != nil {
		s.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		s.Fatalf("keys at revision %d (-want +got):\n%s", rev, diff)
	}
}

func (s *teller) history(from store.Revision, want ...store.Batch) {
	s.Helper()
	got, err := s.m.History(suiteSpace, from, "", "")
	if err != nil {
		s.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		s.Fatalf("history from %d (-want +got):\n%s", from, diff)
	}
}

func (s *teller) refused(rev store.Revision, want error) {
	s.Helper()
	if _, err := s.m.Range(suiteSpace, rev, "", ""); !errors.Is(err, want) {
		s.Fatalf("range at %d: %v, want %v", rev, err, want)
	}
}

func (s *teller) same(want, got any) {
	s.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
		s.Fatalf("(-want +got):\n%s", diff)
	}
}

func kv(key, value string, create, mod store.Revision, version int64) store.KV {
	return store.KV{Key: key, Value: []byte(value), CreateRevision: create, ModRevision: mod, Version: version}
}

func put(v store.KV, prev ...store.KV) store.Event {
	return event(store.Event{Type: store.EventPut, KV: v}, prev)
}

func gone(key string, rev store.Revision, prev ...store.KV) store.Event {
	return event(store.Event{Type: store.EventDelete, KV: store.KV{Key: key, ModRevision: rev}}, prev)
}

func event(e store.Event, prev []store.KV) store.Event {
	if len(prev) > 0 {
		e.Prev = &prev[0]
	}
	return e
}

func batch(rev store.Revision, events ...store.Event) store.Batch {
	return store.Batch{Revision: rev, Events: events}
}

func big(n int) string { return strings.Repeat("x", n) }
