package netproxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// A profile is what a set of policies allows in one direction. Pods that the
// same policies select share it, so that a thousand peers of a policy are a
// thousand elements, however many pods it has on the node.

func profilePrefix(d Direction) string {
	if d == Egress {
		return "to-"
	}
	return "from-"
}

// policyUnits plans the policies of one namespace: pods and policies are those of
// the namespace, policies sorted.
func policyUnits(pods []*LocalPod, policies []*Policy) (units []*Unit, problems []Problem) {
	made := map[string]bool{}
	for _, pod := range pods {
		for _, d := range []Direction{Egress, Ingress} {
			p := profileOf(pod, policies, d)
			if p == nil {
				continue
			}
			units = append(units, p.podUnit(pod))
			if made[p.name] {
				continue
			}
			made[p.name] = true
			elements, over := p.elements()
			if over {
				problems = append(problems, Problem{Object: policyObject(pod.Namespace, p.policies[0].Name),
					Reason: fmt.Sprintf("the policies of pod %s allow more than %d ranges of ports and addresses %s (limit MaxProfileElements); connections over it are refused",
						pod.Name, MaxProfileElements, strings.ToLower(d.String()))})
			}
			units = append(units, &Unit{ID: chainID(p.name), Chain: &Chain{Name: p.name, Kind: ChainProfile, Direction: d}},
				&Unit{ID: profileID(p.name), Elements: elements})
		}
	}
	return units, problems
}

type profile struct {
	name      string
	direction Direction
	policies  []*Policy
	boxes     []box
}

// profileOf is nil for a pod that nothing limits in the direction. Its name tells
// the policies and how the pod's named ports resolve, not what they allow: so a
// peer that comes or goes changes elements only.
func profileOf(pod *LocalPod, policies []*Policy, d Direction) *profile {
	p := profile{direction: d}
	for _, policy := range policies {
		if policy.selects(pod, d) {
			p.policies = append(p.policies, policy)
			p.boxes = append(p.boxes, policy.boxes(pod, d)...)
		}
	}
	if len(p.policies) == 0 {
		return nil
	}
	h := sha256.New()
	for _, policy := range p.policies {
		fmt.Fprintf(h, "%s\x00%s\x00", policy.Namespace, policy.Name)
		for _, r := range policy.rules {
			for _, m := range r.ports {
				if m.name != "" && d == Ingress {
					fmt.Fprintf(h, "%s %v\x00", m.name, pod.named(m))
				}
			}
		}
	}
	p.name = profilePrefix(d) + hex.EncodeToString(h.Sum(nil)[:6])
	return &p
}

// named are the ports of the pod that a match by name means.
func (pod *LocalPod) named(m portMatch) (ports []uint16) {
	for _, n := range pod.Ports {
		if n.Name == m.name && n.Protocol == m.protocol {
			ports = append(ports, n.Port)
		}
	}
	return ports
}

func (p *profile) podUnit(pod *LocalPod) *Unit {
	key := addrBytes(pod.IP)
	sort, dispatch, refused := sortIngress, SetIngressPods, SetIngressRefused
	if p.direction == Egress {
		sort, dispatch, refused = sortEgress, SetEgressPods, SetEgressRefused
	}
	u := &Unit{ID: sort + key, Elements: []Element{{Set: dispatch, Key: key, Value: verdictJump + p.name}, {Set: refused, Key: key}}}
	for _, policy := range p.policies {
		u.Stamp += fmt.Sprintf("%s@%d ", policy.Name, policy.Generation)
	}
	return u
}

// elements turns boxes, which may overlap, into disjoint ranges: the kernel
// refuses overlapping ones, depending on the order they come in. What is allowed
// whatever the port stands first; then for each protocol, the ports between two
// neighbouring bounds have one union of peers. The order of policies, rules and
// peers makes no difference.
func (p *profile) elements() (out []Element, over bool) {
	var all []addrRange
	for _, b := range p.boxes {
		if b.protocol == 0 {
			all = append(all, b.peers...)
		}
	}
	all = union(all)
	out = p.append(out, 0, 255, 0, 65535, all)
	for _, protocol := range []Protocol{TCP, UDP} {
		out = p.protocol(out, protocol, all)
	}
	if len(out) > MaxProfileElements {
		return out[:MaxProfileElements], true
	}
	return out, false
}

func (p *profile) protocol(out []Element, protocol Protocol, all []addrRange) []Element {
	var bounds []int
	for _, b := range p.boxes {
		if b.protocol == protocol {
			bounds = append(bounds, int(b.first), int(b.last)+1)
		}
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	var first int
	var held []addrRange
	for i, bound := range bounds {
		peers := subtract(p.allowed(protocol, bound), all)
		if i > 0 && slices.Equal(peers, held) {
			continue
		}
		if i > 0 {
			out = p.append(out, protocol, protocol, first, bound-1, held)
		}
		first, held = bound, peers
	}
	return out
}

// allowed is the union of the peers that may use a port.
func (p *profile) allowed(protocol Protocol, port int) []addrRange {
	var peers []addrRange
	for _, b := range p.boxes {
		if b.protocol == protocol && int(b.first) <= port && port <= int(b.last) {
			peers = append(peers, b.peers...)
		}
	}
	return union(peers)
}

func (p *profile) append(out []Element, from, to Protocol, first, last int, peers []addrRange) []Element {
	for _, r := range peers {
		lo := appendPort([]byte{byte(from), 0, 0, 0}, uint16(first))
		hi := appendPort([]byte{byte(to), 0, 0, 0}, uint16(last))
		out = append(out, Element{Set: p.name, Key: string(lo) + r.first(), End: string(hi) + r.last()})
	}
	return out
}
