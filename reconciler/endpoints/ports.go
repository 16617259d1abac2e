package endpoints

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// resolve gives the ports of a Service at a pod. A port by a name that the pod
// does not have is left out: nothing listens there. A nil pod resolves numbers
// only.
func resolve(svc *balsav1.Service, pod *balsav1.Pod) (ports []*balsav1.EndpointPort) {
	for _, p := range svc.GetSpec().GetPorts() {
		number := p.GetPort()
		if target := p.GetTargetPort(); target != nil {
			if name := target.GetString_(); name != "" {
				number = namedPort(pod, name, p.GetProtocol())
			} else {
				number = target.GetInt()
			}
		}
		if number > 0 {
			ports = append(ports, &balsav1.EndpointPort{Name: p.GetName(), Protocol: protocolOf(p.GetProtocol()), Port: number})
		}
	}
	return ports
}

func namedPort(pod *balsav1.Pod, name, protocol string) int32 {
	for _, c := range pod.GetSpec().GetContainers() {
		for _, p := range c.GetPorts() {
			if p.GetName() == name && protocolOf(p.GetProtocol()) == protocolOf(protocol) {
				return p.GetContainerPort()
			}
		}
	}
	return 0
}

func protocolOf(s string) string {
	if s == "" {
		return object.ProtocolTCP
	}
	return s
}

func signatureOf(ports []*balsav1.EndpointPort) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = fmt.Sprintf("%s:%d/%s", p.GetName(), p.GetPort(), p.GetProtocol())
	}
	return strings.Join(words, " ")
}
