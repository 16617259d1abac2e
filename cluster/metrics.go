package cluster

import (
	"strings"
	"time"

	"github.com/hashicorp/go-metrics"
)

// Metrics is where numbers go. Names are in snake case without a prefix; the
// daemon gives them to Prometheus.
type Metrics interface {
	Add(name string, delta float64, labels ...Label)
	Set(name string, value float64, labels ...Label)
	// Observe records a sample; durations are in seconds.
	Observe(name string, value float64, labels ...Label)
}

// Label is a name and a value.
type Label struct{ Name, Value string }

type noMetrics struct{}

func (noMetrics) Add(string, float64, ...Label)     {}
func (noMetrics) Set(string, float64, ...Label)     {}
func (noMetrics) Observe(string, float64, ...Label) {}

// RaftSink makes m the sink of a go-metrics instance. hashicorp/raft reports to
// the process's global one, so the daemon, and nobody else, calls
// metrics.NewGlobal with it, once.
func RaftSink(m Metrics) metrics.MetricSink { return raftSink{m} }

// RaftMetricsConfig is the go-metrics configuration that goes with RaftSink: no
// host name, no goroutine of its own.
func RaftMetricsConfig() *metrics.Config {
	config := metrics.DefaultConfig("")
	config.EnableHostname = false
	config.EnableRuntimeMetrics = false
	config.EnableTypePrefix = false
	config.TimerGranularity = time.Second
	return config
}

type raftSink struct{ to Metrics }

func (s raftSink) SetGauge(key []string, val float32) { s.to.Set(metricName(key), float64(val)) }
func (s raftSink) SetGaugeWithLabels(key []string, val float32, labels []metrics.Label) {
	s.to.Set(metricName(key), float64(val), metricLabels(labels)...)
}

// EmitKey is go-metrics' key-value form, which raft does not use.
func (s raftSink) EmitKey(key []string, val float32) { s.to.Set(metricName(key), float64(val)) }
func (s raftSink) IncrCounter(key []string, val float32) {
	s.to.Add(metricName(key), float64(val))
}
func (s raftSink) IncrCounterWithLabels(key []string, val float32, labels []metrics.Label) {
	s.to.Add(metricName(key), float64(val), metricLabels(labels)...)
}
func (s raftSink) AddSample(key []string, val float32) { s.to.Observe(metricName(key), float64(val)) }
func (s raftSink) AddSampleWithLabels(key []string, val float32, labels []metrics.Label) {
	s.to.Observe(metricName(key), float64(val), metricLabels(labels)...)
}

func metricName(key []string) string {
	clean := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}
	return strings.Map(clean, strings.Trim(strings.Join(key, "_"), "_"))
}

func metricLabels(labels []metrics.Label) []Label {
	out := make([]Label, len(labels))
	for i, l := range labels {
		out[i] = Label{Name: l.Name, Value: l.Value}
	}
	return out
}
