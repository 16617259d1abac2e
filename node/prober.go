package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
)

// Prober asks a container over the network how it is; a nil error is yes. The
// error's text goes into events. Commands in containers are not its business.
type Prober interface {
	Probe(ctx context.Context, p pod.Probe) error
	// Call makes the request of a hook; whatever the answer is, it was made.
	Call(ctx context.Context, q pod.Question) error
}

// NetProber asks by HTTP, by connecting, or by gRPC, from the node to the pod.
type NetProber struct{}

const (
	maxProbeRedirects = 10
	maxProbeBody      = 10 << 10
	// maxProbeOutput is what is kept of a command's output, for the event.
	maxProbeOutput = 1 << 10
	probeUserAgent = "balsa-probe"
)

// Probe implements Prober.
func (n NetProber) Probe(ctx context.Context, p pod.Probe) error {
	switch {
	case p.TCP != "":
		return connects(ctx, p.TCP)
	case p.GRPC != "":
		return healthy(ctx, p.GRPC, p.Service)
	}
	status, err := get(ctx, p.Question)
	if err != nil {
		return err
	}
	if status < 200 || status >= 400 {
		return fmt.Errorf("HTTP status %d", status)
	}
	return nil
}

// Call implements Prober.
func (n NetProber) Call(ctx context.Context, q pod.Question) error {
	_, err := get(ctx, q)
	return err
}

// get follows redirects within the pod's host, as Kubernetes does, and takes one
// to another host for an answer.
func get(ctx context.Context, q pod.Question) (status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, q.URL, nil)
	if err != nil {
		return 0, err
	}
	request.Header = http.Header{"User-Agent": {probeUserAgent}, "Accept": {"*/*"}}
	for name, values := range q.Header {
		request.Header[http.CanonicalHeaderKey(name)] = values
	}
	if q.Host != "" {
		request.Host = q.Host
	}
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		// A probe proves that the program answers, not who it is, as in Kubernetes.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: serverName(q.Host)}, //nolint:gosec // see above
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: sameHost}
	response, err := client.Do(request)
	if err != nil {
		return 0, plain(err)
	}
	_, readErr := io.Copy(io.Discard, io.LimitReader(response.Body, maxProbeBody))
	if err := errors.Join(readErr, response.Body.Close()); err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	return response.StatusCode, nil
}

// serverName is the host without a port, for TLS.
func serverName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// sameHost stops at a redirect to another host, and after too many.
func sameHost(next *http.Request, via []*http.Request) error {
	if next.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxProbeRedirects {
		return fmt.Errorf("stopped after %d redirects", maxProbeRedirects)
	}
	return nil
}

// plain leaves out method and address, which the pod's own events need not
// repeat.
func plain(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func connects(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

const (
	healthCheck   = "/grpc.health.v1.Health/Check"
	healthServing = 1
)

// healthy asks grpc.health.v1. Its messages have one field each, of number 1: a
// string in the request and an enum in the response, which is what the well-known
// wrappers look like on the wire.
func healthy(ctx context.Context, address, service string) error {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := connect.NewClient[wrapperspb.StringValue, wrapperspb.Int32Value](&http.Client{Transport: transport}, "http://"+address+healthCheck,
		connect.WithGRPC(), connect.WithReadMaxBytes(maxProbeBody))
	request := connect.NewRequest(wrapperspb.String(service))
	request.Header().Set("User-Agent", probeUserAgent)
	response, err := client.CallUnary(ctx, request)
	switch {
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		return errors.New("the server does not implement grpc.health.v1.Health")
	case err != nil:
		return plain(err)
	case response.Msg.GetValue() != healthServing:
		return fmt.Errorf("service %q is not SERVING: status %d", service, response.Msg.GetValue())
	}
	return nil
}

// exec runs a command in a container, for a probe or a hook.
func (a *Agent) exec(ctx context.Context, uid, container string, command []string) error {
	out := &head{most: maxProbeOutput}
	exit, err := a.cfg.Runtime.Exec(ctx, runtime.PodUID(uid), container, runtime.ExecConfig{Args: command, Stdout: out, Stderr: out})
	switch {
	case err != nil:
		return err
	case exit.Code != 0:
		text := strings.TrimSpace(strings.ToValidUTF8(out.text.String(), ""))
		return fmt.Errorf("command ended with exit code %d: %s", exit.Code, text)
	}
	return nil
}

// head keeps the beginning of what is written.
type head struct {
	most int
	text bytes.Buffer
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.most - h.text.Len(); room > 0 {
		h.text.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
