package netproxy

import (
	"fmt"
	"net/netip"
	"slices"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
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
	// Problems are those of the policies that were looked at.
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
	policies, problems := readPolicies(o.Policies, o.PolicySlices)
	v.Egress = decide(o.Pods, policies, Egress, c.From, c.To, c)
	v.Ingress = decide(o.Pods, policies, Ingress, c.To, c.From, c)
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	for _, p := range problems {
		if slices.ContainsFunc(slices.Concat(v.Egress.Policies, v.Ingress.Policies), func(name string) bool { return p.Object == "networkpolicies/"+name }) {
			v.Problems = append(v.Problems, p)
		}
	}
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

// readPolicies pairs policies with their slices, sorted by name.
func readPolicies(policies []*balsav1.NetworkPolicy, resolved []*balsav1.NetworkPolicySlice) (out []*Policy, problems []Problem) {
	byName := make(map[objectName]*balsav1.NetworkPolicySlice, len(resolved))
	for _, s := range resolved {
		byName[nameOf(s.GetMetadata())] = s
	}
	for _, p := range policies {
		policy, complaints := readPolicy(p, byName[nameOf(p.GetMetadata())])
		problems = append(problems, complaints...)
		if policy != nil {
			out = append(out, policy)
		}
	}
	slices.SortStableFunc(out, comparePolicies)
	return out, problems
}
