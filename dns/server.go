package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"github.com/balsa-run/balsa/internal/clock"
)

const (
	// maxTCPConns bounds the TCP connections, tcpIdleTimeout how long one may
	// be silent.
	maxTCPConns    = 256
	tcpIdleTimeout = 10 * time.Second
	// shutdownTimeout bounds how long Serve waits for answers under way.
	shutdownTimeout = 5 * time.Second
)

// Options of a Server. Domain is required.
type Options struct {
	// Domain is the cluster's; until the first zone comes its names fail.
	Domain string
	// Self lists the addresses the server is reached at: an upstream with one
	// of them would be itself, and is left out.
	Self []netip.AddrPort
	// Exchange reaches upstreams; nil means the network.
	Exchange Exchanger
	// Clock may be nil, for the machine's.
	Clock clock.Clock
	// Logger and Metrics may be nil.
	Logger  *slog.Logger
	Metrics *Metrics
}

// Server is the resolver of one node. Its methods may be called from any
// goroutine.
type Server struct {
	domain  string
	self    []netip.AddrPort
	log     *slog.Logger
	metrics *Metrics
	forward forwarder
	zone    atomic.Pointer[Zone]
	clients atomic.Pointer[Clients]
	// turn counts answers, to rotate the addresses of each.
	turn atomic.Uint32
}

// NewServer makes a server without zone and upstreams.
func NewServer(o Options) (*Server, error) {
	if _, ok := mdns.IsDomainName(o.Domain); !ok || Canonical(o.Domain) == "." {
		return nil, fmt.Errorf("dns server: domain %q is not a domain name; cluster.local is usual", o.Domain)
	}
	if o.Exchange == nil {
		o.Exchange = netExchanger{}
	}
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		m, err := NewMetrics(nil)
		if err != nil {
			return nil, fmt.Errorf("dns server: %w", err)
		}
		o.Metrics = m
	}
	s := &Server{domain: Canonical(o.Domain), self: slices.Clone(o.Self), log: o.Logger, metrics: o.Metrics}
	s.forward.exchange, s.forward.clock, s.forward.log, s.forward.metrics = o.Exchange, o.Clock, o.Logger, o.Metrics
	s.forward.cache, s.forward.slots = newCache(), make(chan struct{}, maxForwards)
	s.SetUpstreams(nil)
	return s, nil
}

// SetZone makes the server answer from another zone, at once.
func (s *Server) SetZone(z *Zone) { s.zone.Store(z) }

// SetClients says who asks, at once. Names that others ask for are not completed.
func (s *Server) SetClients(c *Clients) { s.clients.Store(c) }

// Revision is that of the zone in use; 0 before the first.
func (s *Server) Revision() int64 {
	if z := s.zone.Load(); z != nil {
		return z.Revision()
	}
	return 0
}

// SetUpstreams replaces the upstream servers and forgets what the former ones
// said.
func (s *Server) SetUpstreams(servers []netip.AddrPort) {
	var kept []netip.AddrPort
	for _, u := range servers {
		if slices.Contains(s.self, u) {
			s.log.Warn("upstream DNS server is this resolver itself; left out", "server", u)
			continue
		}
		if len(kept) < maxUpstreams && !slices.Contains(kept, u) {
			kept = append(kept, u)
		}
	}
	s.forward.upstreams.Store(&kept)
	s.forward.preferred.Store(0)
	s.forward.cache.clear()
}

// Serve answers on sockets that the caller has bound, UDP and TCP, until ctx is
// done; it closes them. The usual address is a link-local one on the node's
// loopback device, see podnet.Options.LocalAddress.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) { s.handle(ctx, w, r) })
	servers := []*mdns.Server{
		{PacketConn: udp, Handler: handler, UDPSize: ednsSize},
		{Listener: netutil.LimitListener(tcp, maxTCPConns), Handler: handler, IdleTimeout: func() time.Duration { return tcpIdleTimeout }},
	}
	ended := make(chan error, len(servers))
	started := make(chan struct{}, len(servers))
	for _, m := range servers {
		m.NotifyStartedFunc = func() { started <- struct{}{} }
		go func() { ended <- m.ActivateAndServe() }()
	}
	var errs []error
	running := len(servers)
	for up := 0; up < len(servers) && running == len(servers); { // Shutdown is possible only after the start
		select {
		case <-started:
			up++
		case err := <-ended:
			errs = append(errs, err)
			running--
		}
	}
	if running == len(servers) {
		select {
		case <-ctx.Done():
		case err := <-ended:
			errs = append(errs, err)
			running--
		}
	}
	errs = append(errs, stop(servers, udp, tcp))
	for ; running > 0; running-- {
		errs = append(errs, <-ended)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("dns server at %s: %w", udp.LocalAddr(), err)
	}
	return nil
}

func stop(servers []*mdns.Server, udp net.PacketConn, tcp net.Listener) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	var errs []error
	for _, m := range servers {
		// One that has ended by itself needs no shutdown, and says so.
		if err := m.ShutdownContext(ctx); err != nil && ctx.Err() != nil {
			errs = append(errs, err)
		}
	}
	for _, c := range []interface{ Close() error }{udp, tcp} {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Server) handle(ctx context.Context, w mdns.ResponseWriter, r *mdns.Msg) {
	reply := s.Resolve(ctx, clientOf(w.RemoteAddr()), r)
	size := mdns.MaxMsgSize
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
		size = mdns.MinMsgSize
		if opt := r.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), mdns.MinMsgSize), ednsSize)
		}
	}
	reply.Truncate(size)
	if err := w.WriteMsg(reply); err != nil {
		s.log.Debug("send DNS answer", "client", w.RemoteAddr(), "error", err)
	}
}

func clientOf(a net.Addr) netip.Addr {
	var at netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	return at.Addr().Unmap()
}

// Resolve answers one message of a client; it never fails, since refusals are
// answers too.
func (s *Server) Resolve(ctx context.Context, client netip.Addr, r *mdns.Msg) *mdns.Msg {
	reply := new(mdns.Msg).SetReply(r)
	reply.RecursionAvailable, reply.Compress = true, true
	source := sourceSelf
	switch {
	case r.Opcode != mdns.OpcodeQuery:
		reply.Rcode = mdns.RcodeNotImplemented
	case len(r.Question) != 1:
		reply.Rcode = mdns.RcodeFormatError
	case r.Question[0].Qclass != mdns.ClassINET:
		reply.Rcode = mdns.RcodeRefused
	default:
		source = s.answer(ctx, client, r, reply)
	}
	s.metrics.answered(source, reply.Rcode)
	return reply
}

// answer fills in the reply and says where it came from.
func (s *Server) answer(ctx context.Context, client netip.Addr, r, reply *mdns.Msg) string {
	q, do := r.Question[0], false
	if opt := r.IsEdns0(); opt != nil {
		do = opt.Do()
		reply.SetEdns0(ednsSize, do)
		if opt.Version() != 0 {
			// The upper part of the code rides in the OPT record.
			reply.Rcode = mdns.RcodeBadVers
			return sourceSelf
		}
	}
	if z := s.zone.Load(); z != nil {
		if a, ours := z.Lookup(q.Name, q.Qtype); ours {
			return s.fromZone(ctx, z, client, a, q, do, reply)
		}
	} else if mdns.IsSubDomain(s.domain, Canonical(q.Name)) {
		s.fail(reply, &failure{mdns.ExtendedErrorCodeNotReady, "the node has not yet heard of the cluster's services"})
		return sourceZone
	}
	return s.fromUpstream(ctx, q, do, reply)
}

func (s *Server) fromZone(ctx context.Context, z *Zone, client netip.Addr, a Answer, q mdns.Question, do bool, reply *mdns.Msg) string {
	source := sourceZone
	m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Rcode: a.Rcode}, Answer: a.Answer, Ns: a.Ns, Extra: a.Extra}
	if a.Chase != "" {
		m = s.chase(ctx, z, a, q, do)
	} else if c, ok := z.completes(s.clients.Load().Searches(client), Canonical(q.Name)); ok && a.Rcode == mdns.RcodeNameError {
		if got, exists := s.complete(ctx, z, q, do, c); exists {
			m, source = got, sourceCompleted
		}
	}
	if m.Rcode == mdns.RcodeServerFailure {
		s.fail(reply, &failure{mdns.ExtendedErrorCodeOther, fmt.Sprintf("%s stands for a name that cannot be resolved, or for itself", q.Name)})
		reply.Answer = m.Answer
		return source
	}
	reply.Authoritative, reply.Rcode = true, m.Rcode
	reply.Answer, reply.Ns = rotate(m.Answer, s.turn.Add(1)), m.Ns
	reply.Extra = append(m.Extra, reply.Extra...)
	return source
}

// rotate spreads clients that take the first address over all of them. Aliases
// stay in front, in their order.
func rotate(rrs []mdns.RR, turn uint32) []mdns.RR {
	first := 0
	for first < len(rrs) && rrs[first].Header().Rrtype == mdns.TypeCNAME {
		first++
	}
	if len(rrs)-first < 2 {
		return rrs
	}
	n := first + int(turn)%(len(rrs)-first)
	return slices.Concat(rrs[:first], rrs[n:], rrs[first:n])
}

func (s *Server) fromUpstream(ctx context.Context, q mdns.Question, do bool, reply *mdns.Msg) string {
	got, cached, err := s.forward.resolve(ctx, q, do)
	source := sourceUpstream
	if cached {
		source = sourceCache
	}
	if err != nil {
		s.fail(reply, err)
		return source
	}
	reply.Rcode, reply.AuthenticatedData = got.Rcode, got.AuthenticatedData
	reply.Answer, reply.Ns = got.Answer, got.Ns
	reply.Extra = append(got.Extra, reply.Extra...)
	return source
}

// fail answers SERVFAIL, with the reason for clients that can read it (RFC 8914;
// dig shows it as "EDE").
func (s *Server) fail(reply *mdns.Msg, err error) {
	reply.Rcode = mdns.RcodeServerFailure
	opt := reply.IsEdns0()
	if opt == nil {
		return
	}
	ede := &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeOther, ExtraText: err.Error()}
	var f *failure
	if errors.As(err, &f) {
		ede.InfoCode = f.code
	}
	const maxText = 200 // the reason must not be what cuts the answer short
	ede.ExtraText = ede.ExtraText[:min(len(ede.ExtraText), maxText)]
	opt.Option = append(opt.Option, ede)
}
