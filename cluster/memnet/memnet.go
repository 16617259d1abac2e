// Package memnet is a network in memory for tests and simulations: streams that
// behave like TCP on a network that can be cut, in one direction or both, and
// delayed. What is sent into a cut arrives after it heals, as resent segments
// do. A host is a raft.StreamLayer. It uses no system call.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Network connects hosts by name.
type Network struct {
	mu    sync.Mutex
	wires map[link]*wire   // guarded by mu; all that were ever asked for
	hosts map[string]*Host // guarded by mu; those that listen
}

type link struct{ from, to string }

// wire is one direction between two hosts.
type wire struct {
	mu      sync.Mutex
	cut     bool                 // guarded by mu
	delay   time.Duration        // guarded by mu
	extra   func() time.Duration // guarded by mu; see Extra
	changed chan struct{}        // guarded by mu; closed at the next change
}

// New returns a network without faults.
func New() *Network {
	return &Network{wires: make(map[link]*wire), hosts: make(map[string]*Host)}
}

func (n *Network) wire(from, to string) *wire {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.wires[link{from, to}]
	if w == nil {
		w = &wire{changed: make(chan struct{})}
		n.wires[link{from, to}] = w
	}
	return w
}

// Cut stops what goes from one host to another; Heal lets it pass.
func (n *Network) Cut(from, to string) { n.wire(from, to).set(func(w *wire) { w.cut = true }) }

// Heal undoes Cut.
func (n *Network) Heal(from, to string) { n.wire(from, to).set(func(w *wire) { w.cut = false }) }

// HealAll undoes every cut and delay.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.wires {
		w.set(func(w *wire) { w.cut, w.delay, w.extra = false, 0, nil })
	}
}

// Isolate cuts a host off from the others, in both directions.
func (n *Network) Isolate(host string, others ...string) {
	for _, other := range others {
		if other != host {
			n.Cut(host, other)
			n.Cut(other, host)
		}
	}
}

// Delay makes what goes from one host to another take a while.
func (n *Network) Delay(from, to string, d time.Duration) {
	n.wire(from, to).set(func(w *wire) { w.delay = d })
}

// Extra adds to the delay what extra says for each write: a lost segment is, to
// those who read a stream, one that came late, and all behind it wait for it.
// Nil adds nothing. It is called by whoever writes.
func (n *Network) Extra(from, to string, extra func() time.Duration) {
	n.wire(from, to).set(func(w *wire) { w.extra = extra })
}

func (w *wire) set(change func(w *wire)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *wire) isCut() (cut bool, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut, w.changed
}

// takes is how long what is sent now is under way.
func (w *wire) takes() time.Duration {
	w.mu.Lock()
	delay, extra := w.delay, w.extra
	w.mu.Unlock()
	if extra != nil {
		delay += extra()
	}
	return delay
}

// Pass takes the time that a message from one host to another takes; while the
// link is cut it waits.
func (n *Network) Pass(ctx context.Context, from, to string) error {
	w := n.wire(from, to)
	for {
		cut, changed := w.isCut()
		if !cut {
			return wait(ctx, w.takes())
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
	out, back := newHalf(n.wire(from, to)), newHalf(n.wire(to, from))
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

// Reset breaks the connection at both ends at once, as a router that has
// forgotten it does: what was under way is lost.
func (c *Conn) Reset() {
	c.in.reset()
	c.out.reset()
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
