package object

import (
	"slices"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

func defaultNetworkPolicy(spec *balsav1.NetworkPolicySpec) {
	spec.PodSelector = ensure(spec.PodSelector)
	for _, rule := range spec.Ingress {
		defaultPolicyPorts(rule.GetPorts())
	}
	for _, rule := range spec.Egress {
		defaultPolicyPorts(rule.GetPorts())
	}
	if len(spec.PolicyTypes) > 0 {
		return
	}
	spec.PolicyTypes = defaultPolicyTypes(spec)
}

func defaultPolicyTypes(spec *balsav1.NetworkPolicySpec) []string {
	if len(spec.GetEgress()) > 0 {
		return []string{PolicyIngress, PolicyEgress}
	}
	return []string{PolicyIngress}
}

// dropPolicyTypes: types that nobody gave follow from the rules, so that a manifest
// that gets its first egress rule limits egress.
func dropPolicyTypes(live, merged *balsav1.NetworkPolicySpec, p merger) {
	if p.unmentioned("spec.policyTypes") && slices.Equal(live.GetPolicyTypes(), defaultPolicyTypes(live)) {
		merged.PolicyTypes = nil
	}
}

func defaultPolicyPorts(ports []*balsav1.NetworkPolicyPort) {
	for _, p := range ports {
		setDefault(&p.Protocol, ProtocolTCP)
	}
}

// PolicyApplies tells whether a NetworkPolicy limits its pods in a direction,
// PolicyIngress or PolicyEgress.
func PolicyApplies(policy *balsav1.NetworkPolicy, direction string) bool {
	return slices.Contains(policy.GetSpec().GetPolicyTypes(), direction)
}
