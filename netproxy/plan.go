package netproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Limits of one node's ruleset. What exceeds them is left out and reported as
// a Problem; nothing is cut silently.
const (
	// MaxServicePorts bounds the service ports of one ruleset.
	MaxServicePorts = 100_000
	// MaxEndpoints bounds the endpoints of one service port, and so the number
	// of classes (chains) of a ruleset.
	MaxEndpoints = 4096
)

// Ruleset is what the kernel should hold. It is a pure function of a View and
// compares with ==-like semantics through Diff: two equal rulesets have an
// empty difference.
type Ruleset struct {
	Revision int64
	Params   Params
	// Services is sorted by Key, without duplicates.
	Services []Service
	// Hairpin holds the addresses of this node's endpoints, sorted: a pod that
	// reaches itself through a service must be masqueraded.
	Hairpin  []netip.Addr
	Problems []Problem
}

// Params is the part of a ruleset that is baked into rules instead of being
// set elements; when it changes, everything is replaced at once.
type Params struct {
	PodCIDR     netip.Prefix
	ServiceCIDR netip.Prefix
	NodeIP      netip.Addr
}

// Service is one planned service port. Its class, the number of its targets,
// chooses the chain that translates it; class 0 is refused.
type Service struct {
	Key Key
	// Targets is sorted; a target's index is its slot.
	Targets []Target
}

// Class is the number of targets.
func (s Service) Class() int { return len(s.Targets) }

// Plan computes the ruleset of a view.
func Plan(v View) Ruleset {
	p := planner{view: &v}
	r := Ruleset{
		Revision: v.Revision,
		Params:   Params{PodCIDR: v.PodCIDR.Masked(), ServiceCIDR: v.ServiceCIDR.Masked(), NodeIP: v.NodeIP},
		Problems: slices.Clone(v.Problems),
	}
	ordered := p.ordered()
	r.Services = make([]Service, 0, len(ordered))
	var previous *ServicePort
	for _, s := range ordered {
		if !p.admissible(s, previous, len(r.Services)) {
			continue
		}
		r.Services = append(r.Services, Service{Key: s.key(), Targets: p.targets(s)})
		previous = s
	}
	r.Hairpin = p.hairpin(r.Services)
	r.Problems = append(r.Problems, p.problems...)
	return r
}

type planner struct {
	view     *View
	problems []Problem
}

func (p *planner) problem(s *ServicePort, format string, args ...any) {
	p.problems = append(p.problems, Problem{Object: s.object(), Reason: fmt.Sprintf(format, args...)})
}

// ordered sorts the service ports by key; ports that claim the same key are
// ordered by name, so that the winner does not depend on the view's order.
func (p *planner) ordered() []*ServicePort {
	ports := make([]*ServicePort, len(p.view.Services))
	for i := range p.view.Services {
		ports[i] = &p.view.Services[i]
	}
	slices.SortStableFunc(ports, func(a, b *ServicePort) int {
		if c := a.key().Compare(b.key()); c != 0 {
			return c
		}
		return strings.Compare(a.object(), b.object())
	})
	return ports
}

// admissible reports a service port that cannot be planned.
func (p *planner) admissible(s, previous *ServicePort, planned int) bool {
	switch {
	case !s.VIP.Is4():
		p.problem(s, "virtual address %s is not IPv4; only IPv4 services are translated", s.VIP)
	case s.Port == 0:
		p.problem(s, "port 0 is not allowed; use 1 to 65535")
	case s.Protocol != TCP && s.Protocol != UDP:
		p.problem(s, "%s is not supported; use TCP or UDP", s.Protocol)
	case previous != nil && previous.key() == s.key():
		p.problem(s, "%s already belongs to %s; give one of them another address or port", s.key(), previous.object())
	case planned >= MaxServicePorts:
		p.problem(s, "left out: a node translates at most %d service ports", MaxServicePorts)
	default:
		return true
	}
	return false
}

// targets are the ready endpoints, or else the serving ones, sorted and without
// duplicates.
func (p *planner) targets(s *ServicePort) []Target {
	targets := p.collect(s, func(e *Endpoint) bool { return e.Ready })
	if len(targets) == 0 {
		targets = p.collect(s, func(e *Endpoint) bool { return e.Serving })
	}
	if !slices.IsSortedFunc(targets, Target.Compare) {
		slices.SortFunc(targets, Target.Compare)
	}
	targets = slices.Compact(targets)
	if len(targets) > MaxEndpoints {
		p.problem(s, "%d ready endpoints; only the first %d by address are used", len(targets), MaxEndpoints)
		targets = targets[:MaxEndpoints]
	}
	return targets
}

func (p *planner) collect(s *ServicePort, wanted func(*Endpoint) bool) []Target {
	var targets []Target
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if !wanted(e) {
			continue
		}
		if !e.IP.Is4() || e.Port == 0 {
			p.problem(s, "endpoint %s port %d left out: need an IPv4 address and a port from 1 to 65535", e.IP, e.Port)
			continue
		}
		if targets == nil {
			targets = make([]Target, 0, len(s.Endpoints))
		}
		targets = append(targets, Target{IP: e.IP, Port: e.Port})
	}
	return targets
}

// hairpin collects this node's own targets. Elsewhere a pod cannot be source
// and target at once, so a node's set stays as small as its pod count.
func (p *planner) hairpin(services []Service) []netip.Addr {
	var local []netip.Addr
	for _, s := range services {
		for _, t := range s.Targets {
			if p.view.PodCIDR.Contains(t.IP) {
				local = append(local, t.IP)
			}
		}
	}
	slices.SortFunc(local, netip.Addr.Compare)
	return slices.Compact(local)
}

// Find returns the planned service of a key.
func (r *Ruleset) Find(k Key) (Service, bool) {
	i, ok := slices.BinarySearchFunc(r.Services, k, func(s Service, k Key) int { return s.Key.Compare(k) })
	if !ok {
		return Service{}, false
	}
	return r.Services[i], true
}

// Classes are the distinct endpoint counts above zero, ascending.
func (r *Ruleset) Classes() []int {
	var seen [MaxEndpoints + 1]bool
	var classes []int
	for _, s := range r.Services {
		if n := s.Class(); n > 0 && !seen[n] {
			seen[n] = true
			classes = append(classes, n)
		}
	}
	slices.Sort(classes)
	return classes
}

// String prints the ruleset, one line a service.
func (r Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d pods %s services %s node %s\n", r.Revision, r.Params.PodCIDR, r.Params.ServiceCIDR, r.Params.NodeIP)
	for _, s := range r.Services {
		fmt.Fprintf(&b, "%s -> ", s.Key)
		if s.Class() == 0 {
			b.WriteString("reject\n")
			continue
		}
		fmt.Fprintf(&b, "n%d", s.Class())
		for _, t := range s.Targets {
			fmt.Fprintf(&b, " %s:%d", t.IP, t.Port)
		}
		b.WriteByte('\n')
	}
	for _, a := range r.Hairpin {
		fmt.Fprintf(&b, "hairpin %s\n", a)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}
