package client

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// calls is how many calls each server has had since the last look.
func (w *world) calls(since map[string]int) string {
	line := ""
	for _, name := range w.names {
		line += fmt.Sprintf("%s=%d ", name, w.servers[name].count()-since[name])
		since[name] = w.servers[name].count()
	}
	return line
}

func (w *world) write(t *testing.T) {
	t.Helper()
	if _, err := Create(t.Context(), w.client, configMap("x"), WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) read(t *testing.T) {
	t.Helper()
	if _, err := List[*balsav1.ConfigMap](t.Context(), w.client, "default", ListOptions{PageSize: 1000}); err != nil {
		t.Fatal(err)
	}
}

// TestWritesGoToTheLeader counts who gets which calls while the leader changes,
// fails, and is not known.
func TestWritesGoToTheLeader(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		seen := map[string]int{}
		expect := func(want string) {
			t.Helper()
			if got := w.calls(seen); got != want {
				t.Errorf("calls were %s, want %s", got, want)
			}
		}
		w.write(t)
		w.write(t)
		expect("a:1=2 b:1=0 c:1=0 ") // nobody told
		w.tell("c:1", w.names...)
		w.write(t) // learns it from the answer
		w.write(t)
		w.read(t)
		w.write(t)
		expect("a:1=2 b:1=0 c:1=2 ")
		w.tell("b:1", w.names...)
		w.read(t)
		w.write(t)
		expect("a:1=1 b:1=1 c:1=0 ")
		w.tell("", w.names...)
		w.write(t)
		w.write(t)
		expect("a:1=1 b:1=1 c:1=0 ")
	})
}

// TestLeaderFails goes back to any server, at once, and does not try the leader
// again before leaderShun has passed.
func TestLeaderFails(t *testing.T) {
	for _, how := range []mode{down, silent, leadless} {
		in(t, func(t *testing.T, w *world) {
			w.tell("c:1", w.names...)
			w.read(t)
			w.servers["c:1"].fail(how)
			if passed := took(func() { w.write(t) }); passed > dialTimeout+time.Second {
				t.Errorf("mode %d: the write took %v", how, passed)
			}
			before := w.servers["c:1"].count()
			if passed := took(func() { w.write(t); w.write(t) }); passed > 0 {
				t.Errorf("mode %d: writes wait for a leader that has failed: %v", how, passed)
			}
			if w.servers["c:1"].count() != before {
				t.Errorf("mode %d: the leader that has failed was tried again", how)
			}
			if w.client.servers.pick(false) != "a:1" {
				t.Errorf("mode %d: reads have moved", how)
			}
			w.servers["c:1"].fail(well)
			time.Sleep(leaderShun) // virtual
			w.read(t)
			w.write(t)
			if w.servers["c:1"].count() != before+1 {
				t.Errorf("mode %d: the leader is avoided although it works again", how)
			}
		})
	}
}

// TestStrangersAreNotFollowed tells of a leader that is no server.
func TestStrangersAreNotFollowed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tell("evil:1", w.names...)
		w.write(t)
		w.write(t)
		w.tell("not an address", "neither", "evil:0")
		w.write(t)
		if w.dials("evil:1") || w.servers["a:1"].count() != 3 {
			t.Error("a leader that is not among the servers was followed")
		}
	})
}

// TestServersAreLearned knows one server, hears of the others, and outlives it.
func TestServersAreLearned(t *testing.T) {
	for _, pinned := range []bool{false, true} {
		in(t, func(t *testing.T, w *world) {
			c, err := New(Config{Servers: []string{"a:1"}, Dial: w.dial, Plain: true, Pinned: pinned})
			must(t, err)
			w.client.Close()
			w.client = c
			w.tell("b:1", "a:1", "b:1", "c:1")
			w.read(t)
			w.write(t)
			if followed := w.servers["b:1"].count() == 1; followed == pinned {
				t.Errorf("pinned %v: the leader was followed: %v", pinned, followed)
			}
			w.servers["a:1"].fail(down)
			w.client.Close()
			_, err = List[*balsav1.ConfigMap](t.Context(), c, "default", ListOptions{PageSize: 1000})
			if (err != nil) != pinned {
				t.Errorf("pinned %v: with the first server down: %v", pinned, err)
			}
			if !pinned {
				if diff := cmp.Diff([]string{"b:1", "c:1", "a:1"}, c.servers.lasting()); diff != "" {
					t.Error(diff)
				}
				c.SetServers([]string{"c:1"})
				if diff := cmp.Diff([]string{"c:1", "a:1", "b:1"}, c.Servers()); diff != "" {
					t.Error(diff)
				}
			}
			synctest.Wait()
		})
	}
}
