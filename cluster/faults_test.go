package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster/memlog"
)

// hungLeader hangs the leader's disk in the middle of a write and returns how
// long it takes until another member commits, or 0 when none does in 15 s.
func hungLeader(t *testing.T, w *world) (took time.Duration, old *node, write error) {
	w.start("a", "b", "c")
	old = w.leader()
	old.put("k", "1")
	old.disk.Hang()
	begin := time.Now()
	failed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
		defer cancel()
		_, err := old.Propose(ctx, put("k", "lost?"))
		failed <- err
	}()
	var next *node
	for next == nil && time.Since(begin) < 15*time.Second {
		time.Sleep(10 * time.Millisecond)
		next = w.tryLeader(old.id)
	}
	if next != nil {
		next.put("k", "2")
		took = time.Since(begin)
	}
	return took, old, <-failed
}

func TestHungDiskLeader(t *testing.T) {
	for _, pipeline := range []int{1, 4} {
		t.Run(fmt.Sprintf("pipeline %d", pipeline), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.Limits.Pipeline = pipeline })
				defer w.stop()
				took, old, err := hungLeader(t, w)
				if took == 0 || took > 2500*time.Millisecond {
					t.Errorf("a new leader committed after %v", took)
				}
				if !IsUnknown(err) {
					t.Errorf("the write in the hung disk: %v, expected UNKNOWN", err)
				}
				if _, err := old.Propose(context.Background(), put("k", "3")); err == nil || IsUnknown(err) {
					t.Errorf("a write to the stopped member: %v, expected NOT_APPLIED", err)
				}
				reason := <-old.fatal
				if !strings.Contains(reason.Error(), "stuck") {
					t.Errorf("it stopped with %v", reason)
				}
			})
		})
	}
}

// TestHungDiskWithoutTheWatch shows the weakness itself, so that the test above
// can fail.
func TestHungDiskWithoutTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Disk.StallAfter, c.Disk.StallFatal = time.Hour, 2*time.Hour })
		defer w.stop()
		if took, _, _ := hungLeader(t, w); took != 0 {
			t.Errorf("the library found a new leader by itself after %v: the watch may not be needed any more", took)
		}
	})
}

// TestTheOnlyVoterLeadsThroughAStall: nobody else could.
func TestTheOnlyVoterLeadsThroughAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		n := w.leader()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		changes := n.Leadership(ctx)
		if s := <-changes; !s.Leader {
			t.Fatalf("state %+v", s)
		}
		n.disk.Hang()
		go func() { _, _ = n.Propose(ctx, put("k", "1")) }()
		time.Sleep((DefaultStallAfter + DefaultStallFatal) / 2)
		n.disk.Release()
		time.Sleep(time.Second)
		select {
		case s := <-changes:
			t.Errorf("its followers are cut off for nobody's good: %+v", s)
		default:
		}
		if got := n.read("k"); got != "1" {
			t.Errorf("read %q", got)
		}
	})
}

func TestWriteErrorIsFatalAndUnknown(t *testing.T) {
	for _, torn := range []bool{false, true} {
		t.Run(fmt.Sprintf("torn=%v", torn), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.stop()
				w.start("a", "b", "c")
				old := w.leader()
				broken := errors.New("i/o error")
				old.disk.SetFault(func(_ int, what string) (error, bool) {
					if what == "append" {
						return broken, torn
					}
					return nil, false
				})
				_, err := old.Propose(context.Background(), put("k", "1"))
				if !IsUnknown(err) {
					t.Errorf("the write: %v, expected UNKNOWN", err)
				}
				if reason := <-old.fatal; !errors.Is(reason, broken) {
					t.Errorf("it stopped with %v", reason)
				}
				if s := old.Status(); s.Phase != PhaseFailed || !errors.Is(s.Failure, broken) || s.Leading != 0 {
					t.Errorf("status %+v", s)
				}
				w.leaderBut(old.id).put("k", "2")
				if got := w.leaderBut(old.id).read("k"); got != "2" {
					t.Errorf("read %q", got)
				}
				if _, err := old.ReadIndex(context.Background()); ReasonOf(err) != ReasonFailed {
					t.Errorf("the stopped member reads: %v", err)
				}
			})
		})
	}
}

// TestTermWriteError: the library panics when it cannot store a term; the member
// must stop with a reason instead.
func TestTermWriteError(t *testing.T) {
	for _, what := range []string{"stable CurrentTerm", "vote"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.stop()
				w.start("a", "b", "c")
				old := w.leader()
				broken := errors.New("i/o error")
				for _, n := range w.nodes {
					if n.id != old.id {
						n.disk.SetFault(func(_ int, write string) (error, bool) {
							if write == what {
								return broken, false
							}
							return nil, false
						})
					}
				}
				w.net.Isolate(old.id, w.names...)
				// The first to stand for election meets the error; the other one alone
				// wins no pre-vote.
				var stopped *node
				w.until("a member stops", func() bool {
					for _, n := range w.nodes {
						if n.Phase() == PhaseFailed {
							stopped = n
						}
					}
					return stopped != nil
				})
				if reason := <-stopped.fatal; !errors.Is(reason, broken) {
					t.Errorf("%s stopped with %v", stopped.id, reason)
				}
				if s := stopped.Status(); s.Leading != 0 || stopped.stable.durable() > s.Term {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestUnknownEntriesStopTheMember(t *testing.T) {
	versionTwo, err := proto.Marshal(&internalv1.Batch{Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	poisoned, err := proto.Marshal(&internalv1.Batch{Version: 1, Commands: []*internalv1.Command{put("poison", "")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"newer batch":       {versionTwo, "batch version 2"},
		"no batch":          {[]byte("\xff\xff"), "decode"},
		"machine gives up":  {poisoned, "poisoned key"},
		"unknown operation": {mustMarshal(t, &internalv1.Batch{Version: 1, Commands: []*internalv1.Command{{}}}), "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.stop()
				w.start("a")
				n := w.leader()
				n.machine.poison = "poison"
				n.raft.Load().Apply(test.data, time.Second)
				if reason := <-n.fatal; !strings.Contains(reason.Error(), test.want) {
					t.Errorf("it stopped with %v, expected %q", reason, test.want)
				}
				if _, err := n.Propose(context.Background(), put("k", "1")); err == nil {
					t.Error("it still takes writes")
				}
			})
		})
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	out, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDeposedLeadersEpoch: what a leader planned in its term is not applied in
// another.
func TestDeposedLeadersEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		epoch := old.Status().Leading
		planned := func() *internalv1.Command {
			c := put("k", "old")
			c.Epoch = epoch
			return c
		}
		if _, err := old.Propose(context.Background(), planned()); err != nil {
			t.Fatalf("in its own term: %v", err)
		}
		w.net.Isolate(old.id, w.names...)
		next := w.leaderBut(old.id)
		next.put("k", "new")
		if _, err := next.Propose(context.Background(), planned()); ReasonOf(err) != ReasonStaleEpoch || IsUnknown(err) {
			t.Errorf("at the new leader: %v", err)
		}
		// The check in Apply, should the early one be raced.
		done, _, commitErr := next.commit([]*internalv1.Command{planned(), put("other", "1")})
		if commitErr != nil {
			t.Fatal(commitErr)
		}
		if results := done.results; results[0].GetOutcome() != internalv1.CommandResult_OUTCOME_STALE_EPOCH || results[1].GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
			t.Errorf("outcomes %v", results)
		}
		w.net.HealAll()
		w.until("the old leader follows", func() bool { _, leader := old.leaderHint(); return leader == next.id })
		if _, err := old.Propose(context.Background(), planned()); ReasonOf(err) != ReasonNotLeader || IsUnknown(err) {
			t.Errorf("at the old leader, which must not forward it: %v", err)
		}
		if got := next.read("k"); got != "new" {
			t.Errorf("read %q", got)
		}
	})
}

func TestAmnesiacServerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		w.leader().put("k", "1")
		lost := w.follower()
		lost.kill()
		back := w.open(lost.id, memlog.New()) // the same id, an empty disk
		time.Sleep(10 * time.Second)
		if back.Phase() != PhaseUninitialised || back.raft.Load() != nil || back.disk.Writes() != 0 {
			t.Errorf("it took part: phase %s, %d writes", back.Phase(), back.disk.Writes())
		}
		err := back.Join(context.Background(), func(ctx context.Context) error {
			return w.leader().AddNonvoter(ctx, lost.id, lost.id)
		})
		if ReasonOf(err) != ReasonKnownMember {
			t.Errorf("join under the known id: %v", err)
		}
		if _, err := back.ServeConfirm(context.Background(), &internalv1.ConfirmRequest{Term: 1}); ReasonOf(err) != ReasonNotInitialised {
			t.Errorf("it confirms a leader: %v", err)
		}
		back.kill()
		// Under a new id it is welcome, votes when it has caught up, and the old one
		// can go.
		w.join("d")
		w.until("d votes", func() bool { return w.votersSeen() == 4 })
		if err := w.leader().Remove(context.Background(), lost.id, false); err != nil {
			t.Fatal(err)
		}
		if got := w.nodes["d"].read("k"); got != "1" {
			t.Errorf("d reads %q", got)
		}
	})
}

func TestSnapshotInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.Limits.SnapshotEntries, c.Limits.TrailingEntries, c.Limits.TrailingBytes = 100, 10, 1
		})
		defer w.stop()
		w.start("a", "b", "c")
		far := w.follower()
		w.net.Isolate(far.id, w.names...)
		leader := w.leaderBut(far.id)
		for i := range 300 {
			leader.put("k", fmt.Sprint(i))
		}
		w.until("the log was shortened", func() bool { first, _ := leader.disk.Log().FirstIndex(); return first > 100 })
		w.net.HealAll()
		w.until("the follower has caught up", func() bool { v, _ := far.machine.get("k"); return v == "299" })
		if far.machine.restores.Load() == 0 {
			t.Error("it caught up without a snapshot: this test proves nothing")
		}
		if got := far.read("k"); got != "299" {
			t.Errorf("read %q", got)
		}
		// And it starts from the snapshot that it was sent.
		disk := far.disk.Crash()
		far.kill()
		if got := w.open(far.id, disk).read("k"); got != "299" {
			t.Errorf("after a restart: read %q", got)
		}
	})
}

func TestALogWithAHoleIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		n := w.leader()
		for range 10 {
			n.put("k", "1")
		}
		disk := n.disk.Crash()
		n.kill()
		if err := disk.Log().DeleteRange(1, 5); err != nil {
			t.Fatal(err)
		}
		if _, err := w.tryOpen("a", disk); err == nil || !strings.Contains(err.Error(), "entries are missing") {
			t.Errorf("opened with %v", err)
		}
	})
}
