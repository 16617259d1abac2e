package cluster

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// pending is a command that waits for its outcome.
type pending struct {
	command   *internalv1.Command
	forwarded bool // another server waits until it has applied this as well
	size      int
	done      chan outcome // holds one
}

func newPending(command *internalv1.Command) *pending {
	return &pending{command: command, size: proto.Size(command), done: make(chan outcome, 1)}
}

type outcome struct {
	result *internalv1.CommandResult
	index  uint64
	err    *Error
}

func (o outcome) failure() error {
	if o.err == nil {
		return nil
	}
	return o.err
}

// queue gathers commands while those before them are on their way: to the log on the
// leader, to the leader elsewhere.
type queue struct {
	limits   Limits
	maxAloft int // batches that may be on their way at once
	wake     chan struct{}

	mu      sync.Mutex
	waiting []*pending // guarded by mu
	bytes   int        // guarded by mu; of those waiting
	aloft   int        // guarded by mu; batches on their way
	last    landing    // guarded by mu; the newest batch that has come to an end
	paused  int        // guarded by mu; hand-overs that hold back the next batch
	closed  *Error     // guarded by mu
}

func newQueue(limits Limits, maxAloft int) *queue {
	return &queue{limits: limits, maxAloft: maxAloft, wake: make(chan struct{}, 1)}
}

// Under load a batch leaves a little later and larger: whoever was answered with the
// one before comes again at once, and every batch costs each member a sync, a message
// and their processor time. So it waits for all of them to join those who wait already,
// but no longer than a share of what the batch before took, which on a quick disk is
// next to nothing.
const (
	// gatherFrom is the fewest commands of the batch before that make the next one wait.
	gatherFrom = 8
	// gatherShare of the time of the batch before is the longest wait, gatherMax at most.
	gatherShare = 4
	gatherMax   = 2 * time.Millisecond
)

// landing is what a batch had and how long it was on its way.
type landing struct {
	commands int
	took     time.Duration
}

// push queues commands, and ends those that it refuses. What is pushed together is
// taken together, as far as a batch holds it.
func (q *queue) push(all ...*pending) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range all {
		if err := q.refusalLocked(p); err != nil {
			p.done <- outcome{err: err}
			continue
		}
		q.waiting = append(q.waiting, p)
		q.bytes += p.size
	}
	q.kick()
}

func (q *queue) refusalLocked(p *pending) *Error {
	switch {
	case q.closed != nil:
		return q.closed
	case len(q.waiting) >= q.limits.QueueCommands:
		return refused(ReasonQueueFull, "%d commands wait, QueueCommands allows %d: try again later", len(q.waiting), q.limits.QueueCommands)
	case q.bytes+p.size > q.limits.QueueBytes:
		return refused(ReasonQueueFull, "%d bytes wait, QueueBytes allows %d: try again later", q.bytes, q.limits.QueueBytes)
	}
	return nil
}

func (q *queue) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// remove takes a command back; false when it has left the queue.
func (q *queue) remove(p *pending) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, p)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	q.bytes -= p.size
	return true
}

// take returns the next batch, or none while as many as allowed are on their way.
func (q *queue) take() []*pending {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.paused > 0 || q.aloft >= q.maxAloft || len(q.waiting) == 0 {
		return nil
	}
	n, size := 0, 0
	for n < len(q.waiting) && n < q.limits.BatchCommands && (n == 0 || size+q.waiting[n].size <= q.limits.BatchBytes) {
		size += q.waiting[n].size
		n++
	}
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.bytes -= size
	q.aloft++
	return batch
}

func (q *queue) landed(last landing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.aloft--
	q.last = last
	q.kick()
}

// pause holds commands back until the result is called.
func (q *queue) pause() (resume func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.paused++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.paused--
		q.kick()
	}
}

// before is the newest batch that has come to an end.
func (q *queue) before() landing {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.last
}

// ready tells whether so many wait, or as much as a batch holds: more would have to
// wait for the next one anyway.
func (q *queue) ready(enough int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) >= min(enough, q.limits.BatchCommands) || q.bytes >= q.limits.BatchBytes
}

// load is how many commands wait, and how many batches are on their way.
func (q *queue) load() (waiting, aloft int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting), q.aloft
}

func (q *queue) depth() (commands, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting), q.bytes
}

func (q *queue) close(why *Error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = why
	for _, p := range q.waiting {
		p.done <- outcome{err: why}
	}
	q.waiting, q.bytes = nil, 0
}

// gather waits until enough commands wait in a queue, or a batch of them, or for a
// share of what the batch before took; false when the member stops.
func (c *Cluster) gather(q *queue, enough int) bool {
	limit := gatherMax
	if took := q.before().took; took > 0 {
		limit = min(took/gatherShare, gatherMax)
	}
	timer := c.cfg.Clock.NewTimer(limit)
	defer timer.Stop()
	for {
		if q.ready(enough) {
			return true
		}
		select {
		case <-q.wake:
		case <-timer.C():
			return true
		case <-c.ctx.Done():
			return false
		}
	}
}
