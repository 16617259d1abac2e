// Package why explains what becomes of a connection, from one state of the store.
// It is pure: who has counted what is added by whoever asks the nodes. It refuses
// to guess: what the store does not know, such as whether a program listens, is
// said to be unknown.
package why

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Verdicts.
const (
	Allowed = "Allowed"
	Refused = "Refused"
	Unknown = "Unknown"
)

// Outcomes of steps.
const (
	Passes     = "Passes"
	Refuses    = "Refuses"
	Translates = "Translates"
	NotKnown   = "Unknown"
)

// maxEndpoints bounds the endpoints of a Service that are judged one by one.
const maxEndpoints = 64

// Policies judges connections; the code that plans the kernel's rules does.
type Policies interface {
	Judge(c Connection) Judgement
}

// Connection is one between two addresses, after a Service's was translated.
type Connection struct {
	From, To netip.Addr
	Protocol string // TCP or UDP
	Port     uint16
	// Ends are the pods that have the two addresses.
	Ends     []*balsav1.Pod
	Policies []*balsav1.NetworkPolicy
	Slices   []*balsav1.NetworkPolicySlice
}

// Judgement is what the policies of the two ends say.
type Judgement struct {
	Egress, Ingress Decision
	// Problems of policies that are about the ends: what in them is not, or not yet,
	// in force.
	Problems []string
}

// Decision is one direction's.
type Decision struct {
	Allowed bool
	// Limited is false where no policy selects the pod.
	Limited bool
	// Policies that select the pod, as namespace/name.
	Policies []string
	// DecidedBy is the rule that allows, as kind/namespace/name and field path.
	DecidedBy string
}

// Error is a question that cannot be answered as it was asked.
type Error struct {
	Field, Hint string
	Err         error
	// Missing is the key of an object that does not exist, or empty.
	Missing string
}

func (e *Error) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func wrong(field, hint, format string, args ...any) *Error {
	return &Error{Field: field, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// Explanation is an answer, with where nodes may have counted.
type Explanation struct {
	*balsav1.ExplainConnectionResponse
	Counts []Count
}

// Count is a step that a node may have counted packets at.
type Count struct {
	Step      int
	Node      string
	PodIP     string
	Direction string // Ingress or Egress
	Allowed   bool   // count what passed, else what was refused
}

// Explain answers a question.
func Explain(v store.View, p Policies, q *balsav1.ExplainConnectionRequest) (*Explanation, error) {
	e := &explainer{view: v, policies: p, out: &Explanation{ExplainConnectionResponse: &balsav1.ExplainConnectionResponse{}}}
	if err := e.ask(q); err != nil {
		return nil, err
	}
	return e.out, nil
}

type explainer struct {
	view     store.View
	policies Policies
	protocol string
	from, to end
	out      *Explanation
}

// end is one end of a connection.
type end struct {
	pod  *balsav1.Pod // or nil
	svc  *balsav1.Service
	ip   netip.Addr
	name string // for sentences
}

func (e *explainer) ask(q *balsav1.ExplainConnectionRequest) (err error) {
	if e.protocol = cmp.Or(strings.ToUpper(q.GetProtocol()), object.ProtocolTCP); e.protocol != object.ProtocolTCP && e.protocol != object.ProtocolUDP {
		return wrong("protocol", "use TCP or UDP", "found %q", q.GetProtocol())
	}
	if e.from, err = e.end("from", q.GetFrom()); err != nil {
		return err
	}
	if e.from.svc != nil {
		return wrong("from.service", "name one of its pods", "a Service makes no connections")
	}
	if e.to, err = e.end("to", q.GetTo()); err != nil {
		return err
	}
	if e.stopped(e.from) {
		return nil
	}
	if e.to.svc != nil {
		return e.service(q.GetPort())
	}
	if svc, port := e.fronts(q.GetPort()); svc != nil {
		e.to.svc = svc
		return e.service(port)
	}
	port, err := e.port(e.to.pod, q.GetPort())
	if err != nil {
		return err
	}
	if e.to.pod != nil && e.stopped(e.to) {
		return nil
	}
	return e.finish(e.direct(e.to, port))
}

func (e *explainer) end(field string, c *balsav1.ConnectionEnd) (end, error) {
	switch set := c.GetPod() != "" || c.GetService() != ""; {
	case c.GetPod() != "" && c.GetService() != "", set && c.GetIp() != "", !set && c.GetIp() == "":
		return end{}, wrong(field, "give exactly one of pod, service and ip", "found pod %q, service %q, ip %q", c.GetPod(), c.GetService(), c.GetIp())
	case c.GetIp() != "":
		return e.address(field, c.GetIp())
	}
	namespace := cmp.Or(c.GetNamespace(), object.DefaultNamespace)
	if c.GetPod() != "" {
		pod, err := get[*balsav1.Pod](e.view, field+".pod", "Pod", namespace, c.GetPod())
		if err != nil {
			return end{}, err
		}
		ip, _ := netip.ParseAddr(pod.GetStatus().GetPodIp())
		return end{pod: pod, ip: ip, name: "pod " + namespace + "/" + c.GetPod()}, nil
	}
	svc, err := get[*balsav1.Service](e.view, field+".service", "Service", namespace, c.GetService())
	return end{svc: svc, name: "service " + namespace + "/" + c.GetService()}, err
}

// address is an end by its address, which may be a pod's.
func (e *explainer) address(field, text string) (end, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil || !ip.Is4() {
		return end{}, wrong(field+".ip", "give an IPv4 address such as 10.244.1.7", "found %q", text)
	}
	out := end{ip: ip, name: text}
	for _, pod := range all[*balsav1.Pod](e.view, "Pod", "") {
		if pod.GetStatus().GetPodIp() == text && !pod.GetSpec().GetHostNetwork() && !object.PodFinished(pod) {
			out.pod, out.name = pod, fmt.Sprintf("pod %s/%s", pod.GetMetadata().GetNamespace(), pod.GetMetadata().GetName())
		}
	}
	return out, nil
}

// stopped answers for a pod that cannot be an end of anything.
func (e *explainer) stopped(x end) bool {
	why := ""
	switch pod := x.pod; {
	case pod == nil:
	case pod.GetSpec().GetNodeName() == "":
		why = "is not placed on a node yet: balsa describe says why"
	case object.PodFinished(pod):
		why = "has ended: it is " + pod.GetStatus().GetPhase()
	case !x.ip.IsValid():
		why = "has no address yet"
	}
	if why == "" {
		return false
	}
	e.step(x.name, Refuses, x.name+" "+why, "")
	e.out.Verdict, e.out.Summary = Refused, x.name+" "+why
	return true
}

// fronts finds the Service whose address is asked for.
func (e *explainer) fronts(port string) (*balsav1.Service, string) {
	if e.to.pod != nil {
		return nil, ""
	}
	text := e.to.ip.String()
	for _, svc := range all[*balsav1.Service](e.view, "Service", "") {
		has := svc.GetSpec().GetClusterIp() == text || slices.Contains(svc.GetSpec().GetExternalIps(), text) ||
			slices.ContainsFunc(svc.GetStatus().GetLoadBalancer().GetIngress(), func(i *balsav1.LoadBalancerIngress) bool { return i.GetIp() == text })
		if has {
			e.to.name = fmt.Sprintf("service %s/%s", svc.GetMetadata().GetNamespace(), svc.GetMetadata().GetName())
			return svc, port
		}
	}
	return nil, ""
}

// port is a number, or the name of a port of the pod.
func (e *explainer) port(pod *balsav1.Pod, text string) (uint16, error) {
	if n, err := strconv.ParseUint(text, 10, 16); err == nil && n > 0 {
		return uint16(n), nil
	}
	var names []string
	for _, c := range pod.GetSpec().GetContainers() {
		for _, p := range c.GetPorts() {
			if cmp.Or(p.GetProtocol(), object.ProtocolTCP) != e.protocol || p.GetName() == "" {
				continue
			}
			if p.GetName() == text {
				return uint16(p.GetContainerPort()), nil
			}
			names = append(names, p.GetName())
		}
	}
	return 0, wrong("port", "give 1 to 65535, or a name", "found %q; named %s ports: %v", text, e.protocol, names)
}

func (e *explainer) step(at, outcome, message, decidedBy string) int {
	e.out.Steps = append(e.out.Steps, &balsav1.ConnectionStep{At: at, Outcome: outcome, Message: message, DecidedBy: decidedBy})
	return len(e.out.Steps) - 1
}

// finish makes the summary of the one way there is.
func (e *explainer) finish(allowed bool) error {
	if len(e.out.Steps) == 0 {
		e.step(e.to.name, NotKnown, fmt.Sprintf("neither %s nor %s has an address that policies are about: nothing here decides about the connection", e.from.name, e.to.name), "")
	}
	last := e.out.Steps[len(e.out.Steps)-1]
	e.out.Verdict, e.out.Summary = Refused, last.GetMessage()
	if allowed {
		e.allow(e.to.name)
	}
	return nil
}

// allow says that nothing refuses, unless something on the way is not known.
func (e *explainer) allow(to string) {
	e.out.Verdict = Allowed
	e.out.Summary = fmt.Sprintf("nothing between %s and %s refuses it; whether a program listens there, the store does not know", e.from.name, to)
	for _, s := range e.out.Steps {
		if s.GetOutcome() == NotKnown {
			e.out.Verdict, e.out.Summary = Unknown, s.GetMessage()
		}
	}
}

// direct explains the way to an endpoint.
func (e *explainer) direct(to end, port uint16) bool {
	j := e.policies.Judge(e.connection(to, port))
	for _, problem := range j.Problems { // told first: what decides comes last
		e.step("policies", Passes, problem, "")
	}
	if !e.judged("egress", e.from, j.Egress) {
		return false
	}
	e.route(to)
	return e.judged("ingress", to, j.Ingress)
}

func (e *explainer) connection(to end, port uint16) Connection {
	c := Connection{From: e.from.ip, To: to.ip, Protocol: e.protocol, Port: port}
	seen := map[string]bool{}
	for _, pod := range []*balsav1.Pod{e.from.pod, to.pod} {
		if pod == nil || pod.GetSpec().GetHostNetwork() {
			continue
		}
		c.Ends = append(c.Ends, pod)
		if namespace := pod.GetMetadata().GetNamespace(); !seen[namespace] {
			seen[namespace] = true
			c.Policies = append(c.Policies, all[*balsav1.NetworkPolicy](e.view, "NetworkPolicy", namespace)...)
			c.Slices = append(c.Slices, all[*balsav1.NetworkPolicySlice](e.view, "NetworkPolicySlice", namespace)...)
		}
	}
	return c
}

// judged adds what the policies of one end say.
func (e *explainer) judged(direction string, x end, d Decision) bool {
	at := direction + " of " + x.name
	if x.pod == nil || x.pod.GetSpec().GetHostNetwork() {
		return true // policies are about pods with an address of their own
	}
	switch {
	case !d.Limited:
		e.step(at, Passes, fmt.Sprintf("no NetworkPolicy limits the %s of %s", direction, x.name), "")
		return true
	case d.Allowed:
		e.count(e.step(at, Passes, "allowed by "+d.DecidedBy, d.DecidedBy), x, direction, true)
		return true
	}
	message := fmt.Sprintf("%s is limited by %s, none of whose rules allows this connection", x.name, strings.Join(d.Policies, ", "))
	e.count(e.step(at, Refuses, message, ""), x, direction, false)
	return false
}

func (e *explainer) count(step int, x end, direction string, allowed bool) {
	e.out.Counts = append(e.out.Counts, Count{Step: step, Node: x.pod.GetSpec().GetNodeName(), PodIP: x.pod.GetStatus().GetPodIp(),
		Direction: strings.ToUpper(direction[:1]) + direction[1:], Allowed: allowed})
}

// route tells which nodes the packets pass.
func (e *explainer) route(to end) {
	from, dest := e.from.pod.GetSpec().GetNodeName(), to.pod.GetSpec().GetNodeName()
	switch {
	case from == "" || dest == "":
		return
	case from == dest:
		e.step("node "+from, Passes, "both pods are on it", "")
		return
	}
	at := fmt.Sprintf("nodes %s and %s", from, dest)
	for _, name := range []string{from, dest} {
		node, err := get[*balsav1.Node](e.view, "node", "Node", "", name)
		if err != nil || !object.NodeReady(node) {
			e.step(at, NotKnown, fmt.Sprintf("node %s is not Ready: balsa describe node %s says why", name, name), "")
			return
		}
	}
	e.step(at, Passes, "both are Ready", "")
}

func get[M object.Message](v store.View, field, kindName, namespace, name string) (M, error) {
	kind, _ := object.KindByName(kindName)
	key := object.Key(kind, namespace, name)
	kv, _ := v.Get(key)
	m, ok := kv.Object.(M)
	if !ok {
		return m, &Error{Field: field, Hint: "balsa get " + kind.Plural + " lists what there is", Missing: key,
			Err: fmt.Errorf("%s does not exist", object.DescribeKey(kind, namespace, name))}
	}
	return m, nil
}

func all[M object.Message](v store.View, kindName, namespace string) (out []M) {
	kind, _ := object.KindByName(kindName)
	for kv := range v.Prefix(object.Prefix(kind, namespace)) {
		if m, ok := kv.Object.(M); ok {
			out = append(out, m)
		}
	}
	return out
}
