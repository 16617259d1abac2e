package cluster

import (
	"errors"
	"io"

	"github.com/hashicorp/raft"
)

// errOldSnapshot is of a snapshot that would set the machine back.
var errOldSnapshot = errors.New("cluster: not restoring a snapshot from the past")

// oldSnapshot is a call that brings a snapshot of nothing that is new here; nil for
// every other call. The library installs any snapshot of its term or a newer one, also
// one that is older than what it has applied. Then the machine is set back while
// readers go on to trust its progress, and when the entries in between were compacted
// the library panics. Such a snapshot comes when a call that timed out at the leader
// arrives after all, and when a server has taken over the address of one that was
// removed: the library makes a last attempt to bring the removed one up to date, and
// reaches its successor.
func (c *Cluster) oldSnapshot(command any) *raft.InstallSnapshotRequest {
	install, is := command.(*raft.InstallSnapshotRequest)
	r := c.raft.Load()
	if !is || r == nil || install.Term < r.CurrentTerm() {
		return nil
	}
	if applied, _ := c.machine.progress.now(); install.LastLogIndex > max(r.CommitIndex(), applied) {
		return nil
	}
	return install
}

// alreadyInstalled answers as if the snapshot had been installed: what is committed is
// the same on each member that has it (Ongaro and Ousterhout, "In Search of an
// Understandable Consensus Algorithm", figure 13, step 6). The bytes of it have to be
// read, or the next call on the connection would begin among them; they come at the
// sender's pace, so nobody else may have to wait for that.
func alreadyInstalled(rpc raft.RPC, install *raft.InstallSnapshotRequest) {
	_, err := io.Copy(io.Discard, rpc.Reader)
	rpc.Respond(&raft.InstallSnapshotResponse{Term: install.Term, Success: err == nil}, err)
}
