package etcdapi

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/balsa-run/balsa/store"
)

// gatherRevisions is how many revisions a watch response has at most; etcd's.
const gatherRevisions = 1000

// item is what a feed has to say: events up to a revision, the mark that
// everything up to it was said, or why the feed has ended.
type item struct {
	watch    *watch
	events   []*mvccpb.Event
	mark     bool
	revision store.Revision
	err      error
}

// feed turns what a watch of the store delivers into responses. When the store
// was restored from a snapshot it goes on behind the last revision that was
// delivered, so the client does not notice.
type feed struct {
	space   *store.Space
	options store.WatchOptions // From is the first revision that was not delivered
	dropPut bool
	dropDel bool
	bytes   int // about how long a response may become by gathering
	// held is a mark that came while gathering.
	held    *store.Batch
	watcher atomic.Pointer[store.Watcher]
}

func newFeed(s *Server, o store.WatchOptions, r *pb.WatchCreateRequest) *feed {
	return &feed{
		space: s.space, options: o, bytes: s.limits.FragmentBytes,
		dropPut: slices.Contains(r.GetFilters(), pb.WatchCreateRequest_NOPUT),
		dropDel: slices.Contains(r.GetFilters(), pb.WatchCreateRequest_NODELETE),
	}
}

// ask asks for a mark. It may be called from any goroutine.
func (f *feed) ask() { f.watcher.Load().RequestProgress() }

// run delivers until ctx ends or deliver is false.
func (f *feed) run(ctx context.Context, deliver func(item) bool) {
	for {
		err := f.forward(f.watcher.Load(), deliver)
		if errors.Is(err, store.ErrResync) {
			err = f.reopen(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			deliver(item{err: err})
		}
		return
	}
}

// reopen watches the restored space. A mark that was asked for before may be
// lost with the old watch, so it asks for one.
func (f *feed) reopen(ctx context.Context) error {
	watcher, err := f.space.Watch(ctx, f.options)
	if err != nil {
		return err
	}
	f.watcher.Store(watcher)
	f.ask()
	return nil
}

// forward delivers one watch of the store until that ends, and returns why; nil
// when nobody wants more.
func (f *feed) forward(w *store.Watcher, deliver func(item) bool) error {
	for {
		b, ok := f.next(w.Events())
		if !ok {
			return w.Err()
		}
		i := item{mark: true, revision: b.Revision}
		if len(b.Events) > 0 {
			i = f.gather(b, w.Events())
		}
		if (i.mark || len(i.events) > 0) && !deliver(i) {
			return nil
		}
		f.options.From = max(f.options.From, i.revision+1)
	}
}

func (f *feed) next(batches <-chan store.Batch) (store.Batch, bool) {
	if f.held != nil {
		b := *f.held
		f.held = nil
		return b, true
	}
	b, ok := <-batches
	return b, ok
}

// gather is a batch and what is waiting behind it, so that a client who is behind
// catches up in fewer and larger responses. Revisions stay whole.
func (f *feed) gather(b store.Batch, batches <-chan store.Batch) item {
	i, bytes := item{}, 0
	for n := 1; ; n++ {
		i.revision = b.Revision
		bytes += f.add(&i, b)
		if n == gatherRevisions || bytes >= f.bytes {
			return i
		}
		select {
		case next, ok := <-batches:
			if !ok {
				return i
			}
			if len(next.Events) == 0 {
				f.held = &next
				return i
			}
			b = next
		default:
			return i
		}
	}
}

// add takes the events of a batch that the filters let through, and says how
// many bytes they are, about.
func (f *feed) add(i *item, b store.Batch) (bytes int) {
	for _, e := range b.Events {
		if e.Type == store.EventPut && f.dropPut || e.Type == store.EventDelete && f.dropDel {
			continue
		}
		out := eventOf(e)
		i.events = append(i.events, out)
		bytes += len(out.Kv.Key) + len(out.Kv.Value) + len(out.GetPrevKv().GetKey()) + len(out.GetPrevKv().GetValue())
	}
	return bytes
}

func eventOf(e store.Event) *mvccpb.Event {
	out := &mvccpb.Event{Type: mvccpb.Event_PUT}
	if e.Type == store.EventDelete {
		out.Type = mvccpb.Event_DELETE
		out.Kv = &mvccpb.KeyValue{Key: []byte(e.KV.Key), ModRevision: int64(e.KV.ModRevision)}
	} else {
		out.Kv = viewKV(e.KV)
	}
	if e.Prev != nil {
		out.PrevKv = viewKV(*e.Prev)
	}
	return out
}
