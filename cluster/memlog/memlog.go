// Package memlog is a log, stable and snapshot store in memory that behaves like
// a disk: what was not synced is lost in a crash, writes can hang, fail or find
// no room, and a crash can fall between any two writes. Tests and the simulation
// run on it. It keeps nothing beyond the process.
package memlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ErrCrashed is what a disk's handles return once it has crashed.
var ErrCrashed = errors.New("memlog: the machine has crashed")

// Disk is one server's disk. The zero value is not usable; see New.
type Disk struct {
	mu      sync.Mutex
	log     map[uint64]*raft.Log // guarded by mu; all synced
	low     uint64               // guarded by mu; 0 when empty
	high    uint64               // guarded by mu
	stable  map[string][]byte    // guarded by mu; all synced
	snaps   []*snapshot          // guarded by mu; newest first
	crashed bool                 // guarded by mu
	writes  int                  // guarded by mu; synced so far
	fault   Fault                // guarded by mu
	hang    chan struct{}        // guarded by mu; non-nil while writes hang
	latency func() time.Duration // guarded by mu; nil: a write takes no time
	made    int                  // guarded by mu; names snapshots
}

// Fault decides what becomes of a write. It is called with the number of writes
// synced so far and what the write is, and returns the error to fail with, or
// nil. Torn makes the write reach the disk although it reports the error, as a
// failed fsync may.
type Fault func(writes int, what string) (err error, torn bool)

// New returns an empty disk.
func New() *Disk {
	return &Disk{log: make(map[uint64]*raft.Log), stable: make(map[string][]byte)}
}

// Crash cuts the power. Every handle of this disk fails from now on, a write
// that hangs is lost, and what was synced is found on the disk returned.
func (d *Disk) Crash() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashed = true
	d.releaseLocked()
	after := New()
	after.low, after.high, after.made = d.low, d.high, d.made
	for i, entry := range d.log {
		after.log[i] = entry
	}
	for k, v := range d.stable {
		after.stable[k] = v
	}
	after.snaps = slices.Clone(d.snaps)
	return after
}

// SetFault installs a fault; nil heals.
func (d *Disk) SetFault(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// Hang makes every write wait until Release or Crash.
func (d *Disk) Hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hang == nil {
		d.hang = make(chan struct{})
	}
}

// Release lets hanging writes go on.
func (d *Disk) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releaseLocked()
}

func (d *Disk) releaseLocked() {
	if d.hang != nil {
		close(d.hang)
		d.hang = nil
	}
}

// SetLatency makes every write take a while: latency is asked how long before it
// is on the disk, and once more how long until its writer hears so. A crash may
// fall into either. Nil: a write takes no time. latency may be called from any
// goroutine that writes.
func (d *Disk) SetLatency(latency func() time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latency = latency
}

// spin waits as long as the disk takes.
func (d *Disk) spin() {
	d.mu.Lock()
	latency := d.latency
	d.mu.Unlock()
	if latency != nil {
		time.Sleep(latency())
	}
}

// Writes counts what was synced.
func (d *Disk) Writes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// sync carries out one atomic, durable write.
func (d *Disk) sync(what string, write func()) error {
	d.spin()
	defer d.spin()
	d.mu.Lock()
	for d.hang != nil {
		hang := d.hang
		d.mu.Unlock()
		<-hang
		d.mu.Lock()
	}
	defer d.mu.Unlock()
	if d.crashed {
		return fmt.Errorf("%s: %w", what, ErrCrashed)
	}
	if d.fault != nil {
		if err, torn := d.fault(d.writes, what); err != nil {
			if torn {
				write()
			}
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	write()
	d.writes++
	return nil
}

// Log is the disk's log store.
func (d *Disk) Log() raft.LogStore { return logStore{d} }

type logStore struct{ d *Disk }

func (l logStore) FirstIndex() (uint64, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return l.d.low, nil
}

func (l logStore) LastIndex() (uint64, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return l.d.high, nil
}

func (l logStore) GetLog(index uint64, out *raft.Log) error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	entry, ok := l.d.log[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*out = *entry
	return nil
}

func (l logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l logStore) StoreLogs(entries []*raft.Log) error {
	return l.d.sync("append", func() {
		for _, entry := range entries {
			kept := *entry
			kept.Data = bytes.Clone(entry.Data)
			l.d.log[entry.Index] = &kept
			if l.d.low == 0 {
				l.d.low = entry.Index
			}
			l.d.high = max(l.d.high, entry.Index)
		}
	})
}

func (l logStore) DeleteRange(low, high uint64) error {
	return l.d.sync("truncate", func() {
		for i := low; i <= high; i++ {
			delete(l.d.log, i)
		}
		if low <= l.d.low {
			l.d.low = high + 1
		}
		if high >= l.d.high {
			l.d.high = low - 1
		}
		if l.d.low > l.d.high {
			l.d.low, l.d.high = 0, 0
		}
	})
}

// Stable is the disk's stable store.
func (d *Disk) Stable() Stable { return Stable{d} }

// Stable implements cluster.StableStore.
type Stable struct{ d *Disk }

const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
)

// Set stores a value durably.
func (s Stable) Set(key, value []byte) error {
	return s.d.sync("stable "+string(key), func() { s.d.stable[string(key)] = bytes.Clone(value) })
}

// Get returns a value, or nothing.
func (s Stable) Get(key []byte) ([]byte, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	return s.d.stable[string(key)], nil
}

// SetUint64 stores a number durably.
func (s Stable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, fmt.Appendf(nil, "%d", value))
}

// GetUint64 returns a number, or 0.
func (s Stable) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil || len(value) == 0 {
		return 0, err
	}
	var n uint64
	if _, err := fmt.Sscanf(string(value), "%d", &n); err != nil {
		return 0, fmt.Errorf("memlog: %s holds %q, expected a number: %w", key, value, err)
	}
	return n, nil
}

// SetVote stores both halves of a vote in one write.
func (s Stable) SetVote(term uint64, candidate []byte) error {
	return s.d.sync("vote", func() {
		s.d.stable[keyVoteTerm] = fmt.Appendf(nil, "%d", term)
		s.d.stable[keyVoteCandidate] = bytes.Clone(candidate)
	})
}

// Snapshots is the disk's snapshot store. It keeps the newest two.
func (d *Disk) Snapshots() raft.SnapshotStore { return snapshots{d} }

const snapshotsKept = 2

type snapshots struct{ d *Disk }

type snapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

func (s snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.made++
	return &sink{d: s.d, snap: &snapshot{meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, s.d.made), Index: index, Term: term,
		Configuration: configuration.Clone(), ConfigurationIndex: configurationIndex,
	}}}, nil
}

func (s snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	var out []*raft.SnapshotMeta
	for _, snap := range s.d.snaps {
		meta := snap.meta
		out = append(out, &meta)
	}
	return out, nil
}

func (s snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, snap := range s.d.snaps {
		if snap.meta.ID == id {
			meta := snap.meta
			return &meta, io.NopCloser(bytes.NewReader(snap.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("memlog: no snapshot %s", id)
}

// sink is a snapshot being written. It is on the disk after Close.
type sink struct {
	d      *Disk
	snap   *snapshot
	closed bool
}

func (s *sink) ID() string { return s.snap.meta.ID }

func (s *sink) Write(p []byte) (int, error) {
	s.snap.data = append(s.snap.data, p...)
	return len(p), nil
}

func (s *sink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.snap.meta.Size = int64(len(s.snap.data))
	return s.d.sync("snapshot", func() {
		s.d.snaps = slices.Insert(s.d.snaps, 0, s.snap)
		slices.SortStableFunc(s.d.snaps, func(a, b *snapshot) int { return compare(b.meta, a.meta) })
		s.d.snaps = s.d.snaps[:min(len(s.d.snaps), snapshotsKept)]
	})
}

func compare(a, b raft.SnapshotMeta) int {
	switch {
	case a.Term != b.Term:
		return int(int64(a.Term) - int64(b.Term))
	default:
		return int(int64(a.Index) - int64(b.Index))
	}
}

func (s *sink) Cancel() error {
	s.closed = true
	return nil
}
