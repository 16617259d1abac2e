package nodes

import (
	"context"
	"fmt"
	"sync"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
)

// Times of leases.
const (
	// DefaultInterval is how often a node beats.
	DefaultInterval = time.Second
	// DefaultDuration without a heartbeat means that the node is lost.
	DefaultDuration = 15 * time.Second
)

// maxLeases bounds the nodes that a leader remembers; a heartbeat of one more is
// refused. Nodes that are registered are fewer.
const maxLeases = 20_000

// Leases are the heartbeats of nodes in the memory of the leader, out of the
// log. Make new ones for each term: what a former leader knew is lost, so every
// node is granted a full lease from the beginning of the term. Its methods may be
// called from any goroutine.
type Leases struct {
	clock    clock.Clock
	interval time.Duration
	duration time.Duration
	begin    time.Time
	wake     chan struct{}
	applied  chan struct{}

	mu    sync.Mutex
	beats map[string]beat // guarded by mu
}

type beat struct {
	at      time.Time
	bootID  string
	applied int64
}

// NewLeases begins a term. A zero interval or duration takes the default.
func NewLeases(c clock.Clock, interval, duration time.Duration) *Leases {
	if interval <= 0 {
		interval = DefaultInterval
	}
	if duration <= 0 {
		duration = DefaultDuration
	}
	return &Leases{clock: c, interval: interval, duration: duration, begin: c.Now(), wake: make(chan struct{}, 1), applied: make(chan struct{}, 1), beats: map[string]beat{}}
}

// Beat renews the lease of a node. Whether the node is registered is for the
// caller to know.
func (l *Leases) Beat(_ context.Context, req *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error) {
	name, now := req.GetNodeName(), l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	old, known := l.beats[name]
	if !known && len(l.beats) >= maxLeases {
		return nil, fmt.Errorf("heartbeat of node %q: this leader keeps %d leases already; remove nodes that are gone", name, maxLeases)
	}
	l.beats[name] = beat{at: now, bootID: req.GetBootId(), applied: max(req.GetAppliedRevision(), old.appliedIf(req.GetBootId()))}
	if !known || l.beats[name].applied != old.applied {
		raise(l.applied)
	}
	if !known || now.Sub(old.at) >= l.duration/2 {
		l.Wake()
	}
	return &balsav1.HeartbeatResponse{LeaseDurationMs: l.duration.Milliseconds()}, nil
}

// appliedIf is what was applied in the same boot: heartbeats may overtake one
// another, revisions do not go back. After a reboot nothing is applied.
func (b beat) appliedIf(bootID string) int64 {
	if b.bootID != bootID {
		return 0
	}
	return b.applied
}

// Applied is the revision up to which a node's proxy and resolver said in this
// term that they have applied; ok is false for a node that is silent for longer
// than its lease, or was never heard of.
func (l *Leases) Applied(node string) (revision int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.beats[node]
	return b.applied, known && l.clock.Now().Sub(b.at) < l.duration
}

// Wake makes the concern look again, for example because gossip changed its mind
// about a host.
func (l *Leases) Wake() { raise(l.wake) }

func raise(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// Acknowledged is raised when a node has said that it has applied more. It is for
// one listener.
func (l *Leases) Acknowledged() <-chan struct{} { return l.applied }

// Standing is the revision up to which a node said in this term that it has
// applied, 0 if it has said nothing yet, and whether its lease still holds. A
// leader that is new grants every node a lease and knows what none has applied.
func (l *Leases) Standing(node *balsav1.Node) (applied int64, leased bool) {
	at, _ := l.heard(node)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beats[node.GetMetadata().GetName()].applied, l.clock.Now().Sub(at) < l.duration
}

// heard is when a node was heard of last; ok: in this term. A node that was not
// counts from the beginning of the term, or from its registration.
func (l *Leases) heard(node *balsav1.Node) (at time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, known := l.beats[node.GetMetadata().GetName()]; known {
		return b.at, true
	}
	if created := node.GetMetadata().GetCreationTimestamp().AsTime(); created.After(l.begin) {
		return created, false
	}
	return l.begin, false
}

// forget drops the leases of nodes that are no more.
func (l *Leases) forget(exists func(node string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.beats {
		if !exists(name) {
			delete(l.beats, name)
		}
	}
}
