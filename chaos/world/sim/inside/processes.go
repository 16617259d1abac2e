package inside

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/balsa-run/balsa/cluster/memlog"
)

func (w *World) powerCutAll(f Fault) (heal func()) {
	w.Trace.Sayf("", "FAULT %s for %v", f.Kind, f.For)
	w.Reach(ReachedPowerLost)
	var undo []func()
	for _, s := range w.Servers() {
		if s.Core() != nil {
			undo = append(undo, w.inject(s, Fault{Kind: PowerCut}, nil))
		}
	}
	return func() {
		for _, each := range undo {
			each()
		}
		w.Trace.Sayf("", "healed: %s", f.Kind)
	}
}

func (w *World) crash(s *Server, loud bool) (undo func()) {
	restore, err := s.Crash(loud)
	if err != nil {
		w.Wrongf("crash: %v", err)
		return func() {}
	}
	return func() {
		restore()
		w.start(s)
	}
}

// stopLimit is what a server may take to stop in good order, with or without the
// others.
const stopLimit = 30 * time.Second

func (w *World) restart(s *Server) (undo func()) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			w.Wrongf("restart: %v", err)
		}
	}()
	return func() {
		<-stopped
		w.start(s)
	}
}

// start does nothing for a server that another fault's end has started, or that
// was removed. One that is damaged may refuse to start.
func (w *World) start(s *Server) {
	s.mu.Lock()
	on, removed, damaged := s.life != nil || s.booting != nil, s.removed, s.damaged
	s.mu.Unlock()
	if on || removed {
		return
	}
	switch err := s.Start(); {
	case err == nil:
	case damaged:
		w.Trace.Sayf(s.Name, "does not start: %v", err)
	default:
		w.Wrongf("after a crash: %v", err)
	}
}

// upgrade restarts a server as the next version.
func (w *World) upgrade(s *Server) (undo func()) {
	start := w.restart(s)
	return func() {
		s.mu.Lock()
		s.version++
		s.mu.Unlock()
		start()
		w.Reach(ReachedUpgraded)
	}
}

// storm crashes and starts a server by turns.
func (w *World) storm(s *Server, by time.Duration) (undo func()) {
	return w.pulse(by, func() (undo func()) {
		if s.Core() == nil {
			return func() {} // something else has it
		}
		return w.crash(s, true)
	})
}

// crashAtWrite cuts the power of a server at one of its writes.
func (w *World) crashAtWrite(s *Server, f Fault) (undo func()) {
	left := f.N
	return w.crashWhen(s, f, func(what string, _ int, done bool) bool {
		if done != (f.Kind == CrashAfter) || !strings.HasPrefix(what, f.What) {
			return false
		}
		left--
		if left == 0 && done && what == memlog.WriteVote {
			w.Reach(ReachedVoteThenCrash)
		}
		return left == 0
	})
}

// tornWrite cuts the power in the middle of the next append that has one.
func (w *World) tornWrite(s *Server, f Fault) (undo func()) {
	return w.crashWhen(s, f, func(what string, entries int, done bool) bool {
		return !done && what == memlog.WriteAppend && entries > 1
	})
}

// crashWhen cuts the power of a server at the first write of which when says so,
// in this life of it. When there was none the trace has InVain.
func (w *World) crashWhen(s *Server, f Fault, when func(what string, entries int, done bool) bool) (undo func()) {
	s.mu.Lock()
	l, disk := s.life, s.disk
	s.mu.Unlock()
	restore := func() {}
	var crashed bool // both are written under the server's lock, and read after it
	disk.SetWatch(func(what string, entries int, done bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if l == nil || s.life != l || !when(what, entries, done) {
			return
		}
		w.Trace.Sayf(s.Name, "power cut at a write: %s, %d entries, done: %t", what, entries, done)
		w.Reach(ReachedCrashAtWrite)
		restore, crashed = s.crashLocked().bury, true
	})
	return func() {
		disk.SetWatch(nil)
		s.mu.Lock()
		restore, crashed := restore, crashed
		s.mu.Unlock()
		if !crashed {
			w.Trace.Sayf(s.Name, "%s", InVain(f))
			return
		}
		restore()
		w.start(s)
	}
}

// InVain is what the trace says of a crash at a write that was not made.
func InVain(f Fault) string { return fmt.Sprintf("no such write: %v", f) }
