package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/object"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// EventType is what a watch tells of an object.
type EventType string

// The types of events. Synced comes once, when every object that existed at the
// start has been told; it has no object.
const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED"
	Synced   EventType = "SYNCED"
)

// Event is one change.
type Event[T object.Message] struct {
	Type            EventType
	Object          T
	ResourceVersion string
}

// WatchOptions choose what a watch shows and where it begins.
type WatchOptions struct {
	LabelSelector string
	FieldSelector string
	// Changes after this revision; empty: first all objects, then Synced.
	ResourceVersion string
	// Outage bounds how long no server may serve a watch that has begun; 0: it waits
	// for one for ever, as programs do that run for ever.
	Outage time.Duration
}

// streamUp is how long a stream lasts at most if its server does not answer at all.
// One that lasted longer was served, also if there was nothing to tell.
const streamUp = dialTimeout + pingAfter + pingTimeout + time.Second

// Watch tells every change of a kind, in order, each once, across broken
// connections and changes of server. It ends when ctx does, with the error of a
// watch that no server took up within Config.RetryFor, or again within
// WatchOptions.Outage, or with one that
// repeating cannot mend; IsCompacted then means that history no longer reaches
// back to where it was: watch again from the start.
func Watch[T object.Message](ctx context.Context, c *Client, namespace string, options WatchOptions) iter.Seq2[Event[T], error] {
	return watchOf[T](ctx, c, kindOf[T](), namespace, options)
}

// WatchKind is Watch for programs that learn the kind when they run.
func WatchKind(ctx context.Context, c *Client, kind object.Kind, namespace string, options WatchOptions) iter.Seq2[Event[object.Message], error] {
	return watchOf[object.Message](ctx, c, kind, namespace, options)
}

func watchOf[T object.Message](ctx context.Context, c *Client, kind object.Kind, namespace string, options WatchOptions) iter.Seq2[Event[T], error] {
	return func(yield func(Event[T], error) bool) {
		w := &watch[T]{client: c, yield: yield, outage: options.Outage, request: &balsav1.WatchRequest{
			Kind: kind.Name, Namespace: namespace, LabelSelector: options.LabelSelector,
			FieldSelector: options.FieldSelector, ResourceVersion: options.ResourceVersion,
		}}
		w.run(ctx)
	}
}

type watch[T object.Message] struct {
	client  *Client
	yield   func(Event[T], error) bool
	request *balsav1.WatchRequest
	outage  time.Duration
	// known is not nil until the objects at the start have all been told. Before
	// that a broken stream begins anew, and tells them again: known holds those
	// that were told at which revision, so that none is told twice.
	known map[string]string
	// told holds what was told of changes after request's resource version. A
	// revision may be many changes, and only the last of them moves the place
	// where the next stream begins: the others come again.
	told map[change]bool
}

// change is one event, as far as it can come twice.
type change struct{ eventType, key, revision string }

// run reads one stream after the other until there is nothing more to tell.
func (w *watch[T]) run(ctx context.Context) {
	w.told = map[change]bool{}
	if w.request.GetResourceVersion() == "" {
		w.known = map[string]string{}
	}
	patience, wait := outage{client: w.client, bound: w.outage}, backoffFirst
	patience.begin()
	for {
		progressed, err := w.stream(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if patience.over(progressed) || !resumable(err) {
			w.yield(Event[T]{}, err)
			return
		}
		if progressed {
			wait = backoffFirst
		}
		if !w.client.pause(ctx, wait) {
			return
		}
		wait = min(2*wait, backoffMax)
		patience.streamBegins()
	}
}

// outage measures how long no server has served a stream.
type outage struct {
	client *Client
	// bound of one after the first stream has begun; 0: none. Until then it is
	// Config.RetryFor.
	bound time.Duration

	begun          bool
	stream, served time.Time
}

func (o *outage) begin() {
	o.served = o.client.clock.Now()
	o.streamBegins()
}

func (o *outage) streamBegins() { o.stream = o.client.clock.Now() }

// over takes the end of a stream, and tells whether it was the last.
func (o *outage) over(progressed bool) bool {
	now := o.client.clock.Now()
	if progressed || now.Sub(o.stream) > streamUp {
		o.begun, o.served = true, now
	}
	bound := o.client.retryFor
	if o.begun {
		bound = o.bound
	}
	return now.Sub(o.served) >= bound && (!o.begun || bound > 0)
}

// stream reads one stream to its end. A nil error means that whoever listens has
// had enough.
func (w *watch[T]) stream(ctx context.Context) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.Objects.Watch(ctx, w.request)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	seen := map[string]bool{}
	for stream.Receive() {
		progressed = true
		more, err := w.tell(stream.Msg(), seen)
		if err != nil || !more {
			return progressed, err
		}
	}
	if err := stream.Err(); err != nil {
		return progressed, err
	}
	return progressed, io.ErrUnexpectedEOF
}

func (w *watch[T]) tell(response *balsav1.WatchResponse, seen map[string]bool) (more bool, err error) {
	if response.GetType() == "BOOKMARK" {
		return w.bookmark(response, seen), nil
	}
	typed, err := as[T](response.GetObject())
	if err != nil {
		return false, err
	}
	event := Event[T]{Type: EventType(response.GetType()), Object: typed, ResourceVersion: response.GetResourceVersion()}
	if w.known != nil {
		return w.tellFirst(event, seen), nil
	}
	c := change{response.GetType(), object.KeyOf(typed), typed.GetMetadata().GetResourceVersion()}
	again := w.told[c]
	w.told[c] = true
	w.resumeAt(response.GetResourceVersion())
	return again || w.yield(event, nil), nil
}

// tellFirst tells an object that existed at the start.
func (w *watch[T]) tellFirst(event Event[T], seen map[string]bool) (more bool) {
	key, revision := object.KeyOf(event.Object), event.Object.GetMetadata().GetResourceVersion()
	seen[key] = true
	before, told := w.known[key]
	if told && before == revision {
		return true
	}
	if told {
		event.Type = Modified
	}
	w.known[key] = revision
	return w.yield(event, nil)
}

// resumeAt moves the place where the next stream begins.
func (w *watch[T]) resumeAt(revision string) {
	if revision != w.request.GetResourceVersion() {
		w.request.ResourceVersion = revision
		clear(w.told)
	}
}

// bookmark tells how far the stream has come, and once that it has told all that
// there was.
func (w *watch[T]) bookmark(response *balsav1.WatchResponse, seen map[string]bool) (more bool) {
	if w.known == nil {
		w.resumeAt(response.GetResourceVersion())
		return true
	}
	if !response.GetInitialEventsEnd() {
		return true
	}
	for key := range w.known {
		if !seen[key] && !w.gone(key) {
			return false
		}
	}
	w.known = nil
	w.resumeAt(response.GetResourceVersion())
	return w.yield(Event[T]{Type: Synced, ResourceVersion: response.GetResourceVersion()}, nil)
}

// gone tells of an object that a broken first stream told and the next did not.
func (w *watch[T]) gone(key string) (more bool) {
	kind, namespace, name, _ := object.ParseKey(key)
	message, ok := kind.New().(T)
	if !ok {
		return true
	}
	if metadata := message.ProtoReflect().Descriptor().Fields().ByName("metadata"); metadata != nil {
		value := &balsav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: w.known[key]}
		message.ProtoReflect().Set(metadata, protoMessage(value))
	}
	return w.yield(Event[T]{Type: Deleted, Object: message}, nil)
}

func (c *Client) pause(ctx context.Context, d time.Duration) bool {
	timer := c.clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// resumable tells whether a stream that ended so may be resumed where it was.
func resumable(err error) bool {
	switch {
	case errors.Is(err, errForeign):
		return false
	case errors.Is(err, io.ErrUnexpectedEOF), cutOff(err):
		return true
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeInternal, connect.CodeUnknown, connect.CodeDeadlineExceeded:
		return true
	}
	return false
}
