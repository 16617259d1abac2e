//go:build linux

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
)

const (
	plantedSegment = 4096
	// deathWithin is more than raft-wal's goroutine needs to get to the commit.
	deathWithin = 10 * time.Second
)

// deadMeta is a store of raft-wal's metadata whose process dies at the second
// commit: nothing of it reaches the disk. The first made the log.
type deadMeta struct {
	metadb.BoltMetaDB
	commits int // raft-wal commits under its lock
	dead    chan struct{}
}

func (m *deadMeta) CommitState(state types.PersistentState) error {
	m.commits++
	switch m.commits {
	case 1:
		return m.BoltMetaDB.CommitState(state)
	case 2:
		defer close(m.dead)
		return errors.Join(errDead, m.BoltMetaDB.Close())
	}
	return errDead
}

var errDead = errors.New("the process was killed")

// sealedKill kills raft-wal at the one point that random kills rarely hit: an append
// has filled a segment and was acknowledged, the next segment is not yet noted in
// the metadata. It returns how the log refuses the next append; nil: it goes on.
func sealedKill(dir string) (refused, err error) {
	if err := makeSealed(dir); err != nil {
		return nil, err
	}
	again, err := open(walLog, dir, plantedSegment)
	if err != nil {
		return err, nil
	}
	if last := again.next - 1; last != wideEntries {
		return fmt.Errorf("the log ends at %d, acknowledged was %d", last, wideEntries), again.Close()
	}
	return again.StoreLogs([]*raft.Log{{Index: again.next, Term: term}}), again.Close()
}

func makeSealed(dir string) error {
	meta := &deadMeta{dead: make(chan struct{})}
	// It is never closed: its process is dead.
	store, err := wal.Open(dir, wal.WithLogger(hclog.NewNullLogger()), wal.WithSegmentSize(plantedSegment), wal.WithMetaStore(meta))
	if err != nil {
		return err
	}
	one := &side{kind: walLog, LogStore: store, next: 1}
	if err := one.fill(wideEntries, wideEntries); err != nil {
		return err
	}
	select {
	case <-meta.dead:
		return nil
	case <-time.After(deathWithin):
		return errors.New("raft-wal did not begin another segment")
	}
}
