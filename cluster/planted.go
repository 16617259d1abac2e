package cluster

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/balsa-run/balsa/internal/mutate"
)

// What planted bugs (internal/mutate) need beyond their branch. Without the build
// tag "mutate" nothing calls it.

// impatient takes a follower that does not answer soon for one that has stored
// the entries.
func (g *gate) impatient(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	own := new(raft.AppendEntriesResponse)
	answered, err := mutate.Impatient(20*time.Millisecond, func() error { return g.main.AppendEntries(id, target, args, own) })
	if answered {
		*resp = *own
		return err
	}
	last := args.PrevLogEntry
	if n := len(args.Entries); n > 0 {
		last = args.Entries[n-1].Index
	}
	*resp = raft.AppendEntriesResponse{RPCHeader: args.RPCHeader, Term: args.Term, LastLog: last, Success: true}
	return nil
}

// keepBefore keeps the machine as it is before an entry.
func (f *fsm) keepBefore() {
	if state, err := f.machine.Snapshot(); err == nil {
		f.before.Keep(state)
	}
}
