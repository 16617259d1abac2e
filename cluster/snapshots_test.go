package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// sent is a snapshot as a leader sends it.
type sent struct {
	request raft.InstallSnapshotRequest
	data    []byte
}

// newest is the last snapshot of a member.
func (n *node) newest() sent {
	n.w.t.Helper()
	metas, err := n.snaps.List()
	if err != nil || len(metas) == 0 {
		n.w.t.Fatalf("%s has %d snapshots, %v", n.id, len(metas), err)
	}
	meta, from, err := n.snaps.Open(metas[0].ID)
	if err != nil {
		n.w.t.Fatal(err)
	}
	data, err := io.ReadAll(from)
	if err = errors.Join(err, from.Close()); err != nil {
		n.w.t.Fatal(err)
	}
	return sent{data: data, request: raft.InstallSnapshotRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.id), Addr: []byte(n.id)}, SnapshotVersion: meta.Version,
		Term: n.raft.Load().CurrentTerm(), Leader: []byte(n.id), LastLogIndex: meta.Index, LastLogTerm: meta.Term,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex, Size: meta.Size,
	}}
}

// A snapshot that is older than what a member has does not set it back: not its
// machine, not the library, which would panic about entries that were compacted. (The
// simulation's seed 7: a leader's last attempt to reach a server that was removed, at
// whose address its successor was.)
func TestASnapshotFromThePastIsNotInstalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.Limits.SnapshotEntries, c.Limits.TrailingEntries, c.Limits.TrailingBytes = 100, 10, 1
		})
		defer w.stop()
		w.start("a", "b", "c")
		leader, follower := w.leader(), w.follower()
		leader.put("k", "past")
		if err := leader.SnapshotNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := leader.newest()
		for i := range 300 {
			leader.put("k", fmt.Sprint(i))
		}
		w.until("the follower has shortened its log", func() bool {
			first, _ := follower.disk.Log().FirstIndex()
			return first > old.request.LastLogIndex+1
		})
		old.request.Term = leader.raft.Load().CurrentTerm()
		for range 2 { // the second on the connection of the first
			var answer raft.InstallSnapshotResponse
			err := leader.gate.InstallSnapshot(raft.ServerID("removed"), raft.ServerAddress(follower.id), &old.request, &answer, bytes.NewReader(old.data))
			if err != nil || !answer.Success || answer.Term != old.request.Term {
				t.Errorf("answered %+v, %v", answer, err)
			}
		}
		if follower.machine.restores.Load() != 0 {
			t.Errorf("it was restored %d times", follower.machine.restores.Load())
		}
		if got := follower.read("k"); got != "299" {
			t.Errorf("read %q", got)
		}
		leader.put("k", "present")
		if got := follower.read("k"); got != "present" {
			t.Errorf("afterwards read %q", got)
		}
	})
}

// Whoever comes by another way, as a snapshot that was under way while the machine
// went on, is refused at the machine.
func TestTheMachineIsNotSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.start("a")
		n := w.leader()
		n.put("k", "past")
		if err := n.SnapshotNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := n.newest()
		n.put("k", "present")
		if err := n.Cluster.machine.Restore(io.NopCloser(bytes.NewReader(old.data))); !errors.Is(err, errOldSnapshot) {
			t.Errorf("restored with %v", err)
		}
		if got := n.read("k"); got != "present" {
			t.Errorf("read %q", got)
		}
	})
}
