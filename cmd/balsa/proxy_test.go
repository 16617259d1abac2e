package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsa/v1/balsav1connect"
)

// startProxy runs balsa proxy and returns where it listens.
func startProxy(t *testing.T, config string, args ...string) (base string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, ended := &lockedBuffer{}, make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"--config", config, "proxy", "--port", "0"}, args...), strings.NewReader(""), out, out)
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-ended; code != exitOK {
			t.Errorf("balsa proxy ends with %d: %s", code, out)
		}
	})
	eventually(t, func() error {
		if _, address, found := strings.Cut(strings.TrimSpace(out.String()), "Starting to serve on "); found {
			base = "http://" + address
			return nil
		}
		return fmt.Errorf("it says %q", out)
	})
	return base
}

// TestProxy hands on what a program on this machine asks, streams as well, and
// nothing that came by a name of somebody else, from a page, or to run a program.
func TestProxy(t *testing.T) {
	s := startServer(t, t.TempDir(), "s1", "--init", "--log-level", "error")
	t.Cleanup(func() { s.stop() })
	waitUntilServing(t, s)
	base := startProxy(t, s.config)
	ask := func(path string, change func(*http.Request)) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+path, strings.NewReader(`{"kind":"Namespace"}`))
		must(t, err)
		request.Header.Set("Content-Type", "application/json")
		if change != nil {
			change(request)
		}
		response, err := http.DefaultClient.Do(request)
		must(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		must(t, err)
		return response.StatusCode, string(body)
	}
	const list = "/balsa.v1.ObjectService/List"
	if code, body := ask(list, nil); code != http.StatusOK || !strings.Contains(body, `"default"`) {
		t.Errorf("a list: %d %s", code, body)
	}
	for want, change := range map[string]func(*http.Request){
		`host "balsa.evil.example" is not accepted`: func(r *http.Request) { r.Host = "balsa.evil.example:8001" },
		`a page of "http://evil.example"`:           func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
		`a page of "null"`:                          func(r *http.Request) { r.Header.Set("Origin", "null") },
		`path "/balsa.v1.PodService/Exec"`:          func(r *http.Request) { r.URL.Path = "/balsa.v1.PodService/Exec" },
	} {
		if code, body := ask(list, change); code != http.StatusForbidden || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", want, code, body)
		}
	}
	if code, body := ask(list, func(r *http.Request) { r.Header.Set("Origin", "http://localhost:3000") }); code != http.StatusOK {
		t.Errorf("a page of this machine: %d %s", code, body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := balsav1connect.NewObjectServiceClient(http.DefaultClient, base, connect.WithProtoJSON()).Watch(ctx, connectRequest())
	must(t, err)
	defer stream.Close()
	for name := "streamed"; ; {
		if !stream.Receive() {
			t.Fatalf("the stream ended: %v", stream.Err())
		}
		if stream.Msg().GetInitialEventsEnd() { // what comes now comes while the stream is open
			manifest := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n"
			if _, errOut, code := balsaWith(t, s.config, manifest, "apply", "-f", "-"); code != exitOK {
				t.Fatal(errOut)
			}
		}
		if stream.Msg().GetObject().GetNamespace().GetMetadata().GetName() == name {
			return
		}
	}
}

func connectRequest() *balsav1.WatchRequest { return &balsav1.WatchRequest{Kind: "Namespace"} }

// TestProxyFlags: the proxy listens for this machine alone, and refuses what flags
// name, at once where they make no sense.
func TestProxyFlags(t *testing.T) {
	for want, args := range map[string][]string{
		`--address "0.0.0.0": allowed is`:           {"--address", "0.0.0.0"},
		`--address "example.com"`:                   {"--address", "example.com"},
		`--port 70000: allowed are`:                 {"--port", "70000"},
		`--accept-hosts "(" is no regular expressi`: {"--accept-hosts", "("},
	} {
		if out, errOut, code := balsa(t, "none", append([]string{"proxy"}, args...)...); code != exitUsage || !strings.Contains(errOut, want) {
			t.Errorf("%v: exit code %d, %s%s; want %s", args, code, out, errOut, want)
		}
	}
	g := &gate{hosts: []string{"^box$"}, paths: []string{"^/balsa"}, rejectPaths: []string{"Delete$"}, rejectMethods: []string{"^PUT$"}}
	must(t, g.compile())
	for _, c := range []struct {
		method, host, path string
		passes             bool
	}{
		{"POST", "box", "/balsa.v1.ObjectService/List", true}, {"POST", "box:8001", "/balsa.v1.ObjectService/List", true},
		{"PUT", "box", "/balsa.v1.ObjectService/List", false}, {"POST", "localhost", "/balsa.v1.ObjectService/List", false},
		{"POST", "box", "/balsa.v1.ObjectService/Delete", false}, {"POST", "box", "/metrics", false}, {"POST", "[::1]:80", "/balsa", false},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+c.host+c.path, nil)
		must(t, err)
		if why := g.refuses(r); (why == "") != c.passes {
			t.Errorf("%+v: %q", c, why)
		}
	}
}
