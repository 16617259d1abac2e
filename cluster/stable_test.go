package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/cluster/memlog"
	"github.com/balsa-run/balsa/internal/clock"
)

// guardOn is a guarded stable store on a disk, without a running raft.
func guardOn(t *testing.T, disk *memlog.Disk) *guardedStable {
	t.Helper()
	c := &Cluster{cfg: Config{Metrics: noMetrics{}, Fatal: func(error) {}}, log: slog.New(slog.DiscardHandler),
		disk: newDiskWatch(clock.Real{}), failed: make(chan struct{})}
	c.stable = &guardedStable{inner: disk.Stable(), c: c, write: make(chan struct{}, 1)}
	if err := c.stable.load(); err != nil {
		t.Fatal(err)
	}
	return c.stable
}

// vote does what the library does to vote for somebody in a term.
func vote(s raft.StableStore, term uint64, candidate string) error {
	return errors.Join(
		s.SetUint64([]byte(keyCurrentTerm), term),
		s.SetUint64([]byte(keyLastVoteTerm), term),
		s.Set([]byte(keyLastVoteCand), []byte(candidate)),
	)
}

func voteOn(t *testing.T, disk *memlog.Disk) string {
	t.Helper()
	term, err := disk.Stable().GetUint64([]byte(keyLastVoteTerm))
	if err != nil {
		t.Fatal(err)
	}
	candidate, err := disk.Stable().Get([]byte(keyLastVoteCand))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s in %d", candidate, term)
}

// crashAfter lets n writes reach the disk and loses the rest.
func crashAfter(disk *memlog.Disk, n int) {
	base := disk.Writes()
	disk.SetFault(func(writes int, _ string) (error, bool) {
		if writes-base >= n {
			return memlog.ErrCrashed, false
		}
		return nil, false
	})
}

// TestVoteInTwoWrites crashes between any two writes of a vote: the disk holds
// the old vote or the new one, and never the old candidate in the new term.
func TestVoteInTwoWrites(t *testing.T) {
	torn := 0
	for n := range 4 {
		disk := memlog.New()
		guard := guardOn(t, disk)
		if err := vote(guard, 4, "c"); err != nil {
			t.Fatal(err)
		}
		crashAfter(disk, n)
		_ = vote(guard, 6, "a") // it fails where the crash is
		if got := voteOn(t, disk.Crash()); got != "c in 4" && got != "a in 6" {
			t.Errorf("after %d writes the disk says: voted for %s", n, got)
		}

		plain := memlog.New()
		if err := vote(plain.Stable(), 4, "c"); err != nil {
			t.Fatal(err)
		}
		crashAfter(plain, n)
		_ = vote(plain.Stable(), 6, "a")
		if voteOn(t, plain.Crash()) == "c in 6" {
			torn++
		}
	}
	if torn == 0 {
		t.Error("without the guard no crash tears the vote: this test proves nothing")
	}
}

// TestSecondVoteIsRefused: the library can be made to vote again in a term by a
// heartbeat that sets its term back.
func TestSecondVoteIsRefused(t *testing.T) {
	disk := memlog.New()
	guard := guardOn(t, disk)
	if err := vote(guard, 5, "b"); err != nil {
		t.Fatal(err)
	}
	if err := guard.SetUint64([]byte(keyCurrentTerm), 4); err != nil {
		t.Fatal(err)
	}
	if got := guard.highest(); got != 5 {
		t.Errorf("the term fell to %d", got)
	}
	if err := vote(guard, 5, "self"); !errors.Is(err, errVoted) {
		t.Errorf("a second vote in term 5: %v", err)
	}
	if err := vote(guard, 5, "b"); err != nil {
		t.Errorf("the same vote again: %v", err)
	}
	if err := vote(guard, 3, "c"); !errors.Is(err, errVoted) {
		t.Errorf("a vote in the past: %v", err)
	}
	again := guardOn(t, disk.Crash())
	if term, err := again.GetUint64([]byte(keyCurrentTerm)); err != nil || term != 5 {
		t.Errorf("after a restart: term %d, error %v", term, err)
	}
	if err := vote(again, 5, "self"); !errors.Is(err, errVoted) {
		t.Errorf("a second vote after a restart: %v", err)
	}
	if err := vote(again, 6, "self"); err != nil {
		t.Errorf("a vote in the next term: %v", err)
	}
}

// TestBootstrapIsOneWrite: wherever the power fails, the disk is empty or starts.
func TestBootstrapIsOneWrite(t *testing.T) {
	for n := range 3 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.stop()
			disk := memlog.New()
			crashAfter(disk, n)
			node := w.open("a", disk)
			bootErr := node.Bootstrap()
			after := disk.Crash()
			node.kill()
			again := w.open("a", after)
			if n == 0 {
				if bootErr == nil || again.Phase() != PhaseUninitialised {
					t.Errorf("nothing was written: error %v, phase %s", bootErr, again.Phase())
				}
				if err := again.Bootstrap(); err != nil {
					t.Errorf("bootstrap again: %v", err)
				}
			}
			w.leader().put("k", "1")
		})
	}
}
