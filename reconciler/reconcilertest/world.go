// Package reconcilertest is the world in which the concerns of the reconciler
// are tested: a real store behind a proposer of one member, a clock that is moved
// by hand, and agents that a test plays. It refuses to be used by anything but
// tests.
package reconcilertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/store"
)

// TB is what both *testing.T and *rapid.T are.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// World is a cluster without machines. Its Propose is a raft group of one member.
type World struct {
	tb    TB
	Store *store.Store
	Clock *clock.Fake
	now   clock.Clock
	// Term is the raft term that entries get.
	Term uint64
	// Before, if not nil, may answer a proposal in the place of the store: an
	// error means that the outcome is not known. When apply is true the command is
	// applied all the same.
	Before func(cmd *internalv1.Command) (apply bool, err error)
	// Events holds what the concerns said, as "type reason kind/name: message".
	Events []string

	mu    sync.Mutex
	index uint64 // guarded by mu
	rand  *rand.ChaCha8
}

// New makes an empty world at the start of 2030.
func New(tb TB) *World {
	fake := clock.NewFake(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	return &World{
		tb: tb, Term: 1, rand: rand.NewChaCha8([32]byte{1}), Clock: fake, now: fake,
		Store: store.New(store.Options{Decode: object.Decode, Index: Index}),
	}
}

// NewInBubble makes a world on the time of testing/synctest; Clock stands still.
func NewInBubble(tb TB) *World {
	w := New(tb)
	w.now = clock.Real{}
	return w
}

// Index is object.Index for a store.
func Index(key string, m proto.Message) []store.IndexEntry {
	entries := object.Index(key, m)
	out := make([]store.IndexEntry, len(entries))
	for i, e := range entries {
		out[i] = store.IndexEntry(e)
	}
	return out
}

// Propose applies a command at once.
func (w *World) Propose(_ context.Context, cmd *internalv1.Command) (*internalv1.CommandResult, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	if w.Before != nil {
		var apply bool
		if apply, err = w.Before(cmd); err != nil && !apply {
			return nil, err
		}
	}
	result := w.ApplyLocked(cmd)
	if err != nil {
		return nil, err
	}
	return result, nil
}

// ApplyLocked puts a command into the log. Only Before may call it.
func (w *World) ApplyLocked(cmd *internalv1.Command) *internalv1.CommandResult {
	w.index++
	return w.Store.Apply(w.index, w.Term, []*internalv1.Command{cmd})[0]
}

// Kit makes what a concern works with.
func (w *World) Kit() *control.Kit {
	return &control.Kit{
		Writer: control.NewWriter(w, w.Store.Space(store.SpaceObjects), w.now, w.Term),
		Clock:  w.now, Rand: w.rand, Logger: slog.New(slog.DiscardHandler), Events: recorder{w},
	}
}

type recorder struct{ w *World }

func (r recorder) Record(about object.Message, eventType, reason, message string) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.Events = append(r.w.Events, fmt.Sprintf("%s %s %s: %s", eventType, reason, object.KeyOf(about), message))
}

// View is the space of objects now.
func (w *World) View() store.View { return w.Store.Space(store.SpaceObjects).View() }

// Step lets a concern look at every key once. It returns what the concern wants
// to look at again.
func (w *World) Step(c control.Concern) []loop.Again {
	keys := []string{""}
	if c.List != nil {
		keys = slices.Sorted(slices.Values(c.List(w.View())))
	}
	if len(keys) == 0 {
		return nil
	}
	return c.Step(context.Background(), keys)
}

// Settle steps the concerns until they write nothing more, and fails when they
// do not come to rest. It returns the soonest time at which one looks again.
func (w *World) Settle(concerns ...control.Concern) (again time.Duration) {
	w.tb.Helper()
	for range 1000 {
		before := w.View().Revision()
		again = 0
		busy := false
		for _, c := range concerns {
			for _, a := range w.Step(c) {
				if a.Err != nil || a.After < time.Millisecond {
					busy = true
				} else if again == 0 || a.After < again {
					again = a.After
				}
			}
		}
		if w.View().Revision() == before && !busy {
			return again
		}
	}
	w.tb.Fatalf("the concerns do not come to rest")
	return 0
}

// Put creates or replaces an object as a user would; what is new is stamped.
func (w *World) Put(m object.Message) {
	w.tb.Helper()
	old, ok := control.Get[object.Message](w.View(), object.KeyOf(m))
	if !ok {
		w.put(m)
		return
	}
	object.CarryOver(old, m)
	object.Default(m)
	object.BumpGeneration(old, m)
	w.commit(func(c *control.Change) error { return c.Update(m) })
}

func (w *World) put(m object.Message) {
	w.tb.Helper()
	status := object.Clone(m)
	if err := control.Stamp(m, w.rand, w.now.Now()); err != nil {
		w.tb.Fatalf("%v", err)
	}
	if status.ProtoReflect().Has(status.ProtoReflect().Descriptor().Fields().ByName("metadata")) {
		m.GetMetadata().DeletionTimestamp = status.GetMetadata().GetDeletionTimestamp()
	}
	if hasStatus(status) {
		object.SetStatus(m, status)
	}
	w.commit(func(c *control.Change) error { return c.Create(m) })
}

func hasStatus(m object.Message) bool {
	fd := m.ProtoReflect().Descriptor().Fields().ByName("status")
	return fd != nil && m.ProtoReflect().Has(fd)
}

// Edit changes an object in place, status and all, against every conflict.
func Edit[M object.Message](w *World, key string, change func(M)) {
	w.tb.Helper()
	for {
		m := Get[M](w, key)
		next := object.Clone(m)
		change(next)
		object.BumpGeneration(m, next)
		err := w.try(func(c *control.Change) error { return c.Update(next) })
		if err == nil {
			return
		}
		if !errors.Is(err, control.ErrConflict) {
			w.tb.Fatalf("%v", err)
		}
	}
}

// Delete removes an object.
func (w *World) Delete(m object.Message) {
	w.tb.Helper()
	w.commit(func(c *control.Change) error { c.Delete(m); return nil })
}

func (w *World) commit(f func(*control.Change) error) {
	w.tb.Helper()
	if err := w.try(f); err != nil {
		w.tb.Fatalf("%v", err)
	}
}

func (w *World) try(f func(*control.Change) error) error {
	c := control.NewChange("test")
	if err := f(c); err != nil {
		return err
	}
	return control.NewWriter(w, w.Store.Space(store.SpaceObjects), w.now, 0).Commit(context.Background(), c)
}

// Get reads an object that must be there.
func Get[M object.Message](w *World, key string) M {
	w.tb.Helper()
	m, ok := control.Get[M](w.View(), key)
	if !ok {
		w.tb.Fatalf("%s is not there", key)
	}
	return m
}

// All reads the objects of a kind.
func All[M object.Message](w *World, kind string) []M {
	k, _ := object.KindByName(kind)
	return control.Collect[M](w.View().Prefix(object.Prefix(k, "")))
}

// SetTerm begins another raft term.
func (w *World) SetTerm(term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Term = term
}

// SetBefore sets Before while proposals are under way.
func (w *World) SetBefore(before func(cmd *internalv1.Command) (apply bool, err error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Before = before
}
