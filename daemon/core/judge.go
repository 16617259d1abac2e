package core

import (
	"net/netip"

	"github.com/balsa-run/balsa/apiserver/why"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/object"
)

// judge lets the code that plans the nodes' rules explain connections.
type judge struct{}

// Judge implements why.Policies.
func (judge) Judge(c why.Connection) why.Judgement {
	o := netproxy.Objects{Policies: c.Policies, PolicySlices: c.Slices}
	for _, pod := range c.Ends {
		if p, ok := localPod(pod); ok {
			o.Pods = append(o.Pods, p)
		}
	}
	protocol, _ := netproxy.ParseProtocol(c.Protocol) // which package why has checked
	v := netproxy.Explain(o, netproxy.Connection{From: c.From, To: c.To, Protocol: protocol, Port: c.Port})
	return why.Judgement{Egress: decision(v.Egress, netproxy.Egress), Ingress: decision(v.Ingress, netproxy.Ingress)}
}

func decision(d netproxy.Decision, direction netproxy.Direction) why.Decision {
	out := why.Decision{Allowed: d.Allowed, Limited: d.Limited, Policies: d.Policies}
	if field := d.Field(direction); field != "" {
		out.DecidedBy = "networkpolicies/" + d.Policy + " " + field
	}
	return out
}

// localPod is a pod as the proxy of its node knows it, but for ports of the host,
// which policies do not see.
func localPod(pod *balsav1.Pod) (netproxy.LocalPod, bool) {
	ip, err := netip.ParseAddr(pod.GetStatus().GetPodIp())
	if err != nil {
		return netproxy.LocalPod{}, false
	}
	meta := pod.GetMetadata()
	out := netproxy.LocalPod{IP: ip, Namespace: meta.GetNamespace(), Name: meta.GetName(), Labels: meta.GetLabels()}
	for _, c := range object.AllContainers(pod.GetSpec()) {
		for _, p := range c.GetPorts() {
			protocol, err := netproxy.ParseProtocol(p.GetProtocol())
			if err == nil && p.GetName() != "" {
				out.Ports = append(out.Ports, netproxy.NamedPort{Name: p.GetName(), Protocol: protocol, Port: uint16(p.GetContainerPort())})
			}
		}
	}
	return out, true
}
