package core

import (
	"context"
	"sync"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/reconciler/nodes"
)

const (
	hostProbePause   = 500 * time.Millisecond
	hostProbeTimeout = time.Second
	maxHostProbes    = 16 // at once
)

// hosts is nodes.Hosts: which machines seem to be gone. The gossip of a node is
// in its agent, so a node that gossip holds for failed is asked in another way:
// a machine whose agent is down still refuses connections, one that is off or
// cut off says nothing.
type hosts struct {
	gossip  cluster.Gossip
	network Network
	clock   clock.Clock
	wake    func()

	mu    sync.Mutex
	known map[string]nodes.Host // guarded by mu; nodes that gossip holds for failed
}

func newHosts(gossip cluster.Gossip, network Network, clock clock.Clock, wake func()) *hosts {
	return &hosts{gossip: gossip, network: network, clock: clock, wake: wake, known: map[string]nodes.Host{}}
}

// Host tells what is known; it never waits. A node that has just failed answers
// until it was asked: no endpoint leaves on gossip's word alone.
func (h *hosts) Host(node string) nodes.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[node]
}

// run asks the failed nodes again and again until ctx ends.
func (h *hosts) run(ctx context.Context) {
	for {
		if h.look(ctx) {
			h.wake()
		}
		timer := h.clock.NewTimer(hostProbePause)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// look asks every failed node once and tells whether anything has changed.
func (h *hosts) look(ctx context.Context) (changed bool) {
	var mu sync.Mutex
	next := map[string]nodes.Host{}
	var probes sync.WaitGroup
	slots := make(chan struct{}, maxHostProbes)
	for _, member := range h.gossip.Members() {
		if member.Role != roleAgent || member.Status != cluster.GossipFailed {
			continue
		}
		slots <- struct{}{}
		probes.Go(func() {
			defer func() { <-slots }()
			answers := h.answers(ctx, member.Address)
			mu.Lock()
			defer mu.Unlock()
			next[member.ID] = nodes.Host{GossipFailed: true, Answers: answers}
		})
	}
	probes.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = len(next) != len(h.known)
	for node, host := range next {
		changed = changed || h.known[node] != host
	}
	h.known = next
	return changed
}

func (h *hosts) answers(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, hostProbeTimeout)
	defer cancel()
	return h.network.Answers(ctx, address)
}
