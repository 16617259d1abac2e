package cluster

import (
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// The library looks whether it still hears a leader at random times only, one
// to two time-outs apart, and with pre-vote two of three members must have
// looked before there is a new leader: 1.8 time-outs in the mean of one member,
// and up to 3. So each member has this timer of its own, which is exact: silence
// of Timing.Heartbeat, and a step more for each member that is before it.
//
// The members fire one after the other on purpose. The first finds that the
// others still believe in the leader and is refused; it then grants the pre-vote
// of the next. Two that fire within a round trip grant it to each other, split
// the vote and lose a whole election time-out.
const (
	electionSteps    = 8 // a step is this part of Timing.Heartbeat
	electionMaxSteps = 4
)

// looked is what planElection decides from.
type looked struct {
	follows bool          // the member is a follower, not a candidate or leader
	silence time.Duration // since it heard a leader, or was no follower
	rank    int           // voters that fire before this one
	hurried bool          // the short time-outs are set
}

// electionStep is what a member should do now, and when to look again.
type electionStep struct {
	hurry, calm bool
	wait        time.Duration
}

// planElection is the timer itself.
func planElection(l looked, t Timing) electionStep {
	pace := max(t.Heartbeat/electionSteps, time.Millisecond)
	due := t.Heartbeat + pace*time.Duration(min(l.rank, electionMaxSteps))
	switch {
	case !l.follows:
		// A candidate keeps the short time-outs for its next try.
		return electionStep{wait: pace}
	case l.silence >= due:
		return electionStep{hurry: !l.hurried, wait: pace}
	}
	return electionStep{calm: l.hurried, wait: max(due-l.silence, time.Millisecond)}
}

// watchLeader runs the timer. An only voter has nobody to wait for.
func (c *Cluster) watchLeader() {
	r := c.raft.Load()
	others, self := voters(r.GetConfiguration().Configuration(), c.cfg.ID)
	since := c.cfg.Clock.Now()
	hurried := self == 1 && len(others) == 0
	if hurried {
		c.setTimeouts(c.cfg.Timing.Lease, c.cfg.Timing.Lease)
	}
	for wait := time.Millisecond; c.pause(c.ctx, wait); {
		now, state := c.cfg.Clock.Now(), r.State()
		if contact := r.LastContact(); contact.After(since) {
			since = contact
		}
		if state != raft.Follower {
			since = now
		}
		rank := c.electionRank(r)
		step := planElection(looked{follows: state == raft.Follower && rank >= 0, silence: now.Sub(since), rank: rank, hurried: hurried}, c.cfg.Timing)
		switch {
		case step.hurry:
			c.setTimeouts(c.cfg.Timing.Lease, c.cfg.Timing.Lease)
			hurried = true
		case step.calm || hurried && state == raft.Leader:
			c.setTimeouts(c.cfg.Timing.Heartbeat, c.cfg.Timing.Election)
			hurried = false
		}
		wait = step.wait
	}
}

// electionRank is this member's place among the voters that may follow the
// leader it knows; -1 when it does not vote.
func (c *Cluster) electionRank(r *raft.Raft) int {
	servers := r.GetConfiguration().Configuration().Servers
	_, leader := r.LeaderWithID()
	rank, votes := 0, false
	for _, s := range servers {
		switch {
		case s.Suffrage != raft.Voter || s.ID == leader:
		case string(s.ID) == c.cfg.ID:
			votes = true
		case strings.Compare(string(s.ID), c.cfg.ID) < 0:
			rank++
		}
	}
	if !votes {
		return -1
	}
	return rank
}

// setTimeouts gives the library other time-outs. To lower the first makes a
// follower look at once whether it still hears a leader, by that shorter
// measure; that is the only way to make it look. Candidates take the second for
// the time until their next try. Neither may be below the lease.
func (c *Cluster) setTimeouts(heartbeat, election time.Duration) {
	err := c.reload(func(s *raft.ReloadableConfig) { s.HeartbeatTimeout, s.ElectionTimeout = heartbeat, election })
	if err != nil {
		c.log.Error("election time-outs", "heartbeat", heartbeat, "election", election, "error", err)
	}
}

// reload changes a part of the library's settings; two changes at once would
// undo each other.
func (c *Cluster) reload(change func(*raft.ReloadableConfig)) error {
	c.settings.Lock()
	defer c.settings.Unlock()
	r := c.raft.Load()
	settings := r.ReloadableConfig()
	change(&settings)
	return r.ReloadConfig(settings)
}
