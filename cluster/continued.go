package cluster

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// follow makes a log one that continues a snapshot: a log that ends before the
// snapshot's last entry, or has another entry in that place, is discarded. Raft asks for
// that when a snapshot is installed (Ongaro and Ousterhout, "In Search of an Understandable
// Consensus Algorithm", figure 13, steps 6 and 7); the library leaves it out. What it
// leaves would be sent to others, as entries that are committed, once this member
// leads, or would keep any entry after the snapshot out for ever.
//
// What goes is not needed: a snapshot is of what a majority has, and who has another
// entry in its last place is not of that majority. The entry in that place goes last,
// so that whoever is killed meanwhile finds the difference again.
func follow(log raft.LogStore, snapshot *raft.SnapshotMeta) error {
	first, err := log.FirstIndex()
	if err != nil {
		return fmt.Errorf("cluster: first index of the log: %w", err)
	}
	last, err := log.LastIndex()
	if err != nil {
		return fmt.Errorf("cluster: last index of the log: %w", err)
	}
	if last == 0 || first > snapshot.Index {
		return nil
	}
	if last >= snapshot.Index {
		var entry raft.Log
		err := log.GetLog(snapshot.Index, &entry)
		switch {
		case errors.Is(err, raft.ErrLogNotFound): // a hole, of a version before this; what is behind it continues
		case err != nil:
			return fmt.Errorf("cluster: read log entry %d, the last of a snapshot: %w", snapshot.Index, err)
		case entry.Term == snapshot.Term:
			return nil
		case last > snapshot.Index:
			if err := log.DeleteRange(snapshot.Index+1, last); err != nil {
				return fmt.Errorf("cluster: discard what contradicts the snapshot at %d: %w", snapshot.Index, err)
			}
		}
	}
	if err := log.DeleteRange(first, min(last, snapshot.Index)); err != nil {
		return fmt.Errorf("cluster: discard what is in the snapshot at %d: %w", snapshot.Index, err)
	}
	return nil
}

// continuedLog is the log as the library sees it: while the library runs it continues
// each snapshot that is installed.
//
// The library goes on believing in the last entry that it knew. As long as no entry has
// come after a discarded one, what it may ask for is told so that it goes on by itself:
// the snapshot's last entry has the snapshot's term, those behind it are of no term, so
// that the leader's take their place.
type continuedLog struct {
	raft.LogStore // with the library's cache
	forgotten     atomic.Pointer[forgotten]
}

// forgotten are entries that the library still believes in: those after a snapshot's
// last entry, up to last.
type forgotten struct{ index, term, last uint64 }

var _ raft.MonotonicLogStore = (*continuedLog)(nil)

// installed is called while the library waits for the snapshot to be restored.
func (l *continuedLog) installed(snapshot *raft.SnapshotMeta) error {
	last, err := l.LastIndex()
	if err != nil {
		return fmt.Errorf("cluster: last index of the log: %w", err)
	}
	if f := l.forgotten.Load(); f != nil {
		last = max(last, f.last)
	}
	if err := follow(l.LogStore, snapshot); err != nil {
		return err
	}
	kept, err := l.LastIndex()
	if err != nil {
		return fmt.Errorf("cluster: last index of the log: %w", err)
	}
	l.forgotten.Store(nil)
	if kept == 0 && last >= snapshot.Index {
		l.forgotten.Store(&forgotten{index: snapshot.Index, term: snapshot.Term, last: last})
	}
	return nil
}

// IsMonotonic says whether the log must have no holes.
func (l *continuedLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// GetLog also knows what is forgotten.
func (l *continuedLog) GetLog(index uint64, entry *raft.Log) error {
	err := l.LogStore.GetLog(index, entry)
	f := l.forgotten.Load()
	if f == nil || !errors.Is(err, raft.ErrLogNotFound) || index < f.index || index > f.last {
		return err
	}
	*entry = raft.Log{Index: index, Type: raft.LogNoop}
	if index == f.index {
		entry.Term = f.term
	}
	return nil
}

// DeleteRange has nothing to do when the log is empty: what the library asks for then
// is forgotten, or begins at entry 0, which is none.
func (l *continuedLog) DeleteRange(low, high uint64) error {
	last, err := l.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	return l.LogStore.DeleteRange(low, high)
}

// StoreLog is StoreLogs of one.
func (l *continuedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs makes the library's last entry one that there is.
func (l *continuedLog) StoreLogs(entries []*raft.Log) error {
	if err := l.LogStore.StoreLogs(entries); err != nil {
		return err
	}
	l.forgotten.Store(nil)
	return nil
}
