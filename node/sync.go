package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/podnet"
	"github.com/balsa-run/balsa/object"
)

// syncer keeps routes, proxy and resolver at one revision of the set. It is given
// what has changed, and gives each of them the same: what an update costs depends
// on what it is about, not on how much there is.
type syncer struct {
	a     *Agent
	proxy *netproxy.Tracker
	zone  *dns.Tracker
	nodes map[string]*balsav1.Node
	pools map[string]*balsav1.AddressPool
	local map[string]netproxy.LocalPod // by uid, as the proxy's tracker has them
	// unsaved is what servers have told and nobody was told to be applied.
	unsaved map[string]object.Message
	saves   int

	// What has not been applied yet, also after a failure.
	routesDue, proxyDue, zoneDue bool
	nextScan, lastFinish         time.Time
}

func newSyncer(a *Agent) *syncer {
	f := a.facts
	return &syncer{
		a:     a,
		proxy: netproxy.NewTracker(netproxy.NodeParams{Name: a.cfg.Name, PodCIDR: f.PodCIDR, ClusterCIDR: f.ClusterCIDR, ServiceCIDR: f.ServiceCIDR, NodeIP: a.cfg.NodeIP}),
		zone:  dns.NewTracker(dns.ZoneParams{Domain: f.DNSDomain, Pods: f.ClusterCIDR, Reverse: []netip.Prefix{f.ServiceCIDR, f.ClusterCIDR}}),
		nodes: map[string]*balsav1.Node{}, pools: map[string]*balsav1.AddressPool{}, local: map[string]netproxy.LocalPod{}, unsaved: map[string]object.Message{},
		routesDue: true, proxyDue: true, zoneDue: true, // there is something to apply even if the cluster is empty
		nextScan: a.cfg.Clock.Now().Add(scrubEvery),
	}
}

// syncLoop applies the newest state, however many were in between, and tells the
// revision only when proxy and resolver both have it. The first change after a
// pause is applied at once, those that follow are gathered.
func (a *Agent) syncLoop(ctx context.Context) error {
	s := newSyncer(a)
	pause := a.newRetry()
	rest := scrubEvery
	for {
		if err := a.toSync.wait(ctx, a.cfg.Clock, rest); err != nil {
			return err
		}
		// A clock that was set back must not stop the loop.
		if err := sleep(ctx, a.cfg.Clock, min(s.lastFinish.Add(syncSettle).Sub(a.cfg.Clock.Now()), syncSettle)); err != nil {
			return err
		}
		err := s.sync(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.lastFinish = a.cfg.Clock.Now()
		a.metrics.synced(err)
		if err != nil {
			a.log.Error("services are not up to date on this node; trying again", "error", err)
			a.nodeEvent(pod.Event{Warning: true, Reason: "ServiceSyncFailed", Message: err.Error()})
			rest = pause.delay()
			continue
		}
		pause.reset()
		rest = scrubEvery
		if a.behind {
			rest = heldBack
		}
	}
}

func (s *syncer) sync(ctx context.Context) error {
	if _, synced := s.a.set.position(); !synced || s.a.held() {
		return nil
	}
	n := s.a.set.takeNews()
	for _, key := range sortedKeys(n.changed) {
		s.take(key, n.changed[key])
	}
	for _, key := range n.told {
		s.unsaved[key] = n.changed[key]
	}
	if !n.fromServer { // of two parts of a set from disk the services may be the newer one
		n.revision = max(n.revision, s.a.acknowledged.Load())
	}
	s.takePods()
	rules, changed := s.proxyDue, s.routesDue || s.proxyDue || s.zoneDue
	if err := s.apply(ctx, n.revision); err != nil {
		s.a.rules.failed(err)
		return err
	}
	if rules {
		s.a.rules.set(s.local, s.proxy.Pending)
	}
	s.applied(n.revision, changed)
	s.a.departed.add(s.proxy.TakeGone())
	if n.fromServer {
		s.a.announce(s.announced())
	}
	if now := s.a.cfg.Clock.Now(); s.a.proxyTouched.Swap(false) || !now.Before(s.nextScan) {
		s.nextScan = now.Add(scrubEvery)
		s.scrub(ctx)
	}
	return nil
}

// take hands an object to whom it is about; nil: it is gone.
func (s *syncer) take(key string, m object.Message) {
	kind, namespace, name, ok := object.ParseKey(key)
	if !ok {
		return
	}
	switch kind.Name {
	case "Node":
		s.routesDue = true
		takeInto(s.nodes, name, m)
	case "AddressPool":
		takeInto(s.pools, name, m)
	case "Namespace":
		s.takeName(kind.Name, namespace, name, m)
	case "Service", "EndpointSlice":
		s.proxyDue = true
		s.takeName(kind.Name, namespace, name, m)
		s.takeService(namespace, name, m, kind.Name == "Service")
	case "NetworkPolicy":
		s.proxyDue = true
		if policy, ok := m.(*balsav1.NetworkPolicy); ok {
			s.proxy.SetPolicy(policy)
		} else {
			s.proxy.DeletePolicy(namespace, name)
		}
	case "NetworkPolicySlice":
		s.proxyDue = true
		if slice, ok := m.(*balsav1.NetworkPolicySlice); ok {
			s.proxy.SetPolicySlice(slice)
		} else {
			s.proxy.DeletePolicySlice(namespace, name)
		}
	}
}

// takeInto keeps an object by name, or forgets it.
func takeInto[M object.Message](into map[string]M, name string, m object.Message) {
	if m, ok := m.(M); ok {
		into[name] = m
		return
	}
	delete(into, name)
}

func (s *syncer) takeName(kind, namespace, name string, m object.Message) {
	s.zoneDue = true
	if m != nil {
		s.zone.Upsert(m)
	} else {
		s.zone.Delete(kind, namespace, name)
	}
}

func (s *syncer) takeService(namespace, name string, m object.Message, isService bool) {
	switch m := m.(type) {
	case *balsav1.Service:
		s.proxy.SetService(m)
	case *balsav1.EndpointSlice:
		s.proxy.SetSlice(m)
	default:
		if isService {
			s.proxy.DeleteService(namespace, name)
		} else {
			s.proxy.DeleteSlice(namespace, name)
		}
	}
}

// takePods tells the proxy which pods are on this node. Those that have gone are
// told first: another pod may have the address of one by now.
func (s *syncer) takePods() {
	now := s.a.localPods(s.local)
	if !maps.EqualFunc(s.local, now, sameLocalPod) {
		s.a.plant.Resolver.SetClients(dns.NewClients(s.a.searches(now)))
	}
	for _, uid := range sortedKeys(s.local) {
		old := s.local[uid]
		if next, stays := now[uid]; !stays || next.IP != old.IP {
			s.proxy.DeletePod(old.IP, old.Namespace, old.Name)
			s.proxyDue = true
		}
	}
	for _, uid := range sortedKeys(now) {
		if old, known := s.local[uid]; !known || !sameLocalPod(old, now[uid]) {
			s.proxy.SetPod(now[uid])
			s.proxyDue = true
		}
	}
	s.local = now
}

// apply sets routes first, so that the way is there before anything is sent.
// A route that cannot be set does not keep services from being up to date.
func (s *syncer) apply(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	if s.routesDue {
		s.syncRoutes(ctx)
	}
	if s.proxyDue {
		rules := s.proxy.Ruleset(revision)
		result, err := s.a.plant.Proxy.Sync(ctx, rules)
		if err != nil {
			return fmt.Errorf("proxy at revision %d: %w", revision, err)
		}
		s.proxyDue = false
		var problems []string
		for _, p := range append(slices.Clone(rules.Problems), result.Problems...) {
			problems = append(problems, p.String())
		}
		s.a.notices.tell("proxy", problems)
	}
	if s.zoneDue {
		zone, _ := s.zone.Zone(revision)
		s.a.plant.Resolver.SetZone(zone)
		s.zoneDue = false
		s.a.notices.tell("resolver", s.zone.Problems())
	}
	return nil
}

func (s *syncer) syncRoutes(ctx context.Context) {
	routes, problems := s.a.routes(slices.SortedFunc(maps.Values(s.nodes), func(a, b *balsav1.Node) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	}))
	s.routesDue = false // what could not be set is tried again by the network's scrub
	err := s.a.plant.Network.SyncRoutes(ctx, routes)
	s.a.notices.tell("nodes", problems)
	s.a.notices.tell("routes", linesOf(err))
}

// announced are the addresses that this node is to answer for.
func (s *syncer) announced() (out []netip.Addr) {
	for _, pool := range s.pools {
		for _, a := range pool.GetStatus().GetAnnounced() {
			if ip, err := netip.ParseAddr(a.GetIp()); err == nil && a.GetNodeName() == s.a.cfg.Name {
				out = append(out, ip)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// applied tells servers, once an agent after this one would know it as well.
func (s *syncer) applied(revision int64, changed bool) {
	if err := s.saveApplied(revision); err != nil {
		s.a.log.Warn("what is applied cannot be saved: an agent that is started in the next second and finds no server goes back behind it", "error", err)
	}
	s.a.acknowledged.Store(revision)
	if s.a.applied.Swap(revision) != revision {
		s.a.metrics.applied.Set(float64(revision))
		if changed {
			s.a.toBeat.raise()
		}
	}
}

// saveApplied keeps what could not be saved for the next time.
func (s *syncer) saveApplied(revision int64) error {
	if len(s.unsaved) == 0 || s.a.abandoned.Load() {
		return nil
	}
	if err := s.a.journal.saveChanges(revision, s.unsaved); err != nil {
		return err
	}
	clear(s.unsaved)
	if s.saves++; s.saves%maxChanges == 0 {
		return s.a.journal.mergeChanges(maxChanges)
	}
	return nil
}

func (s *syncer) scrub(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	found, err := s.a.plant.Proxy.Scrub(ctx)
	if err != nil {
		s.a.log.Warn("the kernel's service rules cannot be checked", "error", err)
		return
	}
	if len(found.Findings) == 0 {
		return
	}
	s.a.metrics.repairs.Add(float64(len(found.Findings) + found.Omitted))
	for _, f := range found.Findings {
		s.a.log.Warn("the kernel's service rules had changed", "finding", f, "repaired", found.Repaired)
	}
	s.a.nodeEvent(pod.Event{Warning: true, Reason: "ServiceRulesRepaired", Message: "somebody else had changed the service rules: " + some(found.Findings)})
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
		return podnet.NodeRoute{Name: n.GetMetadata().GetName(), PodCIDR: cidr, NodeIP: ip}, nil
	}
	return podnet.NodeRoute{}, errors.New("status.addresses names no InternalIP: its pods cannot be reached from here")
}
