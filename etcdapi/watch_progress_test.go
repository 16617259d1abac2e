package etcdapi

import (
	"context"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/balsa-run/balsa/store"
)

// sink is the stream of a client, without the client.
type sink struct {
	grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	told []string
}

func (s *sink) Send(r *pb.WatchResponse) error {
	s.told = append(s.told, told(r))
	return nil
}

// marking is a stream of watches whose marks the test makes up. The space is at
// revision 6.
type marking struct {
	*watchStream
	t    *testing.T
	sink *sink
}

func newMarking(t *testing.T) *marking {
	r := newRig(t)
	for range 5 {
		r.put(t, "a", "")
	}
	m := &marking{t: t, sink: &sink{}}
	m.watchStream = &watchStream{Server: r.server, ctx: t.Context(), stream: m.sink, watches: map[int64]*watch{}}
	return m
}

func (m *marking) watch(id int64, start store.Revision) *watch {
	m.t.Helper()
	watcher, err := m.space.Watch(m.t.Context(), store.WatchOptions{Key: "a", From: start})
	if err != nil {
		m.t.Fatal(err)
	}
	w := &watch{id: id, start: start, feed: &feed{}, cancel: watcher.Stop}
	w.feed.watcher.Store(watcher)
	m.watches[id] = w
	return w
}

// do expects a step to send exactly this.
func (m *marking) do(what string, err error, want ...string) {
	m.t.Helper()
	if err != nil || !slices.Equal(m.sink.told, want) {
		m.t.Errorf("%s: sent %q, want %q, error %v", what, m.sink.told, want, err)
	}
	m.sink.told = nil
}

func TestAllProgressIsTheOldestMark(t *testing.T) {
	m := newMarking(t)
	one, two := m.watch(1, 0), m.watch(2, 0)
	m.do("a mark that nobody asked for", m.marked(one, 6))
	m.do("the question", m.askAll())
	m.do("a mark before the question", m.marked(one, 5))
	m.do("the first mark", m.marked(one, 7))
	m.do("the first watch again", m.marked(one, 8))
	m.do("the second mark", m.marked(two, 6), "-1@6")
	m.do("a mark behind the answer", m.marked(two, 6))
}

func TestAllProgressOfWatchesThatComeAndGo(t *testing.T) {
	m := newMarking(t)
	one, two := m.watch(1, 0), m.watch(2, 0)
	m.do("the question", m.askAll())
	m.do("the first mark", m.marked(one, 6))
	three := m.watch(3, 2)
	m.do("a new watch", m.joinAll(three))
	m.do("the second mark", m.marked(two, 9))
	m.do("the third mark", m.marked(three, 8), "-1@6")

	m.do("the question", m.askAll())
	m.do("the same question", m.askAll())
	m.do("the first mark", m.marked(one, 6))
	m.do("the third mark", m.marked(three, 6))
	m.do("the second is canceled", m.cancel(2), "2@6 canceled", "-1@6")
	m.do("the first mark for the second question", m.marked(one, 6))
	m.do("the third watch ends", m.end(three, context.DeadlineExceeded), "3@6 canceled context deadline exceeded", "-1@6")

	m.do("the question", m.askAll())
	m.do("the only watch is canceled", m.cancel(1), "1@6 canceled")
	if m.all.waiting != nil {
		t.Error("a question without watches is still open")
	}
}

func TestAllProgressWaitsForNoFuture(t *testing.T) {
	m := newMarking(t)
	one, future := m.watch(1, 0), m.watch(2, 9)
	m.do("the question", m.askAll())
	m.do("a mark of the one", m.marked(one, 6))
	m.do("a mark of the other", m.marked(future, 6))
	m.do("the future is canceled", m.cancel(2), "2@6 canceled")
	m.do("the question", m.askAll())
	m.do("a watch of the future", m.joinAll(m.watch(3, 9)))
	m.do("a mark of the one", m.marked(one, 6))
}

// TestFeedAsksAgainAfterRestore: a mark that was asked for of a watch that a
// snapshot has ended comes from its successor.
func TestFeedAsksAgainAfterRestore(t *testing.T) {
	r := newRig(t)
	r.put(t, "a", "1")
	ctx, cancel := context.WithCancel(t.Context())
	f := &feed{space: r.server.space, options: store.WatchOptions{Key: "a", From: 3}}
	watcher, err := f.space.Watch(ctx, f.options)
	if err != nil {
		t.Fatal(err)
	}
	f.watcher.Store(watcher)
	items, stopped := make(chan item), make(chan struct{})
	go func() {
		defer close(stopped)
		f.run(ctx, func(i item) bool {
			select {
			case items <- i:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()
	r.restore(t, r.group.store)
	select {
	case i := <-items:
		if !i.mark || i.revision != 2 {
			t.Errorf("after the restore: %+v", i)
		}
	case <-soon(t).Done():
		t.Error("no mark after the restore")
	}
	cancel()
	<-stopped
}

func TestStreamsThatComeTooLate(t *testing.T) {
	var set streamSet
	ctx, leave, err := set.enter(t.Context(), false, 5)
	if err != nil {
		t.Fatal(err)
	}
	set.end(true, rpctypes.ErrGRPCStopped)
	if context.Cause(ctx) != rpctypes.ErrGRPCStopped { //nolint:errorlint // the very cause
		t.Errorf("the open stream: %v", context.Cause(ctx))
	}
	leave()
	_, _, err = set.enter(t.Context(), false, 5)
	same(t, err, rpctypes.ErrGRPCStopped)
}
