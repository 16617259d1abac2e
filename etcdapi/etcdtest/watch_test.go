package etcdtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/balsa-run/balsa/etcdapi"
)

// sortNotes is for stories whose notes come in the order of a map.
func sortNotes(s *teller) { slices.Sort(s.notes) }

// events notes events until there are n.
func (s *teller) events(what string, w clientv3.WatchChan, n int) {
	s.Helper()
	for n > 0 {
		r := s.next(w)
		if err := r.Err(); err != nil {
			s.Fatalf("%s on %s: %v", what, s.name, err)
		}
		for _, e := range r.Events {
			s.notef("%s: %s %q=%q of %d, made %d, version %d", what, e.Type, e.Kv.Key, e.Kv.Value,
				s.frame.shownRevision(e.Kv.ModRevision), s.frame.shownRevision(e.Kv.CreateRevision), e.Kv.Version)
			if e.PrevKv != nil {
				s.notef("  before: %q of %d", e.PrevKv.Value, s.frame.shownRevision(e.PrevKv.ModRevision))
			}
			n--
		}
	}
}

func watchStories() []story {
	return []story{
		{name: "the order of events", tell: func(s *teller) {
			s.put("a", "0")
			w := s.c.Watch(s.ctx, "", clientv3.WithFromKey(), clientv3.WithPrevKV(), clientv3.WithRev(s.rev(2)))
			_, err := s.c.Txn(s.ctx).Then(clientv3.OpPut("c", "1"), clientv3.OpPut("b", "1"), clientv3.OpDelete("a")).Commit()
			s.must(err)
			s.put("a", "2")
			_, err = s.c.Delete(s.ctx, "", clientv3.WithFromKey())
			s.must(err)
			s.events("event", w, 8)
		}},
		{name: "filters and ranges", tell: func(s *teller) {
			puts := s.c.Watch(s.ctx, "a", clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithRev(s.rev(2)))
			deletes := s.c.Watch(s.ctx, "a", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithRev(s.rev(2)))
			one := s.c.Watch(s.ctx, "a", clientv3.WithRev(s.rev(2)))
			for _, key := range []string{"a", "ab", "b", "ab"} {
				s.put(key, "")
			}
			_, err := s.c.Delete(s.ctx, "ab")
			s.must(err)
			s.put("a", "last")
			s.events("put", puts, 4)
			s.events("delete", deletes, 1)
			s.events("one key", one, 2)
		}},
		{name: "revisions in headers", tell: func(s *teller) {
			for _, key := range []string{"a", "a", "b", "a", "b"} {
				s.put(key, "")
			}
			w := s.c.Watch(s.ctx, "a", clientv3.WithRev(s.rev(3)))
			r := s.next(w)
			s.equal("of the past", []any{2, int64(6)}, []any{len(r.Events), s.frame.shownRevision(r.Header.Revision)})
			s.put("b", "")
			s.put("a", "")
			r = s.next(w)
			s.equal("as it happens", []any{1, int64(8)}, []any{len(r.Events), s.frame.shownRevision(r.Header.Revision)})
		}},
		{name: "a watch of what is compacted", tell: func(s *teller) {
			for range 5 {
				s.put("a", "")
			}
			_, err := s.c.Compact(s.ctx, s.rev(4))
			s.must(err)
			r := s.next(s.c.Watch(s.ctx, "a", clientv3.WithRev(s.rev(3))))
			s.equal("error", rpctypes.ErrCompacted, r.Err())
			s.equal("compacted at", int64(4), s.frame.shownRevision(r.CompactRevision))
			s.events("from there", s.c.Watch(s.ctx, "a", clientv3.WithRev(s.rev(4))), 3)
		}},
		{name: "progress on demand", tell: func(s *teller) {
			w := s.c.Watch(s.ctx, "a", clientv3.WithCreatedNotify())
			s.next(w)
			s.put("other", "")
			s.must(s.c.RequestProgress(s.ctx))
			r := s.next(w)
			s.equal("progress", []any{true, int64(2), 0}, []any{r.IsProgressNotify(), s.frame.shownRevision(r.Header.Revision), len(r.Events)})
		}},
		{name: "20221: a watch on a future revision is told nothing before it", tell: futureWatch},
		{name: "a backlog that is larger than a response", tell: fragments},
		{name: "watches come and go on one stream", tell: watchIDs},
	}
}

// futureWatch is the API's half of the two shapes of etcd's issue 20221.
func futureWatch(s *teller) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	s.must(err)
	send := func(r *pb.WatchRequest) { s.must(stream.Send(r)) }
	create := func(c *pb.WatchCreateRequest) {
		send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}})
	}
	ask := func() {
		send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	}
	recv := func(what string) *pb.WatchResponse {
		r, err := stream.Recv()
		s.note(what, r, err)
		s.must(err)
		return r
	}
	create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: s.rev(4), ProgressNotify: true})
	recv("created")
	ask()
	create(&pb.WatchCreateRequest{StartRevision: -1})
	recv("no mark comes before this refusal")
	s.put("a", "2")
	ask()
	s.put("a", "3")
	ask()
	create(&pb.WatchCreateRequest{StartRevision: -1})
	recv("no event and no mark comes before this refusal")
	s.put("a", "4")
	r := recv("the first event")
	s.equal("its revision", int64(4), s.frame.shownRevision(r.GetEvents()[0].GetKv().GetModRevision()))
	ask()
	r = recv("a mark")
	s.equal("its revision", int64(4), s.frame.shownRevision(r.GetHeader().GetRevision()))
}

func fragments(s *teller) {
	const events, each = 20, 150_000
	for i := range events {
		s.put(fmt.Sprint("k", i), strings.Repeat(fmt.Sprint(i%10), each))
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	s.must(err)
	s.must(stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: s.rev(2), Fragment: true,
	}}}))
	_, err = stream.Recv()
	s.must(err)
	got := 0
	for got < events {
		r, err := stream.Recv()
		s.must(err)
		for _, e := range r.GetEvents() {
			s.equal("key", fmt.Sprint("k", got), string(e.GetKv().GetKey()))
			s.equal("size", each, len(e.GetKv().GetValue()))
			got++
		}
		if r.GetFragment() && got == events {
			s.Errorf("%s: the last fragment says that more follow", s.name)
		}
	}
}

// TestFragments: one revision that is larger than a response may be.
func TestFragments(t *testing.T) {
	t.Parallel()
	const events, each = 60, 24_000
	for _, s := range []*side{startEtcd(t), startSolo(t, etcdapi.Limits{})} {
		ctx := within(t)
		var ops []clientv3.Op
		for i := range events {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("k%02d", i), strings.Repeat("x", each)))
		}
		stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte("k"), RangeEnd: []byte("l"), Fragment: true, PrevKv: true,
		}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // with the keys before, the second has twice the size
			if _, err := s.client.Txn(ctx).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
		}
		var keys []string
		cut := 0
		for len(keys) < 2*events {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range r.GetEvents() {
				keys = append(keys, string(e.GetKv().GetKey()))
			}
			if r.GetFragment() {
				cut++
			}
		}
		if cut == 0 || !slices.IsSorted(keys[:events]) || !slices.IsSorted(keys[events:]) {
			t.Errorf("%s: %d fragments, keys %q", s.name, cut, keys)
		}
	}
}

func watchIDs(s *teller) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	s.must(err)
	recv := func(what string) {
		r, err := stream.Recv()
		s.note(what, r, err)
		s.must(err)
	}
	create := func(what string, id int64, key string) {
		s.must(stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{WatchId: id, Key: []byte(key)}}}))
		recv(what)
	}
	cancelID := func(id int64) {
		s.must(stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}))
	}
	create("an id of the server", 0, "a")
	create("an id of the client", 7, "b")
	create("the same id", 7, "c")
	create("the next of the server", 0, "c")
	s.put("b", "1")
	recv("to 7")
	cancelID(7)
	recv("canceled")
	cancelID(99)
	create("again, and nothing was said of 99", 7, "b")
	s.put("b", "2")
	recv("to 7 again")
	s.put("c", "3")
	recv("to the third")
}

// TestProgressNotify: marks by themselves, on watches where nothing happens.
func TestProgressNotify(t *testing.T) {
	t.Parallel()
	for _, s := range []*side{
		startEtcd(t, "--watch-progress-notify-interval", "300ms"),
		startSolo(t, etcdapi.Limits{ProgressEvery: 300 * time.Millisecond}),
	} {
		ctx := within(t)
		quiet := s.client.Watch(ctx, "quiet", clientv3.WithProgressNotify())
		never := s.client.Watch(clientv3.WithRequireLeader(ctx), "never", clientv3.WithProgressNotify(), clientv3.WithRev(1000))
		p, err := s.client.Put(ctx, "other", "")
		if err != nil {
			t.Fatal(err)
		}
		for marks := 0; marks < 3; {
			select {
			case r := <-quiet:
				if !r.IsProgressNotify() {
					t.Fatalf("%s: %+v", s.name, r)
				}
				if r.Header.Revision == p.Header.Revision {
					marks++
				}
			case r := <-never:
				t.Fatalf("%s: a watch from the future is told %+v", s.name, r)
			case <-ctx.Done():
				t.Fatalf("%s: %d marks came", s.name, marks)
			}
		}
	}
}
