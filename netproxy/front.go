package netproxy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Rank decides between fronts that claim the same key: what the cluster gave
// wins over what users chose.
type rank uint8

const (
	rankClusterIP rank = iota
	rankLoadBalancer
	rankNodePort
	rankExternalIP
	rankHostPort
)

// front is one key that leads to targets: a port of a service's address, of the
// node, or a host port of a pod.
type front struct {
	key    Key
	rank   rank
	object string
	inside list
	// outside, if not nil, is for connections from outside this node.
	outside *list
	// sources are the clients that may use the front, if restricted.
	restricted bool
	sources    []addrRange
	// affinity names the group of fronts that remember clients together.
	affinity string
	timeout  time.Duration
}

// list is where connections go. Without targets they are refused, or if drop
// is set, dropped.
type list struct {
	targets []Target
	mark    Mark
	drop    bool
}

// claim orders the fronts that claim a key.
func claim(a, b *front) int {
	return cmp.Or(a.key.Compare(b.key), cmp.Compare(a.rank, b.rank), cmp.Compare(a.object, b.object))
}

func (f *front) lost(to *front) Problem {
	return Problem{Object: f.object, Reason: fmt.Sprintf("%s already belongs to %s; give one of them another address or port", f.key, to.object)}
}

// servicePlanner makes the fronts of one service port.
type servicePlanner struct {
	node     *NodeParams
	port     *ServicePort
	problems []Problem
	fronts   []front
}

func (p *servicePlanner) problem(format string, args ...any) {
	p.problems = append(p.problems, Problem{Object: p.port.object(), Reason: fmt.Sprintf(format, args...)})
}

// servicePortFronts plans one service port by itself.
func servicePortFronts(node *NodeParams, s *ServicePort) ([]front, []Problem) {
	p := servicePlanner{node: node, port: s}
	if !p.admissible() {
		return nil, p.problems
	}
	cluster := p.targets(func(*Endpoint) bool { return true })
	local := p.targets(p.local)
	p.clusterIP(cluster, local)
	external := front{inside: list{targets: cluster, mark: MarkAlways}}
	if s.ExternalLocal && len(cluster) > 0 {
		external.inside.mark = MarkForeign
		external.outside = &list{targets: local, mark: MarkNever, drop: true}
	}
	p.external(external)
	return p.fronts, p.problems
}

func (p *servicePlanner) admissible() bool {
	s := p.port
	switch {
	case !s.VIP.Is4():
		p.problem("virtual address %s is not IPv4; only IPv4 services are translated", s.VIP)
	case s.Port == 0:
		p.problem("port 0 is not allowed; use 1 to 65535")
	case s.Protocol != TCP && s.Protocol != UDP:
		p.problem("%s is not supported; use TCP or UDP", s.Protocol)
	default:
		return true
	}
	return false
}

func (p *servicePlanner) clusterIP(cluster, local []Target) {
	f := front{rank: rankClusterIP, inside: list{targets: cluster, mark: MarkForeign}}
	if p.port.InternalLocal {
		f.inside = list{targets: local, mark: MarkForeign, drop: len(cluster) > 0}
	}
	p.add(f, p.port.VIP, p.port.Port)
}

// external adds the fronts that connections from outside may come to.
func (p *servicePlanner) external(f front) {
	s := p.port
	f.rank = rankExternalIP
	for _, ip := range s.ExternalIPs {
		p.addAddress(f, ip, "external address")
	}
	f.rank = rankNodePort
	if s.NodePort != 0 {
		p.add(f, netip.Addr{}, s.NodePort)
	}
	f.rank = rankLoadBalancer
	if s.Restricted {
		f.restricted, f.sources = true, p.sources()
	}
	for _, ip := range s.LoadBalancerIPs {
		g := f
		if s.Restricted && coversAddr(f.sources, p.node.NodeIP) {
			// The node's own connections carry the balancer's address where it
			// is an address of the node.
			g.sources = union(append(slices.Clone(f.sources), oneAddr(ip)))
		}
		p.addAddress(g, ip, "load balancer's address")
	}
}

func (p *servicePlanner) sources() []addrRange {
	var ranges []addrRange
	for _, r := range p.port.SourceRanges {
		ranges = append(ranges, prefixRange(r))
	}
	return union(ranges)
}

func (p *servicePlanner) addAddress(f front, ip netip.Addr, what string) {
	if !ip.Is4() || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
		p.problem("%s %s left out: need an IPv4 address that is neither loopback nor multicast", what, ip)
		return
	}
	p.add(f, ip, p.port.Port)
}

func (p *servicePlanner) add(f front, ip netip.Addr, port uint16) {
	f.key = Key{VIP: ip, Protocol: p.port.Protocol, Port: port}
	f.object = p.port.object()
	if p.port.Affinity > 0 {
		f.timeout = p.port.Affinity
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", f.object, f.key.Protocol, f.timeout))
		f.affinity = affinityPrefix + hex.EncodeToString(sum[:6])
	}
	p.fronts = append(p.fronts, f)
}

func (p *servicePlanner) local(e *Endpoint) bool {
	if e.Node == "" {
		return p.node.PodCIDR.Contains(e.IP)
	}
	return e.Node == p.node.Name
}

// targets are the ready endpoints among the wanted ones, or else the serving
// ones, sorted and without duplicates.
func (p *servicePlanner) targets(wanted func(*Endpoint) bool) []Target {
	targets := p.collect(func(e *Endpoint) bool { return e.Ready && wanted(e) })
	if len(targets) == 0 {
		targets = p.collect(func(e *Endpoint) bool { return e.Serving && wanted(e) })
	}
	if !slices.IsSortedFunc(targets, Target.Compare) {
		slices.SortFunc(targets, Target.Compare)
	}
	targets = slices.Compact(targets)
	limit, name := MaxEndpoints, "MaxEndpoints"
	if p.port.Affinity > 0 {
		limit, name = MaxAffinityEndpoints, "MaxAffinityEndpoints"
	}
	if len(targets) > limit {
		p.note("%d ready endpoints; only the first %d by address are used (limit %s)", len(targets), limit, name)
		targets = targets[:limit]
	}
	return targets
}

// note is a problem that is told once, though two lists meet it.
func (p *servicePlanner) note(format string, args ...any) {
	problem := Problem{Object: p.port.object(), Reason: fmt.Sprintf(format, args...)}
	if !slices.Contains(p.problems, problem) {
		p.problems = append(p.problems, problem)
	}
}

func (p *servicePlanner) collect(wanted func(*Endpoint) bool) []Target {
	var targets []Target
	for i := range p.port.Endpoints {
		e := &p.port.Endpoints[i]
		if !wanted(e) {
			continue
		}
		if !e.IP.Is4() || e.Port == 0 {
			p.note("endpoint %s port %d left out: need an IPv4 address and a port from 1 to 65535", e.IP, e.Port)
			continue
		}
		if targets == nil {
			targets = make([]Target, 0, len(p.port.Endpoints))
		}
		targets = append(targets, Target{IP: e.IP, Port: e.Port})
	}
	return targets
}

// podFronts are the host ports of a pod. The pod sees its clients' addresses.
func podFronts(pod *LocalPod) ([]front, []Problem) {
	var fronts []front
	var problems []Problem
	for _, h := range pod.HostPorts {
		object := "pods/" + pod.Namespace + "/" + pod.Name
		switch {
		case h.HostPort == 0 || h.Port == 0 || h.Protocol != TCP && h.Protocol != UDP:
			problems = append(problems, Problem{object, fmt.Sprintf("host port %d to port %d by %s left out: need ports from 1 to 65535, TCP or UDP", h.HostPort, h.Port, h.Protocol)})
		case h.HostIP.IsValid() && (!h.HostIP.Is4() || h.HostIP.IsLoopback()):
			problems = append(problems, Problem{object, fmt.Sprintf("host port %d left out: hostIP %s is not an IPv4 address other than loopback", h.HostPort, h.HostIP)})
		default:
			f := front{key: Key{VIP: h.HostIP, Protocol: h.Protocol, Port: h.HostPort}, rank: rankHostPort, object: object,
				inside: list{targets: []Target{{IP: pod.IP, Port: h.Port}}, mark: MarkNever}}
			if h.HostIP.IsValid() && h.HostIP.IsUnspecified() {
				f.key.VIP = netip.Addr{}
			}
			fronts = append(fronts, f)
		}
	}
	return fronts, problems
}

// built is a front in the form of the table.
type built struct {
	hairpins []netip.Addr // filled by the tracker alone
	unit     *Unit
	chains   []Chain
}

// build makes the elements of a front, and names the chains they need.
func (f *front) build() built {
	b := built{unit: &Unit{ID: frontID(f.key)}}
	inside, outside := TableServices, TableOutside
	noEndpoints := SetNoEndpoints
	if !f.key.VIP.IsValid() {
		inside, outside, noEndpoints = TableNodePorts, TableOutsideNodePorts, SetNoEndpointsNode
	}
	n := 1 + len(f.inside.targets)
	if f.outside != nil {
		n += 1 + len(f.outside.targets)
	}
	b.unit.Elements = make([]Element, 0, n)
	if len(f.inside.targets) == 0 && !f.inside.drop {
		b.element(Element{Set: noEndpoints, Key: keyBytes(f.key)})
	} else {
		b.list(f, inside, &f.inside)
	}
	if f.outside != nil {
		b.list(f, outside, f.outside)
	}
	if f.restricted {
		b.restrict(f)
	}
	return b
}

func (b *built) element(e Element) { b.unit.Elements = append(b.unit.Elements, e) }

func (b *built) list(f *front, t Table, l *list) {
	key := keyBytes(f.key)
	switch {
	case len(l.targets) == 0:
		b.element(Element{Set: t.Set(), Key: key, Value: verdictDrop})
	case f.affinity != "":
		b.element(Element{Set: t.Set(), Key: key, Value: verdictGoto + b.remember(f, l)})
	default:
		c := classChain(t, l.mark, len(l.targets))
		b.chains = append(b.chains, c)
		b.element(Element{Set: t.Set(), Key: key, Value: verdictGoto + c.Name})
		for i, target := range l.targets {
			b.element(Element{Set: slotsPrefix + c.Name, Key: slotBytes(f.key, i), Value: targetBytes(target)})
		}
	}
}

// remember adds the chains of a front with affinity. Lists of one group that are
// equal share the chain, and all lists the endpoints' sets.
func (b *built) remember(f *front, l *list) string {
	var members string
	for _, t := range l.targets {
		e := Chain{Name: fmt.Sprintf("%s-%s-%d", f.affinity, t.IP, t.Port), Kind: ChainAffinityEndpoint, Target: t, Timeout: f.timeout}
		b.chains = append(b.chains, e)
		members += e.Name + " "
	}
	name := f.affinity + "-external"
	switch {
	case l == f.outside:
		name = f.affinity + "-outside"
	case f.rank == rankClusterIP:
		name = f.affinity + "-internal"
	}
	b.chains = append(b.chains, Chain{Name: name, Kind: ChainAffinity, Mark: l.mark, Members: members})
	return name
}

func (b *built) restrict(f *front) {
	key := keyBytes(f.key)
	b.element(Element{Set: SetRestricted, Key: key})
	for _, r := range f.sources {
		b.element(Element{Set: SetSources, Key: key + r.first(), End: key + r.last()})
	}
}

// hairpins are the targets on this node: a pod that reaches itself through the
// front must be masqueraded. Elsewhere a pod cannot be source and target at
// once, so a node's set stays as small as its pod count.
func (f *front) hairpins(node *NodeParams, each func(netip.Addr)) {
	for _, t := range f.inside.targets {
		if node.PodCIDR.Contains(t.IP) {
			each(t.IP)
		}
	}
	if f.outside == nil {
		return
	}
	for _, t := range f.outside.targets {
		if node.PodCIDR.Contains(t.IP) {
			each(t.IP)
		}
	}
}
