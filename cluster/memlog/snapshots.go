package memlog

import (
	"bytes"
	"fmt"
	"hash/crc64"
	"io"
	"slices"

	"github.com/hashicorp/raft"
)

// Snapshots is the disk's snapshot store. It keeps the newest two.
func (d *Disk) Snapshots() raft.SnapshotStore { return snapshots{d} }

const snapshotsKept = 2

type snapshots struct{ d *Disk }

type snapshot struct {
	meta raft.SnapshotMeta
	data []byte
	sum  uint64 // of data, when it was written
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
			if got := checksum(snap.data); got != snap.sum {
				return nil, nil, fmt.Errorf("memlog: snapshot %s has the checksum %016x, written was %016x", id, got, snap.sum)
			}
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
	s.snap.meta.Size, s.snap.sum = int64(len(s.snap.data)), checksum(s.snap.data)
	return s.d.sync(WriteSnapshot, func() {
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

func checksum(data []byte) uint64 { return crc64.Checksum(data, crc64.MakeTable(crc64.ECMA)) }

// FlipSnapshot turns one bit of the newest snapshot, and returns its name, or ""
// when there is none. Whoever opens it is told.
func (d *Disk) FlipSnapshot(chance func(n int) int) (id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.snaps) == 0 || len(d.snaps[0].data) == 0 {
		return ""
	}
	damaged := *d.snaps[0]
	damaged.data = flipped(damaged.data, chance)
	d.snaps = slices.Clone(d.snaps)
	d.snaps[0] = &damaged
	return damaged.meta.ID
}
