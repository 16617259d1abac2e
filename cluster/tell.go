package cluster

import (
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// teller tells followers about a commit at once when one of them waits for it.
// The library tells with the next entry, or one to two Timing.Commit later,
// and to lower that for all would cost every idle cluster its calm. What is sent
// is what the library would send next, an append without entries: "the log up to
// this entry of this term is committed". That stays true whatever happens
// meanwhile, and a follower that has another entry there refuses it.
type teller struct {
	mu   sync.Mutex
	told map[raft.ServerID]known  // guarded by mu
	next map[raft.ServerID]commit // guarded by mu; one that is being told something, and what to tell it then
}

// known is what a server has confirmed.
type known struct {
	commit, log uint64 // the commit index, and the end of the log
	early       commit // it was told before it had the entry
}

// commit is an entry of this member's own term that is committed.
type commit struct{ index, term uint64 }

func newTeller() *teller {
	return &teller{told: make(map[raft.ServerID]known), next: make(map[raft.ServerID]commit)}
}

// confirmed notes that a server has the log up to an entry and has taken over a
// commit index. It returns what the server was told too early and knows not yet.
func (t *teller) confirmed(id raft.ServerID, log, index uint64) (again commit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.told[id]
	k.log, k.commit = max(k.log, log), max(k.commit, index)
	if k.early.index > 0 && k.early.index <= k.log {
		if k.early.index > k.commit {
			again = k.early
		}
		k.early = commit{}
	}
	t.told[id] = k
	return again
}

// refused notes that a server had not the entry; true when it has got it since.
func (t *teller) refused(id raft.ServerID, news commit) (now bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.told[id]
	if k.log >= news.index {
		return true
	}
	k.early = news
	t.told[id] = k
	return false
}

// begin returns the servers for which somebody must go; the others know, or are
// told next by whoever is on the way.
func (t *teller) begin(servers []raft.Server, news commit) (missing []raft.Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := func(id raft.ServerID) bool {
		return !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == id })
	}
	maps.DeleteFunc(t.told, func(id raft.ServerID, _ known) bool { return gone(id) })
	for _, server := range servers {
		if t.told[server.ID].commit >= news.index {
			continue
		}
		if _, busy := t.next[server.ID]; !busy {
			missing = append(missing, server)
		}
		t.next[server.ID] = news
	}
	return missing
}

// take returns the newest news for a server; none when it was told all.
func (t *teller) take(id raft.ServerID, last commit) (news commit, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next[id] == last {
		delete(t.next, id)
		return commit{}, false
	}
	return t.next[id], true
}

// tell makes the other servers learn of a commit. It does not wait for them.
func (c *Cluster) tell(news commit) {
	if news.index == 0 || news.term == 0 {
		return
	}
	servers := slices.DeleteFunc(slices.Clone(c.raft.Load().GetConfiguration().Configuration().Servers),
		func(s raft.Server) bool { return string(s.ID) == c.cfg.ID })
	for _, server := range c.gate.teller.begin(servers, news) {
		if !c.tryTask(func() { c.gate.tellAll(server) }) {
			return
		}
	}
}

// tellAll tells one server the newest commit until it knows it; one call at a
// time, and the next of them carries all that was committed meanwhile.
func (g *gate) tellAll(server raft.Server) {
	var last commit
	for {
		news, more := g.teller.take(server.ID, last)
		if !more {
			return
		}
		last = news
		// Twice at most: the entry may arrive while the refusal is on its way.
		if known, refused := g.tellOnce(server, news); !known && refused && g.teller.refused(server.ID, news) {
			g.tellOnce(server, news)
		}
	}
}

func (g *gate) tellOnce(server raft.Server, news commit) (known, refused bool) {
	if g.silent() != nil {
		return false, false
	}
	request := &raft.AppendEntriesRequest{
		RPCHeader:    raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(g.c.cfg.ID), Addr: []byte(g.c.cfg.Address)},
		Term:         news.term,
		Leader:       []byte(g.c.cfg.Address), //nolint:staticcheck // members before raft 1.3 read this one; so does the library
		PrevLogEntry: news.index, PrevLogTerm: news.term, LeaderCommitIndex: news.index,
	}
	response := new(raft.AppendEntriesResponse)
	err := g.around(callCommit, server.Address, func() error { return g.main.AppendEntries(server.ID, server.Address, request, response) })
	if err == nil && response.Success {
		g.teller.confirmed(server.ID, news.index, news.index)
	}
	return err == nil && response.Success, err == nil && !response.Success
}
