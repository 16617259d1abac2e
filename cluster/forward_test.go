package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// putAll proposes n keys at once through one member, and returns their errors.
func putAll(n *node, keys int) []error {
	errs := make([]error, keys)
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() { _, errs[i] = n.Propose(context.Background(), put(fmt.Sprint("k", i), "v")) })
	}
	all.Wait()
	return errs
}

// TestForwardsGather: few commands leave at once, many share calls, each is applied
// once and can be read here.
func TestForwardsGather(t *testing.T) {
	for _, early := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const many = 300
			w := newWorld(t, nil)
			defer w.stop()
			w.start("a", "b", "c")
			leader, follower := w.leader(), w.follower()
			leader.early = early
			for _, from := range w.names {
				for _, to := range w.names {
					w.net.Delay(from, to, 10*time.Millisecond)
				}
			}
			before := leader.machine.spaces()[0].GetRevision()
			for i, err := range putAll(follower, many) {
				if err != nil {
					t.Errorf("command %d: %v", i, err)
				}
				if value, _ := follower.machine.get(fmt.Sprint("k", i)); value != "v" {
					t.Errorf("command %d is not applied where it was proposed", i)
				}
			}
			if got := leader.machine.spaces()[0].GetRevision() - before; got != many {
				t.Errorf("%d commands made %d revisions", many, got)
			}
			switch calls := leader.handed.Load(); {
			case !early && calls > forwardsAtOnce+2:
				t.Errorf("%d commands took %d calls", many, calls)
			case early && calls < many:
				t.Errorf("a leader that knows no ProposeMany got %d commands in %d calls", many, calls)
			}
		})
	}
}

// TestFewForwardsDoNotWait: what a few clients send leaves at once.
func TestFewForwardsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		follower := w.follower()
		synctest.Wait()
		began := time.Now()
		for _, err := range putAll(follower, forwardsAtOnce) {
			if err != nil {
				t.Error(err)
			}
		}
		// The network in memory takes no time here, so none may pass.
		if took := time.Since(began); took > 0 {
			t.Errorf("%d commands waited %v", forwardsAtOnce, took)
		}
	})
}

// TestForwardedOutcomesAreTheirOwn: the leader refuses one command of a batch and
// commits its neighbours.
func TestForwardedOutcomesAreTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const small = 1000
		first := true
		w := newWorld(t, func(c *Config) {
			if first { // the leader, as of a version with another limit
				c.Limits.CommandBytes = small
			}
			first = false
		})
		defer w.stop()
		w.start("a", "b", "c")
		leader, follower := w.leader(), w.follower()
		if leader.id != "a" {
			t.Fatalf("%s leads, expected a", leader.id)
		}
		for _, id := range w.names {
			w.net.Delay(follower.id, id, 5*time.Millisecond)
		}
		var all sync.WaitGroup
		for i := range 40 {
			value, refuse := "v", i%7 == 6
			if refuse {
				value = strings.Repeat("v", small)
			}
			key := fmt.Sprint("k", i)
			all.Go(func() {
				_, err := follower.Propose(context.Background(), put(key, value))
				switch got, _ := leader.machine.get(key); {
				case refuse && (ReasonOf(err) != ReasonTooLarge || IsUnknown(err) || got != ""):
					t.Errorf("%s: too large for the leader: %v, stored %d bytes", key, err, len(got))
				case refuse && !strings.Contains(err.Error(), fmt.Sprint(small)):
					t.Errorf("%s: the refusal does not name the limit: %v", key, err)
				case !refuse && (err != nil || got != "v"):
					t.Errorf("%s: %v, stored %q", key, err, got)
				}
			})
		}
		all.Wait()
		if calls := leader.handed.Load(); calls > 2*forwardsAtOnce {
			t.Errorf("%d calls: the commands did not go together", calls)
		}
	})
}

// TestAHungLeaderKeepsNoForwards: calls to a leader that is cut off hang. Commands that
// come once there is a new one do not wait for them.
func TestAHungLeaderKeepsNoForwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Timing.LeaderWait = 5 * time.Second })
		defer w.stop()
		w.start("a", "b", "c")
		old, follower := w.leader(), w.follower()
		w.net.Isolate(old.id, w.names...)
		ctx, cancel := context.WithCancel(context.Background())
		var all sync.WaitGroup
		for i := range 200 { // for as long as nobody notices
			all.Go(func() { _, _ = follower.Propose(ctx, put("lost", fmt.Sprint(i))) })
			time.Sleep(time.Millisecond)
		}
		next := w.leaderBut(old.id)
		if next == follower {
			t.Log("the follower leads itself now: nothing is forwarded")
		}
		began := time.Now()
		follower.put("k", "1")
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("a command waited %v for calls to a leader that is gone", took)
		}
		cancel()
		all.Wait()
	})
}

// TestAbandonedForward: who gives up before the command was sent knows that it did not
// happen; who gives up later does not.
func TestAbandonedForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader, follower := w.leader(), w.follower()
		for _, to := range w.names {
			w.net.Delay(follower.id, to, 100*time.Millisecond)
		}
		outcomes := make(chan error, forwardsAtOnce+1)
		for i := range forwardsAtOnce + 1 { // the last one gathers
			ctx, cancel := context.WithTimeout(context.Background(), gatherMax/2)
			defer cancel()
			go func() {
				_, err := follower.Propose(ctx, put(fmt.Sprint("k", i), "v"))
				outcomes <- err
			}()
			synctest.Wait()
		}
		unknown, not := 0, 0
		for range forwardsAtOnce + 1 {
			switch err := <-outcomes; {
			case err == nil:
				t.Error("a command was acknowledged in no time")
			case IsUnknown(err):
				unknown++
			default:
				not++
			}
		}
		if unknown != forwardsAtOnce || not != 1 {
			t.Errorf("%d unknown and %d not applied, expected %d and 1", unknown, not, forwardsAtOnce)
		}
		time.Sleep(time.Second)
		if value, _ := leader.machine.get(fmt.Sprint("k", forwardsAtOnce)); value != "" {
			t.Error("a command that was never sent was applied")
		}
	})
}
