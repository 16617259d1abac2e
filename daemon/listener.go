package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/balsa-run/balsa/pki"
)

// Limits of a listener.
const (
	maxHandshakes    = 256 // at once; further callers wait in the kernel's queue
	handshakeTimeout = 5 * time.Second
	acceptRetry      = 50 * time.Millisecond // after an error such as "too many open files"
)

// demux accepts TLS connections on one port and hands each to the listener of
// the protocol that was agreed on by ALPN.
type demux struct {
	raw    net.Listener
	config *tls.Config
	logger *slog.Logger
	slots  chan struct{}

	routes map[string]*route // by protocol; never written after newDemux
	done   chan struct{}
	stop   sync.Once
}

// route is the listener of some protocols. Closing it leaves the port to the
// others.
type route struct {
	address net.Addr
	conns   chan net.Conn
	port    chan struct{} // closed with the port
	closed  chan struct{} // closed with this listener
	once    sync.Once
}

// newDemux serves raw. API gets HTTP/2, HTTP/1.1 and clients that name nothing.
func newDemux(raw net.Listener, config *tls.Config, logger *slog.Logger) *demux {
	d := &demux{
		raw: raw, config: config, logger: logger, done: make(chan struct{}),
		slots: make(chan struct{}, maxHandshakes),
	}
	api := d.newRoute()
	d.routes = map[string]*route{
		pki.ProtoHTTP2: api, pki.ProtoHTTP1: api, "": api,
		pki.ProtoRaft: d.newRoute(),
		pki.ProtoJoin: d.newRoute(),
	}
	go d.accept()
	return d
}

func (d *demux) newRoute() *route {
	return &route{address: d.raw.Addr(), conns: make(chan net.Conn), port: d.done, closed: make(chan struct{})}
}

func (d *demux) accept() {
	defer d.Close()
	for {
		select {
		case d.slots <- struct{}{}:
		case <-d.done:
			return
		}
		conn, err := d.raw.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-d.slots
			d.logger.Error("cannot accept a connection", "address", d.raw.Addr(), "error", err)
			if !d.wait(acceptRetry) {
				return
			}
			continue
		}
		go d.handshake(conn)
	}
}

func (d *demux) wait(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.done:
		return false
	}
}

// handshake holds a slot until the connection has found its listener.
func (d *demux) handshake(raw net.Conn) {
	defer func() { <-d.slots }()
	conn := tls.Server(raw, d.config)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		d.logger.Debug("handshake refused", "peer", raw.RemoteAddr(), "error", err)
		_ = raw.Close()
		return
	}
	target, known := d.routes[conn.ConnectionState().NegotiatedProtocol]
	if !known {
		_ = conn.Close()
		return
	}
	select {
	case target.conns <- conn:
	case <-target.closed:
		_ = conn.Close()
	case <-d.done:
		_ = conn.Close()
	case <-ctx.Done():
		d.logger.Warn("nobody took a connection", "peer", raw.RemoteAddr(), "waited", handshakeTimeout)
		_ = conn.Close()
	}
}

// Close stops all listeners. Connections that they gave out live on.
func (d *demux) Close() error {
	var err error
	d.stop.Do(func() {
		close(d.done)
		err = d.raw.Close()
	})
	return err
}

func (r *route) Accept() (net.Conn, error) {
	select {
	case conn := <-r.conns:
		return conn, nil
	case <-r.closed:
		return nil, net.ErrClosed
	case <-r.port:
		return nil, net.ErrClosed
	}
}

func (r *route) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

func (r *route) Addr() net.Addr { return r.address }
