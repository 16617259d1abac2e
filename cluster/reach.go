package cluster

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// reach knows which servers are waited for. The library doubles its pause after
// every call about entries that failed, up to ten seconds, and only its
// heartbeats' pause has a lower limit. So a failed call is kept back until the
// next heartbeat got through, or this member does not lead any more: the library
// counts one failure an outage, and tries again when there is somebody to answer.
type reach struct {
	// handOvers counts those that failed. The library's first try to hand over to a
	// server leaves a question with whoever sends it entries, and the second waits
	// for that one, refusing every write meanwhile. So a call is not held across.
	handOvers atomic.Int64

	mu    sync.Mutex
	waits map[chan bool]raft.ServerID // guarded by mu; one a held call, so about one a server
}

func newReach() *reach { return &reach{waits: make(map[chan bool]raft.ServerID)} }

// wait begins to listen to what becomes of the heartbeats to a server, at
// whatever address it is.
func (r *reach) wait(id raft.ServerID) (heard chan bool, stop func()) {
	heard = make(chan bool, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits[heard] = id
	return heard, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waits, heard)
	}
}

// waitedFor tells whether a server cannot be reached, as far as is known.
func (r *reach) waitedFor(id raft.ServerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, wanted := range r.waits {
		if wanted == id {
			return true
		}
	}
	return false
}

// note tells what became of a heartbeat. News that were not taken give way.
func (r *reach) note(id raft.ServerID, answered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for heard, wanted := range r.waits {
		if wanted != id {
			continue
		}
		select {
		case <-heard:
		default:
		}
		heard <- answered
	}
}

// holding makes a call to a server, and keeps its failure back until a heartbeat
// reaches the server. The library's heartbeats go on meanwhile, and each is a
// look whether this member still has a reason to wait.
func (g *gate) holding(id raft.ServerID, term uint64, call func() error) error {
	handOvers := g.reach.handOvers.Load()
	err := call()
	if err == nil {
		return nil
	}
	heard, stop := g.reach.wait(id)
	defer stop()
	for g.replicates(id, term) && g.reach.handOvers.Load() == handOvers {
		select {
		case answered := <-heard:
			if answered {
				return err
			}
		case <-g.c.failed:
			return err
		case <-g.c.ctx.Done():
			return err
		case <-g.closed:
			return err
		}
	}
	return err
}

// replicates tells whether this member leads in term and the other belongs to
// the cluster.
func (g *gate) replicates(id raft.ServerID, term uint64) bool {
	r := g.c.raft.Load()
	if r == nil || r.State() != raft.Leader || r.CurrentTerm() != term {
		return false
	}
	return slices.ContainsFunc(r.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return s.ID == id })
}
