package control

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Concern is one loop of the reconciler: which keys it looks at, when, and what
// it then does.
type Concern struct {
	Name string
	// Settle and Batch are those of loop.Options.
	Settle time.Duration
	Batch  int
	// List gives every key at a view. nil: the concern has the one key "".
	List func(v store.View) []string
	// Keys gives the keys to look at again after an event. v is at least as new.
	Keys func(v store.View, ev store.Event) []string
	// Step is loop.Options.Step.
	Step func(ctx context.Context, keys []string) []loop.Again
	// Woken, if not nil, wakes the concern for the key "" from outside of the store.
	Woken <-chan struct{}
}

// Kit is what a concern works with. Each has one of its own.
type Kit struct {
	*Writer
	Clock  clock.Clock
	Rand   io.Reader
	Logger *slog.Logger
	Events Recorder
}

// Each steps through keys that do not depend on one another: each is planned from
// one view and at one time, then all changes are committed. plan returns the change
// that its key needs, nil when none, and how long after now to look again; 0 is
// only when something changes.
func (k *Kit) Each(ctx context.Context, keys []string, plan func(v store.View, key string, now time.Time) (*Change, time.Duration, error)) (again []loop.Again) {
	v, err := k.View(ctx)
	if err != nil {
		return loop.Failed(keys, err)
	}
	now := k.Clock.Now()
	var changes []*Change
	var changed []string
	for _, key := range keys {
		c, after, err := plan(v, key, now)
		if err != nil {
			again = append(again, loop.Again{Key: key, Err: err})
			continue
		}
		if after > 0 {
			again = append(again, loop.Again{Key: key, After: after})
		}
		if c != nil {
			changes, changed = append(changes, c), append(changed, key)
		}
	}
	for i, err := range k.CommitAll(ctx, changes) {
		if err != nil {
			again = append(again, loop.Again{Key: changed[i], Err: err})
		}
	}
	return again
}

// Recorder writes events; it never blocks.
type Recorder interface {
	// Record notes that something happened to an object: eventType is Normal or
	// Warning, reason one word in CamelCase.
	Record(about object.Message, eventType, reason, message string)
}

// Counted is a number of things as people write it: "1 pod", "2 pods".
func Counted[N int | int32](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Get reads the object at a key, which is of type M.
func Get[M object.Message](v store.View, key string) (m M, ok bool) {
	kv, found := v.Get(key)
	if !found {
		return m, false
	}
	m, ok = kv.Object.(M)
	return m, ok
}

// Collect reads the objects of type M from a sequence, and passes over others.
func Collect[M object.Message](seq func(yield func(store.KV) bool)) []M {
	var out []M
	for kv := range seq {
		if m, ok := kv.Object.(M); ok {
			out = append(out, m)
		}
	}
	return out
}

// Object is the message of a key, nil for keys that hold no object.
func Object(kv store.KV) object.Message {
	m, _ := kv.Object.(object.Message)
	return m
}

// Keys lists the keys under the prefix of a kind.
func Keys(v store.View, kind string) []string {
	k, ok := object.KindByName(kind)
	if !ok {
		panic("control: no kind " + kind)
	}
	var keys []string
	for kv := range v.Prefix(object.Prefix(k, "")) {
		keys = append(keys, kv.Key)
	}
	return keys
}

// ControllerKey is the key of the controlling owner of m, if that is of a kind.
func ControllerKey(m object.Message, kind string) (key string, ok bool) {
	ref := object.ControllerOf(m)
	if ref == nil || ref.GetKind() != kind {
		return "", false
	}
	k, ok := object.KindByName(kind)
	return object.Key(k, m.GetMetadata().GetNamespace(), ref.GetName()), ok
}

// Matching reads the objects of a kind in a namespace that a selector matches,
// by an index where the selector names a label's value.
func Matching[M object.Message](v store.View, kind, namespace string, s object.Selector) []M {
	k, ok := object.KindByName(kind)
	if !ok {
		panic("control: no kind " + kind)
	}
	seq := v.Prefix(object.Prefix(k, namespace))
	if key, value, exact := s.Exact(); exact {
		entry := object.LabelIndex(k, namespace, key, value)
		seq = v.ByIndex(entry.Index, entry.Value)
	}
	var out []M
	for kv := range seq {
		if m, ok := kv.Object.(M); ok && s.Matches(m.GetMetadata().GetLabels()) {
			out = append(out, m)
		}
	}
	return out
}

// NamespaceClosing tells whether a namespace is about to go.
func NamespaceClosing(v store.View, name string) bool {
	kind, _ := object.KindByName("Namespace")
	ns, ok := Get[*balsav1.Namespace](v, object.Key(kind, "", name))
	return ok && object.IsTerminating(ns)
}
