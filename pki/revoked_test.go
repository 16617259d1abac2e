package pki

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/internal/clock"
)

func person(name string) Identity { return Identity{Name: name, Role: RoleAgent, Serial: "5e" + name} }

func TestRemovalEndsOpenStreamsAtOnce(t *testing.T) {
	g := NewGuard(clock.NewFake(t0), nil)
	n1, cancel1 := g.Watch(t.Context(), person("n1"))
	defer cancel1()
	n2, cancel2 := g.Watch(t.Context(), person("n2"))
	defer cancel2()
	g.Update(must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}}))(t))
	if n1.Err() == nil || !errors.Is(context.Cause(n1), ErrRemoved) {
		t.Errorf("stream of n1: %v", context.Cause(n1))
	}
	if n2.Err() != nil {
		t.Errorf("stream of n2: %v", context.Cause(n2))
	}
	late, cancel := g.Watch(t.Context(), person("n1"))
	defer cancel()
	if !errors.Is(context.Cause(late), ErrRemoved) || !errors.Is(g.Check(person("n1")), ErrRemoved) {
		t.Error("n1 was let in after its removal")
	}
	g.Update(nil)
	if err := g.Check(person("n1")); err != nil {
		t.Errorf("readmitted: %v", err)
	}
}

// TestRolesAreApart: a machine may be server and agent under one name; removing
// the one leaves the other.
func TestRolesAreApart(t *testing.T) {
	g := NewGuard(clock.NewFake(t0), must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}}))(t))
	if err := g.Check(Identity{Name: "n1", Role: RoleServer, Serial: "1"}); err != nil {
		t.Error(err)
	}
}

func TestSerialRemoval(t *testing.T) {
	g := NewGuard(clock.NewFake(t0), must(NewRemoved([]Removal{{Serial: "ab", At: t0}}))(t))
	if err := g.Check(Identity{Name: "n1", Role: RoleAgent, Serial: "ab"}); !errors.Is(err, ErrRemoved) {
		t.Error(err)
	}
	if err := g.Check(Identity{Name: "n1", Role: RoleAgent, Serial: "cd"}); err != nil {
		t.Error(err)
	}
}

type closer chan struct{}

func (c closer) Close() error { close(c); return nil }

func TestAttachedConnectionsAreClosed(t *testing.T) {
	g := NewGuard(clock.NewFake(t0), nil)
	c, released := make(closer), make(closer)
	if _, err := g.Attach(person("n1"), c); err != nil {
		t.Fatal(err)
	}
	release := must(g.Attach(person("n1"), released))(t)
	release()
	removed := must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}}))(t)
	g.Update(removed)
	<-c
	select {
	case <-released:
		t.Error("a released connection was closed")
	default:
	}
	if _, err := g.Attach(person("n1"), make(closer)); !errors.Is(err, ErrRemoved) {
		t.Errorf("after the removal: %v", err)
	}
	if g.Watched() != 0 {
		t.Errorf("%d streams are left", g.Watched())
	}
}

// TestExpiryEndsOpenStreams: a certificate's end is the end of its streams too.
func TestExpiryEndsOpenStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		g := NewGuard(clock.Real{}, nil)
		var wg sync.WaitGroup
		wg.Go(func() { g.Run(ctx) })
		id := person("n1")
		id.Expires = time.Now().Add(time.Hour)
		stream, cancel := g.Watch(ctx, id)
		defer cancel()
		<-stream.Done()
		if late := time.Since(id.Expires); late < 0 || late > ExpirySweep {
			t.Errorf("ended %v after the certificate", late)
		}
		if !errors.Is(context.Cause(stream), ErrExpired) || !errors.Is(g.Check(id), ErrExpired) {
			t.Errorf("cause is %v", context.Cause(stream))
		}
		if err := g.CheckRemoved(id); err != nil {
			t.Errorf("expired is not removed: %v", err)
		}
		stop()
		wg.Wait()
	})
}

func TestStreamsAreBounded(t *testing.T) {
	g := NewGuard(clock.NewFake(t0), nil)
	for i := range MaxWatched {
		g.watched[&watch{id: person(fmt.Sprint(i)), cancel: func(error) {}}] = struct{}{}
	}
	ctx, cancel := g.Watch(t.Context(), person("n1"))
	defer cancel()
	if !errors.Is(context.Cause(ctx), ErrTooMany) {
		t.Errorf("cause is %v", context.Cause(ctx))
	}
	if _, err := NewRemoved(make([]Removal, MaxRemovals+1)); !errors.Is(err, ErrTooMany) {
		t.Errorf("removals: %v", err)
	}
}

// TestRemovalRacesWithOpening: a stream that opens while its identity is being
// removed is refused or ended, never missed.
func TestRemovalRacesWithOpening(t *testing.T) {
	g := NewGuard(clock.NewFake(t0), nil)
	removed := must(NewRemoved([]Removal{{Role: RoleAgent, Name: "n1", At: t0}}))(t)
	causes := make([]func() error, 200)
	var wg sync.WaitGroup
	for i := range causes {
		wg.Go(func() {
			ctx, _ := g.Watch(t.Context(), person("n1"))
			causes[i] = func() error { return context.Cause(ctx) }
		})
	}
	wg.Go(func() { g.Update(removed) })
	wg.Wait()
	for _, cause := range causes {
		if !errors.Is(cause(), ErrRemoved) {
			t.Fatalf("a stream lives on: %v", cause())
		}
	}
}

// TestGuardAgainstModel compares the guard with a plain list of who may be in.
func TestGuardAgainstModel(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		g := NewGuard(clock.NewFake(t0), nil)
		var out []string
		type stream struct {
			name   string
			ctx    context.Context
			cancel context.CancelFunc
			ended  bool
		}
		var streams []*stream
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				ctx, cancel := g.Watch(context.Background(), person(name))
				streams = append(streams, &stream{name, ctx, cancel, slices.Contains(out, name)})
			},
			"close": func(t *rapid.T) {
				if len(streams) > 0 {
					s := rapid.SampledFrom(streams).Draw(t, "stream")
					s.cancel()
					s.ended = true
				}
			},
			"update": func(t *rapid.T) {
				out = rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(t, "removed")
				var removals []Removal
				for _, name := range out {
					removals = append(removals, Removal{Role: RoleAgent, Name: name, At: t0})
				}
				removed, err := NewRemoved(removals)
				if err != nil {
					t.Fatal(err)
				}
				g.Update(removed)
				for _, s := range streams {
					s.ended = s.ended || slices.Contains(out, s.name)
				}
			},
			"": func(t *rapid.T) {
				open := 0
				for _, s := range streams {
					if (s.ctx.Err() != nil) != s.ended {
						t.Fatalf("stream of %s: %v, ended in the model: %v", s.name, s.ctx.Err(), s.ended)
					}
					if !s.ended {
						open++
					}
				}
				if g.Watched() != open {
					t.Fatalf("%d streams are watched, %d are open", g.Watched(), open)
				}
			},
		})
	})
}
