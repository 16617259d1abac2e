package cluster

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/internal/mutate"
)

// gate is raft's transport. It says nothing for a member whose own disk is
// stuck or that has failed: without that, such a leader keeps its followers
// quiet for ever. It drops answers that came too late to prove that the other
// side follows now. And it keeps three kinds of calls apart, each with a
// time-out of its own: beats (heartbeats and votes), entries, snapshots.
type gate struct {
	c                 *Cluster
	beats, main, bulk *raft.NetworkTransport
	requests          chan raft.RPC
	closed            chan struct{}
	closeOnce         sync.Once
	consumer          sync.WaitGroup
	lateAfter         time.Duration
	reach             *reach
	teller            *teller
}

var (
	_ raft.Transport   = (*gate)(nil)
	_ raft.WithPreVote = (*gate)(nil)
	_ raft.WithClose   = (*gate)(nil)

	errSilent = errors.New("this member says nothing")
	errLate   = errors.New("the answer came too late to prove anything")
)

const connectionsKept = 3

func newGate(c *Cluster) *gate {
	accepting := &trackedStream{StreamLayer: c.cfg.Stream, open: make(map[net.Conn]struct{})}
	logger := NewRaftLogger(c.cfg.Logger.With("part", "raft transport"))
	transport := func(stream raft.StreamLayer, timeout time.Duration) *raft.NetworkTransport {
		return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: stream, MaxPool: connectionsKept, Timeout: timeout, Logger: logger, MaxRPCsInFlight: c.cfg.Limits.Pipeline,
		})
	}
	g := &gate{
		c:         c,
		main:      transport(accepting, c.cfg.Timing.RPC),
		beats:     transport(newDialOnly(c.cfg.Stream), 2*c.cfg.Timing.Heartbeat),
		bulk:      transport(newDialOnly(c.cfg.Stream), c.cfg.Timing.Snapshot),
		requests:  make(chan raft.RPC),
		closed:    make(chan struct{}),
		lateAfter: or(c.cfg.lateAfter, c.cfg.Timing.Lease/2),
		reach:     newReach(),
		teller:    newTeller(),
	}
	g.consumer.Add(1)
	go g.consume()
	return g
}

// silent tells why this member must not speak as a leader now.
func (g *gate) silent() error {
	if err := g.c.failureReason(); err != nil {
		return fmt.Errorf("%w: it has failed: %w", errSilent, err)
	}
	if g.c.stalled() {
		return fmt.Errorf("%w: its own disk is stuck", errSilent)
	}
	return nil
}

// consume passes requests on to raft, but for those that this member refuses.
func (g *gate) consume() {
	defer g.consumer.Done()
	for {
		select {
		case rpc := <-g.main.Consumer():
			if err := g.refuse(rpc); err != nil {
				rpc.Respond(nil, err)
				continue
			}
			if old := g.c.oldSnapshot(rpc.Command); old != nil {
				g.consumer.Go(func() { alreadyInstalled(rpc, old) })
				continue
			}
			select {
			case g.requests <- rpc:
			case <-g.closed:
				return
			}
		case <-g.closed:
			return
		}
	}
}

func (g *gate) refuse(rpc raft.RPC) error {
	if err := g.c.failureReason(); err != nil {
		return fmt.Errorf("%w: it has failed", errSilent)
	}
	if _, transfer := rpc.Command.(*raft.TimeoutNowRequest); transfer && g.c.spaceIsLow() {
		return errors.New("not taking over leadership: disk space is low here too")
	}
	return nil
}

func (g *gate) Consumer() <-chan raft.RPC     { return g.requests }
func (g *gate) LocalAddr() raft.ServerAddress { return raft.ServerAddress(g.c.cfg.Address) }

func (g *gate) EncodePeer(_ raft.ServerID, address raft.ServerAddress) []byte {
	return []byte(address)
}
func (g *gate) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

func (g *gate) SetHeartbeatHandler(handle func(raft.RPC)) {
	g.main.SetHeartbeatHandler(func(rpc raft.RPC) {
		if err := g.c.failureReason(); err != nil {
			rpc.Respond(nil, fmt.Errorf("%w: it has failed", errSilent))
			return
		}
		handle(rpc)
	})
}

func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && r.LeaderCommitIndex == 0
}

func (g *gate) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if isHeartbeat(args) {
		err := g.heartbeat(id, target, args, resp)
		g.reach.note(id, err == nil)
		return err
	}
	return g.holding(id, args.Term, func() error { return g.entries(id, target, args, resp) })
}

func (g *gate) entries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := g.silent(); err != nil {
		return err
	}
	if mutate.On(mutate.AckBeforeMajority) {
		return g.impatient(id, target, args, resp)
	}
	err := g.around(callEntries, target, func() error { return g.main.AppendEntries(id, target, args, resp) })
	if err == nil && resp.Success {
		last := args.PrevLogEntry
		if n := len(args.Entries); n > 0 {
			last = args.Entries[n-1].Index
		}
		g.c.tell(g.teller.confirmed(id, last, args.LeaderCommitIndex))
	}
	return err
}

// heartbeat counts only when it was answered soon. (An answer about entries that
// took long may be a slow disk, and to refuse it would send them for ever.)
func (g *gate) heartbeat(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := g.silent(); err != nil {
		return err
	}
	sent := g.c.cfg.Clock.Now()
	err := g.around(callHeartbeat, target, func() error { return g.beats.AppendEntries(id, target, args, resp) })
	if took := g.c.cfg.Clock.Now().Sub(sent); err == nil && took > g.lateAfter && !mutate.On(mutate.VerifyLeader) {
		g.c.cfg.Metrics.Add("cluster_late_heartbeat_answers", 1)
		return fmt.Errorf("%w: %v, allowed %v", errLate, took, g.lateAfter)
	}
	return err
}

func (g *gate) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := g.silent(); err != nil {
		return nil, err
	}
	if mutate.On(mutate.AckBeforeMajority) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	pipeline, err := g.main.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return &gatedPipeline{AppendPipeline: pipeline, g: g}, nil
}

type gatedPipeline struct {
	raft.AppendPipeline
	g *gate
}

func (p *gatedPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.g.silent(); err != nil {
		return nil, err
	}
	return p.AppendPipeline.AppendEntries(args, resp)
}

func (g *gate) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := g.silent(); err != nil {
		return err
	}
	return g.around(callVote, target, func() error { return g.beats.RequestVote(id, target, args, resp) })
}

func (g *gate) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := g.silent(); err != nil {
		return err
	}
	return g.around(callVote, target, func() error { return g.beats.RequestPreVote(id, target, args, resp) })
}

func (g *gate) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return g.holding(id, args.Term, func() error {
		if err := g.silent(); err != nil {
			return err
		}
		return g.around(callSnapshot, target, func() error { return g.bulk.InstallSnapshot(id, target, args, resp, data) })
	})
}

func (g *gate) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return g.main.TimeoutNow(id, target, args, resp)
}

// Close ends every connection in both directions.
func (g *gate) Close() error {
	var err error
	g.closeOnce.Do(func() {
		close(g.closed)
		for _, t := range []*raft.NetworkTransport{g.beats, g.main, g.bulk} {
			err = errors.Join(err, t.Close())
			t.CloseStreams()
		}
		g.consumer.Wait()
	})
	return err
}

// callKind names a call for the schedules that tests impose.
type callKind string

const (
	callHeartbeat callKind = "heartbeat"
	callEntries   callKind = "entries"
	callCommit    callKind = "commit"
	callVote      callKind = "vote"
	callSnapshot  callKind = "snapshot"
)

func (g *gate) around(kind callKind, target raft.ServerAddress, call func() error) error {
	if g.c.cfg.schedule == nil {
		return call()
	}
	return g.c.cfg.schedule(kind, string(target), call)
}

// trackedStream closes what it accepted when it is closed: the library leaves
// those connections, and the goroutines that read them, behind.
type trackedStream struct {
	raft.StreamLayer

	mu     sync.Mutex
	open   map[net.Conn]struct{} // guarded by mu; nil once closed
	closed bool                  // guarded by mu
}

func (s *trackedStream) Accept() (net.Conn, error) {
	conn, err := s.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	s.open[conn] = struct{}{}
	return &trackedConn{Conn: conn, stream: s}, nil
}

func (s *trackedStream) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := s.open
	s.open = nil
	s.mu.Unlock()
	err := s.StreamLayer.Close()
	for conn := range conns {
		err = errors.Join(err, conn.Close())
	}
	return err
}

type trackedConn struct {
	net.Conn
	stream *trackedStream
}

func (c *trackedConn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.open, c.Conn)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}

// dialOnly is the stream of a transport that never accepts.
type dialOnly struct {
	raft.StreamLayer
	once   sync.Once
	closed chan struct{}
}

func newDialOnly(s raft.StreamLayer) *dialOnly {
	return &dialOnly{StreamLayer: s, closed: make(chan struct{})}
}

func (d *dialOnly) Accept() (net.Conn, error) {
	<-d.closed
	return nil, net.ErrClosed
}

func (d *dialOnly) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}
