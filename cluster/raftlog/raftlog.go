//go:build linux

// Package raftlog is a member's disk: log and stable store in one raft-boltdb
// file, snapshots as files beside it, and a reserve of room for the last writes.
//
//	dir/log.db            entries, term and vote
//	dir/snapshots/...     the newest two
//	dir/reserve           blocks that belong to nobody, given back when all is full
//
// Every write is on disk when it returns; an error that means "no room" wraps
// cluster.ErrDiskFull. It refuses to repair: a file that cannot be read is the
// caller's news, and its answer is to join again under a new id.
package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/cluster"
)

const (
	fileName    = "log.db"
	newSuffix   = ".new"
	reserveName = "reserve"

	// DefaultReserveBytes is room for opening the file and some last writes.
	DefaultReserveBytes = 32 << 20
	// DefaultSnapshotsKept: one more than needed, in case the newest is damaged.
	DefaultSnapshotsKept = 2

	// lockTimeout bounds the wait for another process that holds the file.
	lockTimeout = 2 * time.Second
	// mapBytes is mapped from the start: to map more, bolt waits for every reader.
	mapBytes = 1 << 30
	// deleteChunk entries are deleted in one transaction, so that an append never
	// waits long for a truncation.
	deleteChunk = 512
)

// Options say where and how.
type Options struct {
	Dir    string
	Logger *slog.Logger
	// ReserveBytes: 0 takes the default, negative keeps none.
	ReserveBytes int64
	// SnapshotsKept: 0 takes the default.
	SnapshotsKept int
	// ReadOnly is for tools: nothing is created or written.
	ReadOnly bool
}

// Store is an open disk.
type Store struct {
	options Options
	bolt    *raftboltdb.BoltStore
	snaps   raft.SnapshotStore
}

// Open opens or creates the files in a folder, which only one process may hold.
func Open(options Options) (*Store, error) {
	if options.ReserveBytes == 0 {
		options.ReserveBytes = DefaultReserveBytes
	}
	if options.SnapshotsKept == 0 {
		options.SnapshotsKept = DefaultSnapshotsKept
	}
	s := &Store{options: options}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("raftlog: open %s: %w", options.Dir, noRoom(err))
	}
	return s, nil
}

func (s *Store) open() error {
	if !s.options.ReadOnly {
		if err := s.prepare(); err != nil {
			return err
		}
	}
	var err error
	if s.bolt, err = openBolt(s.path(), s.options.ReadOnly); err != nil {
		return err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(s.options.Dir, s.options.SnapshotsKept, cluster.NewRaftLogger(s.options.Logger))
	if err != nil {
		return errors.Join(err, s.bolt.Close())
	}
	s.snaps = &snapshots{SnapshotStore: snaps}
	return nil
}

// prepare makes the folder and an empty log in it. When there is no room, the
// reserve makes some.
func (s *Store) prepare() error {
	if err := os.MkdirAll(s.options.Dir, 0o700); err != nil {
		return err
	}
	err := create(s.path())
	if errors.Is(noRoom(err), cluster.ErrDiskFull) {
		if err := s.ReleaseReserve(); err != nil {
			return err
		}
		err = create(s.path())
	}
	return errors.Join(err, s.keepReserve())
}

func (s *Store) path() string { return filepath.Join(s.options.Dir, fileName) }

// create makes the log under another name first: bolt writes a new file in
// several steps, and a crash between them leaves one that it cannot open.
func create(path string) error {
	if _, err := os.Stat(path); err == nil {
		return touch(path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(path + newSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := touch(path + newSuffix); err != nil {
		return err
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// touch opens the file for writing once, which needs a little room.
func touch(path string) error {
	store, err := openBolt(path, false)
	if err != nil {
		return err
	}
	return errors.Join(store.Sync(), store.Close())
}

func openBolt(path string, readOnly bool) (*raftboltdb.BoltStore, error) {
	return raftboltdb.New(raftboltdb.Options{Path: path, MsgpackUseNewTimeFormat: true, BoltOptions: &bbolt.Options{
		Timeout: lockTimeout, ReadOnly: readOnly, InitialMmapSize: mapBytes,
		// The list of free pages is rebuilt at start instead of being written with
		// every commit.
		NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	}})
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close closes the files.
func (s *Store) Close() error { return s.bolt.Close() }

// Log is the log store.
func (s *Store) Log() raft.LogStore { return logStore{s.bolt} }

// Stable is the stable store.
func (s *Store) Stable() cluster.StableStore { return stableStore{s.bolt} }

// Snapshots is the snapshot store.
func (s *Store) Snapshots() raft.SnapshotStore { return s.snaps }

// FreeSpace is how many bytes an unprivileged writer may still write. When there
// is plenty it also restores the reserve.
func (s *Store) FreeSpace() (uint64, error) {
	free, err := s.available()
	if err == nil && free > 4*uint64(max(s.options.ReserveBytes, 0)) {
		err = s.keepReserve()
	}
	return free, err
}

func (s *Store) available() (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.options.Dir, &fs); err != nil {
		return 0, fmt.Errorf("raftlog: free space of %s: %w", s.options.Dir, err)
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}

// keepReserve allocates the reserve unless it is there or there is no room.
func (s *Store) keepReserve() error {
	free, err := s.available()
	if err != nil || s.options.ReserveBytes < 0 || free < 2*uint64(s.options.ReserveBytes) {
		return err
	}
	path := filepath.Join(s.options.Dir, reserveName)
	if info, err := os.Stat(path); err == nil && info.Size() >= s.options.ReserveBytes {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("raftlog: reserve: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, s.options.ReserveBytes)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		err = fill(f, s.options.ReserveBytes)
	}
	return errors.Join(err, f.Close())
}

// fill is for file systems that cannot allocate without writing.
func fill(f *os.File, n int64) error {
	block := make([]byte, 1<<20)
	for ; n > 0; n -= int64(len(block)) {
		if _, err := f.Write(block[:min(n, int64(len(block)))]); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseReserve gives the reserve back.
func (s *Store) ReleaseReserve() error {
	err := os.Remove(filepath.Join(s.options.Dir, reserveName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// noRoom marks errors that mean a full disk.
func noRoom(err error) error {
	if err == nil || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: %w", cluster.ErrDiskFull, err)
}
