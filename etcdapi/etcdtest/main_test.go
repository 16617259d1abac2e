package etcdtest

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

var (
	peersFlag  = flag.String("peers", "../../.tools/peers", "folder with etcd, etcdctl and etcdutl; tools/peers/etcd/build makes it")
	balsaFlag  = flag.String("balsa", "../../bin/balsa", "the balsa program; `make build` makes it")
	fuzzFor    = flag.Duration("fuzz-for", 10*time.Second, "how long the differential fuzz runs")
	fuzzSeed   = flag.Uint64("fuzz-seed", 0, "its first seed; 0 takes one from the clock and prints it")
	fuzzReplay = flag.String("fuzz-replay", "", "a file with operations to run instead, one a line, as a difference prints them")
)

// patience bounds every wait for something that must happen. It is for machines
// that do much else; nothing waits for as long when all is well.
const patience = 30 * time.Second

// poll is how often a condition is looked at.
const poll = time.Millisecond

func TestMain(m *testing.M) {
	flag.Parse()
	for _, name := range []string{"etcd", "etcdctl", "etcdutl"} {
		if _, err := os.Stat(peer(name)); err != nil {
			fmt.Fprintf(os.Stderr, "etcdtest compares with a real etcd, and there is none: %v: run `make test-etcd`\n", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// peer is the path of one of etcd's programs.
func peer(name string) string {
	path, err := filepath.Abs(filepath.Join(*peersFlag, name))
	if err != nil {
		return filepath.Join(*peersFlag, name)
	}
	return path
}

// side is one of the two that are compared.
type side struct {
	name string
	// address is host:port of the etcd API.
	address string
	// dial are the credentials of its clients; tls is nil in plain text.
	dial grpc.DialOption
	tls  *tls.Config
	// client is a client of everything, conn the connection below it.
	client *clientv3.Client
	conn   *grpc.ClientConn
	// flags let etcdctl reach the side; the second is its endpoint.
	flags []string

	// ended is closed when the process of an etcd has ended; nil where there is none.
	ended <-chan struct{}

	// Of a real balsa: the program, its API's address, and the files of its clients.
	program, listen, admin, pems string
}

// connect makes the clients of a side; with pems, a folder as `balsa user create
// --pem` fills it, over mutual TLS. The options are for conn.
func (s *side) connect(t testing.TB, pems string, options ...grpc.DialOption) {
	t.Helper()
	s.flags = []string{"--endpoints", "http://" + s.address}
	s.dial = grpc.WithTransportCredentials(insecure.NewCredentials())
	if pems != "" {
		ca, cert, key := filepath.Join(pems, "ca.crt"), filepath.Join(pems, "client.crt"), filepath.Join(pems, "client.key")
		s.flags = []string{"--endpoints", "https://" + s.address, "--cacert", ca, "--cert", cert, "--key", key}
		config, err := transport.TLSInfo{TrustedCAFile: ca, CertFile: cert, KeyFile: key}.ClientConfig()
		if err != nil {
			t.Fatalf("certificates for %s: %v", s.name, err)
		}
		s.dial = grpc.WithTransportCredentials(credentials.NewTLS(config))
		s.tls = config
	}
	s.client = s.newClient(t)
	options = append(options, s.dial, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	conn, err := grpc.NewClient(s.address, options...)
	if err != nil {
		t.Fatalf("connect to %s: %v", s.name, err)
	}
	s.conn = conn
	t.Cleanup(func() { conn.Close() })
}

// newClient is another client of the same side.
func (s *side) newClient(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.address}, TLS: s.tls, Logger: zap.NewNop(), DialTimeout: patience,
	})
	if err != nil {
		t.Fatalf("connect to %s: %v", s.name, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// within is a context that ends when patience does, or the test.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	if !waitFor(patience, holds) {
		t.Fatalf("in %v it has not come about that %s", patience, what)
	}
}

func waitFor(limit time.Duration, holds func() bool) bool {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		if holds() {
			return true
		}
	}
	return holds()
}

// freeAddress is an address on loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
