package etcdapi

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/store"
)

// watching is one raw stream of watches.
type watching struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
	cancel context.CancelFunc
}

func (r *rig) watching(t testing.TB) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(soon(t))
	stream, err := pb.NewWatchClient(r.conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &watching{t, stream, cancel}
}

func (w *watching) send(r *pb.WatchRequest) {
	w.t.Helper()
	if err := w.stream.Send(r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watching) create(r *pb.WatchCreateRequest) {
	w.t.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

func (w *watching) cancelID(id int64) {
	w.t.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (w *watching) progress() {
	w.t.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

func (w *watching) recv() *pb.WatchResponse {
	w.t.Helper()
	r, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// want expects a response with these words: see told.
func (w *watching) want(words string) {
	w.t.Helper()
	if got := told(w.recv()); got != words {
		w.t.Fatalf("got %q, want %q", got, words)
	}
}

// wantEvents expects events of one watch, in one response or in several.
func (w *watching) wantEvents(id int64, words ...string) {
	w.t.Helper()
	var got []string
	for len(got) < len(words) {
		r := w.recv()
		if r.GetWatchId() != id || len(r.GetEvents()) == 0 {
			w.t.Fatalf("got %q instead of events of watch %d", told(r), id)
		}
		got = append(got, changes(r.GetEvents())...)
	}
	if diff := cmp.Diff(words, got); diff != "" {
		w.t.Fatal(diff)
	}
}

// told is a response in a line: "3@7 created", "3@7 put a=1 delete b (was 2)".
func told(r *pb.WatchResponse) string {
	words := []string{fmt.Sprintf("%d@%d", r.GetWatchId(), r.GetHeader().GetRevision())}
	if r.GetCreated() {
		words = append(words, "created")
	}
	if r.GetCanceled() {
		words = append(words, "canceled")
	}
	if r.GetCompactRevision() != 0 {
		words = append(words, fmt.Sprint("compacted ", r.GetCompactRevision()))
	}
	if r.GetCancelReason() != "" {
		words = append(words, r.GetCancelReason())
	}
	return strings.Join(append(words, changes(r.GetEvents())...), " ")
}

func changes(events []*mvccpb.Event) (words []string) {
	for _, e := range events {
		change := "put " + string(e.GetKv().GetKey()) + "=" + string(e.GetKv().GetValue())
		if e.GetType() == mvccpb.Event_DELETE {
			change = "delete " + string(e.GetKv().GetKey())
		}
		if e.GetPrevKv() != nil {
			change += " (was " + string(e.GetPrevKv().GetValue()) + ")"
		}
		words = append(words, change)
	}
	return words
}

func TestWatchTellsWhatHappens(t *testing.T) {
	r := newRig(t)
	w := r.watching(t)
	r.put(t, "a", "0") // 2
	w.create(&pb.WatchCreateRequest{Key: b("a"), RangeEnd: b("c")})
	w.want("0@2 created")
	r.put(t, "a", "1")
	w.want("0@3 put a=1")
	r.put(t, "c", "1") // outside
	r.delete(t, "a")
	w.want("0@5 delete a")
	if _, err := r.kv.Txn(soon(t), &pb.TxnRequest{Success: []*pb.RequestOp{opPutOf("b", "2"), opPutOf("a", "2"), opPutOf("d", "2")}}); err != nil {
		t.Fatal(err)
	}
	w.want("0@6 put b=2 put a=2")
}

func TestWatchEventsAreWhole(t *testing.T) {
	r := newRig(t)
	r.grant(t, 5, 60)
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a"), PrevKv: true})
	w.want("0@1 created")
	if _, err := r.kv.Put(soon(t), &pb.PutRequest{Key: b("a"), Value: b("1"), Lease: 5}); err != nil {
		t.Fatal(err)
	}
	created := &mvccpb.KeyValue{Key: b("a"), Value: b("1"), CreateRevision: 2, ModRevision: 2, Version: 1, Lease: 5}
	want := &pb.WatchResponse{
		Header: &pb.ResponseHeader{ClusterId: 11, MemberId: 12, Revision: 2, RaftTerm: 7},
		Events: []*mvccpb.Event{{Kv: created}},
	}
	if diff := cmp.Diff(want, w.recv(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	r.delete(t, "a")
	want.Header.Revision = 3
	want.Events = []*mvccpb.Event{{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: b("a"), ModRevision: 3}, PrevKv: created}}
	if diff := cmp.Diff(want, w.recv(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestWatchStarts: in the past, at the compacted revision, now, and in the future.
// Revisions 2 to 6 put a=2 to a=6; compacted at 4.
func TestWatchStarts(t *testing.T) {
	r := newRig(t)
	for i := 2; i <= 6; i++ {
		r.put(t, "a", fmt.Sprint(i))
	}
	r.compact(t, 4)
	w := r.watching(t)
	start := func(rev int64) { w.create(&pb.WatchCreateRequest{Key: b("a"), StartRevision: rev, PrevKv: true}) }
	start(4)
	w.want("0@6 created")
	// The value before the compacted revision is forgotten.
	w.wantEvents(0, "put a=4", "put a=5 (was 4)", "put a=6 (was 5)")
	start(3)
	w.want("1@6 created")
	w.want("1@0 canceled compacted 4")
	start(-1)
	w.want("-1@6 created canceled etcdserver: mvcc: required revision has been compacted")
	start(8)
	w.want("2@6 created")
	r.put(t, "a", "7")
	w.want("0@7 put a=7 (was 6)")
	r.put(t, "a", "8")
	got := []string{told(w.recv()), told(w.recv())}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"0@8 put a=8 (was 7)", "2@8 put a=8 (was 7)"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWatchRefusals(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Watches = 4 })
	w := r.watching(t)
	for _, c := range []struct {
		r    *pb.WatchCreateRequest
		want string
	}{
		{&pb.WatchCreateRequest{Key: b("b"), RangeEnd: b("a")}, "-1@1 created canceled mvcc: watcher range is empty"},
		{&pb.WatchCreateRequest{Key: b("b"), RangeEnd: b("b")}, "-1@1 created canceled mvcc: watcher range is empty"},
		{&pb.WatchCreateRequest{Key: b("a"), WatchId: 1}, "1@1 created"},
		{&pb.WatchCreateRequest{Key: b("a"), WatchId: 1}, "-1@1 created canceled mvcc: duplicate watch ID provided on the WatchStream"},
		// Ids that the client does not choose go around those that it has chosen.
		{&pb.WatchCreateRequest{Key: b("a")}, "0@1 created"},
		{&pb.WatchCreateRequest{Key: b("a")}, "2@1 created"},
		{&pb.WatchCreateRequest{}, "3@1 created"},
		{&pb.WatchCreateRequest{Key: b("a")}, "-1@1 created canceled etcdserver: too many requests"},
	} {
		w.create(c.r)
		w.want(c.want)
	}
	w.cancelID(77) // nobody: no answer
	w.cancelID(0)
	w.want("0@1 canceled")
	w.send(&pb.WatchRequest{}) // of a later version: no answer
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("4@1 created")
	w.cancelID(1)
	w.want("1@1 canceled")
	w.create(&pb.WatchCreateRequest{Key: b("a"), WatchId: 1})
	w.want("1@1 created")
}

// TestWatchCompactedKeepsItsID until the client cancels it, as in etcd.
func TestWatchCompactedKeepsItsID(t *testing.T) {
	m := &counted{}
	r := newRig(t, func(c *Config) { c.Metrics = m })
	r.put(t, "a", "1")
	r.put(t, "a", "2")
	r.compact(t, 3)
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a"), WatchId: 9, StartRevision: 2})
	w.want("9@3 created")
	w.want("9@0 canceled compacted 3")
	w.create(&pb.WatchCreateRequest{Key: b("a"), WatchId: 9})
	w.want("-1@3 created canceled mvcc: duplicate watch ID provided on the WatchStream")
	w.cancelID(9)
	w.want("9@3 canceled")
	w.create(&pb.WatchCreateRequest{Key: b("a"), WatchId: 9})
	w.want("9@3 created")
	w.cancel()
	eventually(t, "no watch is open", func() bool { n, _ := m.figures(); return n == 0 && r.server.space.Stats().Watchers == 0 })
}

func TestWatchKeys(t *testing.T) {
	r := newRig(t)
	w := r.watching(t)
	// An empty key alone is the smallest key, to the end it is everything.
	w.create(&pb.WatchCreateRequest{})
	w.want("0@1 created")
	w.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}})
	w.want("1@1 created")
	w.create(&pb.WatchCreateRequest{Key: b("m"), RangeEnd: []byte{0}})
	w.want("2@1 created")
	r.put(t, "a", "1")
	w.want("1@2 put a=1")
	r.put(t, "\xff", "1")
	got := []string{told(w.recv()), told(w.recv())}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"1@3 put \xff=1", "2@3 put \xff=1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWatchFilters(t *testing.T) {
	r := newRig(t)
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	w.want("0@1 created")
	w.create(&pb.WatchCreateRequest{Key: b("a"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}})
	w.want("1@1 created")
	w.create(&pb.WatchCreateRequest{Key: b("a"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE, 77}})
	w.want("2@1 created")
	r.put(t, "a", "1")
	w.want("1@2 put a=1")
	r.delete(t, "a")
	w.want("0@3 delete a")
	w.progress()
	w.want("-1@3")
}

// TestProgressOnDemand: one mark for all watches, when all have said everything; none
// without watches, and none while a watch begins in the future.
func TestProgressOnDemand(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.put(t, "a", fmt.Sprint(i))
	}
	w := r.watching(t)
	w.progress()
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@6 created")
	w.progress()
	w.want("-1@6")
	w.create(&pb.WatchCreateRequest{Key: b("none"), StartRevision: 2})
	w.want("1@6 created")
	w.progress()
	w.want("-1@6")
	w.create(&pb.WatchCreateRequest{Key: b("a"), StartRevision: 2})
	w.progress()
	w.want("2@6 created")
	w.wantEvents(2, "put a=0", "put a=1", "put a=2", "put a=3", "put a=4")
	w.want("-1@6")
	w.create(&pb.WatchCreateRequest{Key: b("a"), StartRevision: 8, WatchId: 50})
	w.want("50@6 created")
	w.progress() // no answer
	w.cancelID(50)
	w.want("50@6 canceled")
	w.progress()
	w.want("-1@6")
}

// TestProgressIsNeverAhead: while keys change, every mark of the stream has a revision
// up to which each of its watches has told everything, those that were just made
// and begin in the past among them.
func TestProgressIsNeverAhead(t *testing.T) {
	r := newRig(t)
	w := r.watching(t)
	ctx, cancel := context.WithCancel(soon(t))
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := 0; ctx.Err() == nil && i < 800; i++ {
			r.group.Propose(ctx, txnCommand(opPutOf("a", fmt.Sprint(i))))
		}
	}()
	defer func() { cancel(); <-written }()
	told := map[int64]int64{} // the last revision that each watch has told
	requested, marks := int64(0), 0
	for marks < 30 {
		if requested < 15 {
			w.create(&pb.WatchCreateRequest{Key: b("a"), StartRevision: 1})
			requested++
		}
		w.progress()
		for {
			m := w.recv()
			rev := m.GetHeader().GetRevision()
			if m.GetCreated() {
				told[m.GetWatchId()] = 1
				break
			}
			if m.GetWatchId() == noWatch {
				marks++
				for id, last := range told {
					if last < rev {
						t.Fatalf("a mark at %d, and watch %d has told what happened until %d only", rev, id, last)
					}
				}
				break
			}
			for _, e := range m.GetEvents() {
				if mod := e.GetKv().GetModRevision(); mod != told[m.GetWatchId()]+1 {
					t.Fatalf("watch %d tells revision %d after %d", m.GetWatchId(), mod, told[m.GetWatchId()])
				}
				told[m.GetWatchId()]++
			}
		}
	}
}

// lookClock tells when a timer of at least this long is set anew: a watch stream does that
// behind each look for quiet watches.
type lookClock struct {
	*clock.Fake
	least  time.Duration
	looked chan struct{}
}

func (c *lookClock) NewTimer(d time.Duration) clock.Timer {
	return &lookTimer{Timer: c.Fake.NewTimer(d), clock: c}
}

type lookTimer struct {
	clock.Timer
	clock *lookClock
}

func (t *lookTimer) Reset(d time.Duration) bool {
	was := t.Timer.Reset(d)
	if d >= t.clock.least {
		t.clock.looked <- struct{}{}
	}
	return was
}

// look lets the time until the next look pass, and waits for its end.
func (c *lookClock) look() {
	c.Advance(c.least + c.least/5)
	<-c.looked
}

// TestProgressNotify: a quiet watch that asked for it gets a mark now and then, one
// that has just told something does not.
func TestProgressNotify(t *testing.T) {
	c := &lookClock{Fake: clock.NewFake(time.Unix(1_800_000_000, 0)), least: time.Minute, looked: make(chan struct{})}
	r := newRig(t, func(cfg *Config) { cfg.Clock = c; cfg.Limits.ProgressEvery = c.least })
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a"), ProgressNotify: true})
	w.want("0@1 created")
	w.create(&pb.WatchCreateRequest{Key: b("a")}) // not interested
	w.want("1@1 created")
	w.cancelID(1)
	w.want("1@1 canceled")
	c.look()
	w.want("0@1")
	r.put(t, "b", "1") // elsewhere
	w.progress()       // a feed may be a revision behind the space; now it is not
	w.want("-1@2")
	c.look()
	w.want("0@2")
	r.put(t, "a", "1")
	w.want("0@3 put a=1")
	c.look()
	w.progress() // answered after the look, which has sent nothing
	w.want("-1@3")
	c.look()
	w.want("0@3")
}

func TestWatchFragments(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.FragmentBytes = 4096 })
	value := strings.Repeat("v", 1000)
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}, Fragment: true})
	w.want("0@1 created")
	w.create(&pb.WatchCreateRequest{RangeEnd: []byte{0}})
	w.want("1@1 created")
	ops := many(10, func(i int) *pb.RequestOp { return opPutOf(fmt.Sprint("k", i), value) })
	if _, err := r.kv.Txn(soon(t), &pb.TxnRequest{Success: ops}); err != nil {
		t.Fatal(err)
	}
	var whole, merged *pb.WatchResponse
	for pieces := 0; whole == nil || merged == nil || merged.GetFragment(); {
		m := w.recv()
		if m.GetWatchId() == 1 {
			whole = m
			continue
		}
		if pieces++; proto.Size(m) > 4096 {
			t.Errorf("a piece of %d bytes", proto.Size(m))
		}
		if merged == nil {
			merged = m
			continue
		}
		merged.Events, merged.Fragment = append(merged.Events, m.GetEvents()...), m.GetFragment()
	}
	merged.WatchId = 1
	if diff := cmp.Diff(whole, merged, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestFragments(t *testing.T) {
	event := func(n int) *mvccpb.Event { return &mvccpb.Event{Kv: &mvccpb.KeyValue{Value: make([]byte, n)}} }
	for _, c := range []struct {
		events []int
		limit  int
		want   []int // events of the pieces
	}{
		{nil, 1, []int{0}}, {[]int{500}, 100, []int{1}}, {[]int{10, 10}, 1000, []int{2}},
		{[]int{500, 500, 500}, 100, []int{1, 1, 1}}, {[]int{30, 30, 30, 30}, 100, []int{2, 2}}, {[]int{10, 500, 10}, 100, []int{1, 1, 1}},
	} {
		whole := &pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 3}, WatchId: 4}
		for _, n := range c.events {
			whole.Events = append(whole.Events, event(n))
		}
		var got []int
		pieces := fragments(whole, c.limit)
		for i, p := range pieces {
			got = append(got, len(p.GetEvents()))
			if len(p.GetEvents()) > 1 && proto.Size(p) > c.limit {
				t.Errorf("%v: a piece of %d bytes where %d are allowed", c.events, proto.Size(p), c.limit)
			}
			if p.GetFragment() != (i < len(pieces)-1) {
				t.Errorf("%v: piece %d says more: %v", c.events, i, p.GetFragment())
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v in pieces of %d bytes: %v, want %v", c.events, c.limit, got, c.want)
		}
	}
}

// TestSlowWatchIsBounded: a client that does not read holds up nobody, and gets
// everything when it does.
func TestSlowWatchIsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.FragmentBytes = 8 << 10 })
	slow, quick := r.watching(t), r.watching(t)
	for _, w := range []*watching{slow, quick} {
		w.create(&pb.WatchCreateRequest{Key: b("a")})
		w.want("0@1 created")
	}
	value := strings.Repeat("v", 4096)
	const puts = 1000
	for range puts {
		if _, err := r.group.Propose(soon(t), txnCommand(opPutOf("a", value))); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range []*watching{quick, slow} {
		next := int64(2)
		for next < puts+2 {
			for _, e := range w.recv().GetEvents() {
				if e.GetKv().GetModRevision() != next {
					t.Fatalf("revision %d instead of %d", e.GetKv().GetModRevision(), next)
				}
				next++
			}
		}
	}
	if r.server.space.Stats().SlowWatchers == 0 {
		t.Error("no watch has fallen behind: the test tests nothing")
	}
}

// restore gives the store the state that it has, by way of a snapshot.
func (r *rig) restore(t testing.TB, from *store.Store) {
	t.Helper()
	var snapshot bytes.Buffer
	if _, err := from.Snapshot().WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	r.group.set(func(g *testGroup) {
		if err := g.store.Restore(&snapshot); err != nil {
			t.Fatal(err)
		}
		g.index = g.store.AppliedIndex()
	})
}

// TestWatchGoesOnAfterRestore: a member that gets a snapshot under its watches goes on
// where they were, or says that it is compacted.
func TestWatchGoesOnAfterRestore(t *testing.T) {
	r, other := newRig(t), newRig(t)
	both := func(key, value string) { r.put(t, key, value); other.put(t, key, value) }
	both("a", "1")
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a"), PrevKv: true})
	w.want("0@2 created")
	both("a", "2")
	w.want("0@3 put a=2 (was 1)")
	other.put(t, "a", "3")
	other.put(t, "b", "3")
	r.restore(t, other.group.store)
	w.want("0@4 put a=3 (was 2)")
	w.progress()
	w.want("-1@5")
	both("a", "4")
	w.want("0@6 put a=4 (was 3)")
	other.put(t, "a", "5")
	other.put(t, "a", "6")
	other.compact(t, 8)
	r.restore(t, other.group.store)
	w.want("0@0 canceled compacted 8")
}

// TestWatchNeedsALeader when the client says so.
func TestWatchNeedsALeader(t *testing.T) {
	fake := clock.NewFake(time.Unix(1_800_000_000, 0))
	r := newRig(t, func(c *Config) { c.Clock = fake })
	needs := func() (*watching, error) {
		ctx := metadata.AppendToOutgoingContext(soon(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
		stream, err := pb.NewWatchClient(r.conn).Watch(ctx)
		return &watching{t: t, stream: stream}, err
	}
	w, err := needs()
	if err != nil {
		t.Fatal(err)
	}
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@1 created")
	indifferent := r.watching(t)
	indifferent.create(&pb.WatchCreateRequest{Key: b("a")})
	indifferent.want("0@1 created")
	r.group.set(func(g *testGroup) { g.leader = 0 })
	ended := make(chan error, 1)
	go func() { _, err := w.stream.Recv(); ended <- err }()
	eventually(t, "the stream has ended", func() bool {
		fake.Advance(leaderLook)
		return len(ended) > 0
	})
	same(t, <-ended, rpctypes.ErrGRPCNoLeader)
	late, err := needs()
	if err == nil {
		_, err = late.stream.Recv()
	}
	same(t, err, rpctypes.ErrGRPCNoLeader)
	indifferent.progress()
	indifferent.want("-1@1")
}

func TestStopEndsStreams(t *testing.T) {
	r := newRig(t)
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@1 created")
	r.server.Stop(soon(t))
	_, err := w.stream.Recv()
	same(t, err, rpctypes.ErrGRPCStopped)
}

func TestStreamsAreLimited(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Streams = 1 })
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@1 created")
	_, err := r.watching(t).stream.Recv()
	same(t, err, rpctypes.ErrGRPCRequestTooManyRequests)
	w.cancel()
	eventually(t, "there is room again", func() bool {
		again := r.watching(t)
		again.create(&pb.WatchCreateRequest{Key: b("a")})
		_, err := again.stream.Recv()
		return err == nil
	})
}

// TestHalfClosedWatchTellsOn: a client that has no more to ask still listens.
func TestHalfClosedWatchTellsOn(t *testing.T) {
	r := newRig(t)
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@1 created")
	if err := w.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.put(t, "a", "1")
	w.want("0@2 put a=1")
}

// TestWatchThroughTheClient: the official client's own machinery for resuming,
// progress and errors.
func TestWatchThroughTheClient(t *testing.T) {
	r := newRig(t)
	for i := 2; i <= 6; i++ {
		r.put(t, "a", fmt.Sprint(i))
	}
	r.compact(t, 4)
	ctx := soon(t)
	compacted := <-r.client.Watch(ctx, "a", clientv3.WithRev(2))
	if compacted.CompactRevision != 4 || compacted.Err() == nil || compacted.Err().Error() != rpctypes.ErrCompacted.Error() {
		t.Errorf("compacted: %+v, %v", compacted, compacted.Err())
	}
	events := r.client.Watch(ctx, "a", clientv3.WithRev(4), clientv3.WithCreatedNotify(), clientv3.WithFragment(), clientv3.WithPrefix())
	if first := <-events; !first.Created || first.Header.Revision != 6 {
		t.Errorf("created: %+v", first)
	}
	seen := 0
	for seen < 3 {
		seen += len((<-events).Events)
	}
	if err := r.client.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if mark := <-events; !mark.IsProgressNotify() || mark.Header.Revision != 6 {
		t.Errorf("progress: %+v", mark)
	}
}

func TestWatchMetrics(t *testing.T) {
	m := &counted{}
	r := newRig(t, func(c *Config) { c.Metrics = m })
	w := r.watching(t)
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@1 created")
	r.put(t, "a", "1")
	w.want("0@2 put a=1")
	if watches, events := m.figures(); watches != 1 || events != 1 {
		t.Errorf("%d watches are open and %d events were sent", watches, events)
	}
	w.cancel()
	eventually(t, "the watch is closed", func() bool { watches, _ := m.figures(); return watches == 0 })
}
