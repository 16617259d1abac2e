package inside

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Inject does a fault and returns what undoes it, or nil when there was nobody
// to do it to: no leader for a fault of the leader, a server that is off, or one
// whose damage would be more than the cluster can bear (see spare). It returns at
// once. What undoes it may take a while: a server that has to join anew is a
// voter when it returns.
func (w *World) Inject(f Fault, chance *rand.Rand) (heal func()) {
	switch f.Kind {
	case PowerCutAll:
		return w.powerCutAll(f)
	case AddServer:
		return w.add(f)
	}
	s := w.target(f.Target, chance)
	if s == nil || s.Core() == nil {
		w.Trace.Sayf("", "no %s for %s", f.Target, f.Kind)
		return nil
	}
	if !w.bears(s, f.Kind) {
		w.Trace.Sayf(s.Name, "%s is more than the cluster could bear now", f.Kind)
		return nil
	}
	w.Trace.Sayf(s.Name, "FAULT %s", f)
	w.mu.Lock()
	w.last = s
	w.mu.Unlock()
	undo := w.inject(s, f, chance)
	return func() {
		undo()
		w.Trace.Sayf(s.Name, "healed: %s", f.Kind)
	}
}

func (w *World) inject(s *Server, f Fault, chance *rand.Rand) (undo func()) {
	for _, group := range []func(*Server, Fault, *rand.Rand) func(){w.injectProcess, w.injectLinks, w.injectDisk, w.injectOther} {
		if undo := group(s, f, chance); undo != nil {
			return undo
		}
	}
	panic("inside: no fault " + string(f.Kind))
}

func (w *World) injectProcess(s *Server, f Fault, _ *rand.Rand) (undo func()) {
	switch f.Kind {
	case Kill:
		return w.crash(s, true)
	case PowerCut:
		return both(w.hold(s, true, true, true), w.crash(s, false))
	case Restart:
		return w.restart(s)
	case Upgrade:
		return w.upgrade(s)
	case Storm:
		return w.storm(s, f.By)
	case CrashBefore, CrashAfter:
		return w.crashAtWrite(s, f)
	}
	return nil
}

func (w *World) injectLinks(s *Server, f Fault, chance *rand.Rand) (undo func()) {
	switch f.Kind {
	case Isolate:
		return w.hold(s, true, true, false)
	case CutOff:
		return w.hold(s, true, true, true)
	case Split:
		return w.split(s, chance)
	case Deaf:
		return w.hold(s, true, false, false)
	case Mute:
		return w.hold(s, false, true, false)
	case Late:
		return w.late(s, f.By, chance)
	case Loss:
		return w.lossy(s, f.By, chance)
	case Reset:
		return w.pulse(f.By, func() (undo func()) { s.reset(); return func() {} })
	case Flap:
		return w.flap(s, f.By)
	case Swizzle:
		return w.swizzle(f.For, chance)
	}
	return nil
}

func (w *World) injectDisk(s *Server, f Fault, chance *rand.Rand) (undo func()) {
	switch f.Kind {
	case Hang:
		return s.hang()
	case Stall:
		return both(w.hold(s, true, true, true), s.hang())
	case Slow:
		return s.slowDown(f.By)
	case IOError:
		return w.ioError(s, chance)
	case NoRoom:
		return w.noRoom(s, f.For)
	case TornWrite:
		return w.tornWrite(s, f)
	case FlipSnapshot, FlipEntry:
		return w.flip(s, f.Kind, chance)
	case DiskLost:
		return w.diskLost(s)
	}
	return nil
}

func (w *World) injectOther(s *Server, f Fault, _ *rand.Rand) (undo func()) {
	switch f.Kind {
	case Jump:
		w.Reach(ReachedClockWrong)
		return s.clock.jump(f.By)
	case Drift:
		w.Reach(ReachedClockWrong)
		return s.clock.drift(f.By)
	case RemoveServer:
		return w.remove(s)
	case ReplaceServer:
		return w.replace(s)
	case Transfer:
		return w.transfer(s)
	case Snapshot:
		return w.snapshot(s)
	case Compact:
		return w.compact(s, int64(f.By))
	}
	return nil
}

// both undoes the second first.
func both(first, second func()) func() { return func() { second(); first() } }

func (w *World) target(t Target, chance *rand.Rand) *Server {
	leader, servers := w.Leader(), w.Servers()
	switch t {
	case Leader:
		return leader
	case Follower:
		rest := slices.DeleteFunc(servers, func(s *Server) bool { return s == leader })
		return pick(chance, rest...)
	case Any:
		return pick(chance, servers...)
	case Same:
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.last
	}
	return w.Server(string(t))
}

// bears tells whether a server may lose what it has. No more than a minority
// lacks something at any time: a server that was damaged, or is not a voter yet,
// counts until it is one again. A server can be taken out while three are left.
func (w *World) bears(s *Server, k Kind) bool {
	servers := w.Servers()
	switch k {
	case FlipSnapshot, FlipEntry, DiskLost, ReplaceServer:
	case RemoveServer:
		if len(servers) <= 3 {
			return false
		}
	default:
		return true
	}
	weak := 1
	for _, other := range servers {
		if other.isWeak() {
			weak++
		}
	}
	return !s.isWeak() && weak <= (len(servers)-1)/2
}

// background does something until it is undone; undoing waits for it. It gets a
// channel that is closed then.
func background(do func(undone <-chan struct{})) (undo func()) {
	undone, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		do(undone)
	}()
	return func() {
		close(undone)
		<-ended
	}
}

// pause is false when the fault was undone first.
func pause(undone <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-undone:
		return false
	}
}

// pulse does something and undoes it, by turns.
func (w *World) pulse(by time.Duration, do func() (undo func())) (undo func()) {
	by = max(by, minPulse)
	return background(func(undone <-chan struct{}) {
		for {
			undo := do()
			again := pause(undone, by)
			undo()
			if !again || !pause(undone, by) {
				return
			}
		}
	})
}
