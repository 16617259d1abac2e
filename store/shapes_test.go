package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/balsa-run/balsa/cluster/memlog"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
	"github.com/balsa-run/balsa/store/storetest"
)

// The tests of this file and of shapes_watch_test.go are the shapes of the 17 bugs that etcd's own robustness
// tests keep a record of (tests/robustness/README.md): what went wrong there,
// tried here. Each is named for its issue. Where the cause cannot exist in this
// store the test says so and tries the nearest thing.

// TestEtcd13766RevisionAfterACrashUnderLoad: the index of the last applied entry
// was written to disk by one goroutine while another was still applying that
// entry, so a crash in between skipped the entry and a member's revisions fell
// behind the others' for ever. Here a snapshot is the only thing a member comes
// back from: whenever it is taken, its index and its state belong together.
func TestEtcd13766RevisionAfterACrashUnderLoad(t *testing.T) {
	const wanted, most = 20, 20_000
	m := newMember(t)
	r := rand.New(rand.NewPCG(13766, 1))
	var log [][]*internalv1.Command
	enough := make(chan []*store.Snapshot)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		var all []*store.Snapshot
		defer func() { enough <- all }()
		for ctx.Err() == nil && len(all) < wanted {
			if s := m.Snapshot(); len(all) == 0 || all[len(all)-1].Index() != s.Index() {
				all = append(all, s)
			}
		}
	}()
	var taken []*store.Snapshot
	for len(log) < most && taken == nil {
		log = append(log, randomEntry(r, m))
		m.entry(log[len(log)-1])
		select {
		case taken = <-enough:
		default:
		}
	}
	stop()
	if taken == nil {
		taken = <-enough
	}
	if len(taken) < 2 {
		t.Fatalf("%d snapshots were taken beside %d entries", len(taken), len(log))
	}
	for _, s := range taken {
		back := newMember(t)
		back.restore(s)
		for _, cmds := range log[back.AppliedIndex():] {
			back.entry(cmds)
		}
		same(t, m, back)
	}
}

// TestEtcd14370AcknowledgedWriteLostByALoneServer: a cluster of one server
// answered a client before the write was on its disk, and a crash took it back.
// Who answers when is cluster's, and held there for a lone server
// (TestRestartKeepsWhatWasAcknowledged). Here a store is rebuilt from a log whose
// disk crashed at each of its writes in turn: what the log acknowledged is there.
func TestEtcd14370AcknowledgedWriteLostByALoneServer(t *testing.T) {
	const writes = 12
	for crashAt := range writes {
		for _, torn := range []bool{false, true} {
			acknowledged, back := crashedLog(t, writes, crashAt, torn)
			if n := back.revision(); n < acknowledged || n > acknowledged+1 {
				t.Fatalf("crash at write %d, torn %v: revision %d was acknowledged, the server comes back with %d", crashAt, torn, acknowledged, n)
			}
		}
	}
}

// crashedLog writes entries until the disk crashes, and rebuilds a store from what
// is left.
func crashedLog(t *testing.T, writes, crashAt int, torn bool) (acknowledged store.Revision, back *member) {
	t.Helper()
	disk := memlog.New()
	before := newMember(t)
	disk.SetFault(func(done int, _ string) (error, bool) {
		if done >= crashAt {
			return io.ErrUnexpectedEOF, torn
		}
		return nil, false
	})
	for i := range writes {
		cmds := []*internalv1.Command{storetest.Do(store.SpaceEtcd, storetest.Put(fmt.Sprint("k", i%3), fmt.Sprint(i)))}
		data, err := proto.Marshal(&internalv1.Batch{Version: 1, Commands: cmds})
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.Log().StoreLogs([]*raft.Log{{Index: uint64(i + 1), Term: 1, Type: raft.LogCommand, Data: data}}); err != nil {
			break
		}
		before.entry(cmds)
	}
	log, back := disk.Crash().Log(), newMember(t)
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		var b internalv1.Batch
		if err := errors.Join(log.GetLog(i, &l), proto.Unmarshal(l.Data, &b)); err != nil {
			t.Fatal(err)
		}
		back.entry(b.Commands)
	}
	return before.revision(), back
}

// TestEtcd14571StateBesideTheKeysIsRestored: a member that got a snapshot kept
// what it had derived from its old state (who may do what), judged the next
// requests by it, and came to other results than the others. The roles of Balsa
// are objects. What the store derives are indexes, leases and their keys, and the
// feature level: a member with a past of its own and one that saw everything come
// to the same after a snapshot.
func TestEtcd14571StateBesideTheKeysIsRestored(t *testing.T) {
	o := store.Options{FeatureLevel: 2, Decode: decodeText, Index: indexText}
	leader, follower := newMemberOf(t, o), newMemberOf(t, o)
	for id := range int64(4) {
		follower.do(storetest.Grant(store.SpaceEtcd, id+1, 60))
		follower.do(storetest.Do(store.SpaceObjects, storetest.Put(fmt.Sprint("o", id), "old")))
	}
	for id := range int64(4) {
		leader.do(storetest.Grant(store.SpaceEtcd, id+3, 90))
		leader.do(storetest.Do(store.SpaceObjects, storetest.Put(fmt.Sprint("o", id), "new")))
		leader.do(storetest.Do(store.SpaceEtcd, storetest.PutOp(&internalv1.Put{Key: fmt.Append(nil, "k", id), Lease: id + 3})))
	}
	leader.do(&internalv1.Command{Op: &internalv1.Command_SetFeatureLevel{SetFeatureLevel: &internalv1.SetFeatureLevel{Level: 2}}})
	follower.restore(leader.Snapshot())

	for id := range int64(8) {
		for _, cmd := range []*internalv1.Command{
			storetest.Do(store.SpaceEtcd, storetest.PutOp(&internalv1.Put{Key: fmt.Append(nil, "l", id), Lease: id})),
			storetest.Grant(store.SpaceEtcd, id+1, 60),
			storetest.Revoke(store.SpaceEtcd, id),
			{Space: store.SpaceEtcd, FeatureLevel: 2, Op: storetest.Grant(store.SpaceEtcd, 0, 60).Op},
		} {
			want, got := leader.entry([]*internalv1.Command{cmd})[0], follower.entry([]*internalv1.Command{cmd})[0]
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Fatalf("%v: (-always there +restored)\n%s", cmd, diff)
			}
		}
	}
	if leader.FeatureLevel() != 2 || follower.FeatureLevel() != 2 {
		t.Fatalf("feature levels %d and %d", leader.FeatureLevel(), follower.FeatureLevel())
	}
	for word, want := range map[string]int{"old": 0, "new": 4} {
		if n := len(slices.Collect(follower.Space(store.SpaceObjects).View().ByIndex("text", word))); n != want {
			t.Errorf("%d objects are indexed as %q, want %d", n, word, want)
		}
	}
	same(t, leader, follower)
}

// TestEtcd14685RevisionAfterACrashDuringDefrag: defragmentation rewrote the file
// of the keys beside the writer, and a crash left the applied index of one moment
// with the keys of another. Our keys are in memory; what rearranges them is
// Maintain. Whenever it runs, and however often a snapshot falls between its
// steps, the member is what one is that never maintains.
func TestEtcd14685RevisionAfterACrashDuringDefrag(t *testing.T) {
	o := store.Options{Limits: store.Limits{PurgeRecords: 3}}
	plain, tidy, crashing := newMember(t), newMemberOf(t, o), newMemberOf(t, o)
	r := rand.New(rand.NewPCG(14685, 1))
	for i := range 1500 {
		cmds := randomEntry(r, plain)
		for _, m := range []*member{plain, tidy, crashing} {
			m.entry(cmds)
		}
		for range r.IntN(4) {
			tidy.Maintain()
			crashing.Maintain()
		}
		if i%50 == 49 {
			s := crashing.Snapshot()
			crashing.Maintain() // the crash takes this step back
			crashing = newMemberOf(t, o)
			crashing.restore(s)
		}
	}
	same(t, plain, tidy)
	same(t, plain, crashing)
}

// TestEtcd17780RevisionDecreasesAfterACrashDuringCompaction: etcd finds its
// revision at start by looking for the newest key in its file. Compaction had
// taken the newest ones away, they were deletions, and a crash before the next
// write brought the member back at an older revision.
func TestEtcd17780RevisionDecreasesAfterACrashDuringCompaction(t *testing.T) {
	m := newMember(t)
	for i := range 20 {
		m.put(fmt.Sprint("k", i), "")
	}
	m.do(storetest.Do(store.SpaceEtcd, storetest.Delete("k", "\x00")))
	rev := store.Revision(m.do(storetest.Compact(store.SpaceEtcd, int64(m.revision()))).Revision)
	for steps := 0; ; steps++ {
		back := newMember(t)
		back.restore(m.Snapshot())
		if got := back.revision(); got != rev || rev != 22 {
			t.Fatalf("after %d steps of compaction the member comes back with revision %d, it had %d", steps, got, rev)
		}
		if next := back.put("k", ""); next != rev+1 {
			t.Fatalf("the next write is revision %d", next)
		}
		if !m.Maintain() {
			break
		}
	}
	if next := m.put("k", ""); next != rev+1 {
		t.Fatalf("the next write is revision %d", next)
	}
}

// TestEtcd18055TwoSnapshotsInAShortTime: while a member applied one snapshot, the
// next arrived, and the file of the first was removed as no longer needed: the
// member panicked. Here snapshots need nothing but themselves. The first is read
// after the second was taken and what it holds compacted, and both are restored
// at the same time, under a watch.
func TestEtcd18055TwoSnapshotsInAShortTime(t *testing.T) {
	leader := newMember(t)
	for i := range 500 {
		leader.put(fmt.Sprint("k", i%50), fmt.Sprint(i))
	}
	first := leader.Snapshot()
	for i := range 500 {
		leader.put(fmt.Sprint("k", i%50), fmt.Sprint("later", i))
	}
	leader.do(storetest.Compact(store.SpaceEtcd, int64(leader.revision())))
	for leader.Maintain() {
	}
	second := leader.Snapshot()
	follower := newMember(t)
	w := follower.watch(store.WatchOptions{})
	var both sync.WaitGroup
	for _, s := range []*store.Snapshot{first, second} {
		both.Go(func() { follower.restore(s) })
	}
	both.Wait()
	rest(t, w)
	if rev := follower.revision(); rev != 501 && rev != 1001 {
		t.Fatalf("the follower is at revision %d, the snapshots are of 501 and 1001", rev)
	}
	follower.restore(second)
	same(t, leader, follower)
}

// TestEtcd18667CompactedReadInATransaction: a transaction read at a revision that
// some members had compacted and others had not, or had checked and others
// skipped; it failed on the ones and wrote on the others. Here a compacted read
// refuses the transaction before its first write, and only the log decides what is
// compacted: not how much of it a member has cleared away.
func TestEtcd18667CompactedReadInATransaction(t *testing.T) {
	eager, lazy := newMember(t), newMemberOf(t, store.Options{Limits: store.Limits{PurgeRecords: 1}})
	for _, m := range []*member{eager, lazy} {
		for i := range 300 {
			m.put(fmt.Sprint("k", i%3), fmt.Sprint(i))
		}
		m.do(storetest.Compact(store.SpaceEtcd, 200))
	}
	for eager.Maintain() {
	}
	restored := newMember(t)
	restored.restore(lazy.Snapshot())

	read := func(rev int64) *internalv1.Op {
		return storetest.Get(&internalv1.Range{Key: []byte("k1"), Revision: rev})
	}
	past, kept, future := read(199), read(200), read(400)
	put := storetest.Put("k1", "written")
	never := storetest.Number("k1", internalv1.Compare_TARGET_VERSION, internalv1.Compare_RESULT_EQUAL, 0)
	cases := map[string]struct {
		txn  *internalv1.Txn
		want internalv1.CommandResult_Outcome
	}{
		"behind a put":          {&internalv1.Txn{Success: []*internalv1.Op{put, past}}, internalv1.CommandResult_OUTCOME_COMPACTED},
		"before a put":          {&internalv1.Txn{Success: []*internalv1.Op{past, put}}, internalv1.CommandResult_OUTCOME_COMPACTED},
		"nested":                {&internalv1.Txn{Success: []*internalv1.Op{put, storetest.Nested(&internalv1.Txn{Success: []*internalv1.Op{past}})}}, internalv1.CommandResult_OUTCOME_COMPACTED},
		"in the future":         {&internalv1.Txn{Success: []*internalv1.Op{put, future}}, internalv1.CommandResult_OUTCOME_FUTURE_REVISION},
		"in the branch not run": {&internalv1.Txn{Compares: []*internalv1.Compare{never}, Success: []*internalv1.Op{past}, Failure: []*internalv1.Op{put, kept}}, internalv1.CommandResult_OUTCOME_OK},
	}
	for name, c := range cases {
		var all []*internalv1.CommandResult
		for _, m := range []*member{eager, lazy, restored} {
			before := m.revision()
			r := m.entry([]*internalv1.Command{storetest.Txn(store.SpaceEtcd, c.txn)})[0]
			if r.Outcome != c.want || (c.want != internalv1.CommandResult_OUTCOME_OK && m.revision() != before) {
				t.Errorf("%s: %v (%s) and revision %d after %d, want %v", name, r.Outcome, r.Message, m.revision(), before, c.want)
			}
			all = append(all, r)
		}
		for _, r := range all[1:] {
			if diff := cmp.Diff(all[0], r, protocmp.Transform()); diff != "" {
				t.Errorf("%s: members differ:\n%s", name, diff)
			}
		}
	}
	same(t, eager, lazy)
	same(t, eager, restored)
}

// TestEtcd20271PanicWhenSnapshotAndDefragMeet: a snapshot from the leader replaced
// the file of the keys while defragmentation was rewriting it; the pages of the
// one were read as those of the other, and the member panicked. There is no file
// here. Everything that walks or rearranges the keys runs while snapshots come in:
// nothing panics, and each finds one whole state.
func TestEtcd20271PanicWhenSnapshotAndDefragMeet(t *testing.T) {
	leader := newMember(t)
	r := rand.New(rand.NewPCG(20271, 1))
	for range 300 {
		leader.entry(randomEntry(r, leader))
	}
	follower := newMemberOf(t, store.Options{Limits: store.Limits{PurgeRecords: 2}})
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, work := range []func() error{
		func() error { follower.Maintain(); return nil },
		storetest.Real{Store: follower.Store}.ScrubAll,
		func() error { _, err := follower.Snapshot().WriteTo(io.Discard); return err },
		func() error {
			v := follower.Space(store.SpaceEtcd).View()
			if n := len(slices.Collect(v.Range("", "", 0))); n != v.Count("", "") {
				return fmt.Errorf("%d keys, counted are %d", n, v.Count("", ""))
			}
			return nil
		},
	} {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := work(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 40 {
		follower.restore(leader.Snapshot())
		cmds := randomEntry(r, leader)
		leader.entry(cmds)
		follower.entry(cmds)
	}
	stop()
	all.Wait()
	same(t, leader, follower)
}

// TestEtcd20418StaleReadAfterAPause: a member that had been paused took a late
// answer to an earlier question for leave to read, and showed an old state. Late
// answers are cluster's, and tried there (TestLateConfirmAnswers,
// TestStaleVerifyLeader). The store's half of the promise: whoever knows that a
// revision was acknowledged finds it, however long the reader had slept; and so
// does whoever waited for an index.
func TestEtcd20418StaleReadAfterAPause(t *testing.T) {
	const writes, readers = 4000, 3
	m := newMember(t)
	space := m.Space(store.SpaceEtcd)
	var acknowledged, index atomic.Int64
	acknowledged.Store(1)
	var all sync.WaitGroup
	for range readers {
		all.Go(func() {
			for known := int64(0); known <= writes; {
				known = acknowledged.Load()
				applied := index.Load()
				if at := m.AppliedIndex(); at < uint64(applied) {
					t.Errorf("index %d was applied, now it is %d", applied, at)
				}
				v := space.View()
				if kv, _ := v.Get("k"); int64(v.Revision()) < known || int64(kv.ModRevision) < known && known > 1 {
					t.Errorf("revision %d was acknowledged, a read finds %d and k of %d", known, v.Revision(), kv.ModRevision)
					return
				}
			}
		})
	}
	for range writes {
		acknowledged.Store(int64(m.put("k", "")))
		index.Store(int64(m.AppliedIndex()))
	}
	all.Wait()
}

// member is a store that is fed entries.
type member struct {
	*store.Store
	t *testing.T
}

func newMember(t *testing.T) *member { return newMemberOf(t, store.Options{}) }

func newMemberOf(t *testing.T, o store.Options) *member {
	return &member{Store: store.New(o), t: t}
}

func (m *member) entry(cmds []*internalv1.Command) []*internalv1.CommandResult {
	return m.Apply(m.AppliedIndex()+1, 1, cmds)
}

// do applies a command that must succeed.
func (m *member) do(cmd *internalv1.Command) *internalv1.CommandResult {
	m.t.Helper()
	r := m.entry([]*internalv1.Command{cmd})[0]
	if r.Outcome != internalv1.CommandResult_OUTCOME_OK {
		m.t.Errorf("%v came to %v: %s", cmd, r.Outcome, r.Message)
	}
	return r
}

func (m *member) put(key, value string) store.Revision {
	m.t.Helper()
	return store.Revision(m.do(storetest.Do(store.SpaceEtcd, storetest.Put(key, value))).Revision)
}

func (m *member) revision() store.Revision { return m.Space(store.SpaceEtcd).View().Revision() }

func (m *member) watch(o store.WatchOptions) *store.Watcher {
	m.t.Helper()
	w, err := m.Space(store.SpaceEtcd).Watch(m.t.Context(), o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(w.Stop)
	return w
}

// next is the next batch of a watch; an empty one when it has ended or nothing
// comes. It may be called from any goroutine.
func next(t *testing.T, w *store.Watcher) store.Batch {
	t.Helper()
	select {
	case b := <-w.Events():
		return b
	case <-time.After(20 * time.Second):
		t.Errorf("a watch delivers nothing")
		return store.Batch{}
	}
}

// rest is what a watch delivers until it ends, which it must do.
func rest(t *testing.T, w *store.Watcher) (all []store.Batch) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case b, open := <-w.Events():
			if !open {
				return all
			}
			all = append(all, b)
		case <-timeout:
			t.Fatal("a watch does not end")
		}
	}
}

// restore may be called from any goroutine.
func (m *member) restore(s *store.Snapshot) {
	m.t.Helper()
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		m.t.Error(err)
	}
	if err := m.Restore(&b); err != nil {
		m.t.Error(err)
	}
}

// randomEntry draws a few commands over few keys; some will be refused.
func randomEntry(r *rand.Rand, m *member) []*internalv1.Command {
	const space = store.SpaceEtcd
	key := func() string { return fmt.Sprint("k", r.IntN(12)) }
	lease := func() int64 { return int64(r.IntN(4)) + 1 }
	var cmds []*internalv1.Command
	for range 1 + r.IntN(4) {
		switch r.IntN(12) {
		case 0:
			cmds = append(cmds, storetest.Grant(space, lease(), 60))
		case 1:
			cmds = append(cmds, storetest.Revoke(space, lease()))
		case 2:
			cmds = append(cmds, storetest.Compact(space, int64(m.revision())-int64(r.IntN(20))))
		case 3, 4:
			cmds = append(cmds, storetest.Do(space, storetest.Delete(key(), key())))
		case 5:
			put := &internalv1.Put{Key: []byte(key()), Value: []byte(key()), Lease: lease()}
			cmds = append(cmds, storetest.Do(space, storetest.PutOp(put)))
		default:
			cmds = append(cmds, storetest.Do(space, storetest.Put(key(), key()), storetest.Put(key(), key()),
				storetest.Get(&internalv1.Range{Key: []byte("k"), RangeEnd: []byte{0}, Revision: int64(m.revision())})))
		}
	}
	return cmds
}

// same fails when two members differ in anything that can be observed.
func same(t *testing.T, a, b *member) {
	t.Helper()
	type observed struct {
		Facts   storetest.Facts
		Hash    uint64
		State   uint64
		Keys    []store.KV
		History []store.Batch
	}
	look := func(m *member, space string) observed {
		machine := storetest.Real{Store: m.Store}
		o := observed{Facts: machine.Facts(space)}
		_, o.Hash = m.Hash(space)
		_, o.State = m.Space(space).StateHash()
		var e1, e2 error
		o.Keys, e1 = machine.Range(space, 0, "", "")
		o.History, e2 = machine.History(space, o.Facts.CompactRevision, "", "")
		if err := errors.Join(e1, e2, machine.ScrubAll()); err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, space := range []string{store.SpaceEtcd, store.SpaceObjects} {
		if diff := cmp.Diff(look(a, space), look(b, space), protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("members differ in space %q:\n%s", space, diff)
		}
	}
}

func decodeText(_ string, value []byte, _ int64) (proto.Message, error) {
	return wrapperspb.String(string(value)), nil
}

func indexText(_ string, msg proto.Message) []store.IndexEntry {
	return []store.IndexEntry{{Index: "text", Value: msg.(*wrapperspb.StringValue).GetValue()}}
}
