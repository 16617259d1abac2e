package pressure

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func now() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC) }

// well is a node with room for everything.
func well() Usage {
	return Usage{
		MemoryBytes: 8 << 30, MemoryAvailableBytes: 4 << 30, DiskBytes: 100 << 30, DiskAvailableBytes: 50 << 30,
		Inodes: 1000, InodesAvailable: 500, Pids: 32768, PidsAvailable: 30000,
	}
}

func plan(v View) Actions { return Plan(v, Defaults(), now()) }

func TestANodeThatIsWellDoesNothing(t *testing.T) {
	v := View{Usage: well(), Pods: []Pod{{UID: "a", Memory: 1 << 30, Disk: 1 << 30}}}
	if got := plan(v).String(); got != "" {
		t.Errorf("got %s", got)
	}
	if got := plan(View{Pods: v.Pods}).String(); got != "" {
		t.Errorf("a node that was not measured: %s", got)
	}
}

func TestShortMemoryEvictsWhoUsesMoreThanItAskedFor(t *testing.T) {
	u := well()
	u.MemoryAvailableBytes = 50 << 20
	pods := []Pod{
		{UID: "guaranteed", Name: "guaranteed", Memory: 4 << 30, MemoryRequest: 4 << 30},
		{UID: "burstable", Name: "burstable", Memory: 3 << 30, MemoryRequest: 1 << 30},
		{UID: "besteffort", Name: "besteffort", Memory: 100 << 20},
		{UID: "important", Name: "important", Memory: 6 << 30, Priority: 1000},
	}
	for _, want := range []string{"burstable", "besteffort", "important", "guaranteed"} {
		a := plan(View{Usage: u, Pods: pods})
		if len(a.Evict) != 1 || a.Evict[0].Pod.Name != want {
			t.Fatalf("want %s, got %s", want, a)
		}
		rest := pods[:0:0]
		for _, p := range pods {
			if p.Name != want {
				rest = append(rest, p)
			}
		}
		pods = rest
	}
	if a := plan(View{Usage: u}); len(a.Evict) != 0 || a.Conditions[Memory] == "" {
		t.Errorf("without pods: %s", a)
	}
}

func TestOnePodAtATime(t *testing.T) {
	u := well()
	u.MemoryAvailableBytes = 0
	a := plan(View{Usage: u, Pods: []Pod{{UID: "a", Memory: 1, Leaving: true}, {UID: "b", Memory: 2}}})
	if len(a.Evict) != 0 {
		t.Errorf("evicts another while one leaves: %s", a)
	}
}

func TestDiskIsGivenBackBeforePodsGo(t *testing.T) {
	v := View{Usage: well(), Pods: []Pod{{UID: "a", Name: "a", Disk: 30 << 30}, {UID: "b", Name: "b", Disk: 1 << 30}}}
	v.Usage.DiskAvailableBytes = 14 << 30 // 86% full: images go, nothing else
	a := plan(v)
	if a.Reclaim != 6<<30 || len(a.Evict) != 0 || a.Conditions[Disk] != "" {
		t.Errorf("86%% full: %s", a)
	}
	v.Usage.DiskAvailableBytes = 5 << 30
	a = plan(v)
	if a.Reclaim == 0 || len(a.Evict) != 0 || a.Conditions[Disk] == "" {
		t.Errorf("95%% full: %s", a)
	}
	v.Reclaimed = true
	a = plan(v)
	if len(a.Evict) != 1 || a.Evict[0].Pod.Name != "a" || !strings.Contains(a.Evict[0].Message, "5.0 GiB of disk are available, of 100.0 GiB; the least is 10%") {
		t.Errorf("95%% full, and nothing left to give back: %s", a)
	}
	v.Usage = well()
	v.Usage.InodesAvailable = 10
	if a = plan(v); len(a.Evict) != 1 || !strings.Contains(a.Conditions[Disk], "10 inodes") {
		t.Errorf("no inodes: %s", a)
	}
}

func TestAFullDiskEndsNobodyWhoHasNoPartInIt(t *testing.T) {
	v := View{Usage: well(), Pods: []Pod{{UID: "a", Name: "a", Disk: 5 << 20}, {UID: "b", Name: "b", Disk: 20 << 20, Priority: 9}}, Reclaimed: true}
	v.Usage.DiskAvailableBytes = 0
	if a := plan(v); len(a.Evict) != 1 || a.Evict[0].Pod.Name != "b" {
		t.Errorf("of 10 GiB that are missing, a has 5 MiB and b 20 MiB: %s", a)
	}
	v.Pods = v.Pods[:1]
	if a := plan(v); len(a.Evict) != 0 || a.Conditions[Disk] == "" {
		t.Errorf("nobody is worth it: %s", a)
	}
	v.Usage.DiskAvailableBytes, v.Pods[0].Disk = 10<<30-1, 900<<10
	if a := plan(v); len(a.Evict) != 0 || a.Conditions[Disk] == "" {
		t.Errorf("one byte is missing, and it has only a log: %s", a)
	}
	v.Usage = well()
	v.Usage.InodesAvailable = 0
	if a := plan(v); len(a.Evict) != 1 {
		t.Errorf("inodes: %s", a)
	}
}

func TestPodsOverTheirDiskLimitGoAtOnce(t *testing.T) {
	a := plan(View{Usage: well(), Pods: []Pod{
		{UID: "a", Name: "volume", Parts: []Part{{`volume "cache"`, 11 << 20, 10 << 20}}},
		{UID: "b", Name: "sum", Disk: 3 << 20, DiskLimit: 2 << 20},
		{UID: "c", Name: "at-limit", Disk: 2 << 20, DiskLimit: 2 << 20, Parts: []Part{{"x", 5, 5}, {"y", 5, 0}}},
		{UID: "d", Name: "leaving", Disk: 3 << 20, DiskLimit: 2 << 20, Leaving: true},
	}})
	want := `evict volume: volume "cache" uses 11.0 MiB of ephemeral storage; its limit is 10.0 MiB
evict sum: the pod uses 3.0 MiB of ephemeral storage; its containers' limits are 2.0 MiB together
`
	if a.String() != want {
		t.Errorf("got\n%s", a)
	}
}

func TestAConditionStaysUntilItIsCalm(t *testing.T) {
	short := well()
	short.PidsAvailable = 10
	at, state := now(), State{}
	look := func(u Usage) string {
		a := Plan(View{Usage: u, State: state}, Defaults(), at)
		state = a.State
		return a.Conditions[Pids]
	}
	if look(well()) != "" || look(short) == "" {
		t.Fatal("it does not see the sign")
	}
	at = at.Add(4 * time.Minute)
	if got := look(well()); got != "was short 4m0s ago; it has to stay well for 5m0s" {
		t.Errorf("after four minutes: %q", got)
	}
	at = at.Add(-time.Hour)
	if look(well()) == "" {
		t.Error("a clock that was put back ended the condition")
	}
	at = at.Add(5 * time.Minute)
	if got := look(well()); got != "" {
		t.Errorf("five minutes later: %q", got)
	}
}

func TestThresholdsThatContradictThemselves(t *testing.T) {
	if err := Defaults().Check(); err != nil {
		t.Error(err)
	}
	bad := Defaults()
	bad.ImagesLowPercent = 90
	if err := bad.Check(); err == nil || !strings.Contains(err.Error(), "found 90%, allowed up to images high, 85%") {
		t.Errorf("got %v", err)
	}
	bad = Defaults()
	bad.DiskAvailablePercent = 101
	if err := bad.Check(); err == nil {
		t.Error("101% was taken")
	}
}

// A dumb walk over all pairs agrees with the order of eviction; nobody who stays
// within its requests goes before somebody who does not.
func TestNobodyWithinItsRequestsGoesFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := well()
		u.MemoryAvailableBytes = 0
		v := View{Usage: u}
		for i := range rapid.IntRange(1, 8).Draw(t, "pods") {
			v.Pods = append(v.Pods, Pod{
				UID: fmt.Sprint(i), Priority: int32(rapid.IntRange(-1, 1).Draw(t, "priority")),
				Memory: rapid.Int64Range(0, 3).Draw(t, "memory"), MemoryRequest: rapid.Int64Range(0, 3).Draw(t, "request"),
			})
		}
		a := Plan(v, Defaults(), now())
		if len(a.Evict) != 1 {
			t.Fatalf("evicts %d", len(a.Evict))
		}
		gone := a.Evict[0].Pod
		for _, p := range v.Pods {
			over, goneOver := p.Memory > p.MemoryRequest, gone.Memory > gone.MemoryRequest
			switch {
			case over && !goneOver:
				t.Fatalf("%v goes although %v uses more than it asked for", gone, p)
			case over == goneOver && p.Priority < gone.Priority:
				t.Fatalf("%v goes although %v is of lower priority", gone, p)
			case over == goneOver && p.Priority == gone.Priority && p.Memory-p.MemoryRequest > gone.Memory-gone.MemoryRequest:
				t.Fatalf("%v goes although %v uses more beyond its requests", gone, p)
			}
		}
	})
}
