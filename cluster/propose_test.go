package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCommandsShareEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader := w.leader()
		before := leader.raft.Load().LastIndex()
		leader.disk.Hang() // for less than a stall
		const writers = 400
		var all sync.WaitGroup
		for i := range writers {
			all.Go(func() {
				if _, err := leader.Propose(context.Background(), put(fmt.Sprint(i), "1")); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		leader.disk.Release()
		all.Wait()
		if entries := leader.raft.Load().LastIndex() - before; entries > 3 {
			t.Errorf("%d commands took %d entries", writers, entries)
		}
		if got := leader.read("399"); got != "1" {
			t.Errorf("read %q", got)
		}
	})
}

func TestQueueLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.Limits.QueueCommands, c.Limits.QueueBytes, c.Limits.CommandBytes, c.Limits.BatchCommands = 10, 2000, 500, 4
		})
		defer w.stop()
		w.start("a")
		n := w.leader()
		big := put("k", string(make([]byte, 1000)))
		if _, err := n.Propose(context.Background(), big); ReasonOf(err) != ReasonTooLarge || IsUnknown(err) {
			t.Errorf("a command over CommandBytes: %v", err)
		}
		n.disk.Hang()
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		inFlight, queued := make(chan error, 1), make(chan error, 10)
		go func() { _, err := n.Propose(ctx, put("first", "1")); inFlight <- err }()
		synctest.Wait()
		for range 10 {
			go func() { _, err := n.Propose(ctx, put("k", "1")); queued <- err }()
		}
		synctest.Wait()
		if _, err := n.Propose(ctx, put("k", "1")); ReasonOf(err) != ReasonQueueFull || IsUnknown(err) {
			t.Errorf("one over QueueCommands: %v", err)
		}
		if s := n.Status(); s.QueuedCommands != 10 || s.QueuedBytes == 0 {
			t.Errorf("status %d commands, %d bytes", s.QueuedCommands, s.QueuedBytes)
		}
		if err := <-inFlight; !IsUnknown(err) || ReasonOf(err) != ReasonDeadline {
			t.Errorf("the command in flight: %v, expected UNKNOWN", err)
		}
		for range 10 {
			if err := <-queued; err == nil || IsUnknown(err) {
				t.Errorf("a queued command: %v, expected NOT_APPLIED", err)
			}
		}
		n.disk.Release()
		w.until("the command in flight is applied", func() bool { return n.read("first") == "1" })
		if got := n.read("k"); got != "" {
			t.Errorf("read %q: a command that was NOT_APPLIED was applied", got)
		}
	})
}

func TestQueueBytes(t *testing.T) {
	q := newQueue(Limits{QueueCommands: 100, QueueBytes: 100, BatchCommands: 10, BatchBytes: 50}, 1)
	one := func() *pending { return &pending{size: 30, done: make(chan outcome, 1)} }
	all := []*pending{one(), one(), one(), one()}
	q.push(all...)
	for i, p := range all[:3] {
		if len(p.done) > 0 {
			t.Errorf("command %d was refused: %v", i, (<-p.done).err)
		}
	}
	if err := (<-all[3].done).failure(); ReasonOf(err) != ReasonQueueFull {
		t.Errorf("beyond QueueBytes: %v", err)
	}
	if n := len(q.take()); n != 1 {
		t.Errorf("%d commands of 30 bytes in a batch of 50", n)
	}
	if q.take() != nil {
		t.Error("a second batch while the first is in flight")
	}
	q.landed(landing{1, time.Millisecond})
	if n := len(q.take()); n != 1 {
		t.Errorf("%d commands in the second batch", n)
	}
}

// TestTransferLosesNoWrite: users write through every member while leadership
// moves round; none of them sees an error.
func TestTransferLosesNoWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		stop := make(chan struct{})
		var all sync.WaitGroup
		var mu sync.Mutex
		written := map[string]int{}
		for _, id := range w.names {
			n := w.nodes[id]
			all.Go(func() {
				for i := 1; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(3 * time.Millisecond):
					}
					if _, err := n.Propose(context.Background(), put(n.id, fmt.Sprint(i))); err != nil {
						t.Errorf("write %d through %s: %v", i, n.id, err)
						return
					}
					mu.Lock()
					written[n.id] = i
					mu.Unlock()
				}
			})
		}
		for range 6 {
			time.Sleep(500 * time.Millisecond)
			leader := w.leader()
			if err := leader.TransferLeadership(context.Background(), ""); err != nil {
				t.Errorf("transfer from %s: %v", leader.id, err)
			}
			w.leaderBut(leader.id)
		}
		close(stop)
		all.Wait()
		if len(written) != 3 {
			t.Errorf("not everybody wrote: %v", written)
		}
		for id, n := range written {
			if got := w.leader().read(id); got != fmt.Sprint(n) {
				t.Errorf("%s wrote %d, read %s", id, n, got)
			}
		}
	})
}

func TestTransferToOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		target := w.follower()
		old := w.leader()
		if err := old.TransferLeadership(context.Background(), "nobody"); ReasonOf(err) != ReasonInvalid {
			t.Errorf("to nobody: %v", err)
		}
		if err := old.TransferLeadership(context.Background(), target.id); err != nil {
			t.Fatal(err)
		}
		if got := w.leaderBut(old.id); got != target {
			t.Errorf("%s leads, expected %s", got.id, target.id)
		}
	})
}

// TestGracefulStopHandsOver: a leader that stops in order costs no election
// time-out.
func TestGracefulStopHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		begin := time.Now()
		if err := old.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.forget(old.id)
		w.leaderBut(old.id).put("k", "1")
		if took := time.Since(begin); took > 300*time.Millisecond {
			t.Errorf("the next leader committed after %v", took)
		}
		if _, err := old.Propose(context.Background(), put("k", "2")); ReasonOf(err) != ReasonStopped {
			t.Errorf("a write to the stopped member: %v", err)
		}
	})
}

// TestGracefulStopBesideADeadServer: it hands over to the one that lives,
// whichever that is.
func TestGracefulStopBesideADeadServer(t *testing.T) {
	for _, dead := range []string{"b", "c"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.stop()
			w.start("a", "b", "c")
			if leader := w.leader(); leader.id != "a" {
				if err := leader.TransferLeadership(context.Background(), "a"); err != nil {
					t.Fatal(err)
				}
				w.until("a leads", func() bool { return w.leader().id == "a" })
			}
			w.nodes[dead].kill()
			w.until("the leader knows", func() bool { return w.nodes["a"].heldCalls() == 1 })
			if err := w.nodes["a"].TransferLeadership(context.Background(), ""); err != nil {
				t.Errorf("with %s dead: %v", dead, err)
			}
			w.leaderBut("a").put("k", "1")
		})
	}
}

// TestWritesWaitForALeader: an election is a pause for users, no error.
func TestWritesWaitForALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		follower := w.follower()
		old.kill()
		follower.put("k", "1")
		if got := follower.read("k"); got != "1" {
			t.Errorf("read %q", got)
		}
	})
}

func TestErrorsCrossTheWire(t *testing.T) {
	for _, want := range []*Error{
		{Class: NotApplied, Reason: ReasonNotLeader, LeaderID: "b", LeaderAddress: "b:7443", Err: errors.New("member a does not lead")},
		{Class: Unknown, Reason: ReasonLeadershipLost, Err: errors.New("lost")},
		{Class: NotApplied, Reason: ReasonQueueFull, Err: errors.New("full")},
	} {
		var got *Error
		if !errors.As(FromConnect(ToConnect(want)), &got) {
			t.Fatalf("%v came back as something else", want)
		}
		if got.Error() != want.Error() || got.Class != want.Class || got.LeaderAddress != want.LeaderAddress {
			t.Errorf("sent %v, received %v", want, got)
		}
	}
	if err := FromConnect(errors.New("connection reset")); !IsUnknown(err) {
		t.Errorf("an accident of the network: %v", err)
	}
	refusedDial := fmt.Errorf("post: %w", &net.OpError{Op: "dial", Err: errors.New("connection refused")})
	if err := FromConnect(refusedDial); IsUnknown(err) || !retriable(err) {
		t.Errorf("nothing was sent: %v", err)
	}
}

func TestLeadershipNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		n := w.leader()
		ctx, cancel := context.WithCancel(context.Background())
		unread := n.Leadership(ctx)
		for range 3 {
			leader := w.leader()
			if err := leader.TransferLeadership(ctx, ""); err != nil {
				t.Fatal(err)
			}
			w.leaderBut(leader.id)
		}
		time.Sleep(time.Second)
		want := n.Status().Leading
		if got := <-unread; got.Epoch != want || got.Leader != (want != 0) {
			t.Errorf("the newest state is %+v, the epoch is %d", got, want)
		}
		cancel()
		synctest.Wait()
		if _, open := <-unread; open {
			t.Error("the channel stays open after its context ended")
		}
	})
}

func TestLogIsOneSnapshotAndItsTail(t *testing.T) {
	limits := Limits{SnapshotBytes: 1000, SnapshotEntries: 100, TrailingBytes: 500, TrailingEntries: 7}
	for _, test := range []struct {
		bytes, entries int64
		due            bool
		tail           uint64
	}{
		{0, 0, false, 7}, {999, 99, false, 50}, {1000, 1, true, 7}, {10, 100, true, 500}, {100, 100, true, 500},
	} {
		if got := snapshotDue(test.bytes, test.entries, limits); got != test.due {
			t.Errorf("%d bytes, %d entries: due %v", test.bytes, test.entries, got)
		}
		if got := trailing(test.bytes, test.entries, limits); got != test.tail {
			t.Errorf("%d bytes, %d entries: %d entries stay, expected %d", test.bytes, test.entries, got, test.tail)
		}
	}
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{ID: "a"}); err == nil || err.Error() != "cluster: Config.Address is missing" {
		t.Errorf("error %v", err)
	}
}

// TestBatchesGather: clients that come again as soon as they were answered share
// entries, all of them when they are many. The library's own entries are few beside
// them.
func TestBatchesGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, puts = 64, 20
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader := w.leader()
		for _, from := range w.names {
			for _, to := range w.names {
				w.net.Delay(from, to, 5*time.Millisecond)
			}
		}
		before := leader.machine.applies.Load()
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				for n := range puts {
					// Some come a little later than others.
					time.Sleep(time.Duration(i%8) * 50 * time.Microsecond)
					if _, err := leader.Propose(context.Background(), put(fmt.Sprint("k", i), fmt.Sprint(n))); err != nil {
						t.Errorf("client %d, put %d: %v", i, n, err)
						return
					}
				}
			})
		}
		all.Wait()
		// The first entry has no batch before it to wait like.
		if entries := leader.machine.applies.Load() - before; entries > puts+3 {
			t.Errorf("%d clients made %d entries of %d puts each", clients, entries, puts)
		}
	})
}

// TestFewDoNotGather: below gatherFrom nobody waits for others.
func TestFewDoNotGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader := w.leader()
		synctest.Wait()
		began := time.Now()
		for range 10 { // the network in memory takes no time here, so none may pass
			for _, err := range putAll(leader, gatherFrom-1) {
				if err != nil {
					t.Error(err)
				}
			}
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("%d clients waited %v", gatherFrom-1, took)
		}
	})
}

// TestGatherEndsWithAFullBatch: who waits for more than a batch holds waits for nothing.
func TestGatherEndsWithAFullBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		for _, limits := range []Limits{{BatchCommands: 3, BatchBytes: 1000}, {BatchCommands: 1000, BatchBytes: 3}} {
			limits.QueueCommands, limits.QueueBytes = 100, 100
			q := newQueue(limits, 1)
			for range 3 {
				q.push(&pending{size: 1, done: make(chan outcome, 1)})
			}
			began := time.Now()
			w.leader().gather(q, 50)
			if waited := time.Since(began); waited != 0 {
				t.Errorf("with %+v a full batch waited %v", limits, waited)
			}
		}
	})
}

// TestGatherEndsInTime: a batch waits for a share of what the one before took, and
// not when all are there.
func TestGatherEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		one := func() *pending { return &pending{size: 1, done: make(chan outcome, 1)} }
		for _, c := range []struct{ took, want time.Duration }{
			{0, gatherMax}, {time.Hour, gatherMax}, {gatherShare * time.Microsecond, time.Microsecond},
		} {
			q := newQueue(Limits{QueueCommands: 100, QueueBytes: 100, BatchCommands: 100, BatchBytes: 100}, 1)
			q.landed(landing{10, c.took})
			q.push(one())
			began := time.Now()
			if !w.leader().gather(q, 10) {
				t.Error("the member has stopped")
			}
			if waited := time.Since(began); waited != c.want {
				t.Errorf("after a batch that took %v it waited %v, expected %v", c.took, waited, c.want)
			}
			began = time.Now()
			go func() {
				time.Sleep(c.want / 2)
				q.push(one(), one(), one())
			}()
			w.leader().gather(q, 4)
			if waited := time.Since(began); waited != c.want/2 {
				t.Errorf("all were there after %v, it waited %v", c.want/2, waited)
			}
		}
	})
}
