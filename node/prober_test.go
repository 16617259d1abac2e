package node_test

import (
	"context"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/pod"
)

// listen opens a port of the loopback.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestProbeTCP(t *testing.T) {
	l := listen(t)
	p := pod.Probe{Question: pod.Question{TCP: l.Addr().String()}}
	if err := (node.NetProber{}).Probe(t.Context(), p); err != nil {
		t.Errorf("somebody listens: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (node.NetProber{}).Probe(t.Context(), p); err == nil {
		t.Error("nobody listens, and the probe is a success")
	}
}

func TestProbeGRPC(t *testing.T) {
	l := listen(t)
	states := health.NewServer()
	states.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	states.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, states)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	for service, want := range map[string]string{"": "", "up": "", "down": `service "down" is not SERVING`, "unknown": "unknown service"} {
		err := (node.NetProber{}).Probe(t.Context(), pod.Probe{Question: pod.Question{GRPC: l.Addr().String(), Service: service}})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("service %q: %v, want %q", service, err, want)
		}
	}
	none := listen(t)
	bare := grpc.NewServer()
	go func() { done <- bare.Serve(none) }()
	defer func() { bare.Stop(); <-done }()
	err := (node.NetProber{}).Probe(t.Context(), pod.Probe{Question: pod.Question{GRPC: none.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "does not implement") {
		t.Errorf("a server without the service: %v", err)
	}
}

func TestProbeHTTPS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer s.Close()
	if err := (node.NetProber{}).Probe(t.Context(), pod.Probe{Question: pod.Question{URL: s.URL + "/healthz", Host: "web.example:443"}}); err != nil {
		t.Errorf("a certificate that nobody signed: %v", err)
	}
	if err := (node.NetProber{}).Probe(t.Context(), pod.Probe{Question: pod.Question{URL: s.URL + "/other"}}); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("another answer: %v", err)
	}
}

// TestHookHTTP: a hook's request was made whatever the answer is, as in
// Kubernetes.
func TestHookHTTP(t *testing.T) {
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.WriteHeader(http.StatusInternalServerError)
	}))
	q := pod.Question{URL: s.URL}
	if err := (node.NetProber{}).Call(t.Context(), q); err != nil || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	s.Close()
	if err := (node.NetProber{}).Call(context.WithoutCancel(t.Context()), q); err == nil {
		t.Error("nobody was there to be asked, and the hook is a success")
	}
}

func TestDiskShowsFiles(t *testing.T) {
	d := node.Dir(t.TempDir())
	if err := d.Show("messages/a", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	open, err := os.OpenFile(d.Path("messages/a"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Show("messages/a", []byte("0123456789"), 0o666); err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 10)
	if _, err := open.ReadAt(seen, 0); err != nil || string(seen) != "0123456789" || open.Close() != nil {
		t.Errorf("who has the file open, as a mount does, sees %q %v", seen, err)
	}
	info, err := os.Stat(d.Path("messages/a"))
	if err != nil || info.Mode() != 0o666 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	for most, want := range map[int]string{4: "6789", 10: "0123456789", 99: "0123456789"} {
		if got, err := d.Tail("messages/a", most); err != nil || string(got) != want {
			t.Errorf("the last %d bytes: %q %v", most, got, err)
		}
	}
	if _, err := d.Tail("messages/none", 1); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestSeccompProfilesOfTheNode(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode fs.FileMode) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("profiles/a.json", "{}", 0o600)
	write("profiles/big.json", strings.Repeat("x", 1<<20+1), 0o600)
	write("secret", "s", 0o600)
	if err := os.Symlink(filepath.Join(dir, "secret"), filepath.Join(dir, "profiles/link")); err != nil {
		t.Fatal(err)
	}
	h := node.HostPaths{SeccompFolder: filepath.Join(dir, "profiles")}
	if got, err := h.Seccomp("a.json"); err != nil || string(got) != "{}" {
		t.Errorf("profile %q %v", got, err)
	}
	for _, name := range []string{"big.json", "../secret", "link", "none"} {
		if got, err := h.Seccomp(name); err == nil {
			t.Errorf("profile %s reads %d bytes", name, len(got))
		}
	}
	if _, err := (node.HostPaths{}).Seccomp("a.json"); err == nil {
		t.Error("a node without a folder has a profile")
	}
}
