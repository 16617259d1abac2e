package why

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// target is an endpoint that a connection may come to.
type target struct {
	end
	port uint16
}

// service explains a connection to a Service: to each of the endpoints that it may
// be led to.
func (e *explainer) service(text string) error {
	svc := e.to.svc
	spec := svc.GetSpec()
	at := e.to.name
	if spec.GetType() == object.ServiceExternalName {
		e.step(at, NotKnown, fmt.Sprintf("the name stands for %s, which is not of this cluster: nothing here decides about it", spec.GetExternalName()), "")
		e.out.Verdict, e.out.Summary = Unknown, e.out.Steps[0].GetMessage()
		return nil
	}
	port, err := e.servicePort(text)
	if err != nil {
		return err
	}
	targets, not := e.targets(port)
	if len(targets) == 0 {
		e.step(at, Refuses, "no endpoint is ready"+not, "")
		e.out.Verdict, e.out.Summary = Refused, e.to.name+": no endpoint is ready"+not
		return nil
	}
	front := spec.GetClusterIp()
	if front == object.ClusterIPNone {
		front = "its name"
	}
	e.step(at, Translates, fmt.Sprintf("%s port %d leads to one of %s%s", front, port.GetPort(), counted(len(targets)), not), "")
	return e.each(targets)
}

func (e *explainer) servicePort(text string) (*balsav1.ServicePort, error) {
	var have []string
	for _, p := range e.to.svc.GetSpec().GetPorts() {
		if cmp.Or(p.GetProtocol(), object.ProtocolTCP) != e.protocol {
			continue
		}
		if number := strconv.Itoa(int(p.GetPort())); text == number || text != "" && text == p.GetName() {
			return p, nil
		}
		have = append(have, strings.Trim(fmt.Sprintf("%s %d", p.GetName(), p.GetPort()), " "))
	}
	return nil, wrong("port", "give one of these by number or name", "%s has no %s port %q; it has %s", e.to.name, e.protocol, text, strings.Join(have, ", "))
}

// targets are the endpoints that the proxy would lead to, and what to say of the
// others.
func (e *explainer) targets(port *balsav1.ServicePort) (out []target, not string) {
	meta := e.to.svc.GetMetadata()
	unready := 0
	for _, slice := range all[*balsav1.EndpointSlice](e.view, "EndpointSlice", meta.GetNamespace()) {
		if slice.GetMetadata().GetLabels()[object.LabelServiceName] != meta.GetName() {
			continue
		}
		for _, p := range slice.GetPorts() {
			if p.GetName() != port.GetName() || cmp.Or(p.GetProtocol(), object.ProtocolTCP) != e.protocol {
				continue
			}
			for _, x := range slice.GetEndpoints() {
				if c := x.GetConditions(); c != nil && c.Ready != nil && !*c.Ready {
					unready++
					continue
				}
				out = append(out, e.target(x, p))
			}
		}
	}
	if unready > 0 {
		not = fmt.Sprintf("; %d more are not ready", unready)
	}
	return out, not
}

func (e *explainer) target(x *balsav1.Endpoint, p *balsav1.EndpointPort) target {
	t := target{port: uint16(p.GetPort())}
	if len(x.GetAddresses()) > 0 {
		t.ip, _ = netip.ParseAddr(x.GetAddresses()[0])
	}
	t.name = fmt.Sprintf("%s:%d", t.ip, t.port)
	if ref := x.GetTargetRef(); ref.GetKind() == "Pod" {
		t.name = fmt.Sprintf("pod %s/%s", ref.GetNamespace(), ref.GetName())
		t.pod, _ = get[*balsav1.Pod](e.view, "endpoint", "Pod", ref.GetNamespace(), ref.GetName())
	}
	return t
}

// each judges every endpoint, shows the first that is allowed and the first that
// is not, and says of how many that holds.
func (e *explainer) each(targets []target) error {
	judged := targets[:min(len(targets), maxEndpoints)]
	var allowed, refused []target
	for _, t := range judged {
		j := e.policies.Judge(e.connection(t.end, t.port))
		passes := (e.unlimited(e.from) || j.Egress.Allowed) && (e.unlimited(t.end) || j.Ingress.Allowed)
		if passes {
			allowed = append(allowed, t)
		} else {
			refused = append(refused, t)
		}
	}
	for _, some := range [][]target{allowed, refused} {
		if len(some) > 0 {
			e.direct(some[0].end, some[0].port)
		}
	}
	last := e.out.Steps[len(e.out.Steps)-1].GetMessage()
	switch {
	case len(refused) == 0:
		e.allow(fmt.Sprintf("the %s of %s", counted(len(judged)), e.to.name))
	case len(allowed) == 0:
		e.out.Verdict, e.out.Summary = Refused, last
	default:
		e.out.Verdict = Unknown
		e.out.Summary = fmt.Sprintf("it depends on the endpoint: %d of %d may be connected to; for example: %s", len(allowed), len(judged), last)
	}
	return nil
}

func (e *explainer) unlimited(x end) bool { return x.pod == nil || x.pod.GetSpec().GetHostNetwork() }

func counted(endpoints int) string {
	if endpoints == 1 {
		return "1 endpoint"
	}
	return fmt.Sprintf("%d endpoints", endpoints)
}
