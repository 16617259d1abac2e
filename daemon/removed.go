package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/atomicfile"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// What an agent knows of removed identities: servers tell it with each heartbeat,
// and it is kept on disk, for a start without servers. A removed server is refused
// when it calls the agent and when the agent calls it.

// removedName is the file, maxRemovedFile bounds what is read of it.
const (
	removedName    = "removed.json"
	maxRemovedFile = 1 << 20
)

// removedList feeds a guard.
type removedList struct {
	path  string
	guard *pki.Guard
	clock clock.Clock
	log   *slog.Logger

	mu      sync.Mutex
	known   []pki.Removal // guarded by mu
	unsaved bool          // guarded by mu
}

// removedEntry is one line of the file.
type removedEntry struct {
	Role string    `json:"role"`
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// openRemoved makes the guard with what is on disk, so that there is no moment at
// which a removed server is let in. A file that cannot be read is as good as none:
// the next heartbeat tells again, and pods must not wait for it.
func openRemoved(path string, c clock.Clock, logger *slog.Logger) (*removedList, error) {
	known, err := readRemoved(path)
	if err != nil {
		logger.Error("the removed identities cannot be read; until a server tells them again none is refused", "file", path, "error", err)
	}
	list := &removedList{path: path, clock: c, log: logger, known: pki.MergeRemovals(known, nil, c.Now())}
	set, err := pki.NewRemoved(list.known)
	if err != nil {
		return nil, err
	}
	list.guard = pki.NewGuard(c, set)
	return list, nil
}

func readRemoved(path string) ([]pki.Removal, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxRemovedFile))
	if err != nil {
		return nil, err
	}
	var entries []removedEntry
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, err
	}
	var out []pki.Removal
	for _, e := range entries {
		out = append(out, pki.Removal{Role: pki.Role(e.Role), Name: e.Name, At: e.At, UpTo: true})
	}
	return out, nil
}

// told takes in what a server says. The guard has it before the disk.
func (l *removedList) told(identities []*balsav1.RemovedIdentity) {
	var said []pki.Removal
	for _, i := range identities {
		said = append(said, pki.Removal{Role: pki.Role(i.GetRole()), Name: i.GetName(), At: time.Unix(0, i.GetAtNs()), UpTo: true})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	next := pki.MergeRemovals(l.known, said, l.clock.Now())
	if !slices.EqualFunc(next, l.known, sameRemoval) {
		set, err := pki.NewRemoved(next)
		if err != nil {
			l.log.Error("what a server says of removed identities cannot be used", "error", err)
			return
		}
		l.guard.Update(set)
		l.known, l.unsaved = next, true
		l.log.Info("removed identities are refused", "identities", len(next))
	}
	if l.unsaved {
		l.saveLocked()
	}
}

func sameRemoval(a, b pki.Removal) bool {
	return a.Role == b.Role && a.Name == b.Name && a.At.Equal(b.At)
}

func (l *removedList) saveLocked() {
	entries := make([]removedEntry, 0, len(l.known))
	for _, r := range l.known {
		entries = append(entries, removedEntry{string(r.Role), r.Name, r.At.UTC()})
	}
	text, err := json.MarshalIndent(entries, "", "  ")
	if err == nil {
		err = atomicfile.Write(l.path, append(text, '\n'), 0o600)
	}
	if err != nil {
		l.log.Error("the removed identities cannot be kept; trying again with the next heartbeat", "error", err)
		return
	}
	l.unsaved = false
}

// guardedConn is the wire below a TLS connection. It is closed when who is at its
// other end is removed, and with it every stream on it ends.
type guardedConn struct {
	net.Conn

	mu      sync.Mutex
	release func() // guarded by mu; nil until it is watched
	closed  bool   // guarded by mu
}

// watch is called for each request; only the first on a connection does anything.
func (c *guardedConn) watch(guard *pki.Guard, id pki.Identity) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.release != nil || c.closed {
		return nil
	}
	release, err := guard.Attach(id, c.Conn)
	if err == nil {
		c.release = release
	}
	return err
}

func (c *guardedConn) Close() error {
	c.mu.Lock()
	release := c.release
	c.release, c.closed = nil, true
	c.mu.Unlock()
	if release != nil {
		release()
	}
	return c.Conn.Close()
}

// guardedListener wraps what comes in.
type guardedListener struct{ net.Listener }

func (l guardedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guardedConn{Conn: conn}, nil
}

// wireKey carries the *guardedConn of a request.
type wireKey struct{}

// withWire keeps the wire below a connection for the requests on it.
func withWire(ctx context.Context, conn net.Conn) context.Context {
	if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secured.NetConn()
	}
	wire, _ := conn.(*guardedConn)
	return context.WithValue(ctx, wireKey{}, wire)
}

// watchWire has the connection of a request end when who called is removed.
func watchWire(ctx context.Context, guard *pki.Guard, id pki.Identity) error {
	if wire, _ := ctx.Value(wireKey{}).(*guardedConn); wire != nil {
		return wire.watch(guard, id)
	}
	return errors.New("the connection is not guarded")
}

// dialGuarded reaches servers that were not removed, and hangs up on one that is.
func dialGuarded(credentials *pki.Credentials, guard *pki.Guard) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		below := &belowTLS{dialer: net.Dialer{Timeout: peerDial}}
		config := pki.PeerClientTLS(pki.TLSOptions{Credentials: credentials, Guard: guard, Clock: clock.Real{}}, "")
		conn, err := pki.Dial(ctx, below, address, config)
		if err != nil {
			return nil, err
		}
		id, err := pki.IdentityOf(conn.ConnectionState(), credentials.Current().ClusterID())
		if err == nil {
			err = below.wire.watch(guard, id)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect to %s: %w", address, err), conn.Close())
		}
		return conn, nil
	}
}

// belowTLS dials once and keeps the wire.
type belowTLS struct {
	dialer net.Dialer
	wire   *guardedConn
}

func (b *belowTLS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := b.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	b.wire = &guardedConn{Conn: conn}
	return b.wire, nil
}

// setAside takes the identity of a node that was removed out of use: the next
// start joins anew, if it is given a token, and else says that it needs one.
func setAside(dir string) error {
	old := filepath.Join(dir, "identity-removed")
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "identity"), old); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, removedName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
