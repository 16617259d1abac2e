//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// killWithin is the longest life after the first acknowledgement.
	killWithin = 150 * time.Millisecond
	// killSegment makes raft-wal begin a new file every few appends.
	killSegment = 256 << 10
	// killKeeps entries are never truncated; truncations begin every killTrims
	// appends.
	killKeeps = 2000
	killTrims = 20
	ackBytes  = 8
)

// Kills is what each log held after its process was killed at random points of
// appending and truncating, again and again on the same files.
type Kills struct {
	Boltdb Survival `json:"boltdb"`
	Wal    Survival `json:"wal"`
	// Sealed is what raft-wal says to an append after a kill between the append that
	// fills a segment and the note of the next one; empty: it goes on.
	Sealed string `json:"sealed"`
}

// Survival is one log's.
type Survival struct {
	Kills int `json:"kills"`
	// Acknowledged entries in all, and how many of those that were not truncated
	// were gone, unreadable or different.
	Acknowledged uint64 `json:"acknowledged"`
	Lost         uint64 `json:"lost"`
	// Unacknowledged entries that were there nevertheless.
	Unacknowledged uint64 `json:"unacknowledged"`
	// Unusable is how often a kill left a log that could not be opened, read or
	// appended to again, and Reason why the first time. A new log took its place.
	Unusable int    `json:"unusable"`
	Reason   string `json:"reason"`
}

func takeKills(ctx context.Context, program, dir string, kills int, chance *rand.Rand) (*Kills, error) {
	var report Kills
	for kind, into := range map[string]*Survival{boltdb: &report.Boltdb, walLog: &report.Wal} {
		folder := filepath.Join(dir, kind)
		for into.Kills < kills {
			if err := into.kill(ctx, program, kind, folder, time.Duration(chance.Int64N(int64(killWithin)))); err != nil {
				return nil, fmt.Errorf("%s: %w", kind, err)
			}
		}
	}
	planted := filepath.Join(dir, "planted")
	if err := os.MkdirAll(planted, 0o700); err != nil {
		return nil, err
	}
	refused, err := sealedKill(planted)
	if refused != nil {
		report.Sealed = strings.ReplaceAll(refused.Error(), planted, "the folder")
	}
	return &report, err
}

// kill lets a process go on appending, kills it and checks what it left.
func (s *Survival) kill(ctx context.Context, program, kind, dir string, after time.Duration) error {
	from, acknowledged, err := killOne(ctx, program, kind, dir, after)
	var refused *refusal
	switch {
	case errors.As(err, &refused) && s.Kills > 0:
	case err != nil:
		return err
	default:
		s.Kills++
		s.Acknowledged += acknowledged + 1 - from
		err = s.check(kind, dir, acknowledged)
	}
	if err == nil {
		return nil
	}
	if s.Unusable++; s.Unusable == 1 {
		// Where the log was says nothing of why.
		s.Reason = strings.ReplaceAll(err.Error(), dir, "the folder")
	}
	return os.RemoveAll(dir)
}

// refusal is a process that ended by itself.
type refusal struct{ said string }

func (r *refusal) Error() string { return "the log does not go on: " + r.said }

// killOne lets a process append, and kills it some time after its first
// acknowledgement. It returns the first and the last entry that were acknowledged.
func killOne(ctx context.Context, program, kind, dir string, after time.Duration) (from, acknowledged uint64, err error) {
	child := exec.CommandContext(ctx, program, "-child", kind, "-dir", dir)
	var said bytes.Buffer
	child.Stderr = &said
	acks, err := child.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := child.Start(); err != nil {
		return 0, 0, err
	}
	if from, err = readAck(acks); err == nil {
		timer := time.AfterFunc(after, func() { _ = child.Process.Kill() })
		defer timer.Stop()
	}
	for acknowledged = from; err == nil; {
		var index uint64
		if index, err = readAck(acks); err == nil {
			acknowledged = index
		}
	}
	// Acknowledgements end with the process: by the kill, or by itself.
	var exit *exec.ExitError
	if ended := child.Wait(); !errors.As(ended, &exit) || exit.Exited() {
		return 0, 0, &refusal{said: strings.TrimPrefix(strings.TrimSpace(said.String()), "raftwal: ")}
	}
	return from, acknowledged, nil
}

func readAck(from io.Reader) (uint64, error) {
	var ack [ackBytes]byte
	_, err := io.ReadFull(from, ack[:])
	return binary.BigEndian.Uint64(ack[:]), err
}

// check reads every entry of the log, and counts what is missing of what was
// acknowledged.
func (s *Survival) check(kind, dir string, acknowledged uint64) (err error) {
	log, err := open(kind, dir, killSegment)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last := log.next - 1
	s.Unacknowledged += max(last, acknowledged) - acknowledged
	// A truncation ends at least killKeeps before what was acknowledged.
	for index := max(acknowledged, killKeeps) - killKeeps + 1; index <= acknowledged; index++ {
		if index < first || index > last || readEntry(log, index) != nil {
			s.Lost++
		}
	}
	for index := first; index <= last; index++ {
		if err := readEntry(log, index); err != nil {
			return err
		}
	}
	return nil
}

func readEntry(log raft.LogStore, index uint64) error {
	var entry raft.Log
	if err := log.GetLog(index, &entry); err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	if entry.Index != index || entry.Term != term || !bytes.Equal(entry.Data, ownData(index)) {
		return fmt.Errorf("entry %d is not what was appended", index)
	}
	return nil
}

// ownData differs from entry to entry.
func ownData(index uint64) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, index*0x9e3779b97f4a7c15), entryBytes/8+1)[:entryBytes]
}

// appendUntilKilled acknowledges the last index of each batch that is stored.
func appendUntilKilled(kind, dir string, acks io.Writer) (err error) {
	log, err := open(kind, dir, killSegment)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	truncated := make(chan error, 1)
	truncated <- nil
	for i := 0; ; i++ {
		if err := log.StoreLogs(log.batch(shapes()[i%4].Entries, ownData)); err != nil {
			return err
		}
		if _, err := acks.Write(binary.BigEndian.AppendUint64(nil, log.next-1)); err != nil {
			return err
		}
		if i%killTrims == 0 {
			if err := <-truncated; err != nil {
				return err
			}
			go truncate(log.LogStore, log.next-1, truncated)
		}
	}
}

func truncate(log raft.LogStore, last uint64, done chan<- error) {
	first, err := log.FirstIndex()
	if err == nil && last > first+killKeeps {
		err = log.DeleteRange(first, last-killKeeps)
	}
	done <- err
}
