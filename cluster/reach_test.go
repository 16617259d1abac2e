package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// calls counts raft's calls by target and kind.
type calls struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *calls) around(kind callKind, target string, call func() error) error {
	c.mu.Lock()
	if c.count == nil {
		c.count = map[string]int{}
	}
	c.count[target+" "+string(kind)]++
	c.mu.Unlock()
	return call()
}

func (c *calls) since(before map[string]int, key string) int {
	return c.snapshot()[key] - before[key]
}

func (c *calls) snapshot() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.count)
}

// TestAReturningFollowerIsCaughtUpSoon: however long it was away, whether its
// process was gone or its cable, and also when it needs a snapshot.
func TestAReturningFollowerIsCaughtUpSoon(t *testing.T) {
	for _, away := range []time.Duration{2 * time.Second, 60 * time.Second} {
		for _, how := range []string{"stopped", "cut off", "needs a snapshot"} {
			t.Run(fmt.Sprintf("%v %s", away, how), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { awayAndBack(t, away, how) })
			})
		}
	}
}

func awayAndBack(t *testing.T, away time.Duration, how string) {
	seen := &calls{}
	w := newWorld(t, func(c *Config) {
		c.schedule = seen.around
		if how == "needs a snapshot" {
			c.Limits.SnapshotEntries, c.Limits.TrailingEntries, c.Limits.TrailingBytes = 20, 2, 1
		}
	})
	defer w.stop()
	w.start("a", "b", "c")
	w.leader().put("k", "before")
	far := w.follower()
	disk := far.disk
	if how == "cut off" {
		w.net.Isolate(far.id, w.names...)
	} else {
		disk = far.disk.Crash()
		far.kill()
	}
	before := seen.snapshot()
	leader := w.leaderBut(far.id)
	for i := range 100 {
		time.Sleep(away / 100)
		leader.put("k", fmt.Sprint(i))
	}
	tries := seen.since(before, far.id+" entries") + seen.since(before, far.id+" snapshot")
	if beats := seen.since(before, far.id+" heartbeat"); beats > int(away/(50*time.Millisecond))+20 {
		t.Errorf("%d heartbeats in %v", beats, away)
	}
	if limit := 3; tries > limit {
		t.Errorf("%d calls about entries to a server that was away for %v, expected up to %d", tries, away, limit)
	}
	back := time.Now()
	if how == "cut off" {
		w.net.HealAll()
	} else {
		far = w.open(far.id, disk)
	}
	w.until("it has caught up", func() bool { v, _ := far.machine.get("k"); return v == "99" })
	took := time.Since(back)
	t.Logf("away %v, %s: %d calls meanwhile, caught up after %v", away, how, tries, took)
	if took > time.Second {
		t.Errorf("away for %v, it had caught up after %v", away, took)
	}
	if how == "needs a snapshot" && far.machine.restores.Load() == 0 {
		t.Error("it needed no snapshot: this test proves nothing")
	}
}

func (n *node) heldCalls() int {
	n.gate.reach.mu.Lock()
	defer n.gate.reach.mu.Unlock()
	return len(n.gate.reach.waits)
}

// TestHeldCallsEnd: with leadership, and with the membership of the other.
func TestHeldCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		dead := w.follower()
		dead.kill()
		old := w.leaderBut(dead.id)
		w.until("a call is held", func() bool { return old.heldCalls() == 1 })
		time.Sleep(time.Minute)
		if n := old.heldCalls(); n != 1 {
			t.Errorf("%d calls are held for one server", n)
		}
		// Nobody says to whom: to one that lives.
		if err := old.TransferLeadership(context.Background(), ""); err != nil {
			t.Fatal(err)
		}
		w.leaderBut(old.id)
		w.until("the old leader holds none", func() bool { return old.heldCalls() == 0 })
		next := w.leaderBut(old.id)
		w.until("the new one does", func() bool { return next.heldCalls() == 1 })
		if err := next.Remove(context.Background(), dead.id, false); err != nil {
			t.Fatal(err)
		}
		w.until("a removed member is given up", func() bool { return next.heldCalls() == 0 })
	})
}

// TestHandOverToADeadServer: however often somebody asks for it, the leader takes
// writes again soon. The library would wait for the server to come back.
func TestHandOverToADeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader, dead := w.leader(), w.follower()
		w.net.Isolate(dead.id, w.names...)
		leader.put("k", "1") // the dead one is behind, so that a hand-over must wait for it
		for range 5 {
			// The first tries begin before anybody knows that it is gone.
			if err := leader.TransferLeadership(context.Background(), dead.id); err == nil || IsUnknown(err) {
				t.Errorf("to a dead server: %v", err)
			}
		}
		w.until("that is known", func() bool { return leader.heldCalls() == 1 })
		start := time.Now()
		if err := leader.TransferLeadership(context.Background(), dead.id); ReasonOf(err) != ReasonTransfer || time.Since(start) > 0 {
			t.Errorf("refused after %v: %v", time.Since(start), err)
		}
		leader.put("k", "2")
		if took := time.Since(start); took > time.Second {
			t.Errorf("a write took %v", took)
		}
		w.net.HealAll()
		w.until("the other is back", func() bool { v, _ := dead.machine.get("k"); return v == "2" })
		w.until("it can take over", func() bool { return leader.TransferLeadership(context.Background(), dead.id) == nil })
	})
}

// TestAServerThatMovedIsFound: its held call was for the former address.
func TestAServerThatMovedIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		far := w.follower()
		disk := far.disk.Crash()
		far.kill()
		leader := w.leaderBut(far.id)
		w.until("a call is held", func() bool { return leader.heldCalls() == 1 })
		host, err := w.net.Listen("elsewhere")
		if err != nil {
			t.Fatal(err)
		}
		w.tune = func(c *Config) { c.Address, c.Stream = "elsewhere", host }
		moved := w.open(far.id, disk)
		if err := leader.AddVoter(context.Background(), far.id, "elsewhere"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		leader.put("k", "1")
		w.until("it has caught up", func() bool { v, _ := moved.machine.get("k"); return v == "1" })
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestReachTellsTheNewest(t *testing.T) {
	r := newReach()
	heard, stop := r.wait("b")
	r.note("c", true)
	r.note("b", false)
	r.note("b", true)
	if !<-heard {
		t.Error("the older news won")
	}
	stop()
	r.note("b", true)
	select {
	case <-heard:
		t.Error("it is told after it stopped")
	default:
	}
}

// TestFollowersHearOfACommitAtOnce: Timing.Commit is long here, so that nothing
// but telling lets a follower answer soon.
func TestFollowersHearOfACommitAtOnce(t *testing.T) {
	const soon = 100 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		seen := &calls{}
		w := newWorld(t, func(c *Config) { c.Timing.Commit, c.schedule = 2*time.Second, seen.around })
		defer w.stop()
		w.start("a", "b", "c")
		leader, follower := w.leader(), w.follower()
		before := seen.snapshot()
		start := time.Now()
		for i := range 10 {
			follower.put("k", fmt.Sprint(i))
			if got, _ := follower.machine.get("k"); got != fmt.Sprint(i) {
				t.Errorf("write %d was acknowledged, the follower has %q", i, got)
			}
		}
		if took := time.Since(start); took > soon {
			t.Errorf("ten forwarded writes took %v", took)
		}
		if told := seen.since(before, follower.id+" commit"); told == 0 || told > 30 {
			t.Errorf("the follower was told %d times of ten commits", told)
		}
		leader.put("k", "read me")
		start = time.Now()
		if got := follower.read("k"); got != "read me" || time.Since(start) > soon {
			t.Errorf("the follower read %q after %v", got, time.Since(start))
		}
		// Nobody waits: nobody is told.
		synctest.Wait()
		before = seen.snapshot()
		leader.put("k", "1")
		synctest.Wait()
		if told := seen.since(before, follower.id+" commit"); told != 0 {
			t.Errorf("the follower was told %d times although it did not ask", told)
		}
	})
}

// TestALateTellingIsHarmless: what a deposed leader tells about its own commits
// stays true; what it could not know is refused.
func TestALateTellingIsHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Timing.Commit = 2 * time.Second })
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		old.put("k", "1")
		index, term := old.Cluster.machine.progress.now()
		w.net.Isolate(old.id, w.names...)
		next := w.leaderBut(old.id)
		next.put("k", "2")
		w.net.HealAll()
		old.tell(commit{index: index, term: term})
		old.tell(commit{index: index + 100, term: term}) // an entry that there never was
		w.until("the old leader follows", func() bool { _, leader := old.leaderHint(); return leader == next.id })
		next.put("k", "3")
		for _, id := range w.names {
			if got := w.nodes[id].read("k"); got != "3" {
				t.Errorf("%s reads %q", id, got)
			}
		}
		if s := next.Status(); s.Term == term {
			t.Error("the term did not change: this test proves nothing")
		}
	})
}

func TestTellerSendsTheNewestOnce(t *testing.T) {
	tell := newTeller()
	servers := []raft.Server{{ID: "b"}, {ID: "c"}}
	ids := func(servers []raft.Server) (out []string) {
		for _, s := range servers {
			out = append(out, string(s.ID))
		}
		return out
	}
	tell.confirmed("c", 7, 7)
	tell.confirmed("gone", 9, 9)
	if got := ids(tell.begin(servers, commit{5, 1})); !slices.Equal(got, []string{"b"}) {
		t.Errorf("goes to %v, expected b: c knows", got)
	}
	if len(tell.told) != 1 {
		t.Errorf("remembers %v, the one that is gone as well", tell.told)
	}
	if got := ids(tell.begin(servers, commit{8, 1})); !slices.Equal(got, []string{"c"}) {
		t.Errorf("goes to %v, expected c: somebody is on the way to b", got)
	}
	news, more := tell.take("b", commit{})
	if news.index != 8 || !more {
		t.Errorf("b is told %+v", news)
	}
	if news, more = tell.take("b", news); more {
		t.Errorf("b is told %+v as well", news)
	}
	if got := ids(tell.begin(servers[:1], commit{9, 1})); !slices.Equal(got, []string{"b"}) {
		t.Errorf("afterwards it goes to %v", got)
	}
}

// TestToldTooEarly: the entry comes after the news of its commit.
func TestToldTooEarly(t *testing.T) {
	tell, news := newTeller(), commit{5, 1}
	tell.confirmed("b", 4, 3)
	if tell.refused("b", news) {
		t.Error("b has not got entry 5")
	}
	if again := tell.confirmed("b", 5, 4); again != news {
		t.Errorf("when it has the entry, it is told %+v", again)
	}
	if again := tell.confirmed("b", 6, 4); again != (commit{}) {
		t.Errorf("and then %+v again", again)
	}
	if !tell.refused("b", news) {
		t.Error("the entry has come meanwhile")
	}
	if tell.refused("b", commit{9, 1}) {
		t.Error("b has not got entry 9")
	}
	if again := tell.confirmed("b", 9, 9); again != (commit{}) {
		t.Errorf("it knows, and is told %+v", again)
	}
}
