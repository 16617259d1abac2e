package daemon

import (
	"sync"

	gometrics "github.com/hashicorp/go-metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/balsa-run/balsa/apiserver"
	"github.com/balsa-run/balsa/cluster"
)

// maxSeriesNames bounds the names that raft and cluster may make up.
const maxSeriesNames = 500

// metrics is cluster.Metrics in a Prometheus registry: every name gets the
// prefix balsa_. docs/reference/metrics.md lists them.
type metrics struct {
	registry *prometheus.Registry
	api      *apiserver.Metrics

	mu       sync.Mutex
	counters map[string]*prometheus.CounterVec   // guarded by mu
	gauges   map[string]*prometheus.GaugeVec     // guarded by mu
	samples  map[string]*prometheus.HistogramVec // guarded by mu
}

// newMetrics makes a registry with the process's own figures in it and points
// raft's, which are global to the process, to it.
func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), api: apiserver.NewMetrics(),
		counters: map[string]*prometheus.CounterVec{}, gauges: map[string]*prometheus.GaugeVec{}, samples: map[string]*prometheus.HistogramVec{},
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(m.api.Collectors()...)
	if _, err := gometrics.NewGlobal(cluster.RaftMetricsConfig(), cluster.RaftSink(m)); err != nil {
		panic(err) // only a bad configuration of ours
	}
	return m
}

func (m *metrics) Add(name string, delta float64, labels ...cluster.Label) {
	names, values := split(labels)
	m.mu.Lock()
	defer m.mu.Unlock()
	vec, ok := m.counters[name]
	if !ok {
		if !m.roomLocked() {
			return
		}
		vec = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "balsa_" + name + "_total", Help: name}, names)
		m.registry.MustRegister(vec)
		m.counters[name] = vec
	}
	if counter, err := vec.GetMetricWithLabelValues(values...); err == nil {
		counter.Add(delta)
	}
}

func (m *metrics) Set(name string, value float64, labels ...cluster.Label) {
	names, values := split(labels)
	m.mu.Lock()
	defer m.mu.Unlock()
	vec, ok := m.gauges[name]
	if !ok {
		if !m.roomLocked() {
			return
		}
		vec = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "balsa_" + name, Help: name}, names)
		m.registry.MustRegister(vec)
		m.gauges[name] = vec
	}
	if gauge, err := vec.GetMetricWithLabelValues(values...); err == nil {
		gauge.Set(value)
	}
}

func (m *metrics) Observe(name string, value float64, labels ...cluster.Label) {
	names, values := split(labels)
	m.mu.Lock()
	defer m.mu.Unlock()
	vec, ok := m.samples[name]
	if !ok {
		if !m.roomLocked() {
			return
		}
		vec = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "balsa_" + name + "_observed", Help: name, Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20),
		}, names)
		m.registry.MustRegister(vec)
		m.samples[name] = vec
	}
	if sample, err := vec.GetMetricWithLabelValues(values...); err == nil {
		sample.Observe(value)
	}
}

func (m *metrics) roomLocked() bool {
	return len(m.counters)+len(m.gauges)+len(m.samples) < maxSeriesNames
}

func split(labels []cluster.Label) (names, values []string) {
	for _, label := range labels {
		names, values = append(names, label.Name), append(values, label.Value)
	}
	return names, values
}
