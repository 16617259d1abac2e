package main

//balsa:real-processes

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/pki"
)

// asProgram makes the test binary be balsa itself, for tests that need a process
// of their own.
const asProgram = "BALSA_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		program()
	}
	code := m.Run()
	if started != nil {
		started.stop()
		_ = os.RemoveAll(started.dir)
	}
	os.Exit(code)
}

// server is a server of the control plane in this process, started by its
// command line.
type server struct {
	dir, config string
	listen      string
	log         *lockedBuffer
	cancel      context.CancelFunc
	ended       chan int // its exit code
}

var (
	startOnce sync.Once
	started   *server // by startOnce
)

// sharedServer is the one server of all tests that leave it as it was.
func sharedServer(t *testing.T) *server {
	t.Helper()
	startOnce.Do(func() {
		dir, err := os.MkdirTemp("", "balsa-cli-test-")
		must(t, err)
		started = startServer(t, dir, "s1", "--init")
		waitUntilServing(t, started)
	})
	if started == nil {
		t.Fatal("the shared server did not start; the first test that needed it says why")
	}
	return started
}

// startServer runs `balsa server`. Stop it.
func startServer(t *testing.T, dir, name string, args ...string) *server {
	t.Helper()
	return startServerAt(t, dir, name, freeAddress(t), args...)
}

func startServerAt(t *testing.T, dir, name, listen string, args ...string) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{
		dir: dir, config: filepath.Join(dir, "admin.yaml"), listen: listen,
		log: &lockedBuffer{}, cancel: cancel, ended: make(chan int, 1),
	}
	args = append([]string{"server", "--name", name, "--data-dir", dir, "--listen", s.listen, "--gossip-listen", freeAddress(t)}, args...)
	go func() { s.ended <- run(ctx, args, strings.NewReader(""), s.log, s.log) }()
	return s
}

// stop ends the server and returns its exit code.
func (s *server) stop() int {
	s.cancel()
	code := <-s.ended
	s.ended <- code // for whoever asks next
	return code
}

func waitUntilServing(t *testing.T, s *server) {
	t.Helper()
	eventually(t, func() error {
		if _, err := os.Stat(s.config); err != nil {
			return fmt.Errorf("%w; the server's log:\n%s", err, s.log)
		}
		if _, errOut, code := balsa(t, s.config, "get", "namespaces"); code != exitOK {
			return fmt.Errorf("exit code %d: %s; the server's log:\n%s", code, errOut, s.log)
		}
		return nil
	})
}

// balsa runs the command line.
func balsa(t *testing.T, config string, args ...string) (out, errOut string, code int) {
	t.Helper()
	return balsaWith(t, config, "", args...)
}

func balsaWith(t *testing.T, config, in string, args ...string) (out, errOut string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), append([]string{"--config", config}, args...), strings.NewReader(in), &stdout, &stderr)
	return stdout.String(), stderr.String(), code
}

// done runs the command line and insists that it succeeds.
func done(t *testing.T, config string, args ...string) string {
	t.Helper()
	out, errOut, code := balsa(t, config, args...)
	if code != exitOK {
		t.Fatalf("balsa %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// freeAddress is a port of loopback that TCP and UDP have free.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		tcp, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		address := tcp.Addr().String()
		udp, err := net.ListenPacket("udp4", address)
		_ = tcp.Close()
		if err == nil {
			_ = udp.Close()
			return address
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return ""
}

// configFor writes another cluster's client configuration, or that of another
// server, next to the test's files.
func writeConfig(t *testing.T, change func(*pki.Config)) string {
	t.Helper()
	config, err := pki.ReadConfigFile(sharedServer(t).config)
	must(t, err)
	change(config)
	path := filepath.Join(t.TempDir(), "config.yaml")
	must(t, pki.WriteConfigFile(path, config))
	return path
}

// sdk is a client of the shared server.
func sdk(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.FromFile(sharedServer(t).config)
	must(t, err)
	t.Cleanup(c.Close)
	return c
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
