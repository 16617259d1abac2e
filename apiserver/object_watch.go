package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Types of a WatchResponse.
const (
	watchAdded    = "ADDED"
	watchModified = "MODIFIED"
	watchDeleted  = "DELETED"
	watchBookmark = "BOOKMARK"
)

// Watch streams the changes that a selector sees: an object that leaves it is
// DELETED, one that enters it is ADDED.
func (o objectService) Watch(ctx context.Context, req *balsav1.WatchRequest, stream *connect.ServerStream[balsav1.WatchResponse]) error {
	q, err := newQuery(req.GetKind(), req.GetNamespace(), req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return err
	}
	about(ctx, keyOf(q.kind, q.namespace, "*"))
	return o.whileInContact(ctx, func(ctx context.Context) error { return o.watch(ctx, q, req.GetResourceVersion(), stream) })
}

func (o objectService) watch(ctx context.Context, q query, from string, stream *connect.ServerStream[balsav1.WatchResponse]) error {
	gauge := o.metrics.Watches.WithLabelValues(q.kind.Name)
	gauge.Inc()
	defer gauge.Dec()
	w := &watch{Server: o.Server, query: q, space: o.store.Space(q.kind.Space)}
	pace := newPace(ctx, o.limits.SendStall)
	defer pace.stop()
	w.send = func(res *balsav1.WatchResponse) error {
		return pace.send(func() error { return stream.Send(res) })
	}
	if from == "" {
		return w.fromNow(ctx)
	}
	return w.fromRevision(ctx, from)
}

// watch is one open Watch.
type watch struct {
	*Server
	query query
	space *store.Space
	send  func(*balsav1.WatchResponse) error
	// sent: every change up to it has been sent.
	sent store.Revision
}

// fromNow sends what exists, then what changes. The watcher is opened before
// the first object is sent, so that a slow reader does not lose the history
// that it still needs.
func (w *watch) fromNow(ctx context.Context) error {
	if err := w.barrier(ctx); err != nil {
		return err
	}
	view := w.space.View()
	w.sent = view.Revision()
	watcher, err := w.open(ctx)
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for _, m := range w.query.selectFrom(view, w.query.prefix(), true) {
		if err := w.event(ctx, watchAdded, m, ""); err != nil {
			return err
		}
	}
	done := &balsav1.WatchResponse{Type: watchBookmark, ResourceVersion: revisionString(w.sent), InitialEventsEnd: true}
	if err := w.send(done); err != nil {
		return err
	}
	return w.follow(ctx, watcher)
}

func (w *watch) fromRevision(ctx context.Context, text string) error {
	rev, err := parseRevision("resourceVersion", text)
	if err != nil {
		return err
	}
	if rev > w.space.View().Revision() {
		if err := w.barrier(ctx); err != nil {
			return err
		}
		if now := w.space.View().Revision(); rev > now {
			return &store.FutureRevisionError{Space: w.space.Name(), Revision: rev, Current: now}
		}
	}
	w.sent = rev
	watcher, err := w.open(ctx)
	if err != nil {
		return err
	}
	defer watcher.Stop()
	return w.follow(ctx, watcher)
}

func (w *watch) open(ctx context.Context) (*store.Watcher, error) {
	options := store.WatchOptions{Prefix: w.query.prefix(), From: w.sent + 1, PrevKV: true, Buffer: w.limits.WatchBuffer}
	if key, ok := w.query.single(); ok {
		options.Prefix, options.Key = "", key
	}
	return w.space.Watch(ctx, options)
}

// follow sends changes until the stream ends. A store that was restored from a
// snapshot ends the watcher; another one goes on where it stood.
func (w *watch) follow(ctx context.Context, watcher *store.Watcher) error {
	bookmark := w.clock.NewTimer(w.limits.BookmarkEvery)
	defer bookmark.Stop()
	for {
		err := w.drain(ctx, watcher, bookmark)
		if !errors.Is(err, store.ErrResync) {
			return err
		}
		watcher.Stop()
		if watcher, err = w.open(ctx); err != nil {
			return err
		}
	}
}

func (w *watch) drain(ctx context.Context, watcher *store.Watcher, bookmark clock.Timer) error {
	defer watcher.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case batch, ok := <-watcher.Events():
			if !ok {
				return endOf(ctx, watcher)
			}
			if err := w.batch(ctx, batch); err != nil {
				return err
			}
		case <-bookmark.C():
			watcher.RequestProgress()
			bookmark.Reset(w.limits.BookmarkEvery)
		}
	}
}

// endOf is why a watcher ended.
func endOf(ctx context.Context, watcher *store.Watcher) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err := watcher.Err(); err != nil {
		return err
	}
	return errors.New("the watch ended without a reason")
}

// batch sends one revision. Only its last event carries the revision, since a
// reader that resumes from it must have seen all of them.
func (w *watch) batch(ctx context.Context, batch store.Batch) error {
	if len(batch.Events) == 0 {
		w.sent = max(w.sent, batch.Revision)
		return w.send(&balsav1.WatchResponse{Type: watchBookmark, ResourceVersion: revisionString(w.sent)})
	}
	seen, err := w.seen(batch)
	if err != nil {
		return err
	}
	for i, e := range seen {
		version := revisionString(w.sent)
		if i == len(seen)-1 {
			version = revisionString(batch.Revision)
		}
		if err := w.event(ctx, e.kind, e.object, version); err != nil {
			return err
		}
	}
	w.sent = batch.Revision
	return nil
}

type seenEvent struct {
	kind   string
	object object.Message
}

// seen is a batch as the selector sees it.
func (w *watch) seen(batch store.Batch) ([]seenEvent, error) {
	var out []seenEvent
	for _, e := range batch.Events {
		if e.Prev == nil && !e.IsCreate() {
			// What it was is forgotten, so nobody can say what the selector saw.
			return nil, &store.CompactedError{Space: w.space.Name(), Revision: batch.Revision, Compact: w.space.View().CompactRevision()}
		}
		before, after := w.match(e.Prev), w.match(&e.KV)
		switch {
		case e.Type == store.EventDelete && before != nil:
			out = append(out, seenEvent{watchDeleted, before})
		case e.Type == store.EventDelete:
		case before == nil && after != nil:
			out = append(out, seenEvent{watchAdded, after})
		case before != nil && after != nil:
			out = append(out, seenEvent{watchModified, after})
		case before != nil:
			out = append(out, seenEvent{watchDeleted, before})
		}
	}
	return out, nil
}

// match is the object of a key, nil where there is none or the selector does not
// see it.
func (w *watch) match(kv *store.KV) object.Message {
	if kv == nil {
		return nil
	}
	m, ok := kv.Object.(object.Message)
	if !ok || !w.query.matches(m) {
		return nil
	}
	return m
}

func (w *watch) event(ctx context.Context, eventType string, m object.Message, version string) error {
	shown, err := w.shown(ctx, m)
	if err != nil {
		return err
	}
	w.metrics.WatchEvents.WithLabelValues(w.query.kind.Name).Inc()
	return w.send(&balsav1.WatchResponse{Type: eventType, Object: shown, ResourceVersion: version})
}

// pace ends a stream whose reader does not take a message for too long, so that
// it cannot hold memory and history for ever.
type pace struct {
	timer *time.Timer
	limit time.Duration
	fired chan struct{}
}

func newPace(ctx context.Context, limit time.Duration) *pace {
	c := callOf(ctx)
	p := &pace{limit: limit, fired: make(chan struct{}, 1)}
	p.timer = time.AfterFunc(limit, func() {
		select {
		case p.fired <- struct{}{}:
		default:
		}
		c.cut(time.Now())
	})
	p.timer.Stop()
	return p
}

func (p *pace) send(send func() error) error {
	p.timer.Reset(p.limit)
	err := send()
	p.timer.Stop()
	select {
	case <-p.fired:
		return &problem{code: connect.CodeDeadlineExceeded, reason: "SlowReader",
			hint: "read faster, or resume from the last resource version",
			err:  fmt.Errorf("the reader did not take a message for %v (limit SendStall)", p.limit)}
	default:
		return err
	}
}

func (p *pace) stop() { p.timer.Stop() }
