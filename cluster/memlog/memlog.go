// Package memlog is a log, stable and snapshot store in memory that behaves like
// a disk: what was not synced is lost in a crash, writes can hang, fail or find
// no room, a crash can fall between any two writes and into an append of several
// entries, and bits can flip. Tests and the simulation run on it. It keeps
// nothing beyond the process.
//
// What is damaged is found out where cluster/raftlog finds it out, and nowhere
// else: a snapshot has a checksum that is compared when it is opened; an entry of
// the log has none.
package memlog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/internal/mutate"
)

// ErrCrashed is what a disk's handles return once it has crashed.
var ErrCrashed = errors.New("memlog: the machine has crashed")

// Disk is one server's disk. The zero value is not usable; see New.
type Disk struct {
	mu      sync.Mutex
	log     map[uint64]*raft.Log  // guarded by mu; all synced
	low     uint64                // guarded by mu; 0 when empty
	high    uint64                // guarded by mu
	stable  map[string][]byte     // guarded by mu; all synced
	snaps   []*snapshot           // guarded by mu; newest first
	crashed bool                  // guarded by mu
	writes  int                   // guarded by mu; synced so far
	fault   Fault                 // guarded by mu
	hang    chan struct{}         // guarded by mu; non-nil while writes hang
	latency func() time.Duration  // guarded by mu; nil: a write takes no time
	torn    func(entries int) int // guarded by mu; see SetTorn
	watch   Watch                 // guarded by mu
	asleep  []*write              // guarded by mu; writes that are not on the disk yet
	made    int                   // guarded by mu; names snapshots
}

// Fault decides what becomes of a write. It is called with the number of writes
// synced so far and what the write is, and returns the error to fail with, or
// nil. Torn makes the write reach the disk although it reports the error, as a
// failed fsync may.
type Fault func(writes int, what string) (err error, torn bool)

// Watch is called around each write that is not refused: with done false when
// everything is ready for it, and with done true when it is on the disk and its
// writer has not heard so. What is one of the names below; entries is how many an
// append has, and 1 for all else. It may crash the disk, but touch it in no other
// way.
type Watch func(what string, entries int, done bool)

// What writes are called. That of a value begins with WriteStable, its key follows.
const (
	WriteAppend   = "append"
	WriteTruncate = "truncate"
	WriteStable   = "stable "
	WriteVote     = "vote"
	WriteSnapshot = "snapshot"
)

// write is one that is under way. An append has parts, its entries; what it has
// on the disk when the power is cut is its first parts.
type write struct {
	parts int
	do    func(parts int)
}

// New returns an empty disk.
func New() *Disk {
	return &Disk{log: make(map[uint64]*raft.Log), stable: make(map[string][]byte)}
}

// Crash cuts the power. Every handle of this disk fails from now on, a write
// that hangs is lost, and what was synced is found on the disk returned.
func (d *Disk) Crash() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.torn != nil && !d.crashed {
		for _, w := range d.asleep {
			w.do(min(max(d.torn(w.parts), 0), w.parts-1))
		}
	}
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
	if mutate.On(mutate.NoFsync) {
		after.forgetTail(unsyncedEntries)
	}
	return after
}

// SetFault installs a fault; nil heals.
func (d *Disk) SetFault(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// SetTorn decides how many entries of an append are on the disk when a crash, or
// a fault that tears it, comes before all are: torn gets how many there are. Nil:
// none in a crash, all of a torn one. An append of one entry is on the disk or
// not, as is every other write.
func (d *Disk) SetTorn(torn func(entries int) int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.torn = torn
}

// SetWatch installs a watch; nil removes it.
func (d *Disk) SetWatch(w Watch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watch = w
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
func (d *Disk) sync(what string, do func()) error {
	return d.syncParts(what, &write{parts: 1, do: func(parts int) {
		if parts == 1 {
			do()
		}
	}})
}

func (d *Disk) syncParts(what string, w *write) error {
	d.begin(w)
	d.spin()
	defer d.spin()
	d.tell(what, w.parts, false)
	if err := d.carryOut(what, w); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	d.tell(what, w.parts, true)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return fmt.Errorf("%s: %w", what, ErrCrashed)
	}
	return nil
}

func (d *Disk) begin(w *write) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asleep = append(d.asleep, w)
}

func (d *Disk) tell(what string, entries int, done bool) {
	d.mu.Lock()
	watch := d.watch
	if d.crashed {
		watch = nil
	}
	d.mu.Unlock()
	if watch != nil {
		watch(what, entries, done)
	}
}

// carryOut waits while the disk hangs and writes.
func (d *Disk) carryOut(what string, w *write) error {
	d.mu.Lock()
	for d.hang != nil {
		hang := d.hang
		d.mu.Unlock()
		<-hang
		d.mu.Lock()
	}
	defer d.mu.Unlock()
	d.asleep = slices.DeleteFunc(d.asleep, func(other *write) bool { return other == w })
	if d.crashed {
		return ErrCrashed
	}
	if d.fault != nil {
		if err, torn := d.fault(d.writes, what); err != nil {
			if torn {
				w.do(d.tornLocked(w.parts))
			}
			return err
		}
	}
	w.do(w.parts)
	d.writes++
	return nil
}

func (d *Disk) tornLocked(parts int) int {
	if d.torn == nil || parts == 1 {
		return parts
	}
	return min(max(d.torn(parts), 0), parts)
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
	return s.d.sync(WriteStable+string(key), func() { s.d.stable[string(key)] = bytes.Clone(value) })
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
	return s.d.sync(WriteVote, func() {
		s.d.stable[keyVoteTerm] = fmt.Appendf(nil, "%d", term)
		s.d.stable[keyVoteCandidate] = bytes.Clone(candidate)
	})
}
