package main

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

// service prints a Service with the endpoints of its slices.
func (s *sheet) service(m *balsav1.Service, slices []*balsav1.EndpointSlice) {
	spec := m.GetSpec()
	s.identity(m.GetMetadata())
	s.marks(m.GetMetadata())
	s.list("Selector", pairsOf(spec.GetSelector(), "="))
	s.row("Type", spec.GetType())
	s.some("IP family policy", spec.GetIpFamilyPolicy())
	s.some("IP families", strings.Join(spec.GetIpFamilies(), ", "))
	s.row("IP", spec.GetClusterIp())
	s.some("External IPs", strings.Join(spec.GetExternalIps(), ", "))
	s.some("Load balancer IP", spec.GetLoadBalancerIp())
	s.some("Load balancer class", spec.GetLoadBalancerClass())
	if spec.GetType() == object.ServiceLoadBalancer {
		s.row("Load balancer ingress", strings.Join(balancerTexts(m), ", "))
		s.some("Load balancer source ranges", strings.Join(spec.GetLoadBalancerSourceRanges(), ", "))
	}
	s.some("External name", spec.GetExternalName())
	rows := [][]string{{"NAME", "PORT", "TARGET PORT", "NODE PORT", "APP PROTOCOL", "ENDPOINTS"}}
	for _, p := range spec.GetPorts() {
		rows = append(rows, []string{
			p.GetName(), fmt.Sprintf("%d/%s", p.GetPort(), p.GetProtocol()), intOrString(p.GetTargetPort()) + "/" + p.GetProtocol(),
			portOrNothing(p.GetNodePort()), p.GetAppProtocol(), endpointsOf(slices, p.GetName()),
		})
	}
	s.table("Ports", rows...)
	s.row("Session affinity", affinityText(spec))
	s.some("External traffic policy", spec.GetExternalTrafficPolicy())
	s.some("Internal traffic policy", spec.GetInternalTrafficPolicy())
	if spec.GetPublishNotReadyAddresses() {
		s.row("Publish not ready addresses", "true")
	}
	s.conditions(m.GetStatus().GetConditions())
}

func balancerTexts(m *balsav1.Service) []string {
	texts := balancerAddresses(m)
	for i, in := range m.GetStatus().GetLoadBalancer().GetIngress() {
		if in.GetIpMode() != "" {
			texts[i] += " (" + in.GetIpMode() + ")"
		}
	}
	return texts
}

func portOrNothing(n int32) string {
	if n == 0 {
		return ""
	}
	return count(n)
}

func affinityText(spec *balsav1.ServiceSpec) string {
	if spec.GetSessionAffinity() != object.AffinityClientIP {
		return spec.GetSessionAffinity()
	}
	return fmt.Sprintf("ClientIP, for %d seconds", spec.GetSessionAffinityConfig().GetClientIp().GetTimeoutSeconds())
}

// endpointsOf lists the ready endpoints of a Service's port by its name.
func endpointsOf(slices []*balsav1.EndpointSlice, name string) string {
	const shown = 3
	var ready []string
	for _, slice := range slices {
		for _, port := range slice.GetPorts() {
			if port.GetName() != name {
				continue
			}
			for _, e := range slice.GetEndpoints() {
				if e.GetConditions().GetReady() {
					ready = append(ready, strings.Join(e.GetAddresses(), ",")+":"+count(port.GetPort()))
				}
			}
		}
	}
	if len(ready) > shown {
		return fmt.Sprintf("%s + %d more", strings.Join(ready[:shown], ","), len(ready)-shown)
	}
	return strings.Join(ready, ",")
}

func (s *sheet) policy(m *balsav1.NetworkPolicy) {
	spec := m.GetSpec()
	s.identity(m.GetMetadata())
	s.marks(m.GetMetadata())
	s.row("Pod selector", whole(spec.GetPodSelector(), "every pod of the namespace"))
	s.row("Policy types", strings.Join(spec.GetPolicyTypes(), ", "))
	var ingress, egress []policyRule
	for _, r := range spec.GetIngress() {
		ingress = append(ingress, policyRule{r.GetPorts(), r.GetFrom()})
	}
	for _, r := range spec.GetEgress() {
		egress = append(egress, policyRule{r.GetPorts(), r.GetTo()})
	}
	s.direction("ingress", "From", object.PolicyApplies(m, object.PolicyIngress), ingress)
	s.direction("egress", "To", object.PolicyApplies(m, object.PolicyEgress), egress)
}

// policyRule is a rule of either direction.
type policyRule struct {
	ports []*balsav1.NetworkPolicyPort
	peers []*balsav1.NetworkPolicyPeer
}

// whole is a selector's text; everything is what an empty one stands for.
func whole(ls *balsav1.LabelSelector, everything string) string {
	if text := selectorText(ls); text != "" {
		return text
	}
	return everything
}

func (s *sheet) direction(name, peers string, applies bool, rules []policyRule) {
	title := "Allowing " + name
	switch {
	case !applies:
		s.row(title, "everything: the policy says nothing about it")
		return
	case len(rules) == 0:
		s.row(title, "nothing")
		return
	}
	s.part(title, func() {
		for i, rule := range rules {
			s.part(fmt.Sprintf("Rule %d", i), func() {
				s.list("Ports", textsOr(rule.ports, policyPortText, "every port"))
				s.list(peers, textsOr(rule.peers, policyPeerText, "everybody"))
			})
		}
	})
}

// textsOr is a text for each item, or what none stands for.
func textsOr[T any](items []T, text func(T) string, empty string) []string {
	if len(items) == 0 {
		return []string{empty}
	}
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = text(item)
	}
	return texts
}

func policyPortText(p *balsav1.NetworkPolicyPort) string {
	text := "every port"
	if p.GetPort() != nil {
		text = intOrString(p.GetPort())
	}
	if p.EndPort != nil {
		text += "-" + count(p.GetEndPort())
	}
	return text + "/" + p.GetProtocol()
}

func policyPeerText(p *balsav1.NetworkPolicyPeer) string {
	if block := p.GetIpBlock(); block != nil {
		text := block.GetCidr()
		if len(block.GetExcept()) > 0 {
			text += " except " + strings.Join(block.GetExcept(), ", ")
		}
		return text
	}
	with := func(what string, ls *balsav1.LabelSelector) string {
		if text := selectorText(ls); text != "" {
			return what + " with " + text
		}
		return "all " + what
	}
	pods := with("pods", p.GetPodSelector())
	if p.GetNamespaceSelector() == nil {
		return pods + " of the namespace"
	}
	return pods + " of " + with("namespaces", p.GetNamespaceSelector())
}

func (s *sheet) budget(m *balsav1.PodDisruptionBudget) {
	spec, status := m.GetSpec(), m.GetStatus()
	s.identity(m.GetMetadata())
	s.marks(m.GetMetadata())
	if spec.GetMinAvailable() != nil {
		s.row("Min available", intOrString(spec.GetMinAvailable()))
	} else {
		s.row("Max unavailable", intOrString(spec.GetMaxUnavailable()))
	}
	if spec.GetSelector() == nil {
		s.row("Selector", "no pods: there is none")
	} else {
		s.row("Selector", whole(spec.GetSelector(), "every pod of the namespace"))
	}
	s.row("Unhealthy pods", spec.GetUnhealthyPodEvictionPolicy())
	s.part("Status", func() {
		s.row("Allowed disruptions", count(status.GetDisruptionsAllowed()))
		s.row("Current", count(status.GetCurrentHealthy()))
		s.row("Desired", count(status.GetDesiredHealthy()))
		s.row("Total", count(status.GetExpectedPods()))
	})
	granted := map[string]string{}
	for name, at := range status.GetDisruptedPods() {
		granted[name] = "since " + timeText(at)
	}
	s.list("Evictions granted", pairsOf(granted, " "))
	s.conditions(status.GetConditions())
}

func (s *sheet) pool(m *balsav1.AddressPool) {
	s.identity(m.GetMetadata())
	s.marks(m.GetMetadata())
	s.list("Addresses", m.GetSpec().GetAddresses())
	s.row("Auto assign", fmt.Sprint(m.GetSpec().GetAutoAssign()))
	s.list("Node selector", pairsOf(m.GetSpec().GetNodeSelector(), "="))
	s.row("In use", fmt.Sprintf("%d of %d", m.GetStatus().GetInUse(), m.GetStatus().GetCapacity()))
	rows := [][]string{{"ADDRESS", "SERVICE", "NODE", "MESSAGE"}}
	for _, a := range m.GetStatus().GetAnnounced() {
		rows = append(rows, []string{a.GetIp(), a.GetNamespace() + "/" + a.GetService(), a.GetNodeName(), a.GetMessage()})
	}
	s.table("Announced", rows...)
	s.conditions(m.GetStatus().GetConditions())
}
