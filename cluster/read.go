package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/mutate"
)

// ReadIndex returns once this member's machine is at least as new as every write
// acknowledged anywhere before the call. It works on every member; a follower
// asks the leader. One round of messages serves all reads that wait for it.
//
// It follows section 6.4 of Ongaro's thesis, and none of raft's shortcuts: the
// library's VerifyLeader counts answers to heartbeats sent before the read
// began, and its lease starts when an answer arrives.
func (c *Cluster) ReadIndex(ctx context.Context) (uint64, error) {
	ctx, cancel := c.bounded(ctx, c.cfg.Timing.Read)
	defer cancel()
	var index uint64
	err := c.untilLeader(ctx, func() (err error) {
		index, err = c.reads.join(ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	return index, c.WaitApplied(ctx, index)
}

// ServeReadIndex answers another server's ReadIndex. It never asks on.
func (c *Cluster) ServeReadIndex(ctx context.Context, request *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	ctx, cancel := c.bounded(ctx, c.cfg.Timing.Read)
	defer cancel()
	r, stopped := c.running()
	switch {
	case stopped != nil:
		return nil, stopped
	case r.State() != raft.Leader:
		return nil, c.notLeader()
	}
	index, enough := c.vouched(r, request)
	if !enough {
		var err error
		if index, err = c.reads.join(ctx); err != nil {
			return nil, err
		}
	}
	// The other server waits until it has applied it.
	state, _ := c.lead.now()
	c.tell(commit{index: index, term: state.Epoch})
	return &internalv1.ReadIndexResponse{Index: index}, nil
}

// readRound finds one index for all reads that wait, every one of which began
// before the round.
func (c *Cluster) readRound() (uint64, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timing.Confirm)
	defer cancel()
	start := c.cfg.Clock.Now()
	defer func() {
		c.cfg.Metrics.Observe("cluster_read_round_seconds", c.cfg.Clock.Now().Sub(start).Seconds())
	}()
	r, stopped := c.running()
	switch {
	case stopped != nil:
		return 0, stopped
	case r.State() == raft.Leader:
		return c.leaderRound(ctx, r)
	}
	return c.askLeader(ctx)
}

func (c *Cluster) askLeader(ctx context.Context) (uint64, error) {
	address, _ := c.leaderHint()
	if address == "" {
		return 0, c.notLeader()
	}
	r, stopped := c.running()
	if stopped != nil {
		return 0, stopped
	}
	response, err := c.cfg.Peers.ReadIndex(ctx, address, &internalv1.ReadIndexRequest{MemberId: c.cfg.ID, Term: c.votedIn(r)})
	if err != nil {
		e := asError(err, "ask %s for a read index", address)
		e.Class = NotApplied // a read leaves nothing behind
		return 0, e
	}
	return response.GetIndex(), nil
}

// leaderRound: (1) a barrier of this term is applied, so the commit index covers
// every write of every earlier term; (2) take the commit index; (3) a majority
// says, after that, that it has not moved to a newer term.
func (c *Cluster) leaderRound(ctx context.Context, r *raft.Raft) (uint64, error) {
	epoch, err := c.waitReady(ctx)
	if err != nil {
		return 0, err
	}
	index := r.CommitIndex()
	if err := c.confirm(ctx, r, epoch); err != nil {
		return 0, err
	}
	return index, nil
}

// vouched is the commit index when the voter that asks is a majority together with
// this leader, as it is of three voters. Its question holds what it would answer in a
// round, as of after the reads that it asks for began; so a round would prove nothing
// more (see confirm), and with nobody to wait for there is nothing to share.
func (c *Cluster) vouched(r *raft.Raft, request *internalv1.ReadIndexRequest) (index uint64, enough bool) {
	epoch, _, err := c.ready()
	if err != nil || request.GetTerm() != epoch || mutate.On(mutate.VerifyLeader) {
		return 0, false
	}
	configuration := r.GetConfiguration()
	if configuration.Error() != nil {
		return 0, false
	}
	others, self := voters(configuration.Configuration(), c.cfg.ID)
	if answersNeeded(others, self) > 1 || !slices.ContainsFunc(others, func(s raft.Server) bool { return string(s.ID) == request.GetMemberId() }) {
		return 0, false
	}
	index = r.CommitIndex()
	return index, c.stable.highest() == epoch
}

func (c *Cluster) waitReady(ctx context.Context) (uint64, error) {
	for {
		epoch, changed, err := c.ready()
		if err == nil {
			return epoch, nil
		}
		if err.Reason != ReasonNotReady {
			return 0, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, err
		case <-c.failed:
		}
	}
}

// confirm asks the other voters for their term. An answer counts when it carries
// this round's nonce, comes from the voter that was asked, and names our term:
// that voter had voted for nobody newer when it answered. With a majority of
// such answers, and any two majorities of neighbouring configurations sharing a
// member, no newer leader can have been elected before the round began.
func (c *Cluster) confirm(ctx context.Context, r *raft.Raft, term uint64) error {
	if mutate.On(mutate.VerifyLeader) {
		return r.VerifyLeader().Error()
	}
	configuration := r.GetConfiguration()
	if err := configuration.Error(); err != nil {
		return refused(ReasonNotLeader, "read the configuration: %w", err)
	}
	others, self := voters(configuration.Configuration(), c.cfg.ID)
	need := answersNeeded(others, self)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &internalv1.ConfirmRequest{Term: term, Nonce: c.cfg.Rand(), LeaderId: c.cfg.ID}
	answers := make(chan bool, len(others))
	for _, other := range others {
		go func() { answers <- c.confirms(ctx, other, request) }()
	}
	for missing := len(others); need > 0; missing-- {
		if missing < need {
			return refused(ReasonNotLeader, "too few of %d voters confirm term %d", len(others)+self, term)
		}
		select {
		case yes := <-answers:
			if yes {
				need--
			}
		case <-ctx.Done():
			return refused(ReasonPeer, "confirm term %d: %w", term, ctx.Err())
		}
	}
	// Our own vote counts as well, and last.
	if c.stable.highest() != term {
		return refused(ReasonNotLeader, "term %d has passed", term)
	}
	return nil
}

// voters returns the other voters, and 1 when self is one.
func voters(configuration raft.Configuration, id string) (others []raft.Server, self int) {
	for _, server := range configuration.Servers {
		switch {
		case server.Suffrage != raft.Voter:
		case string(server.ID) == id:
			self = 1
		default:
			others = append(others, server)
		}
	}
	return others, self
}

// answersNeeded is how many other voters make a majority with this one.
func answersNeeded(others []raft.Server, self int) int { return (len(others)+self)/2 + 1 - self }

func (c *Cluster) otherVoters(r *raft.Raft) int {
	others, _ := voters(r.GetConfiguration().Configuration(), c.cfg.ID)
	return len(others)
}

func (c *Cluster) confirms(ctx context.Context, voter raft.Server, request *internalv1.ConfirmRequest) bool {
	answer, err := c.cfg.Peers.Confirm(ctx, string(voter.Address), request)
	return err == nil && answer.GetNonce() == request.GetNonce() &&
		answer.GetTerm() == request.GetTerm() && answer.GetMemberId() == string(voter.ID)
}

// ServeConfirm answers with the highest term this member may have voted in.
func (c *Cluster) ServeConfirm(_ context.Context, request *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	r, stopped := c.running()
	if stopped != nil {
		return nil, stopped
	}
	return &internalv1.ConfirmResponse{
		Nonce: request.GetNonce(), MemberId: c.cfg.ID, Term: c.votedIn(r),
	}, nil
}

// votedIn is the highest term that this member may have voted in, as of now.
func (c *Cluster) votedIn(r *raft.Raft) uint64 { return max(c.stable.highest(), r.CurrentTerm()) }

// rounds shares one run among all who wait, and never lets a run serve a caller
// that came after it began.
type rounds struct {
	limit int
	run   func() (uint64, error)

	mu      sync.Mutex
	next    *round // guarded by mu; gathers
	running bool   // guarded by mu
	waiting int    // guarded by mu
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

func newRounds(limit int, run func() (uint64, error)) *rounds {
	return &rounds{limit: limit, run: run}
}

func (r *rounds) join(ctx context.Context) (uint64, error) {
	mine, err := r.enter()
	if err != nil {
		return 0, err
	}
	defer r.leave()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, refused(ReasonDeadline, "waiting for a read round: %w", ctx.Err())
	}
}

func (r *rounds) enter() (*round, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting >= r.limit {
		return nil, refused(ReasonQueueFull, "%d reads wait, Reads allows %d: try again later", r.waiting, r.limit)
	}
	r.waiting++
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = true
		go r.loop()
	}
	return mine, nil
}

func (r *rounds) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
}

func (r *rounds) loop() {
	for {
		current := r.begin()
		if current == nil {
			return
		}
		current.index, current.err = r.run()
		close(current.done)
	}
}

func (r *rounds) begin() *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	current := r.next
	r.next = nil
	r.running = current != nil
	return current
}

// remaining is how long ctx has, for calls that take a duration; 0 is no limit.
func remaining(ctx context.Context, otherwise time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Millisecond)
	}
	return otherwise
}
