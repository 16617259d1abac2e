package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/clock"
)

// Machine is what the agreed commands are applied to. Its methods are called
// from one goroutine, Apply in log order. A command that it does not know, or
// data that it cannot trust, is not an outcome: the machine panics with an error
// and the member stops with that reason.
type Machine interface {
	// Apply returns one result a command.
	Apply(index, term uint64, commands []*internalv1.Command) []*internalv1.CommandResult
	// Snapshot must be O(1): no command is applied meanwhile. The WriterTo is
	// used later, while Apply goes on.
	Snapshot() (io.WriterTo, error)
	// Restore replaces everything. It builds aside, then swaps.
	Restore(io.Reader) error
}

// Peers carries PeerService calls to the server at an address. An error that the
// other server gave is an *Error; anything else leaves the outcome unknown.
type Peers interface {
	Propose(ctx context.Context, address string, request *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error)
	ProposeMany(ctx context.Context, address string, request *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error)
	ReadIndex(ctx context.Context, address string, request *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error)
	Confirm(ctx context.Context, address string, request *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error)
	State(ctx context.Context, address string, request *internalv1.StateRequest) (*internalv1.StateResponse, error)
}

// StableStore keeps the term and the vote. Every method is durable when it
// returns nil.
type StableStore interface {
	raft.StableStore
	// SetVote stores the two halves of a vote in one write, so that no crash
	// leaves half of it. GetUint64("LastVoteTerm") and Get("LastVoteCand") read
	// them back.
	SetVote(term uint64, candidate []byte) error
}

// The library's types that cross this package's border, so that nobody else needs
// to import it.
type (
	LogStore      = raft.LogStore
	SnapshotStore = raft.SnapshotStore
	StreamLayer   = raft.StreamLayer
	ServerAddress = raft.ServerAddress
)

// Config is what a member is made of. Fields that are not said to be optional are
// required.
type Config struct {
	// ID names this server for ever and on this disk only: it is made with the
	// data directory. Name is what people call it, Address where other servers
	// reach it.
	ID, Name, Address string
	// Version is the binary's, for Members.
	Version string

	Machine       Machine
	LogStore      LogStore
	StableStore   StableStore
	SnapshotStore SnapshotStore
	// Stream carries raft's connections, already authenticated: it accepts role
	// server only.
	Stream StreamLayer
	Peers  Peers

	// Gossip is who seems to be alive. Nil: no server is ever removed for being
	// dead.
	Gossip Gossip
	// Clock is the machine's when nil.
	Clock clock.Clock
	// Rand gives unpredictable numbers, for nonces.
	Rand   func() uint64
	Logger *slog.Logger
	// Metrics is optional.
	Metrics Metrics
	// Fatal is called once, from a goroutine of its own, when the member must not
	// go on. It is expected to end the process; the member already serves nothing.
	Fatal func(reason error)
	// FreeSpace tells the bytes left where the log is. Nil: never checked.
	FreeSpace func() (uint64, error)
	// Spaces returns the store's revisions and hashes, all of one instant. Nil:
	// members are not compared.
	Spaces func() []*internalv1.SpaceState
	// FeatureLevel reads the replicated level from the store, MaxFeatureLevel is
	// what this binary can do. Nil: level 0 for ever.
	FeatureLevel    func() uint32
	MaxFeatureLevel uint32

	// Zero fields of these take the defaults below.
	Timing Timing
	Limits Limits
	Disk   DiskLimits
	Policy MembershipPolicy

	// schedule lets tests decide what becomes of a raft call.
	schedule func(kind callKind, target string, call func() error) error
	// lateAfter replaces half the lease as the age at which a heartbeat's answer
	// proves nothing; for tests.
	lateAfter time.Duration
}

// Timing holds every duration; a zero field takes the default.
type Timing struct {
	// Heartbeat without a leader starts an election, Election restarts it (Lease
	// does while there is no leader), and a leader that hears from no quorum for
	// Lease steps down. Lease is below Heartbeat.
	Heartbeat, Election, Lease time.Duration
	// Commit is how long followers wait, at most twice, to hear that an entry was
	// committed when nothing else is sent.
	Commit time.Duration
	// RPC bounds one replication call, Snapshot one install of a small snapshot.
	RPC, Snapshot time.Duration
	// Propose and Read bound calls whose context has no deadline.
	Propose, Read time.Duration
	// Confirm bounds one confirm round.
	Confirm time.Duration
	// LeaderWait is how long a call waits for a leader to appear before it says
	// that there is none.
	LeaderWait time.Duration
	// Contact is how long no leader may be heard before what this member has
	// counts as old.
	Contact time.Duration
	// Monitor is the pause between two looks at the other members.
	Monitor time.Duration
	// Snapshots is the pause between two looks at the size of the log.
	Snapshots time.Duration
	// Shutdown bounds the hand-over of leadership when the member stops.
	Shutdown time.Duration
}

// Limits bounds queues and sizes; a zero field takes the default.
type Limits struct {
	// BatchCommands and BatchBytes bound one raft entry; CommandBytes one command.
	BatchCommands, BatchBytes, CommandBytes int
	// BatchesInFlight is how many entries may be on their way at once.
	BatchesInFlight int
	// ForwardsInFlight is how many calls that hand users' commands to the leader may be
	// on their way at once. A leader that hangs must not use them up before its
	// successor is there.
	ForwardsInFlight int
	// QueueCommands and QueueBytes bound what waits for the next entry, and what waits
	// for the next call to the leader.
	QueueCommands, QueueBytes int
	// Reads bounds the reads that wait for a round.
	Reads int
	// AppendEntries is raft's entries a message; CachedEntries stay in memory.
	AppendEntries, CachedEntries int
	// Pipeline is raft's messages in flight to one follower; 1 is none beyond the
	// one that is answered.
	Pipeline int
	// SnapshotBytes of log, or SnapshotEntries, make a snapshot due; about
	// TrailingBytes of log, and never fewer than TrailingEntries, stay behind it
	// for followers.
	SnapshotBytes, TrailingBytes     int64
	SnapshotEntries, TrailingEntries uint64
}

// DiskLimits says when the member's own disk counts as ill.
type DiskLimits struct {
	// StallAfter: a write that takes longer stops the member from claiming to
	// lead. StallFatal: one that takes longer ends it.
	StallAfter, StallFatal time.Duration
	// LowSpace bytes left: hand over leadership. CriticalSpace: stop. RoomToStart:
	// what a member waits for before it takes part again.
	LowSpace, CriticalSpace, RoomToStart uint64
	// Check is the pause between two looks at the free space.
	Check time.Duration
}

// Defaults. DESIGN.md, "A new leader", has the arithmetic: a new leader half a
// second after the old one died, and room for a busy machine.
const (
	DefaultHeartbeat  = 400 * time.Millisecond
	DefaultElection   = 400 * time.Millisecond
	DefaultLease      = 390 * time.Millisecond
	DefaultCommit     = 10 * time.Millisecond
	DefaultRPC        = 3 * time.Second
	DefaultSnapshot   = 30 * time.Second
	DefaultPropose    = 10 * time.Second
	DefaultRead       = 10 * time.Second
	DefaultConfirm    = 500 * time.Millisecond
	DefaultLeaderWait = 3 * time.Second
	DefaultContact    = 5 * time.Second
	DefaultMonitor    = time.Second
	DefaultSnapshots  = 2 * time.Second
	DefaultShutdown   = 5 * time.Second

	DefaultBatchCommands    = 512
	DefaultBatchBytes       = 1 << 20
	DefaultCommandBytes     = 2 << 20
	DefaultBatchesInFlight  = 1
	DefaultForwardsInFlight = 4096
	DefaultQueueCommands    = 8192
	DefaultQueueBytes       = 64 << 20
	DefaultReads            = 16384
	DefaultAppendEntries    = 64
	DefaultCachedEntries    = 128
	DefaultPipeline         = 1
	DefaultSnapshotBytes    = 64 << 20
	DefaultTrailingBytes    = 32 << 20
	DefaultSnapshotEntries  = 100_000
	DefaultTrailingEntries  = 1_000

	DefaultStallAfter    = 500 * time.Millisecond
	DefaultStallFatal    = 10 * time.Second
	DefaultLowSpace      = 512 << 20
	DefaultCriticalSpace = 128 << 20
	DefaultRoomToStart   = 256 << 20
	DefaultDiskCheck     = time.Second
)

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

func (t Timing) withDefaults() Timing {
	t.Heartbeat = or(t.Heartbeat, DefaultHeartbeat)
	t.Election = or(t.Election, max(DefaultElection, t.Heartbeat))
	t.Lease = or(t.Lease, min(DefaultLease, t.Heartbeat*39/40))
	t.Commit = or(t.Commit, DefaultCommit)
	t.RPC = or(t.RPC, DefaultRPC)
	t.Snapshot = or(t.Snapshot, DefaultSnapshot)
	t.Propose = or(t.Propose, DefaultPropose)
	t.Read = or(t.Read, DefaultRead)
	t.Confirm = or(t.Confirm, DefaultConfirm)
	t.LeaderWait = or(t.LeaderWait, DefaultLeaderWait)
	t.Contact = or(t.Contact, DefaultContact)
	t.Monitor = or(t.Monitor, DefaultMonitor)
	t.Snapshots = or(t.Snapshots, DefaultSnapshots)
	t.Shutdown = or(t.Shutdown, DefaultShutdown)
	return t
}

func (l Limits) withDefaults() Limits {
	l.BatchCommands = or(l.BatchCommands, DefaultBatchCommands)
	l.BatchBytes = or(l.BatchBytes, DefaultBatchBytes)
	l.CommandBytes = or(l.CommandBytes, DefaultCommandBytes)
	l.BatchesInFlight = or(l.BatchesInFlight, DefaultBatchesInFlight)
	l.ForwardsInFlight = or(l.ForwardsInFlight, DefaultForwardsInFlight)
	l.QueueCommands = or(l.QueueCommands, DefaultQueueCommands)
	l.QueueBytes = or(l.QueueBytes, DefaultQueueBytes)
	l.Reads = or(l.Reads, DefaultReads)
	l.AppendEntries = or(l.AppendEntries, DefaultAppendEntries)
	l.CachedEntries = or(l.CachedEntries, DefaultCachedEntries)
	l.Pipeline = or(l.Pipeline, DefaultPipeline)
	l.SnapshotBytes = or(l.SnapshotBytes, DefaultSnapshotBytes)
	l.TrailingBytes = or(l.TrailingBytes, DefaultTrailingBytes)
	l.SnapshotEntries = or(l.SnapshotEntries, DefaultSnapshotEntries)
	l.TrailingEntries = or(l.TrailingEntries, DefaultTrailingEntries)
	return l
}

func (d DiskLimits) withDefaults() DiskLimits {
	d.StallAfter = or(d.StallAfter, DefaultStallAfter)
	d.StallFatal = or(d.StallFatal, DefaultStallFatal)
	d.LowSpace = or(d.LowSpace, DefaultLowSpace)
	d.CriticalSpace = or(d.CriticalSpace, DefaultCriticalSpace)
	d.RoomToStart = or(d.RoomToStart, DefaultRoomToStart)
	d.Check = or(d.Check, DefaultDiskCheck)
	return d
}

func (c Config) withDefaults() Config {
	c.Timing = c.Timing.withDefaults()
	c.Limits = c.Limits.withDefaults()
	c.Disk = c.Disk.withDefaults()
	c.Policy = c.Policy.withDefaults()
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	if c.FeatureLevel == nil {
		c.FeatureLevel = func() uint32 { return 0 }
	}
	return c
}

// check names the first thing that is missing or makes no sense.
func (c Config) check() error {
	missing := func(field string) error { return fmt.Errorf("cluster: Config.%s is missing", field) }
	switch {
	case c.ID == "":
		return missing("ID")
	case c.Address == "":
		return missing("Address")
	case c.Machine == nil:
		return missing("Machine")
	case c.LogStore == nil:
		return missing("LogStore")
	case c.StableStore == nil:
		return missing("StableStore")
	case c.SnapshotStore == nil:
		return missing("SnapshotStore")
	case c.Stream == nil:
		return missing("Stream")
	case c.Peers == nil:
		return missing("Peers")
	case c.Rand == nil:
		return missing("Rand")
	case c.Logger == nil:
		return missing("Logger")
	case c.Fatal == nil:
		return missing("Fatal")
	case c.Timing.Lease >= c.Timing.Heartbeat:
		return fmt.Errorf("cluster: Config.Timing.Lease is %v, it must be below Heartbeat, %v", c.Timing.Lease, c.Timing.Heartbeat)
	case c.Disk.CriticalSpace > c.Disk.LowSpace || c.Disk.RoomToStart < c.Disk.CriticalSpace:
		return errors.New("cluster: Config.Disk wants CriticalSpace <= LowSpace and CriticalSpace <= RoomToStart")
	}
	return nil
}

// raftConfig is the library's view of the same. Its own snapshot timer is put
// to sleep: we decide by size.
func (c Config) raftConfig() *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(c.ID)
	r.HeartbeatTimeout = c.Timing.Heartbeat
	r.ElectionTimeout = c.Timing.Election
	r.LeaderLeaseTimeout = c.Timing.Lease
	r.CommitTimeout = c.Timing.Commit
	r.MaxAppendEntries = c.Limits.AppendEntries
	r.ShutdownOnRemove = false
	r.SnapshotInterval = neverSnapshot
	r.SnapshotThreshold = 1 << 62
	r.TrailingLogs = c.Limits.TrailingEntries
	r.NoLegacyTelemetry = true
	r.Logger = NewRaftLogger(c.Logger.With("part", "raft"))
	return r
}

const neverSnapshot = 1000 * time.Hour
