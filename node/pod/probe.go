package pod

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// Probe is one container's readiness probe, resolved: whom to ask and how.
type Probe struct {
	UID       string
	Container string
	Attempt   int
	URL       string
	Header    map[string][]string
	// Host replaces the URL's host in the request, if not empty.
	Host string

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

// ProbeState is what the results so far amount to.
type ProbeState struct {
	Attempt   int
	Ready     bool
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
	if !s.Ready {
		return now.Add(min(p.Period, probeSoon))
	}
	return now.Add(p.Period)
}

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
	}
	if before == s.Message {
		return s, nil
	}
	return s, []Event{{Warning: true, Reason: "Unhealthy", Container: p.Container, Message: "Readiness probe failed: " + s.Message}}
}

// newProbe resolves the probe of a container that runs. ok is false when it has
// none that can be asked.
func newProbe(uid string, c *balsav1.Container, state runtime.ContainerState, ip netip.Addr, seed bool) (Probe, bool) {
	spec, get := c.GetReadinessProbe(), c.GetReadinessProbe().GetHttpGet()
	port, found := probePort(c, get.GetPort())
	if get == nil || !found || !ip.IsValid() {
		return Probe{}, false
	}
	path := get.GetPath()
	if path == "" {
		path = "/"
	}
	p := Probe{
		UID: uid, Container: c.GetName(), Attempt: state.Attempt, StartedAt: state.StartedAt, Seed: seed,
		URL:              "http://" + net.JoinHostPort(ip.String(), strconv.Itoa(int(port))) + path,
		InitialDelay:     time.Duration(spec.GetInitialDelaySeconds()) * time.Second,
		Timeout:          seconds(spec.TimeoutSeconds, object.DefaultProbeTimeoutSeconds),
		Period:           seconds(spec.PeriodSeconds, object.DefaultProbePeriodSeconds),
		SuccessThreshold: count(spec.SuccessThreshold, object.DefaultProbeSuccessThreshold),
		FailureThreshold: count(spec.FailureThreshold, object.DefaultProbeFailureThreshold),
	}
	p.headers(get.GetHttpHeaders())
	return p, true
}

func (p *Probe) headers(list []*balsav1.HTTPHeader) {
	p.Header = map[string][]string{}
	for _, h := range list {
		if h.GetName() == "Host" || h.GetName() == "host" {
			p.Host = h.GetValue()
			continue
		}
		p.Header[h.GetName()] = append(p.Header[h.GetName()], h.GetValue())
	}
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

// containerID names one attempt for users.
func containerID(uid runtime.PodUID, name string, attempt int) string {
	return fmt.Sprintf("balsa://%s/%s/%d", uid, name, attempt)
}
