package cluster

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/cluster/memlog"
)

// gossipBoard is a Gossip that says what a test wrote on it.
type gossipBoard struct {
	mu      sync.Mutex
	members map[string]GossipMember
}

func (g *gossipBoard) set(id string, status GossipStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members == nil {
		g.members = map[string]GossipMember{}
	}
	g.members[id] = GossipMember{Name: id, Status: status, GossipTags: GossipTags{ID: id, Role: "server", Address: id}}
}

func (g *gossipBoard) Members() []GossipMember {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []GossipMember
	for _, m := range g.members {
		out = append(out, m)
	}
	return out
}
func (g *gossipBoard) Events() <-chan GossipEvent                  { return nil }
func (g *gossipBoard) SetTags(GossipTags) error                    { return nil }
func (g *gossipBoard) Join(context.Context, []string) (int, error) { return 0, nil }
func (g *gossipBoard) Leave(context.Context) error                 { return nil }

func TestDeadServerIsRemovedOnceReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := &gossipBoard{}
		w := newWorld(t, func(c *Config) { c.Gossip = board })
		defer w.stop()
		w.start("a", "b", "c")
		for _, id := range []string{"a", "b", "c", "d"} {
			board.set(id, GossipAlive)
		}
		dead := w.follower()
		dead.kill()
		board.set(dead.id, GossipFailed)
		time.Sleep(30 * time.Minute)
		if n := w.votersSeen(); n != 3 {
			t.Fatalf("%d voters: the dead one was removed without a replacement", n)
		}
		i := slices.IndexFunc(w.leader().Members(), func(m Member) bool { return m.ID == dead.id })
		if m := w.leader().Members()[i]; m.Well || m.Why == "" || m.Gossip != GossipFailed {
			t.Errorf("the dead member is listed as %+v", m)
		}
		w.join("d")
		w.until("the dead one is gone and d votes", func() bool {
			members := w.leader().Members()
			return len(members) == 3 && w.votersSeen() == 3 && !slices.ContainsFunc(members, func(m Member) bool { return m.ID == dead.id })
		})
	})
}

// TestARebuiltServerTakesItsAddressBack: new id, same address.
func TestARebuiltServerTakesItsAddressBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		time.Sleep(5 * time.Second)
		lost := w.follower()
		if err := w.leader().AddNonvoter(context.Background(), "new", lost.id); err != nil {
			t.Fatal(err)
		}
		for _, m := range w.leader().Members() {
			if m.ID == lost.id {
				t.Errorf("the former holder of the address is still a member: %+v", m)
			}
		}
	})
}

func TestRemoveRefusesToLoseTheMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		gone := w.follower()
		w.net.Isolate(gone.id, w.names...)
		time.Sleep(10 * time.Second)
		leader := w.leaderBut(gone.id)
		var well string
		for _, id := range w.names {
			if id != leader.id && id != gone.id {
				well = id
			}
		}
		if err := leader.Remove(context.Background(), well, false); ReasonOf(err) != ReasonUnsafe || IsUnknown(err) {
			t.Errorf("removing one of two that are well: %v", err)
		}
		if err := leader.Remove(context.Background(), leader.id, false); err == nil {
			t.Error("a leader removed itself")
		}
		if err := leader.Remove(context.Background(), gone.id, false); err != nil {
			t.Errorf("removing the one that is gone: %v", err)
		}
	})
}

func TestDivergedMemberStopsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		bad := w.follower()
		w.leader().put("k", "1")
		w.until("it was applied", func() bool { v, _ := bad.machine.get("k"); return v == "1" })
		bad.machine.mu.Lock()
		bad.machine.corrupt = true
		bad.machine.mu.Unlock()
		w.leader().put("k", "2")
		if reason := <-bad.fatal; !errors.Is(reason, ErrDiverged) {
			t.Errorf("it stopped with %v", reason)
		}
		if len(bad.Status().Diverged) == 0 {
			t.Error("its status shows no divergence")
		}
		for id, n := range w.nodes {
			if id != bad.id && n.Phase() != PhaseRunning {
				t.Errorf("%s, one of the majority, is %s", id, n.Phase())
			}
		}
		w.leader().put("k", "3")
		disk := bad.disk.Crash()
		bad.kill()
		if _, err := w.tryOpen(bad.id, disk); !errors.Is(err, ErrDiverged) {
			t.Errorf("the same disk was opened again: %v", err)
		}
	})
}

func TestFeatureLevelRisesWithTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		can := map[string]uint32{"a": 2, "b": 2, "c": 1}
		w := newWorld(t, func(c *Config) { c.MaxFeatureLevel = can[c.ID] })
		defer w.stop()
		w.start("a", "b", "c")
		w.until("the level is 1", func() bool { return w.leader().machine.level() == 1 })
		time.Sleep(5 * time.Second)
		if level := w.leader().machine.level(); level != 1 {
			t.Fatalf("level %d although c can do 1", level)
		}
		early := put("k", "new format")
		early.FeatureLevel = 2
		if _, err := w.leader().Propose(context.Background(), early); ReasonOf(err) != ReasonFeatureLevel || IsUnknown(err) {
			t.Errorf("a command of level 2: %v", err)
		}
		disk := w.nodes["c"].disk.Crash() // c is upgraded
		w.nodes["c"].kill()
		can["c"] = 2
		w.open("c", disk)
		w.until("the level is 2", func() bool { return w.leader().machine.level() == 2 })
	})
}

// TestFullDiskHandsOverStopsAndWaits walks a leader's disk from low to critical,
// and back to room.
func TestFullDiskHandsOverStopsAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := map[string]*atomic.Uint64{"a": {}, "b": {}, "c": {}}
		for _, f := range free {
			f.Store(10 << 30)
		}
		w := newWorld(t, func(c *Config) {
			f := free[c.ID]
			c.FreeSpace = func() (uint64, error) { return f.Load(), nil }
		})
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		free[old.id].Store(DefaultLowSpace - 1)
		next := w.leaderBut(old.id)
		if !old.Status().LowSpace || next.Status().LowSpace {
			t.Error("low space shows at the wrong member")
		}
		if err := next.TransferLeadership(context.Background(), old.id); err == nil {
			t.Error("a member that is low on space took over")
		}
		w.leaderBut(old.id).put("k", "1")

		free[old.id].Store(DefaultCriticalSpace - 1)
		if reason := <-old.fatal; !errors.Is(reason, ErrDiskFull) {
			t.Errorf("it stopped with %v", reason)
		}
		disk := old.disk.Crash()
		old.kill()
		again := w.open(old.id, disk)
		writes := disk.Writes()
		time.Sleep(time.Minute)
		if again.Phase() != PhaseWaitingForSpace || disk.Writes() != writes {
			t.Errorf("without room it is %s and has written %d times", again.Phase(), disk.Writes()-writes)
		}
		w.leader().put("k", "2")
		free[old.id].Store(10 << 30)
		w.until("it takes part again", func() bool { v, _ := again.machine.get("k"); return again.Phase() == PhaseRunning && v == "2" })
	})
}

func TestNoRoomDuringAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		old.disk.SetFault(func(int, string) (error, bool) { return ErrDiskFull, false })
		if _, err := old.Propose(context.Background(), put("k", "1")); !IsUnknown(err) {
			t.Errorf("the write: %v", err)
		}
		if reason := <-old.fatal; !errors.Is(reason, ErrDiskFull) {
			t.Errorf("it stopped with %v", reason)
		}
	})
}

func TestJoinTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		n := w.open("b", memlog.New())
		no := errors.New("no such token")
		if err := n.Join(context.Background(), func(context.Context) error { return no }); !errors.Is(err, no) || n.Phase() != PhaseUninitialised {
			t.Errorf("a refused join: %v, phase %s", err, n.Phase())
		}
		ask := func(ctx context.Context) error { return w.leader().AddNonvoter(ctx, "b", "b") }
		if err := n.Join(context.Background(), ask); err != nil {
			t.Fatal(err)
		}
		if err := n.Join(context.Background(), ask); !errors.Is(err, ErrHasState) {
			t.Errorf("a second join: %v", err)
		}
		// The power fails before the leader reaches it: it was admitted, and goes on.
		disk := n.disk.Crash()
		n.kill()
		w.open("b", disk)
		w.until("b votes", func() bool { return w.votersSeen() == 2 })
	})
}
