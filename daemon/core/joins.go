package core

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits on strangers: anybody who reaches the port may open such a connection.
const (
	joinIdleTimeout = 10 * time.Second
	// maxJoinConns are served at once. A newcomer takes the place of the one that
	// has been idle for longest, so that those who only hold a place keep nobody
	// out; when all are being served he is refused.
	maxJoinConns = 64
	// maxJoinRefusals are told so at once; the others are hung up on.
	maxJoinRefusals = 16
)

// joins are the connections of those who want to join.
type joins struct {
	logger  *slog.Logger
	refused func() // counts those who got no place

	mu       sync.Mutex
	served   map[*joinConn]bool // guarded by mu
	refusing map[*joinConn]bool // guarded by mu; those that are told that there is no place
	order    uint64             // guarded by mu
}

// joinConn is one of them.
type joinConn struct {
	net.Conn
	full bool   // there was no place; never written after admit
	idle uint64 // guarded by joins.mu; when it last became idle, in order; 0: it is being served
}

func newJoins(logger *slog.Logger, refused func()) *joins {
	return &joins{logger: logger, refused: refused, served: map[*joinConn]bool{}, refusing: map[*joinConn]bool{}}
}

// server answers on them.
func (j *joins) server(ctx context.Context, handler http.Handler) *http.Server {
	server := &http.Server{
		Handler:           j.unlessFull(handler),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       joinIdleTimeout, // a stranger's connection may not stay for nothing
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if c, ok := conn.(*joinConn); ok && c.full {
				return context.WithValue(ctx, fullKey{}, true)
			}
			return ctx
		},
		ConnState: j.changed,
		ErrorLog:  slog.NewLogLogger(j.logger.Handler(), slog.LevelDebug),
		Protocols: new(http.Protocols),
	}
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}

// listener gives out connections whose ends have agreed on HTTP/2 already. The
// HTTP server must not see their TLS: it would ask for ALPN h2, which is the
// API's.
func (j *joins) listener(from net.Listener) net.Listener { return joinListener{from, j} }

type joinListener struct {
	net.Listener
	joins *joins
}

func (l joinListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.joins.admit(conn); c != nil {
			return c, nil
		}
		_ = conn.Close()
	}
}

// admit finds a place for a connection, or nil.
func (j *joins) admit(conn net.Conn) *joinConn {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.order++
	c := &joinConn{Conn: conn, idle: j.order}
	if len(j.served) < maxJoinConns || j.evictLocked() {
		j.served[c] = true
		return c
	}
	j.refused()
	j.logger.Debug("no place for a join connection", "peer", conn.RemoteAddr(), "limit", maxJoinConns)
	if len(j.refusing) >= maxJoinRefusals {
		return nil
	}
	c.full = true
	j.refusing[c] = true
	return c
}

// evictLocked ends the connection that has been idle for longest.
func (j *joins) evictLocked() bool {
	var oldest *joinConn
	for c := range j.served {
		if c.idle != 0 && (oldest == nil || c.idle < oldest.idle) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	delete(j.served, oldest)
	j.logger.Debug("an idle join connection makes room", "peer", oldest.RemoteAddr(), "limit", maxJoinConns)
	_ = oldest.Conn.Close()
	return true
}

// changed is http.Server.ConnState.
func (j *joins) changed(conn net.Conn, state http.ConnState) {
	c, ok := conn.(*joinConn)
	if !ok {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch state {
	case http.StateActive:
		c.idle = 0
	case http.StateIdle:
		j.order++
		c.idle = j.order
	case http.StateClosed, http.StateHijacked:
		delete(j.served, c)
		delete(j.refusing, c)
	case http.StateNew:
	}
}

type fullKey struct{}

// unlessFull tells those who got no place so, and hangs up.
func (j *joins) unlessFull(next http.Handler) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(fullKey{}) == nil {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		_ = writer.Write(w, r, errFull()) // who does not take it is not let in either
	})
}

func errFull() error {
	err := connect.NewError(connect.CodeResourceExhausted,
		fmt.Errorf("%d others who want to join are being served, and no more may be at once (limit maxJoinConns)", maxJoinConns))
	detail, detailErr := connect.NewErrorDetail(&balsav1.ErrorDetail{
		Reason: "LimitReached", Applied: balsav1.ErrorDetail_APPLIED_NOT_APPLIED, Hint: "try again a little later, or at another server",
	})
	if detailErr == nil {
		err.AddDetail(detail)
	}
	return err
}
