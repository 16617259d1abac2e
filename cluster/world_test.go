package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/raft"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"

	"github.com/balsa-run/balsa/cluster/memlog"
	"github.com/balsa-run/balsa/cluster/memnet"
)

// machine is a small versioned register store with the store's semantics for
// the commands it knows: Txn with compares on mod revision, puts and the epoch.
type machine struct {
	mu       sync.Mutex
	state    machineState
	hold     chan struct{} // non-nil: Apply waits for it
	poison   string        // a key whose write the machine cannot apply
	restores atomic.Int64
	applies  atomic.Int64
	corrupt  bool // adds a lie to every hash
}

type machineState struct {
	Revision int64
	Level    uint32
	Values   map[string]string
	Mod      map[string]int64
	Hash     uint64
	Hashes   map[int64]uint64
}

func newMachine() *machine {
	return &machine{state: machineState{Values: map[string]string{}, Mod: map[string]int64{}, Hashes: map[int64]uint64{}}}
}

func (m *machine) Apply(_, term uint64, commands []*internalv1.Command) []*internalv1.CommandResult {
	m.applies.Add(1)
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*internalv1.CommandResult, len(commands))
	for i, command := range commands {
		out[i] = m.applyLocked(term, command)
	}
	return out
}

func (m *machine) applyLocked(term uint64, command *internalv1.Command) *internalv1.CommandResult {
	if command.GetEpoch() != 0 && command.GetEpoch() != term {
		return &internalv1.CommandResult{Outcome: internalv1.CommandResult_OUTCOME_STALE_EPOCH, Revision: m.state.Revision}
	}
	if level := command.GetSetFeatureLevel(); level != nil {
		m.state.Level = level.GetLevel()
		return &internalv1.CommandResult{Outcome: internalv1.CommandResult_OUTCOME_OK, Revision: m.state.Revision}
	}
	txn := command.GetTxn()
	if txn == nil {
		panic(fmt.Errorf("unknown command %T", command.GetOp()))
	}
	succeeded := true
	for _, compare := range txn.GetCompares() {
		succeeded = succeeded && m.state.Mod[string(compare.GetKey())] == compare.GetNumber()
	}
	if succeeded {
		m.state.Revision++
		for _, op := range txn.GetSuccess() {
			m.putLocked(op.GetPut())
		}
		if m.corrupt {
			m.state.Hash++
		}
		m.state.Hashes[m.state.Revision] = m.state.Hash
		delete(m.state.Hashes, m.state.Revision-64)
	}
	return &internalv1.CommandResult{Outcome: internalv1.CommandResult_OUTCOME_OK, Revision: m.state.Revision,
		Txn: &internalv1.TxnResult{Succeeded: succeeded}}
}

func (m *machine) putLocked(put *internalv1.Put) {
	key := string(put.GetKey())
	if m.poison != "" && key == m.poison {
		panic(errors.New("poisoned key"))
	}
	m.state.Values[key] = string(put.GetValue())
	m.state.Mod[key] = m.state.Revision
	for _, b := range key + "=" + string(put.GetValue()) {
		m.state.Hash = m.state.Hash*1099511628211 + uint64(b)
	}
}

func (m *machine) Snapshot() (io.WriterTo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.Values, s.Mod, s.Hashes = maps.Clone(s.Values), maps.Clone(s.Mod), maps.Clone(s.Hashes)
	return pinned(s), nil
}

type pinned machineState

func (p pinned) WriteTo(w io.Writer) (int64, error) {
	raw, err := json.Marshal(machineState(p))
	if err != nil {
		return 0, err
	}
	n, err := w.Write(raw)
	return int64(n), err
}

func (m *machine) Restore(r io.Reader) error {
	var s machineState
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = s
	m.restores.Add(1)
	return nil
}

func (m *machine) get(key string) (value string, mod int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Values[key], m.state.Mod[key]
}

func (m *machine) level() uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Level
}

func (m *machine) spaces() []*internalv1.SpaceState {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &internalv1.SpaceState{Space: "objects", Revision: m.state.Revision}
	for _, revision := range slices.Sorted(maps.Keys(m.state.Hashes)) {
		s.Hashes = append(s.Hashes, &internalv1.RevisionHash{Revision: revision, Hash: m.state.Hashes[revision]})
	}
	return []*internalv1.SpaceState{s}
}

// holdApply makes Apply wait; the result lets it go on.
func (m *machine) holdApply() (release func()) {
	hold := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
	var once sync.Once
	return func() {
		once.Do(func() {
			m.mu.Lock()
			m.hold = nil
			m.mu.Unlock()
			close(hold)
		})
	}
}

func put(key, value string) *internalv1.Command {
	return &internalv1.Command{Space: "objects", Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{
		Success: []*internalv1.Op{{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: []byte(value)}}}},
	}}}
}

// world is a few servers on one network in memory.
type world struct {
	t     testing.TB
	net   *memnet.Network
	nodes map[string]*node
	seed  atomic.Uint64
	tune  func(*Config)
	names []string
	mu    sync.RWMutex // guards writes of nodes against the wire's reads
}

type node struct {
	*Cluster
	w       *world
	id      string
	disk    *memlog.Disk
	machine *machine
	fatal   chan error
	// confirmLate, when set, holds back Confirm answers of this node.
	confirmLate func(ctx context.Context)
	// asked is how often another member asked this one for a read index.
	asked atomic.Int64
	// handed counts the calls by which other members handed commands to this one.
	handed atomic.Int64
	// early makes this one a server that knows no ProposeMany.
	early bool
	// unwelcome is a server whose certificate this node does not take.
	unwelcome atomic.Pointer[string]
}

func newWorld(t testing.TB, tune func(*Config)) *world {
	w := &world{t: t, net: memnet.New(), nodes: map[string]*node{}, tune: tune}
	return w
}

func (w *world) open(id string, disk *memlog.Disk) *node {
	w.t.Helper()
	n, err := w.tryOpen(id, disk)
	if err != nil {
		w.t.Fatalf("open %s: %v", id, err)
	}
	return n
}

func (w *world) tryOpen(id string, disk *memlog.Disk) (*node, error) {
	host, err := w.net.Listen(id)
	if err != nil {
		return nil, err
	}
	n := &node{w: w, id: id, disk: disk, machine: newMachine(), fatal: make(chan error, 1)}
	cfg := Config{
		ID: id, Name: id, Address: id, Version: "test", Machine: n.machine,
		LogStore: disk.Log(), StableStore: disk.Stable(), SnapshotStore: disk.Snapshots(),
		Stream: host, Peers: wire{w: w, from: id},
		Rand:         func() uint64 { return w.seed.Add(1) },
		Logger:       slog.New(slog.DiscardHandler),
		Fatal:        func(reason error) { n.fatal <- reason },
		Spaces:       n.machine.spaces,
		FeatureLevel: n.machine.level,
		Policy:       MembershipPolicy{StabilizeAfter: 2 * time.Second},
	}
	if w.tune != nil {
		w.tune(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	n.Cluster = c
	w.mu.Lock()
	w.nodes[id] = n
	w.mu.Unlock()
	if !slices.Contains(w.names, id) {
		w.names = append(w.names, id)
	}
	return n, nil
}

// start brings up a cluster of voters.
func (w *world) start(ids ...string) {
	w.t.Helper()
	first := w.open(ids[0], memlog.New())
	if err := first.Bootstrap(); err != nil {
		w.t.Fatal(err)
	}
	w.leader()
	for _, id := range ids[1:] {
		w.join(id)
	}
	w.until("every member votes", func() bool { return w.votersSeen() == len(ids) })
}

func (w *world) join(id string) *node {
	w.t.Helper()
	n := w.open(id, memlog.New())
	err := n.Join(context.Background(), func(ctx context.Context) error { return w.leader().AddNonvoter(ctx, id, id) })
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) votersSeen() int {
	leader := w.tryLeader("")
	if leader == nil {
		return 0
	}
	return leader.otherVoters(leader.raft.Load()) + 1
}

// stop ends every member that still runs.
func (w *world) stop() {
	w.t.Helper()
	w.net.HealAll()
	for _, id := range w.names {
		if n := w.node(id); n != nil {
			n.disk.Release()
			n.kill()
		}
	}
}

// kill stops a member without a hand-over.
func (n *node) kill() {
	n.w.t.Helper()
	n.mu.Lock()
	if n.phase == PhaseRunning {
		n.phase = PhaseStopped
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil {
		n.w.t.Errorf("stop %s: %v", n.id, err)
	}
	_ = n.cfg.Stream.Close()
	n.w.forget(n.id)
}

func (w *world) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.nodes, id)
}

func (w *world) node(id string) *node {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.nodes[id]
}

func (w *world) tryLeader(not string) *node {
	for _, id := range w.names {
		n := w.nodes[id]
		if n == nil || id == not || n.raft.Load() == nil {
			continue
		}
		if _, _, err := n.ready(); err == nil {
			return n
		}
	}
	return nil
}

func (w *world) leader() *node { w.t.Helper(); return w.leaderBut("") }

func (w *world) leaderBut(not string) *node {
	w.t.Helper()
	var n *node
	w.until("there is a leader other than "+not, func() bool { n = w.tryLeader(not); return n != nil })
	return n
}

func (w *world) follower() *node {
	w.t.Helper()
	leader := w.leader()
	for _, id := range w.names {
		if n := w.nodes[id]; n != nil && id != leader.id {
			return n
		}
	}
	w.t.Fatal("no follower")
	return nil
}

// until polls a condition; under synctest the time is virtual.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !done() {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited a minute until %s; %s", what, w.describe())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (w *world) describe() string {
	out := ""
	for _, id := range w.names {
		if n := w.nodes[id]; n != nil {
			s := n.Status()
			out += fmt.Sprintf("[%s %s %s term %d applied %d commit %d leading %d failure %v] ", id, s.Phase, s.State, s.Term, s.AppliedIndex, s.CommitIndex, s.Leading, s.Failure)
		}
	}
	return out
}

func (n *node) put(key, value string) {
	n.w.t.Helper()
	if _, err := n.Propose(context.Background(), put(key, value)); err != nil {
		n.w.t.Fatalf("put %s=%s on %s: %v", key, value, n.id, err)
	}
}

func (n *node) read(key string) string {
	n.w.t.Helper()
	if _, err := n.ReadIndex(context.Background()); err != nil {
		n.w.t.Fatalf("read %s on %s: %v", key, n.id, err)
	}
	value, _ := n.machine.get(key)
	return value
}

// wire carries PeerService over the network in memory.
type wire struct {
	w    *world
	from string
}

func call[Q, A any](ctx context.Context, p wire, to string, request Q, serve func(*node) func(context.Context, Q) (A, error)) (A, error) {
	var none A
	if err := p.w.net.Pass(ctx, p.from, to); err != nil {
		return none, FromConnect(err)
	}
	target := p.w.node(to)
	if target == nil {
		return none, refused(ReasonPeer, "%s is not there", to)
	}
	answer, err := serve(target)(ctx, request)
	if passErr := p.w.net.Pass(ctx, to, p.from); passErr != nil {
		return none, FromConnect(passErr)
	}
	return answer, FromConnect(ToConnect(err))
}

func (p wire) Propose(ctx context.Context, to string, q *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
	return call(ctx, p, to, q, func(n *node) func(context.Context, *internalv1.ProposeRequest) (*internalv1.ProposeResponse, error) {
		n.handed.Add(1)
		return n.ServePropose
	})
}

func (p wire) ProposeMany(ctx context.Context, to string, q *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
	return call(ctx, p, to, q, func(n *node) func(context.Context, *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
		n.handed.Add(1)
		if n.early {
			return func(context.Context, *internalv1.ProposeManyRequest) (*internalv1.ProposeManyResponse, error) {
				return nil, unimplemented()
			}
		}
		return n.ServeProposeMany
	})
}

// unimplemented is what the API server says of a method that it does not know.
func unimplemented() error {
	wire := connect.NewError(connect.CodeUnimplemented, errors.New("there is no method"))
	detail, err := connect.NewErrorDetail(&balsav1.ErrorDetail{Reason: "Unimplemented", Applied: balsav1.ErrorDetail_APPLIED_NOT_APPLIED, Hint: "see the versions"})
	if err == nil {
		wire.AddDetail(detail)
	}
	return wire
}

func (p wire) ReadIndex(ctx context.Context, to string, q *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
	return call(ctx, p, to, q, func(n *node) func(context.Context, *internalv1.ReadIndexRequest) (*internalv1.ReadIndexResponse, error) {
		n.asked.Add(1)
		return n.ServeReadIndex
	})
}

func (p wire) Confirm(ctx context.Context, to string, q *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
	return call(ctx, p, to, q, func(n *node) func(context.Context, *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
		return func(ctx context.Context, q *internalv1.ConfirmRequest) (*internalv1.ConfirmResponse, error) {
			answer, err := n.ServeConfirm(ctx, q)
			if n.confirmLate != nil {
				n.confirmLate(ctx)
			}
			return answer, err
		}
	})
}

func (p wire) State(ctx context.Context, to string, q *internalv1.StateRequest) (*internalv1.StateResponse, error) {
	return call(ctx, p, to, q, func(n *node) func(context.Context, *internalv1.StateRequest) (*internalv1.StateResponse, error) {
		return func(ctx context.Context, q *internalv1.StateRequest) (*internalv1.StateResponse, error) {
			if refused := n.unwelcome.Load(); refused != nil && *refused == p.from {
				return nil, &Error{Class: NotApplied, Reason: ReasonIdentity, Err: errors.New("its certificate was revoked")}
			}
			if err := n.Expelled(ctx, p.from); err != nil {
				return nil, err
			}
			return n.ServeState(ctx, q)
		}
	})
}

var _ raft.StreamLayer = (*memnet.Host)(nil)
