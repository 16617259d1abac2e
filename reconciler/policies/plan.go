// Package policies says which addresses the selectors of each NetworkPolicy stand
// for, so that nodes need to know neither the cluster's pods nor its namespaces'
// labels. With them goes a copy of the policy, so that nodes change rules and
// addresses in one step. It refuses to judge connections: that is netproxy's, on each node.
package policies

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// MaxPods bounds the pods of a NetworkPolicySlice, counted once a peer. What is
// beyond it is left out, so that its connections are refused: a limit must not
// open what a policy closes.
const MaxPods = 5000

// Directions of rules.
const (
	Ingress = "Ingress"
	Egress  = "Egress"
)

// View is what a plan is made from.
type View struct {
	Policy *balsav1.NetworkPolicy
	// Slice is the policy's as it is, or nil.
	Slice *balsav1.NetworkPolicySlice
	// Namespaces are all; Pods gives those of one.
	Namespaces []*balsav1.Namespace
	Pods       func(namespace string) []*balsav1.Pod
}

// Actions is the outcome of a plan: one of the two, or nothing.
type Actions struct {
	Create, Update *balsav1.NetworkPolicySlice
	// LeftOut is how many pods the limit keeps out.
	LeftOut int32
}

// Empty tells whether there is nothing to write.
func (a *Actions) Empty() bool { return a.Create == nil && a.Update == nil }

// String prints the actions, a pod a line.
func (a *Actions) String() string {
	verb, s := "create", a.Create
	if s == nil {
		verb, s = "update", a.Update
	}
	if s == nil {
		return "nothing\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s generation %d\n", verb, s.GetMetadata().GetName(), s.GetObservedGeneration())
	for _, p := range s.GetPeers() {
		fmt.Fprintf(&b, "%s rule %d peer %d\n", p.GetDirection(), p.GetRule(), p.GetPeer())
		for _, pod := range p.GetPods() {
			fmt.Fprintf(&b, "  %s %s/%s", pod.GetIp(), pod.GetNamespace(), pod.GetName())
			for _, port := range pod.GetPorts() {
				fmt.Fprintf(&b, " %s=%d/%s", port.GetName(), port.GetPort(), port.GetProtocol())
			}
			b.WriteByte('\n')
		}
	}
	if n := s.GetLeftOut(); n > 0 {
		fmt.Fprintf(&b, "left out %d\n", n)
	}
	return b.String()
}

// Plan decides how the slice of a policy shall be.
func Plan(v View) (Actions, error) {
	r := resolver{View: v}
	spec := v.Policy.GetSpec()
	for i, rule := range spec.GetIngress() {
		// A named port of an ingress rule is one of the pods that the policy selects,
		// which their own node knows.
		if err := r.peers(Ingress, i, rule.GetFrom(), nil); err != nil {
			return Actions{}, err
		}
	}
	for i, rule := range spec.GetEgress() {
		if err := r.peers(Egress, i, rule.GetTo(), rule.GetPorts()); err != nil {
			return Actions{}, err
		}
	}
	return r.actions(), nil
}

type resolver struct {
	View
	out     []*balsav1.ResolvedPeer
	pods    int
	leftOut int32
}

func (r *resolver) actions() Actions {
	a := Actions{LeftOut: r.leftOut}
	meta, spec := r.Policy.GetMetadata(), proto.CloneOf(r.Policy.GetSpec())
	if spec == nil {
		spec = &balsav1.NetworkPolicySpec{} // a copy that is not there would mean servers that write none
	}
	if r.Slice == nil {
		a.Create = &balsav1.NetworkPolicySlice{
			Metadata: &balsav1.ObjectMeta{Name: meta.GetName(), Namespace: meta.GetNamespace(),
				OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(r.Policy)}},
			ObservedGeneration: meta.GetGeneration(), Peers: r.out, LeftOut: r.leftOut, Policy: spec,
		}
		return a
	}
	next := object.Clone(r.Slice)
	next.ObservedGeneration, next.Peers, next.LeftOut, next.Policy = meta.GetGeneration(), r.out, r.leftOut, spec
	next.Metadata.OwnerReferences = []*balsav1.OwnerReference{object.NewControllerRef(r.Policy)}
	if !object.Same(next, r.Slice) {
		object.BumpGeneration(r.Slice, next)
		a.Update = next
	}
	return a
}

func (r *resolver) peers(direction string, rule int, peers []*balsav1.NetworkPolicyPeer, ports []*balsav1.NetworkPolicyPort) error {
	for i, peer := range peers {
		if peer.GetIpBlock() != nil {
			continue
		}
		pods, err := r.resolve(peer, namesOf(ports))
		if err != nil {
			return fmt.Errorf("%s: %s rule %d peer %d: %w", object.Describe(r.Policy), direction, rule, i, err)
		}
		if room := MaxPods - r.pods; len(pods) > room {
			r.leftOut += int32(len(pods) - room)
			pods = pods[:room]
		}
		r.pods += len(pods)
		r.out = append(r.out, &balsav1.ResolvedPeer{Direction: direction, Rule: int32(rule), Peer: int32(i), Pods: pods})
	}
	return nil
}

// resolve are the pods of a peer by address, without two of one address: while one
// pod's is given to another, both may still say that they have it.
func (r *resolver) resolve(peer *balsav1.NetworkPolicyPeer, names []string) (out []*balsav1.ResolvedPod, err error) {
	labels, err := selector(peer.GetPodSelector())
	if err != nil {
		return nil, fmt.Errorf("podSelector: %w", err)
	}
	namespaces, err := r.namespaces(peer.GetNamespaceSelector())
	if err != nil {
		return nil, fmt.Errorf("namespaceSelector: %w", err)
	}
	for _, namespace := range namespaces {
		for _, pod := range r.Pods(namespace) {
			if !HasAddress(pod) || !labels.Matches(pod.GetMetadata().GetLabels()) {
				continue
			}
			out = append(out, &balsav1.ResolvedPod{Ip: pod.GetStatus().GetPodIp(), Namespace: namespace, Name: pod.GetMetadata().GetName(), Ports: portsOf(pod, names)})
		}
	}
	slices.SortFunc(out, comparePods)
	return slices.CompactFunc(out, func(a, b *balsav1.ResolvedPod) bool { return a.GetIp() == b.GetIp() }), nil
}

func comparePods(a, b *balsav1.ResolvedPod) int {
	x, _ := netip.ParseAddr(a.GetIp())
	y, _ := netip.ParseAddr(b.GetIp())
	return cmp.Or(x.Compare(y), strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
}

// HasAddress tells whether connections can come from a pod or go to it by an
// address of its own. A pod in the host's network is the host to every policy.
func HasAddress(pod *balsav1.Pod) bool {
	_, err := netip.ParseAddr(pod.GetStatus().GetPodIp())
	return err == nil && !pod.GetSpec().GetHostNetwork() && !object.PodFinished(pod)
}

// selector: one that is not given selects all, as one without requirements does.
func selector(s *balsav1.LabelSelector) (object.Selector, error) {
	if s == nil {
		s = &balsav1.LabelSelector{}
	}
	return object.SelectorFrom(s)
}

func (r *resolver) namespaces(s *balsav1.LabelSelector) (names []string, err error) {
	if s == nil {
		return []string{r.Policy.GetMetadata().GetNamespace()}, nil
	}
	labels, err := selector(s)
	if err != nil {
		return nil, err
	}
	for _, ns := range r.Namespaces {
		if labels.Matches(ns.GetMetadata().GetLabels()) {
			names = append(names, ns.GetMetadata().GetName())
		}
	}
	return names, nil
}

func namesOf(ports []*balsav1.NetworkPolicyPort) (names []string) {
	for _, p := range ports {
		if name := p.GetPort().GetString_(); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func portsOf(pod *balsav1.Pod, names []string) (out []*balsav1.ResolvedPort) {
	for _, c := range slices.Concat(pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()) {
		for _, p := range c.GetPorts() {
			if slices.Contains(names, p.GetName()) {
				out = append(out, &balsav1.ResolvedPort{Name: p.GetName(), Protocol: cmp.Or(p.GetProtocol(), object.ProtocolTCP), Port: p.GetContainerPort()})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *balsav1.ResolvedPort) int {
		return cmp.Or(strings.Compare(a.GetName(), b.GetName()), strings.Compare(a.GetProtocol(), b.GetProtocol()))
	})
	return out
}
