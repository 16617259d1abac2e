package client

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/announce"
	"github.com/balsa-run/balsa/internal/clock"
)

// anyServer is the host of every URL a Client makes; the balancer puts the
// chosen server's address in its place. The name is reserved by RFC 2606.
const anyServer = "balsa.invalid"

// leaderShun is how long writes stay away from a leader that failed one: what
// other servers tell of it may be old.
const leaderShun = 5 * time.Second

// pool knows the servers, which of them is in use, and which of them leads.
type pool struct {
	logger *slog.Logger
	clock  clock.Clock
	pinned bool

	mu      sync.Mutex
	given   []string // guarded by mu; by the configuration or SetServers; never empty
	told    []string // guarded by mu; by servers, in their latest answer
	all     []string // guarded by mu; given, then what told has beside it
	current int      // guarded by mu; an index into all
	// broken are those that failed since they last served a call.
	broken map[string]bool // guarded by mu
	// leader is where writes go; empty: where everything goes. It is one of all.
	leader string // guarded by mu
	// shunned is not taken for the leader until then.
	shunned string    // guarded by mu
	until   time.Time // guarded by mu
}

func newPool(cfg Config) *pool {
	given := slices.Clone(cfg.Servers)
	return &pool{given: given, all: given, broken: map[string]bool{}, logger: cfg.Logger, clock: cfg.Clock, pinned: cfg.Pinned}
}

// pick is the server for the next call.
func (p *pool) pick(write bool) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if write && p.leader != "" {
		return p.leader
	}
	return p.all[p.current]
}

// failed moves on to the next server if address is still the one in use: many
// calls that fail together move on once.
func (p *pool) failed(address string, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.all, address) {
		p.broken[address] = true
	}
	if address != "" && address == p.leader {
		p.leader, p.shunned, p.until = "", address, p.clock.Now().Add(leaderShun)
	}
	if p.all[p.current] != address || len(p.all) == 1 {
		return
	}
	p.current = (p.current + 1) % len(p.all)
	p.logger.Info("moving on to another server", "from", address, "to", p.all[p.current], "cause", cause)
}

// served notes that a server has answered a call as it should.
func (p *pool) served(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.broken, address)
}

func (p *pool) set(addresses []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(addresses) == 0 || slices.Equal(addresses, p.given) {
		return
	}
	p.given = slices.Clone(addresses)
	p.mergeLocked()
}

// heard takes in what a server of the cluster told in an answer. Nobody else can
// have: its certificate was verified, as that of every address told here will be
// before anything is sent to it. A leader that is not among the servers is not
// followed.
func (p *pool) heard(a announce.Announcement) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pinned {
		return
	}
	if len(a.Servers) > 0 && !slices.Equal(a.Servers, p.told) {
		p.told = a.Servers
		p.mergeLocked()
	}
	if a.Leader == p.leader || a.Leader != "" && !slices.Contains(p.all, a.Leader) {
		return
	}
	if a.Leader == p.shunned && p.clock.Now().Before(p.until) {
		return
	}
	p.leader = a.Leader
}

func (p *pool) mergeLocked() {
	inUse := p.all[p.current]
	p.all = slices.Clone(p.given)
	for _, address := range p.told {
		if !slices.Contains(p.all, address) {
			p.all = append(p.all, address)
		}
	}
	p.current = max(0, slices.Index(p.all, inUse))
	maps.DeleteFunc(p.broken, func(address string, _ bool) bool { return !slices.Contains(p.all, address) })
	if !slices.Contains(p.all, p.leader) {
		p.leader = ""
	}
}

func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

func (p *pool) known() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// lasting is what is worth keeping for the next time: the server in use, those
// that servers told of, those that were given, and of all these the ones that
// failed last; nothing when no server told anything and none failed. A program
// that tries once must not find the same dead server first each time.
func (p *pool) lasting() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pinned || len(p.told) == 0 && len(p.broken) == 0 {
		return nil
	}
	var well, broken []string
	for _, address := range slices.Concat([]string{p.all[p.current]}, p.told, p.given) {
		switch {
		case slices.Contains(well, address) || slices.Contains(broken, address):
		case p.broken[address]:
			broken = append(broken, address)
		default:
			well = append(well, address)
		}
	}
	return append(well, broken...)
}

// attempt carries the address that served a request from the transport up to
// the retrier, and whether it is a write down to it.
type attempt struct {
	address string
	write   bool
}

type attemptKey struct{}

func withAttempt(ctx context.Context, write bool) (context.Context, *attempt) {
	a := &attempt{write: write}
	return context.WithValue(ctx, attemptKey{}, a), a
}

// balancer sends each write to the leader, as far as it is known, and everything
// else to the server in use.
type balancer struct {
	servers *pool
	next    http.RoundTripper
}

func (b *balancer) RoundTrip(request *http.Request) (*http.Response, error) {
	a, ok := request.Context().Value(attemptKey{}).(*attempt)
	address := b.servers.pick(ok && a.write)
	if ok {
		a.address = address
	}
	routed := request.Clone(request.Context())
	routed.URL.Host, routed.Host = address, address
	response, err := b.next.RoundTrip(routed)
	if err == nil {
		b.servers.heard(announce.From(response.Header))
	}
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
