package pki

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestToldRemovals(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	all := []Removal{
		{Role: RoleAgent, Name: "n1", At: now.Add(-time.Hour)},
		{Role: RoleServer, Name: "s1", At: now.Add(-48 * time.Hour)},
		{Role: RoleServer, Name: "s1", At: now.Add(-24 * time.Hour)},                   // again
		{Role: RoleAdmin, Name: "ana", At: now},                                        // agents let users do nothing
		{Serial: "4a", At: now},                                                        // has no name
		{Role: RoleServer, Name: "old", At: now.Add(-ServerLeafLife - 10*time.Minute)}, // all of its certificates have expired
	}
	want := []Removal{
		{Role: RoleServer, Name: "s1", At: now.Add(-24 * time.Hour), UpTo: true},
		{Role: RoleAgent, Name: "n1", At: now.Add(-time.Hour), UpTo: true},
	}
	if diff := cmp.Diff(want, ToldRemovals(all, now)); diff != "" {
		t.Error(diff)
	}
	many := []Removal{{Role: RoleServer, Name: "s1", At: now.Add(-time.Hour)}}
	for i := range 2 * MaxToldRemovals {
		many = append(many, Removal{Role: RoleAgent, Name: fmt.Sprintf("n%d", i), At: now.Add(-time.Duration(i) * time.Second)})
	}
	told := ToldRemovals(many, now)
	if len(told) != MaxToldRemovals || told[0].Name != "s1" || told[1].Name != "n0" {
		t.Errorf("%d told, first %v, %v", len(told), told[0], told[1])
	}
}

// TestMergeRemovals: a server that lags takes nothing back, and none can remove a
// name for all time.
func TestMergeRemovals(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s1 := Removal{Role: RoleServer, Name: "s1", At: now.Add(-time.Minute), UpTo: true}
	known := MergeRemovals(nil, []Removal{s1}, now)
	if got := MergeRemovals(known, nil, now); len(got) != 1 {
		t.Errorf("an older list took a removal back: %v", got)
	}
	earlier := s1
	earlier.At = now.Add(-time.Hour)
	if got := MergeRemovals(known, []Removal{earlier}, now); !got[0].At.Equal(s1.At) {
		t.Errorf("an older list made the removal older: %v", got)
	}
	future := Removal{Role: RoleServer, Name: "s2", At: now.Add(time.Hour * 1000), UpTo: true}
	got := MergeRemovals(known, []Removal{future}, now)
	if len(got) != 2 || !got[0].At.Equal(now.Add(ClockSkew)) {
		t.Errorf("a removal in the future: %v", got)
	}
	if got := MergeRemovals(known, nil, now.Add(ServerLeafLife+10*time.Minute)); len(got) != 0 {
		t.Errorf("kept although every certificate has expired: %v", got)
	}
}

func TestRemovedUpTo(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	set, err := NewRemoved(MergeRemovals(nil, []Removal{{Role: RoleServer, Name: "s1", At: now}}, now))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id      Identity
		removed bool
	}{
		{Identity{Role: RoleServer, Name: "s1", Issued: now.Add(-time.Hour)}, true},
		{Identity{Role: RoleServer, Name: "s1", Issued: now}, true},
		{Identity{Role: RoleServer, Name: "s1"}, true}, // not known when
		{Identity{Role: RoleServer, Name: "s1", Issued: now.Add(time.Second)}, false},
		{Identity{Role: RoleAgent, Name: "s1", Issued: now.Add(-time.Hour)}, false},
		{Identity{Role: RoleServer, Name: "s2", Issued: now.Add(-time.Hour)}, false},
	} {
		if err := set.Check(c.id); errors.Is(err, ErrRemoved) != c.removed {
			t.Errorf("%v issued %v: %v", c.id, c.id.Issued, err)
		}
	}
	if _, err := NewRemoved([]Removal{{Serial: "4a", At: now, UpTo: true}}); !errors.Is(err, ErrBadRequest) {
		t.Errorf("a serial up to a moment: %v", err)
	}
}
