package inside

import (
	"fmt"
	"slices"
	"time"
)

// Kind is a way in which a machine or its links fail, or a thing that an operator
// does. Its text is what stands in a schedule's JSON, and does not change.
type Kind string

// Processes.
const (
	// Kill ends the process; its connections end at once.
	Kill Kind = "kill"
	// PowerCut ends the process, and the others hear nothing until it is back. Of
	// an append that was under way a part may be on the disk.
	PowerCut Kind = "power cut"
	// PowerCutAll is that for all machines at once.
	PowerCutAll Kind = "power cut all"
	// Restart stops the process in good order, and starts it again.
	Restart Kind = "restart"
	// Storm kills the process and starts it, again and again, each By.
	Storm Kind = "restart storm"
	// CrashBefore cuts the power of a server right before the N-th of its writes
	// from now on whose name begins with What, and CrashAfter right after it, when
	// it is on the disk and the server does not know. The server is off until the
	// fault ends; it ends without a crash when there are fewer writes.
	CrashBefore Kind = "crash before write"
	CrashAfter  Kind = "crash after write"
	// Upgrade restarts a server as the next version, which can do one feature
	// level more. It stays one.
	Upgrade Kind = "upgrade"
)

// Links.
const (
	// Isolate holds what goes between a server and the others, both ways. Its
	// clients reach it.
	Isolate Kind = "isolate"
	// CutOff is Isolate from the clients as well.
	CutOff Kind = "cut off"
	// Split isolates a server and a few others, together a minority, from the rest.
	Split Kind = "split"
	// Deaf holds what the others send to a server, Mute what it sends.
	Deaf Kind = "deaf"
	Mute Kind = "mute"
	// Late delays what the others send to a server by By, each link by its own
	// share of it: answers prove less than they seem to.
	Late Kind = "late"
	// Loss loses one in ten of the segments between a server and the others, both
	// ways. A stream sends them again after By, twice that the second time, and
	// so on, and all behind them wait. (A stream shows no duplicates.)
	Loss Kind = "loss"
	// Reset breaks the connections of a server at both ends, each By.
	Reset Kind = "reset"
	// Flap is Isolate for By, nothing for By, and so on.
	Flap Kind = "flap"
	// Swizzle holds the links among all servers one by one, and lets them go one by
	// one in another order.
	Swizzle Kind = "swizzle"
)

// Disks.
const (
	// Hang lets no write to a server's disk end.
	Hang Kind = "hang"
	// Stall is Hang with CutOff: all that a frozen machine shows to others. What
	// it does not model: the clocks of its process run on.
	Stall Kind = "stall"
	// Slow adds up to By to each write, twice.
	Slow Kind = "slow disk"
	// IOError fails every write; of an append a part may be on the disk. The
	// server gives up and is started again when the fault ends.
	IOError Kind = "io error"
	// NoRoom leaves a server's disk less room than it needs to run, and then none:
	// every write fails. It is restarted when it gives up, and waits for room.
	NoRoom Kind = "no room"
	// TornWrite cuts the power in the middle of a server's next append of several
	// entries: the first of them are on the disk.
	TornWrite Kind = "torn write"
	// FlipSnapshot flips a bit in the newest snapshot while the power is cut, and
	// FlipEntry one in an entry of the log. A snapshot has a checksum. An entry has
	// none, here as in cluster/raftlog: no run survives that for sure, and Generate
	// draws it only when it is told to.
	FlipSnapshot Kind = "flip snapshot"
	FlipEntry    Kind = "flip entry"
	// DiskLost empties a server's disk. First it is started under the id that it
	// had, as a careless operator would; when the fault ends it joins under a new
	// one.
	DiskLost Kind = "disk lost"
)

// Clocks. What a server asks its clock.Clock is wrong then; the timers of the
// raft library ask the runtime, which is the same for all, and cannot be wrong.
const (
	// Jump sets a server's wall clock By forward, or back, for a while. Monotonic
	// readings and timers know nothing of it.
	Jump Kind = "clock jump"
	// Drift lets a server's clock, all of it, gain By in each second, or lose it.
	// What it has gained it keeps; more than a second it never is.
	Drift Kind = "clock drift"
)

// Operators.
const (
	// AddServer lets a new machine join; there are five at most. It stays.
	AddServer Kind = "add server"
	// RemoveServer takes a follower out and switches it off for good; three are
	// left at least.
	RemoveServer Kind = "remove server"
	// ReplaceServer gives a follower an empty disk and a new id.
	ReplaceServer Kind = "replace server"
	// Transfer hands over leadership.
	Transfer Kind = "transfer"
	// Snapshot makes a server write a snapshot and shorten its log now.
	Snapshot Kind = "snapshot"
	// Compact forgets the history of the objects, but for the last By revisions (a
	// number, as nanoseconds). That of the etcd space is left to the workloads:
	// who watches there has to know of it.
	Compact Kind = "compact"
)

// Kinds are all kinds, in the order in which they are documented.
func Kinds() []Kind {
	return []Kind{
		Kill, PowerCut, PowerCutAll, Restart, Storm, CrashBefore, CrashAfter, Upgrade,
		Isolate, CutOff, Split, Deaf, Mute, Late, Loss, Reset, Flap, Swizzle,
		Hang, Stall, Slow, IOError, NoRoom, TornWrite, FlipSnapshot, FlipEntry, DiskLost,
		Jump, Drift,
		AddServer, RemoveServer, ReplaceServer, Transfer, Snapshot, Compact,
	}
}

// Target says which server a fault is done to. It is decided at that moment. The
// name of a server is a target, too.
type Target string

const (
	Leader   Target = "leader"
	Follower Target = "follower"
	Any      Target = "any"
	// Same is the server to which the fault before was done.
	Same Target = "same"
)

// Fault is one thing that goes wrong for a while.
type Fault struct {
	Kind   Kind
	Target Target
	For    time.Duration
	// By is of the kinds that say so, and so are N, a number of writes from 1, and
	// What, the beginning of a write's name: "append", "truncate", "vote",
	// "stable", "snapshot", or "" for any.
	By   time.Duration
	N    int
	What string
}

func (f Fault) String() string {
	text := fmt.Sprintf("%s %s for %v", f.Kind, f.Target, f.For)
	if f.By != 0 {
		text += fmt.Sprintf(" by up to %v", f.By)
	}
	if f.N != 0 {
		text += fmt.Sprintf(", number %d %s", f.N, f.What)
	}
	return text
}

// needs is what a kind wants to know beyond its target and how long.
type needs struct{ by, negative, n bool }

func needsOf(k Kind) needs {
	switch k {
	case Late, Loss, Reset, Flap, Slow, Storm:
		return needs{by: true}
	case Jump, Drift:
		return needs{by: true, negative: true}
	case CrashBefore, CrashAfter:
		return needs{n: true}
	}
	return needs{}
}

// maxBy and the others bound what a schedule may ask for.
const (
	maxFor   = 10 * time.Minute
	maxBy    = 24 * time.Hour
	minPulse = 10 * time.Millisecond // of Flap, Reset and Storm
	maxDrift = 100 * time.Millisecond
	maxSlow  = 2 * time.Second
	maxN     = 1_000_000
	maxSteps = 10_000
)

// Check tells what is wrong with a fault.
func (f Fault) Check() error {
	n := needsOf(f.Kind)
	switch {
	case !slices.Contains(Kinds(), f.Kind):
		return fmt.Errorf("kind is %q, which is none: see inside.Kinds", f.Kind)
	case f.Target == "":
		return fmt.Errorf("%s: target is missing: leader, follower, any, same, or a server's name", f.Kind)
	case f.For < 0 || f.For > maxFor:
		return fmt.Errorf("%s: for is %v, allowed is 0 to %v", f.Kind, f.For, maxFor)
	case !n.by && f.By != 0 && f.Kind != Compact:
		return fmt.Errorf("%s: by is %v, but it takes none", f.Kind, f.By)
	case n.by && (f.By == 0 || f.By > maxBy || -f.By > maxBy || f.By < 0 && !n.negative):
		return fmt.Errorf("%s: by is %v, allowed is more than 0 and at most %v", f.Kind, f.By, maxBy)
	case n.n != (f.N != 0) || f.N < 0 || f.N > maxN:
		return fmt.Errorf("%s: n is %d, it is a number of writes from 1 to %d for a crash at a write, and 0 for all others", f.Kind, f.N, maxN)
	case f.What != "" && !n.n:
		return fmt.Errorf("%s: what is %q, but it takes none", f.Kind, f.What)
	}
	return f.checkBy()
}

func (f Fault) checkBy() error {
	switch f.Kind {
	case Flap, Reset, Storm:
		if f.By < minPulse {
			return fmt.Errorf("%s: by is %v, at least %v", f.Kind, f.By, minPulse)
		}
	case Drift:
		if f.By > maxDrift || -f.By > maxDrift {
			return fmt.Errorf("%s: by is %v a second, at most %v", f.Kind, f.By, maxDrift)
		}
	case Slow:
		if f.By > maxSlow {
			return fmt.Errorf("%s: by is %v, at most %v: a server gives up on a disk that is slower", f.Kind, f.By, maxSlow)
		}
	case Compact:
		if f.By < 0 {
			return fmt.Errorf("%s: by is %d revisions, at least 0", f.Kind, f.By)
		}
	}
	return nil
}
