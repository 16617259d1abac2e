package daemon

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// patience is for a machine that has much else to do; nothing takes as long.
const patience = 2 * time.Minute

// portOf opens the port of a server that has just been made.
func portOf(t *testing.T) (*network, *pki.Credentials) {
	t.Helper()
	sans, err := pki.ParseSANs("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	files, err := pki.InitServer(pki.NewMemDir(), pki.NewClusterID(), "s1", sans, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	removed, err := pki.NewRemoved(nil)
	if err != nil {
		t.Fatal(err)
	}
	credentials := pki.NewCredentials(files.Credential)
	n, err := listen(t.Context(), "127.0.0.1:0", pki.TLSOptions{
		Credentials: credentials, Guard: pki.NewGuard(clock.Real{}, removed), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler),
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n, credentials
}

func accepted(t *testing.T, from net.Listener) net.Conn {
	t.Helper()
	conns := make(chan net.Conn, 1)
	go func() {
		if conn, err := from.Accept(); err == nil {
			conns <- conn
		}
	}()
	select {
	case conn := <-conns:
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(patience):
		t.Fatal("the listener got no connection")
		return nil
	}
}

func TestEachProtocolHasItsListener(t *testing.T) {
	n, _ := portOf(t)
	address := n.demux.raw.Addr().String()

	api, err := n.DialServer(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	identity, ok := n.Identify(accepted(t, n.API()))
	if !ok || identity.Role != pki.RoleServer || identity.Name != "s1" {
		t.Fatalf("the API's connection is of %v (%v), want server/s1", identity, ok)
	}

	raft, err := n.DialRaft(address, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer raft.Close()
	conn := accepted(t, n.Raft())
	if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != pki.ProtoRaft {
		t.Fatalf("raft's listener gave out a connection of %q", got)
	}
}

// TestCloseOneListener is how a server stops: net/http waits until its listener's
// Accept has returned.
func TestCloseOneListener(t *testing.T) {
	n, _ := portOf(t)
	ended := make(chan error, 1)
	go func() {
		_, err := n.API().Accept()
		ended <- err
	}()
	if err := n.API().Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Accept returned %v, want net.ErrClosed", err)
		}
	case <-time.After(patience):
		t.Fatal("Accept goes on after Close")
	}
	address := n.demux.raw.Addr().String()
	conn, err := n.DialRaft(address, patience)
	if err != nil {
		t.Fatalf("closing one listener closed the port: %v", err)
	}
	defer conn.Close()
	accepted(t, n.Raft())
}

func TestStrangersReachOnlyTheJoinListener(t *testing.T) {
	n, credentials := portOf(t)
	address := n.demux.raw.Addr().String()
	config := pki.RenewClientTLS(credentials.Current().Trust(), pki.NewGuard(clock.Real{}, nil), clock.Real{})
	conn, err := pki.Dial(t.Context(), &net.Dialer{}, address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := n.Identify(accepted(t, n.Join())); ok {
		t.Fatal("a stranger was given an identity")
	}
	config.NextProtos = []string{pki.ProtoHTTP2}
	stranger, err := pki.Dial(t.Context(), &net.Dialer{}, address, config)
	if err == nil {
		// TLS 1.3 tells a client that its certificate is missing with the first read.
		_ = stranger.SetReadDeadline(time.Now().Add(patience))
		_, err = stranger.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, net.ErrClosed) {
		t.Fatalf("a stranger reached the API: %v", err)
	}
}
