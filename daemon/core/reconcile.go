package core

import (
	"context"
	"time"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/internal/loop"
	"github.com/balsa-run/balsa/reconciler"
	"github.com/balsa-run/balsa/reconciler/nodes"
)

// reconcile runs the reconcilers while this server leads, one start a term.
func (s *Server) reconcile(ctx context.Context) error {
	terms := make(chan loop.Term)
	go forward(ctx, s.cluster.Leadership(ctx), terms)
	return loop.Gate(ctx, terms, s.cfg.Clock, s.logger, s.runTerm)
}

func forward(ctx context.Context, from <-chan cluster.Leadership, to chan<- loop.Term) {
	defer close(to)
	for state := range from {
		select {
		case to <- loop.Term{Leader: state.Leader, Epoch: state.Epoch}:
		case <-ctx.Done():
			return
		}
	}
}

// drained counts how pods were drained, and how long that took.
func (s *Server) drained(reason string, took time.Duration) {
	s.cfg.Metrics.Add("drained_pods", 1, cluster.Label{Name: "reason", Value: reason})
	s.cfg.Metrics.Observe("drain_acknowledge_seconds", took.Seconds(), cluster.Label{Name: "reason", Value: reason})
}

// runTerm reconciles for one term. Its leases are the term's own: what a former
// leader heard is lost, and every node and every lease of the etcd space gets its
// full time.
func (s *Server) runTerm(ctx context.Context, epoch uint64) error {
	beats := nodes.NewLeases(s.cfg.Clock, nodes.DefaultInterval, nodes.DefaultDuration)
	s.local.set(beats)
	defer s.local.unset()
	if err := s.forgetServers(ctx, epoch); err != nil {
		s.logger.Info("records of servers that are gone stay until the next term", "error", err)
	}
	lessor := s.termLessor(epoch)
	s.lessor.set(lessor)
	defer s.lessor.unset()
	deps := reconciler.Deps{
		Store: s.store, Proposer: s.cluster, Clock: s.cfg.Clock, Rand: s.cfg.Random,
		Logger: s.logger.With("part", "reconciler"), Epoch: epoch, Leases: beats, EtcdLeases: lessor, Drained: s.drained, Secrets: s.cfg.Bundle.SealKeys,
	}
	if s.cfg.Gossip != nil {
		watched := newHosts(s.cfg.Gossip, s.cfg.Network, s.cfg.Clock, beats.Wake)
		deps.Hosts = watched
		probing, cancel := context.WithCancel(ctx)
		var probes tasks
		probes.start(func() { watched.run(probing) })
		defer probes.wait()
		defer cancel()
	}
	return reconciler.Run(ctx, deps)
}
