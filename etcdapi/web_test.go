package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// offering is a client's TLS that offers these protocols.
func (s *secured) offering(t *testing.T, role pki.Role, protos ...string) *tls.Config {
	config := pki.ClientTLS(pki.NewCredentials(s.issue(t, role, "ann")), clock.Real{})
	config.NextProtos = protos
	return config
}

// browser asks for pages, over HTTP/2 if that is what the server chooses.
func (s *secured) browser(t *testing.T, role pki.Role, protos ...string) *http.Client {
	tr := &http.Transport{TLSClientConfig: s.offering(t, role, protos...), Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(true)
	for _, p := range protos {
		if p == "h2" {
			tr.Protocols.SetHTTP2(true)
		}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (s *secured) page(t *testing.T, c *http.Client, method, path string) (code int, text string, res *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(soon(t), method, "https://"+s.address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err = c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body), res
}

func scrapes(c *Config) {
	c.Scrape = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "process_resident_memory_bytes 1.5e+07\n")
	})
}

// TestPages are etcd's, to the letter where they are etcd's.
func TestPages(t *testing.T) {
	s := newSecured(t, scrapes)
	for name, c := range map[string]*http.Client{
		"HTTP/2.0": s.browser(t, pki.RoleReader, "h2", "http/1.1"), "HTTP/1.1": s.browser(t, pki.RoleAdmin, "http/1.1"), "no protocol": s.browser(t, pki.RoleAdmin),
	} {
		for _, want := range []struct {
			method, path string
			code         int
			text         string
		}{
			{"GET", "/metrics", 200, "process_resident_memory_bytes 1.5e+07\n"},
			{"GET", "/health", 200, `{"health":"true","reason":""}`},
			{"GET", "/health?serializable=true&exclude=NOSPACE", 200, `{"health":"true","reason":""}`},
			{"POST", "/health", 405, "Method Not Allowed\n"},
			{"GET", "/version", 200, `{"etcdserver":"3.7.3+balsa.test","etcdcluster":"3.7.0","storage":"3.6.0"}`},
			{"PUT", "/version", 405, "Method Not Allowed\n"},
			{"GET", "/livez", 200, "ok\n"},
			{"GET", "/livez/serializable_read?verbose", 200, "[+]serializable_read ok\nok\n"},
			{"GET", "/readyz?verbose&exclude=linearizable_read", 200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]non_learner ok\nok\n"},
			{"DELETE", "/readyz", 405, "Method Not Allowed\n"},
		} {
			code, text, res := s.page(t, c, want.method, want.path)
			if code != want.code || text != want.text {
				t.Errorf("%s, %s %s: %d %q, want %d %q", name, want.method, want.path, code, text, want.code, want.text)
			}
			if code == 405 && res.Header.Get("Allow") != "GET" {
				t.Errorf("%s %s does not say what is allowed", want.method, want.path)
			}
			if name != "no protocol" && res.Proto != name {
				t.Errorf("%s is spoken instead of %s", res.Proto, name)
			}
		}
		if code, text, _ := s.page(t, c, "GET", "/v2/keys"); code != 404 || !strings.Contains(text, "/metrics") || !strings.Contains(text, "/v3/") {
			t.Errorf("%s: a page that is not there: %d %q", name, code, text)
		}
	}
}

// TestPagesOfASickServer says in etcd's words what is wrong.
func TestPagesOfASickServer(t *testing.T) {
	s := newSecured(t)
	c := s.browser(t, pki.RoleReader, "http/1.1")
	say := func(path string, code int, text string) {
		t.Helper()
		if got, said, _ := s.page(t, c, "GET", path); got != code || said != text {
			t.Errorf("%s: %d %q, want %d %q", path, got, said, code, text)
		}
	}
	s.group.set(func(g *testGroup) { g.leader = 0 })
	say("/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`+"\n")
	say("/health?serializable=true", 200, `{"health":"true","reason":""}`)
	s.group.set(func(g *testGroup) { g.leader, g.fail = 12, ErrTimeout })
	say("/health", 503, `{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}`+"\n")
	say("/readyz", 503, "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n")
	say("/readyz/linearizable_read", 503, "[-]linearizable_read failed: etcdserver: request timed out\n\n")
	say("/readyz?exclude=linearizable_read", 200, "ok\n")
	say("/livez", 200, "ok\n")
	s.group.set(func(g *testGroup) { g.fail, g.learner = nil, true })
	say("/readyz/non_learner", 503, "[-]non_learner failed: not supported for learner\n\n")
	if code, text, _ := s.page(t, c, "GET", "/metrics"); code != 404 || !strings.Contains(text, "without metrics") {
		t.Errorf("metrics that are not there: %d %q", code, text)
	}
}

func TestHealthOfAFullSpace(t *testing.T) {
	s := newSecured(t, func(c *Config) {
		g := c.Group.(*testGroup)
		g.store = store.New(store.Options{Spaces: []store.SpaceOptions{{Name: store.SpaceEtcd, Bytes: 64 << 10}}})
		c.Space = g.store.Space(store.SpaceEtcd)
	})
	admin := s.client(t, pki.RoleAdmin, "ann")
	for err := error(nil); !errors.Is(err, rpctypes.ErrNoSpace); {
		if _, err = admin.Put(soon(t), "k", strings.Repeat("x", 1000)); err != nil && !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Fatal(err)
		}
	}
	c := s.browser(t, pki.RoleReader, "http/1.1")
	if code, text, _ := s.page(t, c, "GET", "/health"); code != 503 || text != `{"health":"false","reason":"ALARM NOSPACE"}`+"\n" {
		t.Errorf("%d %q", code, text)
	}
	if code, text, _ := s.page(t, c, "GET", "/health?exclude=NOSPACE"); code != 200 {
		t.Errorf("without that alarm: %d %q", code, text)
	}
}

// TestPagesAreForUsers: the roles are those of the calls, and so is who was removed.
func TestPagesAreForUsers(t *testing.T) {
	log := &lines{}
	s := newSecured(t, scrapes, func(c *Config) { c.Audit = log.logger(0) })
	for _, role := range []pki.Role{pki.RoleServer, pki.RoleAgent} {
		for _, path := range []string{"/metrics", "/health", "/nothing"} {
			code, text, _ := s.page(t, s.browser(t, role, "h2", "http/1.1"), "GET", path)
			if code != 403 || !strings.Contains(text, "permission denied") || !strings.Contains(text, "balsa user create") {
				t.Errorf("%s reads %s: %d %q", role, path, code, text)
			}
		}
	}
	want := `level=WARN msg=audit who=agent/ann what=http/metrics code=permission_denied reason="etcdserver: permission denied"`
	eventually(t, "the refusal is in the audit", func() bool { return strings.Contains(log.String(), want) })
	c := s.browser(t, pki.RoleReader, "http/1.1")
	if code, _, _ := s.page(t, c, "GET", "/metrics"); code != 200 {
		t.Fatal(code)
	}
	removed, err := pki.NewRemoved([]pki.Removal{{Role: pki.RoleReader, Name: "ann", At: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	s.guard.Update(removed)
	if code, text, _ := s.page(t, c, "GET", "/metrics"); code != 401 || !strings.Contains(text, "etcdserver: ") {
		t.Errorf("a removed reader on an open connection: %d %q", code, text)
	}
}

// TestTooManyPages: the bound holds, is told, and ends with what it bounded.
func TestTooManyPages(t *testing.T) {
	asked, answer := make(chan struct{}, webRequests), make(chan struct{})
	s := newSecured(t, func(c *Config) {
		c.Scrape = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{}; <-answer })
	})
	c := s.browser(t, pki.RoleReader, "h2", "http/1.1")
	for range webRequests {
		go func() {
			req, _ := http.NewRequestWithContext(soon(t), http.MethodGet, "https://"+s.address+"/metrics", nil)
			if res, err := c.Do(req); err == nil {
				res.Body.Close()
			}
		}()
	}
	for range webRequests {
		<-asked
	}
	if code, text, _ := s.page(t, c, "GET", "/health"); code != 429 || !strings.Contains(text, "64 pages") {
		t.Errorf("one too many: %d %q", code, text)
	}
	close(answer)
	eventually(t, "there is room again", func() bool { code, _, _ := s.page(t, c, "GET", "/health"); return code == 200 })
}

// TestCallsFromWhoOffersBoth: gRPC of a client that can speak HTTP/1.1 too comes over
// net/http, and is the same.
func TestCallsFromWhoOffersBoth(t *testing.T) {
	log := &lines{}
	s := newSecured(t, func(c *Config) { c.Audit = log.logger(0) })
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(credentials.NewTLS(s.offering(t, pki.RoleAdmin, "http/1.1", "h2"))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewKVClient(conn).Put(soon(t), &pb.PutRequest{Key: b("a"), Value: b("1")}); err != nil {
		t.Fatal(err)
	}
	stream, err := pb.NewWatchClient(conn).Watch(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{t: t, stream: stream}
	w.create(&pb.WatchCreateRequest{Key: b("a"), StartRevision: 1})
	w.want("0@2 created")
	w.want("0@2 put a=1")
	eventually(t, "the call is in the audit", func() bool { return strings.Contains(log.String(), "who=admin/ann what=etcdserverpb.KV/Put code=ok") })
	// The end of the server ends the watch, as it does for others.
	s.server.Stop(soon(t))
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ends with %v", err)
	}
}

// TestDoor: who means another protocol, or says nothing, is not kept.
func TestDoor(t *testing.T) {
	s := newSecured(t)
	for _, protos := range [][]string{{pki.ProtoRaft}, {pki.ProtoJoin}, {"spdy/3"}} {
		if conn, err := tls.Dial("tcp", s.address, s.offering(t, pki.RoleAdmin, protos...)); err == nil {
			conn.Close()
			t.Errorf("who offers %q is let in", protos)
		}
	}
	silent, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s.server.Stop(soon(t))
	if err := silent.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("a handshake outlives the server: %v", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// TestHeaderTooLarge is refused, by both versions.
func TestHeaderTooLarge(t *testing.T) {
	s := newSecured(t)
	for _, protos := range [][]string{{"http/1.1"}, {"h2", "http/1.1"}} {
		req, err := http.NewRequestWithContext(soon(t), http.MethodGet, "https://"+s.address+"/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Long", strings.Repeat("x", 2*webHeaderBytes))
		res, err := s.browser(t, pki.RoleReader, protos...).Do(req)
		if err == nil {
			res.Body.Close()
		}
		if err == nil && res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%v: %v", protos, res.Status)
		}
	}
}
