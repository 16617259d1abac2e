package memlog_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/cluster/logtest"
	"github.com/balsa-run/balsa/cluster/memlog"
)

func TestBehavesLikeADisk(t *testing.T) {
	logtest.Suite(t, func(t *testing.T) (logtest.Disk, func() logtest.Disk) {
		disk := memlog.New()
		parts := func() logtest.Disk {
			return logtest.Disk{Log: disk.Log(), Stable: disk.Stable(), Snapshots: disk.Snapshots()}
		}
		return parts(), func() logtest.Disk { disk = disk.Crash(); return parts() }
	})
}

func TestAHangingWriteIsLostInACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := memlog.New()
		disk.Hang()
		done := make(chan error, 1)
		go func() { done <- disk.Log().StoreLog(&raft.Log{Index: 1}) }()
		time.Sleep(time.Hour)
		select {
		case err := <-done:
			t.Fatalf("the write came back: %v", err)
		default:
		}
		after := disk.Crash()
		if err := <-done; !errors.Is(err, memlog.ErrCrashed) {
			t.Errorf("the write ended with %v", err)
		}
		if last, _ := after.Log().LastIndex(); last != 0 {
			t.Errorf("the lost write is on the disk at %d", last)
		}
	})
}

func TestAFailedSyncMayHaveWritten(t *testing.T) {
	disk := memlog.New()
	broken := errors.New("i/o error")
	disk.SetFault(func(int, string) (error, bool) { return broken, true })
	if err := disk.Log().StoreLog(&raft.Log{Index: 1}); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if last, _ := disk.Crash().Log().LastIndex(); last != 1 {
		t.Errorf("last index %d: a torn write reaches the disk", last)
	}
}

func entries(first, n uint64) (out []*raft.Log) {
	for i := range n {
		out = append(out, &raft.Log{Index: first + i, Data: fmt.Append(nil, "entry ", first+i)})
	}
	return out
}

// An append of several entries is cut after some of them; what was there before
// is not touched, nor is any other kind of write.
func TestATornAppend(t *testing.T) {
	for _, test := range []struct {
		name string
		torn func(int) int
		n    uint64
		last uint64
	}{
		{"no tearing", nil, 5, 2},
		{"a prefix", func(n int) int { return n - 2 }, 5, 5},
		{"never all in a crash", func(n int) int { return n + 1 }, 5, 6},
		{"nor less than nothing", func(int) int { return -1 }, 5, 2},
		{"one entry is whole", func(int) int { return 1 }, 1, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := memlog.New()
				if err := disk.Log().StoreLogs(entries(1, 2)); err != nil {
					t.Fatal(err)
				}
				disk.SetTorn(test.torn)
				disk.Hang()
				done := make(chan error, 2)
				go func() { done <- disk.Log().StoreLogs(entries(3, test.n)) }()
				go func() { done <- disk.Stable().SetVote(7, []byte("s1")) }()
				synctest.Wait()
				after := disk.Crash()
				for range 2 {
					if err := <-done; !errors.Is(err, memlog.ErrCrashed) {
						t.Errorf("the write ended with %v", err)
					}
				}
				if last, _ := after.Log().LastIndex(); last != test.last {
					t.Errorf("last index %d, expected %d", last, test.last)
				}
				if term, _ := after.Stable().GetUint64([]byte("LastVoteTerm")); term != 0 {
					t.Errorf("a vote of term %d is half there", term)
				}
				if again, _ := disk.Crash().Log().LastIndex(); again != test.last {
					t.Errorf("a second crash has written: %d", again)
				}
			})
		})
	}
}

func TestATornAppendThatFails(t *testing.T) {
	disk, broken := memlog.New(), errors.New("i/o error")
	disk.SetTorn(func(n int) int { return n / 2 })
	disk.SetFault(func(int, string) (error, bool) { return broken, true })
	if err := disk.Log().StoreLogs(entries(1, 4)); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if last, _ := disk.Crash().Log().LastIndex(); last != 2 {
		t.Errorf("last index %d, expected 2", last)
	}
}

// A watch sees each write before and after it, and can cut the power at either.
func TestCrashAtAWrite(t *testing.T) {
	for _, after := range []bool{false, true} {
		disk := memlog.New()
		var next *memlog.Disk
		var seen []string
		disk.SetWatch(func(what string, _ int, done bool) {
			seen = append(seen, fmt.Sprint(what, " ", done))
			if what == "append" && done == after {
				next = disk.Crash()
			}
		})
		if err := disk.Stable().SetVote(1, nil); err != nil {
			t.Fatal(err)
		}
		if err := disk.Log().StoreLogs(entries(1, 3)); !errors.Is(err, memlog.ErrCrashed) {
			t.Errorf("the write ended with %v", err)
		}
		if last, _ := next.Log().LastIndex(); (last == 3) != after {
			t.Errorf("crash after the write: %v, last index %d", after, last)
		}
		if want := 3; len(seen) < want || seen[0] != "vote false" || seen[1] != "vote true" || seen[2] != "append false" {
			t.Errorf("saw %q", seen)
		}
		if err := disk.Log().StoreLogs(entries(1, 3)); !errors.Is(err, memlog.ErrCrashed) || len(seen) > 4 {
			t.Errorf("a disk that is gone: %v, saw %q", err, seen)
		}
	}
}

func TestBitFlips(t *testing.T) {
	disk := memlog.New()
	first := func(int) int { return 0 }
	if i, id := disk.FlipEntry(first), disk.FlipSnapshot(first); i != 0 || id != "" {
		t.Errorf("an empty disk has entry %d and snapshot %q", i, id)
	}
	if err := disk.Log().StoreLogs(entries(4, 3)); err != nil {
		t.Fatal(err)
	}
	if i := disk.FlipEntry(first); i != 4 {
		t.Errorf("entry %d", i)
	}
	var got raft.Log
	if err := disk.Log().GetLog(4, &got); err != nil || string(got.Data) != "dntry 4" {
		t.Errorf("entry 4 is %q, %v", got.Data, err)
	}
	for _, index := range []uint64{2, 3} {
		sink, err := disk.Snapshots().Create(1, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = sink.Write([]byte("state"))
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
	}
	id := disk.FlipSnapshot(first)
	list, _ := disk.Snapshots().List()
	if len(list) != 2 || list[0].ID != id {
		t.Fatalf("%d snapshots, flipped %q", len(list), id)
	}
	if _, _, err := disk.Snapshots().Open(id); err == nil {
		t.Error("a damaged snapshot was opened")
	}
	if _, _, err := disk.Snapshots().Open(list[1].ID); err != nil {
		t.Errorf("the other: %v", err)
	}
}

// A truncation of what is not there changes nothing.
func TestTruncatingNothing(t *testing.T) {
	log := memlog.New().Log()
	bounds := func() [2]uint64 {
		first, _ := log.FirstIndex()
		last, _ := log.LastIndex()
		return [2]uint64{first, last}
	}
	for _, r := range [][2]uint64{{0, 0}, {0, 9}, {1, 9}} {
		if err := log.DeleteRange(r[0], r[1]); err != nil || bounds() != [2]uint64{} {
			t.Errorf("entries %v of an empty log: %v, %v", r, bounds(), err)
		}
	}
	for i := uint64(5); i <= 7; i++ {
		if err := log.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range [][2]uint64{{1, 4}, {8, 9}} {
		if err := log.DeleteRange(r[0], r[1]); err != nil || bounds() != [2]uint64{5, 7} {
			t.Errorf("entries %v of 5 to 7: %v, %v", r, bounds(), err)
		}
	}
}
