package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
	"github.com/balsa-run/balsa/pki"
)

// call is what the server knows about one request on its way. Only the request's
// goroutine uses it, but for cut.
type call struct {
	procedure string
	start     time.Time
	identity  pki.Identity
	stream    bool
	reply     *reply // nil outside of a request
	served    bool   // an interceptor saw the outcome
	code      string // of the outcome
	reason    string
	object    string // what it is about, for the audit
	outcome   string // created, unchanged, dry run …
	release   func()

	mu sync.Mutex
	// control is guarded by mu; nil once the handler has returned, when using
	// it would be a mistake that net/http punishes with a panic.
	control *http.ResponseController
}

// cut ends reading and writing at a moment, whoever is blocked in them. Any
// goroutine may call it.
func (c *call) cut(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.control != nil {
		_ = c.control.SetReadDeadline(at)
		_ = c.control.SetWriteDeadline(at)
	}
}

func (c *call) over() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.control = nil
}

type callKey struct{}

// callOf returns the call of a request; outside of one, as in a unit test of a
// handler, an empty call.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// about notes what a call is about, for the audit.
func about(ctx context.Context, key *balsav1.ObjectKey) {
	name := key.GetName()
	if key.GetNamespace() != "" {
		name = key.GetNamespace() + "/" + name
	}
	callOf(ctx).object = key.GetKind() + " " + name
}

// track is the outermost layer: it makes the call record, and counts and
// audits whatever came of it.
func (s *Server) track(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{procedure: r.URL.Path, start: s.clock.Now(), control: http.NewResponseController(w)}
		c.reply = &reply{ResponseWriter: w}
		defer s.finish(c)
		next.ServeHTTP(c.reply, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
		s.conclude(c.reply, r, c)
	})
}

func (s *Server) finish(c *call) {
	c.over()
	if c.release != nil {
		c.release()
	}
	method := rpcName(c.procedure)
	if _, known := s.policy[c.procedure]; !known {
		method = "unknown" // a path that a stranger chose is no label
	}
	if !c.served && c.code == "" {
		c.code = "refused"
	}
	s.metrics.Requests.WithLabelValues(method, c.code).Inc()
	if c.served && !c.stream {
		s.metrics.Latency.WithLabelValues(method).Observe(s.clock.Now().Sub(c.start).Seconds())
	}
	s.audit(c, method)
}

// audit says who did what, to which object and with which outcome; never a
// value. Reads are debug, refusals of identity and role are warnings.
func (s *Server) audit(c *call, method string) {
	level := slog.LevelDebug
	switch {
	case c.code == connect.CodePermissionDenied.String() || c.code == connect.CodeUnauthenticated.String():
		level = slog.LevelWarn
	case s.policy.loud(c.procedure):
		level = slog.LevelInfo
	}
	attrs := []slog.Attr{slog.String("who", c.who()), slog.String("what", method), slog.String("code", c.code)}
	for _, a := range []slog.Attr{slog.String("object", c.object), slog.String("outcome", c.outcome), slog.String("reason", c.reason)} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	s.auditLog.LogAttrs(context.Background(), level, "audit", attrs...)
}

func (c *call) who() string {
	if c.identity.Role == roleNone {
		return "nobody"
	}
	return c.identity.String()
}

// gate refuses a call before its message is read: no certificate, a removed
// identity, a role that may not, too many calls at once.
func (s *Server) gate(ctx context.Context, spec connect.Spec, _ connect.Peer, _ http.Header) (context.Context, error) {
	c := callOf(ctx)
	c.stream = spec.StreamType != connect.StreamTypeUnary
	ctx, err := s.admit(ctx, c, spec.Procedure)
	if err != nil {
		ce := toConnect(err, s.policy.writes(spec.Procedure), s.log)
		c.code, c.reason = ce.Code().String(), toProblem(err).reason
		c.answers()
		return nil, ce
	}
	return ctx, nil
}

// answers lets the answer out: it is ours from here on.
func (c *call) answers() {
	if c.reply != nil {
		c.reply.pass()
	}
}

func (s *Server) admit(ctx context.Context, c *call, procedure string) (context.Context, error) {
	id, ok := pki.IdentityFrom(ctx)
	c.identity = id
	if s.policy.open(procedure) {
		return ctx, s.occupy(c, pki.Identity{})
	}
	if !ok {
		return nil, &problem{
			code: connect.CodeUnauthenticated, reason: "Unauthenticated",
			hint: "connect with a client certificate of this cluster",
			err:  fmt.Errorf("%s takes a client certificate", rpcName(procedure)),
		}
	}
	if err := s.guard.Check(id); err != nil && !asksWhy(id, procedure, err) {
		return nil, err
	}
	if err := s.policy.check(id, procedure); err != nil {
		return nil, err
	}
	if err := s.occupy(c, id); err != nil {
		return nil, err
	}
	if !c.stream {
		return ctx, nil
	}
	return s.watchOver(ctx, c, id), nil
}

// asksWhy lets a removed server ask for the state once more: the answer is that it
// is no member any more, which makes it end. See peerService.State.
func asksWhy(id pki.Identity, procedure string, refusal error) bool {
	return id.Role == pki.RoleServer && procedure == internalv1connect.PeerServiceStateProcedure && errors.Is(refusal, pki.ErrRemoved)
}

// watchOver ends a stream whose identity is removed. A reader that does not
// read cannot hold it: the connection's deadlines end it shortly after.
func (s *Server) watchOver(ctx context.Context, c *call, id pki.Identity) context.Context {
	guarded, cancel := s.guard.Watch(ctx, id)
	stop := context.AfterFunc(guarded, func() {
		if ctx.Err() == nil { // removed, rather than ended by its own side
			c.cut(time.Now().Add(farewell))
		}
	})
	vacate := c.release
	c.release = func() {
		stop()
		cancel()
		vacate()
	}
	return guarded
}

// farewell is what a stream has to take the error that ends it.
const farewell = time.Second

// occupy takes the call's place among those in flight, or refuses.
func (s *Server) occupy(c *call, id pki.Identity) error {
	kind, total, each := "unary", s.limits.Requests, s.limits.RequestsPerIdentity
	names := [2]string{"Requests", "RequestsPerIdentity"}
	places := s.requests
	if c.stream {
		kind, total, each = "stream", s.limits.Streams, s.limits.StreamsPerIdentity
		names, places = [2]string{"Streams", "StreamsPerIdentity"}, s.streams
	}
	if id.Role == pki.RoleServer {
		each = total // a peer forwards for everybody
	}
	who := id.String()
	switch places.take(who, total, each) {
	case tookAll:
		return overLimit(names[0], total, "try again a little later", "%d %s calls are in flight", total, kind)
	case tookOwn:
		return overLimit(names[1], each, "end some calls first, or spread them over time", "%d %s calls of %s are in flight", each, kind, who)
	}
	gauge := s.metrics.InFlight.WithLabelValues(kind)
	gauge.Inc()
	c.release = func() {
		places.give(who)
		gauge.Dec()
	}
	return nil
}

// places counts calls in flight, in all and by identity.
type places struct {
	mu    sync.Mutex
	total int            // guarded by mu
	by    map[string]int // guarded by mu; holds no zeros
}

type taken uint8

const (
	took taken = iota
	tookAll
	tookOwn
)

func newPlaces() *places { return &places{by: map[string]int{}} }

func (p *places) take(who string, total, each int) taken {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.total >= total:
		return tookAll
	case p.by[who] >= each:
		return tookOwn
	}
	p.total++
	p.by[who]++
	return took
}

func (p *places) give(who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total--
	if p.by[who]--; p.by[who] == 0 {
		delete(p.by, who)
	}
}
