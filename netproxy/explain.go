package netproxy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Connection is one that might be made, after a service's address has been
// translated: To and Port are the endpoint's.
type Connection struct {
	From, To netip.Addr
	Protocol Protocol
	Port     uint16
}

// Verdict is what policies say of a connection.
type Verdict struct {
	Allowed bool
	// Egress is decided at the pod that connects, Ingress at the pod that is
	// connected to. A connection needs both.
	Egress, Ingress Decision
	// Problems are those of the policies that were looked at, and of those that have
	// not begun yet.
	Problems []Problem
}

// Decision is what the policies of one pod say in one direction.
type Decision struct {
	Allowed bool
	// Limited is false if no policy selects the pod in the direction, or if the
	// address is none of a known pod: then everything is allowed.
	Limited bool
	// Policies that select the pod, as namespace/name, sorted.
	Policies []string
	// Policy, if the connection is allowed because of a rule, is the one that
	// has it; Rule is the rule's index in its ingress or egress.
	Policy string
	Rule   int
}

// Field is the path of the rule that decided; empty if none did.
func (d Decision) Field(direction Direction) string {
	if d.Policy == "" {
		return ""
	}
	if direction == Egress {
		return fmt.Sprintf("spec.egress[%d]", d.Rule)
	}
	return fmt.Sprintf("spec.ingress[%d]", d.Rule)
}

// Explain judges a connection by the policies of o, whose Pods hold those of the
// two ends that are pods. It runs the code that the plan runs. A pod always
// reaches itself; that a node always reaches its own pods, only the caller can
// know.
func Explain(o Objects, c Connection) Verdict {
	var v Verdict
	if c.From == c.To {
		return Verdict{Allowed: true, Egress: Decision{Allowed: true}, Ingress: Decision{Allowed: true}}
	}
	pairs := o.pairs()
	policies, problems := readPolicies(pairs)
	v.Egress = decide(o.Pods, policies, Egress, c.From, c.To, c)
	v.Ingress = decide(o.Pods, policies, Ingress, c.To, c.From, c)
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	for _, p := range problems {
		if slices.ContainsFunc(slices.Concat(v.Egress.Policies, v.Ingress.Policies), func(name string) bool { return p.Object == "networkpolicies/"+name }) {
			v.Problems = append(v.Problems, p)
		}
	}
	v.Problems = append(v.Problems, unbegun(o.Pods, pairs, c)...)
	return v
}

func decide(pods []LocalPod, policies []*Policy, d Direction, of, other netip.Addr, c Connection) Decision {
	out := Decision{Allowed: true}
	for i := len(pods) - 1; i >= 0; i-- { // of two pods with one address, the later counts
		if pods[i].IP != of {
			continue
		}
		p := profileOf(&pods[i], policies, d)
		if p == nil {
			break
		}
		out.Limited = true
		for _, policy := range p.policies {
			out.Policies = append(out.Policies, policy.Namespace+"/"+policy.Name)
		}
		j := slices.IndexFunc(p.boxes, func(b box) bool { return b.matches(c.Protocol, c.Port, other) })
		if out.Allowed = j >= 0; out.Allowed {
			out.Policy, out.Rule = p.boxes[j].policy.Namespace+"/"+p.boxes[j].policy.Name, p.boxes[j].rule
		}
		break
	}
	return out
}

// readPolicies reads what is enforced, sorted by name.
func readPolicies(pairs []policyPair) (out []*Policy, problems []Problem) {
	for _, pair := range pairs {
		policy, complaints := pair.read()
		problems = append(problems, complaints...)
		if policy != nil {
			out = append(out, policy)
		}
	}
	slices.SortStableFunc(out, comparePolicies)
	return out, problems
}

// pairs brings policies and slices of one name together.
func (o *Objects) pairs() []policyPair {
	out := make([]policyPair, 0, len(o.PolicySlices))
	at := make(map[objectName]int, len(o.PolicySlices))
	for _, s := range o.PolicySlices {
		at[nameOf(s.GetMetadata())] = len(out)
		out = append(out, policyPair{slice: s})
	}
	for _, p := range o.Policies {
		if i, found := at[nameOf(p.GetMetadata())]; found {
			out[i].policy = p
			continue
		}
		out = append(out, policyPair{policy: p})
	}
	return out
}

// unbegun are the policies that would have a say about the pods at the two ends, but
// are not in force yet as users wrote them.
func unbegun(pods []LocalPod, pairs []policyPair, c Connection) (problems []Problem) {
	for _, pair := range pairs {
		if !pair.pending() || pair.slice != nil && !pair.whole() { // of that, reading it complains
			continue
		}
		m := pair.policy.GetMetadata()
		selector, err := selectorOf(pair.policy.GetSpec())
		if err != nil || !slices.ContainsFunc(pods, func(p LocalPod) bool {
			return (p.IP == c.From || p.IP == c.To) && p.Namespace == m.GetNamespace() && selector.Matches(p.Labels)
		}) {
			continue
		}
		reason := fmt.Sprintf("generation %d has not begun: servers have not told yet whom its selectors stand for", m.GetGeneration())
		if pair.whole() {
			reason += fmt.Sprintf("; until then generation %d is in force", pair.slice.GetObservedGeneration())
		}
		problems = append(problems, Problem{Object: policyObject(m.GetNamespace(), m.GetName()), Reason: reason})
	}
	return problems
}
