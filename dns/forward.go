package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"github.com/balsa-run/balsa/internal/clock"
)

const (
	// forwardTimeout is shorter than the five seconds after which clients ask
	// again, so that they hear the reason.
	forwardTimeout = 4 * time.Second
	// attemptTimeout is for one upstream; the next one follows.
	attemptTimeout = 1500 * time.Millisecond
	// maxRounds is how often each upstream is asked, if time allows.
	maxRounds = 2
	// roundPause lies between rounds, so that servers which fail at once get
	// time to come back.
	roundPause = 500 * time.Millisecond
	// maxForwards bounds the questions that wait for upstreams at one time.
	maxForwards = 1024
	// ednsSize is the largest UDP message that is asked for and sent: the size
	// that passes every path without fragments (DNS Flag Day 2020).
	ednsSize = 1232
)

// Exchanger carries one message to one server and back. network is "udp" or
// "tcp". The reply's id must be checked by it; the question is not.
type Exchanger interface {
	Exchange(ctx context.Context, network string, server netip.AddrPort, query *mdns.Msg) (*mdns.Msg, error)
}

// netExchanger is the network itself, with a new socket, and so a new source
// port, for each question.
type netExchanger struct{}

func (netExchanger) Exchange(ctx context.Context, network string, server netip.AddrPort, query *mdns.Msg) (*mdns.Msg, error) {
	c := mdns.Client{Net: network, UDPSize: ednsSize, Timeout: attemptTimeout}
	reply, _, err := c.ExchangeContext(ctx, query, server.String())
	return reply, err
}

// failure is why there is no answer: a code and text of RFC 8914, told to the
// client and logged.
type failure struct {
	code   uint16
	reason string
}

func (f *failure) Error() string { return f.reason }

// forwarder asks the upstream servers.
type forwarder struct {
	exchange  Exchanger
	clock     clock.Clock
	log       *slog.Logger
	metrics   *Metrics
	cache     *cache
	slots     chan struct{}
	upstreams atomic.Pointer[[]netip.AddrPort]
	// preferred is the index of the upstream that answered last.
	preferred atomic.Uint32
	// flights joins equal questions. It is also the guard against loops: if an
	// upstream asks us in turn, that question waits for itself, one time, until
	// the time-out, instead of going round.
	flights singleflight.Group
}

// resolve answers from the cache or an upstream.
func (f *forwarder) resolve(ctx context.Context, q mdns.Question, do bool) (reply *mdns.Msg, cached bool, err error) {
	key := cacheKey{name: strings.ToLower(q.Name), qtype: q.Qtype, do: do}
	if reply, failed, found := f.cache.get(key, f.clock.Now()); found {
		if failed != nil {
			return nil, true, failed
		}
		return reply, true, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, false, &failure{mdns.ExtendedErrorCodeOther, fmt.Sprintf("%d questions are waiting for upstream servers already", maxForwards)}
	}
	flight := fmt.Sprintf("%s %d %t", key.name, key.qtype, do)
	// The flight has its own deadline: the first client to give up must not
	// take the others' answer away.
	results := f.flights.DoChan(flight, func() (any, error) { return f.fly(key) })
	select {
	case r := <-results:
		if r.Err != nil {
			return nil, false, r.Err
		}
		return r.Val.(*mdns.Msg).Copy(), false, nil
	case <-ctx.Done():
		return nil, false, &failure{mdns.ExtendedErrorCodeOther, "the resolver is stopping"}
	}
}

// fly asks upstreams and stores what came of it.
func (f *forwarder) fly(key cacheKey) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	defer cancel()
	start := f.clock.Now()
	reply, err := f.askAll(ctx, key)
	now := f.clock.Now()
	f.metrics.forwarded(now.Sub(start))
	if err != nil {
		var failed *failure
		if !errors.As(err, &failed) {
			failed = &failure{mdns.ExtendedErrorCodeNoReachableAuthority, err.Error()}
		}
		f.log.Warn("no answer from upstream DNS servers", "name", key.name, "type", mdns.TypeToString[key.qtype], "reason", failed.reason)
		f.cache.put(&cacheEntry{key: key, failure: failed, stored: now, expires: now.Add(failureTTL)})
		return nil, failed
	}
	f.cache.put(&cacheEntry{key: key, reply: reply, stored: now, expires: now.Add(lifetime(reply))})
	return reply, nil
}

// askAll goes round the upstreams, beginning with the one that answered last,
// until one answers or time is up.
func (f *forwarder) askAll(ctx context.Context, key cacheKey) (*mdns.Msg, error) {
	upstreams := *f.upstreams.Load()
	if len(upstreams) == 0 {
		return nil, &failure{mdns.ExtendedErrorCodeNoReachableAuthority, "no upstream DNS server is configured on the node"}
	}
	var errs []error
	var refused *mdns.Msg
	first := int(f.preferred.Load())
	for i := 0; ctx.Err() == nil && i < maxRounds*len(upstreams) && (i < len(upstreams) || refused == nil); i++ {
		at := (first + i) % len(upstreams)
		reply, err := f.ask(ctx, upstreams[at], key)
		switch {
		case err != nil:
			f.metrics.upstreamFailed()
			if len(errs) < maxUpstreams {
				errs = append(errs, fmt.Errorf("%s: %w", upstreams[at], err))
			}
			if i == len(upstreams)-1 {
				pause(ctx, f.clock)
			}
		case reply.Rcode == mdns.RcodeSuccess || reply.Rcode == mdns.RcodeNameError:
			f.preferred.Store(uint32(at))
			return reply, nil
		default: // it refuses or fails: perhaps another one knows
			refused = reply
		}
	}
	if refused != nil {
		return refused, nil
	}
	return nil, errors.Join(errs...)
}

func pause(ctx context.Context, c clock.Clock) {
	t := c.NewTimer(roundPause)
	defer t.Stop()
	select {
	case <-t.C():
	case <-ctx.Done():
	}
}

// ask asks one upstream: by UDP, again by TCP if the answer is cut short, and
// without EDNS if the server does not know it.
func (f *forwarder) ask(ctx context.Context, server netip.AddrPort, key cacheKey) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	query := new(mdns.Msg)
	query.SetQuestion(key.name, key.qtype)
	query.SetEdns0(ednsSize, key.do)
	reply, err := f.once(ctx, "udp", server, query)
	if err == nil && reply.Rcode == mdns.RcodeFormatError {
		query.Extra = nil
		reply, err = f.once(ctx, "udp", server, query)
	}
	if err == nil && reply.Truncated {
		reply, err = f.once(ctx, "tcp", server, query)
	}
	if err != nil {
		return nil, err
	}
	return withoutOPT(reply), nil
}

func (f *forwarder) once(ctx context.Context, network string, server netip.AddrPort, query *mdns.Msg) (*mdns.Msg, error) {
	reply, err := f.exchange.Exchange(ctx, network, server, query)
	if err != nil {
		return nil, err
	}
	if len(reply.Question) != 1 || !sameQuestion(reply.Question[0], query.Question[0]) {
		return nil, errors.New("answered another question")
	}
	return reply, nil
}

func sameQuestion(a, b mdns.Question) bool {
	return strings.EqualFold(a.Name, b.Name) && a.Qtype == b.Qtype && a.Qclass == b.Qclass
}

// withoutOPT drops what belongs to the hop between us and the upstream.
func withoutOPT(m *mdns.Msg) *mdns.Msg {
	m.Extra = slices.DeleteFunc(m.Extra, func(rr mdns.RR) bool { return rr.Header().Rrtype == mdns.TypeOPT })
	return m
}
