// Package logtest is what every disk of a cluster member must do: the fake in
// memory and the real files pass the same suite. It has no opinion on speed.
package logtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/cluster"
)

// Disk is the three stores of one server.
type Disk struct {
	Log       raft.LogStore
	Stable    cluster.StableStore
	Snapshots raft.SnapshotStore
}

// Suite runs the promises. Open gives an empty disk; reopen closes it and opens
// it again.
func Suite(t *testing.T, open func(t *testing.T) (disk Disk, reopen func() Disk)) {
	t.Run("log", func(t *testing.T) { disk, reopen := open(t); logKeeps(t, disk, reopen) })
	t.Run("log against a model", func(t *testing.T) { disk, reopen := open(t); logModel(t, disk, reopen) })
	t.Run("stable", func(t *testing.T) { disk, reopen := open(t); stableKeeps(t, disk, reopen) })
	t.Run("snapshots", func(t *testing.T) { disk, reopen := open(t); snapshotsKeep(t, disk, reopen) })
}

func entry(index uint64) *raft.Log {
	return &raft.Log{Index: index, Term: 1 + index/10, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d", index)}
}

func logKeeps(t *testing.T, disk Disk, reopen func() Disk) {
	wantRange(t, disk.Log, 0, 0)
	if err := disk.Log.GetLog(1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("an entry of an empty log: %v, expected ErrLogNotFound", err)
	}
	for i := uint64(1); i <= 2000; i += 100 {
		var batch []*raft.Log
		for j := i; j < i+100; j++ {
			batch = append(batch, entry(j))
		}
		must(t, disk.Log.StoreLogs(batch))
	}
	must(t, disk.Log.DeleteRange(1, 1200))    // a prefix of several chunks
	must(t, disk.Log.DeleteRange(1301, 2000)) // a suffix
	for range 2 {
		wantRange(t, disk.Log, 1201, 1300)
		for i := uint64(1201); i <= 1300; i++ {
			wantEntry(t, disk.Log, i)
		}
		disk = reopen()
	}
}

func wantRange(t *testing.T, log raft.LogStore, first, last uint64) {
	t.Helper()
	gotFirst, err := log.FirstIndex()
	must(t, err)
	gotLast, err := log.LastIndex()
	must(t, err)
	if gotFirst != first || gotLast != last {
		t.Errorf("log holds %d to %d, expected %d to %d", gotFirst, gotLast, first, last)
	}
}

func wantEntry(t *testing.T, log raft.LogStore, index uint64) {
	t.Helper()
	var got raft.Log
	must(t, log.GetLog(index, &got))
	want := entry(index)
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) {
		t.Errorf("entry %d is %+v, expected %+v", index, got, *want)
	}
}

// logModel appends and truncates as raft does and compares with a slice.
func logModel(t *testing.T, disk Disk, reopen func() Disk) {
	random := rand.New(rand.NewPCG(1, 2))
	first, last := uint64(1), uint64(0)
	for step := range 150 {
		switch kind := random.IntN(10); {
		case kind < 6:
			var batch []*raft.Log
			for range 1 + random.IntN(30) {
				last++
				batch = append(batch, entry(last))
			}
			must(t, disk.Log.StoreLogs(batch))
		case kind < 8 && last >= first:
			to := first + random.Uint64N(last-first+1)
			must(t, disk.Log.DeleteRange(first, to))
			first = to + 1
		case kind < 9 && last >= first:
			from := first + random.Uint64N(last-first+1)
			must(t, disk.Log.DeleteRange(from, last))
			last = from - 1
		case step%5 == 0:
			disk = reopen()
		}
		if last < first {
			wantRange(t, disk.Log, 0, 0)
			continue
		}
		wantRange(t, disk.Log, first, last)
		wantEntry(t, disk.Log, first+random.Uint64N(last-first+1))
	}
}

func stableKeeps(t *testing.T, disk Disk, reopen func() Disk) {
	number, err := disk.Stable.GetUint64([]byte("CurrentTerm"))
	must(t, err)
	value, err := disk.Stable.Get([]byte("LastVoteCand"))
	must(t, err)
	if number != 0 || len(value) != 0 {
		t.Errorf("an empty disk has term %d and vote %q", number, value)
	}
	must(t, disk.Stable.SetUint64([]byte("CurrentTerm"), 1<<60))
	must(t, disk.Stable.Set([]byte("key"), []byte("value")))
	must(t, disk.Stable.SetVote(7, []byte("server-b")))
	must(t, disk.Stable.SetVote(8, []byte("server-c")))
	for range 2 {
		term, err := disk.Stable.GetUint64([]byte("CurrentTerm"))
		must(t, err)
		voteTerm, err := disk.Stable.GetUint64([]byte("LastVoteTerm"))
		must(t, err)
		candidate, err := disk.Stable.Get([]byte("LastVoteCand"))
		must(t, err)
		plain, err := disk.Stable.Get([]byte("key"))
		must(t, err)
		got := []any{term, voteTerm, string(candidate), string(plain)}
		if diff := cmp.Diff([]any{uint64(1 << 60), uint64(8), "server-c", "value"}, got); diff != "" {
			t.Errorf("stable store (-want +got):\n%s", diff)
		}
		disk = reopen()
	}
}

func snapshotsKeep(t *testing.T, disk Disk, reopen func() Disk) {
	_, transport := raft.NewInmemTransport("test")
	configuration := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "addr"}}}
	for i := uint64(1); i <= 4; i++ {
		sink, err := disk.Snapshots.Create(1, i*10, 1, configuration, 1, transport)
		must(t, err)
		_, err = fmt.Fprintf(sink, "state at %d", i*10)
		must(t, err)
		if i == 4 { // given up: must leave nothing
			must(t, sink.Cancel())
			continue
		}
		must(t, sink.Close())
	}
	for range 2 {
		list, err := disk.Snapshots.List()
		must(t, err)
		if len(list) != 2 || list[0].Index != 30 || list[1].Index != 20 {
			t.Fatalf("snapshots %+v, expected those at 30 and 20", list)
		}
		meta, from, err := disk.Snapshots.Open(list[0].ID)
		must(t, err)
		state, err := io.ReadAll(from)
		must(t, errors.Join(err, from.Close()))
		if string(state) != "state at 30" || meta.Size != int64(len(state)) {
			t.Errorf("snapshot holds %q of size %d", state, meta.Size)
		}
		if diff := cmp.Diff(configuration, meta.Configuration); diff != "" {
			t.Errorf("configuration (-want +got):\n%s", diff)
		}
		disk = reopen()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
