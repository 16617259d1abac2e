package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/balsa-run/balsa/internal/mutate"
)

// The keys under which the library keeps its promises, and ours beside them.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
	keyAdmitted     = "BalsaAdmitted"
	keyRefusal      = "BalsaRefusal"
	keyRemoved      = "BalsaRemoved"
)

// errVoted: the library asked for a second vote in a term, or one in the past.
var errVoted = errors.New("this member has voted for another candidate in this or a later term")

// guardedStable is the stable store as raft sees it. The library stores a vote
// as two values; this keeps the first in memory and writes both with the second.
// It also holds two invariants that the library can break, because its heartbeat
// path sets the term outside the main goroutine: the stored term never falls,
// and a vote is never replaced by another of the same term.
type guardedStable struct {
	inner StableStore
	c     *Cluster

	// write orders the writes themselves. It is a channel and no mutex because a
	// write may hang: on virtual time whoever waits for it must count as waiting.
	write    chan struct{}
	staged   uint64 // guarded by write; the term of a vote whose candidate is to come
	voteTerm uint64 // guarded by write; the durable vote
	voteCand []byte // guarded by write

	mu     sync.Mutex
	term   uint64 // guarded by mu; the highest term asked for, never falls
	stored uint64 // guarded by mu; the durable term
}

func (g *guardedStable) load() error {
	stored, err := g.inner.GetUint64([]byte(keyCurrentTerm))
	if err != nil {
		return fmt.Errorf("cluster: read %s: %w", keyCurrentTerm, err)
	}
	voted, err := g.inner.GetUint64([]byte(keyLastVoteTerm))
	if err != nil {
		return fmt.Errorf("cluster: read %s: %w", keyLastVoteTerm, err)
	}
	candidate, err := g.inner.Get([]byte(keyLastVoteCand))
	if err != nil {
		return fmt.Errorf("cluster: read %s: %w", keyLastVoteCand, err)
	}
	g.write <- struct{}{}
	defer func() { <-g.write }()
	g.voteTerm, g.voteCand = voted, candidate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stored, g.term = stored, max(stored, voted)
	return nil
}

// highest is the highest term this member may have voted in. It can be above
// the library's own for a moment.
func (g *guardedStable) highest() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.term
}

func (g *guardedStable) raise(term uint64) (behind bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	behind = term < g.term
	g.term = max(g.term, term)
	return behind
}

func (g *guardedStable) durable() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stored
}

func (g *guardedStable) Get(key []byte) ([]byte, error) { return g.inner.Get(key) }

// GetUint64: a vote in a term is proof of that term.
func (g *guardedStable) GetUint64(key []byte) (uint64, error) {
	if string(key) == keyCurrentTerm {
		return g.highest(), nil
	}
	return g.inner.GetUint64(key)
}

func (g *guardedStable) SetUint64(key []byte, value uint64) error {
	g.write <- struct{}{}
	defer func() { <-g.write }()
	switch string(key) {
	case keyLastVoteTerm:
		g.staged = value
		if mutate.On(mutate.VoteInTwoWrites) {
			return g.guard("store the vote's term", func() error { return g.inner.SetUint64(key, value) })
		}
		return nil
	case keyCurrentTerm:
		return g.setTermLocked(value)
	}
	return g.guard("store "+string(key), func() error { return g.inner.SetUint64(key, value) })
}

// setTermLocked stores a term before any vote in it.
func (g *guardedStable) setTermLocked(term uint64) error {
	if behind := g.raise(term); behind {
		g.c.cfg.Metrics.Add("cluster_term_set_back", 1)
		return nil
	}
	if term == g.durable() {
		return nil
	}
	err := g.guard("store the term", func() error { return g.inner.SetUint64([]byte(keyCurrentTerm), term) })
	if err == nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.stored = term
	}
	return err
}

func (g *guardedStable) Set(key, value []byte) error {
	g.write <- struct{}{}
	defer func() { <-g.write }()
	if string(key) != keyLastVoteCand {
		return g.guard("store "+string(key), func() error { return g.inner.Set(key, value) })
	}
	return g.setVoteLocked(g.staged, value)
}

func (g *guardedStable) setVoteLocked(term uint64, candidate []byte) error {
	if term < g.voteTerm || term == g.voteTerm && !bytes.Equal(candidate, g.voteCand) {
		g.c.cfg.Metrics.Add("cluster_second_vote_refused", 1)
		return fmt.Errorf("vote for %q in term %d, voted for %q in term %d: %w", candidate, term, g.voteCand, g.voteTerm, errVoted)
	}
	g.raise(term)
	err := g.guard("store the vote", func() error { return g.inner.SetVote(term, candidate) })
	if err == nil {
		g.voteTerm, g.voteCand = term, bytes.Clone(candidate)
	}
	return err
}

// guard never returns a write error to a running raft, which would panic or
// forget it.
func (g *guardedStable) guard(what string, write func() error) error {
	err := g.c.guardWrite(what, write)
	if err != nil && g.c.raft.Load() != nil {
		g.c.halt(err)
	}
	return err
}

// admitted: the leader has agreed that this disk belongs to its member.
func (g *guardedStable) admitted() (bool, error) {
	value, err := g.inner.GetUint64([]byte(keyAdmitted))
	if err != nil {
		return false, fmt.Errorf("cluster: read %s: %w", keyAdmitted, err)
	}
	return value != 0, nil
}

func (g *guardedStable) admit() error { return g.SetUint64([]byte(keyAdmitted), 1) }

// refusal is why this disk must not be used again, as an error.
func (g *guardedStable) refusal() error {
	for _, mark := range []struct {
		key string
		is  error
	}{{keyRefusal, ErrDiverged}, {keyRemoved, ErrRemoved}} {
		value, err := g.inner.Get([]byte(mark.key))
		if err != nil {
			return fmt.Errorf("cluster: read %s: %w", mark.key, err)
		}
		if len(value) > 0 {
			return fmt.Errorf("cluster: this disk must not take part again: %s; empty it and join under a new id: %w", value, mark.is)
		}
	}
	return nil
}

// refuse marks the disk of a member whose data is wrong, expel that of one that
// was removed.
func (g *guardedStable) refuse(why string) error { return g.mark(keyRefusal, why) }
func (g *guardedStable) expel(why string) error  { return g.mark(keyRemoved, why) }

func (g *guardedStable) mark(key, why string) error {
	if err := g.inner.Set([]byte(key), []byte(why)); err != nil {
		return fmt.Errorf("record the refusal: %w", err)
	}
	return nil
}
