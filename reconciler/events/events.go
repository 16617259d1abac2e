// Package events writes what the reconciler has to say into the space of events:
// the same thing said again counts up the event that is there. It refuses to
// block or fail its caller: what does not fit is counted and dropped.
package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

const (
	// maxPending bounds the different events that wait to be written.
	maxPending = 4096
	// interval is how often they are written, so that what is said many times in a
	// moment is one write.
	interval = 500 * time.Millisecond
	// maxPerFlush bounds the events written each interval: 400 a second.
	maxPerFlush = 200
	// perChange bounds the events of a transaction.
	perChange = 50
	// maxMessage bounds the bytes of a message.
	maxMessage = 1024
	// maxNamePrefix keeps the names of events, which begin with that of their
	// object, within what a name may be.
	maxNamePrefix = 200
	// component is the source of every event.
	component = "balsa-reconciler"
	// maxTries bounds how often an event is tried to be written.
	maxTries = 3
)

// Recorder collects events; Run writes them. It is a control.Recorder.
type Recorder struct {
	clock  clock.Clock
	logger *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex
	pending map[string]*pending // guarded by mu; by the event's key
	dropped int                 // guarded by mu; since the last flush
}

type pending struct {
	event *balsav1.Event
	tries int
}

// NewRecorder makes a recorder.
func NewRecorder(c clock.Clock, logger *slog.Logger) *Recorder {
	return &Recorder{clock: c, logger: logger, wake: make(chan struct{}, 1), pending: map[string]*pending{}}
}

// Record notes that something happened to an object.
func (r *Recorder) Record(about object.Message, eventType, reason, message string) {
	e := newEvent(about, eventType, reason, message, r.clock.Now())
	key := object.KeyOf(e)
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, known := r.pending[key]; known {
		p.event.Count++
		p.event.LastTimestamp = e.LastTimestamp
		return
	}
	if len(r.pending) >= maxPending {
		r.dropped++
		return
	}
	r.pending[key] = &pending{event: e}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// newEvent makes the event. Its name is a function of what is said, so that every
// leader counts up the same one.
func newEvent(about object.Message, eventType, reason, message string, now time.Time) *balsav1.Event {
	ref := object.Reference(about)
	message = strings.ToValidUTF8(message[:min(len(message), maxMessage)], "")
	sum := sha256.Sum256([]byte(ref.GetUid() + "\x00" + ref.GetName() + "\x00" + eventType + "\x00" + reason + "\x00" + message))
	namespace := ref.GetNamespace()
	if namespace == "" {
		namespace = object.DefaultNamespace // as in Kubernetes, for objects of the cluster
	}
	return &balsav1.Event{
		Metadata: &balsav1.ObjectMeta{
			Name: ref.GetName()[:min(len(ref.GetName()), maxNamePrefix)] + "." + hex.EncodeToString(sum[:8]), Namespace: namespace,
		},
		InvolvedObject: ref, Reason: reason, Message: message, Source: &balsav1.EventSource{Component: component}, Type: eventType,
		FirstTimestamp: timestamppb.New(now), LastTimestamp: timestamppb.New(now), Count: 1,
	}
}

// Run writes events until ctx ends or the term is over.
func (r *Recorder) Run(ctx context.Context, w *control.Writer, random io.Reader) error {
	timer := r.clock.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.wake:
		}
		timer.Reset(interval)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C():
		}
		if err := r.Flush(ctx, w, random); err != nil {
			return err
		}
	}
}

// Flush writes what waits now, up to a bound. Only the end of the term, or of
// ctx, is an error.
func (r *Recorder) Flush(ctx context.Context, w *control.Writer, random io.Reader) error {
	batch := r.take()
	if len(batch) == 0 {
		return nil
	}
	v, err := w.View(ctx)
	if err != nil {
		return r.failed(ctx, batch, err)
	}
	for events := range slices.Chunk(batch, perChange) {
		c, err := change(v, events, random, r.clock.Now())
		if err == nil {
			err = w.Commit(ctx, c)
		}
		if err != nil {
			if err := r.failed(ctx, events, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// take removes events to write, in the order in which they were first said.
func (r *Recorder) take() []*pending {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped > 0 {
		r.logger.Warn("events were dropped: too many wait to be written", "dropped", r.dropped, "limit", maxPending)
		r.dropped = 0
	}
	batch := make([]*pending, 0, len(r.pending))
	for _, p := range r.pending {
		batch = append(batch, p)
	}
	slices.SortFunc(batch, func(a, b *pending) int {
		if c := a.event.FirstTimestamp.AsTime().Compare(b.event.FirstTimestamp.AsTime()); c != 0 {
			return c
		}
		return compareKeys(a.event, b.event)
	})
	batch = batch[:min(len(batch), maxPerFlush)]
	for _, p := range batch {
		delete(r.pending, object.KeyOf(p.event))
	}
	if len(r.pending) > 0 {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return batch
}

func compareKeys(a, b *balsav1.Event) int {
	x, y := object.KeyOf(a), object.KeyOf(b)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// failed puts events back, unless they failed too often.
func (r *Recorder) failed(ctx context.Context, batch []*pending, err error) error {
	if ctx.Err() != nil || isStop(err) {
		return fmt.Errorf("write events: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range batch {
		p.tries++
		key := object.KeyOf(p.event)
		if p.tries >= maxTries || len(r.pending) >= maxPending || r.pending[key] != nil {
			r.dropped++
			continue
		}
		r.pending[key] = p
	}
	r.logger.Warn("events could not be written", "events", len(batch), "error", err)
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

func change(v store.View, events []*pending, random io.Reader, now time.Time) (*control.Change, error) {
	c := control.NewChange("write events")
	for _, p := range events {
		old, ok := control.Get[*balsav1.Event](v, object.KeyOf(p.event))
		if !ok {
			e := object.Clone(p.event)
			if err := control.Stamp(e, random, now); err != nil {
				return nil, err
			}
			if err := c.Create(e); err != nil {
				return nil, err
			}
			continue
		}
		next := object.Clone(old)
		next.Count += p.event.GetCount()
		next.LastTimestamp = p.event.GetLastTimestamp()
		next.InvolvedObject = p.event.GetInvolvedObject()
		if err := c.Update(next); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func isStop(err error) bool { return errors.Is(err, loop.ErrStop) }
