package pod

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// ProbeKind is what a probe is for.
type ProbeKind string

// The kinds of probes.
const (
	Readiness ProbeKind = "Readiness"
	Liveness  ProbeKind = "Liveness"
	Startup   ProbeKind = "Startup"
)

// ProbeKey names a probe of a pod.
type ProbeKey struct {
	Container string
	Kind      ProbeKind
}

// Probe is one probe of a container, resolved: whom to ask and how.
type Probe struct {
	UID       string
	Container string
	Attempt   int
	Kind      ProbeKind
	Question

	InitialDelay     time.Duration
	Timeout          time.Duration
	Period           time.Duration
	SuccessThreshold int
	FailureThreshold int
	// StartedAt is when the attempt began to run.
	StartedAt time.Time
	// Seed is the answer until the first results are in: an agent that was
	// restarted goes on from what was recorded.
	Seed bool
}

// Key names the probe within its pod.
func (p Probe) Key() ProbeKey { return ProbeKey{p.Container, p.Kind} }

// Question is what is asked, or done, in one of four ways.
type Question struct {
	// Exec is a command in the container.
	Exec []string
	// URL is asked with GET. Host replaces its host in the request, if not empty.
	URL    string
	Header map[string][]string
	Host   string
	// TCP is an address to connect to.
	TCP string
	// GRPC is the address of a grpc.health.v1.Health, which is asked for Service.
	GRPC    string
	Service string
}

// ProbeState is what the results so far amount to.
type ProbeState struct {
	Attempt int
	// Ready: the probe has succeeded as often as it has to; of liveness it counts
	// for nothing. Failed: as often as it may.
	Ready     bool
	Failed    bool
	Successes int // in a row
	Failures  int // in a row
	// Message is the last failure's.
	Message string
}

// Start is the state before the first result.
func (p Probe) Start() ProbeState { return ProbeState{Attempt: p.Attempt, Ready: p.Seed} }

// Next is when to ask: for the first time, and after a result that came at now.
// Until it is ready a container is asked every second, if its period is longer:
// who waits for a rollout should not also wait for a long period to pass.
func (p Probe) Next(s ProbeState, now time.Time) time.Time {
	if s.Successes+s.Failures == 0 {
		if first := p.StartedAt.Add(p.InitialDelay); !p.Seed && first.After(now) {
			return first
		}
		return now
	}
	if p.Kind == Readiness && !s.Ready {
		return now.Add(min(p.Period, probeSoon))
	}
	return now.Add(p.Period)
}

// Over tells whether there is nothing more to ask.
func (p Probe) Over(s ProbeState) bool { return s.Failed || p.Kind == Startup && s.Ready }

// Observe takes one result in.
func (p Probe) Observe(s ProbeState, err error) (ProbeState, []Event) {
	if err == nil {
		s.Successes, s.Failures, s.Message = s.Successes+1, 0, ""
		s.Ready = s.Ready || s.Successes >= p.SuccessThreshold
		return s, nil
	}
	before := s.Message
	s.Successes, s.Failures, s.Message = 0, s.Failures+1, err.Error()
	if s.Failures >= p.FailureThreshold {
		s.Ready = false
		s.Failed = p.Kind != Readiness
	}
	if before == s.Message && !s.Failed {
		return s, nil
	}
	return s, []Event{{Warning: true, Reason: ReasonUnhealthy, Container: p.Container, Message: string(p.Kind) + " probe failed: " + s.Message}}
}

func probeOf(c *balsav1.Container, kind ProbeKind) *balsav1.Probe {
	switch kind {
	case Liveness:
		return c.GetLivenessProbe()
	case Startup:
		return c.GetStartupProbe()
	}
	return c.GetReadinessProbe()
}

// probes lists whom to ask: a container that has not started yet for that alone.
// Of a pod that is about to go only readiness counts.
func (s *step) probes(all bool) {
	for _, c := range s.containers {
		if !c.running() || s.hooking(c) {
			continue
		}
		kinds := []ProbeKind{Readiness, Liveness}
		doomed := s.memory(c).Doomed == c.state.Attempt+1
		switch {
		case !s.passed(c) && (!all || doomed):
			continue
		case !s.passed(c):
			kinds = []ProbeKind{Startup}
		case !all || doomed:
			kinds = kinds[:1]
		}
		for _, kind := range kinds {
			if p, ok := s.probe(c, kind); ok {
				s.plan.Probes = append(s.plan.Probes, p)
			}
		}
	}
}

// probe resolves the probe of a container that runs. ok is false when it has
// none that can be asked.
func (s *step) probe(c *container, kind ProbeKind) (Probe, bool) {
	p, ok := newProbe(s.uid(), c.spec, kind, c.state, s.address())
	if ok && kind == Readiness {
		p.Seed = s.recordedReady(c)
	}
	return p, ok
}

func newProbe(uid string, c *balsav1.Container, kind ProbeKind, state runtime.ContainerState, ip netip.Addr) (Probe, bool) {
	spec := probeOf(c, kind)
	q, err := question(c, spec.GetExec(), spec.GetHttpGet(), ip)
	switch {
	case spec == nil:
		return Probe{}, false
	case spec.GetTcpSocket() != nil:
		q.TCP, err = hostPort(c, spec.GetTcpSocket().GetHost(), spec.GetTcpSocket().GetPort(), ip)
	case spec.GetGrpc() != nil:
		q.GRPC, err = hostPort(c, "", object.IntValue(spec.GetGrpc().GetPort()), ip)
		q.Service = spec.GetGrpc().GetService()
	}
	if err != nil {
		return Probe{}, false
	}
	return Probe{
		UID: uid, Container: c.GetName(), Attempt: state.Attempt, Kind: kind, Question: q, StartedAt: state.StartedAt,
		InitialDelay:     time.Duration(spec.GetInitialDelaySeconds()) * time.Second,
		Timeout:          seconds(spec.TimeoutSeconds, object.DefaultProbeTimeoutSeconds),
		Period:           seconds(spec.PeriodSeconds, object.DefaultProbePeriodSeconds),
		SuccessThreshold: count(spec.SuccessThreshold, object.DefaultProbeSuccessThreshold),
		FailureThreshold: count(spec.FailureThreshold, object.DefaultProbeFailureThreshold),
	}, true
}

// question resolves a command or an HTTP request.
func question(c *balsav1.Container, exec *balsav1.ExecAction, get *balsav1.HTTPGetAction, ip netip.Addr) (Question, error) {
	q := Question{Exec: exec.GetCommand()}
	if get == nil {
		return q, nil
	}
	address, err := hostPort(c, get.GetHost(), get.GetPort(), ip)
	if err != nil {
		return q, err
	}
	scheme := "http"
	if get.GetScheme() == object.SchemeHTTPS {
		scheme = "https"
	}
	path := get.GetPath()
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	q.URL, q.Header = scheme+"://"+address+path, map[string][]string{}
	for _, h := range get.GetHttpHeaders() {
		if strings.EqualFold(h.GetName(), "Host") {
			q.Host = h.GetValue()
			continue
		}
		q.Header[h.GetName()] = append(q.Header[h.GetName()], h.GetValue())
	}
	return q, nil
}

func hostPort(c *balsav1.Container, host string, port *balsav1.IntOrString, ip netip.Addr) (string, error) {
	number, found := probePort(c, port)
	switch {
	case !found:
		return "", fmt.Errorf("container %s has no port %q", c.GetName(), port.GetString_())
	case host != "":
		return net.JoinHostPort(host, strconv.Itoa(int(number))), nil
	case !ip.IsValid():
		return "", fmt.Errorf("the pod has no address yet")
	}
	return net.JoinHostPort(ip.String(), strconv.Itoa(int(number))), nil
}

func probePort(c *balsav1.Container, port *balsav1.IntOrString) (int32, bool) {
	name, isName := port.GetValue().(*balsav1.IntOrString_String_)
	if !isName {
		return port.GetInt(), port.GetInt() > 0
	}
	for _, p := range c.GetPorts() {
		if p.GetName() == name.String_ {
			return p.GetContainerPort(), true
		}
	}
	return 0, false
}

func seconds(p *int32, absent int32) time.Duration {
	return time.Duration(count(p, absent)) * time.Second
}

func count(p *int32, absent int32) int {
	if p == nil || *p < 1 {
		return int(absent)
	}
	return int(*p)
}

// recordedReady tells whether this very attempt was last reported ready.
func (s *step) recordedReady(c *container) bool {
	recorded := containerIn(s.v.Pod.GetStatus(), c.name())
	return recorded.GetReady() && recorded.GetContainerId() == s.containerID(c.state) || s.memory(c).Ready == c.state.Attempt+1
}

// noteReady remembers what the readiness probes say.
func (s *step) noteReady() {
	for _, c := range s.containers {
		if c.spec.GetReadinessProbe() == nil || !c.running() {
			continue
		}
		n := 0
		if s.ready(c) {
			n = c.state.Attempt + 1
		}
		if s.memory(c).Ready != n {
			s.mem.change(c.name(), func(m *ContainerMemory) { m.Ready = n })
		}
	}
}

// ready tells whether a container takes requests. An init container is ready when
// it has done its work.
func (s *step) ready(c *container) bool {
	switch {
	case c.kind == initial:
		return s.initDone(c)
	case c.kind == ephemeral || !s.started(c) || s.final() || s.mem.End != nil:
		return false // of a pod that has to end nobody should ask anything
	case c.spec.GetReadinessProbe() == nil:
		return true
	}
	if p, ok := s.v.Probes[ProbeKey{c.name(), Readiness}]; ok && p.Attempt == c.state.Attempt {
		return p.Ready
	}
	return s.recordedReady(c)
}

// containerID names one attempt for users.
func containerID(uid runtime.PodUID, name string, attempt int) string {
	return fmt.Sprintf("balsa://%s/%s/%d", uid, name, attempt)
}
