//go:build linux

package raftlog_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/cluster"
	"github.com/balsa-run/balsa/cluster/logtest"
	"github.com/balsa-run/balsa/cluster/raftlog"
)

func open(t *testing.T, options raftlog.Options) *raftlog.Store {
	t.Helper()
	options.Logger = slog.New(slog.DiscardHandler)
	store, err := raftlog.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func parts(s *raftlog.Store) logtest.Disk {
	return logtest.Disk{Log: s.Log(), Stable: s.Stable(), Snapshots: s.Snapshots()}
}

func TestKeepsWhatItWasGiven(t *testing.T) {
	logtest.Suite(t, func(t *testing.T) (logtest.Disk, func() logtest.Disk) {
		options := raftlog.Options{Dir: t.TempDir(), ReserveBytes: 1 << 20}
		store := open(t, options)
		t.Cleanup(func() { closeStore(t, store) })
		return parts(store), func() logtest.Disk {
			closeStore(t, store)
			store = open(t, options)
			return parts(store)
		}
	})
}

func closeStore(t *testing.T, s *raftlog.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestAHalfMadeFileIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "log.db.new"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := open(t, raftlog.Options{Dir: dir, ReserveBytes: -1})
	defer closeStore(t, store)
	if err := store.Log().StoreLog(&raft.Log{Index: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestOneProcessHoldsTheDisk(t *testing.T) {
	dir := t.TempDir()
	store := open(t, raftlog.Options{Dir: dir, ReserveBytes: -1})
	defer closeStore(t, store)
	if second, err := raftlog.Open(raftlog.Options{Dir: dir, ReserveBytes: -1, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		closeStore(t, second)
		t.Error("a second opener got the same disk")
	}
}

func TestReadOnlyReadsAndWritesNothing(t *testing.T) {
	dir := t.TempDir()
	store := open(t, raftlog.Options{Dir: dir, ReserveBytes: -1})
	if err := store.Log().StoreLog(&raft.Log{Index: 1, Term: 3}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, store)
	tool := open(t, raftlog.Options{Dir: dir, ReadOnly: true})
	defer closeStore(t, tool)
	var entry raft.Log
	if err := tool.Log().GetLog(1, &entry); err != nil || entry.Term != 3 {
		t.Errorf("entry %+v, error %v", entry, err)
	}
	if err := tool.Log().StoreLog(&raft.Log{Index: 2}); err == nil {
		t.Error("a read-only log took an entry")
	}
}

// TestFullDisk fills a small file system: the append says ErrDiskFull, what was
// acknowledged is there, and the reserve lets the log be opened again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatalf("this test mounts a small file system and needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	options := raftlog.Options{Dir: dir, ReserveBytes: 4 << 20}
	store := open(t, options)
	acknowledged, err := appendUntilFull(store.Log())
	if !errors.Is(err, cluster.ErrDiskFull) {
		t.Fatalf("the append failed with %v, expected ErrDiskFull", err)
	}
	if free, err := store.FreeSpace(); err != nil || free > 8<<20 {
		t.Errorf("%d bytes free on a full disk, error %v", free, err)
	}
	closeStore(t, store)
	store = open(t, options)
	defer closeStore(t, store)
	if last, err := store.Log().LastIndex(); err != nil || last != acknowledged {
		t.Errorf("log ends at %d (%v), acknowledged %d", last, err, acknowledged)
	}
	if err := store.ReleaseReserve(); err != nil {
		t.Fatal(err)
	}
	if err := store.Stable().SetVote(9, []byte("x")); err != nil {
		t.Errorf("no vote with the reserve released: %v", err)
	}
}

func appendUntilFull(log raft.LogStore) (acknowledged uint64, err error) {
	data := make([]byte, 256<<10)
	for {
		if err := log.StoreLog(&raft.Log{Index: acknowledged + 1, Term: 1, Data: data}); err != nil {
			return acknowledged, err
		}
		acknowledged++
	}
}
