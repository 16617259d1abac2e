package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/podnet"
)

// syncer keeps routes, proxy and resolver at one revision of the set.
type syncer struct {
	a *Agent
	// done is how often services had changed when all was last applied; -1:
	// never.
	done     int64
	problems string
	nextScan time.Time
}

// syncLoop applies the newest state, however many were in between, and tells the
// revision only when proxy and resolver both have it.
func (a *Agent) syncLoop(ctx context.Context) error {
	s := &syncer{a: a, done: -1, nextScan: a.cfg.Clock.Now().Add(scrubEvery)}
	pause := a.newRetry()
	rest := scrubEvery
	for {
		if err := a.toSync.wait(ctx, a.cfg.Clock, rest); err != nil {
			return err
		}
		if err := sleep(ctx, a.cfg.Clock, syncSettle); err != nil {
			return err
		}
		err := s.sync(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		a.metrics.synced(err)
		if err != nil {
			a.log.Error("services are not up to date on this node; trying again", "error", err)
			a.nodeEvent(pod.Event{Warning: true, Reason: "ServiceSyncFailed", Message: err.Error()})
			rest = pause.delay()
			continue
		}
		pause.reset()
		rest = scrubEvery
	}
}

func (s *syncer) sync(ctx context.Context) error {
	revision, changes, synced := s.a.set.position()
	if !synced {
		return nil
	}
	if now := s.a.cfg.Clock.Now(); s.done >= 0 && !now.Before(s.nextScan) {
		s.nextScan = now.Add(scrubEvery)
		s.scrub(ctx)
		s.done = -1 // routes are mended by being set again
	}
	if changes == s.done {
		s.applied(revision, false)
		return nil
	}
	w := s.a.set.wiring()
	if err := s.apply(ctx, w); err != nil {
		return err
	}
	s.done = w.changes
	s.applied(w.revision, true)
	return nil
}

// apply sets routes first, so that the way is there before anything is sent.
// A route that cannot be set does not keep services from being up to date.
func (s *syncer) apply(ctx context.Context, w wiring) error {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	routes, problems := s.a.routes(w.nodes)
	if err := s.a.plant.Network.SyncRoutes(ctx, routes); err != nil {
		problems = append(problems, err.Error())
	}
	f := s.a.facts
	view := netproxy.FromObjects(w.revision, netproxy.NodeParams{Name: s.a.cfg.Name, PodCIDR: f.PodCIDR, ClusterCIDR: f.ClusterCIDR, ServiceCIDR: f.ServiceCIDR, NodeIP: s.a.cfg.NodeIP},
		netproxy.Objects{Services: w.services, Slices: w.slices})
	rules := netproxy.Plan(view)
	for _, p := range rules.Problems {
		problems = append(problems, p.String())
	}
	if _, err := s.a.plant.Proxy.Sync(ctx, rules); err != nil {
		return fmt.Errorf("proxy at revision %d: %w", w.revision, err)
	}
	names, unusable := dns.FromObjects(w.revision, dns.ZoneParams{Domain: f.DNSDomain, Reverse: []netip.Prefix{f.ServiceCIDR, f.ClusterCIDR}}, w.services, w.slices)
	s.a.plant.Resolver.SetZone(dns.Build(names))
	s.tell(append(problems, unusable...))
	s.a.takeServing(w.slices)
	return nil
}

// tell logs what could not be used, when that changes.
func (s *syncer) tell(problems []string) {
	if text := fmt.Sprint(problems); text != s.problems {
		s.problems = text
		for _, p := range problems {
			s.a.log.Warn("a part of the network could not be used", "problem", p)
		}
	}
}

func (s *syncer) applied(revision int64, changed bool) {
	if s.a.applied.Swap(revision) != revision {
		s.a.metrics.applied.Set(float64(revision))
		if changed {
			s.a.toBeat.raise()
		}
	}
}

func (s *syncer) scrub(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	found, err := s.a.plant.Proxy.Scrub(ctx)
	if err != nil {
		s.a.log.Warn("the kernel's service rules cannot be checked", "error", err)
		return
	}
	s.a.metrics.repairs.Add(float64(len(found.Findings) + found.Omitted))
	for _, f := range found.Findings {
		s.a.log.Warn("the kernel's service rules had changed", "finding", f, "repaired", found.Repaired)
	}
}

// routes lists the ways to the other nodes' pods.
func (a *Agent) routes(nodes []*balsav1.Node) (routes []podnet.NodeRoute, problems []string) {
	for _, n := range nodes {
		if n.GetMetadata().GetName() == a.cfg.Name || n.GetSpec().GetPodCidr() == "" {
			continue
		}
		route, err := routeTo(n)
		if err != nil {
			problems = append(problems, fmt.Sprintf("nodes/%s: %v", n.GetMetadata().GetName(), err))
			continue
		}
		routes = append(routes, route)
	}
	return routes, problems
}

func routeTo(n *balsav1.Node) (podnet.NodeRoute, error) {
	cidr, err := netip.ParsePrefix(n.GetSpec().GetPodCidr())
	if err != nil {
		return podnet.NodeRoute{}, fmt.Errorf("spec.podCIDR: %w", err)
	}
	for _, address := range n.GetStatus().GetAddresses() {
		if address.GetType() != "InternalIP" {
			continue
		}
		ip, err := netip.ParseAddr(address.GetAddress())
		if err != nil {
			return podnet.NodeRoute{}, fmt.Errorf("status.addresses: %w", err)
		}
		return podnet.NodeRoute{PodCIDR: cidr, NodeIP: ip}, nil
	}
	return podnet.NodeRoute{}, errors.New("status.addresses names no InternalIP: its pods cannot be reached from here")
}

// takeServing notes which addresses services send connections to, and wakes the pods
// that wait for theirs to be taken out.
func (a *Agent) takeServing(slices []*balsav1.EndpointSlice) {
	serving := map[string]bool{}
	for _, slice := range slices {
		for _, e := range slice.GetEndpoints() {
			if c := e.GetConditions(); c == nil || c.Ready == nil || *c.Ready {
				for _, ip := range e.GetAddresses() {
					serving[ip] = true
				}
			}
		}
	}
	var stopping []string
	for _, p := range a.set.allPods() {
		if p.GetMetadata().GetDeletionTimestamp() != nil {
			stopping = append(stopping, p.GetMetadata().GetUid())
		}
	}
	a.mu.Lock()
	a.serving = serving
	a.mu.Unlock()
	a.wakeAll(stopping)
}
