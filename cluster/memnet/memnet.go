// Package memnet is a network in memory for tests and simulations: streams that
// behave like TCP on a network that can be cut, in one direction or both, and
// delayed. What is sent into a cut arrives after it heals, as resent segments
// do. A host is a raft.StreamLayer. It uses no system call.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Network connects hosts by name.
type Network struct {
	mu      sync.Mutex
	cut     map[link]bool          // guarded by mu; what cannot pass
	delay   map[link]time.Duration // guarded by mu
	hosts   map[string]*Host       // guarded by mu; those that listen
	changed chan struct{}          // guarded by mu; closed at the next change
}

type link struct{ from, to string }

// New returns a network without faults.
func New() *Network {
	return &Network{cut: make(map[link]bool), delay: make(map[link]time.Duration), hosts: make(map[string]*Host), changed: make(chan struct{})}
}

// Cut stops what goes from one host to another; Heal lets it pass.
func (n *Network) Cut(from, to string) { n.set(func() { n.cut[link{from, to}] = true }) }

// Heal undoes Cut.
func (n *Network) Heal(from, to string) { n.set(func() { delete(n.cut, link{from, to}) }) }

// HealAll undoes every cut and delay.
func (n *Network) HealAll() { n.set(func() { clear(n.cut); clear(n.delay) }) }

// Isolate cuts a host off from the others, in both directions.
func (n *Network) Isolate(host string, others ...string) {
	n.set(func() {
		for _, other := range others {
			if other != host {
				n.cut[link{host, other}], n.cut[link{other, host}] = true, true
			}
		}
	})
}

// Delay makes what goes from one host to another take a while.
func (n *Network) Delay(from, to string, d time.Duration) {
	n.set(func() { n.delay[link{from, to}] = d })
}

func (n *Network) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Network) state(from, to string) (cut bool, delay time.Duration, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[link{from, to}], n.delay[link{from, to}], n.changed
}

// Pass takes the time that a message from one host to another takes; while the
// link is cut it waits.
func (n *Network) Pass(ctx context.Context, from, to string) error {
	for {
		cut, delay, changed := n.state(from, to)
		if !cut {
			return wait(ctx, delay)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("memnet: %s to %s: %w", from, to, ctx.Err())
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Listen makes a host reachable. The Host is a raft.StreamLayer.
func (n *Network) Listen(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[name] != nil {
		return nil, fmt.Errorf("memnet: host %s listens already", name)
	}
	h := &Host{net: n, name: name, backlog: make(chan net.Conn, backlog), closed: make(chan struct{})}
	n.hosts[name] = h
	return h, nil
}

// backlog is how many connections wait for Accept.
const backlog = 64

// Host is a listener and a dialer.
type Host struct {
	net     *Network
	name    string
	backlog chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

// Accept returns the next connection.
func (h *Host) Accept() (net.Conn, error) {
	select {
	case conn := <-h.backlog:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close stops listening.
func (h *Host) Close() error {
	h.once.Do(func() {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		if h.net.hosts[h.name] == h {
			delete(h.net.hosts, h.name)
		}
		close(h.closed)
	})
	return nil
}

// Addr is the host's name.
func (h *Host) Addr() net.Addr { return addr(h.name) }

type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }

// DialContext opens a connection; it takes a round trip.
func (h *Host) DialContext(ctx context.Context, to string) (net.Conn, error) {
	if err := errors.Join(h.net.Pass(ctx, h.name, to), h.net.Pass(ctx, to, h.name)); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr(to), Err: err}
	}
	h.net.mu.Lock()
	target := h.net.hosts[to]
	h.net.mu.Unlock()
	if target == nil {
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr(to), Err: errors.New("connection refused")}
	}
	near, far := h.net.pipe(h.name, to)
	select {
	case target.backlog <- far:
		return near, nil
	case <-target.closed:
	case <-ctx.Done():
	}
	return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr(to), Err: errors.New("connection refused")}
}

// pipe makes the two ends of a connection.
func (n *Network) pipe(from, to string) (near, far *Conn) {
	out, back := newHalf(n, from, to), newHalf(n, to, from)
	return &Conn{in: back, out: out, local: from, remote: to}, &Conn{in: out, out: back, local: to, remote: from}
}

// Conn is one end of a connection.
type Conn struct {
	in, out       *half
	local, remote string
}

var _ net.Conn = (*Conn)(nil)

// Read returns what has arrived.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write never waits for the reader; a full window would, and is not modelled
// below windowBytes.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close ends both directions. The other end reads what was sent, then EOF.
func (c *Conn) Close() error {
	c.in.closeReader()
	c.out.closeWriter()
	return nil
}

// LocalAddr is this end's host.
func (c *Conn) LocalAddr() net.Addr { return addr(c.local) }

// RemoteAddr is the other end's.
func (c *Conn) RemoteAddr() net.Addr { return addr(c.remote) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read.
func (c *Conn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t, true); return nil }

// SetWriteDeadline bounds Write.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.out.setDeadline(t, false); return nil }

// windowBytes is how much may be under way before Write waits.
const windowBytes = 1 << 20

// half is one direction of a connection.
type half struct {
	net      *Network
	from, to string

	mu            sync.Mutex
	segments      []segment     // guarded by mu; in order
	bytes         int           // guarded by mu; under way
	eof           bool          // guarded by mu; the writer closed
	broken        bool          // guarded by mu; the reader closed
	readDeadline  time.Time     // guarded by mu
	writeDeadline time.Time     // guarded by mu
	changed       chan struct{} // guarded by mu; closed at the next change
}

type segment struct {
	data []byte
	due  time.Time
}

func newHalf(n *Network, from, to string) *half {
	return &half{net: n, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) touchLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) write(p []byte) (int, error) {
	_, delay, _ := h.net.state(h.from, h.to)
	for {
		h.mu.Lock()
		if h.broken || h.eof {
			h.mu.Unlock()
			return 0, &net.OpError{Op: "write", Net: "mem", Err: io.ErrClosedPipe}
		}
		if h.bytes == 0 || h.bytes+len(p) <= windowBytes {
			h.segments = append(h.segments, segment{data: append([]byte(nil), p...), due: time.Now().Add(delay)})
			h.bytes += len(p)
			h.touchLocked()
			h.mu.Unlock()
			return len(p), nil
		}
		changed, deadline := h.changed, h.writeDeadline
		h.mu.Unlock()
		if err := waitFor(deadline, time.Time{}, changed, nil); err != nil {
			return 0, err
		}
	}
}

func (h *half) read(p []byte) (int, error) {
	for {
		cut, _, netChanged := h.net.state(h.from, h.to)
		n, due, changed, deadline, err := h.take(p, cut)
		if n > 0 || err != nil {
			return n, err
		}
		if err := waitFor(deadline, due, changed, netChanged); err != nil {
			return 0, err
		}
	}
}

func (h *half) take(p []byte, cut bool) (n int, due time.Time, changed <-chan struct{}, deadline time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed, deadline = h.changed, h.readDeadline
	switch {
	case h.broken:
		return 0, due, changed, deadline, net.ErrClosed
	case !deadline.IsZero() && !time.Now().Before(deadline):
		return 0, due, changed, deadline, os.ErrDeadlineExceeded
	case cut:
		return 0, due, changed, deadline, nil
	case len(h.segments) == 0 && h.eof:
		return 0, due, changed, deadline, io.EOF
	case len(h.segments) == 0:
		return 0, due, changed, deadline, nil
	case time.Now().Before(h.segments[0].due):
		return 0, h.segments[0].due, changed, deadline, nil
	}
	first := &h.segments[0]
	n = copy(p, first.data)
	first.data = first.data[n:]
	if len(first.data) == 0 {
		h.segments = h.segments[1:]
	}
	h.bytes -= n
	h.touchLocked()
	return n, due, changed, deadline, nil
}

// waitFor returns when something changed or the due time came, with an error
// when the deadline came first.
func waitFor(deadline, due time.Time, changed, netChanged <-chan struct{}) error {
	until := due
	if until.IsZero() || !deadline.IsZero() && deadline.Before(until) {
		until = deadline
	}
	var fire <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		fire = timer.C
	}
	select {
	case <-changed:
	case <-netChanged:
	case <-fire:
	}
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (h *half) setDeadline(t time.Time, read bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if read {
		h.readDeadline = t
	} else {
		h.writeDeadline = t
	}
	h.touchLocked()
}

func (h *half) closeReader() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = true
	h.segments, h.bytes = nil, 0
	h.touchLocked()
}

func (h *half) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eof = true
	h.touchLocked()
}
