package etcdapi

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/balsa-run/balsa/store"
)

// noWatch is the id of responses that are not about one watch.
const noWatch = -1

// The reasons for refusing a watch, in etcd's words.
const (
	reasonEmptyRange = "mvcc: watcher range is empty"
	reasonDuplicate  = "mvcc: duplicate watch ID provided on the WatchStream"
)

// watchServer is etcd's Watch service.
type watchServer struct {
	*Server
	pb.UnsafeWatchServer
}

// Watch serves the watches of one stream.
//
//	client --> receive --> requests --.
//	                                   >-- loop --> stream.Send
//	store.Watcher --> feed --> items --'
//
// The loop alone knows the watches and sends, so the order of what it sends is
// the order in which things became true. Each watch has a feed. A client that does
// not read blocks the loop, that blocks the feeds, and the watches behind them fall
// back from the live feed to the history: nothing queues up.
func (ws *watchServer) Watch(stream pb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	w := &watchStream{
		Server: ws.Server, ctx: ctx, stream: stream,
		requests: make(chan *pb.WatchRequest), failed: make(chan error, 1), items: make(chan item),
		watches: map[int64]*watch{},
	}
	defer func() {
		cancel()
		w.feeds.Wait()
		for _, watch := range w.watches {
			w.closed(watch)
		}
	}()
	// It ends when the stream does, which is after this method has returned.
	go w.receive()
	return w.run()
}

// watchStream is one stream of watches. All but receive belongs to one goroutine.
type watchStream struct {
	*Server
	ctx      context.Context // ends the feeds
	stream   pb.Watch_WatchServer
	requests chan *pb.WatchRequest
	failed   chan error
	items    chan item
	feeds    sync.WaitGroup

	watches map[int64]*watch
	// next is the id to try for the next watch of a client that chooses none.
	next int64
	all  allProgress
}

// watch is one watch of a stream.
type watch struct {
	id int64
	// start is the revision that the client asked for; 0 is what comes next.
	start store.Revision
	// began is the newest revision when the watch was created.
	began    store.Revision
	fragment bool
	// progress asks for a mark now and then; quiet says that nothing was sent
	// since the last look, asked that a mark is on its way.
	progress, quiet, asked bool
	// ended says that the watch has fallen out of the history. As in etcd it keeps
	// its id until the client cancels it.
	ended  bool
	cancel context.CancelFunc
	feed   *feed
}

func (s *watchStream) receive() {
	for {
		r, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return // the client has no more to ask, but listens on
		}
		if err != nil {
			s.failed <- err
			return
		}
		select {
		case s.requests <- r:
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *watchStream) run() error {
	timer := s.clock.NewTimer(s.untilProgress())
	defer timer.Stop()
	for {
		var err error
		select {
		case r := <-s.requests:
			err = s.request(r)
		case i := <-s.items:
			err = s.item(i)
		case <-timer.C():
			s.askQuiet()
			timer.Reset(s.untilProgress())
		case err = <-s.failed:
		case <-s.ctx.Done():
			err = s.ctx.Err()
		}
		if errors.Is(err, context.Canceled) {
			return rpctypes.ErrGRPCWatchCanceled
		}
		if err != nil {
			return err
		}
	}
}

// untilProgress spreads the marks of streams that began together.
func (s *watchStream) untilProgress() time.Duration {
	every := s.limits.ProgressEvery
	return every + rand.N(every/10+1)
}

func (s *watchStream) request(r *pb.WatchRequest) error {
	switch r := r.GetRequestUnion().(type) {
	case *pb.WatchRequest_CreateRequest:
		return s.create(r.CreateRequest)
	case *pb.WatchRequest_CancelRequest:
		return s.cancel(r.CancelRequest.GetWatchId())
	case *pb.WatchRequest_ProgressRequest:
		return s.askAll()
	}
	return nil // as etcd: a request of a later version does not end the stream
}

// create answers with "created" before anything else is said of the watch.
func (s *watchStream) create(r *pb.WatchCreateRequest) error {
	if len(r.GetKey()) == 0 {
		r.Key = []byte{0} // the smallest key
	}
	if reason := s.refusal(r); reason != "" {
		return s.refuse(reason)
	}
	now := s.space.View().Revision()
	options, start := watchOptions(r), store.Revision(r.GetStartRevision())
	if options.From = start; start == 0 {
		options.From = now + 1
	}
	ctx, cancel := context.WithCancel(s.ctx)
	watcher, err := s.space.Watch(ctx, options)
	if err != nil && !errors.Is(err, store.ErrCompacted) {
		cancel()
		return s.refuse(s.endReason(err))
	}
	w := &watch{
		id: s.takeID(r.GetWatchId()), start: start, began: now, fragment: r.GetFragment(),
		progress: r.GetProgressNotify(), quiet: true, cancel: cancel,
	}
	s.watches[w.id] = w
	s.metrics.Watches(1)
	if err := s.send(&pb.WatchResponse{Header: s.header(now), WatchId: w.id, Created: true}); err != nil {
		cancel()
		return err
	}
	if err != nil {
		return s.end(w, err)
	}
	s.follow(ctx, w, newFeed(s.Server, options, r), watcher)
	return s.joinAll(w)
}

// refusal is why a watch cannot be, in the words of etcd.
func (s *watchStream) refusal(r *pb.WatchCreateRequest) string {
	if r.GetStartRevision() < 0 {
		return rpctypes.ErrCompacted.Error()
	}
	if start, end := bounds(r); end != "" && end <= start {
		return reasonEmptyRange
	}
	if s.watches[r.GetWatchId()] != nil && r.GetWatchId() != 0 {
		return reasonDuplicate
	}
	if len(s.watches) >= s.limits.Watches {
		return rpctypes.ErrTooManyRequests.Error()
	}
	return ""
}

func (s *watchStream) refuse(reason string) error {
	return s.send(&pb.WatchResponse{Header: s.headerNow(), WatchId: noWatch, Created: true, Canceled: true, CancelReason: reason})
}

// takeID is the id that the client chose, or the next that is free for 0.
func (s *watchStream) takeID(chosen int64) int64 {
	if chosen != 0 {
		return chosen
	}
	for s.watches[s.next] != nil {
		s.next++
	}
	s.next++
	return s.next - 1
}

func watchOptions(r *pb.WatchCreateRequest) store.WatchOptions {
	o := store.WatchOptions{PrevKV: r.GetPrevKv()}
	if len(r.GetRangeEnd()) == 0 {
		o.Key = string(r.GetKey())
		return o
	}
	o.Start, o.End = bounds(r)
	return o
}

// follow starts the feed of a watch.
func (s *watchStream) follow(ctx context.Context, w *watch, f *feed, watcher *store.Watcher) {
	w.feed = f
	f.watcher.Store(watcher)
	s.feeds.Go(func() {
		f.run(ctx, func(i item) bool {
			i.watch = w
			select {
			case s.items <- i:
				return true
			case <-ctx.Done():
				return false
			}
		})
	})
}

// cancel ends a watch. One that is not known gets no answer, as in etcd.
func (s *watchStream) cancel(id int64) error {
	w := s.watches[id]
	if w == nil {
		return nil
	}
	delete(s.watches, id)
	s.closed(w)
	if err := s.send(&pb.WatchResponse{Header: s.headerNow(), WatchId: id, Canceled: true}); err != nil {
		return err
	}
	return s.leaveAll(w)
}

// closed gives back what a watch holds. It may be called for one that has ended.
func (s *watchStream) closed(w *watch) {
	w.cancel()
	if !w.ended {
		w.ended = true
		s.metrics.Watches(-1)
	}
}

// end tells the client that a watch has ended, and why.
func (s *watchStream) end(w *watch, err error) error {
	s.closed(w)
	r := &pb.WatchResponse{WatchId: w.id, Canceled: true}
	var compacted *store.CompactedError
	if errors.As(err, &compacted) {
		// As in etcd the header has no revision.
		r.Header, r.CompactRevision = s.header(0), int64(compacted.Compact)
	} else {
		r.Header, r.CancelReason = s.headerNow(), s.endReason(err)
		delete(s.watches, w.id)
	}
	if err := s.send(r); err != nil {
		return err
	}
	return s.leaveAll(w)
}

func (s *watchStream) endReason(err error) string {
	return rpctypes.ErrorDesc(s.statusOf(err))
}

// item takes what a feed has brought.
func (s *watchStream) item(i item) error {
	w := i.watch
	switch {
	case s.watches[w.id] != w || w.ended:
		return nil // canceled meanwhile
	case i.err != nil:
		return s.end(w, i.err)
	case i.mark:
		return s.marked(w, i.revision)
	}
	w.quiet = false
	s.metrics.Events(len(i.events))
	// As in etcd, what is told of the past has the newest revision in its header.
	r := &pb.WatchResponse{Header: s.header(max(i.revision, w.began)), WatchId: w.id, Events: i.events}
	if w.fragment {
		return s.sendFragments(r)
	}
	return s.send(r)
}

func (s *watchStream) send(r *pb.WatchResponse) error { return s.stream.Send(r) }
