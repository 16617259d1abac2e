package apiserver

import (
	"context"
	"io"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/gen/balsainternal/v1/internalv1connect"
)

// What this package needs of the others; the daemon plugs it in.

// Backend orders writes and makes reads linearizable. Its errors say whether a
// write was applied: a *connect.Error with an ErrorDetail (what cluster.ToConnect
// makes), or a proposalError.
type Backend interface {
	// Propose returns once the command was applied on this server.
	Propose(ctx context.Context, command *internalv1.Command) (*internalv1.CommandResult, error)
	// ReadBarrier returns once this server's store is at least as new as every
	// write that was acknowledged before the call.
	ReadBarrier(ctx context.Context) error
}

// Lessor keeps the leases of this server alone, while it leads: how long the leases
// of the etcd space have still to live.
type Lessor interface {
	LeaseTime(ctx context.Context, req *internalv1.LeaseTimeRequest) (*internalv1.LeaseTimeResponse, error)
}

// Heartbeats renews a node's lease, on this server or through the leader. Its
// errors are those of Backend.
type Heartbeats interface {
	Beat(ctx context.Context, beat *balsav1.HeartbeatRequest) (*balsav1.HeartbeatResponse, error)
}

// Nodes reaches agents.
type Nodes interface {
	// Agent is a client for the AgentService of a node, which is checked to be
	// that node by its certificate.
	Agent(ctx context.Context, node *balsav1.Node) (internalv1connect.AgentServiceClient, error)
}

// Members looks after the servers. Its errors are those of Backend.
type Members interface {
	Status(ctx context.Context) (*balsav1.GetStatusResponse, error)
	// TransferLeadership hands over to a member, or to the best if it is empty.
	TransferLeadership(ctx context.Context, memberID string) (leaderID string, err error)
	// RemoveMember takes a member out. server is whose certificate is to be refused
	// from then on; empty when another member has the name. It comes with an error
	// when there is no such member, which may be because it was removed before.
	RemoveMember(ctx context.Context, memberID string) (server string, err error)
	// AddMember lets a server that has joined into the group, without a vote
	// until it has caught up. Adding the same one again changes nothing.
	AddMember(ctx context.Context, member NewMember) error
	// Addresses are the servers' API addresses, best first, and their gossip
	// addresses.
	Addresses() (api, gossip []string)
}

// NewMember is a server that joins.
type NewMember struct {
	ID, Name string
	// Address is where the others reach it, host:port.
	Address string
	Version string
}

// Peer is what PeerService asks of this server itself; nothing of it is handed
// on to another one. Its errors are those of Backend.
type Peer interface {
	ServePropose(ctx context.Context, req *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error)
	ServeProposeMany(ctx context.Context, req *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error)
	ServeReadIndex(ctx context.Context, req *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error)
	ServeConfirm(ctx context.Context, req *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error)
	ServeState(ctx context.Context, req *internalv1.StateRequest) (*internalv1.StateResponse, error)
}

// Blobs keeps image blobs by their digest on this server; *blobs.Dir does. A bad
// digest is a blobs.ErrDigest, one beyond the limit a blobs.ErrTooLarge.
type Blobs interface {
	// Stat tells the size of a blob, and whether it is here.
	Stat(digest string) (size int64, ok bool, err error)
	// Open reads a blob from an offset.
	Open(digest string, offset int64) (io.ReadCloser, error)
	// Put keeps a blob if what r gives has the digest and at most limit bytes,
	// durably. A blob that is there already is left as it is.
	Put(ctx context.Context, digest string, r io.Reader, limit int64) (size int64, err error)
}

// PeerClients are the other servers, for the blobs of images.
type PeerClients interface {
	// Others are clients for every voting server but this one, by member id.
	Others(ctx context.Context) (map[string]internalv1connect.PeerServiceClient, error)
}

// Archives reads image archives.
type Archives interface {
	// Import reads an OCI or Docker archive, tar or tar.gz, and puts its blobs.
	// name is for an archive that has none, or instead of its own.
	Import(ctx context.Context, archive io.Reader, name string, blobs Blobs) ([]*internalv1.ImageRecord, error)
}
