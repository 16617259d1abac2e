package core

import (
	"context"
	"net"
	"time"

	"github.com/balsa-run/balsa/pki"
)

// Network is how a server is reached and reaches others. Whoever implements it
// vouches for both ends: the daemon by mutual TLS, the simulation by having made
// both. A connection of one kind is never handed out as another.
type Network interface {
	// API accepts connections of identities, on which HTTP is spoken.
	API() net.Listener
	// Join accepts connections of anybody, on which HTTP/2 is spoken to the
	// JoinService only.
	Join() net.Listener
	// Raft accepts connections of servers, on which raft is spoken.
	Raft() net.Listener
	// Identify tells who is at the other end of a connection that API accepted.
	Identify(conn net.Conn) (pki.Identity, bool)

	// DialServer connects to another server's API, DialRaft to its raft.
	DialServer(ctx context.Context, address string) (net.Conn, error)
	DialRaft(address string, timeout time.Duration) (net.Conn, error)
	// DialAgent connects to the agent of a node.
	DialAgent(ctx context.Context, node, address string) (net.Conn, error)
	// Answers tells whether a host says anything at all at an address; refusing a
	// connection is an answer.
	Answers(ctx context.Context, address string) bool
	// Plain is true when connections carry no TLS, so that HTTP/2 is agreed on
	// without it.
	Plain() bool
}
