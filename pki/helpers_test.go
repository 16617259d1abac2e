package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/internal/clock"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// t0 is when the tests' clusters begin.
var t0 = time.Date(2031, 5, 1, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func testLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newTestCA(t testing.TB) *CA {
	t.Helper()
	return must(NewCA("c1", t0))(t)
}

// issue makes a credential of a role and name, signed at now.
func issue(t testing.TB, ca *CA, role Role, name string, now time.Time) *Credential {
	t.Helper()
	key := must(newKey())(t)
	leaf := must(ca.Sign(SignRequest{CSR: must(NewCSR(name, key))(t), Role: role, Name: name}, now))(t)
	return must(newCredential(ca.Trust(), leaf, key))(t)
}

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

var (
	hex64 = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	hex32 = regexp.MustCompile(`\b[0-9a-f]{32}\b`)
	hex16 = regexp.MustCompile(`[0-9a-f]{16}\b`)
)

// stable replaces what differs from run to run.
func stable(s string) string {
	s = hex64.ReplaceAllString(s, "<sha256>")
	s = hex32.ReplaceAllString(s, "<serial>")
	return hex16.ReplaceAllString(s, "<key id>")
}

// outcome is how a handshake ended for both ends.
type outcome struct {
	server, client error
	state          tls.ConnectionState // of the server
}

// handshake runs one over loopback. The client's end of a TLS 1.3 handshake
// comes before the server has judged its certificate, so it also reads a byte.
func handshake(t testing.TB, server, client *tls.Config) outcome {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		raw, err := l.Accept()
		if err != nil {
			done <- outcome{server: err}
			return
		}
		conn := tls.Server(raw, server)
		o.server = conn.HandshakeContext(ctx)
		if o.server == nil {
			_, o.server = conn.Write([]byte{1})
		}
		o.state = conn.ConnectionState()
		_ = conn.Close()
		done <- o
	}()
	err := dialAndRead(ctx, l.Addr().String(), client)
	o := <-done
	o.client = err
	return o
}

func dialAndRead(ctx context.Context, address string, client *tls.Config) error {
	conn, err := Dial(ctx, &net.Dialer{}, address, client)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return errors.Join(err, ignoreClosed(conn.Close()))
}

func ignoreClosed(err error) error {
	if err != nil && (errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "broken pipe") || strings.Contains(err.Error(), "reset by peer")) {
		return nil
	}
	return err
}

func tlsOptions(cred *Credential, guard *Guard, clk clock.Clock) TLSOptions {
	return TLSOptions{Credentials: NewCredentials(cred), Guard: guard, Clock: clk, Log: testLog()}
}
