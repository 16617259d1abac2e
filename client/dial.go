package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balsa-run/balsa/pki"
)

// dialError marks a request that never left: whatever it asked for was not done.
type dialError struct {
	address string
	err     error
}

func (e *dialError) Error() string {
	return fmt.Sprintf("server %s cannot be reached: %v", e.address, e.err)
}
func (e *dialError) Unwrap() error { return e.err }

// neverSent tells that no server can have seen the request.
func neverSent(err error) bool {
	var dial *dialError
	return errors.As(err, &dial) || refusedUs(err)
}

// strange tells that the other end is not a server of our cluster.
func strange(err error) bool {
	var unverified *tls.CertificateVerificationError
	return errors.As(err, &unverified) || errors.Is(err, pki.ErrWrongPeer) || errors.Is(err, pki.ErrOtherCluster)
}

// dial opens a connection that tells why the server ended it.
func dial(ctx context.Context, cfg Config, address string) (net.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := cfg.Dial(bounded, address)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		// The time was the dial's, not the call's: nobody above may mistake it.
		err = fmt.Errorf("no answer within %v", dialTimeout)
	}
	if err != nil {
		return nil, &dialError{address: address, err: err}
	}
	if err := encrypted(cfg, conn); err != nil {
		_ = conn.Close()
		return nil, &dialError{address: address, err: err}
	}
	if cfg.Plain {
		return conn, nil
	}
	return &watchedConn{Conn: conn, address: address, ended: make(chan struct{})}, nil
}

// encrypted refuses a connection over which a request would be readable, or not
// HTTP/2.
func encrypted(cfg Config, conn net.Conn) error {
	if cfg.Plain {
		return nil
	}
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return fmt.Errorf("Dial returned a %T, which is not TLS; set Config.Plain if the connection stays inside this process", conn)
	}
	if got := secured.ConnectionState().NegotiatedProtocol; got != pki.ProtoHTTP2 {
		return fmt.Errorf("the other end speaks %q, not %s; is it a balsa server?", got, pki.ProtoHTTP2)
	}
	return nil
}

// refusalError is a server that did not take our certificate. With TLS 1.3 it judges
// it when the client takes the handshake for done already, so that the verdict
// comes as an alert to whoever reads next, while the first to notice is often
// whoever writes.
type refusalError struct {
	address string
	err     error
}

func (e *refusalError) Error() string {
	return fmt.Sprintf("server %s refused this identity's certificate: %v", e.address, e.err)
}
func (e *refusalError) Unwrap() error { return e.err }

func refusedUs(err error) bool {
	var refused *refusalError
	return errors.As(err, &refused)
}

// alertWait is how long a failed write waits for the reader to learn why.
const alertWait = 250 * time.Millisecond

// watchedConn reports a refusal to readers and writers alike.
type watchedConn struct {
	net.Conn
	address string
	reading atomic.Bool

	once  sync.Once
	ended chan struct{} // closed when reading has failed
	why   error         // what reading failed with; read after ended
}

func (c *watchedConn) Read(p []byte) (int, error) {
	c.reading.Store(true)
	n, err := c.Conn.Read(p)
	if err == nil {
		return n, nil
	}
	if alert := certificateAlert(err); alert != nil {
		err = &refusalError{address: c.address, err: alert}
	}
	c.once.Do(func() { c.why = err; close(c.ended) })
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil {
		return n, nil
	}
	if !c.reading.Load() {
		c.readToEnd() // the very first write failed, and nobody listens yet
	}
	timer := time.NewTimer(alertWait)
	defer timer.Stop()
	select {
	case <-c.ended:
		if refusedUs(c.why) {
			return n, c.why
		}
	case <-timer.C:
	}
	return n, err
}

// readToEnd looks for the reason that a connection which cannot be written to
// has ended for.
func (c *watchedConn) readToEnd() {
	_ = c.SetReadDeadline(time.Now().Add(alertWait))
	for scratch := make([]byte, 512); ; {
		if _, err := c.Read(scratch); err != nil {
			return
		}
	}
}

// certificateAlert finds the alert of TLS that tells what is wrong with our
// certificate (RFC 8446, section 6.2).
func certificateAlert(err error) error {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return nil
	}
	if text := remote.Err.Error(); strings.Contains(text, "certificate") || strings.Contains(text, "access denied") {
		return remote.Err
	}
	return nil
}
