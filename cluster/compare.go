package cluster

import (
	"fmt"
	"slices"
	"strings"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

// Divergence is a space that is not the same everywhere at one revision.
type Divergence struct {
	Space    string
	Revision int64
	// Groups are the members by the hash they report, the largest group first.
	Groups []HashGroup
	// Odd are the members outside a majority of all voters that agree; empty when
	// no hash has such a majority, and nobody can tell who is right.
	Odd []string
}

// HashGroup is the members that report one hash.
type HashGroup struct {
	Hash    uint64
	Members []string
}

func (d Divergence) String() string {
	var groups []string
	for _, g := range d.Groups {
		groups = append(groups, fmt.Sprintf("%s: %016x", strings.Join(g.Members, ","), g.Hash))
	}
	verdict := "nobody has a majority"
	if len(d.Odd) > 0 {
		verdict = "odd: " + strings.Join(d.Odd, ",")
	}
	return fmt.Sprintf("space %s at revision %d: %s (%s)", d.Space, d.Revision, strings.Join(groups, "; "), verdict)
}

// CompareStates finds, for each space, the newest revision at which members
// report different hashes. Voters is how many vote; a majority of them decides
// who is right.
func CompareStates(states []*internalv1.StateResponse, voters int) []Divergence {
	var out []Divergence
	for _, space := range spaceNames(states) {
		if d, ok := compareSpace(space, states, voters); ok {
			out = append(out, d)
		}
	}
	return out
}

func spaceNames(states []*internalv1.StateResponse) []string {
	var names []string
	for _, s := range states {
		for _, space := range s.GetSpaces() {
			names = append(names, space.GetSpace())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func compareSpace(space string, states []*internalv1.StateResponse, voters int) (Divergence, bool) {
	byRevision := make(map[int64]map[uint64][]string)
	for _, state := range states {
		for _, s := range state.GetSpaces() {
			if s.GetSpace() != space {
				continue
			}
			for _, h := range s.GetHashes() {
				if byRevision[h.GetRevision()] == nil {
					byRevision[h.GetRevision()] = make(map[uint64][]string)
				}
				byRevision[h.GetRevision()][h.GetHash()] = append(byRevision[h.GetRevision()][h.GetHash()], state.GetMemberId())
			}
		}
	}
	worst := Divergence{Space: space}
	for revision, hashes := range byRevision {
		if len(hashes) > 1 && (worst.Groups == nil || better(revision, hashes, worst)) {
			worst.Revision, worst.Groups = revision, groups(hashes)
		}
	}
	if worst.Groups == nil {
		return Divergence{}, false
	}
	worst.Odd = odd(worst.Groups, voters)
	return worst, true
}

// better prefers the revision that most members report, then the newest.
func better(revision int64, hashes map[uint64][]string, than Divergence) bool {
	had, has := 0, 0
	for _, g := range than.Groups {
		had += len(g.Members)
	}
	for _, members := range hashes {
		has += len(members)
	}
	return has > had || has == had && revision > than.Revision
}

func groups(hashes map[uint64][]string) []HashGroup {
	var out []HashGroup
	for hash, members := range hashes {
		slices.Sort(members)
		out = append(out, HashGroup{Hash: hash, Members: members})
	}
	slices.SortFunc(out, func(a, b HashGroup) int {
		if len(a.Members) != len(b.Members) {
			return len(b.Members) - len(a.Members)
		}
		return strings.Compare(a.Members[0], b.Members[0])
	})
	return out
}

func odd(groups []HashGroup, voters int) []string {
	if len(groups[0].Members) < voters/2+1 {
		return nil
	}
	var out []string
	for _, g := range groups[1:] {
		out = append(out, g.Members...)
	}
	slices.Sort(out)
	return out
}

// mustStop decides whether this member is the odd one, seen twice in a row: one
// answer may mix two moments, two do not.
func mustStop(self string, before, now []Divergence) (Divergence, bool) {
	for _, d := range now {
		again := slices.ContainsFunc(before, func(b Divergence) bool {
			return b.Space == d.Space && slices.Contains(b.Odd, self)
		})
		if again && slices.Contains(d.Odd, self) {
			return d, true
		}
	}
	return Divergence{}, false
}
