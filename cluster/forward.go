package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// Users' commands go from followers to the leader in batches when there are many: a
// call a command cost a third of all the processor time of three loaded servers.
// forwardsAtOnce calls leave without a wait, so that few clients lose nothing; while
// as many are under way, what comes gathers.
const forwardsAtOnce = 2

// forward hands the command to the leader, and waits until this member has
// applied it as well: who wrote here reads here.
func (c *Cluster) forward(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	p := newPending(command)
	c.forwards.push(p)
	result, index, err := c.await(ctx, c.forwards, p)
	if err != nil {
		return nil, err
	}
	if err := c.WaitApplied(ctx, index); err != nil {
		return nil, unknown(ReasonOf(err), "the leader has committed it, this member has not applied it: %w", err)
	}
	return result, nil
}

// sendForwards turns what waits for the leader into calls.
func (c *Cluster) sendForwards() {
	for {
		select {
		case <-c.forwards.wake:
		case <-c.ctx.Done():
			return
		}
		for waiting, aloft := c.forwards.load(); waiting > 0; waiting, aloft = c.forwards.load() {
			if aloft >= forwardsAtOnce && !c.gather(c.forwards, c.cfg.Limits.BatchCommands) {
				return
			}
			batch := c.forwards.take()
			if batch == nil {
				break
			}
			c.goTask(func() { c.sendForward(batch) })
		}
	}
}

// sendForward hands a batch to whoever leads now.
func (c *Cluster) sendForward(batch []*pending) {
	began := c.cfg.Clock.Now()
	defer func() { c.forwards.landed(landing{len(batch), c.cfg.Clock.Now().Sub(began)}) }()
	// Not the callers' contexts: one that gives up must not take its neighbours along.
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timing.Propose)
	defer cancel()
	c.cfg.Metrics.Observe("cluster_forward_commands", float64(len(batch)))
	address, _ := c.leaderHint()
	switch {
	case address == "":
		err := c.notLeader()
		for _, p := range batch {
			p.done <- outcome{err: err}
		}
	case len(batch) == 1:
		batch[0].done <- c.handOn(ctx, address, batch[0].command)
	default:
		c.handOnMany(ctx, address, batch)
	}
}

func (c *Cluster) handOn(ctx context.Context, address string, command *internalv1.Command) outcome {
	response, err := c.cfg.Peers.Propose(ctx, address, &internalv1.ProposeRequest{Command: command})
	if err != nil {
		return outcome{err: asError(err, "forward the command to %s", address)}
	}
	return outcome{result: response.GetResult(), index: response.GetIndex()}
}

func (c *Cluster) handOnMany(ctx context.Context, address string, batch []*pending) {
	request := &internalv1.ProposeManyRequest{}
	for _, p := range batch {
		request.Commands = append(request.Commands, p.command)
	}
	response, err := c.cfg.Peers.ProposeMany(ctx, address, request)
	if ReasonOf(err) == ReasonUnimplemented {
		// A leader of an earlier version, which has done nothing.
		c.handOnEach(ctx, address, batch)
		return
	}
	if err == nil && len(response.GetProposals()) != len(batch) {
		err = fmt.Errorf("%d outcomes for %d commands", len(response.GetProposals()), len(batch))
	}
	for i, p := range batch {
		if err != nil {
			p.done <- outcome{err: asError(err, "forward %d commands to %s", len(batch), address)}
			continue
		}
		p.done <- outcomeOf(response.GetProposals()[i])
	}
}

// handOnEach makes a call of each command, and returns when all have ended.
func (c *Cluster) handOnEach(ctx context.Context, address string, batch []*pending) {
	var calls sync.WaitGroup
	for _, p := range batch {
		calls.Go(func() { p.done <- c.handOn(ctx, address, p.command) })
	}
	calls.Wait()
}

// asError keeps the other server's own words; everything else leaves the write's
// outcome open.
func asError(err error, format string, args ...any) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return unknown(ReasonPeer, format+": %w", append(args, err)...)
}

// ServePropose answers another server's Propose. It never forwards.
func (c *Cluster) ServePropose(ctx context.Context, request *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	ctx, cancel := c.bounded(ctx, c.cfg.Timing.Propose)
	defer cancel()
	p, err := c.admit(request.GetCommand())
	if err != nil {
		return nil, err
	}
	result, index, err := c.proposeFor(ctx, p)
	if err != nil {
		return nil, err
	}
	return &internalv1.ProposeResponse{Result: result, Index: index}, nil
}

// ServeProposeMany answers another server's ProposeMany: each command has an outcome
// of its own.
func (c *Cluster) ServeProposeMany(ctx context.Context, request *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	ctx, cancel := c.bounded(ctx, c.cfg.Timing.Propose)
	defer cancel()
	response := &internalv1.ProposeManyResponse{Proposals: make([]*internalv1.Proposal, len(request.GetCommands()))}
	admitted := make([]*pending, len(request.GetCommands())) // nil: refused
	for i, command := range request.GetCommands() {
		p, err := c.admit(command)
		if err == nil {
			err = c.mayLead(0)
		}
		if err != nil {
			response.Proposals[i] = refusalOf(err)
			continue
		}
		admitted[i] = p
	}
	c.queue.push(slices.DeleteFunc(slices.Clone(admitted), func(p *pending) bool { return p == nil })...)
	for i, p := range admitted {
		if p == nil {
			continue
		}
		result, index, err := c.await(ctx, c.queue, p)
		if err != nil {
			response.Proposals[i] = refusalOf(err)
			continue
		}
		response.Proposals[i] = &internalv1.Proposal{Committed: &internalv1.ProposeResponse{Result: result, Index: index}}
	}
	return response, nil
}

// admit checks a command that another server sends.
func (c *Cluster) admit(command *internalv1.Command) (*pending, error) {
	if command == nil || command.GetEpoch() != 0 {
		return nil, refused(ReasonInvalid, "only a user's command (epoch 0) is forwarded")
	}
	if err := c.stamp(command); err != nil {
		return nil, err
	}
	p := newPending(command)
	p.forwarded = true
	return p, nil
}
