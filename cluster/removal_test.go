package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRemovedServerLearnsOfIt removes a server that hears of it at once, and one
// that was cut off meanwhile: both end, and their disks are not used again.
func TestRemovedServerLearnsOfIt(t *testing.T) {
	for name, cutOff := range map[string]bool{"in contact": false, "cut off": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.stop()
				w.start("a", "b", "c", "d")
				victim := w.follower()
				if cutOff {
					w.net.Isolate(victim.id, w.names...)
				}
				if err := w.leader().Remove(context.Background(), victim.id, false); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if cutOff && victim.Phase() != PhaseRunning {
					t.Fatalf("nobody could tell it, but it is %s", victim.Phase())
				}
				w.net.HealAll()
				if reason := <-victim.fatal; !errors.Is(reason, ErrRemoved) || !strings.Contains(reason.Error(), victim.id) {
					t.Errorf("it stopped with %v", reason)
				}
				disk := victim.disk.Crash()
				victim.kill()
				if _, err := w.tryOpen(victim.id, disk); !errors.Is(err, ErrRemoved) {
					t.Errorf("the same disk was opened again: %v", err)
				}
				w.leader().put("k", "1")
			})
		})
	}
}

// TestOnlyALeaderSendsAway lets members come, go and change places as leader:
// nobody who belongs to the cluster is told that he does not.
func TestOnlyALeaderSendsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		follower := w.follower()
		if err := follower.Expelled(context.Background(), "stranger"); err != nil {
			t.Errorf("a follower says: %v", err)
		}
		if err := w.leader().Expelled(context.Background(), "stranger"); ReasonOf(err) != ReasonRemoved {
			t.Errorf("the leader says: %v", err)
		}
		old := w.leader()
		w.net.Isolate(old.id, w.names...)
		if err := old.Expelled(context.Background(), "stranger"); err != nil {
			t.Errorf("a leader that is alone says: %v", err)
		}
		w.leaderBut(old.id)
		w.join("d")
		w.net.HealAll()
		w.until("all four vote", func() bool { return w.votersSeen() == 4 })
		time.Sleep(10 * time.Second)
		for id, n := range w.nodes {
			if n.Phase() != PhaseRunning {
				t.Errorf("%s is %s: %v", id, n.Phase(), n.Status().Failure)
			}
		}
	})
}

// TestUnwelcomeServerEnds is refused by its certificate before anybody can tell it
// more. It may be a clock that is wrong: the disk stays good.
func TestUnwelcomeServerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		victim := w.follower()
		for _, n := range w.nodes {
			n.unwelcome.Store(&victim.id)
		}
		time.Sleep(time.Minute)
		if victim.Phase() != PhaseRunning {
			t.Fatalf("a leader reaches it, but it is %s", victim.Phase())
		}
		if err := w.leader().Remove(context.Background(), victim.id, false); err != nil {
			t.Fatal(err)
		}
		removed := time.Now()
		if reason := <-victim.fatal; !errors.Is(reason, ErrRemoved) {
			t.Errorf("it stopped with %v", reason)
		}
		if took := time.Since(removed); took < DefaultContact || took > DefaultContact+2*DefaultMonitor {
			t.Errorf("it stopped after %v", took)
		}
		disk := victim.disk.Crash()
		victim.kill()
		if _, err := w.tryOpen(victim.id, disk); err != nil {
			t.Errorf("open the disk again: %v", err)
		}
	})
}

func TestJudge(t *testing.T) {
	timing := Timing{}.withDefaults()
	long := timing.Contact + 1
	for name, test := range map[string]struct {
		s     standing
		stops bool
	}{
		"all is well":                {standing{others: 2}, false},
		"the leader's word":          {standing{others: 2, expelled: errors.New("gone")}, true},
		"refused, but led":           {standing{others: 2, refusing: 2, silence: timing.Contact}, false},
		"refused by half":            {standing{others: 2, refusing: 1, silence: long}, false},
		"refused by most":            {standing{others: 3, refusing: 2, silence: long}, true},
		"refused by the only other":  {standing{others: 1, refusing: 1, silence: long}, true},
		"alone, and nobody to ask":   {standing{silence: long}, false},
		"silence without a refusal":  {standing{others: 4, silence: time.Hour}, false},
		"refused by two of four":     {standing{others: 4, refusing: 2, silence: long}, false},
		"refused by three of four":   {standing{others: 4, refusing: 3, silence: long}, true},
		"refused, and it is leading": {standing{others: 2, refusing: 2}, false},
	} {
		v := judge(test.s, timing)
		if stops := errors.Is(v.err, ErrRemoved); stops != test.stops || v.forGood != (test.s.expelled != nil) {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// TestInContact: what a member has is old once it has heard no leader for a
// while, and fresh again when one is back.
func TestInContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader, follower := w.leader(), w.follower()
		if !leader.InContact() || !follower.InContact() {
			t.Error("in peace somebody is without contact")
		}
		w.net.Isolate(leader.id, w.names...)
		w.net.Isolate(follower.id, w.names...)
		time.Sleep(DefaultContact - time.Second)
		if !follower.InContact() {
			t.Errorf("%v of silence count as old", DefaultContact-time.Second)
		}
		time.Sleep(2 * time.Second)
		for id, n := range w.nodes {
			if n.InContact() {
				t.Errorf("%s, alone for %v, has contact", id, DefaultContact+time.Second)
			}
		}
		w.net.HealAll()
		w.until("all have contact", func() bool {
			return w.nodes["a"].InContact() && w.nodes["b"].InContact() && w.nodes["c"].InContact()
		})
	})
}

// TestNoLeaderIsSaidSoon loses the leader and with it the majority: who asks the
// one that is left is not sent after the dead, nor left without an answer.
func TestNoLeaderIsSaidSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		leader, left := w.leader(), w.follower()
		for _, id := range []string{leader.id, "a", "b", "c"} {
			if n := w.node(id); n != nil && id != left.id {
				n.kill()
			}
		}
		for name, ask := range map[string]func() error{
			"a write": func() error { _, err := left.Propose(context.Background(), put("k", "1")); return err },
			"a read":  func() error { _, err := left.ReadIndex(context.Background()); return err },
		} {
			begin := time.Now()
			err := ask()
			if ReasonOf(err) != ReasonNoLeader || IsUnknown(err) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(begin); took > DefaultLeaderWait+time.Second {
				t.Errorf("%s was answered after %v", name, took)
			}
		}
	})
}
