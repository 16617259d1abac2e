package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func wellMember(id string, voter bool) MemberView {
	return MemberView{ID: id, Address: id + ":1", Voter: voter, Applied: 100, Contact: noon, WellSince: noon.Add(-time.Hour), Gossip: GossipAlive}
}

func goneMember(id string, voter bool, since time.Duration, gossip GossipStatus) MemberView {
	return MemberView{ID: id, Address: id + ":1", Voter: voter, Applied: 50, Contact: noon.Add(-since), GoneSince: noon.Add(-since), Gossip: gossip}
}

func selfMember() MemberView {
	return MemberView{ID: "a", Address: "a:1", Voter: true, Self: true, Applied: 100, Contact: noon}
}

func TestPlanMembership(t *testing.T) {
	fresh := wellMember("d", false)
	fresh.WellSince = noon.Add(-time.Second)
	behind := wellMember("d", false)
	behind.Applied = 0
	moved := wellMember("b", true)
	moved.GossipAddress = "elsewhere:1"
	onto := wellMember("b", true)
	onto.GossipAddress = "c:1"
	for name, test := range map[string]struct {
		members []MemberView
		want    string // kind and id, or "" for no change
	}{
		"all is well":                      {[]MemberView{selfMember(), wellMember("b", true), wellMember("c", true)}, ""},
		"one that is well gets a vote":     {[]MemberView{selfMember(), wellMember("d", false)}, "Promote d"},
		"not before it is stable":          {[]MemberView{selfMember(), fresh}, ""},
		"not while it is behind":           {[]MemberView{selfMember(), behind}, ""},
		"not while gossip calls it failed": {[]MemberView{selfMember(), goneMember("d", false, time.Second, GossipFailed)}, ""},
		"a dead voter goes once it is replaced": {[]MemberView{selfMember(), wellMember("b", true), wellMember("d", true),
			goneMember("c", true, time.Hour, GossipFailed)}, "Remove c"},
		"not below three voters": {[]MemberView{selfMember(), wellMember("b", true), goneMember("c", true, time.Hour, GossipFailed)}, ""},
		"one that left goes at once": {[]MemberView{selfMember(), wellMember("b", true),
			goneMember("c", true, time.Minute, GossipLeft)}, "Remove c"},
		"never below a majority that is well": {[]MemberView{selfMember(), goneMember("b", true, time.Hour, GossipFailed),
			goneMember("c", true, time.Hour, GossipLeft)}, ""},
		"gossip alone is no proof": {[]MemberView{selfMember(), wellMember("b", true), wellMember("d", true), func() MemberView {
			m := wellMember("c", true)
			m.Gossip = GossipFailed
			return m
		}()}, ""},
		"silence alone is no proof": {[]MemberView{selfMember(), wellMember("b", true), wellMember("d", true),
			goneMember("c", true, time.Hour, GossipAlive)}, ""},
		"a dead non-voter goes":          {[]MemberView{selfMember(), goneMember("d", false, time.Hour, GossipFailed)}, "Remove d"},
		"one that moved is followed":     {[]MemberView{selfMember(), moved, wellMember("c", true)}, "Move b"},
		"but not onto another's address": {[]MemberView{selfMember(), onto, wellMember("c", true)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if change, ok := PlanMembership(MembershipView{LastIndex: 1000, Members: raise(test.members)}, noon); ok {
				got = string(change.Kind) + " " + change.ID
			}
			if got != test.want {
				t.Errorf("plan %q, expected %q", got, test.want)
			}
		})
	}
}

// raise puts those at index 100 close enough to the log's end.
func raise(members []MemberView) []MemberView {
	for i := range members {
		if members[i].Applied == 100 {
			members[i].Applied = 990
		}
	}
	return members
}

// TestRemovalKeepsAMajority: whatever the view, a planned removal of a voter
// leaves a majority of voters that are well, and never this server.
func TestRemovalKeepsAMajority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := []MemberView{selfMember()}
		for i := range rapid.IntRange(0, 6).Draw(t, "others") {
			id := string(rune('b' + i))
			m := wellMember(id, rapid.Bool().Draw(t, "voter"))
			if rapid.Bool().Draw(t, "gone") {
				gossip := rapid.SampledFrom([]GossipStatus{GossipUnknown, GossipAlive, GossipFailed, GossipLeft}).Draw(t, "gossip")
				m = goneMember(id, m.Voter, time.Duration(rapid.IntRange(0, 3600).Draw(t, "since"))*time.Second, gossip)
			}
			members = append(members, m)
		}
		change, ok := PlanMembership(MembershipView{LastIndex: 100, Members: members}, noon)
		if !ok || change.Kind != ChangeRemove {
			return
		}
		voters, well, voter := 0, 0, false
		for _, m := range members {
			if m.ID == change.ID {
				voter = m.Voter
				if m.Self {
					t.Fatal("it removes itself")
				}
			}
			if m.ID != change.ID && m.Voter {
				voters++
				if m.GoneSince.IsZero() {
					well++
				}
			}
		}
		if voter && well < voters/2+1 {
			t.Fatalf("%v leaves %d voters of which %d are well", change, voters, well)
		}
	})
}

func TestPlanFeatureLevel(t *testing.T) {
	for name, test := range map[string]struct {
		current, own uint32
		members      []MemberFeature
		target       uint32
		raise        bool
	}{
		"alone":                    {0, 3, nil, 3, true},
		"the lowest decides":       {0, 3, []MemberFeature{{"b", true, 2}, {"c", true, 3}}, 2, true},
		"it never falls":           {3, 3, []MemberFeature{{"b", true, 2}}, 3, false},
		"nothing to raise":         {2, 2, []MemberFeature{{"b", true, 5}}, 2, false},
		"wait for one that is out": {0, 3, []MemberFeature{{"b", true, 3}, {"c", false, 0}}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			target, raise, _ := PlanFeatureLevel(test.current, test.own, test.members)
			if target != test.target || raise != test.raise {
				t.Errorf("target %d, raise %v; expected %d, %v", target, raise, test.target, test.raise)
			}
		})
	}
}

func TestPlanSpace(t *testing.T) {
	limits := DiskLimits{CriticalSpace: 100, LowSpace: 500}
	for free, want := range map[uint64]SpaceLevel{0: SpaceCritical, 99: SpaceCritical, 100: SpaceLow, 499: SpaceLow, 500: SpaceEnough} {
		if got := PlanSpace(free, limits); got != want {
			t.Errorf("%d bytes: %v, expected %v", free, got, want)
		}
	}
}

func stateOf(member string, revision int64, hashes map[int64]uint64) *internalv1.StateResponse {
	s := &internalv1.SpaceState{Space: "objects", Revision: revision}
	for r, h := range hashes {
		s.Hashes = append(s.Hashes, &internalv1.RevisionHash{Revision: r, Hash: h})
	}
	return &internalv1.StateResponse{MemberId: member, Spaces: []*internalv1.SpaceState{s}}
}

func TestCompareStates(t *testing.T) {
	for name, test := range map[string]struct {
		states []*internalv1.StateResponse
		voters int
		want   []Divergence
	}{
		"all agree": {[]*internalv1.StateResponse{stateOf("a", 9, map[int64]uint64{8: 1, 9: 2}), stateOf("b", 9, map[int64]uint64{8: 1, 9: 2})}, 3, nil},
		"nothing in common": {[]*internalv1.StateResponse{stateOf("a", 9, map[int64]uint64{9: 2}),
			stateOf("b", 8, map[int64]uint64{8: 7})}, 3, nil},
		"one is odd": {[]*internalv1.StateResponse{stateOf("a", 9, map[int64]uint64{9: 2}), stateOf("b", 9, map[int64]uint64{9: 3}),
			stateOf("c", 9, map[int64]uint64{9: 2})}, 3,
			[]Divergence{{Space: "objects", Revision: 9, Groups: []HashGroup{{2, []string{"a", "c"}}, {3, []string{"b"}}}, Odd: []string{"b"}}}},
		"two cannot tell": {[]*internalv1.StateResponse{stateOf("a", 9, map[int64]uint64{9: 2}), stateOf("b", 9, map[int64]uint64{9: 3})}, 3,
			[]Divergence{{Space: "objects", Revision: 9, Groups: []HashGroup{{2, []string{"a"}}, {3, []string{"b"}}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, CompareStates(test.states, test.voters)); diff != "" {
				t.Errorf("divergence (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMustStop(t *testing.T) {
	odd := []Divergence{{Space: "objects", Odd: []string{"b"}}}
	tie := []Divergence{{Space: "objects"}}
	for name, test := range map[string]struct {
		before, now []Divergence
		stop        bool
	}{"once is not enough": {nil, odd, false}, "twice is": {odd, odd, true}, "a tie never": {tie, tie, false}, "it passed": {odd, nil, false}} {
		if _, stop := mustStop("b", test.before, test.now); stop != test.stop {
			t.Errorf("%s: stop %v", name, stop)
		}
	}
	if _, stop := mustStop("a", odd, odd); stop {
		t.Error("one of the majority stops")
	}
}
