package cluster

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// lateAnswers is a network on which what an old leader sends arrives at once,
// but the answers take long; after the first of each kind everything it sends is
// lost. Nothing is forged or reordered: TCP does this after a one-way cut.
type lateAnswers struct {
	mu     sync.Mutex
	leader string // "" until the schedule begins
	began  time.Time
	answer map[string]time.Duration // since began, by target and kind
	seen   map[string]bool
}

func (l *lateAnswers) begin(leader string, answer map[string]time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leader, l.began, l.answer, l.seen = leader, time.Now(), answer, map[string]bool{}
}

var errLost = errors.New("lost on the way")

func (l *lateAnswers) around(from string, kind callKind, target string, call func() error) error {
	l.mu.Lock()
	key := target + " " + string(kind)
	leader, first := l.leader, l.seen != nil && !l.seen[key]
	if leader == from && first {
		l.seen[key] = true
	}
	due := l.began.Add(l.answer[key])
	l.mu.Unlock()
	switch {
	case leader == "" || leader != from && leader != target:
		return call()
	case leader == target:
		return errLost
	case !first:
		time.Sleep(3 * time.Second)
		return errLost
	}
	err := call()
	time.Sleep(time.Until(due))
	return err
}

// TestStaleVerifyLeader plays the schedule in which an ex-leader's VerifyLeader
// succeeds after a new leader has acknowledged a write. Our read index, asked at
// the same moment on the same server, never gives the old value.
func TestStaleVerifyLeader(t *testing.T) {
	const rounds = 20
	inTime, staleByLibrary, staleByUs := 0, 0, 0
	for range rounds {
		synctest.Test(t, func(t *testing.T) {
			ok, library, ours := staleRound(t)
			if !ok {
				return
			}
			inTime++
			if library {
				staleByLibrary++
			}
			if ours {
				staleByUs++
			}
		})
	}
	t.Logf("%d rounds, %d with a new leader in time: VerifyLeader stale in %d, ReadIndex in %d", rounds, inTime, staleByLibrary, staleByUs)
	if staleByLibrary == 0 {
		t.Error("the schedule fooled nobody, so this test proves nothing")
	}
	if staleByUs != 0 {
		t.Errorf("%d stale reads through ReadIndex", staleByUs)
	}
}

func staleRound(t *testing.T) (inTime, library, ours bool) {
	net := &lateAnswers{}
	w := newWorld(t, func(c *Config) {
		id := c.ID
		c.schedule = func(kind callKind, target string, call func() error) error {
			return net.around(id, kind, target, call)
		}
		c.lateAfter = time.Hour // show the read index alone, without the gate's help
	})
	defer func() { net.begin("", nil); w.stop() }()
	w.start("a", "b", "c")
	old := w.leader()
	old.put("k", "1")
	time.Sleep(200 * time.Millisecond)
	var others []string
	for _, id := range w.names {
		if id != old.id {
			others = append(others, id)
		}
	}
	net.begin(old.id, map[string]time.Duration{
		others[0] + " heartbeat": 250 * time.Millisecond, others[1] + " heartbeat": 500 * time.Millisecond,
		others[0] + " entries": 750 * time.Millisecond, others[1] + " entries": 1000 * time.Millisecond,
	})
	began := time.Now()
	var next *node
	for next == nil && time.Since(began) < 980*time.Millisecond {
		time.Sleep(5 * time.Millisecond)
		next = w.tryLeader(old.id)
	}
	if next == nil {
		return false, false, false
	}
	next.put("k", "2")
	// Both reads begin strictly after the write was acknowledged.
	ourRead := make(chan bool, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := old.ReadIndex(ctx)
		value, _ := old.machine.get("k")
		ourRead <- err == nil && value == "1"
	}()
	err := old.raft.Load().VerifyLeader().Error()
	value, _ := old.machine.get("k")
	return true, err == nil && value == "1", <-ourRead
}

// TestNewLeaderWithoutBarrier: a leader whose machine has not applied the past
// is a leader that a majority confirms, and would still answer with old data.
func TestNewLeaderWithoutBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		old.put("k", "1")
		time.Sleep(time.Second)
		var releases []func()
		for _, id := range w.names {
			if id != old.id {
				releases = append(releases, w.nodes[id].machine.holdApply())
			}
		}
		release := func() {
			for _, r := range releases {
				r()
			}
		}
		defer release()
		old.put("k", "2")
		w.net.Isolate(old.id, w.names...)
		var next *node
		w.until("another member is elected", func() bool {
			for _, id := range w.names {
				if n := w.nodes[id]; id != old.id && n.raft.Load().State() == raft.Leader {
					next = n
				}
			}
			return next != nil
		})
		if err := next.raft.Load().VerifyLeader().Error(); err != nil {
			t.Fatalf("VerifyLeader: %v", err)
		}
		if value, _ := next.machine.get("k"); value != "1" {
			t.Fatalf("the new leader's machine has %q: this test proves nothing", value)
		}
		if s, _ := next.lead.now(); s.Leader {
			t.Error("leadership was announced before the barrier was applied")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := next.ReadIndex(ctx); err == nil {
			t.Error("a read was allowed before the barrier was applied")
		}
		release()
		if got := w.leaderBut(old.id).read("k"); got != "2" {
			t.Errorf("read %q, expected the acknowledged 2", got)
		}
	})
}

// TestLateConfirmAnswers: answers to a round that began before a write must not
// serve a read that began after it.
func TestLateConfirmAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Timing.Confirm = 5 * time.Second; c.Timing.LeaderWait = time.Millisecond })
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		old.put("k", "1")
		letGo := make(chan struct{})
		for _, n := range w.nodes {
			if n.id != old.id {
				n.confirmLate = func(context.Context) { <-letGo }
			}
		}
		early := make(chan error, 1)
		go func() { _, err := old.reads.join(context.Background()); early <- err }()
		synctest.Wait() // the answers are given, and on their way
		for _, n := range w.nodes {
			n.confirmLate = nil
		}
		w.net.Isolate(old.id, w.names...)
		w.leaderBut(old.id).put("k", "2")
		late := make(chan error, 1)
		go func() { _, err := old.ReadIndex(context.Background()); late <- err }()
		synctest.Wait()
		close(letGo)
		<-early // it began before the write: either answer is right
		if err := <-late; err == nil {
			if value, _ := old.machine.get("k"); value != "2" {
				t.Errorf("the late read was allowed at %q", value)
			}
		}
	})
}

// silentVoters makes every member but the leader answer no confirmation.
func silentVoters(w *world, leader *node) {
	for _, n := range w.nodes {
		if n != leader {
			n.confirmLate = func(ctx context.Context) { <-ctx.Done() }
		}
	}
}

// TestTheVoterThatAsksIsAMajority: of three voters the leader and the one that asks
// are enough, and nobody else is asked; of five they are not.
func TestTheVoterThatAsksIsAMajority(t *testing.T) {
	for _, names := range [][]string{{"a", "b", "c"}, {"a", "b", "c", "d", "e"}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Timing.LeaderWait = time.Millisecond; c.Timing.Confirm = time.Second })
			defer w.stop()
			w.start(names...)
			leader, follower := w.leader(), w.follower()
			leader.put("k", "1")
			silentVoters(w, leader)
			if _, err := leader.ReadIndex(context.Background()); err == nil {
				t.Error("the leader's own read needed nobody: this test shows nothing")
			}
			_, err := follower.ReadIndex(context.Background())
			if enough := len(names) == 3; enough && err != nil {
				t.Errorf("of %d voters, the one that asks and the leader were not enough: %v", len(names), err)
			} else if !enough && err == nil {
				t.Errorf("of %d voters, two were enough", len(names))
			}
			if value, _ := follower.machine.get("k"); len(names) == 3 && value != "1" {
				t.Errorf("the follower read %q, expected 1", value)
			}
		})
	}
}

// TestWhoseWordDoesNotCount: a question that proves nothing gets a round.
func TestWhoseWordDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Timing.LeaderWait = time.Millisecond; c.Timing.Confirm = time.Second })
		defer w.stop()
		w.start("a", "b", "c")
		leader, follower := w.leader(), w.follower()
		epoch, _, err := leader.ready()
		if err != nil {
			t.Fatal(err)
		}
		silentVoters(w, leader)
		for what, q := range map[string]*internalv1.ReadIndexRequest{
			"a server of an earlier version": {},
			"one that voted in a newer term": {MemberId: follower.id, Term: epoch + 1},
			"one of an older term":           {MemberId: follower.id, Term: epoch - 1},
			"one that is no member":          {MemberId: "z", Term: epoch},
			"the leader itself":              {MemberId: leader.id, Term: epoch},
		} {
			if _, err := leader.ServeReadIndex(context.Background(), q); err == nil {
				t.Errorf("the word of %s was enough", what)
			}
		}
		if _, err := leader.ServeReadIndex(context.Background(), &internalv1.ReadIndexRequest{MemberId: follower.id, Term: epoch}); err != nil {
			t.Errorf("the word of a voter of this term was not enough: %v", err)
		}
	})
}

// TestAVoterThatMovedOnVouchesForNobody: an old leader that a voter asks after it has
// voted for a newer one does not answer with the past.
func TestAVoterThatMovedOnVouchesForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.Timing.LeaderWait = time.Millisecond
			c.Timing.Confirm = time.Second
			c.lateAfter = time.Hour
		})
		defer w.stop()
		w.start("a", "b", "c")
		old := w.leader()
		old.put("k", "1")
		w.net.Isolate(old.id, w.names...)
		next := w.leaderBut(old.id)
		next.put("k", "2")
		voter := w.nodes[w.names[slices.IndexFunc(w.names, func(id string) bool { return id != old.id && id != next.id })]]
		index, err := old.ServeReadIndex(context.Background(), &internalv1.ReadIndexRequest{MemberId: voter.id, Term: voter.votedIn(voter.raft.Load())})
		if err == nil {
			t.Errorf("the old leader answered with index %d", index.GetIndex())
		}
	})
}

func TestReadsShareRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.Reads = 600 })
		defer w.stop()
		w.start("a", "b", "c")
		follower := w.follower()
		for _, from := range w.names {
			for _, to := range w.names {
				w.net.Delay(from, to, 20*time.Millisecond)
			}
		}
		leader := w.leader()
		before := leader.asked.Load()
		var all sync.WaitGroup
		refusals := 0
		var mu sync.Mutex
		for range 700 {
			all.Go(func() {
				if _, err := follower.ReadIndex(context.Background()); ReasonOf(err) == ReasonQueueFull {
					mu.Lock()
					refusals++
					mu.Unlock()
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if asked := leader.asked.Load() - before; asked > 3 {
			t.Errorf("600 reads asked the leader %d times", asked)
		}
		if refusals != 100 {
			t.Errorf("%d reads were refused, expected those beyond the limit, 100", refusals)
		}
	})
}

func TestReadsWorkWithoutAMajorityNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a", "b", "c")
		for _, id := range w.names {
			w.net.Isolate(id, w.names...)
		}
		for _, id := range w.names {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err := w.nodes[id].ReadIndex(ctx)
			cancel()
			if err == nil || IsUnknown(err) {
				t.Errorf("%s without a majority: %v", id, err)
			}
		}
	})
}
