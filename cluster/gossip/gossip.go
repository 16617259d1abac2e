//go:build !wasip1

// Package gossip is cluster.Gossip over serf: who seems to be there, within
// seconds, without asking the leader. All traffic is encrypted with the
// cluster's key. It decides nothing: a member that gossip calls failed is a
// member to look at, no more.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/balsa-run/balsa/cluster"
)

// Limits and timing. A failed member is suspected after a probe, and called
// failed after SuspicionMult x log10(members) probes without contradiction:
// about three seconds in a small cluster.
const (
	EventBuffer     = 256
	KeyBytes        = 32
	probeInterval   = 500 * time.Millisecond
	probeTimeout    = 250 * time.Millisecond
	suspicionMult   = 4
	gossipInterval  = 100 * time.Millisecond
	pushPull        = 15 * time.Second
	tcpTimeout      = 5 * time.Second
	forgetFailed    = 72 * time.Hour
	forgetLeft      = 24 * time.Hour
	leavePropagate  = time.Second
	serfEventBuffer = 64
)

// Options say who we are and where to listen.
type Options struct {
	// Name must be unique; the raft or node id is a good one.
	Name string
	// Bind is host:port, port 0 for any; Advertise is what others use, Bind when
	// empty.
	Bind, Advertise string
	// Key encrypts the gossip: KeyBytes bytes, the same for every member.
	Key    []byte
	Tags   cluster.GossipTags
	Logger *slog.Logger
	// SnapshotPath is a file that remembers the members over a restart; optional.
	SnapshotPath string
}

// Gossip is a running member of the gossip.
type Gossip struct {
	serf *serf.Serf
	out  chan cluster.GossipEvent
	done chan struct{} // closed when the pump has ended
	once sync.Once
}

var _ cluster.Gossip = (*Gossip)(nil)

// Start begins to listen.
func Start(options Options) (*Gossip, error) {
	if len(options.Key) != KeyBytes {
		return nil, fmt.Errorf("gossip: the key has %d bytes, expected %d", len(options.Key), KeyBytes)
	}
	in := make(chan serf.Event, serfEventBuffer)
	config, err := configure(options, in)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	s, err := serf.Create(config)
	if err != nil {
		return nil, fmt.Errorf("gossip: listen on %s: %w", options.Bind, err)
	}
	g := &Gossip{serf: s, out: make(chan cluster.GossipEvent, EventBuffer), done: make(chan struct{})}
	go g.pump(in)
	return g, nil
}

func configure(options Options, events chan<- serf.Event) (*serf.Config, error) {
	config := serf.DefaultConfig()
	config.Init()
	config.NodeName = options.Name
	config.Tags = toTags(options.Tags)
	config.EventCh = events
	config.SnapshotPath = options.SnapshotPath
	config.RejoinAfterLeave = true
	config.ReconnectTimeout = forgetFailed
	config.TombstoneTimeout = forgetLeft
	config.LeavePropagateDelay = leavePropagate
	// Two members of one name are reported, not resolved by stopping one.
	config.EnableNameConflictResolution = false
	config.DisableCoordinates = true
	config.LogOutput = io.Discard
	config.Logger = slog.NewLogLogger(options.Logger.With("part", "gossip").Handler(), slog.LevelDebug)
	list := memberlist.DefaultLANConfig()
	list.Logger, list.LogOutput = config.Logger, nil
	list.SecretKey = options.Key
	list.ProbeInterval, list.ProbeTimeout, list.SuspicionMult = probeInterval, probeTimeout, suspicionMult
	list.GossipInterval, list.PushPullInterval, list.TCPTimeout = gossipInterval, pushPull, tcpTimeout
	var err error
	if list.BindAddr, list.BindPort, err = hostPort(options.Bind); err != nil {
		return nil, err
	}
	list.AdvertisePort = list.BindPort
	if options.Advertise != "" {
		if list.AdvertiseAddr, list.AdvertisePort, err = hostPort(options.Advertise); err != nil {
			return nil, err
		}
	}
	config.MemberlistConfig = list
	config.LogOutput = nil
	return config, nil
}

func hostPort(address string) (string, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: %w", address, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: port: %w", address, err)
	}
	return host, int(n), nil
}

// pump translates serf's events. It always drains them: serf would stop.
func (g *Gossip) pump(in <-chan serf.Event) {
	defer close(g.done)
	defer close(g.out)
	for {
		select {
		case event := <-in:
			if members, ok := event.(serf.MemberEvent); ok {
				g.tell(members)
			}
		case <-g.serf.ShutdownCh():
			return
		}
	}
}

// tell drops the oldest event when nobody reads.
func (g *Gossip) tell(event serf.MemberEvent) {
	kind, ok := kindOf(event.Type)
	if !ok {
		return
	}
	for _, m := range event.Members {
		e := cluster.GossipEvent{Kind: kind, Member: toMember(m)}
		select {
		case g.out <- e:
			continue
		default:
		}
		select {
		case <-g.out:
		default:
		}
		g.out <- e // the pump is the only sender
	}
}

func kindOf(t serf.EventType) (cluster.GossipEventKind, bool) {
	switch t {
	case serf.EventMemberJoin:
		return cluster.GossipJoin, true
	case serf.EventMemberUpdate:
		return cluster.GossipUpdate, true
	case serf.EventMemberFailed:
		return cluster.GossipFail, true
	case serf.EventMemberLeave:
		return cluster.GossipLeave, true
	case serf.EventMemberReap:
		return cluster.GossipForget, true
	}
	return "", false
}

// Events is closed by Leave and Shutdown.
func (g *Gossip) Events() <-chan cluster.GossipEvent { return g.out }

// Address is where this member listens.
func (g *Gossip) Address() string {
	m := g.serf.LocalMember()
	return net.JoinHostPort(m.Addr.String(), strconv.Itoa(int(m.Port)))
}

// Members lists everybody that is remembered, this member included.
func (g *Gossip) Members() []cluster.GossipMember {
	members := g.serf.Members()
	out := make([]cluster.GossipMember, len(members))
	for i, m := range members {
		out[i] = toMember(m)
	}
	return out
}

// SetTags replaces what this member says of itself.
func (g *Gossip) SetTags(tags cluster.GossipTags) error {
	if err := g.serf.SetTags(toTags(tags)); err != nil {
		return fmt.Errorf("gossip: set tags: %w", err)
	}
	return nil
}

// Join introduces this member to others. It is no error that some do not answer.
func (g *Gossip) Join(ctx context.Context, addresses []string) (int, error) {
	type answer struct {
		n   int
		err error
	}
	done := make(chan answer, 1)
	go func() {
		n, err := g.serf.Join(addresses, true)
		done <- answer{n, err}
	}()
	select {
	case a := <-done:
		if a.n > 0 || a.err == nil {
			return a.n, nil
		}
		return 0, fmt.Errorf("gossip: join %v: %w", addresses, a.err)
	case <-ctx.Done():
		return 0, fmt.Errorf("gossip: join %v: %w", addresses, ctx.Err())
	}
}

// Leave says good-bye and stops.
func (g *Gossip) Leave(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- g.serf.Leave() }()
	select {
	case err := <-done:
		return errors.Join(err, g.Shutdown())
	case <-ctx.Done():
		return errors.Join(ctx.Err(), g.Shutdown())
	}
}

// Shutdown stops without a word, as a crash does: the others will call this
// member failed.
func (g *Gossip) Shutdown() error {
	var err error
	g.once.Do(func() {
		err = g.serf.Shutdown()
		<-g.done
	})
	return err
}

// Tag names on the wire. They are few and short: serf allows 512 bytes in all.
const (
	tagID      = "id"
	tagRole    = "role"
	tagAddress = "addr"
	tagVersion = "ver"
	tagLevel   = "level"
)

func toTags(t cluster.GossipTags) map[string]string {
	return map[string]string{tagID: t.ID, tagRole: t.Role, tagAddress: t.Address, tagVersion: t.Version,
		tagLevel: strconv.FormatUint(uint64(t.MaxFeatureLevel), 10)}
}

func toMember(m serf.Member) cluster.GossipMember {
	level, err := strconv.ParseUint(m.Tags[tagLevel], 10, 32)
	if err != nil {
		level = 0 // a member that does not say can do the first level only
	}
	return cluster.GossipMember{
		Name: m.Name, GossipAddress: net.JoinHostPort(m.Addr.String(), strconv.Itoa(int(m.Port))), Status: toStatus(m.Status),
		GossipTags: cluster.GossipTags{ID: m.Tags[tagID], Role: m.Tags[tagRole], Address: m.Tags[tagAddress],
			Version: m.Tags[tagVersion], MaxFeatureLevel: uint32(level)},
	}
}

func toStatus(s serf.MemberStatus) cluster.GossipStatus {
	switch s {
	case serf.StatusAlive:
		return cluster.GossipAlive
	case serf.StatusFailed:
		return cluster.GossipFailed
	case serf.StatusLeaving, serf.StatusLeft:
		return cluster.GossipLeft
	}
	return cluster.GossipUnknown
}
