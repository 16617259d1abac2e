package cluster

import (
	"fmt"
	"time"
)

// MembershipPolicy says when the plan changes who is a member.
type MembershipPolicy struct {
	// StabilizeAfter is how long a non-voter must have been well before it gets a
	// vote; TrailingEntries how far behind it may be.
	StabilizeAfter  time.Duration
	TrailingEntries uint64
	// MaxVoters bounds the quorum; further members stay non-voters.
	MaxVoters int
	// DeadAfter is how long a member must have been gone to be removed; MinVoters
	// is how many voters removal leaves at least, but for those that said
	// good-bye.
	DeadAfter time.Duration
	MinVoters int
	// SilentAfter is how long a member that answers nobody counts as well.
	SilentAfter time.Duration
}

func (p MembershipPolicy) withDefaults() MembershipPolicy {
	p.StabilizeAfter = or(p.StabilizeAfter, 5*time.Second)
	p.TrailingEntries = or(p.TrailingEntries, 500)
	p.MaxVoters = or(p.MaxVoters, 7)
	p.DeadAfter = or(p.DeadAfter, 10*time.Minute)
	p.MinVoters = or(p.MinVoters, 3)
	p.SilentAfter = or(p.SilentAfter, 5*time.Second)
	return p
}

// MembershipView is what a leader knows of the servers.
type MembershipView struct {
	Policy    MembershipPolicy
	LastIndex uint64
	Members   []MemberView
}

// MemberView is one server of the raft configuration.
type MemberView struct {
	ID, Address string
	Voter, Self bool
	// Applied is what it said when it last answered, at Contact.
	Applied uint64
	Contact time.Time
	// WellSince is since when it has answered without a gap; zero while it does
	// not.
	WellSince time.Time
	// GoneSince is since when it has not; zero while it does.
	GoneSince time.Time
	Gossip    GossipStatus
	// GossipAddress is where gossip says that it is, or "".
	GossipAddress string
}

// MembershipChange is one step; raft takes one at a time.
type MembershipChange struct {
	Kind    ChangeKind
	ID      string
	Address string
	Why     string
}

func (m MembershipChange) String() string {
	return fmt.Sprintf("%s %s: %s", m.Kind, m.ID, m.Why)
}

// ChangeKind is what a step does.
type ChangeKind string

const (
	ChangePromote ChangeKind = "Promote"
	ChangeRemove  ChangeKind = "Remove"
	ChangeMove    ChangeKind = "Move"
)

// PlanMembership returns the next step, or none. It removes before it promotes
// only when that is safe, and touches this server itself only to follow it to
// another address.
func PlanMembership(v MembershipView, now time.Time) (MembershipChange, bool) {
	v.Policy = v.Policy.withDefaults()
	for _, plan := range []func(MembershipView, time.Time) (MembershipChange, bool){planMove, planPromote, planRemove} {
		if change, ok := plan(v, now); ok {
			return change, true
		}
	}
	return MembershipChange{}, false
}

// planMove follows a server, this one too, that came back at another address.
func planMove(v MembershipView, _ time.Time) (MembershipChange, bool) {
	taken := make(map[string]bool)
	for _, m := range v.Members {
		taken[m.Address] = true
	}
	for _, m := range v.Members {
		moved := m.Gossip == GossipAlive && m.GossipAddress != "" && m.GossipAddress != m.Address
		if moved && !taken[m.GossipAddress] {
			return MembershipChange{Kind: ChangeMove, ID: m.ID, Address: m.GossipAddress, Why: "gossip sees it there, the configuration says " + m.Address}, true
		}
	}
	return MembershipChange{}, false
}

func planPromote(v MembershipView, now time.Time) (MembershipChange, bool) {
	if count(v.Members, isVoter) >= v.Policy.MaxVoters {
		return MembershipChange{}, false
	}
	for _, m := range v.Members {
		caughtUp := m.Applied+v.Policy.TrailingEntries >= v.LastIndex
		well := !m.WellSince.IsZero() && now.Sub(m.WellSince) >= v.Policy.StabilizeAfter && m.Gossip != GossipFailed && m.Gossip != GossipLeft
		if !m.Voter && !m.Self && caughtUp && well {
			return MembershipChange{Kind: ChangePromote, ID: m.ID, Address: m.Address,
				Why: fmt.Sprintf("well for %v and at %d of %d", now.Sub(m.WellSince).Round(time.Second), m.Applied, v.LastIndex)}, true
		}
	}
	return MembershipChange{}, false
}

func planRemove(v MembershipView, now time.Time) (MembershipChange, bool) {
	for _, m := range v.Members {
		why, dead := isDead(m, v.Policy, now)
		if dead && CheckRemove(v, m.ID, now) == nil {
			return MembershipChange{Kind: ChangeRemove, ID: m.ID, Address: m.Address, Why: why}, true
		}
	}
	return MembershipChange{}, false
}

// isDead needs two witnesses: gossip, and our own calls that went unanswered.
func isDead(m MemberView, p MembershipPolicy, now time.Time) (string, bool) {
	if m.Self || m.GoneSince.IsZero() {
		return "", false
	}
	gone := now.Sub(m.GoneSince)
	switch {
	case m.Gossip == GossipLeft && gone >= p.SilentAfter:
		return "it left", true
	case m.Gossip == GossipFailed && gone >= p.DeadAfter:
		return fmt.Sprintf("it has been gone for %v", gone.Round(time.Second)), true
	}
	return "", false
}

// CheckRemove says why the cluster must not do without a member. Without it, the
// voters that are well must still be a majority; and unless the member said
// good-bye, MinVoters must be left.
func CheckRemove(v MembershipView, id string, now time.Time) error {
	p := v.Policy.withDefaults()
	var leaving *MemberView
	left, well := 0, 0
	for i, m := range v.Members {
		switch {
		case m.ID == id:
			leaving = &v.Members[i]
		case m.Voter:
			left++
			if m.Self || isWell(m, p, now) {
				well++
			}
		}
	}
	switch {
	case leaving == nil:
		return fmt.Errorf("no member %s", id)
	case !leaving.Voter:
		return nil
	case left == 0:
		return fmt.Errorf("member %s is the only voter", id)
	case well < left/2+1:
		return fmt.Errorf("without %s only %d of %d voters would be well, a majority is %d", id, well, left, left/2+1)
	case left < p.MinVoters && leaving.Gossip != GossipLeft:
		return fmt.Errorf("without %s there would be %d voters, MinVoters is %d: add a server first", id, left, p.MinVoters)
	}
	return nil
}

func isVoter(m MemberView) bool { return m.Voter }

func isWell(m MemberView, p MembershipPolicy, now time.Time) bool {
	return !m.WellSince.IsZero() && now.Sub(m.Contact) <= p.SilentAfter
}

func count(members []MemberView, which func(MemberView) bool) int {
	n := 0
	for _, m := range members {
		if which(m) {
			n++
		}
	}
	return n
}

// MemberFeature is what a member can do, if it has said so.
type MemberFeature struct {
	ID    string
	Known bool
	Max   uint32
}

// PlanFeatureLevel returns the level to raise the cluster to: what every member
// can do. It never falls, and waits for a member that has not answered. Blocker
// names who stands in the way of own.
func PlanFeatureLevel(current, own uint32, members []MemberFeature) (target uint32, raise bool, blocker string) {
	target = own
	for _, m := range members {
		switch {
		case !m.Known:
			return current, false, m.ID + " has not said what it can do"
		case m.Max < target:
			target, blocker = m.Max, fmt.Sprintf("%s can do %d", m.ID, m.Max)
		}
	}
	return max(target, current), target > current, blocker
}
