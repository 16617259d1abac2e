package main

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

func serviceColumns() []column {
	return []column{
		{"TYPE", false, of(func(s *balsav1.Service) string { return s.GetSpec().GetType() })},
		{"CLUSTER-IP", false, of(func(s *balsav1.Service) string { return s.GetSpec().GetClusterIp() })},
		{"EXTERNAL-IP", false, of(externalAddresses)},
		{"PORT(S)", false, of(servicePorts)},
		{"SELECTOR", true, of(func(s *balsav1.Service) string { return labels(s.GetSpec().GetSelector()) })},
	}
}

// externalAddresses is where a Service is reached from outside, but for the nodes'
// own addresses.
func externalAddresses(s *balsav1.Service) string {
	spec := s.GetSpec()
	if spec.GetType() == object.ServiceExternalName {
		return spec.GetExternalName()
	}
	addresses := append(balancerAddresses(s), spec.GetExternalIps()...)
	if len(addresses) == 0 && spec.GetType() == object.ServiceLoadBalancer {
		return "<pending>"
	}
	return strings.Join(addresses, ",")
}

func balancerAddresses(s *balsav1.Service) (addresses []string) {
	for _, in := range s.GetStatus().GetLoadBalancer().GetIngress() {
		if in.GetIp() != "" {
			addresses = append(addresses, in.GetIp())
		} else {
			addresses = append(addresses, in.GetHostname())
		}
	}
	return addresses
}

func servicePorts(s *balsav1.Service) string {
	var ports []string
	for _, port := range s.GetSpec().GetPorts() {
		text := count(port.GetPort())
		if port.GetNodePort() != 0 {
			text += ":" + count(port.GetNodePort())
		}
		ports = append(ports, text+"/"+port.GetProtocol())
	}
	return strings.Join(ports, ",")
}

func policyColumns() []column {
	return []column{
		{"POD-SELECTOR", false, of(func(p *balsav1.NetworkPolicy) string { return selectorText(p.GetSpec().GetPodSelector()) })},
		{"POLICY-TYPES", true, of(func(p *balsav1.NetworkPolicy) string { return strings.Join(p.GetSpec().GetPolicyTypes(), ",") })},
	}
}

// selectorText is a selector in kubectl's words; empty for one that matches
// everything.
func selectorText(ls *balsav1.LabelSelector) string {
	s, err := object.SelectorFrom(ls)
	if err != nil {
		return err.Error()
	}
	if ls == nil {
		return ""
	}
	return s.String()
}

func policySliceColumns() []column {
	return []column{
		{"PEERS", false, of(func(p *balsav1.NetworkPolicySlice) string { return count(len(p.GetPeers())) })},
		{"PODS", false, of(func(p *balsav1.NetworkPolicySlice) string {
			pods := 0
			for _, peer := range p.GetPeers() {
				pods += len(peer.GetPods())
			}
			return count(pods)
		})},
		{"LEFT-OUT", false, of(func(p *balsav1.NetworkPolicySlice) string { return count(p.GetLeftOut()) })},
	}
}

func budgetColumns() []column {
	bound := func(v *balsav1.IntOrString) string {
		if v == nil {
			return "N/A"
		}
		return intOrString(v)
	}
	return []column{
		{"MIN AVAILABLE", false, of(func(b *balsav1.PodDisruptionBudget) string { return bound(b.GetSpec().GetMinAvailable()) })},
		{"MAX UNAVAILABLE", false, of(func(b *balsav1.PodDisruptionBudget) string { return bound(b.GetSpec().GetMaxUnavailable()) })},
		{"ALLOWED DISRUPTIONS", false, of(func(b *balsav1.PodDisruptionBudget) string { return count(b.GetStatus().GetDisruptionsAllowed()) })},
	}
}

func intOrString(v *balsav1.IntOrString) string {
	if text, isText := v.GetValue().(*balsav1.IntOrString_String_); isText {
		return text.String_
	}
	return count(v.GetInt())
}

func poolColumns() []column {
	return []column{
		{"ADDRESSES", false, of(func(p *balsav1.AddressPool) string { return strings.Join(p.GetSpec().GetAddresses(), ",") })},
		{"AUTO-ASSIGN", false, of(func(p *balsav1.AddressPool) string { return fmt.Sprint(p.GetSpec().GetAutoAssign()) })},
		{"IN-USE", false, of(func(p *balsav1.AddressPool) string {
			return count(p.GetStatus().GetInUse()) + "/" + count(p.GetStatus().GetCapacity())
		})},
		{"NODE-SELECTOR", true, of(func(p *balsav1.AddressPool) string { return labels(p.GetSpec().GetNodeSelector()) })},
	}
}
