package etcdapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// secured is a server behind the certificates of a cluster.
type secured struct {
	ca      *pki.CA
	guard   *pki.Guard
	group   *testGroup
	server  *Server
	address string
}

func newSecured(t *testing.T, adjust ...func(*Config)) *secured {
	t.Helper()
	ca, err := pki.NewCA("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &secured{ca: ca, guard: pki.NewGuard(clock.Real{}, nil)}
	g := &testGroup{store: store.New(store.Options{}), leader: 12}
	s.group = g
	cfg := Config{
		Space: g.store.Space(store.SpaceEtcd), Backend: g, Leases: g, Group: g,
		Identify: IdentifyTLS("c1", s.guard.Check), Attend: s.guard.Watch,
	}
	for _, f := range adjust {
		f(&cfg)
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.server = server
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(NewListener(l, pki.ServerTLS(pki.TLSOptions{
			Credentials: pki.NewCredentials(s.issue(t, pki.RoleServer, "s1")), Guard: s.guard, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler),
		})))
	}()
	t.Cleanup(func() {
		server.Stop(soon(t))
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

func (s *secured) issue(t *testing.T, role pki.Role, name string) *pki.Credential {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(name, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := s.ca.Sign(pki.SignRequest{CSR: csr, Role: role, Name: name}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	credential, err := pki.NewCredential(s.ca.CertPEM(),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return credential
}

func (s *secured) client(t *testing.T, role pki.Role, name string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + s.address}, Logger: zap.NewNop(),
		TLS: pki.ClientTLS(pki.NewCredentials(s.issue(t, role, name)), clock.Real{}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRoles(t *testing.T) {
	s := newSecured(t)
	ctx := soon(t)
	denied := func(what string, err error) {
		t.Helper()
		if rpctypes.ErrorDesc(err) != rpctypes.ErrorDesc(rpctypes.ErrGRPCPermissionDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	admin := s.client(t, pki.RoleAdmin, "ann")
	if _, err := admin.Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	reader := s.client(t, pki.RoleReader, "rea")
	if g, err := reader.Get(ctx, "a"); err != nil || g.Count != 1 {
		t.Errorf("a reader gets %v, %v", g, err)
	}
	if x, err := reader.Txn(ctx).Then(clientv3.OpGet("a")).Commit(); err != nil || !x.Succeeded {
		t.Errorf("a reader reads in a transaction: %v, %v", x, err)
	}
	events := reader.Watch(ctx, "a", clientv3.WithRev(1))
	if e := <-events; len(e.Events) != 1 {
		t.Errorf("a reader watches %v, %v", e, e.Err())
	}
	_, err := reader.Put(ctx, "a", "2")
	denied("a reader puts", err)
	_, err = reader.Delete(ctx, "a")
	denied("a reader deletes", err)
	_, err = reader.Compact(ctx, 2)
	denied("a reader compacts", err)
	_, err = reader.Txn(ctx).Then(clientv3.OpPut("a", "2")).Commit()
	denied("a reader puts in a transaction", err)
	_, err = reader.Grant(ctx, 60)
	denied("a reader grants a lease", err)
	for _, role := range []pki.Role{pki.RoleServer, pki.RoleAgent} {
		c := s.client(t, role, "m1")
		_, err := c.Get(ctx, "a", clientv3.WithSerializable())
		denied(string(role)+" gets", err)
		w := <-c.Watch(ctx, "a")
		denied(string(role)+" watches", w.Err())
	}
}

// TestRemovedIdentityLosesItsStreams as well as its calls.
func TestRemovedIdentityLosesItsStreams(t *testing.T) {
	s := newSecured(t)
	ctx := soon(t)
	c := s.client(t, pki.RoleReader, "rea")
	stream, err := pb.NewWatchClient(c.ActiveConnection()).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{t: t, stream: stream}
	w.create(&pb.WatchCreateRequest{Key: b("a")})
	w.want("0@1 created")
	removed, err := pki.NewRemoved([]pki.Removal{{Role: pki.RoleReader, Name: "rea", At: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	s.guard.Update(removed)
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream of a removed user: %v", err)
	}
	if _, err := pb.NewKVClient(c.ActiveConnection()).Range(ctx, rangeOf()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the call of a removed user: %v", err)
	}
}

// TestNobodyIsRefused: without TLS, without a certificate, with one of another
// cluster.
func TestNobodyIsRefused(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Identify = IdentifyTLS("c1", func(pki.Identity) error { return nil }) })
	if _, err := r.kv.Range(soon(t), rangeOf()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without TLS: %v", err)
	}
	s, other := newSecured(t), newSecured(t)
	bare := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	foreign := pki.ClientTLS(pki.NewCredentials(other.issue(t, pki.RoleAdmin, "ann")), clock.Real{})
	foreign.InsecureSkipVerify, foreign.VerifyConnection = true, nil
	for name, config := range map[string]*tls.Config{"without a certificate": bare, "with a foreign certificate": foreign} {
		conn, err := tls.Dial("tcp", s.address, config)
		if err == nil {
			// In TLS 1.3 the server judges after the client is done.
			conn.SetReadDeadline(time.Now().Add(patience))
			_, err = io.ReadAll(conn)
			conn.Close()
		}
		if err == nil {
			t.Errorf("%s: the connection was let in", name)
		}
	}
}

func TestLearnerServesLittle(t *testing.T) {
	r := newRig(t)
	r.group.set(func(g *testGroup) { g.learner = true })
	_, err := r.kv.Range(soon(t), rangeOf())
	same(t, err, rpctypes.ErrGRPCNotSupportedForLearner)
	_, err = r.kv.Put(soon(t), &pb.PutRequest{Key: b("a")})
	same(t, err, rpctypes.ErrGRPCNotSupportedForLearner)
	_, err = r.watching(t).stream.Recv()
	same(t, err, rpctypes.ErrGRPCNotSupportedForLearner)
	if _, err := r.kv.Range(soon(t), rangeOf(func(r *pb.RangeRequest) { r.Serializable = true })); err != nil {
		t.Errorf("a serializable range: %v", err)
	}
}

func TestMetadataIsChecked(t *testing.T) {
	r := newRig(t)
	ctx := metadata.AppendToOutgoingContext(soon(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	if _, err := r.kv.Range(ctx, rangeOf()); err != nil {
		t.Errorf("with a leader: %v", err)
	}
	r.group.set(func(g *testGroup) { g.leader = 0 })
	_, err := r.kv.Range(ctx, rangeOf())
	same(t, err, rpctypes.ErrGRPCNoLeader)
	if _, err := r.kv.Range(soon(t), rangeOf()); err != nil {
		t.Errorf("who does not ask for a leader: %v", err)
	}
	_, err = r.server.demands(metadata.NewIncomingContext(t.Context(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "\xff")))
	same(t, err, rpctypes.ErrGRPCInvalidClientAPIVersion)
}

// TestPanicEndsOneCall, and says nothing of what went wrong to its client.
func TestPanicEndsOneCall(t *testing.T) {
	m := &counted{}
	r := newRig(t, func(c *Config) { c.Metrics = m })
	info := &grpc.UnaryServerInfo{FullMethod: pb.KV_Range_FullMethodName}
	_, err := r.server.guardUnary(t.Context(), rangeOf(), info, func(context.Context, any) (any, error) { panic("secret") })
	same(t, err, errInternal)
	err = r.server.guardStream(nil, &boundStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: pb.Watch_Watch_FullMethodName},
		func(any, grpc.ServerStream) error { panic("secret") })
	same(t, err, errInternal)
	r.put(t, "a", "1")
	if _, err := r.kv.Put(soon(t), &pb.PutRequest{}); err == nil {
		t.Fatal("a put without key went through")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.handled[pb.KV_Put_FullMethodName]; len(got) != 2 || got[0] != codes.OK || got[1] != codes.InvalidArgument {
		t.Errorf("the calls that were counted: %v", got)
	}
}
