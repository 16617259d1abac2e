package dns

import (
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the resolver does.
type Metrics struct {
	queries          *prometheus.CounterVec
	forwards         prometheus.Histogram
	upstreamFailures prometheus.Counter
}

// NewMetrics registers the metrics; r may be nil.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "balsa_dns_queries_total",
			Help: "Questions answered, by where the answer came from (zone, completed, cache, upstream, self) and its code."}, []string{"source", "rcode"}),
		forwards: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "balsa_dns_forward_seconds",
			Help: "Time until upstream servers answered, or did not.", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 4}}),
		upstreamFailures: prometheus.NewCounter(prometheus.CounterOpts{Name: "balsa_dns_upstream_failures_total",
			Help: "Attempts at an upstream server that brought no answer."}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queries, m.forwards, m.upstreamFailures} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// The sources of an answer.
const (
	sourceZone = "zone"
	// sourceCompleted: a search domain was taken off, so that the client need not
	// try the others one by one.
	sourceCompleted = "completed"
	sourceCache     = "cache"
	sourceUpstream  = "upstream"
	sourceSelf      = "self" // refusals
)

func (m *Metrics) answered(source string, rcode int) {
	m.queries.WithLabelValues(source, mdns.RcodeToString[rcode]).Inc()
}

func (m *Metrics) forwarded(d time.Duration) { m.forwards.Observe(d.Seconds()) }

func (m *Metrics) upstreamFailed() { m.upstreamFailures.Inc() }
