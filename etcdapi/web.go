package etcdapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/version"
)

// What a client of the pages may cost.
const (
	// webHeaderBytes bounds the header of a request.
	webHeaderBytes = 64 << 10
	// webHeaderWait bounds the wait for it, webRequestWait that for a whole request,
	// webAnswerWait the time to answer one, webIdle that between two.
	webHeaderWait  = 10 * time.Second
	webRequestWait = 30 * time.Second
	webAnswerWait  = 30 * time.Second
	webIdle        = 2 * time.Minute
	// webRequests bounds the pages that are asked for at once.
	webRequests = 64
)

// webPrefix is in front of a page's path where methods have their names.
const webPrefix = "http"

// clusterVersion is the version that etcd's members would agree on.
func clusterVersion() string { return version.Cluster(version.Version) + ".0" }

// newWeb is the server of the pages that etcd has beside gRPC on its clients' port.
func (s *Server) newWeb() *http.Server {
	return &http.Server{
		Handler:           s.webHandler(),
		MaxHeaderBytes:    webHeaderBytes,
		ReadHeaderTimeout: webHeaderWait, ReadTimeout: webRequestWait, WriteTimeout: webAnswerWait, IdleTimeout: webIdle,
		ConnContext: s.gateway.connContext, ConnState: s.gateway.forget,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: s.limits.Streams},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

// webHandler gives what is gRPC to gRPC, what is JSON to the gateway, and the rest to the
// pages.
func (s *Server) webHandler() http.Handler {
	pages := s.pages()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		isCall := r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
		if !isCall && !isGateway(r.URL.Path) {
			pages.ServeHTTP(w, r)
			return
		}
		if err := noDeadlines(w); err != nil {
			s.logger.Error("a call over net/http keeps the deadlines of a page", "error", err)
		}
		if isCall {
			s.grpc.ServeHTTP(w, r)
			return
		}
		s.gateway.serve(w, r, s.limits.gatewayBody())
	})
}

func (s *Server) pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.noPage)
	mux.HandleFunc("/metrics", s.metricsPage)
	mux.HandleFunc("/health", getOnly(s.healthPage))
	mux.HandleFunc("/version", getOnly(s.versionPage))
	s.addProbe(mux, "/livez", s.livez())
	s.addProbe(mux, "/readyz", s.readyz())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, page := mux.Handler(r)
		s.guardPage(pageName(page), mux, &pageWriter{ResponseWriter: w}, r)
	})
}

// pageName is what a page's pattern is called where methods have their names: the checks
// of a probe together, and no path that a client chose.
func pageName(pattern string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(pattern, "/"), "/")
	if first == "" {
		first = "unknown"
	}
	return webPrefix + "/" + first
}

// pageWriter remembers the status of an answer.
type pageWriter struct {
	http.ResponseWriter
	code int
}

func (p *pageWriter) WriteHeader(code int) {
	if p.code == 0 {
		p.code = code
	}
	p.ResponseWriter.WriteHeader(code)
}

func (p *pageWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// guardPage is guardUnary for pages.
func (s *Server) guardPage(name string, next http.Handler, w *pageWriter, r *http.Request) {
	c, began := &call{}, s.clock.Now()
	err := s.admitPage(c, name, r)
	if err == nil {
		defer func() { <-s.asked }()
		next.ServeHTTP(w, r)
		err = pageError(w.code)
	} else {
		refusePage(w, err)
	}
	s.metrics.Handled(name, status.Code(err), s.since(began))
	s.audit(c, name, nil, nil, err)
}

// admitPage says why a page is not shown; if it is, a place of asked is taken.
func (s *Server) admitPage(c *call, name string, r *http.Request) (err error) {
	ctx := r.Context()
	if r.TLS != nil {
		ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: tlsInfo(*r.TLS)})
	}
	if c.identity, err = s.admit(ctx, name); err != nil {
		return err
	}
	select {
	case s.asked <- struct{}{}:
		return nil
	default:
		return status.Errorf(codes.ResourceExhausted, "etcdserver: too many requests: %d pages are being answered: try again a little later", webRequests)
	}
}

func refusePage(w http.ResponseWriter, err error) {
	text, code := status.Convert(err).Message(), http.StatusUnauthorized
	switch status.Code(err) {
	case codes.PermissionDenied:
		code = http.StatusForbidden
		text += ": use a certificate of role reader or admin: balsa user create NAME --role reader --pem DIR"
	case codes.ResourceExhausted:
		code = http.StatusTooManyRequests
	}
	http.Error(w, text, code)
}

// pageError is an answer's status as calls have it.
func pageError(code int) error {
	switch code {
	case 0, http.StatusOK:
		return nil
	case http.StatusNotFound:
		return status.Error(codes.Unimplemented, "there is no such page")
	case http.StatusMethodNotAllowed:
		return status.Error(codes.InvalidArgument, "pages are read with GET")
	case http.StatusServiceUnavailable:
		return status.Error(codes.Unavailable, "not healthy")
	}
	return status.Errorf(codes.Unknown, "answered with %d", code)
}

// getOnly refuses other methods as etcd does.
func getOnly(page http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		page(w, r)
	}
}

func (s *Server) noPage(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "404 page not found: there are /metrics, /health, /livez, /readyz and /version; keys are read and written by gRPC, or by POST below /v3/ (etcd's JSON gateway)", http.StatusNotFound)
}

func (s *Server) metricsPage(w http.ResponseWriter, r *http.Request) {
	if s.scrape == nil {
		http.Error(w, "this server was built without metrics", http.StatusNotFound)
		return
	}
	s.scrape.ServeHTTP(w, r)
}

func (s *Server) versionPage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, version.Versions{Server: versionOf(s.group.Status().Version), Cluster: clusterVersion(), Storage: StorageVersion})
}

// health is etcd's answer, whose "true" is a text.
type health struct {
	Health string `json:"health"`
	Reason string `json:"reason"`
}

// healthPage tells whether the cluster serves, or with serializable=true whether this
// server does. exclude=NOSPACE leaves an alarm out of account.
func (s *Server) healthPage(w http.ResponseWriter, r *http.Request) {
	reason := s.unhealthy(r.Context(), r.URL.Query()["exclude"], r.URL.Query().Get("serializable") == "true")
	if reason == "" {
		writeJSON(w, health{Health: "true"})
		return
	}
	var text strings.Builder
	writeJSON(&text, health{Health: "false", Reason: reason})
	http.Error(w, text.String(), http.StatusServiceUnavailable)
}

// unhealthy says in etcd's words why the server is not healthy; "" when it is.
func (s *Server) unhealthy(ctx context.Context, excluded []string, serializable bool) string {
	if alarm := s.activeAlarm(excluded); alarm != "" {
		return "ALARM " + alarm
	}
	if !serializable && s.group.Status().LeaderID == 0 {
		return "RAFT NO LEADER"
	}
	if err := s.readable(ctx, serializable); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	return ""
}

func writeJSON(w io.Writer, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic("etcdapi: an answer that was made here cannot be encoded: " + err.Error())
	}
	_, _ = w.Write(text) // a client that has gone does not need it
}

// serveWeb answers until the listener is closed.
func (s *Server) serveWeb(l net.Listener) error {
	if err := s.web.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve etcd's pages on %s: %w", l.Addr(), err)
	}
	return nil
}
