package inside

import (
	"slices"
	"time"
)

// Script is a schedule with a purpose: an adversary's plan, which chance would
// seldom find.
type Script struct {
	// Name does not change.
	Name string
	// About says what it is after.
	About string
	// Servers is how many it wants at least.
	Servers  int
	Schedule Schedule
}

// ScriptNamed returns a script.
func ScriptNamed(name string) (Script, bool) {
	all := Scripts()
	i := slices.IndexFunc(all, func(s Script) bool { return s.Name == name })
	if i < 0 {
		return Script{}, false
	}
	return all[i], true
}

// How late messages and how slow writes are for a leader that is behind: enough that
// reads come in between, and that its lease still holds.
const (
	behindLate = 80 * time.Millisecond
	behindSlow = 60 * time.Millisecond
)

// Scripts are all of them. Each lasts about a minute and does its worst several
// times, since what it is after also takes a client at the right moment.
func Scripts() []Script {
	return []Script{
		{"late answers", "followers answer a leader late, and so does the one that is given the leadership: until its call for votes arrives, answers of before seem to confirm the old leader", 3, rounds(3*time.Second, 18,
			step(0, Late, Leader, 2200*time.Millisecond, 340*time.Millisecond), // later, it would lose its lease
			step(time.Second, Transfer, Same, 1500*time.Millisecond, 0))},
		{"deposed leader with pending reads", "reads are asked of a leader that is cut off from the others, not from its clients, and comes back", 3, rounds(6*time.Second, 9,
			step(0, Isolate, Leader, 2500*time.Millisecond, 0),
			step(3*time.Second, Deaf, Leader, 1500*time.Millisecond, 0))},
		{"vote then crash", "a server crashes right after its vote is on the disk, and right before, while another asks for it", 3, rounds(9*time.Second, 6,
			crash(0, CrashAfter, Follower, 3*time.Second, "vote"),
			step(100*time.Millisecond, Kill, Leader, 4*time.Second, 0),
			crash(4500*time.Millisecond, CrashBefore, Any, 3*time.Second, "vote"),
			step(4600*time.Millisecond, Transfer, Leader, time.Second, 0))},
		{"snapshot install cut short", "a follower that was away for long gets a snapshot, and is cut off or dies in the middle of it", 3, rounds(15*time.Second, 4,
			step(0, CutOff, Follower, 9*time.Second, 0),
			step(8*time.Second, Snapshot, Leader, 500*time.Millisecond, 0),
			crash(8900*time.Millisecond, CrashBefore, Same, 2*time.Second, "snapshot"),
			step(9020*time.Millisecond, Reset, Leader, 2*time.Second, 20*time.Millisecond))},
		{"leader killed with uncommitted entries", "a leader takes in writes that it cannot send, and dies", 3, rounds(6*time.Second, 9,
			step(0, Mute, Leader, 1500*time.Millisecond, 0),
			step(300*time.Millisecond, PowerCut, Same, 2*time.Second, 0),
			step(3500*time.Millisecond, Isolate, Leader, 1500*time.Millisecond, 0))},
		{"new leader that is behind", "a leader dies before the others know how far it has come; its successor is asked for reads while slow links and disks keep the first entry of its term from a majority", 3, rounds(6*time.Second, 9,
			step(0, Late, "s1", 5*time.Second, behindLate),
			step(0, Late, "s2", 5*time.Second, behindLate),
			step(0, Late, "s3", 5*time.Second, behindLate),
			step(0, Slow, "s1", 5*time.Second, behindSlow),
			step(0, Slow, "s2", 5*time.Second, behindSlow),
			step(0, Slow, "s3", 5*time.Second, behindSlow),
			step(1500*time.Millisecond, PowerCut, Leader, 1500*time.Millisecond, 0),
			step(4*time.Second, Isolate, Leader, 1500*time.Millisecond, 0))},
		{"watch across compaction", "watchers lose their server, and a workload compacts meanwhile what they have not seen", 3, rounds(6*time.Second, 9,
			step(0, CutOff, Follower, 2500*time.Millisecond, 0),
			step(3*time.Second, Kill, Any, time.Second, 0))},
		{"disk hang", "a leader's disk hangs while its network is well", 3, rounds(9*time.Second, 6,
			step(0, Hang, Leader, 5*time.Second, 0),
			step(6*time.Second, Slow, Leader, 2*time.Second, 400*time.Millisecond))},
		{"full disk", "a leader's disk fills up, then a follower's", 3, rounds(14*time.Second, 4,
			step(0, NoRoom, Leader, 6*time.Second, 0),
			step(7*time.Second, NoRoom, Follower, 6*time.Second, 0))},
		{"membership change in a partition", "servers come, go and are replaced while a leader is cut off", 3, rounds(20*time.Second, 3,
			step(0, Isolate, Leader, 4*time.Second, 0),
			step(500*time.Millisecond, AddServer, Any, 8*time.Second, 0),
			step(10*time.Second, Isolate, Follower, 4*time.Second, 0),
			step(10500*time.Millisecond, RemoveServer, Follower, 6*time.Second, 0))},
		{"power cut of all", "all lose power at once, in the middle of their writes", 3, rounds(5*time.Second, 11,
			crash(0, CrashAfter, Leader, time.Second, "append"),
			step(1500*time.Millisecond, PowerCutAll, Any, time.Second, 0))},
		{"server without memory", "a server forgets its disk and is started as it was; then one that lacks what it had acknowledged needs its vote", 3, rounds(18*time.Second, 3,
			step(0, Isolate, Follower, 3*time.Second, 0), // it lacks what the other two acknowledge
			step(2*time.Second, Isolate, Leader, 4*time.Second, 0),
			step(2100*time.Millisecond, DiskLost, Follower, 6*time.Second, 0))},
		{"torn appends", "power is cut in the middle of an append of several entries", 3, rounds(6*time.Second, 9,
			step(0, Isolate, Follower, 1500*time.Millisecond, 0), // then it gets many entries at once
			step(time.Second, TornWrite, Same, 4*time.Second, 0))},
		{"wrong clocks", "clocks jump and drift while leadership changes hands", 3, rounds(8*time.Second, 7,
			step(0, Jump, Leader, 3*time.Second, time.Hour),
			step(500*time.Millisecond, Drift, Follower, 5*time.Second, maxDrift),
			step(time.Second, Transfer, Leader, time.Second, 0),
			step(4*time.Second, Jump, Follower, 3*time.Second, -time.Hour),
			step(4500*time.Millisecond, Kill, Leader, time.Second, 0))},
	}
}

func step(at time.Duration, kind Kind, target Target, lasts, by time.Duration) Step {
	return Step{At: at, Fault: Fault{Kind: kind, Target: target, For: lasts, By: by}}
}

// crash is at the next write of a kind.
func crash(at time.Duration, kind Kind, target Target, lasts time.Duration, what string) Step {
	return Step{At: at, Fault: Fault{Kind: kind, Target: target, For: lasts, N: 1, What: what}}
}

// rounds repeats steps, beginning a second into the run.
func rounds(every time.Duration, times int, steps ...Step) (out Schedule) {
	for i := range times {
		for _, s := range steps {
			s.At += time.Second + time.Duration(i)*every
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b Step) int { return int(a.At - b.At) })
	return out
}
