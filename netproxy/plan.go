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
	// MaxServicePorts bounds the fronts of one ruleset: the ports of all
	// addresses of services, node ports, and host ports.
	MaxServicePorts = 100_000
	// MaxEndpoints bounds the endpoints of one service port, and so the number
	// of classes (chains) of a ruleset.
	MaxEndpoints = 4096
	// MaxAffinityEndpoints bounds those of a service port with affinity, which
	// costs a chain and two rules an endpoint.
	MaxAffinityEndpoints = 256
	// MaxProfileElements bounds the disjoint ranges of ports and addresses that
	// the policies of a pod allow in a direction.
	MaxProfileElements = 32_768
)

// Ruleset is what the kernel should hold: a pure function of a View. Rulesets
// are compared by Diff; they are not changed once made, and what two of them have
// in common they may share.
type Ruleset struct {
	Revision int64
	Params   Params
	// Problems are sorted.
	Problems []Problem
	content  *content
}

// Params is the part of a ruleset that is baked into rules instead of being
// set elements; when it changes, everything is replaced at once.
type Params struct {
	PodCIDR     netip.Prefix
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	NodeIP      netip.Addr
}

// Plan computes the ruleset of a view from nothing. Tracker does the same step by
// step; the two must agree.
func Plan(v View) Ruleset {
	node := v.node()
	var problems []Problem
	var fronts []front
	for i := range v.Services {
		f, complaints := servicePortFronts(&node, &v.Services[i])
		fronts, problems = append(fronts, f...), append(problems, complaints...)
	}
	pods := currentPods(v.Pods)
	for _, pod := range pods {
		f, complaints := podFronts(pod)
		fronts, problems = append(fronts, f...), append(problems, complaints...)
	}
	p := planner{node: &node, edit: newEdit(nil), chains: map[string]bool{}, hairpins: map[netip.Addr]bool{}}
	p.fronts(fronts)
	p.policies(pods, v.Policies)
	problems = append(append(problems, v.Problems...), p.problems...)
	slices.SortFunc(problems, Problem.Compare)
	return Ruleset{Revision: v.Revision, Params: v.params(), Problems: slices.Compact(problems), content: p.edit.next}
}

// currentPods drops pods whose address a later one has, and those without one.
func currentPods(pods []LocalPod) []*LocalPod {
	byIP := make(map[netip.Addr]int, len(pods))
	for i := range pods {
		byIP[pods[i].IP] = i
	}
	var out []*LocalPod
	for i := range pods {
		if byIP[pods[i].IP] == i && pods[i].IP.Is4() {
			out = append(out, &pods[i])
		}
	}
	return out
}

type planner struct {
	node     *NodeParams
	edit     *edit
	chains   map[string]bool
	hairpins map[netip.Addr]bool
	problems []Problem
}

// fronts gives each key to the first that claims it.
func (p *planner) fronts(fronts []front) {
	order := make([]*front, len(fronts))
	for i := range fronts {
		order[i] = &fronts[i]
	}
	slices.SortStableFunc(order, claim)
	var winner *front
	planned := 0
	for _, f := range order {
		switch {
		case winner != nil && winner.key == f.key:
			p.problems = append(p.problems, f.lost(winner))
			continue
		case planned == MaxServicePorts:
			p.problems = append(p.problems, Problem{Object: f.object, Reason: overLimit(f.key)})
			continue
		}
		winner = f
		planned++
		b := f.build()
		p.edit.set(b.unit)
		for _, c := range b.chains {
			p.chain(c)
		}
		f.hairpins(p.node, p.hairpin)
	}
}

func overLimit(k Key) string {
	return fmt.Sprintf("%s left out: a node translates at most %d of them (limit MaxServicePorts)", k, MaxServicePorts)
}

func (p *planner) chain(c Chain) {
	if !p.chains[c.Name] {
		p.chains[c.Name] = true
		p.edit.set(&Unit{ID: chainID(c.Name), Chain: &c})
	}
}

func (p *planner) hairpin(a netip.Addr) {
	if !p.hairpins[a] {
		p.hairpins[a] = true
		p.edit.set(hairpinUnit(a))
	}
}

func hairpinUnit(a netip.Addr) *Unit {
	return &Unit{ID: sortHairpin + addrBytes(a), Elements: []Element{{Set: SetHairpin, Key: addrBytes(a, a)}}}
}

func (p *planner) policies(pods []*LocalPod, policies []Policy) {
	byNamespace := map[string][]*Policy{}
	for i := range policies {
		byNamespace[policies[i].Namespace] = append(byNamespace[policies[i].Namespace], &policies[i])
	}
	local := map[string][]*LocalPod{}
	for _, pod := range pods {
		local[pod.Namespace] = append(local[pod.Namespace], pod)
	}
	for namespace, pods := range local {
		slices.SortFunc(pods, comparePods)
		slices.SortStableFunc(byNamespace[namespace], comparePolicies)
		units, problems := policyUnits(pods, byNamespace[namespace])
		for _, u := range units {
			p.edit.set(u)
		}
		p.problems = append(p.problems, problems...)
	}
}

func comparePods(a, b *LocalPod) int { return a.IP.Compare(b.IP) }

// Each calls f for every unit, in an order that does not depend on history.
func (r *Ruleset) Each(f func(*Unit)) { r.content.each(f) }

// Elements counts the elements.
func (r *Ruleset) Elements() (n int) {
	r.content.each(func(u *Unit) { n += len(u.Elements) })
	return n
}

// Known reports whether the ruleset translates or refuses connections to a key.
func (r *Ruleset) Known(k Key) bool { return k.isIPv4() && r.content.get(frontID(k)) != nil }

func (k Key) isIPv4() bool { return !k.VIP.IsValid() || k.VIP.Is4() }

// Limits reports whether policies limit a pod of this node in a direction.
func (r *Ruleset) Limits(pod netip.Addr, d Direction) bool {
	sort := sortIngress
	if d == Egress {
		sort = sortEgress
	}
	return pod.Is4() && r.content.get(sort+addrBytes(pod)) != nil
}

// Without returns the ruleset without some units. It is for what a kernel
// refuses; chains and hairpins that only those needed do no harm.
func (r *Ruleset) Without(ids map[string]bool) Ruleset {
	e := newEdit(r.content)
	for id := range ids {
		e.remove(id)
	}
	out := *r
	out.content = e.next
	return out
}

// With returns the ruleset with one more unit, or another one in its place.
func (r *Ruleset) With(u *Unit) Ruleset {
	e := newEdit(r.content)
	e.set(u)
	out := *r
	out.content = e.next
	return out
}

// Unit returns a unit by its ID, or nil.
func (r *Ruleset) Unit(id string) *Unit { return r.content.get(id) }

// String prints the ruleset, a line an element.
func (r Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d pods %s services %s node %s\n", r.Revision, r.Params.PodCIDR, r.Params.ServiceCIDR, r.Params.NodeIP)
	for _, u := range r.content.sorted() {
		if u.Chain != nil {
			fmt.Fprintln(&b, u.Chain)
		}
		for _, e := range u.Elements {
			fmt.Fprintln(&b, e)
		}
		if u.Stamp != "" {
			fmt.Fprintf(&b, "  by %s\n", strings.TrimSpace(u.Stamp))
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}
