// Package etcdapi is etcd's v3 gRPC API over the store's etcd space: programs
// written for etcd run unchanged. Requests become commands of the raft log, reads
// and watches of the space; revisions, order of events and error codes are etcd's
// own, which the tests hold against a real etcd.
//
// The package refuses to keep state: what is not in the space is the leader's
// (the time that leases have left) or the connection's (watches). It knows raft
// only by the interfaces of this file, and never reaches another space.
package etcdapi

import (
	"context"
	"errors"
	"io"
	"time"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// What a Backend fails with, beside the context's error. Whoever implements it
// translates; the package gives each etcd's code and words.
var (
	// ErrNoLeader: no server leads, or this one cannot reach it. Nothing was done.
	ErrNoLeader = errors.New("no leader")
	// ErrLeaderChanged: leadership changed under the request. Nothing was done: clients
	// of etcd, which says this of reads only, try a write again.
	ErrLeaderChanged = errors.New("leader changed")
	// ErrLeaderLost: leadership was lost under a write. It is unknown whether it took
	// effect.
	ErrLeaderLost = errors.New("leader lost")
	// ErrTimeout: no answer in time. For a write it is unknown whether it took
	// effect.
	ErrTimeout = errors.New("timed out")
	// ErrStopped: this server is on its way out. Nothing was done.
	ErrStopped = errors.New("server stopped")
	// ErrTooManyRequests: a named limit of waiting requests. Nothing was done.
	ErrTooManyRequests = errors.New("too many requests")
	// ErrTooLarge: the request is larger than the log takes. Nothing was done.
	ErrTooLarge = errors.New("request is too large")
)

// Backend is the raft group.
type Backend interface {
	// Propose commits a command and returns what it came to, once this member has
	// applied it.
	Propose(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error)
	// ReadBarrier returns once this member is as new as every write acknowledged
	// before the call.
	ReadBarrier(ctx context.Context) error
}

// Leases is the time that leases have left, which the leader alone knows. It asks
// the leader when another server leads.
type Leases interface {
	// LeaseTime tells the time left, and renews the lease when that is asked for.
	LeaseTime(ctx context.Context, request *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error)
}

// Group is who the servers are.
type Group interface {
	// Status is this server's own view. It never blocks.
	Status() Status
	// Members are the servers of the group.
	Members() []Member
	// MoveLeader hands leadership to a member. ErrNoLeader when this server does
	// not lead.
	MoveLeader(ctx context.Context, id uint64) error
}

// Member is one server. IDs are the same on every server and never used again.
type Member struct {
	ID   uint64
	Name string
	// PeerURLs and ClientURLs are where it is really reached.
	PeerURLs, ClientURLs []string
	// Learner has no vote yet.
	Learner bool
}

// Status is a server's view of itself.
type Status struct {
	ClusterID, MemberID uint64
	// LeaderID is 0 when none is known.
	LeaderID                      uint64
	Term, CommittedIndex, Applied uint64
	Learner                       bool
	// Version is Balsa's.
	Version string
	// Problems are what an operator should know, in words.
	Problems []string
}

// Archiver writes the space as a database file that etcd's own tools read, with
// the digest at its end that they check.
type Archiver interface {
	Archive(ctx context.Context, view store.View, members []Member, to io.Writer) error
}

// Limits bound what one client may cause; a zero field takes the default.
type Limits struct {
	// RequestBytes bounds a request; etcd's --max-request-bytes.
	RequestBytes int
	// TxnOps bounds the operations of a transaction; etcd's --max-txn-ops.
	TxnOps int
	// Watches bounds the watches of one stream, Streams the streams of the server.
	Watches, Streams int
	// FragmentBytes is where a watch response is cut, for clients that asked for it.
	FragmentBytes int
	// ProgressEvery is how often a quiet watch that asked for it gets a mark.
	ProgressEvery time.Duration
}
