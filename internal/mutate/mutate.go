// Package mutate holds bugs that are planted on purpose, to see that the
// simulation finds them. At the honest place of each, where a careless hand would
// have made the mistake, stands one branch:
//
//	if mutate.On(mutate.EpochNotChecked) { ... }
//
// Without the build tag "mutate" On is a constant false, and the compiler removes
// the branch with all that is in it; a test of this package holds that. With the
// tag nothing is planted before Arm: a cluster is formed first, and then loses its
// wits.
//
// The package refuses to keep state of its own, and to be of any use in a program
// that somebody runs: a binary that is built with the tag says so in each start of
// the guest, and nothing else is ever built with it.
package mutate

import (
	"fmt"
	"slices"
	"strings"
)

// Bug is one planted bug.
type Bug string

// The bugs. Each says what is wrong and which rule of the real program is gone.
const (
	// VerifyLeader: linearizable reads trust the raft library's own check, which
	// late answers deceive.
	VerifyLeader Bug = "verify-leader"
	// NoBarrier: a new leader serves reads before an entry of its term is applied.
	NoBarrier Bug = "no-barrier"
	// VoteInTwoWrites: a crash may fall between the term and the candidate of a vote.
	VoteInTwoWrites Bug = "vote-in-two-writes"
	// NoFsync: the disk says that an entry is safe before it is.
	NoFsync Bug = "no-fsync"
	// AckBeforeMajority: a follower that does not answer counts as one that has.
	AckBeforeMajority Bug = "ack-before-majority"
	// RandomApply: what an entry does depends on the member that applies it.
	RandomApply Bug = "random-apply"
	// CompactionLosesEvents: a watch that has fallen out of the history goes on
	// after the hole instead of ending.
	CompactionLosesEvents Bug = "compaction-loses-events"
	// WatchOneLate: a watch that resumes leaves out the revision it was to begin at.
	WatchOneLate Bug = "watch-one-late"
	// LeaseEarly: a lease ends before its time.
	LeaseEarly Bug = "lease-early"
	// SnapshotWithoutLast: a snapshot lacks the last entry that it says it holds.
	SnapshotWithoutLast Bug = "snapshot-without-last"
	// EpochNotChecked: what a deposed leader planned is carried out.
	EpochNotChecked Bug = "epoch-not-checked"
	// AmnesiacVotes: a server whose disk is empty takes part under its old name.
	AmnesiacVotes Bug = "amnesiac-votes"
)

// Bugs are all bugs.
func Bugs() []Bug {
	return []Bug{
		VerifyLeader, NoBarrier, VoteInTwoWrites, NoFsync, AckBeforeMajority, RandomApply, CompactionLosesEvents,
		WatchOneLate, LeaseEarly, SnapshotWithoutLast, EpochNotChecked, AmnesiacVotes,
	}
}

// Parse reads names with commas between them; "" is none.
func Parse(names string) ([]Bug, error) {
	if names == "" {
		return nil, nil
	}
	var out []Bug
	for name := range strings.SplitSeq(names, ",") {
		if !slices.Contains(Bugs(), Bug(name)) {
			return nil, fmt.Errorf("mutate: there is no bug %q; there are %v", name, Bugs())
		}
		out = append(out, Bug(name))
	}
	return out, nil
}
