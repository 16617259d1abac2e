package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc/status"
)

// probe is one of the checks that /livez and /readyz consist of.
type probe struct {
	name  string
	check func(context.Context) error
}

// livez: a server that cannot answer from its own memory should be started anew.
func (s *Server) livez() []probe {
	return []probe{{"serializable_read", func(ctx context.Context) error { return s.readable(ctx, true) }}}
}

// readyz: whether clients should be sent here. etcd's check for damaged data is there by
// name and always well, since a server that differs from the majority stops.
func (s *Server) readyz() []probe {
	return []probe{
		{"data_corruption", func(context.Context) error { return nil }},
		{"serializable_read", func(ctx context.Context) error { return s.readable(ctx, true) }},
		{"linearizable_read", func(ctx context.Context) error { return s.readable(ctx, false) }},
		{"non_learner", s.votes},
	}
}

func (s *Server) votes(context.Context) error {
	if s.group.Status().Learner {
		return errors.New("not supported for learner")
	}
	return nil
}

// readable reads as a client would, for as long as etcd lets a request take.
func (s *Server) readable(ctx context.Context, serializable bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, leaseWait, ErrTimeout)
	defer cancel()
	if _, err := s.viewFor(ctx, serializable); err != nil {
		return errors.New(status.Convert(err).Message())
	}
	return nil
}

// activeAlarm is the name of an alarm that is raised and not excluded.
func (s *Server) activeAlarm(excluded []string) string {
	for _, alarm := range s.alarms() {
		if name := alarm.GetAlarm().String(); !slices.Contains(excluded, name) {
			return name
		}
	}
	return ""
}

// addProbe serves all checks at path, without those of the parameter exclude, and each
// at a path of its own.
func (s *Server) addProbe(mux *http.ServeMux, path string, probes []probe) {
	mux.HandleFunc(path, getOnly(func(w http.ResponseWriter, r *http.Request) {
		excluded := r.URL.Query()["exclude"]
		answerProbes(w, r, slices.DeleteFunc(slices.Clone(probes), func(p probe) bool { return slices.Contains(excluded, p.name) }))
	}))
	for _, p := range probes {
		mux.HandleFunc(path+"/"+p.name, getOnly(func(w http.ResponseWriter, r *http.Request) { answerProbes(w, r, []probe{p}) }))
	}
}

// answerProbes says each check's outcome when one fails or the client asks for it
// (verbose).
func answerProbes(w http.ResponseWriter, r *http.Request, probes []probe) {
	var said strings.Builder
	failed := false
	for _, p := range probes {
		if err := p.check(r.Context()); err != nil {
			failed = true
			fmt.Fprintf(&said, "[-]%s failed: %v\n", p.name, err)
			continue
		}
		fmt.Fprintf(&said, "[+]%s ok\n", p.name)
	}
	if failed {
		http.Error(w, said.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !r.URL.Query().Has("verbose") {
		said.Reset()
	}
	_, _ = io.WriteString(w, said.String()+"ok\n") // a client that has gone does not need it
}
