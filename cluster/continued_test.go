package cluster

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/cluster/memlog"
)

// writeDeposed gives a log, after its last entry, n entries as a leader that was cut off had
// written them: of a term in which nothing was committed.
func writeDeposed(t *testing.T, log raft.LogStore, term, n uint64) {
	t.Helper()
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var entries []*raft.Log
	for i := range n {
		entries = append(entries, &raft.Log{Index: last + 1 + i, Term: term, Type: raft.LogNoop})
	}
	if err := log.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
}

func terms(t *testing.T, log raft.LogStore) string {
	t.Helper()
	first, err := log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprint(first, "-", last)
	for i := first; i <= last && last > 0; i++ {
		var entry raft.Log
		if err := log.GetLog(i, &entry); err != nil {
			out += " ?"
			continue
		}
		out += fmt.Sprint(" ", entry.Term)
	}
	return out
}

// A log as it may be when a snapshot of entry 5, term 3, is on the disk.
func TestALogContinuesTheSnapshot(t *testing.T) {
	for name, c := range map[string]struct {
		from  uint64
		terms []uint64
		want  string
	}{
		"empty":                      {1, nil, "0-0"},
		"behind":                     {2, []uint64{1, 1}, "0-0"},
		"ends with it":               {2, []uint64{1, 1, 1, 3}, "2-5 1 1 1 3"},
		"ends with another":          {2, []uint64{1, 1, 1, 1}, "0-0"},
		"goes on":                    {2, []uint64{1, 1, 1, 3, 3, 4}, "2-7 1 1 1 3 3 4"},
		"goes on with another":       {2, []uint64{1, 1, 2, 2, 2, 2}, "0-0"},
		"begins with another":        {5, []uint64{2, 2, 2}, "0-0"},
		"begins with its last":       {5, []uint64{3, 3}, "5-6 3 3"},
		"begins after it":            {6, []uint64{3, 4}, "6-7 3 4"},
		"has a hole in its place":    {3, []uint64{2, 2, 0, 3, 3}, "6-7 3 3"},
		"of a leader that was later": {4, []uint64{3, 4, 4}, "0-0"},
	} {
		t.Run(name, func(t *testing.T) {
			log := memlog.New().Log()
			for i, term := range c.terms {
				if term == 0 {
					continue
				}
				if err := log.StoreLog(&raft.Log{Index: c.from + uint64(i), Term: term}); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := follow(log, &raft.SnapshotMeta{Index: 5, Term: 3}); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, terms(t, log)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// cutLog fails the truncations after some.
type cutLog struct {
	raft.LogStore
	left int
}

var errCut = errors.New("killed")

func (l *cutLog) DeleteRange(low, high uint64) error {
	if l.left--; l.left < 0 {
		return errCut
	}
	return l.LogStore.DeleteRange(low, high)
}

// Killed between two truncations, a member finds the difference again.
func TestDiscardingIsTakenUpAgain(t *testing.T) {
	log, snapshot := memlog.New().Log(), &raft.SnapshotMeta{Index: 5, Term: 3}
	for i := uint64(2); i < 9; i++ {
		if err := log.StoreLog(&raft.Log{Index: i, Term: 2}); err != nil {
			t.Fatal(err)
		}
	}
	if err := follow(&cutLog{log, 1}, snapshot); !errors.Is(err, errCut) {
		t.Fatalf("%v, want it cut", err)
	}
	if got, want := terms(t, log), "2-5 2 2 2 2"; got != want {
		t.Fatalf("left %s, want %s", got, want)
	}
	if err := follow(log, snapshot); err != nil {
		t.Fatal(err)
	}
	if got, want := terms(t, log), "0-0"; got != want {
		t.Errorf("left %s, want %s", got, want)
	}
}

// A member with many entries of a leader that was deposed is sent a snapshot that ends
// among them, and goes on from there: it takes the entries after the snapshot, votes,
// and does so after a restart as well.
func TestASnapshotAmongEntriesOfADeposedLeader(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { snapshotAmongDeposed(t, restart) })
		})
	}
}

func snapshotAmongDeposed(t *testing.T, restart bool) {
	w := newWorld(t, func(c *Config) {
		c.Limits.SnapshotEntries, c.Limits.TrailingEntries, c.Limits.TrailingBytes = 100, 10, 1
	})
	defer w.stop()
	w.start("a", "b", "c")
	leader, behind := w.leader(), w.follower()
	leader.put("k", "0")
	term, disk := leader.raft.Load().CurrentTerm(), behind.disk
	behind.kill()
	writeDeposed(t, disk.Log(), term, 1000)
	last, _ := disk.Log().LastIndex()
	leader.kill()
	back := w.open(leader.id, leader.disk)
	leader = w.leader()
	for i := range 300 {
		leader.put("k", fmt.Sprint(i))
	}
	w.until("the leader has shortened its log", func() bool {
		first, _ := leader.disk.Log().FirstIndex()
		return first > 200
	})
	behind = w.open(behind.id, disk)
	w.until("a snapshot is installed", func() bool { return behind.machine.restores.Load() > 0 })
	if restart {
		behind.kill()
		behind = w.open(behind.id, disk)
	}
	leader = w.leader()
	leader.put("k", "after")
	if got, _ := leader.disk.Log().LastIndex(); got >= last {
		t.Fatalf("the leader has %d entries, want fewer than %d, or nothing is tried", got, last)
	}
	if got := behind.read("k"); got != "after" {
		t.Errorf("it read %q", got)
	}
	// The two of them can do without the third.
	for _, other := range []*node{w.node(back.id), w.leader()} {
		if other != nil && other.id != behind.id && len(w.nodes) == 3 {
			other.kill()
		}
	}
	w.leader().put("k", "two")
	if got := behind.read("k"); got != "two" {
		t.Errorf("with two members it read %q", got)
	}
	log := behind.disk.Log()
	first, _ := log.FirstIndex()
	end, _ := log.LastIndex()
	for i := first; i <= end; i++ {
		var entry raft.Log
		if err := log.GetLog(i, &entry); err != nil || entry.Term <= term {
			t.Fatalf("entry %d of %d to %d: term %d, %v; all of term %d and before were in the snapshot", i, first, end, entry.Term, err, term)
		}
	}
}
