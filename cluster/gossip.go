package cluster

import "context"

// Gossip is who seems to be there. It is a hint, never a decision: the raft
// configuration says who is a member.
type Gossip interface {
	// Members lists everybody that gossip remembers, this server included.
	Members() []GossipMember
	// Events is closed when gossip stops. It is bounded: a reader that falls
	// behind loses events and finds the truth in Members.
	Events() <-chan GossipEvent
	// SetTags replaces what this server says of itself.
	SetTags(tags GossipTags) error
	// Join introduces this server to the others; it returns how many answered.
	Join(ctx context.Context, addresses []string) (int, error)
	// Leave says good-bye, so that nobody takes the silence for a failure.
	Leave(ctx context.Context) error
}

// GossipTags is what a member says of itself.
type GossipTags struct {
	// ID is the raft server or node id, Role "server" or "agent".
	ID, Role string
	// Address is the API's.
	Address, Version string
	// MaxFeatureLevel is what the member's binary can do.
	MaxFeatureLevel uint32
}

// GossipMember is one member as gossip sees it.
type GossipMember struct {
	Name string
	// GossipAddress is host:port of the gossip itself.
	GossipAddress string
	GossipTags
	Status GossipStatus
}

// GossipStatus is whether a member seems alive.
type GossipStatus string

const (
	// GossipUnknown: gossip has never heard of it.
	GossipUnknown GossipStatus = ""
	GossipAlive   GossipStatus = "Alive"
	GossipFailed  GossipStatus = "Failed"
	GossipLeft    GossipStatus = "Left"
)

// GossipEvent says that a member's entry changed, and to what.
type GossipEvent struct {
	Kind   GossipEventKind
	Member GossipMember
}

// GossipEventKind is what happened.
type GossipEventKind string

const (
	GossipJoin   GossipEventKind = "Join"
	GossipUpdate GossipEventKind = "Update"
	GossipFail   GossipEventKind = "Fail"
	GossipLeave  GossipEventKind = "Leave"
	GossipForget GossipEventKind = "Forget"
)
