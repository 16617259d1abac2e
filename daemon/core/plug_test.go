package core

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// raftPort is a Network with nothing but raft, whose callers are who they say.
type raftPort struct {
	Network
	conns chan net.Conn
}

// callerConn is a connection of a server by that name.
type callerConn struct {
	net.Conn
	name string
}

func (p *raftPort) Raft() net.Listener { return p }

func (p *raftPort) Accept() (net.Conn, error) {
	conn, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (p *raftPort) Close() error   { return nil }
func (p *raftPort) Addr() net.Addr { return address("s1") }
func (p *raftPort) Identify(conn net.Conn) (pki.Identity, bool) {
	return pki.Identity{Role: pki.RoleServer, Name: conn.(*callerConn).name, Serial: "1"}, true
}

// TestRaftStreamsOfTheRemoved end when they are removed, and are not let in again.
func TestRaftStreamsOfTheRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := &raftPort{conns: make(chan net.Conn, 3)}
		guard := pki.NewGuard(clock.Real{}, nil)
		s := stream{port, address("s1"), guard}
		call := func(name string) net.Conn {
			near, far := net.Pipe()
			t.Cleanup(func() { _ = far.Close() })
			port.conns <- &callerConn{near, name}
			return far
		}
		removed, stays := call("s2"), call("s3")
		for range 2 {
			conn, err := s.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
		set, err := pki.NewRemoved([]pki.Removal{{Role: pki.RoleServer, Name: "s2", At: time.Now()}})
		if err != nil {
			t.Fatal(err)
		}
		guard.Update(set)
		synctest.Wait()
		if _, err := removed.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the removed server's stream: %v", err)
		}
		_ = stays.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := stays.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			t.Error("the stream of another server ended with it")
		}
		again := call("s2")
		close(port.conns)
		if conn, err := s.Accept(); err == nil {
			t.Errorf("the removed server was let in again: %v", conn)
		}
		if _, err := again.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("its second connection: %v", err)
		}
		if n := guard.Watched(); n != 1 {
			t.Errorf("%d streams are watched, one is open", n)
		}
	})
}
