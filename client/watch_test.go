package client

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// watcher collects what a watch tells.
type watcher struct {
	events []string
	err    error
	ended  chan struct{}
	stop   context.CancelFunc
}

func (w *world) watch(options WatchOptions) *watcher {
	ctx, stop := context.WithCancel(w.t.Context())
	r := &watcher{ended: make(chan struct{}), stop: stop}
	go func() {
		defer close(r.ended)
		for event, err := range Watch[*balsav1.ConfigMap](ctx, w.client, "default", options) {
			if err != nil {
				r.err = err
				continue
			}
			r.events = append(r.events, strings.TrimSpace(string(event.Type)+" "+event.Object.GetMetadata().GetName()+"@"+event.Object.GetMetadata().GetResourceVersion()))
		}
	}()
	return r
}

// finish lets everything happen and ends the watch.
func (r *watcher) finish() []string {
	synctest.Wait()
	r.stop()
	<-r.ended
	return r.events
}

func TestWatch(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.state.write("+x", "+y")
		r := w.watch(WatchOptions{})
		synctest.Wait()
		w.state.write("~x")
		w.state.write("-y", "+z")
		want := []string{"ADDED x@1", "ADDED y@1", "SYNCED @", "MODIFIED x@2", "DELETED y@1", "ADDED z@3"}
		if diff := cmp.Diff(want, r.finish()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestWatchBreaks breaks every stream after each possible number of messages:
// what is told never changes.
func TestWatchBreaks(t *testing.T) {
	want := []string{"ADDED a@1", "ADDED b@1", "ADDED c@1", "SYNCED @", "MODIFIED a@2", "MODIFIED b@2", "DELETED c@1", "ADDED d@3", "MODIFIED a@4"}
	for messages := range 9 {
		in(t, func(t *testing.T, w *world) {
			w.state.write("+a", "+b", "+c")
			w.servers["a:1"].breakAfter(messages)
			r := w.watch(WatchOptions{})
			time.Sleep(10 * time.Second) // virtual: until the first objects are told, by whatever server
			w.servers["b:1"].breakAfter(1)
			w.servers["c:1"].breakAfter(2)
			w.state.write("~a", "~b", "-c")
			w.state.write("+d")
			w.state.write("~a")
			time.Sleep(time.Minute)
			if diff := cmp.Diff(want, r.finish()); diff != "" || r.err != nil {
				t.Errorf("broken after %d messages: %v\n%s", messages, r.err, diff)
			}
		})
	}
}

// TestWatchBreaksInTheList changes the objects between a first stream that broke
// in the middle of them and the next.
func TestWatchBreaksInTheList(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.state.write("+a", "+b", "+c")
		w.servers["a:1"].breakAfter(2)
		for _, other := range []string{"b:1", "c:1"} {
			w.servers[other].fail(leadless)
		}
		r := w.watch(WatchOptions{})
		synctest.Wait()
		w.state.write("-a", "~b")
		w.servers["a:1"].fail(well)
		time.Sleep(10 * time.Second)
		want := []string{"ADDED a@1", "ADDED b@1", "MODIFIED b@2", "ADDED c@1", "DELETED a@1", "SYNCED @"}
		if diff := cmp.Diff(want, r.finish()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWatchFromRevision(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.state.write("+a")
		w.state.write("+b")
		w.state.write("~a", "~b")
		r := w.watch(WatchOptions{ResourceVersion: "1"})
		if diff := cmp.Diff([]string{"ADDED b@2", "MODIFIED a@3", "MODIFIED b@3"}, r.finish()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestWatchCompacted ends with an error that programs can tell.
func TestWatchCompacted(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.state.write("+a")
		w.state.write("+b")
		w.state.forget(2)
		r := w.watch(WatchOptions{ResourceVersion: "1"})
		<-r.ended
		if !IsCompacted(r.err) {
			t.Errorf("ended with %v", r.err)
		}
	})
}

// TestWatchNeverTakenUp does not wait for ever for a cluster that is not there;
// once begun, it waits for it to come back.
func TestWatchNeverTakenUp(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		fail := func(how mode) {
			for _, s := range w.servers {
				s.fail(how)
			}
		}
		fail(leadless)
		r := w.watch(WatchOptions{})
		if passed := took(func() { <-r.ended }); !IsUnavailable(r.err) || passed > 2*DefaultRetryFor {
			t.Errorf("after %v: %v", passed, r.err)
		}

		fail(breaking) // ends each watch at once, but the one that is begun
		w.servers["a:1"].breakAfter(1)
		w.client.SetServers([]string{"a:1"})
		w.state.write("+a")
		r = w.watch(WatchOptions{})
		synctest.Wait()
		fail(leadless)
		time.Sleep(time.Hour)
		fail(well)
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]string{"ADDED a@1", "SYNCED @"}, r.finish()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestWatchModel breaks streams at random while objects change at random. Who
// follows the events ends with the state of the cluster, and never saw an object
// added twice, or changed or deleted before it was added.
func TestWatchModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		in(t, func(t *testing.T, w *world) {
			exists := map[string]bool{}
			seen := w.watch(WatchOptions{})
			for range rapid.IntRange(1, 12).Draw(r, "steps") {
				name := rapid.SampledFrom(w.names).Draw(r, "server")
				w.servers[name].breakAfter(rapid.IntRange(0, 4).Draw(r, "messages"))
				var batch []string
				for _, object := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 3, rapid.ID).Draw(r, "objects") {
					switch {
					case !exists[object]:
						batch, exists[object] = append(batch, "+"+object), true
					case rapid.Bool().Draw(r, "delete"):
						batch, exists[object] = append(batch, "-"+object), false
					default:
						batch = append(batch, "~"+object)
					}
				}
				w.state.write(batch...)
				time.Sleep(time.Duration(rapid.IntRange(0, 300).Draw(r, "pause")) * time.Millisecond)
			}
			for _, s := range w.servers {
				s.fail(well)
			}
			time.Sleep(time.Minute)
			if err := follow(seen.finish(), w.state); err != nil {
				r.Fatalf("%v in %v", err, seen.events)
			}
		})
	})
}

// follow plays events back and compares what they lead to.
func follow(events []string, s *state) error {
	have := map[string]string{}
	for _, event := range events {
		kind, what, _ := strings.Cut(event, " ")
		name, revision, _ := strings.Cut(what, "@")
		before, exists := have[name]
		switch {
		case kind == "SYNCED":
			continue
		case (kind == "ADDED") == exists:
			return fmt.Errorf("%s, when there: %v", event, exists)
		case kind == "DELETED":
			delete(have, name)
			continue
		case exists && before == revision:
			return fmt.Errorf("%s comes twice", event)
		}
		have[name] = revision
	}
	want := map[string]string{}
	live, _, _ := s.now()
	for _, c := range live {
		want[c.GetMetadata().GetName()] = c.GetMetadata().GetResourceVersion()
	}
	if diff := cmp.Diff(want, have); diff != "" {
		return fmt.Errorf("the events lead elsewhere (-want +got): %s", diff)
	}
	return nil
}

func TestWait(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		go func() {
			time.Sleep(time.Second)
			w.state.write("+other")
			w.state.write("+x")
			time.Sleep(time.Second)
			w.state.write("~x")
		}()
		passed := took(func() {
			got, err := Wait(t.Context(), w.client, "default", "x", func(c *balsav1.ConfigMap, exists bool) (bool, string) {
				return exists && c.GetMetadata().GetName() == "x" && c.GetMetadata().GetResourceVersion() == "3", "not at 3"
			})
			if err != nil || got.GetMetadata().GetResourceVersion() != "3" {
				t.Errorf("got %v, %v", got, err)
			}
		})
		if passed.Round(time.Second) != 2*time.Second {
			t.Errorf("waited for %v", passed)
		}
	})
}

// TestWaitGivesUp tells what was still missing.
func TestWaitGivesUp(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := Wait(ctx, w.client, "default", "x", func(_ *balsav1.ConfigMap, exists bool) (bool, string) { return exists, "it does not exist" })
		want := `wait for configmap "default/x": context deadline exceeded: it does not exist`
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
}

func TestPages(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.state.write("+a", "+b", "+c", "+d", "+e")
		var sizes []int
		for page, err := range Pages[*balsav1.ConfigMap](t.Context(), w.client, "default", ListOptions{PageSize: 2}) {
			must(t, err)
			sizes = append(sizes, len(page.Items))
		}
		if diff := cmp.Diff([]int{2, 2, 1}, sizes); diff != "" {
			t.Error(diff)
		}
		all, err := List[*balsav1.ConfigMap](t.Context(), w.client, "default", ListOptions{PageSize: 2})
		if err != nil || len(all.Items) != 5 || all.ResourceVersion != "1" {
			t.Errorf("List: %d objects at %q, %v", len(all.Items), all.ResourceVersion, err)
		}
		for _, s := range w.servers {
			s.fail(refusing)
		}
		if _, err := List[*balsav1.ConfigMap](t.Context(), w.client, "default", ListOptions{PageSize: 2}); err == nil {
			t.Error("an error of a page was dropped")
		}
	})
}
