package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

const (
	// handshakes bounds the handshakes at once; further callers wait in the kernel's
	// queue.
	handshakes = 1024
	// acceptRetry is the wait after an error such as "too many open files".
	acceptRetry = 50 * time.Millisecond
)

// NewListener is the listener for Serve: TLS for clients that speak HTTP, in whatever
// version. config is asked for a configuration once for each client. Who names other
// protocols only is refused.
func NewListener(raw net.Listener, config *tls.Config) net.Listener {
	config = config.Clone()
	choose := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		h2, h1 := slices.Contains(hello.SupportedProtos, pki.ProtoHTTP2), slices.Contains(hello.SupportedProtos, pki.ProtoHTTP1)
		if !h2 && !h1 && len(hello.SupportedProtos) > 0 {
			return nil, fmt.Errorf("etcd's API is spoken over HTTP/2 or HTTP/1.1; the client offers %q only", hello.SupportedProtos)
		}
		if c, ok := hello.Conn.(*noted); ok {
			c.both = h2 && h1
		}
		if choose == nil {
			return nil, nil
		}
		return choose(hello)
	}
	return tls.NewListener(notingListener{raw}, config)
}

// noted is a connection that knows whether its client offered both versions of HTTP,
// which TLS forgets once one is chosen.
type noted struct {
	net.Conn
	both bool
}

type notingListener struct{ net.Listener }

func (l notingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &noted{Conn: conn}, nil
}

// door accepts connections and hands each to gRPC's own server or to net/http's, by
// what was agreed on in the handshake:
//
//	h2, and the client offered nothing else   gRPC: so do its libraries
//	h2, and HTTP/1.1 was offered too          net/http, which hands on what is gRPC
//	http/1.1, or nothing                      net/http
//	no TLS                                    gRPC, where Identify refuses it
//
// gRPC's server is the quicker one, but cannot answer anything else.
type door struct {
	raw    net.Listener
	clock  clock.Clock
	logger *slog.Logger
	slots  chan struct{}
	calls  *doorSide
	web    *doorSide
	// ctx ends the handshakes when the door closes.
	ctx   context.Context
	close context.CancelFunc
	once  sync.Once
}

// doorSide is the listener of one of the two. Closing either closes the port.
type doorSide struct {
	*door
	conns chan net.Conn
}

func newDoor(raw net.Listener, c clock.Clock, logger *slog.Logger) *door {
	d := &door{raw: raw, clock: c, logger: logger, slots: make(chan struct{}, handshakes)}
	d.ctx, d.close = context.WithCancel(context.Background())
	d.calls, d.web = &doorSide{d, make(chan net.Conn)}, &doorSide{d, make(chan net.Conn)}
	go d.accept()
	return d
}

func (d *door) accept() {
	defer d.Close()
	for {
		select {
		case d.slots <- struct{}{}:
		case <-d.ctx.Done():
			return
		}
		conn, err := d.raw.Accept()
		switch {
		case err == nil:
			go d.admit(conn)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		<-d.slots
		d.logger.Error("cannot accept a connection of an etcd client", "address", d.raw.Addr(), "error", err)
		if !d.wait(acceptRetry) {
			return
		}
	}
}

func (d *door) wait(pause time.Duration) bool {
	timer := d.clock.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-d.ctx.Done():
		return false
	}
}

// admit holds a slot until the connection has found its server.
func (d *door) admit(conn net.Conn) {
	defer func() { <-d.slots }()
	ctx, cancel := context.WithTimeout(d.ctx, handshakeMax)
	defer cancel()
	side, err := d.sideOf(ctx, conn)
	if err != nil {
		d.logger.Debug("handshake refused", "peer", conn.RemoteAddr(), "error", err)
		_ = conn.Close()
		return
	}
	select {
	case side.conns <- conn:
	case <-ctx.Done():
		_ = conn.Close()
	}
}

func (d *door) sideOf(ctx context.Context, conn net.Conn) (*doorSide, error) {
	c, ok := conn.(*tls.Conn)
	if !ok {
		return d.calls, nil
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if c.ConnectionState().NegotiatedProtocol != pki.ProtoHTTP2 {
		return d.web, nil
	}
	if n, ok := c.NetConn().(*noted); ok && n.both {
		return d.web, nil
	}
	return d.calls, nil
}

// Close closes the port; connections that were handed over live on.
func (d *door) Close() (err error) {
	d.once.Do(func() {
		d.close()
		err = d.raw.Close()
	})
	return err
}

func (d *door) Addr() net.Addr { return d.raw.Addr() }

func (s *doorSide) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}
