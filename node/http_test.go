package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/fake"
	"github.com/balsa-run/balsa/pki"
)

func TestProbeHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		var code int
		if _, err := fmt.Sscanf(r.URL.Path, "/status/%d", &code); err != nil {
			code = 500
		}
		w.WriteHeader(code)
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "web.example" || r.Header.Get("X-Token") != "t" || r.Header.Get("User-Agent") != "balsa-probe" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/status/503", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := httptest.NewServer(mux)
	defer s.Close()
	for path, want := range map[string]string{
		"/status/200": "", "/status/399": "", "/status/400": "HTTP status 400", "/status/503": "HTTP status 503", "/headers": "",
		"/here": "HTTP status 503", "/away": "", "/round": "stopped after 10 redirects",
	} {
		err := node.NetProber{}.Probe(t.Context(), pod.Probe{Question: pod.Question{URL: s.URL + path, Host: "web.example", Header: map[string][]string{"x-token": {"t"}}}})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := (node.NetProber{}).Probe(ctx, pod.Probe{Question: pod.Question{URL: s.URL + "/slow"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that does not answer: %v", err)
	}
	address := s.URL
	s.Close()
	if err := (node.NetProber{}).Probe(t.Context(), pod.Probe{Question: pod.Question{URL: address}}); err == nil {
		t.Error("nobody listens, and the probe is a success")
	}
}

// logLab is a streamLab whose client speaks Connect's own protocol.
type logLab struct {
	client internalv1connect.AgentServiceClient
	rt     *fake.Runtime
}

func newLogLab(t *testing.T, role pki.Role) *logLab {
	l := newStreamLab(t, role)
	return &logLab{client: internalv1connect.NewAgentServiceClient(l.server.Client(), l.server.URL), rt: l.rt}
}

func (l *logLab) run(t *testing.T, attempt int, steps ...string) {
	t.Helper()
	err := l.rt.RunContainer(t.Context(), "u", runtime.ContainerConfig{Name: "c", Attempt: attempt, Image: imageOf("app:1"), Command: append([]string{"/bin/sim"}, steps...)})
	if err != nil {
		t.Fatal(err)
	}
}

// wait returns when the newest attempt has ended.
func (l *logLab) wait(t *testing.T) {
	t.Helper()
	for {
		p, err := l.rt.Pod(t.Context(), "u")
		if err != nil {
			t.Fatal(err)
		}
		if c, _ := p.Container("c"); c.Status == runtime.ContainerExited {
			return
		}
		if _, err := l.rt.NextChange(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *logLab) read(t *testing.T, req *internalv1.LogsRequest) (lines []string, err error) {
	t.Helper()
	req.PodUid, req.Container = "u", "c"
	stream, err := l.client.Logs(t.Context(), req)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := stream.Close(); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}()
	for stream.Receive() {
		for _, line := range stream.Msg().GetLines() {
			lines = append(lines, line.GetStream()+" "+string(line.GetLine()))
			if line.GetTimeNs() == 0 {
				t.Error("a line has no time")
			}
		}
	}
	return lines, stream.Err()
}

func TestLogs(t *testing.T) {
	l := newLogLab(t, pki.RoleServer)
	if _, err := l.read(t, &internalv1.LogsRequest{}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a container that is not there: %v", err)
	}
	l.run(t, 0, "out=first", "exit=1")
	l.wait(t)
	if _, err := l.read(t, &internalv1.LogsRequest{Previous: true}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the run before the first: %v", err)
	}
	l.run(t, 1, "out=a", "err=b", "lines=3")
	l.wait(t)
	for _, tt := range []struct {
		req  *internalv1.LogsRequest
		want []string
	}{
		{&internalv1.LogsRequest{}, []string{"stdout a", "stderr b", "stdout line 0", "stdout line 1", "stdout line 2"}},
		{&internalv1.LogsRequest{Follow: true}, []string{"stdout a", "stderr b", "stdout line 0", "stdout line 1", "stdout line 2"}},
		{&internalv1.LogsRequest{TailLines: proto.Int64(2)}, []string{"stdout line 1", "stdout line 2"}},
		{&internalv1.LogsRequest{TailLines: proto.Int64(0)}, nil},
		{&internalv1.LogsRequest{Previous: true}, []string{"stdout first"}},
		{&internalv1.LogsRequest{SinceNs: time.Now().Add(time.Hour).UnixNano()}, nil},
	} {
		got, err := l.read(t, tt.req)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%v: %q %v, want %q", tt.req, got, err, tt.want)
		}
	}
}

func TestLogsFollowAndLimit(t *testing.T) {
	l := newLogLab(t, pki.RoleServer)
	l.run(t, 0, "out=up", "term=0", "forever")
	stream, err := l.client.Logs(t.Context(), &internalv1.LogsRequest{PodUid: "u", Container: "c", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || string(stream.Msg().GetLines()[0].GetLine()) != "up" {
		t.Fatalf("a line is not sent at once: %v", stream.Err())
	}
	if _, err := l.read(t, &internalv1.LogsRequest{}); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one stream too many: %v", err)
	}
	if err := l.rt.Signal(t.Context(), "u", "c", 0, runtime.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	if err := stream.Err(); err != nil {
		t.Errorf("the stream ends with %v, want with the container", err)
	}
}

func TestLogsAreForServers(t *testing.T) {
	for _, role := range []pki.Role{pki.RoleAgent, pki.RoleAdmin, pki.RoleReader} {
		l := newLogLab(t, role)
		if _, err := l.read(t, &internalv1.LogsRequest{}); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("role %s: %v", role, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	_, err := node.New(node.Config{Name: "n1"})
	for _, field := range []string{"NodeIP", "Disk", "Clock", "API", "Runtime", "Open"} {
		if err == nil || !strings.Contains(err.Error(), "Config."+field) {
			t.Errorf("error %v does not name %s", err, field)
		}
	}
}
