package inside

import (
	"fmt"
	"sync"

	"github.com/balsa-run/balsa/cluster/memlog"
)

// The keys of a vote in a stable store, as the raft library names them.
const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
)

// ballots are the votes that a machine has cast in all its lives: a vote that is
// on its disk must be one of them, whole.
type ballots struct {
	mu   sync.Mutex
	cast map[string]bool // guarded by mu
}

func ballot(term uint64, candidate []byte) string { return fmt.Sprintf("%d for %q", term, candidate) }

func (b *ballots) note(term uint64, candidate []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cast == nil {
		b.cast = map[string]bool{}
	}
	b.cast[ballot(term, candidate)] = true
}

// check tells what is wrong with the vote on a disk.
func (b *ballots) check(stable memlog.Stable) error {
	term, err := stable.GetUint64([]byte(keyVoteTerm))
	if err != nil || term == 0 {
		return err
	}
	candidate, err := stable.Get([]byte(keyVoteCandidate))
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.cast[ballot(term, candidate)] {
		return fmt.Errorf("holds a vote that it never cast, in term %s", ballot(term, candidate))
	}
	return nil
}

// witnessed is a stable store whose votes are noted before they are written.
type witnessed struct {
	memlog.Stable
	ballots *ballots
}

func (w witnessed) SetVote(term uint64, candidate []byte) error {
	w.ballots.note(term, candidate)
	return w.Stable.SetVote(term, candidate)
}
