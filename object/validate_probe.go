package object

import (
	"net/netip"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of probes and hooks.
const (
	maxHTTPHeaders = 64
	maxProbeText   = 1024
)

// Kinds of probes.
const (
	probeReadiness = "readinessProbe"
	probeLiveness  = "livenessProbe"
	probeStartup   = "startupProbe"
)

// probe checks one of a container's probes, by the name of its field.
func (c *check) probe(path, kind string, p *balsav1.Probe, ports []*balsav1.ContainerPort) {
	if p == nil {
		return
	}
	path = field(path, kind)
	c.exactlyOne(path, []string{"exec", "httpGet", "tcpSocket", "grpc"}, p.GetExec() != nil, p.GetHttpGet() != nil, p.GetTcpSocket() != nil, p.GetGrpc() != nil)
	if p.GetExec() != nil {
		c.exec(field(path, "exec"), p.GetExec())
	}
	if p.GetHttpGet() != nil {
		c.httpGet(field(path, "httpGet"), p.GetHttpGet(), ports)
	}
	if tcp := p.GetTcpSocket(); tcp != nil {
		c.probePort(field(path, "tcpSocket.port"), tcp.GetPort(), ports)
		c.probeHost(field(path, "tcpSocket.host"), tcp.GetHost())
	}
	if grpc := p.GetGrpc(); grpc != nil {
		c.port(field(path, "grpc.port"), grpc.GetPort())
		c.plainText(field(path, "grpc.service"), grpc.GetService())
	}
	c.probeNumbers(path, kind, p)
}

func (c *check) probeNumbers(path, kind string, p *balsav1.Probe) {
	c.between(field(path, "initialDelaySeconds"), int64(p.GetInitialDelaySeconds()), 0, maxSeconds)
	c.between(field(path, "timeoutSeconds"), int64(p.GetTimeoutSeconds()), 1, maxSeconds)
	c.between(field(path, "periodSeconds"), int64(p.GetPeriodSeconds()), 1, maxSeconds)
	c.between(field(path, "failureThreshold"), int64(p.GetFailureThreshold()), 1, maxInt32)
	highest := int64(maxInt32)
	if kind != probeReadiness {
		highest = 1 // one success is a success
	}
	c.between(field(path, "successThreshold"), int64(p.GetSuccessThreshold()), 1, highest)
	if p.TerminationGracePeriodSeconds == nil {
		return
	}
	here := field(path, "terminationGracePeriodSeconds")
	if kind == probeReadiness {
		c.add(Violation{Field: here, Message: "has no meaning in a readiness probe, which never ends a container", Hint: "remove the field"})
		return
	}
	c.between(here, p.GetTerminationGracePeriodSeconds(), 1, maxSeconds)
}

func (c *check) exec(path string, exec *balsav1.ExecAction) {
	if len(exec.GetCommand()) == 0 || exec.GetCommand()[0] == "" {
		c.required(field(path, "command"), "name a program of the image and its arguments")
	}
	for i, s := range exec.GetCommand() {
		c.noNUL(index(field(path, "command"), i), s)
	}
}

// probeHost: "" is the pod's own address.
func (c *check) probeHost(path, host string) {
	if host == "" {
		return
	}
	if _, err := netip.ParseAddr(host); err != nil {
		c.text(path, host, dnsSubdomainProblem(strings.ToLower(host)))
	}
}

func (c *check) plainText(path, s string) {
	if len(s) > maxProbeText || strings.ContainsAny(s, " \r\n\x00") {
		c.text(path, s, "a name without spaces, at most 1024 characters")
	}
}

// lifecycle checks a container's hooks; grace is the pod's.
func (c *check) lifecycle(path string, l *balsav1.Lifecycle, ports []*balsav1.ContainerPort, grace int64) {
	if l == nil {
		return
	}
	c.hook(field(path, "postStart"), l.GetPostStart(), ports, grace)
	c.hook(field(path, "preStop"), l.GetPreStop(), ports, grace)
	if l.GetStopSignal() != "" {
		if _, ok := SignalNumber(l.GetStopSignal()); !ok {
			c.text(field(path, "stopSignal"), l.GetStopSignal(), "the name of a Linux signal, for example SIGTERM, SIGQUIT, SIGUSR1 or SIGRTMIN+3")
		}
	}
}

func (c *check) hook(path string, h *balsav1.LifecycleHandler, ports []*balsav1.ContainerPort, grace int64) {
	if h == nil {
		return
	}
	c.exactlyOne(path, []string{"exec", "httpGet", "sleep"}, h.GetExec() != nil, h.GetHttpGet() != nil, h.GetSleep() != nil)
	if h.GetExec() != nil {
		c.exec(field(path, "exec"), h.GetExec())
	}
	if h.GetHttpGet() != nil {
		c.httpGet(field(path, "httpGet"), h.GetHttpGet(), ports)
	}
	if h.GetSleep() != nil {
		c.between(field(path, "sleep.seconds"), h.GetSleep().GetSeconds(), 0, grace)
	}
}

func (c *check) httpGet(path string, get *balsav1.HTTPGetAction, ports []*balsav1.ContainerPort) {
	if !strings.HasPrefix(get.GetPath(), "/") || strings.ContainsAny(get.GetPath(), " \r\n\x00") {
		c.text(field(path, "path"), get.GetPath(), "a path that begins with / and has no spaces")
	}
	c.oneOf(field(path, "scheme"), get.GetScheme(), []string{SchemeHTTP, SchemeHTTPS})
	c.probeHost(field(path, "host"), get.GetHost())
	c.probePort(field(path, "port"), get.GetPort(), ports)
	if !c.atMost(field(path, "httpHeaders"), len(get.GetHttpHeaders()), maxHTTPHeaders, "headers") {
		return
	}
	for i, h := range get.GetHttpHeaders() {
		here := index(field(path, "httpHeaders"), i)
		if !isHeaderName(h.GetName()) {
			c.text(field(here, "name"), h.GetName(), "letters, digits and -")
		}
		if strings.ContainsAny(h.GetValue(), "\r\n\x00") {
			c.add(Violation{Field: field(here, "value"), Message: "contains a line break", Allowed: "one line"})
		}
	}
}

func isHeaderName(s string) bool {
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && !strings.Contains("!#$%&'*+-.^_`|~", s[i:i+1]) {
			return false
		}
	}
	return s != ""
}

func (c *check) probePort(path string, port *balsav1.IntOrString, ports []*balsav1.ContainerPort) {
	name, isName := port.GetValue().(*balsav1.IntOrString_String_)
	switch {
	case port.GetValue() == nil:
		c.required(path, "")
	case !isName:
		c.port(path, port.GetInt())
	default:
		for _, p := range ports {
			if p.GetName() == name.String_ {
				return
			}
		}
		c.add(Violation{Field: path, Message: "names no port of the container", Found: quoted(name.String_), Allowed: "a number, or one of the container's port names" + portNames(ports)})
	}
}

func portNames(ports []*balsav1.ContainerPort) string {
	var names []string
	for _, p := range ports {
		if p.GetName() != "" {
			names = append(names, p.GetName())
		}
	}
	if len(names) == 0 {
		return " (it has none)"
	}
	return ": " + strings.Join(names, ", ")
}
