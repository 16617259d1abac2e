package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/store"
)

func pod(name string) *balsav1.Pod {
	return &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: name, Namespace: "default", Uid: "uid-" + name}}
}

func written(w *rt.World) []*balsav1.Event {
	return control.Collect[*balsav1.Event](w.Store.Space(store.SpaceEvents).View().Prefix("events/"))
}

func setUp(t *testing.T) (*rt.World, *Recorder, *control.Writer) {
	w := rt.New(t)
	r := NewRecorder(w.Clock, slog.New(slog.DiscardHandler))
	return w, r, control.NewWriter(w, w.Store.Space(store.SpaceEvents), w.Clock, w.Term)
}

func flush(t *testing.T, r *Recorder, w *control.Writer) {
	t.Helper()
	if err := r.Flush(t.Context(), w, rand.NewChaCha8([32]byte{})); err != nil {
		t.Fatal(err)
	}
}

func TestTheSameThingIsCountedAlsoByAnotherLeader(t *testing.T) {
	w, r, writer := setUp(t)
	first := w.Clock.Now()
	r.Record(pod("a"), object.EventWarning, "Failed", "no such image")
	r.Record(pod("a"), object.EventWarning, "Failed", "no such image")
	r.Record(pod("a"), object.EventNormal, "Started", "started")
	r.Record(pod("b"), object.EventWarning, "Failed", "no such image")
	flush(t, r, writer)
	w.Clock.Advance(time.Minute)
	other := NewRecorder(w.Clock, slog.New(slog.DiscardHandler))
	other.Record(pod("a"), object.EventWarning, "Failed", "no such image")
	flush(t, other, writer)
	got := map[string]int32{}
	for _, e := range written(w) {
		got[e.GetInvolvedObject().GetName()+" "+e.GetReason()] = e.GetCount()
		if e.GetCount() == 3 && (!e.GetFirstTimestamp().AsTime().Equal(first) || !e.GetLastTimestamp().AsTime().Equal(w.Clock.Now())) {
			t.Errorf("from %v to %v", e.GetFirstTimestamp().AsTime(), e.GetLastTimestamp().AsTime())
		}
	}
	if want := map[string]int32{"a Failed": 3, "a Started": 1, "b Failed": 1}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEventsAreBounded(t *testing.T) {
	w, r, writer := setUp(t)
	for i := range maxPending + 10 {
		r.Record(pod(fmt.Sprintf("p%05d", i)), object.EventNormal, "Started", strings.Repeat("ü", maxMessage))
	}
	if len(r.pending) != maxPending || r.dropped != 10 {
		t.Fatalf("%d wait, %d dropped", len(r.pending), r.dropped)
	}
	flush(t, r, writer)
	if n := len(written(w)); n != maxPerFlush {
		t.Errorf("%d written at once, want %d", n, maxPerFlush)
	}
	for _, e := range written(w) {
		if len(e.GetMessage()) > maxMessage || strings.ContainsRune(e.GetMessage(), '\uFFFD') {
			t.Fatalf("message of %d bytes", len(e.GetMessage()))
		}
		if problem := object.NameProblem(object.KindOf(e), e.GetMetadata().GetName()); problem != "" {
			t.Fatalf("name %q: want %s", e.GetMetadata().GetName(), problem)
		}
	}
}

func TestAFailedWriteIsTriedAgainAndThenDropped(t *testing.T) {
	w, r, writer := setUp(t)
	fail := true
	w.Before = func(*internalv1.Command) (bool, error) {
		if fail {
			return false, errors.New("no quorum")
		}
		return true, nil
	}
	r.Record(pod("a"), object.EventNormal, "Started", "started")
	flush(t, r, writer)
	fail = false
	flush(t, r, writer)
	if n := len(written(w)); n != 1 {
		t.Errorf("%d written after a failure", n)
	}
	fail = true
	r.Record(pod("b"), object.EventNormal, "Started", "started")
	for range maxTries {
		flush(t, r, writer)
	}
	if len(r.pending) != 0 || r.dropped != 1 {
		t.Errorf("%d wait, %d dropped", len(r.pending), r.dropped)
	}
}

func TestRunWritesSoonAndStopsWithItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := rt.NewInBubble(t)
		r := NewRecorder(clock.Real{}, slog.New(slog.DiscardHandler))
		writer := control.NewWriter(w, w.Store.Space(store.SpaceEvents), clock.Real{}, w.Term)
		task := loop.Go(func() error { return r.Run(context.Background(), writer, rand.NewChaCha8([32]byte{})) })
		for range 5 {
			r.Record(pod("a"), object.EventNormal, "Started", "started")
			time.Sleep(interval / 10)
		}
		time.Sleep(interval)
		synctest.Wait()
		if got := written(w); len(got) != 1 || got[0].GetCount() != 5 || got[0].GetMetadata().GetResourceVersion() != "2" {
			t.Errorf("written %v", got)
		}
		w.SetTerm(2)
		r.Record(pod("a"), object.EventNormal, "Started", "started")
		if err := task.Wait(); !errors.Is(err, loop.ErrStop) {
			t.Errorf("ended with %v", err)
		}
	})
}
