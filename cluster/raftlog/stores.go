//go:build linux

package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/balsa-run/balsa/cluster"
)

// logStore is raft-boltdb with our errors and small truncations.
type logStore struct{ *raftboltdb.BoltStore }

func (l logStore) StoreLog(entry *raft.Log) error { return noRoom(l.BoltStore.StoreLog(entry)) }

func (l logStore) StoreLogs(entries []*raft.Log) error {
	return noRoom(l.BoltStore.StoreLogs(entries))
}

// DeleteRange works in chunks, from the side that keeps the log whole should it
// stop half way: a prefix from its beginning, a suffix from its end.
func (l logStore) DeleteRange(low, high uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	if first == 0 {
		return nil
	}
	low = max(low, first)
	if low == first {
		return l.deletePrefix(low, high)
	}
	return l.deleteSuffix(low, high)
}

func (l logStore) deletePrefix(low, high uint64) error {
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	high = min(high, last)
	for ; low <= high; low += deleteChunk {
		if err := l.BoltStore.DeleteRange(low, min(low+deleteChunk-1, high)); err != nil {
			return noRoom(err)
		}
	}
	return nil
}

func (l logStore) deleteSuffix(low, high uint64) error {
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	for high = min(high, last); high >= low; {
		from := low
		if high-low >= deleteChunk {
			from = high - deleteChunk + 1
		}
		if err := l.BoltStore.DeleteRange(from, high); err != nil {
			return noRoom(err)
		}
		high = from - 1
	}
	return nil
}

// stableStore keeps the vote under one key: term, then candidate.
//
//	0        8
//	+--------+-----------...
//	|  term  | candidate
//	+--------+-----------...
type stableStore struct{ bolt *raftboltdb.BoltStore }

var _ cluster.StableStore = stableStore{}

const (
	keyVote          = "BalsaVote"
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
	numberBytes      = 8
)

func (s stableStore) SetVote(term uint64, candidate []byte) error {
	value := append(binary.BigEndian.AppendUint64(nil, term), candidate...)
	return s.Set([]byte(keyVote), value)
}

func (s stableStore) vote() (term uint64, candidate []byte, err error) {
	value, err := s.get(keyVote)
	if err != nil || len(value) == 0 {
		return 0, nil, err
	}
	if len(value) < numberBytes {
		return 0, nil, fmt.Errorf("raftlog: the vote has %d bytes, expected at least %d", len(value), numberBytes)
	}
	return binary.BigEndian.Uint64(value), value[numberBytes:], nil
}

func (s stableStore) Set(key, value []byte) error { return noRoom(s.bolt.Set(key, value)) }

func (s stableStore) Get(key []byte) ([]byte, error) {
	if string(key) == keyVoteCandidate {
		_, candidate, err := s.vote()
		return candidate, err
	}
	return s.get(string(key))
}

func (s stableStore) get(key string) ([]byte, error) {
	value, err := s.bolt.Get([]byte(key))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return value, err
}

func (s stableStore) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

func (s stableStore) GetUint64(key []byte) (uint64, error) {
	if string(key) == keyVoteTerm {
		term, _, err := s.vote()
		return term, err
	}
	value, err := s.get(string(key))
	if err != nil || len(value) == 0 {
		return 0, err
	}
	if len(value) != numberBytes {
		return 0, fmt.Errorf("raftlog: %s has %d bytes, expected %d", key, len(value), numberBytes)
	}
	return binary.BigEndian.Uint64(value), nil
}

// snapshots is the library's file store, which syncs files and folders, with our
// errors.
type snapshots struct{ raft.SnapshotStore }

func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	made, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, noRoom(err)
	}
	return &sink{SnapshotSink: made}, nil
}

type sink struct{ raft.SnapshotSink }

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.SnapshotSink.Write(p)
	return n, noRoom(err)
}

func (s *sink) Close() error { return noRoom(s.SnapshotSink.Close()) }
