package inside

import (
	"strings"
	"testing"

	"github.com/balsa-run/balsa/cluster/memlog"
)

// A vote of which a crash has left one half on the disk is noticed, and one that
// was cast is not.
func TestHalfAVoteIsNoticed(t *testing.T) {
	var b ballots
	stable := witnessed{memlog.New().Stable(), &b}
	if err := b.check(stable.Stable); err != nil {
		t.Errorf("an empty disk: %v", err)
	}
	if err := stable.SetVote(3, []byte("s1")); err != nil {
		t.Fatal(err)
	}
	if err := b.check(stable.Stable); err != nil {
		t.Errorf("a vote that was cast: %v", err)
	}
	if err := stable.SetUint64([]byte(keyVoteTerm), 4); err != nil {
		t.Fatal(err)
	}
	if err := b.check(stable.Stable); err == nil || !strings.Contains(err.Error(), `4 for "s1"`) {
		t.Errorf("half of a vote in term 4: %v", err)
	}
}
