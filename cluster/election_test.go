package cluster

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/cluster/memlog"
)

func TestPlanElection(t *testing.T) {
	const ms = time.Millisecond
	timing := Timing{Heartbeat: 400 * ms, Election: 400 * ms, Lease: 390 * ms}
	for name, test := range map[string]struct {
		looked
		want electionStep
	}{
		"heard just now":                  {looked{follows: true}, electionStep{wait: 400 * ms}},
		"silence":                         {looked{follows: true, silence: 399 * ms}, electionStep{wait: ms}},
		"enough":                          {looked{follows: true, silence: 400 * ms}, electionStep{hurry: true, wait: 50 * ms}},
		"enough, and asked already":       {looked{follows: true, silence: 450 * ms, hurried: true}, electionStep{wait: 50 * ms}},
		"the second waits a step":         {looked{follows: true, silence: 400 * ms, rank: 1}, electionStep{wait: 50 * ms}},
		"the second":                      {looked{follows: true, silence: 450 * ms, rank: 1}, electionStep{hurry: true, wait: 50 * ms}},
		"the ninth waits no longer":       {looked{follows: true, silence: 600 * ms, rank: 8}, electionStep{hurry: true, wait: 50 * ms}},
		"heard again":                     {looked{follows: true, silence: 10 * ms, hurried: true}, electionStep{calm: true, wait: 390 * ms}},
		"a candidate keeps its time-outs": {looked{silence: 900 * ms, hurried: true}, electionStep{wait: 50 * ms}},
		"a leader hears nobody":           {looked{silence: 900 * ms}, electionStep{wait: 50 * ms}},
	} {
		if diff := cmp.Diff(test.want, planElection(test.looked, timing), cmp.AllowUnexported(electionStep{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestFailoverTime cuts off one leader after the other. The network takes no
// time here, so what remains is the silence, a step and the election itself.
func TestFailoverTime(t *testing.T) {
	const cuts = 30
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		var took []time.Duration
		for range cuts {
			old := w.leader()
			start := time.Now()
			w.net.Isolate(old.id, w.names...)
			w.leaderBut(old.id).put("k", "1")
			took = append(took, time.Since(start))
			w.net.HealAll()
			w.until("the old leader follows", func() bool { _, id := old.leaderHint(); return id != "" && w.tryLeader(old.id) != nil })
			time.Sleep(time.Second)
		}
		slices.Sort(took)
		t.Logf("median %v, max %v", took[cuts/2], took[cuts-1])
		if median := took[cuts/2]; median > 550*time.Millisecond {
			t.Errorf("half of the elections took more than %v", median)
		}
		// A split vote, or a candidate behind the other's log, costs another try:
		// twice the lease.
		if longest := took[cuts-1]; longest > 1300*time.Millisecond {
			t.Errorf("the longest election took %v", longest)
		}
	})
}

// TestNoElectionWhileTheLeaderIsHeard: on a network so slow that little of each
// lease is left.
func TestNoElectionWhileTheLeaderIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		for _, from := range w.names {
			for _, to := range w.names {
				w.net.Delay(from, to, 40*time.Millisecond)
			}
		}
		leader := w.leader()
		term := leader.Status().Term
		time.Sleep(2 * time.Minute)
		if s := leader.Status(); s.Term != term || s.Leading != term {
			t.Errorf("term %d, leading in %d; it was term %d", s.Term, s.Leading, term)
		}
	})
}

// TestAnOnlyVoterDoesNotWait: it leads at once, after Bootstrap and after a
// restart, also with a non-voter beside it.
func TestAnOnlyVoterDoesNotWait(t *testing.T) {
	const soon = 100 * time.Millisecond // the library alone: 400 to 800
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Policy.StabilizeAfter = time.Hour })
		defer w.stop()
		n := w.open("a", memlog.New())
		start := time.Now()
		if err := n.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		w.leader().put("k", "1")
		if took := time.Since(start); took > soon {
			t.Errorf("the first write took %v", took)
		}
		w.join("b")
		w.until("b has it", func() bool { v, _ := w.nodes["b"].machine.get("k"); return v == "1" })
		disk := n.disk.Crash()
		n.kill()
		start = time.Now()
		w.open("a", disk)
		if got := w.leader().read("k"); got != "1" {
			t.Errorf("read %q", got)
		}
		if took := time.Since(start); took > soon {
			t.Errorf("after a restart it led after %v", took)
		}
		if timeouts := w.leader().raft.Load().ReloadableConfig(); timeouts.HeartbeatTimeout != DefaultHeartbeat {
			w.until("the usual time-outs are back", func() bool {
				return w.leader().raft.Load().ReloadableConfig().HeartbeatTimeout == DefaultHeartbeat
			})
		}
	})
}

// TestOneOfThreeWaits: a member that starts beside others leaves them the time
// to say that there is a leader.
func TestOneOfThreeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		back := w.follower()
		term := w.leader().Status().Term
		disk := back.disk.Crash()
		back.kill()
		time.Sleep(5 * time.Second)
		again := w.open(back.id, disk)
		w.until("it follows", func() bool { _, leader := again.leaderHint(); return leader != "" })
		if got := w.leader().Status().Term; got != term {
			t.Errorf("the term rose from %d to %d", term, got)
		}
	})
}
