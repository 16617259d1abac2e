package apiserver

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is what the API tells about itself. Make it once, register it where
// the process keeps its registry, and give it to New.
type Metrics struct {
	// Requests counts finished calls by method and code; a call that was refused
	// before its message was read or understood has code "refused".
	Requests *prometheus.CounterVec
	// Latency is how long unary calls take, by method.
	Latency *prometheus.HistogramVec
	// InFlight is calls that are being served, by type: unary or stream.
	InFlight *prometheus.GaugeVec
	// Watches is open watches by kind; assignments count as kind "assignments".
	Watches *prometheus.GaugeVec
	// WatchEvents counts what watches have sent, by kind.
	WatchEvents *prometheus.CounterVec
	// Conflicts counts writes that were planned anew, by method.
	Conflicts *prometheus.CounterVec
}

// NewMetrics makes the metrics.
func NewMetrics() *Metrics {
	return &Metrics{
		Requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "balsa_api_requests_total", Help: "Finished API calls by method and code.",
		}, []string{"method", "code"}),
		Latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "balsa_api_request_seconds", Help: "Duration of unary API calls.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"method"}),
		InFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "balsa_api_in_flight", Help: "API calls being served.",
		}, []string{"type"}),
		Watches: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "balsa_api_watches", Help: "Open watches by kind.",
		}, []string{"kind"}),
		WatchEvents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "balsa_api_watch_events_total", Help: "Changes sent to watches by kind.",
		}, []string{"kind"}),
		Conflicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "balsa_api_conflicts_total", Help: "Writes planned anew after a conflict, by method.",
		}, []string{"method"}),
	}
}

// Collectors lists the metrics for a registry.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.Requests, m.Latency, m.InFlight, m.Watches, m.WatchEvents, m.Conflicts}
}
