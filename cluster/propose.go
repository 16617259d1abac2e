package cluster

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/mutate"
)

// retryPause is how often a call looks again while there is no leader.
const retryPause = 25 * time.Millisecond

// Propose commits a command and returns what it came to, once this member has
// applied it. It owns the command from then on and stamps its time. A user's
// command (epoch 0) is forwarded when another member leads, and waits a little
// for a leader when there is none; a reconciler's is for this member alone.
// Every failure is an *Error. A result that says that a precondition failed is
// no error.
func (c *Cluster) Propose(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	ctx, cancel := c.bounded(ctx, c.cfg.Timing.Propose)
	defer cancel()
	if err := c.stamp(command); err != nil {
		return nil, err
	}
	if command.GetEpoch() != 0 {
		result, _, err := c.proposeHere(ctx, command)
		return result, err
	}
	var result *internalv1.CommandResult
	err := c.untilLeader(ctx, func() (err error) {
		result, err = c.proposeAnywhere(ctx, command)
		return err
	})
	return result, err
}

func (c *Cluster) bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limit)
}

// untilLeader tries again while nothing happened for want of a leader.
func (c *Cluster) untilLeader(ctx context.Context, try func() error) error {
	giveUp := c.cfg.Clock.Now().Add(c.cfg.Timing.LeaderWait)
	for {
		err := try()
		if err == nil || !retriable(err) || !c.cfg.Clock.Now().Before(giveUp) {
			return err
		}
		if !c.pause(ctx, retryPause) {
			return err
		}
	}
}

// stamp completes a command and refuses what cannot be proposed.
func (c *Cluster) stamp(command *internalv1.Command) error {
	if command.GetTimeNs() == 0 {
		command.TimeNs = c.cfg.Clock.Now().UnixNano()
	}
	if size := proto.Size(command); size > c.cfg.Limits.CommandBytes {
		return refused(ReasonTooLarge, "the command has %d bytes, CommandBytes allows %d: split it", size, c.cfg.Limits.CommandBytes)
	}
	if level := c.cfg.FeatureLevel(); command.GetFeatureLevel() > level {
		return refused(ReasonFeatureLevel, "the command needs feature level %d, the cluster is at %d: upgrade every member first", command.GetFeatureLevel(), level)
	}
	return nil
}

func (c *Cluster) proposeAnywhere(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error) {
	r, stopped := c.running()
	if stopped != nil {
		return nil, stopped
	}
	if r.State() == raft.Leader {
		result, _, err := c.proposeHere(ctx, command)
		return result, err
	}
	return c.forward(ctx, command)
}

// proposeHere queues the command on this member, which should lead.
func (c *Cluster) proposeHere(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, uint64, error) {
	return c.proposeFor(ctx, newPending(command))
}

func (c *Cluster) proposeFor(ctx context.Context, p *pending) (*internalv1.CommandResult, uint64, error) {
	if err := c.mayLead(p.command.GetEpoch()); err != nil {
		return nil, 0, err
	}
	c.queue.push(p)
	return c.await(ctx, c.queue, p)
}

// await returns what a command that was pushed came to.
func (c *Cluster) await(ctx context.Context, in *queue, p *pending) (*internalv1.CommandResult, uint64, error) {
	select {
	case out := <-p.done:
		return out.result, out.index, out.failure()
	case <-ctx.Done():
		return abandon(in, p, ReasonDeadline, ctx.Err())
	case <-c.failed:
		return abandon(in, p, ReasonFailed, c.failureReason())
	case <-c.ctx.Done():
		return abandon(in, p, ReasonStopped, errors.New("this member is shutting down"))
	}
}

// mayLead refuses early what could only fail.
func (c *Cluster) mayLead(epoch uint64) error {
	r, stopped := c.running()
	if stopped != nil {
		return stopped
	}
	if c.stalled() {
		return refused(ReasonDiskStalled, "the disk of member %s is stuck", c.cfg.ID)
	}
	if r.State() != raft.Leader {
		return c.notLeader()
	}
	if term := r.CurrentTerm(); epoch != 0 && epoch != term && !mutate.On(mutate.EpochNotChecked) {
		return refused(ReasonStaleEpoch, "the command was planned in term %d, this is term %d: plan again", epoch, term)
	}
	return nil
}

// abandon gives up a command: what never left the queue did not happen.
func abandon(in *queue, p *pending, reason Reason, cause error) (*internalv1.CommandResult, uint64, error) {
	if in.remove(p) {
		return nil, 0, refused(reason, "the command was still queued: %w", cause)
	}
	select {
	case out := <-p.done: // it ended at the same moment
		return out.result, out.index, out.failure()
	default:
	}
	return nil, 0, unknown(reason, "the command was on its way to the log: %w", cause)
}

// sendBatches turns the queue into entries.
func (c *Cluster) sendBatches() {
	for {
		select {
		case <-c.queue.wake:
		case <-c.ctx.Done():
			return
		}
		if waiting, aloft := c.queue.load(); waiting > 0 && aloft == 0 {
			if before := c.queue.before(); before.commands >= gatherFrom && !c.gather(c.queue, waiting+before.commands) {
				return
			}
		}
		for batch := c.queue.take(); batch != nil; batch = c.queue.take() {
			c.goTask(func() { c.sendBatch(batch) })
		}
	}
}

func (c *Cluster) sendBatch(batch []*pending) {
	began := c.cfg.Clock.Now()
	defer func() { c.queue.landed(landing{len(batch), c.cfg.Clock.Now().Sub(began)}) }()
	commands := make([]*internalv1.Command, len(batch))
	for i, p := range batch {
		commands[i] = p.command
	}
	done, index, err := c.commit(commands)
	if err == nil && slices.ContainsFunc(batch, func(p *pending) bool { return p.forwarded }) {
		c.tell(commit{index: index, term: done.term})
	}
	for i, p := range batch {
		out := outcome{index: index, err: err}
		if err == nil {
			out.result = done.results[i]
		}
		p.done <- out
	}
}

// commit takes one entry through raft.
func (c *Cluster) commit(commands []*internalv1.Command) (*applied, uint64, *Error) {
	data, err := proto.Marshal(&internalv1.Batch{Version: batchVersion, Commands: commands})
	if err != nil {
		return nil, 0, refused(ReasonInvalid, "encode the batch: %w", err)
	}
	start := c.cfg.Clock.Now()
	future := c.raft.Load().Apply(data, c.cfg.Timing.Propose)
	if err := endsWith(future, c.ended).Error(); err != nil {
		return nil, 0, c.classify(err)
	}
	c.cfg.Metrics.Observe("cluster_batch_commands", float64(len(commands)))
	c.cfg.Metrics.Observe("cluster_commit_seconds", c.cfg.Clock.Now().Sub(start).Seconds())
	return future.Response().(*applied), future.Index(), nil
}

// classify knows which of the library's errors mean that nothing was appended.
// Everything else, and every error of the log store, is unknown: the entry may
// be on disk here, and may yet be committed.
func (c *Cluster) classify(err error) *Error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		e := c.notLeader()
		e.Class = NotApplied
		return e
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return refused(ReasonTransfer, "leadership is being handed over")
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return refused(ReasonDeadline, "raft took no entry for %v", c.cfg.Timing.Propose)
	case errors.Is(err, raft.ErrLeadershipLost):
		return unknown(ReasonLeadershipLost, "leadership was lost while the command was on its way")
	case errors.Is(err, raft.ErrRaftShutdown):
		return unknown(ReasonStopped, "this member stopped while the command was on its way")
	}
	return unknown(ReasonFailed, "%w", err)
}
