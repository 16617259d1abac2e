package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// A server that was removed while it runs may never get the entry that removes
// it: the leader sends that once, and stops. So it is told by the others, whom
// it asks for their state each second; and what it still has grows old, which
// InContact tells to those who serve it.

// InContact tells whether what this member has applied is fresh: it leads, or
// has heard from a leader within Timing.Contact.
func (c *Cluster) InContact() bool {
	r, stopped := c.running()
	return stopped == nil && (r.State() == raft.Leader || c.silence(r) <= c.cfg.Timing.Contact)
}

// silence is how long no leader was heard.
func (c *Cluster) silence(r *raft.Raft) time.Duration { return c.cfg.Clock.Now().Sub(r.LastContact()) }

// Expelled is an error with ReasonRemoved when a server is no member any more.
// Only a leader can know: on others, and when it cannot be told now, it is nil.
// Ids never come back, and a server asks nobody before a leader has admitted it,
// so one that is not in the configuration was taken out of it. That the removal
// is for good is shown by an entry behind it: what is committed after it in this
// term cannot be without it.
func (c *Cluster) Expelled(_ context.Context, id string) error {
	r, stopped := c.running()
	if stopped != nil || id == "" || r.State() != raft.Leader || c.knows(r, id) {
		return nil //nolint:nilerr // it cannot be told
	}
	epoch, _, notReady := c.ready()
	if notReady != nil || c.knows(r, id) {
		return nil //nolint:nilerr // it cannot be told
	}
	if term, err := c.barrier(); err != nil || term != epoch {
		return nil //nolint:nilerr // it cannot be told
	}
	return refused(ReasonRemoved, "member %s is not part of this cluster any more: the configuration of term %d, by which member %s leads, does not have it", id, epoch, c.cfg.ID)
}

func (c *Cluster) knows(r *raft.Raft, id string) bool {
	return slices.ContainsFunc(r.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return string(s.ID) == id })
}

// standing is what the others say of this member.
type standing struct {
	expelled error         // a leader's word that it was removed, or nil
	others   int           // servers that it knows, but for itself
	refusing int           // of them: do not take its certificate
	silence  time.Duration // since a leader was heard
}

// verdict is what comes of it.
type verdict struct {
	err     error // nil: go on
	forGood bool  // the disk is not to be used again
}

// judge is sure only of a leader's word. That most of the others do not take the
// certificate may also be a clock that is wrong: then a later start may go well.
func judge(s standing, t Timing) verdict {
	switch {
	case s.expelled != nil:
		return verdict{err: fmt.Errorf("%w: %w", ErrRemoved, s.expelled), forGood: true}
	case s.refusing > 0 && s.refusing >= s.others/2+1 && s.silence > t.Contact:
		return verdict{err: fmt.Errorf("%w: %d of %d other servers do not take its certificate, and no leader was heard for %v; if it was not removed, compare the clocks of the machines",
			ErrRemoved, s.refusing, s.others, s.silence.Round(time.Second))}
	}
	return verdict{}
}

// heed ends this member when it was removed.
func (c *Cluster) heed(s standing) {
	v := judge(s, c.cfg.Timing)
	if v.err == nil {
		return
	}
	c.cfg.Metrics.Add("cluster_removed", 1)
	if v.forGood {
		if err := c.stable.expel(s.expelled.Error()); err != nil {
			v.err = errors.Join(v.err, err)
		}
	}
	c.fail(v.err)
}

// standing sums up a round of questions.
func (m *monitor) standing(servers []raft.Server, expelled error) standing {
	s := standing{others: len(servers)}
	if r := m.c.raft.Load(); r.State() != raft.Leader {
		s.silence = min(m.c.silence(r), m.c.cfg.Clock.Now().Sub(m.began))
	}
	if e := new(*Error); errors.As(expelled, e) {
		s.expelled = (*e).Err // without what it means for a write
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.refuses {
			s.refusing++
		}
	}
	return s
}
