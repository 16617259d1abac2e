package inside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balsa-run/balsa/cluster/memnet"
	"github.com/balsa-run/balsa/daemon/core"
	"github.com/balsa-run/balsa/pki"
)

// What a connection is for. A connection begins with one line that says so, and
// who calls: "raft server/s1\n". The daemon has ALPN and a certificate there;
// here both ends were made by the world, and nobody lies.
const (
	protocolAPI  = "api"
	protocolJoin = "join"
	protocolRaft = "raft"

	helloBytes   = 128
	helloTimeout = 5 * time.Second
	acceptQueue  = 64
)

var errDead = &net.OpError{Op: "use", Net: "mem", Err: errors.New("this machine is off")}

// port is what one life of a machine has of the network. Death ends it: nothing
// that still runs of a dead process gets a byte out or in.
type port struct {
	net  *memnet.Network
	host *memnet.Host
	self pki.Identity
	api  *listener
	join *listener
	raft *listener

	mu    sync.Mutex
	conns []*conn // guarded by mu; open ones, in the order in which they were made
	dead  bool    // guarded by mu
}

var _ core.Network = (*port)(nil)

// newPort attaches a machine at an address. The name of a host in the network
// below is its address.
func newPort(network *memnet.Network, address string, self pki.Identity) (*port, error) {
	host, err := network.Listen(address)
	if err != nil {
		return nil, err
	}
	p := &port{net: network, host: host, self: self}
	p.api, p.join, p.raft = newListener(host.Addr()), newListener(host.Addr()), newListener(host.Addr())
	go p.accept()
	return p, nil
}

func (p *port) API() net.Listener  { return p.api }
func (p *port) Join() net.Listener { return p.join }
func (p *port) Raft() net.Listener { return p.raft }
func (p *port) Plain() bool        { return true }

func (p *port) Identify(c net.Conn) (pki.Identity, bool) {
	known, ok := c.(*conn)
	if !ok || known.peer.Name == "" {
		return pki.Identity{}, false
	}
	return known.peer, true
}

func (p *port) DialServer(ctx context.Context, address string) (net.Conn, error) {
	return p.dial(ctx, address, protocolAPI)
}

func (p *port) DialRaft(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return p.dial(ctx, address, protocolRaft)
}

// DialAgent fails: there are no agents in this world yet.
func (p *port) DialAgent(_ context.Context, node, address string) (net.Conn, error) {
	return nil, fmt.Errorf("agent of node %s at %s: connection refused", node, address)
}

// Answers asks for one packet there and one back.
func (p *port) Answers(ctx context.Context, address string) bool {
	own := p.host.Addr().String()
	return !p.isDead() && p.net.Pass(ctx, own, address) == nil && p.net.Pass(ctx, address, own) == nil
}

func (p *port) dial(ctx context.Context, address, protocol string) (net.Conn, error) {
	if p.isDead() {
		return nil, errDead
	}
	raw, err := p.host.DialContext(ctx, address)
	if err != nil {
		return nil, err
	}
	c, err := p.adopt(raw)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "%s %s\n", protocol, p.self); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (p *port) accept() {
	for {
		raw, err := p.host.Accept()
		if err != nil {
			return
		}
		go p.route(raw)
	}
}

// route hands an accepted connection to the listener of its protocol.
func (p *port) route(raw net.Conn) {
	c, err := p.adopt(raw)
	if err != nil {
		return
	}
	protocol, peer, err := hello(c)
	if err != nil {
		_ = c.Close()
		return
	}
	c.peer = peer
	to := map[string]*listener{protocolAPI: p.api, protocolJoin: p.join, protocolRaft: p.raft}[protocol]
	if to == nil || protocol == protocolRaft && peer.Role != pki.RoleServer || !to.offer(c) {
		_ = c.Close()
	}
}

// hello reads a connection's first line and not a byte more.
func hello(c net.Conn) (protocol string, peer pki.Identity, err error) {
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return "", peer, err
	}
	var line []byte
	for one := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, one[0]) {
		if len(line) == helloBytes {
			return "", peer, fmt.Errorf("the first line has more than %d bytes", helloBytes)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			return "", peer, err
		}
	}
	protocol, who, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	role, name, _ := strings.Cut(who, "/")
	return protocol, pki.Identity{Role: pki.Role(role), Name: name}, c.SetReadDeadline(time.Time{})
}

func (p *port) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// adopt makes a connection one of this life.
func (p *port) adopt(raw net.Conn) (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return nil, errors.Join(errDead, raw.Close())
	}
	c := &conn{Conn: raw, port: p}
	p.conns = append(p.conns, c)
	return c, nil
}

// die ends this life for whoever lives it. The other ends of its connections
// notice nothing before bury.
func (p *port) die() {
	p.mu.Lock()
	p.dead = true
	conns := p.conns
	p.mu.Unlock()
	for _, c := range conns {
		_ = c.Conn.SetDeadline(time.Unix(1, 0)) // whoever waits in it is told
	}
	for _, l := range []*listener{p.api, p.join, p.raft} {
		_ = l.Close()
	}
	_ = p.host.Close()
}

// reset breaks the open connections at both ends, and tells how many there were.
func (p *port) reset() int {
	p.mu.Lock()
	conns := slices.Clone(p.conns)
	p.mu.Unlock()
	for _, c := range conns {
		if raw, ok := c.Conn.(*memnet.Conn); ok {
			raw.Reset()
		}
	}
	return len(conns)
}

// bury lets the other ends know, as far as the network lets them.
func (p *port) bury() {
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		_ = c.Conn.Close()
	}
}

// conn is a connection of a port.
type conn struct {
	net.Conn
	port *port
	peer pki.Identity // who called; empty at the caller's end; set before it is accepted
}

func (c *conn) Read(b []byte) (int, error) {
	if c.port.isDead() {
		return 0, errDead
	}
	n, err := c.Conn.Read(b)
	if c.port.isDead() {
		return 0, errDead
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if c.port.isDead() {
		return 0, errDead
	}
	return c.Conn.Write(b)
}

// Close of a dead process's connection is nothing that anybody hears.
func (c *conn) Close() error {
	c.port.mu.Lock()
	if c.port.dead {
		c.port.mu.Unlock()
		return nil
	}
	for i, other := range c.port.conns {
		if other == c {
			c.port.conns = append(c.port.conns[:i:i], c.port.conns[i+1:]...)
			break
		}
	}
	c.port.mu.Unlock()
	return c.Conn.Close()
}

func (c *conn) SetDeadline(t time.Time) error      { return c.unlessDead(t, c.Conn.SetDeadline) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.unlessDead(t, c.Conn.SetReadDeadline) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.unlessDead(t, c.Conn.SetWriteDeadline) }

// unlessDead keeps the deadline that die has set.
func (c *conn) unlessDead(t time.Time, set func(time.Time) error) error {
	if c.port.isDead() {
		return errDead
	}
	return set(t)
}

// listener is one protocol's share of what a port accepts.
type listener struct {
	addr   net.Addr
	queue  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newListener(addr net.Addr) *listener {
	return &listener{addr: addr, queue: make(chan net.Conn, acceptQueue), closed: make(chan struct{})}
}

func (l *listener) offer(c net.Conn) bool {
	select {
	case <-l.closed:
		return false
	default:
	}
	select {
	case l.queue <- c:
		return true
	case <-l.closed:
		return false
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
