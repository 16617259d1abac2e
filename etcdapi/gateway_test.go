package etcdapi

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/pki"
)

// post sends one request to the gateway and leaves the answer open.
func (s *secured) post(t *testing.T, c *http.Client, path string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(soon(t), http.MethodPost, "https://"+s.address+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// spaces are what protobuf's JSON has sometimes, so that nobody relies on it.
var spaces = regexp.MustCompile(`\s+`)

func (s *secured) json(t *testing.T, c *http.Client, path, body string) (int, string) {
	t.Helper()
	res := s.post(t, c, path, strings.NewReader(body))
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, spaces.ReplaceAllString(string(text), "")
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// gatewayHeader is the header of an answer by testGroup.
func gatewayHeader(revision int) string {
	return fmt.Sprintf(`"header":{"cluster_id":"11","member_id":"12","revision":"%d","raft_term":"7"}`, revision)
}

// TestGateway is the same API in JSON, over both versions of HTTP.
func TestGateway(t *testing.T) {
	for name, protos := range map[string][]string{"HTTP/2.0": {"h2", "http/1.1"}, "HTTP/1.1": {"http/1.1"}} {
		t.Run(name, func(t *testing.T) {
			s := newSecured(t)
			c := s.browser(t, pki.RoleAdmin, protos...)
			for _, step := range []struct {
				path, body string
				code       int
				answer     string
			}{
				{"/v3/kv/put", `{"key":"` + b64("a") + `","value":"` + b64("1") + `"}`, 200, `{` + gatewayHeader(2) + `}`},
				{"/v3beta/kv/put", `{"key":"` + b64("b") + `","lease":"0","field of a later version":{"x":[1]}}`, 200, `{` + gatewayHeader(3) + `}`},
				{
					"/v3/kv/range", `{"key":"` + b64("a") + `","range_end":"` + b64("z") + `","limit":1}`, 200,
					`{` + gatewayHeader(3) + `,"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"MQ=="}],"more":true,"count":"2"}`,
				},
				{
					"/v3/kv/txn", `{"compare":[{"result":"EQUAL","target":"CREATE","key":"YQ==","createRevision":"2"}],"success":[{"requestPut":{"key":"YQ==","value":"Mg=="}}]}`, 200,
					`{` + gatewayHeader(4) + `,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"4"}}}]}`,
				},
				{"/v3/kv/deleterange", `{"key":"Yg==","prev_kv":true}`, 200, `{` + gatewayHeader(5) + `,"deleted":"1","prev_kvs":[{"key":"Yg==","create_revision":"3","mod_revision":"3","version":"1"}]}`},
				{"/v3/kv/compaction", `{"revision":4}`, 200, `{` + gatewayHeader(5) + `}`},
				{"/v3/kv/range", `{"key":"YQ==","revision":2}`, 400, `{"code":11,"message":"etcdserver:mvcc:requiredrevisionhasbeencompacted"}`},
				{"/v3/kv/put", `{"value":"MQ=="}`, 400, `{"code":3,"message":"etcdserver:keyisnotprovided"}`},
				{"/v3/lease/grant", `{"TTL":60,"ID":"77"}`, 200, `{` + gatewayHeader(5) + `,"ID":"77","TTL":"60"}`},
				{"/v3/lease/timetolive", `{"ID":77}`, 200, `{` + gatewayHeader(5) + `,"ID":"77","TTL":"60","grantedTTL":"60"}`},
				{"/v3/lease/revoke", `{"ID":78}`, 404, `{"code":5,"message":"etcdserver:requestedleasenotfound"}`},
				{"/v3/lease/leases", ``, 200, `{` + gatewayHeader(5) + `,"leases":[{"ID":"77"}]}`},
				{"/v3/lease/keepalive", `{"ID":77}`, 200, `{"result":{` + gatewayHeader(5) + `,"ID":"77","TTL":"60"}}`},
				{"/v3/lock/lock", `{"name":"` + b64("door") + `","lease":77}`, 200, `{` + gatewayHeader(6) + `,"key":"` + b64("door/4d") + `"}`},
				{"/v3/election/leader", `{"name":"` + b64("nobody") + `"}`, 500, `{"code":2,"message":"election:noleader"}`},
				{"/v3/cluster/member/list", `{}`, 200, `{` + strings.Replace(gatewayHeader(0), `"revision":"0",`, "", 1) + `,"members":[{"ID":"12","name":"one"}]}`},
				{"/v3/auth/enable", `{}`, 400, ""},
				{"/v3/kv/put", `{"key":`, 400, ""},
				{"/v3/kv/put", `{"key":"not base64!"}`, 400, ""},
				{"/v3/kv/nothing", `{}`, 404, `{"code":5,"message":"NotFound"}`},
			} {
				code, answer := s.json(t, c, step.path, step.body)
				if code != step.code || step.answer != "" && answer != step.answer {
					t.Errorf("%s %s\n got %d %s\nwant %d %s", step.path, step.body, code, answer, step.code, step.answer)
				}
			}
			if res := s.post(t, c, "/v3/kv/put", strings.NewReader(`{"key":"YQ=="}`)); res.Proto != name {
				t.Errorf("%s is spoken", res.Proto)
			}
		})
	}
}

// TestGatewayHasEveryMethod: what etcd's gateway has a path for is here as well.
func TestGatewayHasEveryMethod(t *testing.T) {
	s := newSecured(t)
	c := s.browser(t, pki.RoleAdmin, "http/1.1")
	found := 0
	services := pb.File_rpc_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for i := range methods.Len() {
			method := methods.Get(i)
			rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
			if rule.GetPost() == "" || method.IsStreamingServer() {
				continue // streams have tests of their own
			}
			found++
			if code, text := s.json(t, c, rule.GetPost(), "{}"); code == http.StatusNotFound && strings.Contains(text, `"NotFound"`) {
				t.Errorf("%s has no path %s: %s", method.FullName(), rule.GetPost(), text)
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d methods of etcd have a path", found)
	}
}

// TestGatewayWatches: a watch is a stream of lines over either version, told as it
// happens, and ends with its client, without leaving anything behind.
func TestGatewayWatches(t *testing.T) {
	for name, protos := range map[string][]string{"HTTP/2.0": {"h2", "http/1.1"}, "HTTP/1.1": {"http/1.1"}} {
		t.Run(name, func(t *testing.T) {
			s := newSecured(t)
			admin := s.client(t, pki.RoleAdmin, "ann")
			c := s.browser(t, pki.RoleReader, protos...)
			res := s.post(t, c, "/v3/watch", strings.NewReader(`{"create_request":{"key":"YQ==","start_revision":2}}`))
			lines := bufio.NewScanner(res.Body)
			next := func(want string) {
				t.Helper()
				if !lines.Scan() {
					t.Fatalf("the watch ended: %v", lines.Err())
				}
				if got := spaces.ReplaceAllString(lines.Text(), ""); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			}
			next(`{"result":{` + gatewayHeader(1) + `,"created":true}}`)
			for i := range 3 {
				if _, err := admin.Put(soon(t), "a", fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
				next(fmt.Sprintf(`{"result":{%s,"events":[{"kv":{"key":"YQ==","create_revision":"2","mod_revision":"%d","version":"%d","value":"%s"}}]}}`,
					gatewayHeader(i+2), i+2, i+1, b64(fmt.Sprint(i))))
			}
			res.Body.Close()
			c.CloseIdleConnections()
			eventually(t, "the watch has ended", func() bool { return s.server.streams.count() == 0 })
			eventually(t, "its connection is forgotten", func() bool { return s.server.gateway.open() == 0 })
		})
	}
}

// TestGatewayEndsWithTheServer: a stream of the gateway holds nobody up.
func TestGatewayEndsWithTheServer(t *testing.T) {
	s := newSecured(t)
	res := s.post(t, s.browser(t, pki.RoleReader, "h2", "http/1.1"), "/v3/watch", strings.NewReader(`{"create_request":{"key":"YQ=="}}`))
	lines := bufio.NewScanner(res.Body)
	if !lines.Scan() || !strings.Contains(lines.Text(), "created") {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	s.server.Stop(soon(t))
	if !lines.Scan() || !strings.Contains(spaces.ReplaceAllString(lines.Text(), ""), "etcdserver:serverstopped") {
		t.Errorf("the watch ends with %q, %v", lines.Text(), lines.Err())
	}
	if open := s.server.gateway.open(); open != 0 {
		t.Errorf("%d connections are left", open)
	}
}

// TestGatewayIsForUsers: who calls is who holds the HTTP connection, by the roles of the
// methods, in the audit as everybody; and no header says otherwise.
func TestGatewayIsForUsers(t *testing.T) {
	log := &lines{}
	s := newSecured(t, func(c *Config) { c.Audit = log.logger(0) })
	put, get := `{"key":"YQ==","value":"MQ=="}`, `{"key":"YQ=="}`
	denied := `{"code":7,"message":"etcdserver:permissiondenied"}`
	for _, want := range []struct {
		role     pki.Role
		put, get int
	}{{pki.RoleAdmin, 200, 200}, {pki.RoleReader, 403, 200}, {pki.RoleServer, 403, 403}, {pki.RoleAgent, 403, 403}} {
		c := s.browser(t, want.role, "h2", "http/1.1")
		if code, text := s.json(t, c, "/v3/kv/put", put); code != want.put || code == 403 && text != denied {
			t.Errorf("%s puts: %d %s", want.role, code, text)
		}
		if code, text := s.json(t, c, "/v3/kv/range", get); code != want.get || code == 403 && text != denied {
			t.Errorf("%s gets: %d %s", want.role, code, text)
		}
	}
	for _, line := range []string{
		`level=INFO msg=audit who=admin/ann what=etcdserverpb.KV/Put code=ok`,
		`level=WARN msg=audit who=reader/ann what=etcdserverpb.KV/Put code=permission_denied`,
		`level=WARN msg=audit who=agent/ann what=etcdserverpb.KV/Range code=permission_denied`,
	} {
		eventually(t, line, func() bool { return strings.Contains(log.String(), line) })
	}
	c := s.browser(t, pki.RoleReader, "http/1.1")
	if code, _ := s.json(t, c, "/v3/kv/range", get); code != 200 {
		t.Fatal(code)
	}
	removed, err := pki.NewRemoved([]pki.Removal{{Role: pki.RoleReader, Name: "ann", At: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	s.guard.Update(removed)
	if code, text := s.json(t, c, "/v3/kv/range", get); code != 401 || !strings.Contains(text, `"code":16`) {
		t.Errorf("a removed reader on an open connection: %d %s", code, text)
	}
}

// TestGatewayCallersAreApart: connections at once, each with its own rights.
func TestGatewayCallersAreApart(t *testing.T) {
	s := newSecured(t)
	var all sync.WaitGroup
	for i := range 8 {
		role, want := pki.RoleAdmin, 200
		if i%2 == 1 {
			role, want = pki.RoleReader, 403
		}
		c := s.browser(t, role, []string{"http/1.1", "h2"}[:1+i/4]...)
		all.Go(func() {
			for range 20 {
				if code, text := s.json(t, c, "/v3/kv/put", `{"key":"YQ=="}`); code != want {
					t.Errorf("%s puts: %d %s", role, code, text)
				}
			}
		})
	}
	all.Wait()
}

// TestGatewayBodyIsBounded: also one whose length nobody has said.
func TestGatewayBodyIsBounded(t *testing.T) {
	s := newSecured(t, func(c *Config) { c.Limits.RequestBytes = 1 << 10 })
	c := s.browser(t, pki.RoleAdmin, "h2", "http/1.1")
	most := s.server.limits.gatewayBody()
	body := io.MultiReader(strings.NewReader(`{"key":"YQ==","value":"`), io.LimitReader(endless{}, 8*most))
	res := s.post(t, c, "/v3/kv/put", body)
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), fmt.Sprint(most)) || !strings.Contains(string(text), "gRPC") {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	// What gRPC refuses is refused the same.
	large := `{"key":"YQ==","value":"` + b64(strings.Repeat("x", 2<<10)) + `"}`
	if code, text := s.json(t, c, "/v3/kv/put", large); code != 400 || !strings.Contains(text, `"etcdserver:requestistoolarge"`) {
		t.Errorf("%d %s", code, text)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	return len(p), nil
}

// open counts the connections that are not forgotten, and count the streams.
func (g *gateway) open() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

func (set *streamSet) count() int {
	set.mu.Lock()
	defer set.mu.Unlock()
	return len(set.open)
}
