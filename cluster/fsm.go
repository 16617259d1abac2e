package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/internal/mutate"
)

// batchVersion is the format of internalv1.Batch that this member reads and
// writes.
const batchVersion = 1

// fsm feeds the machine. All methods but those of progress run on raft's apply
// goroutine.
type fsm struct {
	machine Machine
	c       *Cluster

	progress progress
	before   mutate.Before[io.WriterTo] // nothing but in a build with planted bugs
	// Of the log since the last snapshot.
	bytes, entries atomic.Int64
}

// applied is what an entry came to; raft hands it to the proposer's future.
type applied struct {
	term    uint64
	results []*internalv1.CommandResult
}

var (
	_ raft.BatchingFSM = (*fsm)(nil)
	// Configuration entries must reach the FSM one by one as well, or a read
	// index that names one would wait for ever.
	_ raft.ConfigurationStore = (*fsm)(nil)
)

// ApplyBatch applies entries in order. The library sends commands and
// configurations; no-ops never reach an FSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, entry := range logs {
		out[i] = f.Apply(entry)
	}
	return out
}

// Apply never skips an entry: what it cannot apply stops the member.
func (f *fsm) Apply(entry *raft.Log) any {
	var results []*internalv1.CommandResult
	if entry.Type == raft.LogCommand {
		var err error
		if results, err = f.applyCommands(entry); err != nil {
			f.c.halt(fmt.Errorf("entry %d of term %d cannot be applied: %w", entry.Index, entry.Term, err))
		}
	}
	f.bytes.Add(int64(len(entry.Data)))
	f.entries.Add(1)
	f.progress.advance(entry.Index, entry.Term)
	return &applied{term: entry.Term, results: results}
}

// StoreConfiguration is called when the library does not batch.
func (f *fsm) StoreConfiguration(index uint64, _ raft.Configuration) {
	f.progress.advance(index, 0)
}

func (f *fsm) applyCommands(entry *raft.Log) (results []*internalv1.CommandResult, err error) {
	batch := new(internalv1.Batch)
	if err := proto.Unmarshal(entry.Data, batch); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if batch.GetVersion() != batchVersion {
		return nil, fmt.Errorf("batch version %d, this binary knows %d: install the version the leader runs", batch.GetVersion(), batchVersion)
	}
	if len(batch.GetCommands()) == 0 {
		return nil, nil // a barrier
	}
	defer catch(&err)
	if mutate.On(mutate.SnapshotWithoutLast) {
		f.keepBefore()
	}
	results = f.machine.Apply(entry.Index, entry.Term, batch.GetCommands())
	if len(results) != len(batch.GetCommands()) {
		return nil, fmt.Errorf("%d results for %d commands", len(results), len(batch.GetCommands()))
	}
	return results, nil
}

func catch(err *error) {
	switch p := recover().(type) {
	case nil:
	case error:
		*err = p
	default:
		*err = fmt.Errorf("panic: %v", p)
	}
}

// Snapshot pins the state; writing it out is Persist's work, on another
// goroutine.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	state, err := f.machine.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("cluster: pin a snapshot: %w", err)
	}
	if mutate.On(mutate.SnapshotWithoutLast) {
		state = f.before.Or(state)
	}
	index, term := f.progress.now()
	return &fsmSnapshot{header: SnapshotHeader{Index: index, Term: term}, state: state}, nil
}

// Restore replaces the machine's state by a snapshot.
func (f *fsm) Restore(from io.ReadCloser) (err error) {
	defer func() { err = errors.Join(err, from.Close()) }()
	defer catch(&err)
	header, err := ReadSnapshotHeader(from)
	if err != nil {
		return err
	}
	if at, _ := f.progress.now(); header.Index < at {
		return fmt.Errorf("%w: it is of index %d, this member has applied %d", errOldSnapshot, header.Index, at)
	}
	if err := f.machine.Restore(from); err != nil {
		return fmt.Errorf("cluster: restore the snapshot at index %d: %w", header.Index, err)
	}
	if err := f.continueLog(); err != nil {
		// The machine is further than the library then knows.
		f.c.halt(err)
	}
	f.bytes.Store(0)
	f.entries.Store(0)
	f.progress.advance(header.Index, header.Term)
	return nil
}

// continueLog makes the log one that continues the snapshot which was installed. The
// library waits for Restore meanwhile, and no snapshot is newer. At a start there is
// nothing to do: the log was looked at before.
func (f *fsm) continueLog() error {
	list, err := f.c.snaps.List()
	if err != nil {
		return fmt.Errorf("cluster: list snapshots: %w", err)
	}
	if len(list) == 0 {
		return errors.New("cluster: no snapshot is known after one was restored")
	}
	return f.c.continued.installed(list[0])
}

type fsmSnapshot struct {
	header SnapshotHeader
	state  io.WriterTo
}

// Persist writes header and state. The sink is cancelled by its caller on error.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.header.write(sink); err != nil {
		return err
	}
	if _, err := s.state.WriteTo(sink); err != nil {
		return fmt.Errorf("cluster: write the snapshot at index %d: %w", s.header.Index, err)
	}
	return nil
}

// Release lets go of the pinned state; the garbage collector does the rest.
func (s *fsmSnapshot) Release() {}

// SnapshotHeader stands before the machine's bytes in a snapshot:
//
//	0        8         16       24
//	+--------+---------+--------+------------------
//	| BALSA\x00\x00\x01 | index | term  | machine's bytes...
//	+--------+---------+--------+------------------
//
// Index is the last entry the machine had applied. The library's own index may
// be a few no-ops further.
type SnapshotHeader struct{ Index, Term uint64 }

const (
	snapshotMagic      = "BALSA\x00\x00\x01"
	snapshotHeaderSize = len(snapshotMagic) + 16
)

func (h SnapshotHeader) write(to io.Writer) error {
	out := append(make([]byte, 0, snapshotHeaderSize), snapshotMagic...)
	out = binary.BigEndian.AppendUint64(out, h.Index)
	out = binary.BigEndian.AppendUint64(out, h.Term)
	if _, err := to.Write(out); err != nil {
		return fmt.Errorf("cluster: write the snapshot header: %w", err)
	}
	return nil
}

// ReadSnapshotHeader reads the header and leaves the reader at the machine's
// bytes.
func ReadSnapshotHeader(from io.Reader) (SnapshotHeader, error) {
	var raw [snapshotHeaderSize]byte
	if _, err := io.ReadFull(from, raw[:]); err != nil {
		return SnapshotHeader{}, fmt.Errorf("cluster: read the snapshot header: %w", err)
	}
	magic, rest := raw[:len(snapshotMagic)], raw[len(snapshotMagic):]
	if string(magic) != snapshotMagic {
		return SnapshotHeader{}, fmt.Errorf("cluster: snapshot begins with %q, expected %q: not a snapshot of this version", magic, snapshotMagic)
	}
	return SnapshotHeader{Index: binary.BigEndian.Uint64(rest), Term: binary.BigEndian.Uint64(rest[8:])}, nil
}

// progress is how far the machine has come. The library's AppliedIndex counts
// entries that are still queued for the machine, so it cannot guard a read.
type progress struct {
	mu      sync.Mutex
	index   uint64        // guarded by mu; never falls
	term    uint64        // guarded by mu
	changed chan struct{} // guarded by mu; made when someone waits
}

func (p *progress) advance(index, term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if index < p.index {
		return
	}
	p.index, p.term = index, max(p.term, term)
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

func (p *progress) now() (index, term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index, p.term
}

// reached returns nil when index is applied, else what to wait for.
func (p *progress) reached(index uint64) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.index >= index {
		return nil
	}
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.changed
}

// WaitApplied returns when this member's machine has applied index.
func (c *Cluster) WaitApplied(ctx context.Context, index uint64) error {
	for {
		wait := c.machine.progress.reached(index)
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			at, _ := c.machine.progress.now()
			return refused(ReasonDeadline, "this member has applied %d, waiting for %d: %w", at, index, ctx.Err())
		case <-c.failed:
			return refused(ReasonFailed, "member %s has stopped: %w", c.cfg.ID, c.failureReason())
		case <-c.ctx.Done():
			return refused(ReasonStopped, "member %s is shutting down", c.cfg.ID)
		}
	}
}
