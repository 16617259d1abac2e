package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// house is a cluster's authority, and who it has let in.
type house struct {
	*testing.T
	ca *pki.CA
}

func newHouse(t *testing.T) *house {
	ca, err := pki.NewCA(pki.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &house{t, ca}
}

func (h *house) credentials(role pki.Role, name string) *pki.Credentials {
	h.Helper()
	credential, err := h.credential(role, name)
	if err != nil {
		h.Fatal(err)
	}
	return pki.NewCredentials(credential)
}

func (h *house) credential(role pki.Role, name string) (*pki.Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := pki.NewCSR(name, key)
	if err != nil {
		return nil, err
	}
	leaf, err := h.ca.Sign(pki.SignRequest{CSR: csr, Role: role, Name: name}, time.Now())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pki.NewCredential(h.ca.CertPEM(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// startAgentPort is the port of a node whose agent has just started, with what
// its disk has of removed identities. Its handler streams until the call ends.
func (h *house) startAgentPort(keeper *pki.Credentials, file string) (*agent, string) {
	h.Helper()
	address := netip.MustParseAddrPort(freeAddress(h.T))
	logger := slog.New(slog.DiscardHandler)
	a := &agent{AgentOptions: AgentOptions{Port: fmt.Sprint(address.Port()), Logger: logger}, keeper: keeper, ip: address.Addr()}
	var err error
	if a.banned, err = openRemoved(file, clock.Real{}, logger); err != nil {
		h.Fatal(err)
	}
	a.guard = a.banned.guard
	stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _ := pki.IdentityFrom(r.Context())
		fmt.Fprintln(w, id)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancelCause(h.Context())
	server, err := a.serve(ctx, stream, cancel)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = server.Close() })
	return a, address.String()
}

// open begins a stream as a server of the cluster would.
func (h *house) open(as *pki.Credentials, address string) (io.ReadCloser, error) {
	transport := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		config := pki.AgentClientTLS(pki.TLSOptions{Credentials: as, Guard: pki.NewGuard(clock.Real{}, nil), Clock: clock.Real{}}, "")
		return pki.Dial(ctx, &net.Dialer{}, address, config)
	}}
	h.Cleanup(transport.CloseIdleConnections)
	request, err := http.NewRequestWithContext(h.Context(), http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.Join(errors.New(response.Status), response.Body.Close())
	}
	return response.Body, nil
}

func heartbeatSays(role pki.Role, name string, at time.Time) []*balsav1.RemovedIdentity {
	return []*balsav1.RemovedIdentity{{Role: string(role), Name: name, AtNs: at.UnixNano()}}
}

// TestRemovedServerIsRefusedByAgents at once, on streams that are open, and by an
// agent that starts again and reaches no server.
func TestRemovedServerIsRefusedByAgents(t *testing.T) {
	h := newHouse(t)
	node, s1, s2 := h.credentials(pki.RoleAgent, "n1"), h.credentials(pki.RoleServer, "s1"), h.credentials(pki.RoleServer, "s2")
	file := filepath.Join(t.TempDir(), removedName)
	a, address := h.startAgentPort(node, file)
	streams := map[string]io.ReadCloser{}
	for name, as := range map[string]*pki.Credentials{"s1": s1, "s2": s2} {
		stream, err := h.open(as, address)
		if err != nil {
			t.Fatal(err)
		}
		line := make([]byte, len("server/s1\n"))
		if _, err := io.ReadFull(stream, line); err != nil || string(line) != "server/"+name+"\n" {
			t.Fatalf("%s reads %q, %v", name, line, err)
		}
		streams[name] = stream
	}
	ended := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, streams["s1"])
		ended <- time.Now()
	}()
	removed := time.Now()
	a.banned.told(heartbeatSays(pki.RoleServer, "s1", removed))
	select {
	case at := <-ended:
		if took := at.Sub(removed); took > 5*time.Second {
			t.Errorf("the open stream ended after %v", took)
		}
	case <-time.After(patience):
		t.Fatal("the removed server's stream goes on")
	}
	if _, err := h.open(s1, address); err == nil {
		t.Error("the removed server comes in again")
	}
	if _, err := h.open(s2, address); err != nil {
		t.Errorf("another server is refused: %v", err)
	}
	a.banned.told(nil) // of a server that lags
	if _, err := h.open(s1, address); err == nil {
		t.Error("the removed server comes in after an older list")
	}
	_, again := h.startAgentPort(node, file)
	if _, err := h.open(s1, again); err == nil {
		t.Error("the removed server comes in after a restart without servers")
	}
	if _, err := h.open(s2, again); err != nil {
		t.Errorf("another server is refused after a restart: %v", err)
	}
	// It joins again under its name: a new certificate, of a later moment.
	a.banned.told(heartbeatSays(pki.RoleServer, "s2", time.Now().Add(-time.Hour)))
	if _, err := h.open(h.credentials(pki.RoleServer, "s2"), address); err != nil {
		t.Errorf("a server that joined again is refused: %v", err)
	}
}

// TestAgentsCallNoRemovedServer, and hang up on one that they talk to.
func TestAgentsCallNoRemovedServer(t *testing.T) {
	h := newHouse(t)
	node, s1 := h.credentials(pki.RoleAgent, "n1"), h.credentials(pki.RoleServer, "s1")
	banned, err := openRemoved(filepath.Join(t.TempDir(), removedName), clock.Real{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", pki.ServerTLS(pki.TLSOptions{
		Credentials: s1, Guard: pki.NewGuard(clock.Real{}, nil), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	dial := dialGuarded(node, banned.guard)
	conn, err := dial(t.Context(), listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	banned.told(heartbeatSays(pki.RoleServer, "s1", time.Now()))
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err == nil {
		if _, err = conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection to the removed server is still there")
		}
	}
	if _, err := dial(t.Context(), listener.Addr().String()); !errors.Is(err, pki.ErrRemoved) {
		t.Errorf("dialling the removed server: %v", err)
	}
	if banned.guard.Watched() != 0 {
		t.Errorf("%d connections are still watched", banned.guard.Watched())
	}
}

func TestRemovedFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, removedName)
	now := clock.NewFake(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	var said strings.Builder
	logger := slog.New(slog.NewTextHandler(&said, nil))
	if err := os.WriteFile(file, []byte(`[{"role": "server", "na`), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := openRemoved(file, now, logger)
	if err != nil || !strings.Contains(said.String(), "cannot be read") {
		t.Fatalf("a torn file: %v; it said %s", err, said.String())
	}
	list.told(heartbeatSays(pki.RoleServer, "s1", now.Now()))
	written, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	list.told(heartbeatSays(pki.RoleServer, "s1", now.Now()))
	if again, err := os.Stat(file); err != nil || !os.SameFile(written, again) {
		t.Errorf("written again although nothing is new: %v", err)
	}
	known, err := readRemoved(file)
	if err != nil || len(known) != 1 || known[0].Name != "s1" {
		t.Errorf("%v, %v", known, err)
	}
	// A disk that is full: refused all the same, and kept when there is room.
	list.path = filepath.Join(dir, "no", "such", "folder")
	list.told(heartbeatSays(pki.RoleServer, "s2", now.Now()))
	if err := list.guard.Check(pki.Identity{Role: pki.RoleServer, Name: "s2"}); !errors.Is(err, pki.ErrRemoved) {
		t.Errorf("not refused while the disk is full: %v", err)
	}
	list.path = file
	list.told(nil)
	if known, err := readRemoved(file); err != nil || len(known) != 2 {
		t.Errorf("not kept when there was room again: %v, %v", known, err)
	}
}
