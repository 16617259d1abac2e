package core

import (
	"net/netip"

	"github.com/balsa-run/balsa/apiserver/why"
	"github.com/balsa-run/balsa/netproxy"
)

// judge lets the code that plans the nodes' rules explain connections.
type judge struct{}

// Judge implements why.Policies.
func (judge) Judge(c why.Connection) why.Judgement {
	o := netproxy.Objects{Policies: c.Policies, PolicySlices: c.Slices}
	for _, pod := range c.Ends {
		if ip, err := netip.ParseAddr(pod.GetStatus().GetPodIp()); err == nil {
			o.Pods = append(o.Pods, netproxy.LocalPodOf(pod, ip))
		}
	}
	protocol, _ := netproxy.ParseProtocol(c.Protocol) // which package why has checked
	v := netproxy.Explain(o, netproxy.Connection{From: c.From, To: c.To, Protocol: protocol, Port: c.Port})
	out := why.Judgement{Egress: decision(v.Egress, netproxy.Egress), Ingress: decision(v.Ingress, netproxy.Ingress)}
	for _, p := range v.Problems {
		out.Problems = append(out.Problems, p.String())
	}
	return out
}

func decision(d netproxy.Decision, direction netproxy.Direction) why.Decision {
	out := why.Decision{Allowed: d.Allowed, Limited: d.Limited, Policies: d.Policies}
	if field := d.Field(direction); field != "" {
		out.DecidedBy = "networkpolicies/" + d.Policy + " " + field
	}
	return out
}
