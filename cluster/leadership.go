package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/mutate"
)

// Leadership is what a member may act on. While Leader is true, a command with
// this Epoch is accepted, and everything acknowledged before is applied here.
type Leadership struct {
	Leader bool
	// Epoch is the raft term; 0 when Leader is false.
	Epoch uint64
}

// leadership turns the library's "I am leader" into one that means something: it
// is announced after a barrier of the term is applied, and withdrawn at once.
type leadership struct {
	c *Cluster

	mu      sync.Mutex
	current Leadership                   // guarded by mu
	attempt uint64                       // guarded by mu; a newer one ends the older
	subs    map[chan Leadership]struct{} // guarded by mu
	changed chan struct{}                // guarded by mu; closed at the next change

	wake chan struct{}
}

// barrierRetry is the pause before another barrier, when the first was refused
// while leadership was being handed over.
const barrierRetry = 20 * time.Millisecond

func newLeadership(c *Cluster) *leadership {
	return &leadership{c: c, subs: make(map[chan Leadership]struct{}), changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// Leadership sends the state at once and after each change, until ctx ends; then
// the channel is closed. It never blocks: a slow reader sees the newest state
// only, and a term that came and went in between shows as a new Epoch.
func (c *Cluster) Leadership(ctx context.Context) <-chan Leadership {
	l := c.lead
	out := make(chan Leadership, 1)
	l.mu.Lock()
	l.subs[out] = struct{}{}
	out <- l.current
	l.mu.Unlock()
	stop := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, ok := l.subs[out]; ok {
			delete(l.subs, out)
			close(out)
		}
	}
	context.AfterFunc(ctx, stop)
	context.AfterFunc(c.ctx, stop)
	return out
}

// run follows the library's channel, which holds the newest change only: a true
// after a true is a new term.
func (l *leadership) run() {
	defer l.withdraw()
	for {
		select {
		case leads := <-l.c.raft.Load().LeaderCh():
			l.reconsider(leads)
		case <-l.wake:
			l.look()
		case <-l.c.failed:
			return
		case <-l.c.ctx.Done():
			return
		}
	}
}

// nudge asks to look again: the disk stalled or recovered.
func (l *leadership) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// look is after a nudge, which is no new term: a leader that leads and may go on
// stays as it is, so that whoever follows it is not cut off.
func (l *leadership) look() {
	leads := l.c.raft.Load().State() == raft.Leader
	now, _ := l.now()
	if leads && now.Leader && l.c.leadsIn(now.Epoch) && !l.c.stalled() {
		return
	}
	l.reconsider(leads)
}

func (l *leadership) reconsider(leads bool) {
	attempt := l.withdraw()
	if leads && !l.c.stalled() {
		l.c.goTask(func() { l.establish(attempt) })
	}
}

// withdraw ends the current leadership and every attempt at one.
func (l *leadership) withdraw() (attempt uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempt++
	l.setLocked(Leadership{})
	return l.attempt
}

// establish commits an empty batch. Its entry carries the term in which it was
// appended, so what is announced is that term and no other.
func (l *leadership) establish(attempt uint64) {
	for l.wanted(attempt) {
		term, err := l.c.barrier()
		if err == nil && l.announce(attempt, term) {
			l.c.log.Info("leading", "term", term)
			return
		}
		if err == nil || !l.c.pause(l.c.ctx, barrierRetry) {
			return
		}
	}
}

func (l *leadership) wanted(attempt uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.attempt == attempt && l.c.raft.Load().State() == raft.Leader && l.c.ctx.Err() == nil
}

func (l *leadership) announce(attempt, term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attempt != attempt || !l.c.leadsIn(term) {
		return false
	}
	l.setLocked(Leadership{Leader: true, Epoch: term})
	return true
}

func (l *leadership) setLocked(state Leadership) {
	if l.current == state {
		return
	}
	l.current = state
	close(l.changed)
	l.changed = make(chan struct{})
	for out := range l.subs {
		select {
		case <-out:
		default:
		}
		out <- state
	}
}

func (l *leadership) now() (Leadership, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.changed
}

// barrier returns the term of an empty batch once this member has applied it.
func (c *Cluster) barrier() (term uint64, err error) {
	data, err := proto.Marshal(&internalv1.Batch{Version: batchVersion})
	if err != nil {
		return 0, err
	}
	future := c.raft.Load().Apply(data, c.cfg.Timing.Propose)
	if err := endsWith(future, c.ended).Error(); err != nil {
		return 0, err
	}
	return future.Response().(*applied).term, nil
}

// leadsIn tells whether the library still believes to lead in term. That is a
// hint, and never enough for a read.
func (c *Cluster) leadsIn(term uint64) bool {
	r := c.raft.Load()
	return r.State() == raft.Leader && r.CurrentTerm() == term && c.stable.highest() == term
}

// ready returns the epoch in which this member leads with its barrier applied,
// or why it does not, with what to wait for.
func (c *Cluster) ready() (epoch uint64, changed <-chan struct{}, err *Error) {
	r, err := c.running()
	if err != nil {
		return 0, nil, err
	}
	state, changed := c.lead.now()
	switch {
	case c.stalled():
		return 0, changed, refused(ReasonDiskStalled, "the disk of member %s is stuck", c.cfg.ID)
	case state.Leader && c.leadsIn(state.Epoch):
		return state.Epoch, changed, nil
	case r.State() == raft.Leader && mutate.On(mutate.NoBarrier):
		return r.CurrentTerm(), changed, nil
	case r.State() == raft.Leader:
		return 0, changed, refused(ReasonNotReady, "member %s was elected and is applying what came before", c.cfg.ID)
	}
	return 0, changed, c.notLeader()
}

func (c *Cluster) notLeader() *Error {
	address, id := c.leaderHint()
	if address == "" {
		return refused(ReasonNoLeader, "no leader is known")
	}
	e := refused(ReasonNotLeader, "member %s does not lead", c.cfg.ID)
	e.LeaderAddress, e.LeaderID = address, id
	return e
}

// leaderHint is who the library thinks leads; not this member.
func (c *Cluster) leaderHint() (address, id string) {
	r := c.raft.Load()
	if r == nil {
		return "", ""
	}
	a, i := r.LeaderWithID()
	if string(i) == c.cfg.ID {
		return "", ""
	}
	return string(a), string(i)
}
