package daemon

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/balsa-run/balsa/node/image"
	"github.com/balsa-run/balsa/pki"
)

const metricsPath = "/metrics"

// newAgentRegistry has the process's own figures in it.
func newAgentRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// portHandler is everything on an agent's port: metrics for users and servers, image
// blobs for agents and servers, and the rest for servers alone.
func portHandler(agent http.Handler, store *image.Store, from prometheus.Gatherer) http.Handler {
	return withMetrics(withBlobs(agent, store), from)
}

// withMetrics serves the agent's metrics to users and servers. Users get nothing
// else from an agent: what they want they ask a server, which authorises it.
func withMetrics(next http.Handler, from prometheus.Gatherer) http.Handler {
	metrics := promhttp.HandlerFor(from, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := pki.IdentityFrom(r.Context())
		user := id.Role == pki.RoleAdmin || id.Role == pki.RoleReader
		switch {
		case !ok:
			http.Error(w, "this takes a client certificate of the cluster", http.StatusUnauthorized)
		case r.URL.Path == metricsPath && (user || id.Role == pki.RoleServer):
			metrics.ServeHTTP(w, r)
		case r.URL.Path == metricsPath || user:
			http.Error(w, id.String()+" may not ask this of an agent: use a server's address", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// maxScrapes bounds those that are answered at once.
const maxScrapes = 4
