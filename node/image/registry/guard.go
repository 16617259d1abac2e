package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// Limits of connections.
const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	maxHeaderBytes   = 64 << 10
	idleTimeout      = 30 * time.Second
	idlePerHost      = 8
)

// guard is the transport below all others for one registry. It sees each
// request: also those for tokens and those that a redirect has led to.
type guard struct {
	inner *http.Transport
	// host is the registry's host, with its port if any; plain allows HTTP.
	host  string
	plain bool
	named bool // the node's configuration names the host
	local bool // the registry itself is on this machine
	// proxies are the environment's: to dial them is what the machine is told.
	proxies []string
	// documentBytes bounds every answer but a blob's.
	documentBytes int64
	// retryAfter is what the last answer asked for, nanoseconds.
	retryAfter atomic.Int64
}

func newGuard(host string, config Config, limits Limits) (*guard, error) {
	settings, named := config.of(host)
	authorities, err := settings.authorities()
	if err != nil {
		return nil, err
	}
	g := &guard{host: host, plain: settings.HTTP, named: named, local: isLocal(host), documentBytes: limits.DocumentBytes}
	env := httpproxy.FromEnvironment()
	for _, raw := range []string{env.HTTPProxy, env.HTTPSProxy} {
		if u, err := url.Parse(raw); err == nil && u.Host != "" {
			g.proxies = append(g.proxies, u.Hostname())
		}
	}
	g.inner = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            g.dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: authorities},
		TLSHandshakeTimeout:    handshakeTimeout,
		ResponseHeaderTimeout:  limits.Stall,
		MaxResponseHeaderBytes: maxHeaderBytes,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    idlePerHost,
		ForceAttemptHTTP2:      true,
		// A blob is taken as it is; a compressed answer could be a bomb.
		DisableCompression: true,
	}
	return g, nil
}

func (g *guard) close() { g.inner.CloseIdleConnections() }

// isLocal is about literal addresses: a registry on this machine may lead to
// this machine.
func isLocal(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

type blobKey struct{}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !(req.URL.Scheme == "http" && g.plain) {
		return nil, fmt.Errorf("%w: %s://%s: only https is allowed, unless the node's registry configuration has \"http: true\" for %s",
			ErrRefused, clip(req.URL.Scheme), clip(req.URL.Host), g.host)
	}
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil {
		if err := g.checkIP(req.URL.Host == g.host, ip); err != nil {
			return nil, err
		}
	}
	res, err := g.inner.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	g.retryAfter.Store(int64(retryAfter(res)))
	if req.Context().Value(blobKey{}) == nil || res.StatusCode >= 300 {
		res.Body = &boundedBody{ReadCloser: res.Body, left: g.documentBytes, limit: g.documentBytes}
	}
	return res, nil
}

// retryAfter is what an overloaded registry asks for; a date is not understood,
// since clocks differ.
func retryAfter(res *http.Response) time.Duration {
	if res.StatusCode != http.StatusTooManyRequests && res.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	seconds, err := strconv.ParseUint(res.Header.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	own := address == g.host || host == g.host
	trusted := slices.Contains(g.proxies, host)
	d := &net.Dialer{Timeout: dialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || trusted {
			return err
		}
		return g.checkIP(own, to.Addr())
	}}
	return d.DialContext(ctx, network, address)
}

// checkIP keeps a registry, and whoever can name one in a pod, away from what
// this machine alone may reach: its own services and the cloud's metadata.
func (g *guard) checkIP(own bool, ip netip.Addr) error {
	ip = ip.Unmap()
	switch {
	case own && g.named:
		return nil
	case ip.IsLinkLocalUnicast(), ip.IsMulticast(), ip.IsUnspecified(), slices.Contains(metadataAddresses(), ip.String()):
	case ip.IsLoopback() && !own && !g.local:
	default:
		return nil
	}
	return fmt.Errorf("%w: %s leads to %s, which only a registry that the node's configuration names may be at", ErrRefused, g.host, ip)
}

// metadataAddresses are those of clouds that are not link-local: Amazon's IPv6,
// Alibaba's and Azure's.
func metadataAddresses() []string {
	return []string{"fd00:ec2::254", "100.100.100.200", "168.63.129.16"}
}

// boundedBody fails beyond its limit.
type boundedBody struct {
	io.ReadCloser
	left, limit int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: the answer has more than %d bytes", ErrRefused, b.limit)
	}
	return n, err
}
