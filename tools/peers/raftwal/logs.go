//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/balsa-run/balsa/cluster/raftlog"
)

// The two logs.
const (
	boltdb = "boltdb"
	walLog = "wal"
)

// term is that of every entry.
const term = 3

// side is one of the two logs, open.
type side struct {
	kind string
	raft.LogStore
	io.Closer
	// next is the index of the next entry.
	next uint64
}

// open opens or creates the log; segment is raft-wal's size of a segment, 0: its
// default.
func open(kind, dir string, segment int) (*side, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &side{kind: kind}
	switch kind {
	case boltdb:
		store, err := raftlog.Open(raftlog.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), ReserveBytes: -1})
		if err != nil {
			return nil, err
		}
		s.LogStore, s.Closer = store.Log(), store
	case walLog:
		store, err := wal.Open(dir, wal.WithLogger(hclog.NewNullLogger()), wal.WithSegmentSize(segment))
		if err != nil {
			return nil, err
		}
		s.LogStore, s.Closer = store, store
	default:
		return nil, fmt.Errorf("log %s: want %s or %s", kind, boltdb, walLog)
	}
	last, err := s.LastIndex()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.next = last + 1
	return s, nil
}

// both opens new logs of both kinds in folders of dir, and closes them after use.
func both(dir string, use func([]*side) error) (err error) {
	var sides []*side
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, kind := range []string{boltdb, walLog} {
		s, err := open(kind, filepath.Join(dir, kind), 0)
		if err != nil {
			return err
		}
		sides = append(sides, s)
	}
	return use(sides)
}

// inTurns lets another one begin in each round.
func inTurns[T any](round int, all []T, do func(T) error) error {
	for i := range all {
		if err := do(all[(round+i)%len(all)]); err != nil {
			return err
		}
	}
	return nil
}

// batch makes the next entries.
func (s *side) batch(entries int, data func(index uint64) []byte) []*raft.Log {
	now := time.Now()
	logs := make([]*raft.Log, entries)
	for i := range logs {
		logs[i] = &raft.Log{Index: s.next, Term: term, Type: raft.LogCommand, Data: data(s.next), AppendedAt: now}
		s.next++
	}
	return logs
}

// fill appends so many entries of 300 bytes, as many at once as given.
func (s *side) fill(entries, at int) error {
	data := constant(entryBytes)
	for entries > 0 {
		n := min(at, entries)
		if err := s.StoreLogs(s.batch(n, data)); err != nil {
			return fmt.Errorf("%s: fill: %w", s.kind, err)
		}
		entries -= n
	}
	return nil
}

// trim deletes all but the newest entries.
func (s *side) trim(keep int) error {
	first, err := s.FirstIndex()
	if err != nil || s.next < first+uint64(keep)+1 {
		return err
	}
	return s.DeleteRange(first, s.next-1-uint64(keep))
}

// constant is the same noise for every entry.
func constant(size int) func(uint64) []byte {
	data := noise(size)
	return func(uint64) []byte { return data }
}
