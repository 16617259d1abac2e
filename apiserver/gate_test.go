package apiserver

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/reflect/protoreflect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs; if that is meant, run with -update (-want +got):\n%s", path, diff)
	}
}

// everyRole is the columns of the matrix.
func everyRole() []pki.Role { return append(pki.Roles(), roleNone) }

// The whole matrix, as it is: a change of it is seen in review.
func TestRolesGolden(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-62s", "method")
	for _, role := range everyRole() {
		name := string(role)
		if role == roleNone {
			name = "(join)"
		}
		fmt.Fprintf(&b, " %-28s", name)
	}
	b.WriteString("\n")
	for _, r := range matrix() {
		fmt.Fprintf(&b, "%-62s", rpcName(r.procedure))
		for _, role := range everyRole() {
			cell := "-"
			for _, g := range r.grants {
				if g.role == role {
					cell = "yes"
					if g.only != "" {
						cell = "yes, " + g.only
					}
				}
			}
			fmt.Fprintf(&b, " %-28s", cell)
		}
		b.WriteString("\n")
	}
	var trimmed strings.Builder
	for line := range strings.Lines(b.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	golden(t, "roles.golden", trimmed.String())
}

// procedures are all methods of all services that the protos declare.
func procedures() []string {
	var out []string
	for _, file := range []protoreflect.FileDescriptor{
		balsav1.File_balsa_v1_object_service_proto, balsav1.File_balsa_v1_node_service_proto,
		balsav1.File_balsa_v1_pod_service_proto, balsav1.File_balsa_v1_cluster_service_proto,
		balsav1.File_balsa_v1_image_service_proto, internalv1.File_balsa_internal_v1_peer_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				out = append(out, fmt.Sprintf("/%s/%s", service.FullName(), service.Methods().Get(j).Name()))
			}
		}
	}
	return out
}

func TestEveryMethodHasARow(t *testing.T) {
	p := newPolicy()
	if len(p) != len(matrix()) {
		t.Error("a method has two rows")
	}
	for _, procedure := range procedures() {
		if _, ok := p[procedure]; !ok {
			t.Errorf("%s has no row in the matrix", procedure)
		}
	}
}

// post sends a Connect request with an empty JSON message, and says how it went.
func post(t *testing.T, c *clients, procedure string) (status int, body string) {
	t.Helper()
	contentType, message := "application/json", "{}"
	if streams(procedure) {
		contentType, message = "application/connect+json", "\x00\x00\x00\x00\x02{}"
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+procedure, strings.NewReader(message))
	must(t, err)
	req.Header.Set("Content-Type", contentType)
	res, err := c.http.Do(req)
	must(t, err)
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode, string(text)
}

func streams(procedure string) bool {
	return slices.ContainsFunc([]string{"Watch", "Assignments", "/GetBlob", "/Logs", "/Import", "/PushBlob", "/PutBlob", "/Exec", "/Attach", "/PortForward", "/CopyOut", "/CopyIn"}, func(s string) bool {
		return strings.HasSuffix(procedure, s)
	})
}

// What the matrix says holds at the door, for every role and method.
func TestMatrixIsEnforced(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for _, role := range pki.Roles() {
			c := w.as(role, "x")
			for _, procedure := range procedures() {
				if w.server.policy.open(procedure) {
					continue // not on this listener
				}
				granted := slices.ContainsFunc(w.server.policy[procedure].grants, func(g grant) bool { return g.role == role })
				_, body := post(t, c, procedure)
				if refusedHere := strings.Contains(body, "may not call"); refusedHere == granted {
					t.Errorf("%s calls %s: granted %v, but: %s", role, procedure, granted, body)
				}
			}
		}
		if status, _ := post(t, w.admin(), "/balsa.v1.JoinService/Join"); status != http.StatusNotImplemented {
			t.Errorf("JoinService answers on the API's listener: %d", status)
		}
		joiner := w.dial(w.joinListener, pki.Identity{}, true)
		if status, _ := post(t, joiner, "/balsa.v1.ObjectService/Get"); status != http.StatusNotImplemented {
			t.Errorf("ObjectService answers on the join listener: %d", status)
		}
	})
}

func TestWithoutCertificate(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.dial(w.listener, pki.Identity{}, true)
		for _, procedure := range procedures() {
			if w.server.policy.open(procedure) {
				continue
			}
			if _, body := post(t, c, procedure); !strings.Contains(body, "unauthenticated") {
				t.Errorf("%s: %s", procedure, body)
			}
		}
		_, err := c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: "cm", Name: "x"})
		refused(t, err, connect.CodeUnauthenticated, "Unauthenticated")
	})
}

func (w *world) remove(role pki.Role, name string) {
	w.t.Helper()
	set, err := pki.NewRemoved([]pki.Removal{{Role: role, Name: name, At: time.Now()}})
	must(w.t, err)
	w.guard.Update(set)
}

// A removed identity is refused at once, on open streams too, whether they are
// being read or not.
func TestRemovedIdentity(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		reading := startWatch(t, w.reader(), &balsav1.WatchRequest{Kind: "cm"})
		reading.expect(t, "BOOKMARK")
		stuck, err := w.as(pki.RoleReader, "rui", connect.WithAcceptCompression("gzip", nil, nil)).objects.Watch(t.Context(), &balsav1.WatchRequest{Kind: "Pod"})
		must(t, err)
		pod := newPod("p", nil)
		pod.Metadata.Annotations = map[string]string{"big": strings.Repeat("x", 200_000)}
		create(t, w.admin(), pod)
		for i := range 40 {
			pod.Metadata.Annotations["n"] = fmt.Sprint(i)
			apply(t, w.admin(), pod, "m")
		}
		synctest.Wait()
		before := time.Now()
		w.remove(pki.RoleReader, "rui")
		if err := reading.end(t); err != nil {
			refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
		} else {
			t.Error("the stream ended well")
		}
		_, err = w.reader().objects.Get(t.Context(), &balsav1.GetRequest{Kind: "cm", Name: "x"})
		refused(t, err, connect.CodeUnauthenticated, "IdentityRemoved")
		timer := time.NewTimer(2 * farewell)
		<-timer.C
		synctest.Wait()
		w.server.streams.mu.Lock()
		open := w.server.streams.total
		w.server.streams.mu.Unlock()
		if took := time.Since(before); open != 0 || took > 5*time.Second {
			t.Errorf("%d streams are still served after %v", open, took)
		}
		for stuck.Receive() {
		}
		if stuck.Err() == nil {
			t.Error("the stream that was not read ended well")
		}
		_ = stuck.Close()
	})
}

func TestExpiredCertificateEndsStream(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.guard.Run(ctx)
		id := pki.Identity{Role: pki.RoleReader, Name: "rui", Serial: "1", Expires: time.Now().Add(time.Hour)}
		wa := startWatch(t, w.dial(w.listener, id, true), &balsav1.WatchRequest{Kind: "cm"})
		refused(t, wa.end(t), connect.CodeUnauthenticated, "CertificateExpired")
		cancel()
	})
}

func TestLimitsInFlight(t *testing.T) {
	small := func(c *Config) {
		c.Limits.Streams, c.Limits.StreamsPerIdentity = 3, 2
		c.Limits.Requests, c.Limits.RequestsPerIdentity = 3, 2
	}
	run(t, func(t *testing.T, w *world) {
		rui, ana := w.reader(), w.admin()
		var open []*watcher
		for range 2 {
			wa := startWatch(t, rui, &balsav1.WatchRequest{Kind: "cm"})
			wa.expect(t, "BOOKMARK")
			open = append(open, wa)
		}
		_, err := stream(t, rui, &balsav1.WatchRequest{Kind: "cm"})
		refused(t, err, connect.CodeResourceExhausted, "LimitReached")
		if !strings.Contains(err.Error(), "at most 2") || !strings.Contains(err.Error(), "StreamsPerIdentity") {
			t.Errorf("the error does not name the limit and its value: %v", err)
		}
		wa := startWatch(t, ana, &balsav1.WatchRequest{Kind: "cm"})
		wa.expect(t, "BOOKMARK")
		_, err = stream(t, ana, &balsav1.WatchRequest{Kind: "cm"})
		if refused(t, err, connect.CodeResourceExhausted, "LimitReached"); !strings.Contains(err.Error(), "limit Streams)") {
			t.Errorf("the error does not name the limit: %v", err)
		}
		open[0].cancel()
		synctest.Wait()
		startWatch(t, rui, &balsav1.WatchRequest{Kind: "cm"}).expect(t, "BOOKMARK")

		// Unary calls: hold two of one identity in the barrier.
		release := make(chan struct{})
		w.backend.barrier = func() error { <-release; return nil }
		done := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := rui.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm"})
				done <- err
			}()
		}
		synctest.Wait()
		_, err = rui.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm"})
		if refused(t, err, connect.CodeResourceExhausted, "LimitReached"); !strings.Contains(err.Error(), "RequestsPerIdentity") {
			t.Errorf("the error does not name the limit: %v", err)
		}
		close(release)
		for range 2 {
			must(t, <-done)
		}
		_, err = rui.objects.List(t.Context(), &balsav1.ListRequest{Kind: "cm"})
		must(t, err)
	}, small)
}

func TestMessageLimit(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		big := newConfigMap("big", map[string]string{"v": strings.Repeat("x", 3000)})
		_, err := w.admin().objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(big)})
		if connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "2000") {
			t.Fatalf("got %v", err)
		}
	}, func(c *Config) { c.Limits.MessageBytes = 2000 })
}

// A panic costs the call, not the process, and says nothing of what it met.
func TestPanicBecomesInternal(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.backend.before = func(*internalv1.Command) error { panic("secret-value") }
		_, err := w.admin().objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newConfigMap("a", nil))})
		if d := refused(t, err, connect.CodeInternal, "Panic"); d.GetApplied() != unknown {
			t.Errorf("a panic does not know whether the write was applied: %v", d)
		}
		if strings.Contains(err.Error(), "secret-value") || strings.Contains(w.logs.String(), "secret-value") {
			t.Error("the panic's value leaks")
		}
		if !strings.Contains(w.logs.String(), "a handler panicked") {
			t.Error("the log does not say that a handler panicked")
		}
		w.backend.before = nil
		create(t, w.admin(), newConfigMap("a", nil))
	})
}

// Unknown fields are refused in JSON and in binary; known ones of Kubernetes by
// saying that they are not supported.
func TestUnknownFields(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.admin()
		send := func(contentType string, body []byte) string {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/balsa.v1.ObjectService/Create", bytes.NewReader(body))
			must(t, err)
			req.Header.Set("Content-Type", contentType)
			res, err := c.http.Do(req)
			must(t, err)
			text, err := io.ReadAll(res.Body)
			must(t, err)
			must(t, res.Body.Close())
			return string(text)
		}
		bad := `{"object":{"configMap":{"metadata":{"name":"a"},"dta":{"k":"v"}}}}`
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
			if got := send(contentType, []byte(bad)); !strings.Contains(got, "dta") || !strings.Contains(got, "invalid_argument") {
				t.Errorf("JSON: %s", got)
			}
		}
		// Field 99 of CreateRequest, a string.
		if got := send("application/proto", []byte("\x9a\x06\x02hi")); !strings.Contains(got, "99") || !strings.Contains(got, "invalid_argument") {
			t.Errorf("binary: %s", got)
		}
		good := `{"object":{"configMap":{"metadata":{"name":"a"},"data":{"k":"v"}}}}`
		if got := send("application/json", []byte(good)); !strings.Contains(got, `"resourceVersion"`) {
			t.Errorf("plain JSON over HTTP does not work: %s", got)
		}
		gone(t, c, "cm", "default", "dta")
	})
}

func TestProtocols(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := pki.Identity{Role: pki.RoleAdmin, Name: "ana"}
		for name, c := range map[string]*clients{
			"connect":        w.dial(w.listener, id, true),
			"grpc":           w.dial(w.listener, id, true, connect.WithGRPC()),
			"grpcweb":        w.dial(w.listener, id, true, connect.WithGRPCWeb()),
			"connecthttp1":   w.dial(w.listener, id, false),
			"connecthttpget": w.dial(w.listener, id, true, connect.WithHTTPGet()),
		} {
			create(t, c, newConfigMap(name, nil))
			get[*balsav1.ConfigMap](t, c, "", name)
			_, err := c.objects.Get(t.Context(), &balsav1.GetRequest{Kind: "cm", Name: "absent"})
			refused(t, err, connect.CodeNotFound, "NotFound")
			wa := startWatch(t, c, &balsav1.WatchRequest{Kind: "cm", FieldSelector: "metadata.name=" + name, Namespace: "default"})
			wa.expect(t, "ADDED "+name, "BOOKMARK")
		}
	})
}

// A server that has lost its cluster does not say that it serves.
func TestHealth(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		health := grpchealth.NewClient(w.admin().http, base)
		check := func(service string) (grpchealth.Status, error) {
			res, err := health.Check(t.Context(), &grpchealth.CheckRequest{Service: service})
			if err != nil {
				return grpchealth.StatusUnknown, err
			}
			return res.Status, nil
		}
		for _, service := range []string{"", "balsa.v1.ObjectService"} {
			if status, err := check(service); err != nil || status != grpchealth.StatusServing {
				t.Errorf("%q: %v, %v", service, status, err)
			}
		}
		_, err := check("no.such.Service")
		refused(t, err, connect.CodeNotFound, "NotFound")
		w.backend.barrier = func() error { return classed{notApplied: true} }
		if status, err := check(""); err != nil || status != grpchealth.StatusNotServing {
			t.Errorf("without a leader: %v, %v", status, err)
		}
	})
}

// A page of another origin in the browser of somebody with a certificate cannot
// write.
func TestCrossOrigin(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/balsa.v1.ObjectService/Create", strings.NewReader("{}"))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Sec-Fetch-Site", "cross-site")
		res, err := w.admin().http.Do(req)
		must(t, err)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Fatalf("status %d", res.StatusCode)
		}
	})
}

func TestAudit(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		create(t, w.admin(), newConfigMap("cm", map[string]string{"a": "a-value"}))
		_, err := w.reader().objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(newConfigMap("no", nil))})
		refused(t, err, connect.CodePermissionDenied, "Forbidden")
		get[*balsav1.ConfigMap](t, w.reader(), "", "cm")
		synctest.Wait()
		for _, want := range []string{
			`level=INFO msg=audit who=admin/ana what=balsa.v1.ObjectService/Create code=ok object="ConfigMap default/cm" outcome=created`,
			`level=WARN msg=audit who=reader/rui what=balsa.v1.ObjectService/Create code=permission_denied reason=Forbidden`,
			`level=DEBUG msg=audit who=reader/rui what=balsa.v1.ObjectService/Get code=ok object="ConfigMap default/cm"`,
		} {
			if !strings.Contains(w.logs.String(), want) {
				t.Errorf("no line %s in\n%s", want, w.logs.String())
			}
		}
		if strings.Contains(w.logs.String(), "a-value") {
			t.Error("a value is in the log")
		}
	})
}

func TestMetrics(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		registry := prometheus.NewRegistry()
		for _, c := range w.metrics.Collectors() {
			must(t, registry.Register(c))
		}
		create(t, w.admin(), newConfigMap("cm", nil))
		wa := startWatch(t, w.admin(), &balsav1.WatchRequest{Kind: "cm"})
		wa.expect(t, "ADDED cm", "BOOKMARK")
		post(t, w.admin(), "/nonsense/that/nobody/serves")
		_, err := w.reader().objects.Create(t.Context(), &balsav1.CreateRequest{})
		refused(t, err, connect.CodePermissionDenied, "Forbidden")
		synctest.Wait()
		families, err := registry.Gather()
		must(t, err)
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				key := f.GetName()
				for _, l := range m.GetLabel() {
					key += " " + l.GetValue()
				}
				got[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		for key, want := range map[string]float64{
			"balsa_api_requests_total ok balsa.v1.ObjectService/Create":                1,
			"balsa_api_requests_total permission_denied balsa.v1.ObjectService/Create": 1,
			"balsa_api_requests_total refused unknown":                                 1,
			"balsa_api_request_seconds balsa.v1.ObjectService/Create":                  1,
			"balsa_api_in_flight stream":                                               1,
			"balsa_api_watches ConfigMap":                                              1,
			"balsa_api_watch_events_total ConfigMap":                                   1,
		} {
			if got[key] != want {
				t.Errorf("%s is %v, want %v", key, got[key], want)
			}
		}
	})
}

func TestOnly(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		h := w.server.Only(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }), pki.RoleAdmin, pki.RoleReader)
		ask := func(id *pki.Identity) int {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/metrics", nil)
			must(t, err)
			if id != nil {
				r = r.WithContext(pki.WithIdentity(r.Context(), *id))
			}
			rec := &recorder{header: http.Header{}, code: http.StatusOK}
			h.ServeHTTP(rec, r)
			return rec.code
		}
		w.remove(pki.RoleAdmin, "old")
		for want, id := range map[int]*pki.Identity{
			http.StatusOK:        {Role: pki.RoleReader, Name: "rui"},
			http.StatusForbidden: {Role: pki.RoleAgent, Name: "n1"},
		} {
			if got := ask(id); got != want {
				t.Errorf("%v: %d, want %d", id, got, want)
			}
		}
		if ask(nil) != http.StatusUnauthorized || ask(&pki.Identity{Role: pki.RoleAdmin, Name: "old"}) != http.StatusUnauthorized {
			t.Error("somebody without an identity, or with a removed one, is let in")
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	_, err := New(Config{})
	for _, field := range []string{"Store", "Backend", "Guard", "Bundle", "Lease", "Blobs"} {
		if err == nil || !strings.Contains(err.Error(), "Config."+field) {
			t.Errorf("no complaint about %s: %v", field, err)
		}
	}
}
