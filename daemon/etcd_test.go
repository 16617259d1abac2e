package daemon

//balsa:real-processes

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/etcdapi"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// etcdUser is what `balsa user create --pem` gives a user of etcd's API.
func etcdUser(t *testing.T, c *client.Client, name, role string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(name, key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.Cluster.CreateIdentity(t.Context(), &balsav1.CreateIdentityRequest{
		Name: name, Role: role, Csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
	})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(made.GetCertificate())
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(made.GetCa()) {
		t.Fatal("the authority's certificate is not PEM")
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}}
}

// etcdClient checks the servers' certificates for the addresses that it dials.
func etcdClient(t *testing.T, config *tls.Config, servers ...*running) *clientv3.Client {
	t.Helper()
	var endpoints []string
	for _, s := range servers {
		endpoints = append(endpoints, "https://"+s.options.Etcd.Listen)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: config, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// etcdServers are three that serve etcd's API.
func etcdServers(t *testing.T) (all []*running, admin *client.Client) {
	first := runServer(t, ServerOptions{Name: "s1", Init: true, Etcd: EtcdOptions{Listen: freeAddress(t), ProgressEvery: etcdProgressMin}})
	all, admin = []*running{first}, first.admin(t)
	for _, name := range []string{"s2", "s3"} {
		var token string
		eventually(t, func() error {
			made, err := admin.Cluster.CreateToken(t.Context(), &balsav1.CreateTokenRequest{Role: "server"})
			token = made.GetToken()
			return err
		})
		all = append(all, runServer(t, ServerOptions{Name: name, Join: []string{first.options.Listen}, Token: token, Etcd: EtcdOptions{Listen: freeAddress(t)}}))
		eventually(t, func() error { return voters(admin, len(all)) })
	}
	return all, admin
}

// TestEtcdOnThreeServers is etcd's API as its clients meet it.
func TestEtcdOnThreeServers(t *testing.T) {
	servers, admin := etcdServers(t)
	user := etcdUser(t, admin, "shop", "admin")
	t.Run("every server serves", func(t *testing.T) { everyServerServes(t, servers, user) })
	t.Run("progress", func(t *testing.T) { progressIsTold(t, servers[0], user) })
	t.Run("a lease survives its leader", func(t *testing.T) { leaseSurvives(t, servers, admin, user) })
	t.Run("who may do what", func(t *testing.T) { etcdRoles(t, servers, admin) })
	t.Run("pages", func(t *testing.T) { etcdPages(t, servers, user) })
	t.Run("a snapshot", func(t *testing.T) { etcdSnapshot(t, servers, user) })
	t.Run("a server that is down", func(t *testing.T) { listedWhileDown(t, servers, user) })
	admin.Close()
	for _, s := range servers {
		s.stop()
	}
	for _, s := range servers {
		select {
		case err := <-s.ended: // the last has nobody to hand over to
			if err != nil {
				t.Logf("%s ends with %v", s.options.Name, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s does not end:\n%s", s.options.Name, goroutines())
		}
	}
	eventually(t, func() error {
		if text := goroutines(); strings.Contains(text, "etcdapi.(*Server)") || strings.Contains(text, "leases.(*Lessor)") {
			return errors.New(text)
		}
		return leftOver()
	})
}

// progressIsTold: a watch that nothing happens to is told so as often as was asked for.
func progressIsTold(t *testing.T, s *running, user *tls.Config) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for r := range etcdClient(t, user, s).Watch(ctx, "nobody writes this", clientv3.WithProgressNotify()) {
		if r.IsProgressNotify() {
			return
		}
	}
	t.Error("a quiet watch is not told of progress")
}

func everyServerServes(t *testing.T, servers []*running, user *tls.Config) {
	var want []string
	for _, s := range servers {
		want = append(want, "https://"+s.options.Etcd.Listen)
	}
	slices.Sort(want)
	for i, s := range servers {
		c := etcdClient(t, user, s)
		key := fmt.Sprint("from-", i)
		put, err := c.Put(t.Context(), key, "v")
		if err != nil {
			t.Fatalf("%s: %v", s.options.Name, err)
		}
		for _, other := range servers {
			got, err := etcdClient(t, user, other).Get(t.Context(), key)
			if err != nil || got.Count != 1 || got.Header.GetRevision() < put.Header.GetRevision() {
				t.Errorf("put at %s, read at %s: %v, %v", s.options.Name, other.options.Name, got, err)
			}
		}
		eventually(t, func() error {
			list, err := c.MemberList(t.Context())
			if err != nil {
				return err
			}
			var urls []string
			for _, m := range list.Members {
				urls = append(urls, m.GetClientURLs()...)
			}
			if slices.Sort(urls); !slices.Equal(urls, want) {
				return fmt.Errorf("client URLs are %v, want %v", urls, want)
			}
			return nil
		})
		if _, err := c.MemberAdd(t.Context(), []string{"https://127.0.0.1:1"}); !strings.Contains(fmt.Sprint(err), "balsa token create") {
			t.Errorf("adding a member: %v", err)
		}
	}
}

// leaseSurvives keeps a lease alive through followers while leadership moves, and
// sees it go when nobody does any more.
func leaseSurvives(t *testing.T, servers []*running, admin *client.Client, user *tls.Config) {
	const ttl = 3
	c := etcdClient(t, user, servers...)
	granted, err := c.Grant(t.Context(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), "alive", "yes", clientv3.WithLease(granted.ID)); err != nil {
		t.Fatal(err)
	}
	ctx, forget := context.WithCancel(t.Context())
	defer forget()
	alive, err := c.KeepAlive(ctx, granted.ID)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(2 * ttl * time.Second)
	last := time.Now()
	for moved := 0; time.Now().Before(deadline); {
		if res, open := <-alive; !open {
			t.Fatal("the lease is lost while it is kept alive")
		} else if res.TTL != ttl {
			t.Errorf("kept alive: %v", res)
		}
		last = time.Now()
		if moved++; moved <= 2 {
			if _, err := admin.Cluster.TransferLeadership(t.Context(), &balsav1.TransferLeadershipRequest{}); err != nil {
				t.Log(err)
			}
		}
	}
	if got, err := c.Get(t.Context(), "alive"); err != nil || got.Count != 1 {
		t.Fatalf("after two leaders: %v, %v", got, err)
	}
	forget()
	eventually(t, func() error {
		got, err := c.Get(t.Context(), "alive")
		if err != nil {
			return err
		}
		if got.Count != 0 {
			return errors.New("the key outlives its lease")
		}
		return nil
	})
	if lived := time.Since(last); lived < (ttl-1)*time.Second {
		t.Errorf("the lease was over %v after it was last kept alive", lived)
	}
	if left, err := c.TimeToLive(t.Context(), granted.ID); err != nil || left.TTL != -1 {
		t.Errorf("a lease that is over: %v, %v", left, err)
	}
}

func etcdRoles(t *testing.T, servers []*running, admin *client.Client) {
	reader := etcdClient(t, etcdUser(t, admin, "dashboard", "reader"), servers...)
	if _, err := reader.Put(t.Context(), "k", "v"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("a reader writes: %v", err)
	}
	if _, err := reader.Grant(t.Context(), 10); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("a reader takes a lease: %v", err)
	}
	if got, err := reader.Get(t.Context(), "from-0"); err != nil || got.Count != 1 {
		t.Errorf("a reader reads: %v, %v", got, err)
	}
	watch := reader.Watch(t.Context(), "watched", clientv3.WithCreatedNotify())
	if res, open := <-watch; !open || !res.Created {
		t.Fatalf("a reader watches: %v", res)
	}
	began := time.Now()
	if _, err := admin.Cluster.RemoveIdentity(t.Context(), &balsav1.RemoveIdentityRequest{Name: "dashboard", Role: "reader"}); err != nil {
		t.Fatal(err)
	}
	for open := true; open; {
		select {
		case res, more := <-watch:
			open = more && res.Err() == nil
		case <-time.After(patience):
			t.Fatal("the watch of a reader who was removed goes on")
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a removed reader went on watching for %v", took)
	}
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := reader.Get(ctx, "from-0"); err == nil {
			return errors.New("a removed reader reads")
		}
		return nil
	})
	strangers := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // it shows no certificate, and gets nowhere
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := etcdClient(t, strangers, servers[0]).Get(ctx, "from-0"); err == nil || status.Code(err) == codes.OK {
		t.Errorf("a stranger reads: %v", err)
	}
}

// etcdPages: every server shows what etcd has beside gRPC, over both versions of HTTP.
func etcdPages(t *testing.T, servers []*running, user *tls.Config) {
	for i, s := range servers {
		tr := &http.Transport{TLSClientConfig: user.Clone(), ForceAttemptHTTP2: i > 0}
		defer tr.CloseIdleConnections()
		for page, want := range map[string]string{
			"/metrics": "\nprocess_resident_memory_bytes ", "/health": `{"health":"true","reason":""}`, "/version": `"etcdserver":"3.7`, "/readyz": "ok\n",
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.options.Etcd.Listen+page, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := tr.RoundTrip(req)
			if err != nil {
				t.Errorf("%s of %s: %v", page, s.options.Name, err)
				continue
			}
			text, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(text), want) || (res.ProtoMajor == 2) != (i > 0) {
				t.Errorf("%s of %s: %s %s, %v: %.200s", page, s.options.Name, res.Proto, res.Status, err, text)
			}
		}
	}
}

func etcdSnapshot(t *testing.T, servers []*running, user *tls.Config) {
	res, err := etcdClient(t, user, servers[1]).SnapshotWithVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Snapshot.Close()
	text, err := io.ReadAll(res.Snapshot)
	if err != nil {
		t.Fatal(err)
	}
	body := text[:len(text)-sha256.Size]
	if sum := sha256.Sum256(body); len(body)%512 != 0 || !bytes.Equal(sum[:], text[len(body):]) || !bytes.Contains(body, []byte("from-0")) {
		t.Errorf("%d bytes, whose digest is not at their end, or whose keys are not in them", len(text))
	}
}

func listedWhileDown(t *testing.T, servers []*running, user *tls.Config) {
	servers[2].stop()
	servers[2].wait(t)
	servers[2].ended <- nil // it is waited for once more
	c := etcdClient(t, user, servers[0])
	eventually(t, func() error {
		list, err := c.MemberList(t.Context())
		if err != nil {
			return err
		}
		for _, m := range list.Members {
			if m.GetName() == "s3" && slices.Equal(m.GetClientURLs(), []string{"https://" + servers[2].options.Etcd.Listen}) {
				return nil
			}
		}
		return fmt.Errorf("a server that is down is not listed: %v", list.Members)
	})
}

func TestEtcdOptions(t *testing.T) {
	for name, c := range map[string]struct {
		options ServerOptions
		want    string
	}{
		"no listener":   {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Advertise: "10.0.0.1:2379"}}, "without --etcd-listen"},
		"no watches":    {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{ProgressEvery: time.Second}}, "without --etcd-listen"},
		"too often":     {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Listen: "10.0.0.1:2379", ProgressEvery: 99 * time.Millisecond}}, "less than 100ms"},
		"never":         {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Listen: "10.0.0.1:2379", ProgressEvery: -time.Second}}, "less than 100ms"},
		"no port":       {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Listen: "10.0.0.1"}}, "is not host:port"},
		"the same":      {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Listen: "10.0.0.1:7443"}}, "already"},
		"leads nowhere": {ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Listen: "0.0.0.0:2379"}}, "no address that others can reach"},
	} {
		if err := c.options.completeEtcd(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	local := ServerOptions{Listen: "10.0.0.1:7443", Etcd: EtcdOptions{Listen: "127.0.0.1:2379"}}
	if err := local.completeEtcd(); err != nil || local.Etcd.Advertise != local.Etcd.Listen || !slices.Contains(local.addresses(), "localhost") {
		t.Errorf("on loopback: %v, %v, %v", err, local.Etcd.Advertise, local.addresses())
	}
	off := ServerOptions{Listen: "10.0.0.1:7443", Advertise: "10.0.0.1:7443"}
	if err := off.completeEtcd(); err != nil || off.Etcd.Advertise != "" || len(off.addresses()) != 2 {
		t.Errorf("not asked for: %v, %v", err, off.addresses())
	}
}

// TestEtcdPortTakesHTTPOnly: who means another of the server's protocols is at the
// wrong door, above all a stranger who wants to join.
func TestEtcdPortTakesHTTPOnly(t *testing.T) {
	_, credentials := portOf(t)
	removed, err := pki.NewRemoved(nil)
	if err != nil {
		t.Fatal(err)
	}
	options := pki.TLSOptions{Credentials: credentials, Guard: pki.NewGuard(clock.Real{}, removed), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := etcdapi.NewListener(raw, pki.ServerTLS(options))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			_ = conn.Close()
		}
	}()
	for _, c := range []struct {
		protos []string
		good   bool
	}{
		{[]string{pki.ProtoHTTP2}, true}, {[]string{pki.ProtoRaft}, false}, {[]string{pki.ProtoJoin}, false},
		{[]string{pki.ProtoHTTP1}, true}, {nil, true},
	} {
		config := pki.ClientTLS(credentials, clock.Real{})
		config.NextProtos = c.protos
		conn, err := tls.Dial("tcp", raw.Addr().String(), config)
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) != c.good {
			t.Errorf("a client that offers %q: %v", c.protos, err)
		}
	}
}
