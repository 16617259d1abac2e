package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// Status is this member's own view.
type Status struct {
	ID, Name, Address, Version string
	Phase                      Phase
	// State is the library's word: Leader, Follower, Candidate, Shutdown.
	State string
	// Leading is the epoch in which this member may act as leader, or 0.
	Leading                 uint64
	Term                    uint64
	LeaderID, LeaderAddress string
	Voter                   bool
	CommitIndex, LastIndex  uint64
	// AppliedIndex is what the machine has applied.
	AppliedIndex uint64
	// LastContact is when a leader was last heard; now, on the leader itself.
	LastContact time.Time
	// DiskStuck is how long the oldest unfinished write has taken.
	DiskStuck time.Duration
	LowSpace  bool
	FreeSpace uint64
	// QueuedCommands and QueuedBytes wait for the next entry or, on a follower, for the
	// next call to the leader.
	QueuedCommands, QueuedBytes int
	FeatureLevel                uint32
	// FeatureBlocker says who keeps the level below what this binary can do.
	FeatureBlocker string
	Diverged       []Divergence
	// Failure is why this member has stopped, or nil.
	Failure error
}

// Status never blocks on the disk or the network.
func (c *Cluster) Status() Status {
	s := Status{ID: c.cfg.ID, Name: c.cfg.Name, Address: c.cfg.Address, Version: c.cfg.Version,
		DiskStuck: c.disk.stuck(), FeatureLevel: c.cfg.FeatureLevel()}
	c.mu.Lock()
	s.Phase, s.Failure, s.LowSpace, s.FreeSpace = c.phase, c.failure, c.lowSpace, c.free
	c.mu.Unlock()
	s.AppliedIndex, _ = c.machine.progress.now()
	for _, q := range []*queue{c.queue, c.forwards} {
		commands, bytes := q.depth()
		s.QueuedCommands, s.QueuedBytes = s.QueuedCommands+commands, s.QueuedBytes+bytes
	}
	s.Diverged, s.FeatureBlocker = c.monitor.findings()
	r := c.raft.Load()
	if r == nil {
		return s
	}
	s.State, s.Term = r.State().String(), r.CurrentTerm()
	s.CommitIndex, s.LastIndex, s.LastContact = r.CommitIndex(), r.LastIndex(), r.LastContact()
	s.LeaderAddress, s.LeaderID = leaderOf(r)
	if r.State() == raft.Leader {
		s.LastContact = c.cfg.Clock.Now()
	}
	if state, _ := c.lead.now(); state.Leader && c.leadsIn(state.Epoch) {
		s.Leading = state.Epoch
	}
	_, self := voters(r.GetConfiguration().Configuration(), c.cfg.ID)
	s.Voter = self == 1
	return s
}

func leaderOf(r *raft.Raft) (address, id string) {
	a, i := r.LeaderWithID()
	return string(a), string(i)
}

// Member is a server of the cluster as this one sees it.
type Member struct {
	ID, Address         string
	Voter, Leader, Self bool
	// Well tells whether it answers; Why says since when it does not.
	Well bool
	Why  string
	// What it said when it last answered, at Contact.
	Version         string
	MaxFeatureLevel uint32
	AppliedIndex    uint64
	Contact         time.Time
	Gossip          GossipStatus
}

// Members lists the raft configuration with what is known of each.
func (c *Cluster) Members() []Member {
	view := c.monitor.view()
	leader := ""
	if r := c.raft.Load(); r != nil {
		_, leader = leaderOf(r)
	}
	now := c.cfg.Clock.Now()
	out := make([]Member, 0, len(view.Members))
	for _, v := range view.Members {
		m := Member{ID: v.ID, Address: v.Address, Voter: v.Voter, Self: v.Self, Leader: v.ID == leader,
			Well: v.Self || isWell(v, view.Policy, now), AppliedIndex: v.Applied, Contact: v.Contact, Gossip: v.Gossip}
		m.Version, m.MaxFeatureLevel = c.monitor.said(v.ID)
		if !m.Well && v.GoneSince.IsZero() {
			m.Why = "it has not answered yet"
		} else if !m.Well {
			m.Why = fmt.Sprintf("it has not answered for %v", now.Sub(v.GoneSince).Round(time.Second))
		}
		out = append(out, m)
	}
	return out
}

// LocalState answers PeerService.State.
func (c *Cluster) LocalState() *internalv1.StateResponse {
	applied, _ := c.machine.progress.now()
	state := &internalv1.StateResponse{
		MemberId: c.cfg.ID, Version: c.cfg.Version, MaxFeatureLevel: c.cfg.MaxFeatureLevel, AppliedIndex: applied,
	}
	if c.cfg.Spaces != nil {
		state.Spaces = c.cfg.Spaces()
	}
	return state
}

// ServeState is LocalState as a handler; a member that takes no part has none.
func (c *Cluster) ServeState(context.Context, *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	if _, stopped := c.running(); stopped != nil {
		return nil, stopped
	}
	return c.LocalState(), nil
}

// AddNonvoter admits a server on the leader; it gets a vote once it has caught
// up. The id must be new: a server that comes back with an empty disk under a
// known id has forgotten its votes and its log, and two majorities might no
// longer share a member. It comes back under a new id instead; the old one, if
// it held this address and is gone, makes room when that is safe.
func (c *Cluster) AddNonvoter(ctx context.Context, id, address string) error {
	r, err := c.leaderRaft()
	if err != nil {
		return err
	}
	for _, m := range c.monitor.view().Members {
		if m.ID == id {
			return refused(ReasonKnownMember, "member %s is known already: a server whose disk was lost joins under a new id", id)
		}
		if m.Address == address {
			if err := c.replace(ctx, r, m.ID, address); err != nil {
				return err
			}
		}
	}
	c.log.Info("adding member", "id", id, "address", address)
	return c.changed(ctx, r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, remaining(ctx, c.cfg.Timing.Propose)))
}

// replace removes the former holder of an address that another server now has.
func (c *Cluster) replace(ctx context.Context, r *raft.Raft, id, address string) error {
	view := c.monitor.view()
	view.Policy.MinVoters = 1 // its successor is at the door
	if err := CheckRemove(view, id, c.cfg.Clock.Now()); err != nil || id == c.cfg.ID {
		return refused(ReasonUnsafe, "address %s belongs to member %s, which cannot be replaced now: %w", address, id, errors.Join(err, errSelf(id == c.cfg.ID)))
	}
	return c.changed(ctx, r.RemoveServer(raft.ServerID(id), 0, remaining(ctx, c.cfg.Timing.Propose)))
}

func errSelf(self bool) error {
	if self {
		return errors.New("it is the leader")
	}
	return nil
}

// AddVoter gives a known member its vote at once.
func (c *Cluster) AddVoter(ctx context.Context, id, address string) error {
	r, err := c.leaderRaft()
	if err != nil {
		return err
	}
	return c.changed(ctx, r.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, remaining(ctx, c.cfg.Timing.Propose)))
}

// Remove takes a member out. Force skips the check that enough voters are well;
// a leader that removes itself hands over first.
func (c *Cluster) Remove(ctx context.Context, id string, force bool) error {
	r, err := c.leaderRaft()
	if err != nil {
		return err
	}
	view := c.monitor.view()
	view.Policy.MinVoters = 1
	if err := CheckRemove(view, id, c.cfg.Clock.Now()); err != nil && !force {
		return refused(ReasonUnsafe, "remove member %s: %w", id, err)
	}
	if id == c.cfg.ID {
		return refused(ReasonTransfer, "member %s leads: transfer leadership, then remove it there", id)
	}
	return c.changed(ctx, r.RemoveServer(raft.ServerID(id), 0, remaining(ctx, c.cfg.Timing.Propose)))
}

// TransferLeadership hands over to a voter, or, when id is empty, to one that can
// be reached.
func (c *Cluster) TransferLeadership(ctx context.Context, id string) error {
	r, err := c.leaderRaft()
	if err != nil {
		return err
	}
	target, err := c.transferTarget(r, id)
	if err != nil {
		return err
	}
	defer c.queue.pause()()
	c.drain(ctx)
	var future raft.Future
	if target == nil {
		future = r.LeadershipTransfer()
	} else {
		future = r.LeadershipTransferToServer(target.ID, target.Address)
	}
	if err := await(ctx, endsWith(future, c.ended)); err != nil {
		c.gate.reach.handOvers.Add(1)
		return refused(ReasonTransfer, "hand over leadership: %w", err)
	}
	return nil
}

// transferTarget finds a voter that can be reached; nil lets the library choose.
// That one looks at the log only, and would as soon choose a server that is down.
func (c *Cluster) transferTarget(r *raft.Raft, id string) (*raft.Server, error) {
	others, _ := voters(r.GetConfiguration().Configuration(), c.cfg.ID)
	reachable := slices.DeleteFunc(slices.Clone(others), func(s raft.Server) bool { return c.gate.reach.waitedFor(s.ID) })
	named := func(s raft.Server) bool { return string(s.ID) == id }
	switch {
	case id == "" && len(reachable) == len(others):
		return nil, nil
	case id == "" && len(reachable) > 0:
		return &reachable[0], nil
	case id == "":
		return nil, refused(ReasonTransfer, "hand over leadership: no other voter can be reached")
	case !slices.ContainsFunc(others, named):
		return nil, refused(ReasonInvalid, "hand over leadership: %s is no other voter", id)
	}
	i := slices.IndexFunc(reachable, named)
	if i < 0 {
		return nil, refused(ReasonTransfer, "hand over leadership: %s cannot be reached", id)
	}
	return &reachable[i], nil
}

// drain waits a little until no entry is on its way. One that is when leadership
// goes has an unknown outcome, although the next leader nearly always has it.
func (c *Cluster) drain(ctx context.Context) {
	giveUp := c.cfg.Clock.Now().Add(c.cfg.Timing.Election)
	for c.cfg.Clock.Now().Before(giveUp) {
		if _, aloft := c.queue.load(); aloft == 0 || !c.pause(ctx, time.Millisecond) {
			return
		}
	}
}

func (c *Cluster) leaderRaft() (*raft.Raft, error) {
	r, stopped := c.running()
	if stopped != nil {
		return nil, stopped
	}
	if r.State() != raft.Leader {
		return nil, c.notLeader()
	}
	return r, nil
}

func (c *Cluster) changed(ctx context.Context, future raft.IndexFuture) error {
	err := await(ctx, endsWith(future, c.ended))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unknown(ReasonDeadline, "change the configuration: %w", err)
	}
	return c.classify(err)
}
