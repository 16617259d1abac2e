package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/balsa-run/balsa/node/pod"
)

// metrics count what the agent does.
type metrics struct {
	pods     prometheus.Gauge
	revision prometheus.Gauge
	applied  prometheus.Gauge
	streams  prometheus.Counter
	repairs  prometheus.Counter
	// networkRepairs are of the pod network, repairs of the service rules.
	networkRepairs prometheus.Counter
	eventsDropped  prometheus.Counter
	actions        *prometheus.HistogramVec
	fetches        *prometheus.HistogramVec
	calls          *prometheus.CounterVec
	reports        prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		pods:           gauge("balsa_agent_pods", "Pods that the agent looks after."),
		revision:       gauge("balsa_agent_revision", "Revision of the assignments that the agent has."),
		applied:        gauge("balsa_agent_applied_revision", "Revision that proxy and resolver have both applied."),
		streams:        counter("balsa_agent_streams_ended_total", "Streams of assignments that ended."),
		repairs:        counter("balsa_agent_proxy_repairs_total", "Differences between the kernel's service rules and the plan."),
		networkRepairs: counter("balsa_agent_network_repairs_total", "Differences between the kernel's routes, neighbours, devices and settings and what the pod network needs."),
		eventsDropped:  counter("balsa_agent_events_dropped_total", "Events that were dropped since too many waited."),
		reports:        counter("balsa_agent_reports_total", "Pod reports that servers took."),
		actions: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "balsa_agent_action_seconds", Help: "Time that actions on pods took.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30}}, []string{"action", "outcome"}),
		fetches: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "balsa_agent_image_seconds", Help: "Time that it took to have an image ready.",
			Buckets: []float64{.001, .01, .1, 1, 5, 30, 120, 600}}, []string{"outcome"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "balsa_agent_work_total",
			Help: "Heartbeats, probes, hooks, counts of connections, syncs of services, writes of the assignments and calls to report, by outcome."}, []string{"work", "outcome"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.pods, m.revision, m.applied, m.streams, m.repairs, m.networkRepairs, m.eventsDropped, m.reports, m.actions, m.fetches, m.calls} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

func (m *metrics) acted(a pod.Action, d time.Duration, err error) {
	name := "unknown"
	switch a.(type) {
	case pod.PrepareVolumes:
		name = "prepare_volumes"
	case pod.RemoveVolumes:
		name = "remove_volumes"
	case pod.CreateSandbox:
		name = "create_sandbox"
	case pod.Connect:
		name = "connect"
	case pod.StartContainer:
		name = "start_container"
	case pod.Signal:
		name = "signal"
	case pod.RemovePod:
		name = "remove_pod"
	case pod.Disconnect:
		name = "disconnect"
	}
	m.actions.WithLabelValues(name, outcome(err)).Observe(d.Seconds())
}

func (m *metrics) fetched(d time.Duration, err error) {
	m.fetches.WithLabelValues(outcome(err)).Observe(d.Seconds())
}

func (m *metrics) reported(pods int, err error) {
	m.calls.WithLabelValues("report", outcome(err)).Inc()
	if err == nil {
		m.reports.Add(float64(pods))
	}
}

func (m *metrics) beat(err error)    { m.calls.WithLabelValues("heartbeat", outcome(err)).Inc() }
func (m *metrics) probed(err error)  { m.calls.WithLabelValues("probe", outcome(err)).Inc() }
func (m *metrics) hooked(err error)  { m.calls.WithLabelValues("hook", outcome(err)).Inc() }
func (m *metrics) counted(err error) { m.calls.WithLabelValues("count", outcome(err)).Inc() }
func (m *metrics) synced(err error)  { m.calls.WithLabelValues("sync", outcome(err)).Inc() }
func (m *metrics) saved(err error)   { m.calls.WithLabelValues("save", outcome(err)).Inc() }
