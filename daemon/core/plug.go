package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// machine is the store as cluster.Machine.
type machine struct{ *store.Store }

func (m machine) Snapshot() (io.WriterTo, error) { return m.Store.Snapshot(), nil }

// stream is raft's part of the network as cluster.StreamLayer.
type stream struct {
	network Network
	own     address
	guard   *pki.Guard
}

func (s stream) Close() error   { return s.network.Raft().Close() }
func (s stream) Addr() net.Addr { return s.own }

// Accept gives out connections that end when the server at the other end is
// removed. With too many streams on this server for one more to be watched, the
// cluster's own goes unwatched.
func (s stream) Accept() (net.Conn, error) {
	for {
		conn, err := s.network.Raft().Accept()
		if err != nil {
			return nil, err
		}
		identity, known := s.network.Identify(conn)
		if !known {
			return conn, nil
		}
		release, err := s.guard.Attach(identity, conn)
		switch {
		case err == nil:
			return &watchedConn{Conn: conn, release: release}, nil
		case errors.Is(err, pki.ErrTooMany):
			return conn, nil
		}
		_ = conn.Close()
	}
}

// watchedConn is a connection that a guard watches over while it is open.
type watchedConn struct {
	net.Conn
	release func()
}

func (c *watchedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func (s stream) Dial(to cluster.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.network.DialRaft(string(to), timeout)
}

// address is a server's address as raft's configuration names it.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// randomNumbers draws numbers from a source of bytes.
func randomNumbers(source io.Reader) func() uint64 {
	var mu sync.Mutex
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		var drawn [8]byte
		if _, err := io.ReadFull(source, drawn[:]); err != nil {
			panic(fmt.Sprintf("core: the source of random bytes ended: %v", err))
		}
		return binary.LittleEndian.Uint64(drawn[:])
	}
}

// spaceStates is what members compare themselves by.
func (s *Server) spaceStates() []*internalv1.SpaceState {
	var states []*internalv1.SpaceState
	for _, space := range s.store.Spaces() {
		state := &internalv1.SpaceState{Space: space.Name()}
		for _, entry := range space.Hashes() {
			state.Hashes = append(state.Hashes, &internalv1.RevisionHash{Revision: int64(entry.Revision), Hash: entry.Hash})
		}
		revision, hash := s.store.Hash(space.Name())
		state.Revision = int64(revision)
		state.Hashes = append(state.Hashes, &internalv1.RevisionHash{Revision: int64(revision), Hash: hash})
		states = append(states, state)
	}
	return states
}

// tasks are goroutines that end together.
type tasks struct{ group sync.WaitGroup }

func (t *tasks) start(task func()) { t.group.Go(task) }
func (t *tasks) wait()             { t.group.Wait() }
