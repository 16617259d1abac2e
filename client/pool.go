package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
)

// anyServer is the host of every URL a Client makes; the balancer puts the
// chosen server's address in its place. The name is reserved by RFC 2606.
const anyServer = "balsa.invalid"

// pool knows the servers and which of them is in use.
type pool struct {
	logger *slog.Logger

	mu        sync.Mutex
	addresses []string // guarded by mu; never empty
	current   int      // guarded by mu; an index into addresses
}

func newPool(addresses []string, logger *slog.Logger) *pool {
	return &pool{addresses: slices.Clone(addresses), logger: logger}
}

func (p *pool) pick() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addresses[p.current]
}

// failed moves on to the next server if address is still the one in use: many
// calls that fail together move on once.
func (p *pool) failed(address string, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.addresses[p.current] != address || len(p.addresses) == 1 {
		return
	}
	p.current = (p.current + 1) % len(p.addresses)
	p.logger.Info("moving on to another server", "from", address, "to", p.addresses[p.current], "cause", cause)
}

func (p *pool) set(addresses []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(addresses) == 0 || slices.Equal(addresses, p.addresses) {
		return
	}
	inUse := p.addresses[p.current]
	p.addresses = slices.Clone(addresses)
	p.current = max(0, slices.Index(p.addresses, inUse))
}

func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.addresses)
}

func (p *pool) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.addresses)
}

// attempt carries the address that served a request from the transport up to
// the retrier.
type attempt struct{ address string }

type attemptKey struct{}

func withAttempt(ctx context.Context) (context.Context, *attempt) {
	a := &attempt{}
	return context.WithValue(ctx, attemptKey{}, a), a
}

// balancer sends each request to the server in use.
type balancer struct {
	servers *pool
	next    http.RoundTripper
}

func (b *balancer) RoundTrip(request *http.Request) (*http.Response, error) {
	address := b.servers.pick()
	if a, ok := request.Context().Value(attemptKey{}).(*attempt); ok {
		a.address = address
	}
	routed := request.Clone(request.Context())
	routed.URL.Host, routed.Host = address, address
	response, err := b.next.RoundTrip(routed)
	if err == nil || request.Context().Err() != nil {
		return response, err
	}
	b.servers.failed(address, err)
	if neverSent(err) {
		return nil, err
	}
	return nil, fmt.Errorf("the connection to server %s broke: %w", address, err)
}

func newTransport(cfg Config) *http.Transport {
	transport := &http.Transport{
		Protocols:   new(http.Protocols),
		HTTP2:       &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, cfg, address) },
	}
	// TLS is dialled by cfg.Dial, so to the transport this is HTTP/2 on a
	// connection without any. Its own TLS would hide why a server hung up.
	transport.Protocols.SetUnencryptedHTTP2(true)
	return transport
}
